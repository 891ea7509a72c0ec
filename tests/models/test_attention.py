"""Attention over an own and a shared segment, beside one softmax over all keys."""

import jax
import jax.numpy as jnp
import pytest

from jaxrl4lm.models.attention import EMPTY, attention


def one_softmax(q, segments, positions, window):
    """Every key copied to every sequence and head."""
    B, H = q.shape[0], q.shape[2]
    copied = [[jnp.repeat(x, B // x.shape[0], axis=0) for x in segment] for segment in segments]
    keys, values, at = (
        jnp.concatenate(x, axis=axis) for x, axis in zip(zip(*copied, strict=True), (-1, -2, -1), strict=True)
    )
    keys, values = (jnp.repeat(x, H // x.shape[1], axis=1) for x in (keys, values))
    allowed = at[:, None] <= positions[:, :, None]
    if window is not None:
        allowed &= positions[:, :, None] - at[:, None] < window
    scores = jnp.where(allowed[:, None], jnp.einsum("bthc,bhcs->bhts", q, keys), -1e30)
    return jnp.einsum("bhts,bhsc->bthc", jax.nn.softmax(scores, -1), values)


@pytest.mark.parametrize(
    ("queries", "shared", "heads", "kv_heads", "window"),
    [(5, 4, 4, 2, None), (5, 5, 2, 2, 4), (4, 7, 4, 1, None), (1, 3, 2, 2, None)],
)
def test_segments_are_as_one(queries, shared, heads, kv_heads, window):
    G, n, C = 3, 2, 4
    normal = jax.random.normal
    k = iter(jax.random.split(jax.random.key(0), 6))
    q = normal(next(k), (G * n, queries, heads, C))
    own = [normal(next(k), (G * n, kv_heads, *s)) for s in ((C, queries), (queries, C))]
    prefix = [normal(next(k), (G, kv_heads, *s)) for s in ((C, shared), (shared, C))]
    padding = jnp.arange(G)[:, None] % 3  # on the left
    at = jnp.arange(shared)[None]
    prefix_positions = jnp.where(at < padding, EMPTY, at - padding)
    positions = jnp.repeat(shared - padding, n, axis=0) + jnp.arange(queries)[None]
    weights = normal(next(k), q.shape)

    def loss(function, q, own, prefix):
        segments = [(*own, positions), (*prefix, prefix_positions)]
        return (function(q, segments, positions, window) * weights).sum()

    ours = jax.value_and_grad(loss, (1, 2, 3))(attention, q, own, prefix)
    theirs = jax.value_and_grad(loss, (1, 2, 3))(one_softmax, q, own, prefix)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert jnp.allclose(x, y, atol=1e-5)


@pytest.mark.parametrize(("length", "heads", "kv_heads", "window"), [(16, 4, 2, None), (32, 2, 2, 5)])
def test_a_fused_kernel_computes_the_same(length, heads, kv_heads, window):
    """In half precision an accelerator may have a kernel of its own, but not for capped scores: a cap far above every
    score changes nothing else."""
    B, C = 3, 16
    k = iter(jax.random.split(jax.random.key(0), 4))
    q, keys, values = (
        jax.random.normal(next(k), shape).astype(jnp.bfloat16)
        for shape in ((B, length, heads, C), (B, kv_heads, C, length), (B, kv_heads, length, C))
    )
    padding = jnp.array([0, 3, 5])[:, None]
    real = jnp.arange(length)[None] >= padding
    positions = jnp.where(real, jnp.arange(length)[None] - padding, EMPTY)
    weights = jax.random.normal(next(k), q.shape) * real[:, :, None, None]

    def loss(softcap, *qkv):
        output = attention(qkv[0] / C**0.5, [(*qkv[1:], positions)], positions, window, softcap)
        return jnp.where(real[:, :, None, None], output * weights, 0).sum(), output

    plain, fused = (
        jax.jit(jax.grad(loss, (1, 2, 3), has_aux=True), static_argnums=0)(cap, q, keys, values)
        for cap in (1e5, None)
    )
    for x, y in zip(plain[0], fused[0], strict=True):
        assert jnp.abs(x).max() > 0.5
        assert jnp.allclose(x, y, atol=0.06)
    assert jnp.allclose(jnp.where(real[..., None, None], plain[1] - fused[1], 0), 0, atol=0.03)
