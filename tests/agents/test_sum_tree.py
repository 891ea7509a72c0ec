"""A tree of sums against an array: what is written is what is summed, and what is drawn is in proportion."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm.agents import sum_tree


def check_sums(tree, weights):
    np.testing.assert_array_equal(tree[0][: len(weights)], weights)
    for lower, level in itertools.pairwise(tree):
        sums = np.asarray(lower).reshape(-1, sum_tree.FAN).sum(-1)
        np.testing.assert_allclose(level[: len(sums)], sums, rtol=1e-6)
        np.testing.assert_array_equal(level[len(sums) :], 0)
    assert len(tree[-1]) == sum_tree.FAN


@pytest.mark.parametrize("size", [1, 16, 17, 300, 5000])
def test_sums_are_those_of_the_weights(size):
    rng = np.random.default_rng(size)
    tree, weights = sum_tree.init(size), np.zeros(size, np.float32)
    check_sums(tree, weights)
    for _ in range(3):
        index = rng.integers(0, size, 40)
        weights[index] = new = rng.random(size).astype(np.float32)[index]
        tree = jax.jit(sum_tree.write)(tree, jnp.asarray(index), jnp.asarray(new))
        check_sums(tree, weights)


def test_draws_are_in_proportion_to_the_weights():
    """Within one draw of count · p, since each comes from an equal part of the sum; none of weight 0."""
    rng = np.random.default_rng(0)
    weights = (rng.random(700) ** 8 * (rng.random(700) < 0.5)).astype(np.float32)
    tree = sum_tree.write(sum_tree.init(700), jnp.arange(700), jnp.asarray(weights))
    index, probabilities = jax.jit(sum_tree.draw, static_argnums=2)(jax.random.key(0), tree, 100_000)
    exact = weights.astype(float) / weights.astype(float).sum()
    counts = np.bincount(index, minlength=700)
    assert (abs(counts - 100_000 * exact) < 2).all()
    assert (counts[weights == 0] == 0).all()
    np.testing.assert_allclose(probabilities, exact[np.asarray(index)], rtol=1e-2, atol=1e-7)
    large = weights[np.asarray(index)] > 0.01
    np.testing.assert_allclose(probabilities[large], exact[np.asarray(index)][large], rtol=1e-4)


def test_parts_of_the_sum_are_drawn_from_independently_of_their_order():
    """Another key draws others; a single draw can be any."""
    tree = sum_tree.write(sum_tree.init(20), jnp.arange(20), jnp.ones(20))
    single = jax.vmap(lambda key: sum_tree.draw(key, tree, 1)[0][0])(
        jax.random.split(jax.random.key(0), 2000)
    )
    counts = np.bincount(single, minlength=20)
    assert (abs(counts - 100) < 50).all()
