"""Teacher forcing as a stage: on a task, and on texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import lm, models, tasks, training
from jaxrl4lm.data import CharacterTokenizer
from jaxrl4lm.data.corpus import Document, encode_documents
from jaxrl4lm.lm import supervised as update_rule
from jaxrl4lm.lm.trainable import adapters
from jaxrl4lm.training.language_stage import init_params
from jaxrl4lm.types import InputError
from tests.training.stages import interrupt_at

TASK = tasks.copy(2)
POLICY = models.LanguagePolicy(
    models.TransformerConfig(TASK.tokenizer.vocab_size, layers=1, width=16, heads=2, context=8)
)
PARAMS = jax.jit(POLICY.init)(jax.random.key(0))
CONFIG = lm.SupervisedConfig(learning_rate=0.01, steps=5, batch=4)
DOCUMENTS = [Document(a, b) for a, b in (("ab", "ba"), ("", "aab"), ("b", "a"), ("bb", "bba"), ("a", "b"))]
TOKENIZER = CharacterTokenizer.from_texts(["ab"])
READER = models.LanguagePolicy(
    models.TransformerConfig(TOKENIZER.vocab_size, layers=1, width=16, heads=2, context=8)
)
CORPUS = encode_documents(DOCUMENTS, TOKENIZER, 8)


def teach(**options) -> training.Stage:
    return training.supervised(READER, CORPUS, CONFIG, tokenizer=TOKENIZER, **options)


@pytest.fixture(scope="module")
def start():
    return jax.jit(READER.init)(jax.random.key(0))


def test_texts(start, tmp_path):
    """Each once an epoch; interrupted in the middle of one and resumed, the same bits."""
    evaluation = training.evaluate_texts(READER, CORPUS)
    stage = teach(evaluation=evaluation, evaluate_every=2)
    run = training.fit([stage], start, out=tmp_path / "whole")
    assert run.history["loss"].shape == (5,)
    assert [r["step"] for r in run.records if "held_out/loss" in r] == [0, 2, 4, 5]
    assert list(stage.panels) == ["loss", "held_out/loss", "held_out"]
    assert run.history["held_out/loss"][-1] < run.history["held_out/loss"][0]
    nats, right = update_rule.measure(run.params, update_rule.Texts(*map(jnp.asarray, CORPUS[:3])), READER)
    np.testing.assert_allclose(run.history["held_out/loss"][-1], nats.total / nats.denominator, rtol=1e-5)
    np.testing.assert_allclose(run.history["held_out"][-1], right.total / right.denominator, rtol=1e-5)
    training.fit([interrupt_at(stage, 2)], start, out=tmp_path / "run")
    resumed = training.fit([stage], start, out=tmp_path / "run", resume=True)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, run.params)
    policy, params, tokenizer = models.load(tmp_path / "run" / "model")
    jax.tree.map(np.testing.assert_array_equal, params, run.params)
    assert tokenizer is not None
    assert tokenizer.encode("ab") == TOKENIZER.encode("ab")
    assert policy.config.context == 8


def test_without_an_evaluation(start, tmp_path):
    told = []
    run = training.fit([teach()], start, out=tmp_path / "run", on_progress=told.append)
    assert "held_out" not in run.history
    assert list(teach().panels) == ["loss"]
    assert told[-1].headline == f"loss {run.history['loss'].mean():.3f}"
    assert (tmp_path / "run" / "learning_curve.png").exists()


def test_other_texts_are_refused(start, tmp_path):
    training.fit([teach()], start, out=tmp_path / "run")
    other = encode_documents([*DOCUMENTS[:-1], Document("b", "b")], TOKENIZER, 8)
    stage = training.supervised(READER, other, CONFIG, tokenizer=TOKENIZER)
    with pytest.raises(InputError, match=r"began with stages\[0\].dataset.digest"):
        training.fit([stage], start, out=tmp_path / "run", resume=True)


def test_adapters_alone_learn(start, tmp_path):
    stage = teach(trainable=adapters(rank=2))
    shapes = jax.eval_shape(stage.init, start)
    size = models.parameter_count
    assert size(shapes.params) < size(shapes.frozen) / 2
    run = training.fit([stage], start, out=tmp_path / "run")
    assert run.history["loss"][-1] < run.history["loss"][0]
    np.testing.assert_array_equal(run.params["final_norm"]["scale"], start["final_norm"]["scale"])
    _, params, _ = models.load(tmp_path / "run" / "model")
    jax.tree.map(np.testing.assert_array_equal, params, run.params)


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
