"""The draw against the distribution it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm.decoding import draw, draw_row_uniforms, greedy
from jaxrl4lm.decoding.drawing import draw_and_normalise
from tests.selection import slow_but

SIZES = [7, 300, 1000]  # one level; two levels with a remainder


def distribution(vocab, seed=0, holes=True):
    logits = jax.random.normal(jax.random.key(seed), (vocab,)) * 2
    return jnp.where(jnp.arange(vocab) % 3 == 1, -jnp.inf, logits) if holes else logits


def drawn(logits, uniforms):
    """Tokens of many uniforms under one distribution."""
    return jax.jit(jax.vmap(lambda u: draw(logits[None], u[None])[0]))(uniforms)


@pytest.mark.parametrize("vocab", SIZES)
def test_a_grid_of_uniforms_gives_the_inverse_of_the_cumulative_distribution(vocab):
    logits, n = distribution(vocab), 2**16
    tokens = np.asarray(drawn(logits, (jnp.arange(n) + 0.5) / n))
    probabilities = np.asarray(jax.nn.softmax(logits), np.float64)
    counts = np.bincount(tokens, minlength=vocab)
    assert np.abs(counts - n * probabilities).max() < 1.5
    assert (np.diff(tokens) >= 0).all()


@pytest.mark.parametrize("vocab", slow_but([40, 300], [40]))
def test_a_million_draws_never_take_a_token_of_probability_zero(vocab):
    logits = distribution(vocab)
    edges = jnp.array([0.0, np.nextafter(np.float32(1), np.float32(0))])
    uniforms = jnp.concatenate([edges, jax.random.uniform(jax.random.key(1), (999_998,))])
    tokens = jax.lax.map(lambda part: drawn(logits, part), uniforms.reshape(16, -1))
    counts = jnp.bincount(tokens.reshape(-1), length=vocab)
    assert counts.sum() == 1_000_000
    assert not counts[jnp.isinf(logits)].any()
    expected = np.asarray(jax.nn.softmax(logits), np.float64) * 1e6
    kept = expected > 5
    chi2 = ((np.asarray(counts) - expected)[kept] ** 2 / expected[kept]).sum()
    assert chi2 < kept.sum() + 5 * np.sqrt(2 * kept.sum())


@pytest.mark.parametrize("vocab", slow_but([200, 400, 1000], 1))
def test_whole_blocks_may_be_removed_and_the_normaliser_is_that_of_what_is_left(vocab):
    """As top-k leaves it: one token of a block, nothing of others; the largest first, last and in the middle."""
    rows = np.full((4, vocab), -np.inf, np.float32)
    for row, kept in enumerate([[0, vocab - 1], [vocab // 2], [vocab - 1, vocab - 2, 3], [7, 140]]):
        rows[row, kept] = 80 - 30 * np.arange(len(kept))
    for u in (0.0, 0.5, np.nextafter(np.float32(1), np.float32(0))):
        tokens, normaliser = jax.jit(draw_and_normalise)(rows, jnp.full(4, u, jnp.float32))
        assert (rows[np.arange(4), tokens] > 0).all()
        np.testing.assert_allclose(normaliser, jax.nn.logsumexp(rows, -1), rtol=1e-6)


def test_a_low_precision_draw_can_take_every_token():
    logits = jnp.zeros((4096, 2000), jnp.bfloat16)
    tokens = draw(logits, (jnp.arange(4096) + 0.5) / 4096)
    assert len(np.unique(tokens)) == 2000


def test_one_uniform_a_row(key):
    with pytest.raises(AssertionError, match=r"\(2, 1\)"):
        draw(jnp.zeros((2, 5)), jnp.zeros((2, 1)))


def test_greedy_is_the_first_largest():
    logits = jnp.array([[0.0, 3.0, 3.0], [5.0, 1.0, 2.0], [-jnp.inf, -jnp.inf, 0.0]])
    assert greedy(logits).tolist() == [1, 0, 2]


def test_rows_have_their_own_uniforms(key):
    all_rows = draw_row_uniforms(key, jnp.arange(6), 5)
    np.testing.assert_array_equal(
        draw_row_uniforms(key, jnp.array([4, 1]), 3), all_rows[jnp.array([4, 1]), :3]
    )
    assert len(np.unique(all_rows)) == 30
