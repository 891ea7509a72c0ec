"""Attention over keys that carry their positions, and the rotary embedding of positions.

Shapes: `B` sequences, `G` prompts (`B` is a multiple of `G`), `T` queries, `S` keys, `H` heads, `K` key-value heads,
`C` channels of a head.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxrl4lm.models.config import Rope
from jaxrl4lm.types import Array

EMPTY = 2**30
"""The position of a key that nobody may read: padding, or a cache slot not yet written."""


def rotary_table(positions_BT: Array, rope: Rope, channels: int, lengths_BT: Array) -> tuple[Array, Array]:
    """Cosines and sines `[B, T, 1, channels / 2]` of the rotary embedding.

    LongRoPE chooses its factors by the lengths of the texts, `lengths_BT`: one a row, or one a token.
    """
    positions = jnp.where(positions_BT == EMPTY, 0, positions_BT)
    frequencies = rope.frequencies(channels)[None, None, None]
    if rope.kind == "longrope":
        long = (lengths_BT > rope.original_context)[:, :, None, None]
        frequencies = jnp.where(long, rope.frequencies(channels, long=True)[None, None, None], frequencies)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if rope.amplitude != 1.0:
        cos, sin = cos * rope.amplitude, sin * rope.amplitude
    # Behind a barrier, or XLA computes the transcendentals again in every layer that reads them.
    return jax.lax.optimization_barrier((cos, sin))


def rotate(x_BTHC: Array, table: tuple[Array, Array] | None) -> Array:
    """Rotates channel pairs (i, i + R/2) of the first R channels by the table's angles `[B, T, 1, R / 2]`."""
    if table is None:
        return x_BTHC
    cos, sin = table
    half = cos.shape[-1]
    x = x_BTHC.astype(jnp.float32)
    a, b, rest = jnp.split(x, [half, 2 * half], axis=-1)
    turned = [a * cos - b * sin, b * cos + a * sin]
    return jnp.concatenate(turned + ([rest] if rest.shape[-1] else []), axis=-1).astype(x_BTHC.dtype)


def attend(
    q_BTHC: Array,
    segments: list[tuple[Array, Array, Array]],
    positions_BT: Array,
    window: Array | int | None = None,
    softcap: float | None = None,
    causal: bool = True,
) -> Array:
    """Softmax attention over one or two segments of keys, computed as if they were one.

    Args:
      q_BTHC: queries, scaled.
      segments: each has keys `[G, K, C, S]`, values `[G, K, S, C]` and key positions `[G, S]`. Where `G` is smaller than
        `B`, a segment is shared by `B / G` consecutive sequences; it is stored and read once.
      positions_BT: query positions.
      window: a query reads keys less than this many positions away: a number, or one a query `[B, T]`. None: all.
      softcap: c of c tanh(score / c). None: plain scores.
      causal: whether a query reads only keys that stand not after it.
    Returns:
      `[B, T, H, C]`.
    """
    B, T, H, C = q_BTHC.shape
    chex.assert_shape(positions_BT, (B, T))
    for keys, values, key_positions in segments:
        G, K, _, S = keys.shape
        chex.assert_shape([keys, values, key_positions], [(G, K, C, S), (G, K, S, C), (G, S)])
    if len(segments) == 2 and segments[1][0].shape[-1] <= T:
        segments = [_merge(*segments)]
    if len(segments) == 1 and softcap is None and _is_fusible(q_BTHC, segments[0][0]):
        return _attend_fused(q_BTHC, segments[0], positions_BT, window, causal)
    parts = []
    for keys, values, key_positions in segments:
        G, K = keys.shape[:2]
        n, R = B // G, H // K
        rows = n * T * R  # every query that reads the same keys, in one matrix product
        q = q_BTHC.reshape(G, n * T, K, R, C).swapaxes(1, 2).reshape(G, K, rows, C)
        allowed = _may_read(positions_BT.reshape(G, n * T), key_positions, window, causal)
        if T == n == 1 and (kernel := _find_step_kernel(keys)):
            output, top = kernel(q, keys.swapaxes(2, 3), values, allowed[:, 0], softcap)
            parts.append((output, top[..., None], jnp.ones_like(top)[..., None]))
            continue
        allowed = jnp.repeat(allowed, R, axis=1)[:, None]
        scores = _product(q.astype(keys.dtype), keys)
        if softcap is not None:
            scores = softcap * jnp.tanh(scores / softcap)
        scores = jnp.where(allowed, scores, -1e30)
        maximum = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
        weights = jnp.exp(scores - maximum)
        total = weights.sum(-1, keepdims=True)
        parts.append((_product(weights.astype(values.dtype), values), maximum, total))
    if len(segments) == 1:
        output, _, total = parts[0]
        return _regroup_by_query(output / total, T, H).astype(q_BTHC.dtype)
    outputs, maxima, totals = zip(
        *[[_regroup_by_query(x, T, H) for x in part] for part in parts], strict=True
    )
    top = jnp.maximum(*maxima)
    shares = [jnp.exp(m - top) for m in maxima]
    output = outputs[0] * shares[0] + outputs[1] * shares[1]
    return (output / (totals[0] * shares[0] + totals[1] * shares[1])).astype(q_BTHC.dtype)


def _may_read(queries_BT: Array, keys_BS: Array, window: Array | int | None, causal: bool) -> Array:
    """Whether each query may read each key `[B, T, S]`, by their positions. Padding reads padding: every query has a key."""
    queries, keys = queries_BT[:, :, None], keys_BS[:, None, :]
    allowed = keys <= queries if causal else (keys != EMPTY) | (queries == EMPTY)
    if window is None:
        return allowed
    reach = jnp.asarray(window)
    away = queries - keys if causal else jnp.abs(queries - keys)
    return allowed & (away < (reach[:, :, None] if reach.ndim else reach))


def _has_tensor_cores(keys: Array) -> bool:
    """Half precision on a CUDA device that has the kernels for it."""
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", "")  # "9.0" on CUDA, a name on ROCm
    cuda = device.platform == "gpu" and capability.replace(".", "").isdigit()
    return cuda and float(capability) >= 8 and keys.dtype in (jnp.bfloat16, jnp.float16)


def _find_step_kernel(keys: Array) -> Callable | None:
    """The kernel for one query a row, or None where it cannot be used.

    It has no gradient, so that it needs a cache (S > 1), and cannot be split over devices.
    """
    C, S = keys.shape[-2:]
    if not (_has_tensor_cores(keys) and C in (16, 32, 64, 128, 256) and S > 1 and jax.device_count() == 1):
        return None
    try:  # here: it takes long to import
        from jaxrl4lm.models.step_attention import step_attention
    except ImportError:
        return None
    return step_attention


def _is_fusible(q_BTHC: Array, keys: Array) -> bool:
    """Whether cuDNN can do it: half precision, whole sequences, sizes that it can tile."""
    T, C, S = q_BTHC.shape[1], keys.shape[-2], keys.shape[-1]
    return _has_tensor_cores(keys) and T > 1 and T % 2 == S % 2 == 0 and C % 8 == 0 and C <= 128


def _attend_fused(
    q_BTHC: Array,
    segment: tuple[Array, Array, Array],
    positions_BT: Array,
    window: Array | int | None,
    causal: bool,
) -> Array:
    """`attend` by cuDNN, which never stores the scores: a training step of 512 tokens takes half the time."""
    keys, values, key_positions = segment
    return jax.nn.dot_product_attention(
        q_BTHC.astype(keys.dtype),
        keys.transpose(0, 3, 1, 2),
        values.transpose(0, 2, 1, 3),
        mask=_may_read(positions_BT, key_positions, window, causal)[:, None],
        scale=1.0,
        implementation="cudnn",
    ).astype(q_BTHC.dtype)


def _merge(own: tuple[Array, Array, Array], shared: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """Joins two segments into one; the shared one is copied to each sequence.

    With no more shared keys than queries this costs less than to combine two softmaxes.
    """
    n = own[0].shape[0] // shared[0].shape[0]
    keys, values, positions = (jnp.repeat(x, n, axis=0) if n > 1 else x for x in shared)
    return (
        jnp.concatenate([keys, own[0]], axis=-1),
        jnp.concatenate([values, own[1]], axis=-2),
        jnp.concatenate([positions, own[2]], axis=-1),
    )


# Autodiff would run the backward products of low-precision operands in float32. Its gradient of b contracts a's rows,
# which runs at half the speed on XLA:CPU; behind the barrier the transpose is a copy and the product a plain one.
@jax.custom_vjp
def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _product_forward(a, b):
    return _product(a, b), (a, b)


def _product_backward(saved, g):
    a, b = saved
    g = g.astype(a.dtype)
    da = jnp.matmul(g, b.swapaxes(-1, -2), preferred_element_type=jnp.float32)
    a_transposed = a.swapaxes(-1, -2)
    if jax.default_backend() == "cpu":
        a_transposed = jax.lax.optimization_barrier(a_transposed)
    db = jnp.matmul(a_transposed, g, preferred_element_type=jnp.float32)
    return da.astype(a.dtype), db.astype(b.dtype)


_product.defvjp(_product_forward, _product_backward)


def _regroup_by_query(x_GKNC: Array, T: int, H: int) -> Array:
    """From rows `[G, K, n * T * R, C]` of the products above to `[B, T, H, C]`, with B = G n and H = K R."""
    G, K, N, C = x_GKNC.shape
    return x_GKNC.reshape(G, K, -1, H // K, C).swapaxes(1, 2).reshape(G * N * K // (T * H), T, H, C)
