"""One choice: from the logits of every row to its next token, and what is recorded of it.

Shapes: `B` rows, `V` vocabulary, `T` completion tokens, `K` alternatives.
"""

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.arguments import check_broadcastable
from jaxrl4lm.decoding.drawing import draw_and_normalise, greedy
from jaxrl4lm.decoding.processors import History, Penalty, Truncation
from jaxrl4lm.types import Array, ScalarLike


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)  # arrays do not compare
class Sampling:
    """How prompts are completed.

    A pytree. As an argument of a compiled program its temperature, the settings of its penalties and truncations, and its
    stop sequences are traced; all else is static.
    """

    max_new_tokens: int | None = field(default=None, metadata={"static": True})
    """T, the longest completion. None: whoever completes the settings decides (`complete`)."""
    eos_id: int | tuple[int, ...] | None = field(default=None, metadata={"static": True})
    """The token, or tokens, that end a completion; -1 for none. None: the tokenizer's, put in by `complete`."""
    pad_id: int = field(default=0, metadata={"static": True})
    """Fills the columns after the end; nothing is read from it."""
    copies: int = field(default=1, metadata={"static": True})
    """Completions of each prompt."""
    temperature: ScalarLike | None = 1.0
    """Of the softmax, positive. None (static) takes the most likely token; log-probabilities are then at temperature 1."""
    penalties: tuple[Penalty, ...] = ()
    """Applied in order to the logits, before the temperature."""
    truncations: tuple[Truncation, ...] = ()
    """Applied in order after the temperature."""
    stop_sequences: Array | None = None
    """int `[N, M]`: a completion ends after any of these N sequences; shorter ones are padded with -1 on the left."""
    entropy: bool = field(default=False, metadata={"static": True})
    """Whether to record the entropy of the distribution that was sampled."""
    alternatives: int = field(default=0, metadata={"static": True})
    """How many of the most likely tokens to record, with their log-probabilities."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "copies"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.alternatives < 0:
            raise ValueError(f"alternatives must be at least 0, not {self.alternatives}")
        # A float alone: other types are what a tree map, or the axes of a vmap, put in its place.
        if isinstance(self.temperature, float):
            _check_temperature(self.temperature)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The end tokens, one or several.

        Raises:
          ValueError: if they are not decided yet.
        """
        if self.eos_id is None:
            raise ValueError("eos_id is None: give the ids that end a completion, or -1 if none does")
        return as_ids(self.eos_id)

    @property
    def length(self) -> int:
        """T, the longest completion.

        Raises:
          ValueError: if it is not decided yet.
        """
        if self.max_new_tokens is None:
            raise ValueError("max_new_tokens is None: say how long a completion may be")
        return self.max_new_tokens

    @property
    def reshapes(self) -> bool:
        """Whether penalties or truncations make the distribution another than softmax(logits / temperature)."""
        return bool(self.penalties or self.truncations)

    def complete(self, max_new_tokens: int, eos_ids: tuple[int, ...], pad_id: int) -> Self:
        """The same settings, where they leave the length or the end tokens open with these."""
        ends = {"eos_id": eos_ids, "pad_id": pad_id} if self.eos_id is None else {}
        return replace(self, max_new_tokens=self.max_new_tokens or max_new_tokens, **ends)


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive, not {temperature}: None takes the most likely token")


class Choice(NamedTuple):
    """The next token of each row."""

    token: Array
    """int32 `[B]`."""
    log_prob: Array
    """float32 `[B]`, of the distribution that was sampled."""
    entropy: Array | None
    """float32 `[B]`, in nats."""
    top_tokens: Array | None
    """int32 `[B, K]`."""
    top_log_probs: Array | None
    """float32 `[B, K]`."""


def choose(logits: Array, uniform: Array, history: History, sampling: Sampling) -> Choice:
    """Draws a token for each row of logits `[B, V]`; with temperature None it takes the most likely.

    Args:
      logits: `[B, V]`.
      uniform: `[B]`, in [0, 1); not read with temperature None.
      history: the text of each row, which penalties read.
      sampling: what to do.
    Raises:
      ValueError: if the temperature is not positive or of another shape, or a penalty or truncation changes the shape.
    """
    temperature = sampling.temperature
    if isinstance(temperature, float | int):
        _check_temperature(temperature)
    logits = reshape_logits(logits, history, sampling)
    if temperature is None:
        token, normaliser = greedy(logits), jax.nn.logsumexp(logits, axis=-1)
    else:
        token, normaliser = draw_and_normalise(logits, uniform)
    entropy = top_tokens = top_log_probs = None
    if sampling.entropy:
        log_probs = logits - normaliser[:, None]
        # -inf · 0 is nan: removed tokens add nothing.
        entropy = -jnp.where(jnp.isneginf(log_probs), 0.0, jnp.exp(log_probs) * log_probs).sum(-1)
    if sampling.alternatives:
        top_log_probs, top_tokens = jax.lax.top_k(logits - normaliser[:, None], sampling.alternatives)
    log_prob = jnp.take_along_axis(logits, token[:, None], -1)[:, 0] - normaliser
    return Choice(token, log_prob, entropy, top_tokens, top_log_probs)


def reshape_logits(logits: Array, history: History, sampling: Sampling) -> Array:
    """Logits `[B, V]` of the distribution that is drawn from: after penalties, temperature and truncations.

    Raises:
      ValueError: if the temperature is of another shape, or a penalty or truncation changes the shape.
    """
    shape = logits.shape
    for penalty in sampling.penalties:
        logits = penalty(logits, history)
    if sampling.temperature is not None:
        check_broadcastable("temperature", np.shape(sampling.temperature), shape)
        logits = logits / sampling.temperature
    for truncation in sampling.truncations:
        logits = truncation(logits)
    if logits.shape != shape:
        raise ValueError(
            f"a penalty or truncation makes logits {logits.shape} of {shape}: it must keep [B, V]"
        )
    return logits


def ends(chosen: Array, tokens: Array, step: Array, sampling: Sampling) -> Array:
    """Whether each row ends with the token just chosen.

    Args:
      chosen: `[B]`, the token.
      tokens: `[B, T]`, the completion before it.
      step: `[]` or `[B]`, its place in the completion.
      sampling: which has the end tokens and the stop sequences.
    """
    first, *others = sampling.eos_ids
    ended = chosen == first
    for eos_id in others:
        ended |= chosen == eos_id
    if sampling.stop_sequences is None:
        return ended
    stops = sampling.stop_sequences
    length = stops.shape[-1]
    index = jnp.broadcast_to(step, chosen.shape)[:, None] + jnp.arange(1 - length, 1)[None]
    recent = jnp.take_along_axis(tokens, jnp.maximum(index, 0), axis=1)
    recent = jnp.where(index < 0, -2, recent).at[:, -1].set(chosen)
    same = (recent[:, None] == stops[None]) | (stops[None] == -1)
    return ended | same.all(-1).any(-1)


def as_ids(eos_id: int | tuple[int, ...]) -> tuple[int, ...]:
    """A tuple of end tokens, from one or several."""
    return tuple(eos_id) if isinstance(eos_id, tuple | list) else (int(eos_id),)
