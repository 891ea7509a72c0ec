"""Attention over an own and a shared segment, beside one softmax over all keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm.models.attention import EMPTY, attend
from jaxrl4lm.models.step_attention import step_attention
from tests.selection import slow_but


def normal(rng, shape):
    return rng.normal(size=shape).astype(np.float32)


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
    slow_but([(5, 4, 4, 2, None), (5, 5, 2, 2, 4), (4, 7, 4, 1, None), (1, 3, 2, 2, None)], 2),
)
def test_segments_are_as_one(queries, shared, heads, kv_heads, window):
    G, n, C = 3, 2, 4
    rng = np.random.default_rng(0)
    q = normal(rng, (G * n, queries, heads, C))
    own = [normal(rng, (G * n, kv_heads, *s)) for s in ((C, queries), (queries, C))]
    prefix = [normal(rng, (G, kv_heads, *s)) for s in ((C, shared), (shared, C))]
    padding = np.arange(G)[:, None] % 3  # on the left
    at = np.arange(shared)[None]
    prefix_positions = np.where(at < padding, EMPTY, at - padding)
    positions = np.repeat(shared - padding, n, axis=0) + np.arange(queries)[None]
    weights = normal(rng, q.shape)

    def loss(function, q, own, prefix):
        segments = [(*own, positions), (*prefix, prefix_positions)]
        return (function(q, segments, positions, window) * weights).sum()

    both = jax.jit(jax.value_and_grad(loss, (1, 2, 3)), static_argnums=0)
    ours, theirs = (both(function, q, own, prefix) for function in (attend, one_softmax))
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.allclose(x, y, atol=1e-5)


@pytest.mark.parametrize(("length", "heads", "kv_heads", "window"), [(16, 4, 2, None), (32, 2, 2, 5)])
def test_a_fused_kernel_computes_the_same(length, heads, kv_heads, window):
    """In half precision an accelerator may have a kernel of its own, but not for capped scores: a cap far above every
    score changes nothing else."""
    B, C = 3, 16
    rng = np.random.default_rng(0)
    q, keys, values = (
        normal(rng, shape).astype(jnp.bfloat16)
        for shape in ((B, length, heads, C), (B, kv_heads, C, length), (B, kv_heads, length, C))
    )
    padding = np.array([0, 3, 5])[:, None]
    real = np.arange(length)[None] >= padding
    positions = np.where(real, np.arange(length)[None] - padding, EMPTY)
    real = real[:, :, None, None]
    weights = normal(rng, q.shape)

    def loss(softcap, *qkv):
        output = attend(qkv[0] / C**0.5, [(*qkv[1:], positions)], positions, window, softcap)
        output = jnp.where(real, output, 0)
        return (output * weights).sum(), output

    plain, fused = (
        jax.jit(jax.grad(loss, (1, 2, 3), has_aux=True), static_argnums=0)(cap, q, keys, values)
        for cap in (1e5, None)
    )
    for x, y in zip(plain[0], fused[0], strict=True):
        assert np.abs(x).max() > 0.5
        assert np.allclose(x, y, atol=0.06)
    assert np.allclose(plain[1], fused[1], rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "slots", "window", "softcap"),
    slow_but([(4, 4, 40, None, None), (8, 2, 64, 9, None), (6, 2, 97, None, 2.0), (34, 2, 33, 40, 0.5)], 2),
)
@pytest.mark.parametrize("shared", slow_but([0, 7], [7]))
def test_a_kernel_for_steps_computes_the_same(monkeypatch, heads, kv_heads, slots, window, softcap, shared):
    """By interpretation on CPU; over a cache with padding on the left and empty slots at its end and between, alone
    and beside keys that two rows share."""
    B, C = 4, 16
    rng = np.random.default_rng(0)
    q = normal(rng, (B, 1, heads, C))
    at = np.arange(slots)[None]
    first, gap, end = np.array([[0], [3], [32], [30]]), 31, np.array([[1], [30], [33], [slots]])
    position = np.where((at >= first) & (at < end) & (at != gap), at + shared, EMPTY)
    segments = [(normal(rng, (B, kv_heads, C, slots)), normal(rng, (B, kv_heads, slots, C)), position)]
    if shared:
        keys, values = normal(rng, (2, kv_heads, C, shared)), normal(rng, (2, kv_heads, shared, C))
        segments.append((keys, values, np.array([[EMPTY, *range(shared - 1)], [*range(shared)]])))
    queries = end - 1 + shared

    def ours():
        return jax.jit(lambda q: attend(q, segments, queries, window, softcap))(q)

    plain = ours()
    calls = []

    def kernel(*args):
        calls.append(args)
        return step_attention(*args)

    monkeypatch.setattr("jaxrl4lm.models.attention._find_step_kernel", lambda keys: kernel)
    assert np.allclose(plain, ours(), atol=1e-5)
    assert len(calls) == 1


def test_a_segment_that_a_row_reads_nothing_of_weighs_nothing(monkeypatch):
    """As when a window has passed the prompt of a completion; each row has a prompt of its own."""
    B, C = 2, 16
    rng = np.random.default_rng(0)
    q = normal(rng, (B, 1, 4, C))
    at = np.stack([np.arange(5), np.arange(5) + 20])
    segments = [
        (normal(rng, (B, 2, C, 5)), normal(rng, (B, 2, 5, C)), positions)
        for positions in (at, np.broadcast_to(np.arange(5), (B, 5)))
    ]
    queries = at[:, -1:]
    plain = attend(q, segments, queries, 6)
    monkeypatch.setattr("jaxrl4lm.models.attention._find_step_kernel", lambda keys: step_attention)
    assert np.allclose(plain, attend(q, segments, queries, 6), atol=1e-5)
    nothing = step_attention(q.reshape(B, 2, 2, C), segments[0][0].swapaxes(2, 3), segments[0][1], at < 0)
    assert (nothing[0] == 0).all()
    assert (nothing[1] == -1e30).all()
