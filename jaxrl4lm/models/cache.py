"""What a transformer remembers of the tokens it has read.

Shapes: `B` sequences, `T` queries, `S` keys, `K` key-value heads, `C` channels of a head.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.models.attention import EMPTY
from jaxrl4lm.models.config import TransformerConfig
from jaxrl4lm.types import Array


class Prefix(NamedTuple):
    """Keys and values of whole sequences, read and never written.

    Keys are transposed, so that the scores of many queries are a plain matrix product.
    """

    keys: tuple[Array, ...]
    """Per layer `[B, K, C, S]`."""
    values: tuple[Array, ...]
    """Per layer `[B, K, S, C]`."""
    positions: Array
    """int32 `[B, S]`, `EMPTY` where there is no key."""


class Cache(NamedTuple):
    """Keys and values to which each step adds its own; in each head it writes one run of memory."""

    keys: tuple[Array, ...]
    """Per layer `[B, K, S, C]`."""
    values: tuple[Array, ...]
    """Per layer `[B, K, S, C]`."""
    positions: Array
    """int32 `[B, S]`, `EMPTY` where there is no key."""


def count_tokens(positions_BT: Array, prefix: Prefix | None, cache: Cache | None, slot: Array | int) -> Array:
    """The length `[B, 1]` that each text has, or may come to have.

    It is that of the prefix, and of the cache if there is one (with its free slots), else of the tokens of the call.
    """

    def count(positions: Array) -> Array:
        return jnp.where(positions == EMPTY, -1, positions).max(-1, keepdims=True) + 1

    B, T = positions_BT.shape
    if prefix is None:
        return (
            count(positions_BT) if cache is None else count(cache.positions) + cache.positions.shape[1] - slot
        )
    own = T if cache is None else cache.positions.shape[1]
    return jnp.repeat(count(prefix.positions), B // prefix.positions.shape[0], axis=0) + own


def cache_dtype(config: TransformerConfig) -> jnp.dtype:
    """The dtype of keys and values that are kept: that of the products, but float32 on CPU.

    XLA has no low-precision batched products on CPU, and would convert the whole cache at every step.
    """
    return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else config.dtype)


def empty_cache(config: TransformerConfig, batch: int, length: int) -> Cache:
    """A cache of `length` empty slots for `batch` sequences."""
    K, C, dtype = config.num_kv_heads, config.channels, cache_dtype(config)
    return Cache(
        keys=tuple(jnp.zeros((batch, K, length, C), dtype) for _ in range(config.layers)),
        values=tuple(jnp.zeros((batch, K, length, C), dtype) for _ in range(config.layers)),
        positions=jnp.full((batch, length), EMPTY, jnp.int32),
    )


def remember(config: TransformerConfig, prefix: Prefix) -> Prefix:
    """The keys and values in the dtype in which they are kept for many steps."""
    dtype = cache_dtype(config)
    keys, values = (tuple(x.astype(dtype) for x in xs) for xs in (prefix.keys, prefix.values))
    return Prefix(keys, values, prefix.positions)


def extend(prefix: Prefix, length: int) -> Cache:
    """A cache that begins with the prefix and has `length` empty slots more."""

    def pad(x: Array, axis: int, value: int = 0) -> Array:
        return jnp.pad(x, [(0, length * (i == axis)) for i in range(x.ndim)], constant_values=value)

    keys = tuple(pad(k.swapaxes(2, 3), 2) for k in prefix.keys)
    return Cache(keys, tuple(pad(v, 2) for v in prefix.values), pad(prefix.positions, 1, EMPTY))
