"""Log-probs of given tokens and entropies from hidden states, without the [tokens, vocabulary] array of logits.

The vocabulary is taken in chunks: a running maximum and two running sums give the log-sum-exp and the entropy,
and the backward pass computes each chunk of logits again. Memory is one chunk of logits instead of several copies
of them all; the price is one matrix product more in the backward pass (four instead of three). A vocabulary of one
chunk keeps its logits, and pays nothing.

Shapes: N tokens, D width, V vocabulary, C ids of a chunk.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.arguments import as_mask, coefficients, known_index, precise_dtype
from jaxrl4lm.types import Array, ScalarLike

_LEAST_EXPONENT = -1000.0


@dataclass(frozen=True)
class Unembedding:
    """How logits follow from hidden states and a kernel that has one column or one row for each id."""

    logits: Callable[[Array, Array], Array]
    """(states [N, D], part of the kernel) → logits [N, C] of the ids of that part; differentiable in both."""
    axis: int
    """The axis of the kernel along which the ids lie."""
    vocabulary: int
    """V: ids from here on are padding, and no distribution has them."""
    chunk: int
    """C: how many ids are taken at a time."""


class TokenStatistics(NamedTuple):
    """Of a softmax over a vocabulary, for each token [...], in nats."""

    log_probs: Array
    """Of the token."""
    entropies: Array
    """Of the softmax."""
    most_likely: Array
    """bool: whether no id is likelier than the token."""
    mean_log_probs: Array
    """The mean over the vocabulary, which label smoothing asks for."""
    log_normalizers: Array
    """The log-sum-exp of the logits, which a z-loss asks for."""
    log_collisions: Array
    """log Σ p², of two draws being the same id, which WPO asks for; a constant to gradients."""


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
    hidden, kernel, tokens = jnp.asarray(hidden), jnp.asarray(unembedding), jnp.asarray(tokens)
    if kernel.ndim != 2 or hidden.shape != (*tokens.shape, kernel.shape[0]):
        raise ValueError(
            f"hidden has shape {hidden.shape}, tokens {tokens.shape}, unembedding {kernel.shape}: hidden must "
            "have the shape of tokens and then the first axis of unembedding."
        )
    plain = Unembedding(_matmul, axis=1, vocabulary=kernel.shape[1], chunk=chunk_size)
    statistics = log_probs_by_chunks(plain, hidden, kernel, tokens, temperature=temperature, mask=mask)
    return statistics.log_probs, statistics.entropies


def log_probs_by_chunks(
    unembedding: Unembedding,
    hidden: Array,
    kernel: Array,
    tokens: Array,
    *,
    temperature: ScalarLike = 1.0,
    mask: Array | None = None,
) -> TokenStatistics:
    """The same of any unembedding: stored by column or by row, padded, its logits capped.

    Arguments as of `chunked_token_log_probs`, and:

    Args:
      unembedding: how logits follow from states, static.
      kernel: what it reads, with the ids along its axis. Gradients flow.
    Returns:
      Statistics, each [...], in nats; exactly 0, with exactly 0 gradient, where masked.
    Raises:
      ValueError: if the mask or the temperature does not fit the tokens, or a chunk has no id.
    Reference: as `chunked_token_log_probs`.
    """
    if unembedding.chunk < 1:
        raise ValueError(f"chunk_size is {unembedding.chunk}: a chunk needs at least one column.")
    shape = tokens.shape
    keep = as_mask(mask, shape)
    states = jnp.where(keep[..., None], hidden, 0).reshape(-1, hidden.shape[-1])
    known, index = known_index(jnp.where(keep, tokens, 0), unembedding.vocabulary)
    like = jax.ShapeDtypeStruct(shape, precise_dtype(hidden.dtype))
    (temperature,) = coefficients(like, temperature=jax.lax.stop_gradient(temperature))
    if temperature.ndim:
        temperature = jnp.broadcast_to(temperature, shape).reshape(-1, 1)
    measure = _whole_statistics if unembedding.chunk >= unembedding.vocabulary else _token_statistics
    outputs: TokenStatistics = measure(unembedding, states, kernel, index.reshape(-1), 1 / temperature)
    statistics = TokenStatistics(
        *(jnp.where(keep, x.reshape(shape), jnp.zeros_like(x, shape=())) for x in outputs)
    )
    return statistics._replace(log_probs=jnp.where(known, statistics.log_probs, jnp.nan))


def _dot(a: Array, b: Array) -> Array:
    return jnp.dot(a, b, preferred_element_type=precise_dtype(a.dtype))


# Autodiff would run the backward products of low-precision operands in float32.
_matmul = jax.custom_vjp(_dot)


def _matmul_forward(hidden, columns):
    return _dot(hidden, columns), (hidden, columns)


def _matmul_backward(operands, gradient):
    hidden, columns = operands
    gradient = gradient.astype(hidden.dtype)
    d_hidden, d_columns = _dot(gradient, columns.T), _dot(hidden.T, gradient)
    return d_hidden.astype(hidden.dtype), d_columns.astype(columns.dtype)


_matmul.defvjp(_matmul_forward, _matmul_backward)


def _empty(tokens: Array, dtype: jnp.dtype) -> tuple[Array, ...]:
    """The running statistics of no logits: largest, Σ e^(z−m), Σ (z−m) e^(z−m), Σ e^2(z−m), Σ z, the token's own."""
    zeros = jnp.zeros(tokens.shape, dtype)
    return jnp.full_like(zeros, -jnp.inf), zeros, zeros, zeros, zeros, zeros


def _include(state: tuple[Array, ...], logits: Array, place: Array) -> tuple[Array, ...]:
    """The running statistics with some logits [N, C] more; `place` [N]: where among them the token's own is, or −1."""
    largest, total, weighted, squares, plain, chosen = state
    new_largest = jnp.maximum(largest, logits.max(-1))
    # Sums of e^(z−m) and (z−m)·e^(z−m), so that the entropy does not lose digits to a large m.
    # Their exponents are held where e^x is 0: a far lower bound would overflow in second derivatives.
    shifted = jnp.maximum(logits - new_largest[:, None], _LEAST_EXPONENT)
    exponential = jnp.exp(shifted)
    change = jnp.maximum(largest - new_largest, _LEAST_EXPONENT)
    decay = jnp.exp(change)
    weighted = decay * (weighted + change * total) + (shifted * exponential).sum(-1)
    total = decay * total + exponential.sum(-1)
    squares = decay**2 * squares + jnp.square(exponential).sum(-1)
    plain = plain + jnp.where(jnp.isneginf(logits), 0, logits).sum(-1)  # -inf: an id that its neighbour has
    own = jnp.take_along_axis(logits, jnp.maximum(place, 0)[:, None], 1)[:, 0]
    return new_largest, total, weighted, squares, plain, jnp.where(place >= 0, own, chosen)


def _summarize(state: tuple[Array, ...], vocabulary: int) -> tuple[TokenStatistics, tuple[Array, Array]]:
    """(what is asked for, (log-sum-exps, entropies)) of the running statistics of all logits."""
    largest, total, weighted, squares, plain, chosen = state
    log_total = jnp.log(total)
    log_normalizer = largest + log_total
    entropies = log_total - weighted / total
    statistics = TokenStatistics(
        log_probs=chosen - log_normalizer,
        entropies=entropies,
        most_likely=chosen >= largest,  # of logits: log-probs are rounded apart
        mean_log_probs=plain / vocabulary - log_normalizer,
        log_normalizers=log_normalizer,
        log_collisions=jnp.log(squares) - 2 * log_total,
    )
    return statistics, (log_normalizer, entropies)


def _logit_gradient(
    logits: Array, place: Array, vocabulary: int, summary: tuple[Array, Array], cotangents: TokenStatistics
) -> Array:
    """∂log p/∂z = 1[token] − p; ∂H/∂z = −p·(log p + H); of the mean 1/V − p; of the log-sum-exp p."""
    log_normalizer, entropies = summary
    log_p = logits - log_normalizer[:, None]
    through_p = cotangents.log_probs + cotangents.mean_log_probs - cotangents.log_normalizers
    weight = through_p[:, None] + cotangents.entropies[:, None] * (log_p + entropies[:, None])
    own = jnp.arange(logits.shape[1])[None] == place[:, None]
    direct = (
        jnp.where(own, cotangents.log_probs[:, None], 0) + cotangents.mean_log_probs[:, None] / vocabulary
    )
    return direct - jnp.exp(log_p) * weight


def _whole_statistics(
    unembedding: Unembedding, hidden: Array, kernel: Array, tokens: Array, scale: Array
) -> TokenStatistics:
    """All logits at once, kept for the backward pass."""
    logits = unembedding.logits(hidden, kernel)[:, : unembedding.vocabulary]
    return _row_statistics(logits * scale.astype(logits.dtype), tokens)


# Autodiff would take the exponentials of all logits three times: once for each result, and once for their gradient.
@jax.custom_vjp
def _row_statistics(logits: Array, tokens: Array) -> TokenStatistics:
    return _row_forward(logits, tokens)[0]


def _row_forward(logits, tokens):
    state = _include(_empty(tokens, logits.dtype), logits, tokens)
    outputs, summary = _summarize(state, logits.shape[1])
    return outputs, (logits, tokens, summary)


def _row_backward(saved, cotangents):
    logits, tokens, summary = saved
    return _logit_gradient(logits, tokens, logits.shape[1], summary, cotangents), None


_row_statistics.defvjp(_row_forward, _row_backward)


class _Part(NamedTuple):
    """One chunk of the vocabulary; the last may overlap its neighbour."""

    start: Array
    """Its first id."""
    new: Array
    """Which of its ids [C] its neighbour does not have."""
    place: Array
    """Where among its ids each token [N] is; −1 if it is not, or not new."""


def _part(unembedding: Unembedding, tokens: Array, i: Array) -> _Part:
    first, chunk = i * unembedding.chunk, unembedding.chunk
    start = jnp.minimum(first, unembedding.vocabulary - chunk)
    here = (tokens >= first) & (tokens < start + chunk)
    return _Part(start, start + jnp.arange(chunk) >= first, jnp.where(here, tokens - start, -1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_statistics(
    unembedding: Unembedding, hidden: Array, kernel: Array, tokens: Array, scale: Array
) -> TokenStatistics:
    """The same, of chunks that are computed again in the backward pass."""
    return _forward(unembedding, hidden, kernel, tokens, scale)[0]


def _forward(unembedding: Unembedding, hidden: Array, kernel: Array, tokens: Array, scale: Array):
    precise = precise_dtype(hidden.dtype)

    def include(i: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        part = _part(unembedding, tokens, i)
        columns = jax.lax.dynamic_slice_in_dim(kernel, part.start, unembedding.chunk, unembedding.axis)
        # As `jax.vjp` gives them: inside a loop, forward mode could not pass a function with a gradient of its own.
        logits = jax.vjp(unembedding.logits, hidden, columns)[0] * scale.astype(precise)
        return _include(state, jnp.where(part.new[None], logits, -jnp.inf), part.place)

    count = -(-unembedding.vocabulary // unembedding.chunk)
    state = jax.lax.fori_loop(0, count, include, _empty(tokens, precise))
    outputs, summary = _summarize(state, unembedding.vocabulary)
    return outputs, (hidden, kernel, tokens, scale, summary)


def _backward(unembedding: Unembedding, saved, cotangents: TokenStatistics):
    hidden, kernel, tokens, scale, summary = saved
    axis, precise = unembedding.axis, precise_dtype(hidden.dtype)

    def accumulate(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        d_hidden, d_kernel = state
        part = _part(unembedding, tokens, i)
        columns, seen = (
            jax.lax.dynamic_slice_in_dim(x, part.start, unembedding.chunk, axis) for x in (kernel, d_kernel)
        )
        logits, pull_back = jax.vjp(unembedding.logits, hidden, columns)
        scaled = logits * scale.astype(precise)
        d_logits = _logit_gradient(scaled, part.place, unembedding.vocabulary, summary, cotangents)
        more, d_columns = pull_back(jnp.where(part.new[None], d_logits, 0) * scale.astype(precise))
        d_columns = jnp.where(jnp.expand_dims(part.new, 1 - axis), d_columns, seen)
        d_kernel = jax.lax.dynamic_update_slice_in_dim(d_kernel, d_columns, part.start, axis)
        return d_hidden + more.astype(precise), d_kernel

    start = (jnp.zeros(hidden.shape, precise), jnp.zeros_like(kernel))
    count = -(-unembedding.vocabulary // unembedding.chunk)
    d_hidden, d_kernel = jax.lax.fori_loop(0, count, accumulate, start)
    return d_hidden.astype(hidden.dtype), d_kernel, None, jnp.zeros_like(scale)


_token_statistics.defvjp(_forward, _backward)
