"""Bandit problems: what an arm pays. A problem is pure functions of worlds; `init` draws R worlds at once.

Arms are the first axis of an array, worlds (runs) the last.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.bandits import noise as draw
from jaxrl4lm.types import Array, Key, ScalarLike


class Problem(NamedTuple):
    """K arms in each of R worlds. The context is None where there is none."""

    num_arms: int
    """K."""
    init: Callable[[Key, int], Any]
    """(key, R) → worlds, any pytree."""
    context: Callable[[Key, int], Array | None]
    """(key, R) → what the learners see before they choose, `[d, R]`."""
    means: Callable[[Any, Array | None], Array]
    """(worlds, context) → expected reward of every arm now, `[K, R]`."""
    noise: Callable[[Key, int, int], Array]
    """(key, T, R) → the random part of the rewards, `[T, R]`."""
    pull: Callable[[Array, Array], Array]
    """(expected rewards of the chosen arms `[R]`, their noise `[R]`) → rewards `[R]`."""
    evolve: Callable[[Any, Key], Any]
    """(worlds, key) → the worlds after a step."""
    unit_rewards: bool = False
    """Whether all rewards lie in [0, 1]."""


def gaussian(
    num_arms: int = 10,
    *,
    mean: ScalarLike = 0.0,
    spread: ScalarLike = 1.0,
    noise: ScalarLike = 1.0,
    drift: ScalarLike | None = None,
) -> Problem:
    """The testbed: q*(a) ~ N(mean, spread²), rewards ~ N(q*(a), noise²).

    Args:
      num_arms: K.
      mean: of the arms' values; it matters to gradient bandits without baseline.
      spread: standard deviation of the arms' values.
      noise: standard deviation of a reward.
      drift: each value moves by N(0, drift²) at every step; None: the values stay.
    Reference: Sutton & Barto 2018, section 2.3; exercise 2.5 for the drift.
    """

    def evolve(world: Array, key: Key) -> Array:
        return world if drift is None else world + drift * jax.random.normal(key, world.shape)

    return Problem(
        num_arms,
        init=lambda key, runs: mean + spread * jax.random.normal(key, (num_arms, runs)),
        context=lambda key, runs: None,
        means=lambda world, context: world,
        noise=_draw_normal,
        pull=lambda expected, normal: expected + noise * normal,
        evolve=evolve,
    )


def bernoulli(num_arms: int = 10) -> Problem:
    """Arms pay 1 with a probability drawn uniformly from [0, 1), else 0."""
    return fixed_bernoulli(lambda key, runs: jax.random.uniform(key, (num_arms, runs)), num_arms)


def fixed_bernoulli(init: Callable[[Key, int], Array], num_arms: int) -> Problem:
    """Arms pay 1 with the probabilities that `init` gives, else 0."""
    return Problem(
        num_arms,
        init=init,
        context=lambda key, runs: None,
        means=lambda world, context: world,
        noise=lambda key, num_steps, runs: draw.uniform(key, (num_steps, runs)),
        pull=lambda expected, uniform: (uniform < expected).astype(float),
        evolve=lambda world, key: world,
        unit_rewards=True,
    )


def linear(num_arms: int = 10, dimension: int = 5, *, noise: ScalarLike = 0.1) -> Problem:
    """Contextual: a context x ~ N(0, I/d) `[d]` is shown; arm a pays θ_a·x + noise, θ_a ~ N(0, I).

    Reference: Li et al. 2010, arXiv:1003.0146 (disjoint linear models).
    """
    return Problem(
        num_arms,
        init=lambda key, runs: jax.random.normal(key, (num_arms, dimension, runs)),
        context=lambda key, runs: jax.random.normal(key, (dimension, runs)) / dimension**0.5,
        means=lambda world, context: jnp.sum(world * context[None], axis=1),
        noise=_draw_normal,
        pull=lambda expected, normal: expected + noise * normal,
        evolve=lambda world, key: world,
    )


RESTAURANTS = {"the diner next door": 5.0, "the favourite": 7.0, "the new place": 8.0}
"""Names, and the mean enjoyment of a visit out of 10."""


def restaurants(*, noise: ScalarLike = 2.0) -> Problem:
    """Where to eat tonight, over many evenings: always the favourite, or try the new place?

    A visit gives N(mean, noise²) of enjoyment. Who tries each place once, and then stays, often misses the best.
    """
    means = jnp.array(list(RESTAURANTS.values()))[:, None]
    everywhere = gaussian(len(RESTAURANTS), noise=noise)
    return everywhere._replace(init=lambda key, runs: jnp.tile(means, (1, runs)))


def _draw_normal(key: Key, num_steps: int, num_runs: int) -> Array:
    return draw.normal(key, (num_steps, num_runs))
