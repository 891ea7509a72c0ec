"""A transformer as a policy whose actions are tokens: whole sequences for training, one step at a time for acting."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.losses.chunked import TokenStatistics, Unembedding, log_probs_by_chunks
from jaxrl4lm.models.attention import EMPTY
from jaxrl4lm.models.cache import Cache, Prefix, empty_cache, extend, remember
from jaxrl4lm.models.config import TransformerConfig
from jaxrl4lm.models.decoding_layout import lay_out_for_decoding
from jaxrl4lm.models.transformer import Transformer, unembed
from jaxrl4lm.types import Array, InputError, Key, Params, ScalarLike

VOCABULARY_CHUNK = 2048
"""How many ids `token_log_probs` takes at a time. A vocabulary of as many keeps its logits."""
# benchmarks/losses.py, gradients at 2,048 tokens on one core: of 1,000 ids chunks gain nothing; of 8,192 they take 0.7 of the
# time of kept logits at width 64 and 1.1 at width 768, in a sixth of the memory; of 32,000, 0.6 at width 64.


class Carry(NamedTuple):
    """What a completion in progress remembers. `B` completions of `G` prompts."""

    prefix: Prefix | None
    """The prompts, stored once for all of their completions; None where each prompt has one completion."""
    cache: Cache
    """The completions so far; where `prefix` is None, each after its prompt."""
    positions: Array
    """int32 `[B]`: the position of the next token."""
    slot: Array
    """int32 `[]`: where the next token is stored."""


def positions_of(mask: Array) -> Array:
    """Positions `[B, T]` of the real tokens of each row, counted from 0; `EMPTY` at padding, on either side."""
    return jnp.where(mask, jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1, EMPTY)


def positions_in_segments(segment_ids: Array, mask: Array) -> tuple[Array, Array]:
    """(positions in their documents, places in the row) `[B, T]` of the real tokens; `EMPTY` at padding.

    The tokens of a document stand together, padding between documents only.
    """
    places = jnp.broadcast_to(jnp.arange(mask.shape[1], dtype=jnp.int32), mask.shape)
    begins = jnp.diff(segment_ids, axis=1, prepend=segment_ids[:, :1] - 1) != 0
    begins |= jnp.diff(mask.astype(jnp.int32), axis=1, prepend=0) != 0
    first = jax.lax.cummax(jnp.where(begins, places, 0), axis=1)
    return jnp.where(mask, places - first, EMPTY), jnp.where(mask, places, EMPTY)


@dataclass(frozen=True)
class LanguagePolicy:
    """A transformer as pure functions of its parameters."""

    config: TransformerConfig
    tokens: int | None = None
    """How many ids are tokens, where the vocabulary is padded: ids from here on get no logits. None: every id is a token."""

    @property
    def vocab_size(self) -> int:
        """V, how many logits there are."""
        return self.tokens or self.config.vocab_size

    def init(self, key: Key) -> Params:
        """Random parameters: a nested dict of float32 arrays."""
        tokens = jnp.zeros((1, 1), jnp.int32)
        return Transformer(self.config).init(key, tokens, tokens)["params"]

    def _call(self, params: Params, *args, method: str, **named) -> Any:
        return Transformer(self.config).apply({"params": params}, *args, method=method, **named)

    def apply(
        self, params: Params, tokens: Array, mask: Array | None = None, token_types: Array | None = None
    ) -> tuple[Array, Array]:
        """Logits `[B, T, V]` of the token after each position, of an encoder at it, and values `[B, T]`; float32.

        Args:
          params: as `init` gives them.
          tokens: int `[B, T]`.
          mask: bool `[B, T]`, False at padding, which may stand on either side and hold any ids. None: no padding.
          token_types: int `[B, T]`, the part of the text that each token belongs to, where the model tells parts apart
            (`config.token_types`). None: all belong to the first.
        Raises:
          ValueError: if the shapes are others, the model has no logits, or a text is longer than the table of learned
            positions. Where the mask is traced its texts cannot be counted; then tokens beyond the table take its last position.
        """
        positions = self._positions(tokens, mask)
        self._check_types(tokens, token_types)
        self._check_logits()
        logits, values = self._call(params, tokens, positions, token_types, method="__call__")
        return logits[..., : self.tokens], values

    def _positions(self, tokens: Array, mask: Array | None) -> Array:
        """Positions `[B, T]` of whole texts. Refuses wrong shapes and texts that are too long."""
        _check_texts("tokens", tokens, mask)
        if mask is None:
            mask = jnp.ones(tokens.shape, bool)
            self._check_length(tokens.shape[1])
        elif tokens.shape[1] > self.config.context and not isinstance(mask, jax.core.Tracer):
            self._check_length(int(np.asarray(mask).sum(-1).max()))
        return positions_of(mask)

    def _check_length(self, length: int) -> None:
        """Refuses texts longer than a learned table of positions."""
        context = self.config.context
        if self.config.rope_theta is None and length > context:
            raise ValueError(f"{length} tokens do not fit the table of context {context}: shorten the text")

    def _check_types(self, tokens: Array, token_types: Array | None) -> None:
        """Refuses parts of a text where the model does not tell them apart."""
        if token_types is None:
            return
        _check_texts("token_types", token_types)
        if not self.config.token_types or jnp.shape(token_types) != jnp.shape(tokens):
            raise ValueError(
                f"token_types of shape {jnp.shape(token_types)} for tokens {jnp.shape(tokens)} and a model of "
                f"{self.config.token_types} types: leave them out, or give one for each token"
            )

    def _check_logits(self) -> None:
        if self.config.readout == "none":
            raise InputError("this encoder has no logits, only hidden states: give it a task head")

    def _check_causal(self) -> None:
        """Refuses an encoder where a text is to be continued."""
        if not self.config.causal:
            family = self.config.family or "bidirectional"
            raise InputError(
                f"the model is an encoder ({family}), whose tokens read those after them, so that it cannot continue a "
                "text: use a decoder, or train a task head on it (jaxrl4lm head)"
            )

    def for_decoding(self, params: Params) -> Params:
        """The weights in the dtype and the layout that a step reads fastest. Make them once, for many steps."""
        dtype = jnp.dtype(self.config.dtype)
        params = jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, params)
        return jax.lax.optimization_barrier(lay_out_for_decoding(params))

    def prefill(self, params: Params, tokens: Array, mask: Array, length: int) -> tuple[Array, Prefix, Array]:
        """Reads prompts, which completions of up to `length` tokens will follow.

        Args:
          tokens: prompts, int `[G, P]`; the last column must be real (pad on the left).
          mask: bool `[G, P]`.
          length: room for the tokens of a completion.
        Returns:
          hidden: states `[G, D]` from which the first tokens are chosen.
          prefix: the prompts' keys and values, in the dtype in which they are kept.
          lengths: `[G]`, how many tokens each prompt has.
        Raises:
          ValueError: if the shapes are others, or P + length is more than the table of learned positions holds.
        """
        self._check_causal()
        _check_texts("prompts", tokens, mask)
        self._check_length(tokens.shape[1] + length)
        hidden, prefix = self.encode(params, tokens, positions_of(mask), room=length)
        return hidden[:, -1], remember(self.config, prefix), mask.sum(-1, dtype=jnp.int32)

    def start(
        self, params: Params, tokens: Array, mask: Array, copies: int, length: int
    ) -> tuple[Array, Carry]:
        """Reads the prompts once and prepares `copies` completions of each, up to `length` tokens long.

        Args:
          copies: completions of each prompt.
          The others: as of `prefill`.
        Returns:
          hidden: states `[G * copies, D]` from which the first tokens are chosen.
          carry: what `step` continues from.
        Raises:
          ValueError: as `prefill`.
        """
        hidden, prompts, lengths = self.prefill(params, tokens, mask, length)
        if copies == 1:  # nothing to share: one segment is faster than two
            return hidden, Carry(None, extend(prompts, length), lengths, slot=jnp.int32(tokens.shape[1]))
        cache = empty_cache(self.config, tokens.shape[0] * copies, length)
        carry = Carry(prompts, cache, positions=jnp.repeat(lengths, copies), slot=jnp.int32(0))
        return jnp.repeat(hidden, copies, axis=0), carry

    def step(self, params: Params, carry: Carry, tokens: Array) -> tuple[Array, Carry]:
        """Reads the tokens `[B]` just chosen. Returns hidden states `[B, D]` for the next choice, and the new carry."""
        chex.assert_equal_shape([tokens, carry.positions])
        hidden, cache = self._call(
            params,
            tokens[:, None],
            carry.positions[:, None],
            carry.prefix,
            carry.cache,
            carry.slot,
            method="hidden",
        )
        return hidden[:, 0], Carry(carry.prefix, cache, carry.positions + 1, carry.slot + 1)

    def hidden(
        self,
        params: Params,
        tokens: Array,
        mask: Array | None = None,
        segment_ids: Array | None = None,
        token_types: Array | None = None,
    ) -> Array:
        """Final hidden states `[B, T, D]` of whole texts, which `logits`, `values` and other heads read.

        Other arguments and errors as of `apply`.

        Args:
          segment_ids: int `[B, T]`, where a row holds several documents one after another: the number of each token's. They
            do not see each other, and the positions of each begin at 0. None: a row is one document.
        """
        self._check_types(tokens, token_types)
        if segment_ids is None:
            positions = self._positions(tokens, mask)
            return self._call(params, tokens, positions, types_BT=token_types, method="hidden")[0]
        self._check_causal()
        mask = jnp.ones(tokens.shape, bool) if mask is None else mask
        _check_texts("tokens", tokens, mask)
        _check_texts("tokens", tokens, segment_ids)
        positions, places = positions_in_segments(segment_ids, mask)
        if not isinstance(positions, jax.core.Tracer):
            self._check_length(int(jnp.where(mask, positions, -1).max()) + 1)
        hidden, _ = self._call(params, tokens, positions, None, None, 0, 0, places, method="hidden")
        return hidden

    def encode(
        self, params: Params, tokens: Array, positions: Array, prefix: Prefix | None = None, room: int = 0
    ) -> tuple[Array, Prefix]:
        """Hidden states `[B, T, D]` of tokens, and their keys and values.

        Args:
          positions: `[B, T]`, as `positions_of` gives them.
          prefix: what the tokens follow. None: nothing.
          room: how many tokens may follow (only LongRoPE reads it).
        """
        return self._call(params, tokens, positions, prefix, None, 0, room, method="hidden")

    def completion_hidden(
        self, params: Params, prompts: Array, prompt_mask: Array, completions: Array
    ) -> Array:
        """Hidden states `[B, T, D]` from which each completion token was chosen. Each prompt is read once.

        Args:
          prompts: int `[G, P]`, padded on the left.
          prompt_mask: bool `[G, P]`.
          completions: int `[B, T]`, `B` a multiple of `G`; the completions of a prompt are consecutive.
        Raises:
          ValueError: as `prefill`, or if B is no multiple of G.
        """
        self._check_causal()
        _check_texts("prompts", prompts, prompt_mask)
        _check_texts("completions", completions)
        copies, rest = divmod(completions.shape[0], prompts.shape[0])
        if rest:
            raise ValueError(
                f"{len(completions)} completions of {len(prompts)} prompts: give each prompt as many"
            )
        T = completions.shape[1]
        self._check_length(prompts.shape[1] + T)
        hidden, prefix = self.encode(params, prompts, positions_of(prompt_mask), room=T)
        first = jnp.repeat(hidden[:, -1:], copies, axis=0)
        if T == 1:
            return first
        start = jnp.repeat(prompt_mask.sum(-1, dtype=jnp.int32), copies)
        positions = start[:, None] + jnp.arange(T - 1, dtype=jnp.int32)[None]
        rest, _ = self.encode(params, completions[:, :-1], positions, prefix, room=1)
        return jnp.concatenate([first, rest], axis=1)

    def logits(self, params: Params, hidden: Array) -> Array:
        """Float32 logits `[..., V]` of hidden states."""
        self._check_logits()
        return self._call(params, hidden, method="logits")[..., : self.tokens]

    def token_log_probs(
        self,
        params: Params,
        hidden: Array,
        tokens: Array,
        *,
        temperature: ScalarLike = 1.0,
        mask: Array | None = None,
        chunk: int | None = None,
    ) -> TokenStatistics:
        """log softmax(logits / τ)[token] and the entropy of that softmax, from the hidden states before the tokens.

        The logits of a large vocabulary are never held: they are made and summed a chunk at a time, and again in the
        backward pass. Gradients flow to the parameters and the hidden states.

        Args:
          hidden: `[..., D]`.
          tokens: int `[...]`; any value where masked. An id beyond the vocabulary has the log-prob nan.
          temperature: τ, a number or one per token; a constant.
          mask: bool `[...]`, the tokens that count. None: all.
          chunk: how many ids are taken at a time; static. None: `VOCABULARY_CHUNK`.
        Returns:
          Log-probabilities, entropies and the largest log-probability, float32 `[...]`, in nats; 0, with 0 gradient, where
          masked.
        """
        self._check_causal()
        c = self.config
        size = min(chunk or VOCABULARY_CHUNK, self.vocab_size)
        unembedding = Unembedding(partial(unembed, c), 0 if c.tied else 1, self.vocab_size, size)
        kernel = params["embedding" if c.tied else "unembedding"]
        return log_probs_by_chunks(unembedding, hidden, kernel, tokens, temperature=temperature, mask=mask)

    def values(self, params: Params, hidden: Array) -> Array:
        """Float32 values `[...]` of hidden states."""
        return self._call(params, hidden, method="values")


def _check_texts(name: str, tokens: Array, mask: Array | None = None) -> None:
    """Refuses all but token ids `[B, T]` with a mask of the same shape."""
    shape = jnp.shape(tokens)
    if len(shape) != 2:
        raise ValueError(f"{name} has shape {shape}: give token ids [rows, tokens]")
    if mask is not None and jnp.shape(mask) != shape:
        raise ValueError(
            f"the mask of {name} has shape {jnp.shape(mask)}: give one bool for each token, {shape}"
        )


def parameter_count(params: Params) -> int:
    """The number of scalars in a parameter tree."""
    return sum(x.size for x in jax.tree.leaves(params))
