"""Teacher forcing against the plain formula, and what must not change it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import tasks
from jaxrl4lm.lm import SupervisedConfig, supervised
from jaxrl4lm.models import LanguagePolicy, TransformerConfig

TASK = tasks.reverse(2)
POLICY = LanguagePolicy(
    TransformerConfig.gpt2(TASK.tokenizer.vocab_size, layers=1, width=16, heads=2, context=16)
)
INIT = jax.jit(POLICY.init)
TEACHER = supervised.Teacher(POLICY)
CONFIG = SupervisedConfig(learning_rate=1e-2, steps=60, batch=64)


@pytest.fixture(scope="module")
def trained():
    source = supervised.task_source(TASK, CONFIG.batch)
    state = supervised.init(jax.random.key(0), CONFIG, TEACHER, INIT(jax.random.key(1)))
    return jax.jit(lambda s: supervised.run(s, CONFIG, TEACHER, source, CONFIG.steps))(state)


def test_it_learns(trained):
    _, metrics = trained
    assert metrics["loss"][-1] < 0.75 * metrics["loss"][0]
    assert metrics["token_accuracy"][-1] > metrics["token_accuracy"][0] + 0.2


def test_loss_is_the_cross_entropy_of_the_completion_alone():
    state = supervised.init(jax.random.key(0), CONFIG, TEACHER, INIT(jax.random.key(1)))
    batch = supervised.task_source(TASK, 4)(jax.random.key(2), None)
    step = jax.jit(lambda b: supervised.update(state, b, CONFIG, TEACHER)[1]["loss"])
    logits, _ = jax.jit(POLICY.apply)(state.params, batch.tokens)
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


def test_a_loss_of_ones_own_is_what_is_descended():
    """The gradient of 2 · cross-entropy is twice as long; the accuracy is not the loss's."""
    batch = supervised.task_source(TASK, 4)(jax.random.key(2), None)
    twice = TEACHER._replace(loss=lambda log_probs: -2 * log_probs)
    state = supervised.init(jax.random.key(0), CONFIG, TEACHER, INIT(jax.random.key(1)))
    step = jax.jit(supervised.update, static_argnums=(2, 3))
    (_, plain), (_, doubled) = (step(state, batch, CONFIG, teacher) for teacher in (TEACHER, twice))
    for name, factor in (("loss", 2), ("grad_norm", 2), ("token_accuracy", 1)):
        np.testing.assert_allclose(doubled[name], factor * plain[name], rtol=1e-5)


def test_accuracy_is_the_share_of_most_likely_tokens():
    batch = supervised.task_source(TASK, 16)(jax.random.key(2), None)
    params = INIT(jax.random.key(1))
    logits, _ = jax.jit(POLICY.apply)(params, batch.tokens)
    right = (np.asarray(logits).argmax(-1)[:, :-1] == batch.tokens[:, 1:])[
        np.asarray(batch.target_mask)[:, 1:]
    ]
    _, accuracy = jax.jit(lambda p: supervised.measure(p, batch, POLICY))(params)
    np.testing.assert_allclose(accuracy.total / accuracy.denominator, right.mean(), rtol=1e-6)


def test_rows_of_a_corpus():
    corpus = supervised.Texts(jnp.arange(6).reshape(3, 2), jnp.ones((3, 2), bool), jnp.ones((3, 2), bool))
    batch = supervised.row_source(corpus)(jax.random.key(0), jnp.array([2, 0]))
    np.testing.assert_array_equal(batch.tokens, [[4, 5], [0, 1]])


def test_learning_rate_rises_and_falls():
    rates = jax.jit(jax.vmap(lambda s: supervised.learning_rate_at(s, CONFIG)))(jnp.arange(60))
    assert rates[0] < rates[10] < rates[20]
    np.testing.assert_allclose(rates.max(), 1e-2, rtol=1e-3)
    np.testing.assert_allclose(rates[-1], 1e-3, rtol=0.05)


def test_a_non_finite_step_is_skipped():
    config = CONFIG.replace(learning_rate=jnp.nan, warmup=0)
    params = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), INIT(jax.random.key(1)))
    state = supervised.init(jax.random.key(0), config, TEACHER, params)
    batch = supervised.task_source(TASK, 4)(jax.random.key(2), None)
    after, metrics = jax.jit(lambda s: supervised.update(s, batch, config, TEACHER))(state)
    assert after.skipped == metrics["skipped_updates"] == 1
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, state.opt_state)
