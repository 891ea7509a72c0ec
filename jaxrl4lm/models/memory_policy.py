"""Policies that remember the episode under way; and the language models' transformer as one of them.

Shapes: `T` time, `N` sequences side by side, `O` outputs, `S` moments that are remembered, `V` vocabulary, `K` key-value
heads, `C` channels of a head.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxrl4lm.fields import check_count
from jaxrl4lm.models.cache import Prefix, cache_dtype
from jaxrl4lm.models.config import TransformerConfig
from jaxrl4lm.models.policy import LanguagePolicy
from jaxrl4lm.models.transformer import Transformer
from jaxrl4lm.types import Array, InputError, Key, Params


class MemoryPolicy(Protocol):
    """A network with a memory, as pure functions of its parameters: `apply` over sequences for learning, `start` and `step`
    for acting. Both say the same.

    A memory is a pytree whose arrays have the sequences as first axis.
    """

    def init(self, key: Key) -> Params:
        """Random parameters."""
        ...

    def start(self, count: int) -> Any:
        """The memory of `count` sequences before anything was seen."""
        ...

    def step(self, params: Params, memory: Any, observation: Array, begins: Array) -> tuple[Array, Any]:
        """(memory, observations `[N, ...]`, begins `[N]`) → outputs `[N, O]` of one moment, and the memory after it. Where an
        episode begins nothing is remembered."""
        ...

    def apply(self, params: Params, memory: Any, observations: Array, begins: Array) -> tuple[Array, Any]:
        """(memory, observations `[T, N, ...]`, begins `[T, N]`) → outputs `[T, N, O]` of whole sequences, and the memory after
        each moment, with `T` as first axis."""
        ...


class Moments(NamedTuple):
    """What a transformer remembers of an episode: the keys and values of its last moments."""

    keys: tuple[Array, ...]
    """Per layer `[N, K, C, S]`, the last moment last."""
    values: tuple[Array, ...]
    """Per layer `[N, K, S, C]`."""
    time: Array
    """int32 `[N]`: moments of the episode so far. So many of the last slots are of this episode, the others are not read."""


@dataclass(frozen=True)
class TransformerPolicy:
    """The transformer of language models as a policy with a memory (`MemoryPolicy`): an observation is a token, and the KV
    cache is what it remembers.

    A moment reads itself and the last `span` moments of its episode. An observation is embedded by a linear map with a bias;
    of one-hot observations it is the table of embeddings. The outputs are the logits of the first ids of the vocabulary; the
    head for values is not used.

    Reference: Parisotto et al. 2020, arXiv:1910.06764 (transformers as the memory of agents).
    """

    outputs: int
    """Those that depend on observations."""
    shape: tuple[int, ...]
    """Of an observation; it is flattened."""
    span: int = 64
    """S. `apply` gives S moments for each of T: a memory of long episodes takes T · S."""
    layers: int = 2
    width: int = 64
    heads: int = 4
    constants: int = 0
    """Outputs that are parameters themselves, as the log standard deviations of a Gaussian policy; O counts them."""

    def __post_init__(self):
        for name in ("outputs", "span", "layers", "width", "heads"):
            check_count(name, getattr(self, name), least=1)
        check_count("constants", self.constants)
        if not isinstance(self.shape, tuple | list):
            raise InputError(f"shape must be that of an observation, as (4,), not {self.shape!r}")
        for size in self.shape:
            check_count("a size of shape", size, least=1)
        if self.width % self.heads:
            raise InputError(
                f"width {self.width} does not divide into the {self.heads} heads: give a multiple"
            )

    @property
    def language(self) -> LanguagePolicy:
        """The language model that plays."""
        inputs = math.prod(self.shape) + 1  # the last is the bias
        config = TransformerConfig(
            max(inputs, self.outputs),
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            windows=(self.span + 1,) * self.layers,
            tied=False,
        )
        return LanguagePolicy(config, tokens=self.outputs)

    def init(self, key: Key) -> Params:
        """Random parameters: nested dicts of float32 arrays."""
        return {"transformer": self.language.init(key), "constants": jnp.zeros(self.constants)}

    def start(self, count: int) -> Moments:
        """The memory of `count` sequences before anything was seen."""
        c = self.language.config
        shape, dtype = (count, c.num_kv_heads, c.channels, self.span), cache_dtype(c)
        return Moments(
            keys=tuple(jnp.zeros(shape, dtype) for _ in range(c.layers)),
            values=tuple(jnp.zeros(shape, dtype).swapaxes(2, 3) for _ in range(c.layers)),
            time=jnp.zeros(count, jnp.int32),
        )

    def step(
        self, params: Params, memory: Moments, observation: Array, begins: Array
    ) -> tuple[Array, Moments]:
        """Outputs `[N, O]` of one moment, which reads the keys and values of those before it, and the memory after it.

        Args:
          params: as `init` gives them.
          memory: from before.
          observation: `[N, *shape]`.
          begins: bool `[N]`: an episode begins with this observation, and the memory of the last one is dropped.
        """
        outputs, after = self.apply(params, memory, observation[None], begins[None])
        return outputs[0], jax.tree.map(lambda x: x[0], after)

    def apply(
        self, params: Params, memory: Moments, observations: Array, begins: Array
    ) -> tuple[Array, Moments]:
        """Outputs `[T, N, O]` of whole sequences, all moments at once, and the memories `[T, N, ...]` after each of them.

        Args:
          params: as `init` gives them.
          memory: from before the first observation.
          observations: `[T, N, *shape]`.
          begins: bool `[T, N]`: an episode begins here.
        """
        T, N = begins.shape
        times_NT = _count_times(memory.time, begins.T)
        places_NT = jnp.broadcast_to(self.span + jnp.arange(T), (N, T))
        before = Prefix(memory.keys, memory.values, jnp.broadcast_to(jnp.arange(self.span), (N, self.span)))
        # The window of a moment ends where its episode begins: of older keys, also in memory, none is read.
        read: Any = Transformer(self.language.config).apply(
            {"params": params["transformer"]},
            self._as_tokens(observations.reshape(T, N, -1).swapaxes(0, 1)),
            times_NT,
            before,
            places_BT=places_NT,
            method="hidden",
        )
        hidden, made = read
        logits = self.language.logits(params["transformer"], hidden).swapaxes(0, 1)
        constants = jnp.broadcast_to(params["constants"], (T, N, self.constants))
        return jnp.concatenate([logits, constants], axis=-1), self._remember(memory, made, times_NT)

    def _as_tokens(self, flat_NTX: Array) -> Array:
        """Weights of the embeddings `[N, T, V]`: the observation, zeros, and 1 for the bias."""
        V = self.language.config.vocab_size
        padded = jnp.pad(flat_NTX, [(0, 0), (0, 0), (0, V - flat_NTX.shape[-1])])
        return padded.at[..., -1].set(1)

    def _remember(self, memory: Moments, made: Prefix, times_NT: Array) -> Moments:
        """The memory after each moment: the S newest of all keys and values up to it."""
        T, S = times_NT.shape[1], self.span
        newest_TS = jnp.arange(1, T + 1)[:, None] + jnp.arange(S)[None]

        def take(old: Array, new: Array, axis: int) -> Array:
            every = jnp.concatenate([old, new.astype(old.dtype)], axis)
            return jnp.moveaxis(jnp.take(every, newest_TS, axis), axis, 0)

        return Moments(
            keys=tuple(take(old, new, 3) for old, new in zip(memory.keys, made.keys, strict=True)),
            values=tuple(take(old, new, 2) for old, new in zip(memory.values, made.values, strict=True)),
            time=times_NT.T + 1,
        )


def _count_times(before_N: Array, begins_NT: Array) -> Array:
    """The time in its episode `[N, T]` of each moment, from 0; `before_N` moments were before the first."""
    index = jnp.arange(begins_NT.shape[1], dtype=jnp.int32)[None]
    last_NT = jax.lax.cummax(jnp.where(begins_NT, index, -1), axis=1)
    return jnp.where(last_NT >= 0, index - last_NT, before_N[:, None] + index)
