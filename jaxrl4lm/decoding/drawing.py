"""Choosing one token a row: the largest, or a draw by the inverse of the cumulative distribution."""

import chex
import jax
import jax.numpy as jnp

from jaxrl4lm.types import Array, Key

BLOCK = 128


def greedy(logits: Array) -> Array:
    """Index `[B]` of the largest logit of each row `[B, V]`; the first of equals.

    A maximum and a minimum over indices: XLA's two-operand argmax is several times slower on CPU.
    """
    vocab = logits.shape[-1]
    index = jnp.arange(vocab, dtype=jnp.int32)[None]
    best = jnp.where(logits == logits.max(-1, keepdims=True), index, vocab)
    # A row of nan has no maximum: stay inside the vocabulary, the caller sees the nan in the log-probability.
    return jnp.minimum(best.min(-1), vocab - 1)


def draw(logits: Array, uniform: Array) -> Array:
    """Tokens `[B]` drawn from softmax(logits `[B, V]`), by inversion of one uniform number in [0, 1) a row, `[B]`."""
    return draw_and_normalise(logits, uniform)[0]


def draw_and_normalise(logits: Array, uniform: Array) -> tuple[Array, Array]:
    """The tokens of `draw`, and log sum(exp(logits)) `[B]` from the same pass over the vocabulary.

    Never returns a token of probability 0. Large vocabularies are searched on two levels: first the block, by the sums of
    blocks, then the token inside it.
    """
    logits, uniform = (
        logits.astype(jnp.float32),
        uniform.astype(jnp.float32),
    )  # a bfloat16 uniform could reach few tokens only
    batch, vocab = logits.shape
    chex.assert_shape(uniform, (batch,))
    if vocab <= 2 * BLOCK:
        top = logits.max(-1)
        weights = jnp.exp(logits - top[:, None])
        total = weights.sum(-1)
        return _search(weights, uniform * total)[0], top + jnp.log(total)
    padding = ((0, 0), (0, -vocab % BLOCK))
    blocks = jnp.pad(logits, padding, constant_values=-jnp.inf).reshape(batch, -1, BLOCK)
    # Each block is taken relative to its own maximum. Without the barrier XLA would merge the maximum of maxima into one
    # over the whole vocabulary, and pass over it again.
    tops = jax.lax.optimization_barrier(blocks.max(-1))
    sums = jnp.exp(blocks - jnp.where(jnp.isneginf(tops), 0.0, tops)[..., None]).sum(-1)
    top = tops.max(-1)
    sums = sums * jnp.exp(tops - top[:, None])
    total = sums.sum(-1)
    block, before = _search(sums, uniform * total)
    row = jnp.exp(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0] - top[:, None])
    # The rest of the target inside the block; rounding may put it on the block's edge or beyond.
    token, _ = _search(row, jnp.clip(uniform * total - before, 0.0, row.sum(-1)))
    return block * BLOCK + token, top + jnp.log(total)


def _search(weights: Array, target: Array) -> tuple[Array, Array]:
    """(index, sum before it): the first of positive weight whose running sum exceeds the target, else the last of them."""
    size = weights.shape[-1]
    index = jnp.arange(size, dtype=jnp.int32)[None]
    running = jnp.cumsum(weights, axis=-1)
    real = weights > 0
    first = jnp.where(real & (running > target[:, None]), index, size).min(-1)
    last = jnp.where(real, index, 0).max(-1)
    found = jnp.minimum(first, last)
    before = jnp.take_along_axis(running - weights, found[:, None], axis=-1)[:, 0]
    return found, before


def draw_row_uniforms(key: Key, rows: Array, steps: int) -> Array:
    """Uniforms `[B, steps]` from fold_in(fold_in(key, row), step): a row's draws do not depend on its batch."""
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    step_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(row_keys, jnp.arange(steps))
    return jax.vmap(jax.vmap(jax.random.uniform))(step_keys)
