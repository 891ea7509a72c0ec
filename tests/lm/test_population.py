"""A population in blocks is the population of `jax.vmap`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm.lm.population import map_population
from tests.selection import slow_but


def train(key, config, scale):
    """Stands for a run: state and metrics depend on every argument."""
    noise = jax.random.normal(key, (4,))

    def update(x, _):
        return x * config["decay"] + scale["rows"].sum() + noise, x.mean()

    return jax.lax.scan(update, noise * config["rate"], length=3)


AXES = (0, {"decay": None, "rate": 0}, {"rows": 1})


def arguments(runs):
    keys = jax.random.split(jax.random.key(1), runs)
    return keys, {"decay": jnp.float32(0.9), "rate": jnp.arange(1.0, runs + 1)}, {"rows": jnp.ones((3, runs))}


@pytest.mark.parametrize("runs, batch_size", slow_but([(5, 5), (5, 8), (6, 2), (7, 3), (7, 1), (9, 8)], 2))
def test_blocks_of_any_size_give_what_vmap_gives(runs, batch_size):
    expected = jax.jit(jax.vmap(train, AXES))(*arguments(runs))
    blocked = jax.jit(map_population(train, batch_size, AXES))(*arguments(runs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), blocked, expected)


def test_no_more_runs_than_a_block_are_made_at_a_time_and_the_program_is_one():
    widths = []

    def recorded(x):
        return jax.pure_callback(lambda x: widths.append(x.shape) or x, x, x, vmap_method="expand_dims")

    result = jax.jit(map_population(recorded, 3))(jnp.arange(8.0))
    np.testing.assert_array_equal(result, np.arange(8.0))
    assert widths == [(3,)] * 3


def test_what_cannot_be_mapped_is_refused():
    with pytest.raises(ValueError, match="batch_size is 0"):
        map_population(train, 0)
    with pytest.raises(ValueError, match="inconsistent sizes"):
        map_population(lambda a, b: a + b, 2)(jnp.zeros(4), jnp.zeros(6))
