"""Orthogonal initialisation without LAPACK, whose batched calls can hang a program."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl4lm.types import Array, Key


def orthogonal(gain: float = 1.0) -> Callable[[Key, Sequence[int], Any], Array]:
    """`flax.linen.initializers.orthogonal`: the same numbers of the same key, to rounding.

    By Gram and Schmidt. Under vmap that one makes batched QR decompositions, and JAX before 0.11 lets each wait, on a thread
    of the pool, for others of the pool: with two cores, two of them at once wait for ever.

    Args:
      gain: the factor of all columns, or rows where those are fewer.
    Reference: Saxe et al. 2014, arXiv:1312.6120.
    """

    def init(key: Key, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        rows, columns = math.prod(shape[:-1]), shape[-1]
        drawn = jax.random.normal(key, (max(rows, columns), min(rows, columns)), dtype)
        basis = orthonormalize(drawn)
        return gain * (basis if rows >= columns else basis.T).reshape(shape)

    return init


def orthonormalize(columns: Array) -> Array:
    """An orthonormal basis `[m, n]` of the columns `[m, n]`, m ≥ n: the first k of it span the first k of them.

    Each step is made twice, which leaves no more than rounding (Giraud et al. 2005, "Twice is enough").
    """

    def add(i: Array, basis: Array) -> Array:  # those from i on are still 0
        column = jax.lax.dynamic_index_in_dim(columns, i, axis=1, keepdims=False)
        for _ in range(2):
            column -= basis @ (column @ basis)
        column /= jnp.linalg.norm(column)
        return jax.lax.dynamic_update_index_in_dim(basis, column, i, axis=1)

    return jax.lax.fori_loop(0, columns.shape[1], add, jnp.zeros_like(columns))
