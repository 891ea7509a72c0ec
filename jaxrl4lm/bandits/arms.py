"""The best arm and the chosen arm of many runs, `[K, R]` → `[R]`, in forms that compilers vectorise."""

import jax
import jax.numpy as jnp

from jaxrl4lm.types import Array


def first_argmax(values: Array) -> Array:
    """argmax over arms, `[K, R]` → `[R]`; the first of equals. No value may be nan.

    The floats are compared as integers of the same order. Compilers vectorise a maximum of integers, but not one of
    floats, which must spread nan.
    """
    arms = jax.lax.broadcasted_iota(jnp.int32, values.shape, 0)
    keys = _order_as_integers(values)
    best = jax.lax.optimization_barrier(keys.max(axis=0, keepdims=True))
    arm = jnp.where(keys == best, arms, values.shape[0] - 1).min(axis=0)
    return jax.lax.optimization_barrier(arm)


def is_arm(like: Array, arm: Array) -> Array:
    """The mask of the chosen arms: `[K, R]` (its shape), `[R]` → `[K, R]`."""
    return jax.lax.broadcasted_iota(jnp.int32, like.shape, 0) == arm[None]


def take_arm(values: Array, arm: Array) -> Array:
    """The chosen arms' elements: `[K, R]`, arms `[R]` → `[R]`."""
    places = arm * values.shape[1] + jax.lax.iota(jnp.int32, values.shape[1])
    return values.reshape(-1).at[places].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _order_as_integers(values: Array) -> Array:
    """Integers in the order of the floats: their bits, with those of negative floats put in reverse order."""
    kind = jnp.int64 if values.dtype == jnp.float64 else jnp.int32
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.promote_types(values.dtype, jnp.float32)), kind)
    return jnp.where(bits < 0, bits ^ jnp.iinfo(kind).max, bits)
