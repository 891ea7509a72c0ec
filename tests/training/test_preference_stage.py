"""Learning from preferences as a stage: resume, references, what is held out."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import data, lm, models, training
from jaxrl4lm.lm.preference_losses import LOSSES
from jaxrl4lm.lm.trainable import adapters
from jaxrl4lm.types import InputError
from tests.selection import slow_but
from tests.training.stages import interrupt_at

TOKENIZER = data.CharacterTokenizer.from_texts(["0123456789+=.x"])
POLICY = models.LanguagePolicy(
    models.TransformerConfig(TOKENIZER.vocab_size, layers=1, width=16, heads=2, context=16)
)
PAIRS = [{"prompt": f"2+{i}=", "chosen": str(2 + i), "rejected": "x" * (1 + (i * 5) % 4)} for i in range(10)]
CONFIG = lm.PreferenceConfig(learning_rate=3e-3, steps=5, batch=4)


@pytest.fixture(scope="module")
def start():
    return jax.jit(POLICY.init)(jax.random.key(0))


def prefer(start, rows=PAIRS, **options) -> training.Stage:
    options = {"config": CONFIG, "reference": start, "evaluate_every": 2, **options}
    return training.preference(POLICY, TOKENIZER, rows, **options)


@pytest.mark.parametrize(
    "options",
    slow_but(
        [
            {"once": True, "trainable": adapters(rank=2, dropout=0.2)},
            {},
            {"loss": LOSSES["kto"], "once": True},
            {"loss": LOSSES["simpo"], "reference": None},
        ],
        1,
    ),
    ids=["adapters", "live", "kto", "simpo"],
)
def test_resume(start, tmp_path, options):
    """Interrupted and resumed, the same bits; what is held out is measured as a step measures it."""
    stage = prefer(start, **options)
    run = training.fit([stage], start, out=tmp_path / "whole")
    assert [r["step"] for r in run.records if "held_out/loss" in r] == [0, 2, 4, 5]
    assert run.history["held_out/loss"][-1] < run.history["held_out/loss"][0]
    assert run.history["held_out/margin"][-1] > run.history["held_out/margin"][0]
    assert list(stage.panels) == ["loss", "held_out/loss", "held_out", "rewards/margins"]
    training.fit([interrupt_at(stage, 2)], start, out=tmp_path / "run")
    resumed = training.fit([stage], start, out=tmp_path / "run", resume=True)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, run.params)
    _, params, _ = models.load(tmp_path / "run" / "best")
    assert models.parameter_count(params) == models.parameter_count(start)


def test_a_reference_that_is_kept_with_the_rows(start):
    """Equals the live one; no second model is in the state, among a step's arguments, or alive after the first use."""
    own = jax.tree.map(jnp.copy, start)
    live, adapted = prefer(start), prefer(start, trainable=adapters(rank=2))
    kept = prefer(start, reference=own, once=True)
    leaf = weakref.ref(own["embedding"])
    del own
    runs = [training.fit([stage], start) for stage in (live, kept)]
    gc.collect()
    assert leaf() is None
    for name, value in runs[0].history.items():
        if name != "seconds":
            np.testing.assert_allclose(runs[1].history[name], value, rtol=1e-6, atol=1e-6, err_msg=name)
    size = models.parameter_count(start)
    for stage in (live, kept):
        state = jax.eval_shape(stage.init, start)
        assert models.parameter_count((state.params, state.frozen)) == size
        assert models.parameter_count(state.opt_state) < 2 * size + 10  # Adam's two means
    state = jax.eval_shape(live.init, start)
    beside = [stage.advance.__self__.beside(state) for stage in (live, kept, adapted)]
    assert [models.parameter_count(each) for each in beside] == [size, 0, 0]


def test_the_first_step_is_at_the_reference(start):
    """Held-out losses are log 2 there, and margins 0; under another reference they are not."""
    run = training.fit([prefer(start)], start)
    np.testing.assert_allclose(run.history["held_out/loss"][0], np.log(2), rtol=1e-6)
    assert run.history["held_out/margin"][0] == run.history["rewards/margins"][0] == 0
    assert run.history["loss"][0] == pytest.approx(np.log(2), rel=1e-6)
    other = prefer(start, reference=jax.tree.map(lambda x: np.float32(1.2) * np.asarray(x), start))
    assert abs(other.evaluate(start)["held_out/margin"]) > 1e-4


@pytest.mark.slow
def test_judged_completions_and_pairs_taken_apart(start):
    judged = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for side in ("chosen", "rejected")
        for row in PAIRS
    ]
    options = {"loss": LOSSES["kto"], "pairs": lm.PairConfig(held_out=0)}
    apart, alone = (training.fit([prefer(start, rows, **options)], start) for rows in (PAIRS, judged))
    np.testing.assert_array_equal(apart.history["loss"], alone.history["loss"])
    with pytest.raises(InputError, match="this is unpaired_preference, no preference"):
        prefer(start, judged)


def test_what_is_refused(start):
    with pytest.raises(InputError, match="compares with a reference: give reference="):
        prefer(start, reference=None)
    with pytest.raises(InputError, match="micro_batches must be 1"):
        prefer(start, loss=LOSSES["aot"], config=CONFIG.replace(micro_batches=2))
    with pytest.raises(InputError, match=r"no row of the dataset can be used \(10 cut before"):
        prefer(start, pairs=lm.PairConfig(max_length=4))
