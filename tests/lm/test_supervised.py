"""Teacher forcing against the plain formula, and what must not change it."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import tasks
from jaxrl4lm.lm import SupervisedConfig, supervised
from jaxrl4lm.lm.optimizer import OPTIMIZERS
from jaxrl4lm.models import LanguagePolicy, TransformerConfig
from tests.selection import slow_but

TASK = tasks.reverse(2)
POLICY = LanguagePolicy(
    TransformerConfig.gpt2(TASK.tokenizer.vocab_size, layers=1, width=16, heads=2, context=16)
)
INIT, APPLY = jax.jit(POLICY.init), jax.jit(POLICY.apply)
START = INIT(jax.random.key(1))
TEACHER = supervised.Teacher(POLICY)
CONFIG = SupervisedConfig(learning_rate=1e-2, steps=60, batch=64)


@functools.cache
def draw(count):
    return jax.jit(lambda key: supervised.task_source(TASK, count)(key, None))(jax.random.key(2))


@pytest.fixture(scope="module")
def trained():
    source = supervised.task_source(TASK, CONFIG.batch)

    @jax.jit
    def run(params):
        state = supervised.init(jax.random.key(0), CONFIG, TEACHER, params)
        return supervised.run(state, CONFIG, TEACHER, source, CONFIG.steps)

    return run(START)


def test_it_learns(trained):
    _, metrics = trained
    assert metrics["loss"][-1] < 0.75 * metrics["loss"][0]
    assert metrics["token_accuracy"][-1] > metrics["token_accuracy"][0] + 0.2


def test_loss_is_the_cross_entropy_of_the_completion_alone():
    batch = draw(4)
    step = lambda b: measure_step(b)[1]["loss"]  # noqa: E731
    logits, _ = APPLY(START, batch.tokens)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    tokens, target = np.asarray(batch.tokens), np.asarray(batch.target_mask)
    total, count = 0.0, 0
    for i in range(4):
        for t in range(1, tokens.shape[1]):
            if target[i, t]:
                total -= log_probs[i, t - 1, tokens[i, t]]
                count += 1
    np.testing.assert_allclose(step(batch), total / count, rtol=1e-5)
    assert count < batch.tokens.size
    padded = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (2, 1))), batch)
    padded = padded._replace(tokens=jnp.where(padded.mask, padded.tokens, 5))
    np.testing.assert_allclose(step(padded), step(batch), rtol=1e-5)


@partial(jax.jit, static_argnames="teacher")
def take_step(params, batch, config, teacher):
    state = supervised.init(jax.random.key(0), config, teacher, params)
    return supervised.update(state, batch, config, teacher)


def measure_step(batch, config=CONFIG, teacher=TEACHER):
    return take_step(START, batch, config, teacher)


def test_losses():
    """A loss of one's own; smoothing, z-loss and dynamic fine-tuning against formulas over all logits."""
    batch = draw(4)
    logits, _ = APPLY(START, batch.tokens)
    log_probs = np.asarray(jax.nn.log_softmax(logits))[:, :-1]
    targets = np.asarray(batch.target_mask)[:, 1:]
    own = np.take_along_axis(log_probs, np.asarray(batch.tokens)[:, 1:, None], -1)[..., 0][targets]
    mean, normalizer = log_probs[targets].mean(-1), np.asarray(jax.nn.logsumexp(logits, -1))[:, :-1][targets]
    plain = measure_step(batch)[1]
    cases = [
        (CONFIG, TEACHER._replace(loss=lambda said, _: -2 * said.log_probs), -2 * own),
        (CONFIG.replace(label_smoothing=0.25), TEACHER, -0.75 * own - 0.25 * mean),
        (CONFIG.replace(z_loss=0.5), TEACHER, -own + 0.5 * normalizer**2),
        (CONFIG, TEACHER._replace(loss=supervised.LOSSES["dft"]), -np.exp(own) * own),
    ]
    for config, teacher, expected in cases:
        metrics = measure_step(batch, config, teacher)[1]
        np.testing.assert_allclose(metrics["loss"], expected.mean(), rtol=1e-5)
        np.testing.assert_allclose(metrics["token_accuracy"], plain["token_accuracy"], rtol=1e-6)
        assert abs(metrics["grad_norm"] / plain["grad_norm"] - 1) > 0.1
    doubled = measure_step(batch, *cases[0][:2])[1]
    np.testing.assert_allclose(doubled["grad_norm"], 2 * plain["grad_norm"], rtol=1e-5)


def test_micro_batches_change_nothing():
    """Though their parts have different numbers of targets."""
    batch = draw(8)
    ragged = jnp.arange(batch.tokens.shape[1])[None] < 2 + jnp.arange(8)[:, None] // 2
    batch = batch._replace(mask=jnp.ones_like(batch.mask), target_mask=ragged)
    whole, metrics = measure_step(batch)
    for parts in (2, 8):
        state, same = measure_step(batch, CONFIG.replace(micro_batches=parts))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.params, whole.params
        )
        for name, value in metrics.items():
            np.testing.assert_allclose(same[name], value, rtol=1e-6, err_msg=name)


@pytest.mark.slow
def test_the_first_token_of_a_document_is_predicted_by_nothing():
    tokens = jnp.array([[3, 4, 5, 3, 4, 5, 0, 0]])
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 0, 0]])
    packed = supervised.Texts(tokens, segments > 0, segments > 0, segments)
    alone = supervised.Texts(tokens[:, :3], segments[:, :3] > 0, segments[:, :3] > 0)
    (a, b), (c, d) = (supervised.measure(INIT(jax.random.key(1)), texts, POLICY) for texts in (packed, alone))
    assert a.denominator == 4
    np.testing.assert_allclose(a.total / 2, c.total, rtol=1e-5)
    np.testing.assert_allclose(b.total / 2, d.total)


@pytest.mark.parametrize("name", slow_but(OPTIMIZERS, 1))
def test_optimizers(name):
    """Each step is of the size that its learning rate says, descends, and decays matrices alone."""
    batch = draw(16)
    config = SupervisedConfig(learning_rate=1e-3 if name != "lion" else 1e-4, warmup=0, schedule="constant")
    teacher = TEACHER._replace(optimizer=OPTIMIZERS[name])
    state = jax.jit(lambda params: supervised.init(jax.random.key(0), config, teacher, params))(START)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state.opt_state))
    step = jax.jit(lambda s, rate: supervised.update(s, batch, config.replace(learning_rate=rate), teacher))
    losses, start = [], state.params
    for _ in range(8):
        state, metrics = step(state, config.learning_rate)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 1e-3
    moved = jax.tree.map(lambda a, b: np.sqrt(np.square(np.asarray(a) - b).mean()), state.params, start)
    assert 0 < moved["layer_0"]["mlp"]["up"]["kernel"] < 10 * config.learning_rate
    still = jax.tree.map(np.zeros_like, start)
    tx = OPTIMIZERS[name](1.0, config.replace(weight_decay=0.5))
    updates, _ = jax.jit(lambda still, start: tx.update(still, tx.init(start), start))(still, start)
    np.testing.assert_allclose(updates["embedding"], -0.5 * start["embedding"], rtol=1e-4, atol=1e-6)
    assert not np.asarray(updates["final_norm"]["scale"]).any()


def test_schedules():
    def rates(**changes):
        config = SupervisedConfig(learning_rate=2.0, steps=100, warmup=9).replace(**changes)
        return np.asarray(jax.vmap(lambda s: supervised.learning_rate_at(s, config))(jnp.arange(101)))

    kept = {name: rates(schedule=name, final_learning_rate_share=0.1) for name in ("cosine", "linear", "wsd")}
    for name, values in kept.items():
        np.testing.assert_allclose(values[:10], np.linspace(0.2, 2.0, 10), rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(values[100], 0.2, rtol=1e-4, err_msg=name)
        assert (np.diff(values[9:]) <= 1e-6).all()
    np.testing.assert_allclose(kept["linear"][9 + 91 // 2 : 9 + 91 // 2 + 2].mean(), 1.1, rtol=1e-2)
    np.testing.assert_allclose(kept["wsd"][9:90], 2.0)
    np.testing.assert_allclose(kept["wsd"][95], 1.1, rtol=1e-4)
    np.testing.assert_allclose(rates(schedule="constant")[9:], 2.0)
    # Hugging Face's, without a warm-up: the first step has the whole rate.
    np.testing.assert_allclose(
        rates(schedule="linear", warmup=0, final_learning_rate_share=0.0),
        2 * (1 - np.arange(101) / 100),
        atol=1e-6,
    )


def test_accuracy_is_the_share_of_most_likely_tokens():
    batch, params = draw(4), START
    logits, _ = APPLY(params, batch.tokens)
    right = (np.asarray(logits).argmax(-1)[:, :-1] == batch.tokens[:, 1:])[
        np.asarray(batch.target_mask)[:, 1:]
    ]
    _, accuracy = jax.jit(lambda p: supervised.measure(p, batch, POLICY))(params)
    np.testing.assert_allclose(accuracy.total / accuracy.denominator, right.mean(), rtol=1e-6)


def test_a_non_finite_step_is_skipped():
    config = CONFIG.replace(learning_rate=jnp.nan, warmup=0)
    params = jax.tree.map(lambda x: np.full_like(x, np.nan), START)
    begin = jax.jit(lambda params, config: supervised.init(jax.random.key(0), config, TEACHER, params))
    state = begin(params, config)
    after, metrics = take_step(params, draw(4), config, TEACHER)
    assert after.skipped == metrics["skipped_updates"] == 1
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, state.opt_state)
