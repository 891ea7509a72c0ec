"""Token log-probs and entropies from hidden states, without the [tokens, vocabulary] array of logits.

The unembedding matrix is taken in chunks of the vocabulary: a running maximum and two running sums give the
log-sum-exp and the entropy, and the backward pass computes each chunk of logits again. Memory is one chunk of
logits instead of several copies of them all; the price is one matrix product more in the backward pass (four
instead of three).

Shapes: N tokens, D width, V vocabulary, C columns of a chunk.
"""

import functools

import jax
import jax.numpy as jnp

from jaxrl4lm.arguments import as_mask, coefficients, known_index, precise_dtype
from jaxrl4lm.types import Array, ScalarLike

_LEAST_EXPONENT = -1000.0


def chunked_token_log_probs(
    hidden: Array,
    unembedding: Array,
    tokens: Array,
    *,
    chunk_size: int = 2048,
    temperature: ScalarLike = 1.0,
    mask: Array | None = None,
) -> tuple[Array, Array]:
    """log softmax(h·W/τ)[token] and the entropy of that softmax, per token, in float32.

    Derivatives of any order in reverse mode; forward mode (`jax.jvp`) takes its gradient, not the function.

    Args:
      hidden: h, states that predict `tokens` [..., D]. Gradients flow.
      unembedding: W [D, V], of the type of `hidden`. Gradients flow.
      tokens: ids [...]; any value where masked. An id that is not in 0 … V−1 has the log-prob nan.
      chunk_size: columns of W at a time, static.
      temperature: τ, the one used to sample, a number or one per token [...]; a constant.
      mask: the tokens that count [...].
    Returns:
      (log_probs, entropies), each [...], in nats; exactly 0, with exactly 0 gradient, where masked.
    Raises:
      ValueError: if the shapes do not fit or `chunk_size` < 1.
    Reference: online softmax: Milakov & Gimelshein 2018, arXiv:1805.02867; as a loss: Wijmans et al. 2024,
      arXiv:2411.09009.
    """
    hidden, unembedding, tokens = jnp.asarray(hidden), jnp.asarray(unembedding), jnp.asarray(tokens)
    shape = tokens.shape
    if unembedding.ndim != 2 or hidden.shape != (*shape, unembedding.shape[0]):
        raise ValueError(
            f"hidden has shape {hidden.shape}, tokens {shape}, unembedding {unembedding.shape}: hidden must "
            "have the shape of tokens and then the first axis of unembedding."
        )
    width, vocabulary = unembedding.shape
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}: a chunk needs at least one column.")
    keep = as_mask(mask, shape)
    flat_hidden = jnp.where(keep[..., None], hidden, 0).reshape(-1, width)
    known, index = known_index(jnp.where(keep, tokens, 0), vocabulary)
    like = jax.ShapeDtypeStruct(shape, precise_dtype(hidden.dtype))
    (temperature,) = coefficients(like, temperature=jax.lax.stop_gradient(temperature))
    if temperature.ndim:
        temperature = jnp.broadcast_to(temperature, shape).reshape(-1, 1)
    outputs: tuple[Array, Array] = _token_statistics(
        min(chunk_size, vocabulary), flat_hidden, unembedding, index.reshape(-1), 1 / temperature
    )
    log_probs, entropies = (jnp.where(keep, x.reshape(shape), 0) for x in outputs)
    return jnp.where(known, log_probs, jnp.nan), entropies


def _logits(hidden: Array, unembedding: Array, scale: Array, start: Array, chunk: int) -> tuple[Array, Array]:
    """(columns of W [D, C], their logits [N, C])."""
    columns = jax.lax.dynamic_slice_in_dim(unembedding, start, chunk, axis=1)
    precise = precise_dtype(hidden.dtype)
    return columns, jnp.dot(hidden, columns, preferred_element_type=precise) * scale.astype(precise)


def _chunk(i: Array, chunk: int, vocabulary: int) -> tuple[Array, Array]:
    """(first column, ids of its columns, −1 if seen before): the last chunk may overlap its neighbour."""
    start = jnp.minimum(i * chunk, vocabulary - chunk)
    ids = start + jnp.arange(chunk)
    return start, jnp.where(ids >= i * chunk, ids, -1)[None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_statistics(
    chunk: int, hidden: Array, unembedding: Array, tokens: Array, scale: Array
) -> tuple[Array, Array]:
    return _forward(chunk, hidden, unembedding, tokens, scale)[0]


def _forward(
    chunk: int, hidden: Array, unembedding: Array, tokens: Array, scale: Array
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    vocabulary = unembedding.shape[1]
    precise = precise_dtype(hidden.dtype)

    def accumulate(i: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        largest, total, weighted, chosen = state
        start, ids = _chunk(i, chunk, vocabulary)
        _, logits = _logits(hidden, unembedding, scale, start, chunk)
        logits = jnp.where(ids >= 0, logits, -jnp.inf)
        new_largest = jnp.maximum(largest, logits.max(-1))
        # Sums of e^(z−m) and (z−m)·e^(z−m), so that the entropy does not lose digits to a large m.
        # Their exponents are held where e^x is 0: a far lower bound would overflow in second derivatives.
        shifted = jnp.maximum(logits - new_largest[:, None], _LEAST_EXPONENT)
        exponential = jnp.exp(shifted)
        change = jnp.maximum(largest - new_largest, _LEAST_EXPONENT)
        decay = jnp.exp(change)
        weighted = decay * (weighted + change * total) + (shifted * exponential).sum(-1)
        total = decay * total + exponential.sum(-1)
        local = jnp.clip(tokens - start, 0, chunk - 1)
        here = (tokens >= i * chunk) & (tokens < start + chunk)
        chosen = jnp.where(here, jnp.take_along_axis(logits, local[:, None], 1)[:, 0], chosen)
        return new_largest, total, weighted, chosen

    zeros = jnp.zeros(tokens.shape, precise)
    start = (jnp.full_like(zeros, -jnp.inf), zeros, zeros, zeros)
    largest, total, weighted, chosen = jax.lax.fori_loop(0, -(-vocabulary // chunk), accumulate, start)
    log_total = jnp.log(total)
    log_normalizer = largest + log_total
    entropies = log_total - weighted / total
    residuals = (hidden, unembedding, tokens, scale, log_normalizer, entropies)
    return (chosen - log_normalizer, entropies), residuals


def _backward(
    chunk: int, residuals: tuple[Array, ...], cotangents: tuple[Array, Array]
) -> tuple[Array, Array, None, Array]:
    """∂log p/∂z = 1[token] − p; ∂H/∂z = −p·(log p + H)."""
    hidden, unembedding, tokens, scale, log_normalizer, entropies = residuals
    from_log_probs, from_entropies = cotangents
    vocabulary = unembedding.shape[1]

    def accumulate(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        d_hidden, d_unembedding = state
        start, ids = _chunk(i, chunk, vocabulary)
        columns, logits = _logits(hidden, unembedding, scale, start, chunk)
        log_p = logits - log_normalizer[:, None]
        weight = from_log_probs[:, None] + from_entropies[:, None] * (log_p + entropies[:, None])
        d_logits = jnp.where(ids == tokens[:, None], from_log_probs[:, None], 0) - jnp.exp(log_p) * weight
        d_logits = (jnp.where(ids >= 0, d_logits, 0) * scale).astype(hidden.dtype)
        d_hidden += jnp.dot(d_logits, columns.T, preferred_element_type=d_hidden.dtype)
        d_columns = jnp.dot(hidden.T, d_logits, preferred_element_type=d_hidden.dtype)
        seen = jax.lax.dynamic_slice_in_dim(d_unembedding, start, chunk, axis=1)
        d_columns = jnp.where(ids >= 0, d_columns.astype(seen.dtype), seen)
        return d_hidden, jax.lax.dynamic_update_slice_in_dim(d_unembedding, d_columns, start, axis=1)

    precise = precise_dtype(hidden.dtype)
    start = (jnp.zeros(hidden.shape, precise), jnp.zeros_like(unembedding))
    d_hidden, d_unembedding = jax.lax.fori_loop(0, -(-vocabulary // chunk), accumulate, start)
    return d_hidden.astype(hidden.dtype), d_unembedding, None, jnp.zeros_like(scale)


_token_statistics.defvjp(_forward, _backward)
