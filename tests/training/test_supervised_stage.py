"""Teacher forcing as a stage: on a task, and on texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import lm, models, tasks, training
from jaxrl4lm.data import CharacterTokenizer, encode, pad_examples
from jaxrl4lm.lm import supervised as update_rule
from jaxrl4lm.lm.trainable import adapters
from jaxrl4lm.training.language_stage import init_params, make_rows
from jaxrl4lm.types import InputError
from tests.selection import slow_but
from tests.training.stages import interrupt_at

TASK = tasks.copy(2)
POLICY = models.LanguagePolicy(
    models.TransformerConfig(TASK.tokenizer.vocab_size, layers=1, width=16, heads=2, context=8)
)
PARAMS = jax.jit(POLICY.init)(jax.random.key(0))
CONFIG = lm.SupervisedConfig(learning_rate=0.01, steps=5, batch=4)
PAIRS = [("ab", "ba"), ("", "aab"), ("b", "a"), ("bb", "bba"), ("a", "b")]
ROWS = [{"prompt": prompt, "completion": completion} for prompt, completion in PAIRS]
TOKENIZER = CharacterTokenizer.from_texts(["ab"])
READER = models.LanguagePolicy(
    models.TransformerConfig(TOKENIZER.vocab_size, layers=1, width=16, heads=2, context=8)
)


def teach(rows=ROWS, **options) -> training.Stage:
    return training.supervised(READER, rows, CONFIG, tokenizer=TOKENIZER, **options)


@pytest.fixture(scope="module")
def start():
    return jax.jit(READER.init)(jax.random.key(0))


@pytest.mark.parametrize("texts", slow_but([lm.TextConfig(), lm.TextConfig(packing="bfd", max_length=8)], 1))
def test_texts(start, tmp_path, texts):
    """Each once an epoch; interrupted in the middle of one and resumed, the same bits."""
    stage = teach(evaluate_every=2, texts=texts)
    run = training.fit([stage], start, out=tmp_path / "whole")
    assert run.history["loss"].shape == (5,)
    assert [r["step"] for r in run.records if "held_out/loss" in r] == [0, 2, 4, 5]
    assert list(stage.panels) == ["loss", "held_out/loss", "held_out"]
    assert run.history["held_out/loss"][-1] < run.history["held_out/loss"][0]
    assert run.progress.best["step"] == 5
    tokens, segments, targets = map(
        jnp.asarray, pad_examples(encode(make_rows(ROWS, "texts", "text"), TOKENIZER).examples, 0)
    )
    texts_of_rows = update_rule.Texts(tokens, segments > 0, targets)
    nats, right = jax.jit(lambda p: update_rule.measure(p, texts_of_rows, READER))(run.params)
    np.testing.assert_allclose(run.history["held_out/loss"][-1], nats.total / nats.denominator, rtol=1e-5)
    np.testing.assert_allclose(run.history["held_out"][-1], right.total / right.denominator, rtol=1e-5)
    training.fit([interrupt_at(stage, 2)], start, out=tmp_path / "run")
    resumed = training.fit([stage], start, out=tmp_path / "run", resume=True)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, run.params)
    for name in ("model", "best"):
        policy, params, tokenizer = models.load(tmp_path / "run" / name)
        jax.tree.map(np.testing.assert_array_equal, params, run.params)
    assert tokenizer is not None
    assert tokenizer.encode("ab") == TOKENIZER.encode("ab")
    assert policy.config.context == 8


def test_what_is_held_out_is_not_trained_on(start):
    """A tenth of enough rows; of fewer all are trained on, and the label says so."""
    many = [{"prompt": "", "completion": "ab" * (1 + i % 3)} for i in range(20)]
    texts = training.prepare_texts(many, TOKENIZER, lm.TextConfig(), context=8, embeddings=5)
    assert (len(texts.training), len(texts.held_out), texts.seen) == (18, 2, False)
    assert teach(many).panels["held_out"] == "held-out token accuracy"
    assert teach().panels["held_out"] == "training token accuracy"


def test_one_text_is_parted(start):
    """Cut wherever a row ends, a tenth of the pieces held out; nothing is lost."""
    texts = training.prepare_texts(["ab" * 80], TOKENIZER, lm.TextConfig(), context=8, embeddings=5)
    assert texts.packing == "wrapped"
    assert (len(texts.training), len(texts.held_out)) == (19, 2)
    assert sum(len(e.tokens) for e in (*texts.training, *texts.held_out)) == 162
    batches = training.TextBatches(texts, 0, 4, seed=0)
    assert batches.rows == 19
    assert batches.take(0, 2).tokens.shape == (2, 4, 8)


def test_rows_of_many_lengths_are_few_programs(start):
    rows = ["ab" * (1 + 7 * i) for i in range(30)]
    config = models.TransformerConfig(TOKENIZER.vocab_size, layers=1, width=8, heads=2, context=512)
    policy = models.LanguagePolicy(config)
    stage = training.supervised(policy, rows, CONFIG.replace(epochs=2.0), tokenizer=TOKENIZER)
    assert (stage.steps, stage.stride) == (14, 1)  # 13.5
    batches = [stage.advance.__self__._batches.take(step, 1) for step in range(stage.steps)]
    widths = {batch.tokens.shape[2] for batch in batches}
    assert 1 < len(widths) <= 6
    assert sum(batch.tokens.size for batch in batches) < 1.3 * sum(batch.mask.sum() for batch in batches)


def test_other_texts_are_refused(start, tmp_path):
    training.fit([teach()], start, out=tmp_path / "run")
    stage = teach([*ROWS[:-1], {"prompt": "b", "completion": "b"}])
    with pytest.raises(InputError, match=r"began with stages\[0\].dataset.digest"):
        training.fit([stage], start, out=tmp_path / "run", resume=True)


@pytest.mark.slow
def test_adapters_alone_learn(start, tmp_path):
    """With dropout, which a resumed run draws as the run would have drawn it."""
    stage = teach(trainable=adapters(rank=2, dropout=0.3), evaluate_every=2)
    shapes = jax.eval_shape(stage.init, start)
    size = models.parameter_count
    assert size(shapes.params) < size(shapes.frozen) / 2
    run = training.fit([stage], start, out=tmp_path / "run")
    assert run.history["loss"][-1] < run.history["loss"][0]
    np.testing.assert_array_equal(run.params["final_norm"]["scale"], start["final_norm"]["scale"])
    policy, params, _ = models.load(tmp_path / "run" / "model")
    jax.tree.map(np.testing.assert_array_equal, params, run.params)
    learnt, scale = models.lora.load(tmp_path / "run" / "adapter", policy)
    merged = models.lora.merge(start, learnt, scale)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merged, params)
    training.fit([interrupt_at(stage, 2)], start, out=tmp_path / "stopped")
    resumed = training.fit([stage], start, out=tmp_path / "stopped", resume=True)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, run.params)
    undropped = training.fit([teach(trainable=adapters(rank=2), evaluate_every=2)], start)
    assert (undropped.history["loss"][1:] != run.history["loss"][1:]).all()


def test_until_a_score_is_reached():
    seen = []

    def reach(metrics):
        seen.append(float(metrics["held_out"]))
        return True

    evaluation = training.evaluate_task(POLICY, TASK, count=8)
    stage = training.supervised(POLICY, TASK, CONFIG, evaluation=evaluation, until=reach, evaluate_every=2)
    run = training.fit([stage], PARAMS)
    assert [r["step"] for r in run.records] == [0, 1, 2]
    assert seen[-1] == run.history["held_out"][-1]


@pytest.mark.slow
def test_several_seeds_are_as_many_runs():
    evaluation = training.evaluate_task(POLICY, TASK, count=8, seeds=2)
    both = training.fit(
        [training.supervised(POLICY, TASK, CONFIG, seeds=2, evaluation=evaluation)], init_params(POLICY, 0, 2)
    )
    assert both.history["loss"].shape == (5, 2)
    for seed in (0, 1):
        alone = training.fit(
            [training.supervised(POLICY, TASK, CONFIG, seed=seed)], init_params(POLICY, seed)
        )
        np.testing.assert_allclose(both.history["loss"][:, seed], alone.history["loss"], rtol=1e-4)


def test_several_seeds_need_a_task():
    with pytest.raises(InputError, match="several seeds at once need a task, not texts"):
        teach(seeds=2)
    with pytest.raises(InputError, match="batch"):
        training.supervised(POLICY, TASK, CONFIG.replace(batch=0))
