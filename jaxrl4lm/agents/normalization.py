"""Running statistics of observations and returns, as a part of an agent's state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.types import Array

LIMIT = 10.0
"""Normalised values are held within ±10."""


class Statistics(NamedTuple):
    """Mean and variance of everything seen; the shape is that of one element, however many come at a time."""

    count: Array
    mean: Array
    variance: Array


def begin_statistics(shape: tuple[int, ...]) -> Statistics:
    """As if one element of mean 0 and variance 1 had been seen, so that the first ones are not blown up."""
    return Statistics(jnp.ones(()), jnp.zeros(shape), jnp.ones(shape))


def add_batch(statistics: Statistics, batch: Array) -> Statistics:
    """The statistics after elements `[..., *shape]`.

    Reference: Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance", eq. 2.1.
    """
    batch = batch.reshape(-1, *statistics.mean.shape)
    added, mean, variance = float(batch.shape[0]), batch.mean(0), batch.var(0)
    total, difference = statistics.count + added, mean - statistics.mean
    squares = statistics.variance * statistics.count + variance * added
    squares += difference**2 * (statistics.count * added / total)
    return Statistics(total, statistics.mean + difference * (added / total), squares / total)


def standardize(statistics: Statistics, values: Array) -> Array:
    """(x − mean) / deviation, within ±10."""
    shape = (1,) * (values.ndim - statistics.mean.ndim) + statistics.mean.shape
    mean, variance = statistics.mean.reshape(shape), statistics.variance.reshape(shape)
    return jnp.clip((values - mean) * jax.lax.rsqrt(variance + 1e-8), -LIMIT, LIMIT)


def scale(statistics: Statistics, rewards: Array) -> Array:
    """Rewards over the deviation of returns, within ±10; their sign is kept."""
    return jnp.clip(rewards * jax.lax.rsqrt(statistics.variance + 1e-8), -LIMIT, LIMIT)
