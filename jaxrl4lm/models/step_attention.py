"""Attention of one query a row over a cache, as one CUDA kernel that reads each key once.

XLA makes four kernels of it, which take twice the time: 24 us a layer, not 13, for 64 rows on an H200. Some later JAX
will drop Pallas' Triton backend; `models.attention` does without this module where it cannot be imported.

Shapes: `B` sequences, `K` key-value heads, `R` queries that read the same keys, `S` keys, `C` channels of a head.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxrl4lm.types import Array

TILE = 16
"""The fewest rows that a product on tensor cores takes."""
BLOCK, WARPS, STAGES = 32, 1, 4
"""Keys read at a time, and how the compiler schedules them; the fastest of 15 on an H200, by a little."""


def step_attention(
    q_BKRC: Array, keys_BKSC: Array, values_BKSC: Array, allowed_BS: Array, softcap: float | None = None
) -> tuple[Array, Array]:
    """Softmax attention, and the logarithm of its normaliser, with which attention to other keys can be combined.

    Args:
      q_BKRC: queries, scaled.
      keys_BKSC, values_BKSC: in half precision; C is a power of two, at least 16.
      allowed_BS: which keys a row reads. Keys before the first and after the last of them cost nothing.
      softcap: c of c tanh(score / c). None: plain scores.
    Returns:
      output: `[B, K, R, C]`, in the dtype of the keys; 0 where a row reads no key.
      log_total: float32 `[B, K, R]`; -1e30 where a row reads no key.
    """
    B, K, R, C = q_BKRC.shape
    S = keys_BKSC.shape[2]
    index = jnp.arange(S, dtype=jnp.int32)[None]
    first = jnp.where(allowed_BS, index, S).min(-1)
    end = jnp.where(allowed_BS, index + 1, 0).max(-1)

    def of_head(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, *shape), lambda b, k: (b, k, *(0,) * len(shape)))

    def of_row(size: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, size), lambda b, k: (b, 0))

    output, log_total = pl.pallas_call(
        partial(_kernel, softcap=softcap),
        grid=(B, K),
        in_specs=[of_head(R, C), of_head(S, C), of_head(S, C), of_row(S), of_row(2)],
        out_specs=[of_head(R, C), of_head(R)],
        out_shape=[
            jax.ShapeDtypeStruct(q_BKRC.shape, keys_BKSC.dtype),
            jax.ShapeDtypeStruct((B, K, R), jnp.float32),
        ],
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=STAGES),
        interpret=jax.default_backend() == "cpu",  # for tests
        name="step_attention",
    )(
        q_BKRC.astype(keys_BKSC.dtype),
        keys_BKSC,
        values_BKSC,
        allowed_BS.astype(jnp.int32),
        jnp.stack([first, end], -1),
    )
    return output, log_total


def _kernel(q_ref, keys_ref, values_ref, allowed_ref, bounds_ref, output_ref, log_total_ref, *, softcap):
    """One head of one row: the softmax is accumulated over blocks of keys, as in FlashAttention-2."""
    (R, C), S = q_ref.shape, keys_ref.shape[0]
    rows = max(TILE, pl.next_power_of_2(R))
    real = jnp.arange(rows) < R
    q = triton.load(q_ref.at[pl.ds(0, rows), :], mask=real[:, None], other=0.0)
    first, end = bounds_ref[0] // BLOCK, pl.cdiv(bounds_ref[1], BLOCK)

    def add(i, carry):
        output, top, total = carry
        here, inside = pl.ds(i * BLOCK, BLOCK), i * BLOCK + jnp.arange(BLOCK) < S
        allowed = triton.load(allowed_ref.at[here], mask=inside, other=0)
        keys, values = (
            triton.load(x.at[here, :], mask=inside[:, None], other=0.0) for x in (keys_ref, values_ref)
        )
        scores = triton.dot(q, keys.T)
        if softcap is not None:
            scores = softcap * jnp.tanh(scores / softcap)
        scores = jnp.where((allowed != 0)[None, :], scores, -1e30)
        higher = jnp.maximum(top, scores.max(-1))
        weights = jnp.exp(scores - higher[:, None])
        shrink = jnp.exp(top - higher)
        output = output * shrink[:, None] + triton.dot(weights.astype(values.dtype), values)
        return output, higher, total * shrink + weights.sum(-1)

    zeros = jnp.zeros((rows,), jnp.float32)
    start = (jnp.zeros((rows, C), jnp.float32), zeros - 1e30, zeros)
    output, top, total = jax.lax.fori_loop(first, end, add, start)
    # A row that reads nothing weighs nothing beside other keys, and must not bring nan there.
    total = jnp.where(total > 0, total, 1.0)
    output = (output / total[:, None]).astype(output_ref.dtype)
    triton.store(output_ref.at[pl.ds(0, rows), :], output, mask=real[:, None])
    triton.store(log_total_ref.at[pl.ds(0, rows)], top + jnp.log(total), mask=real)
