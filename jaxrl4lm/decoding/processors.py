"""Functions that change logits before a token is drawn. They are applied in order.

- A penalty reads the text so far and comes before the temperature: `penalty(logits, history) -> logits`.
- A truncation reads the distribution alone and comes after it: `truncation(logits) -> logits`. It removes tokens by -inf.

Each is made from its settings, as a pytree `jax.tree_util.Partial(function, settings)`. As an argument of a compiled
program its settings are traced: another setting compiles nothing. Wrap your own as `Partial(function)`. Settings may
differ by row (`[B, 1]`). Nothing here sorts a vocabulary.

Shapes: `B` rows, `V` vocabulary, `P` prompt tokens, `T` completion tokens.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxrl4lm.types import Array, ScalarLike


class History(NamedTuple):
    """The text that a row has so far."""

    prompts: Array
    """int `[B, P]`."""
    prompt_mask: Array
    """bool `[B, P]`."""
    tokens: Array
    """int `[B, T]`: completion tokens chosen so far."""
    mask: Array
    """bool `[B, T]`, True where a token was chosen."""
    step: Array
    """int32 `[]` or `[B]`: how many were chosen."""


Penalty = Callable[[Array, History], Array]
Truncation = Callable[[Array], Array]


# ── penalties ────────────────────────────────────────────────────────────────────────────────────────────


def repetition_penalty(penalty: ScalarLike) -> Penalty:
    """Divides the positive logits of tokens that occur in prompt or completion by the penalty, multiplies negative ones.

    Reference: Keskar et al. 2019, arXiv:1909.05858, section 4.1; as in transformers'
      `RepetitionPenaltyLogitsProcessor`.
    """
    if isinstance(penalty, float | int) and not penalty > 0:
        raise ValueError(f"the penalty must be positive, not {penalty}: 1 changes nothing")
    return Partial(_repetition_penalty, penalty)


def frequency_penalty(penalty: ScalarLike, presence: ScalarLike = 0.0) -> Penalty:
    """Subtracts penalty · count + presence · [count > 0], where count is how often a token occurs in the completion."""
    return Partial(_frequency_penalty, penalty, presence)


def logit_bias(bias: Array) -> Penalty:
    """Adds a bias `[V]`; -inf forbids a token."""
    return Partial(_logit_bias, bias)


def min_new_tokens(minimum: ScalarLike, eos_ids: tuple[int, ...]) -> Penalty:
    """Forbids the end tokens until a completion has `minimum` tokens."""
    return Partial(_min_new_tokens, minimum, jnp.array(eos_ids))


def _repetition_penalty(penalty: ScalarLike, logits: Array, history: History) -> Array:
    seen = _occurs(logits, history.prompts, history.prompt_mask) | _occurs(
        logits, history.tokens, history.mask
    )
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def _frequency_penalty(penalty: ScalarLike, presence: ScalarLike, logits: Array, history: History) -> Array:
    counts = _count_tokens(logits, history.tokens, history.mask)
    return logits - penalty * counts - presence * (counts > 0)


def _logit_bias(bias: Array, logits: Array, history: History) -> Array:
    del history
    return logits + bias[None]


def _min_new_tokens(minimum: ScalarLike, eos_ids: Array, logits: Array, history: History) -> Array:
    early = jnp.broadcast_to(history.step < minimum, logits.shape[:1])[:, None]
    ends = jnp.isin(jnp.arange(logits.shape[-1]), eos_ids)[None]
    return jnp.where(early & ends, -jnp.inf, logits)


def _count_tokens(logits: Array, tokens: Array, mask: Array) -> Array:
    """How often each token of the vocabulary occurs `[B, V]`."""
    rows = jnp.broadcast_to(jnp.arange(tokens.shape[0])[:, None], tokens.shape)
    return jnp.zeros_like(logits).at[rows, tokens].add(mask.astype(logits.dtype))


def _occurs(logits: Array, tokens: Array, mask: Array) -> Array:
    return _count_tokens(logits, tokens, mask) > 0


# ── truncations ──────────────────────────────────────────────────────────────────────────────────────────


def top_k(k: int) -> Truncation:
    """Keeps the k largest logits, and those equal to the k-th.

    Args:
      k: static, at least 1; beyond the vocabulary it keeps everything.
    """
    if not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k must be a whole number of at least 1, not {k}")
    return _top_k(int(k))


@functools.cache  # one function for one k, so that programs are compiled once
def _top_k(k: int) -> Truncation:
    def apply(logits: Array) -> Array:
        threshold = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:]
        return jnp.where(logits < threshold, -jnp.inf, logits)

    return Partial(apply)


def top_p(p: ScalarLike) -> Truncation:
    """Keeps the smallest set of most likely tokens whose probability reaches p, and ties with the last of them.

    Reference: Holtzman et al. 2020, arXiv:1904.09751, section 3.1.
    """
    return Partial(_top_p, _check_fraction(p))


def min_p(p: ScalarLike) -> Truncation:
    """Keeps tokens at least p times as likely as the most likely one.

    Reference: Nguyen et al. 2024, arXiv:2407.01082.
    """
    return Partial(_min_p, _check_fraction(p))


def typical(p: ScalarLike) -> Truncation:
    """Keeps the tokens whose surprise is nearest to the entropy, until their probability reaches p.

    Reference: Meister et al. 2023, arXiv:2202.00666, eq. 11.
    """
    return Partial(_typical, _check_fraction(p))


def _check_fraction(p: ScalarLike) -> ScalarLike:
    if isinstance(p, float | int | np.number) and not 0 < p <= 1:
        raise ValueError(f"p must lie above 0 and be at most 1, not {p}")
    return p


def _top_p(p: ScalarLike, logits: Array) -> Array:
    threshold = _find_threshold(logits, jax.nn.softmax(logits, axis=-1), p)
    return jnp.where(logits < threshold, -jnp.inf, logits)


def _min_p(p: ScalarLike, logits: Array) -> Array:
    threshold = logits.max(-1, keepdims=True) + jnp.log(p)
    return jnp.where(logits < threshold, -jnp.inf, logits)


def _typical(p: ScalarLike, logits: Array) -> Array:
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    probabilities = jnp.exp(log_probs)
    entropy = -jnp.where(probabilities > 0, probabilities * log_probs, 0.0).sum(-1, keepdims=True)
    nearness = -jnp.abs(-log_probs - entropy)
    return jnp.where(nearness < _find_threshold(nearness, probabilities, p), -jnp.inf, logits)


def _find_threshold(scores: Array, probabilities: Array, p: ScalarLike) -> Array:
    """The largest t `[B, 1]` such that the tokens with score ≥ t have probability ≥ p.

    Found by bisection over the 32-bit patterns of the scores, which have their order: exact, without a sort.
    """
    bits = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.int32)
    order = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    # Rounding may leave the whole vocabulary short of p = 1; then everything is kept.
    enough = jnp.minimum(p, probabilities.sum(-1, keepdims=True))

    def halve(_, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2 + (high - low) % 2
        reached = jnp.where(order >= middle, probabilities, 0.0).sum(-1, keepdims=True) >= enough
        return jnp.where(reached, middle, low), jnp.where(reached, high, middle - 1)

    # Halves of the bounds keep their difference inside 32 bits.
    smallest = order.min(-1, keepdims=True)
    largest = order.max(-1, keepdims=True)
    positive = jnp.where(order >= 0, probabilities, 0.0).sum(-1, keepdims=True) >= enough
    low = jnp.where(positive, jnp.maximum(smallest, 0), smallest)
    high = jnp.where(positive, largest, jnp.minimum(largest, -1))
    low, _ = jax.lax.fori_loop(0, 31, halve, (low, high))
    bits = jnp.where(low < 0, low ^ 0x7FFFFFFF, low)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
