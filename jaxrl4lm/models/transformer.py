"""A decoder-only transformer: GPT-2 and Llama styles behind one configuration.

Positions are data. Every key carries its position, and the one mask rule `key position <= query position`
covers left and right padding, ragged prompts, cached steps and prompts shared by several completions; the
order of the keys does not matter.

Shapes: `B` sequences, `G` prompts (`B` is `G` times the completions of each), `T` queries, `S` keys, `D` width,
`H` heads, `K` key-value heads, `C` channels of a head, `V` vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl4lm.models.dense import dense
from jaxrl4lm.types import Array

EMPTY = 2**30
"""The position of a key that nobody may read: padding, or a cache slot not yet written."""


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and style of a decoder. The defaults are Llama's style; `gpt2` gives the other."""

    vocab_size: int
    layers: int = 2
    width: int = 64
    heads: int = 4
    kv_heads: int | None = None
    """Grouped-query attention: key-value heads, each shared by heads / kv_heads query heads. None: as many as heads."""
    head_dim: int | None = None
    """Channels of a head. None: width / heads."""
    mlp_width: int | None = None
    """None: 4 x width."""
    context: int = 1024
    """Longest sequence; the size of the table where positions are learned."""
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    rope_theta: float | None = 10_000.0
    """Base of the rotary frequencies; None: positions are a learned table instead."""
    bias: bool = False
    """Biases in every dense layer of the blocks."""
    gated: bool = True
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    tied: bool = True
    """The unembedding is the embedding, transposed."""
    dtype: str = "float32"
    """Of the matrix products; statistics (softmax, norms, log-probabilities) are float32 whatever it is."""

    def __post_init__(self) -> None:
        if self.width % self.heads and self.head_dim is None:
            raise ValueError(f"width {self.width} does not divide into heads {self.heads}: choose a multiple")
        if self.heads % self.num_kv_heads:
            raise ValueError(f"heads {self.heads} does not divide into kv_heads {self.kv_heads}: choose a divisor")
        if self.rope_theta is not None and self.channels % 2:
            raise ValueError(f"rotary positions need an even head_dim, not {self.channels}: change width or heads")

    @classmethod
    def gpt2(cls, vocab_size: int, **sizes) -> "TransformerConfig":
        """GPT-2's style: learned positions, layer norm, biases, GELU (tanh), tied embeddings."""
        style = {"norm": "layer", "rope_theta": None, "bias": True, "gated": False, "activation": "gelu_tanh"}
        return cls(vocab_size, **{**style, **sizes})

    @property
    def num_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def channels(self) -> int:
        return self.head_dim or self.width // self.heads

    @property
    def hidden(self) -> int:
        return self.mlp_width or 4 * self.width


class Cache(NamedTuple):
    """Keys and values of every layer; keys are stored transposed, so that a step is two plain matrix products."""

    keys: tuple[Array, ...]
    """Per layer `[B, K, C, S]`."""
    values: tuple[Array, ...]
    """Per layer `[B, K, S, C]`."""
    positions: Array
    """int32 `[B, S]`, `EMPTY` where there is no key."""


def empty_cache(config: TransformerConfig, batch: int, length: int) -> Cache:
    """A cache of `length` empty slots for `batch` sequences."""
    K, C, dtype = config.num_kv_heads, config.channels, jnp.dtype(config.dtype)
    return Cache(
        keys=tuple(jnp.zeros((batch, K, C, length), dtype) for _ in range(config.layers)),
        values=tuple(jnp.zeros((batch, K, length, C), dtype) for _ in range(config.layers)),
        positions=jnp.full((batch, length), EMPTY, jnp.int32),
    )


def rotary_table(positions_BT: Array, theta: float, channels: int) -> tuple[Array, Array]:
    """Cosines and sines `[B, T, 1, C / 2]` of the rotary embedding (Su et al. 2021, arXiv:2104.09864)."""
    frequencies = theta ** (-jnp.arange(0, channels, 2, dtype=jnp.float32) / channels)
    angles = positions_BT[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None]
    # Behind a barrier, or XLA computes the transcendentals again in every layer that reads them.
    return jax.lax.optimization_barrier((jnp.cos(angles), jnp.sin(angles)))


def rotate(x_BTHC: Array, table: tuple[Array, Array] | None) -> Array:
    """Rotates channel pairs (i, i + C/2) by the angles of the table."""
    if table is None:
        return x_BTHC
    cos, sin = table
    a, b = jnp.split(x_BTHC.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTHC.dtype)


def attention(q_BTHC: Array, segments: list[tuple[Array, Array, Array]], positions_BT: Array) -> Array:
    """Softmax attention over one or several segments of keys, as if they were one.

    Args:
      q_BTHC: queries, scaled.
      segments: keys `[G, K, C, S]`, values `[G, K, S, C]`, key positions `[G, S]` each; a segment whose `G` is smaller
        than `B` is shared by `B / G` consecutive sequences and is stored and read once.
      positions_BT: query positions.
    Returns:
      `[B, T, H, C]`.
    """
    B, T, H, C = q_BTHC.shape
    outputs, maxima, totals = [], [], []
    for keys, values, key_positions in segments:
        G, K = keys.shape[:2]
        n, R = B // G, H // K
        rows = n * T * R  # every query that reads the same keys, in one matrix product
        q = q_BTHC.reshape(G, n * T, K, R, C).swapaxes(1, 2).reshape(G, K, rows, C)
        allowed = key_positions[:, None, :] <= positions_BT.reshape(G, n * T)[:, :, None]
        allowed = jnp.repeat(allowed, R, axis=1)[:, None]
        scores = jnp.matmul(q, keys, preferred_element_type=jnp.float32)
        scores = jnp.where(allowed, scores, -1e30)
        maximum = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
        weights = jnp.exp(scores - maximum)
        total = weights.sum(-1, keepdims=True)
        output = jnp.matmul(weights.astype(values.dtype), values, preferred_element_type=jnp.float32)

        def by_query(x, K=K, R=R):
            return x.reshape(x.shape[0], K, -1, R, x.shape[-1]).swapaxes(1, 2).reshape(B, T, H, -1)

        outputs.append(by_query(output))
        maxima.append(by_query(maximum))
        totals.append(by_query(total))
    if len(segments) == 1:
        return (outputs[0] / totals[0]).astype(q_BTHC.dtype)
    top = jnp.maximum(*maxima)
    shares = [jnp.exp(m - top) for m in maxima]
    output = sum(o * s for o, s in zip(outputs, shares, strict=True))
    return (output / sum(t * s for t, s in zip(totals, shares, strict=True))).astype(q_BTHC.dtype)


class Norm(nn.Module):
    """Root-mean-square or layer normalisation over the last axis, with float32 statistics."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        y = x.astype(jnp.float32)
        if self.config.norm == "layer":
            y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + self.config.norm_eps)
        y = y * scale.reshape((1,) * (x.ndim - 1) + (width,))
        if self.config.norm == "layer":
            y = y + self.param("bias", nn.initializers.zeros, (width,)).reshape((1,) * (x.ndim - 1) + (width,))
        return y.astype(x.dtype)


class Dense(nn.Module):
    """x W + b with W stored `[in, out]`."""

    features: int
    use_bias: bool = False
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.normal(0.02 * self.scale)
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        return dense(x, kernel, bias)


class Attention(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD, positions_BT, table, prefix, own, slot):
        """Returns the output and the segment that holds this call's keys and values."""
        c = self.config
        B, T, _ = x_BTD.shape
        H, K, C = c.heads, c.num_kv_heads, c.channels
        q = Dense(H * C, c.bias, name="query")(x_BTD).reshape(B, T, H, C)
        k = Dense(K * C, c.bias, name="key")(x_BTD).reshape(B, T, K, C)
        v = Dense(K * C, c.bias, name="value")(x_BTD).reshape(B, T, K, C)
        k_BKCT = rotate(k, table).transpose(0, 2, 3, 1)
        v_BKTC = v.transpose(0, 2, 1, 3)
        if own is not None:
            # One scalar slot for the whole batch: an in-place slice update, never a scatter.
            k_BKCT = jax.lax.dynamic_update_slice(own[0], k_BKCT, (0, 0, 0, slot))
            v_BKTC = jax.lax.dynamic_update_slice(own[1], v_BKTC, (0, 0, slot, 0))
            own_positions = own[2]
        else:
            own_positions = positions_BT
        q = rotate(q, table) * C**-0.5
        segments = [(k_BKCT, v_BKTC, own_positions)]
        if prefix is not None:
            segments.append(prefix)
        output = attention(q, segments, positions_BT).reshape(B, T, H * C)
        depth = 1 / math.sqrt(2 * c.layers)
        return Dense(c.width, c.bias, depth, name="output")(output), (k_BKCT, v_BKTC)


class Mlp(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        c = self.config
        activation = {
            "silu": jax.nn.silu,
            "gelu": lambda x: jax.nn.gelu(x, approximate=False),
            "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
            "relu": jax.nn.relu,
        }[c.activation]
        up = Dense(c.hidden, c.bias, name="up")(x_BTD)
        inner = activation(Dense(c.hidden, c.bias, name="gate")(x_BTD)) * up if c.gated else activation(up)
        return Dense(c.width, c.bias, 1 / math.sqrt(2 * c.layers), name="down")(inner)


class Block(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD, positions_BT, table, prefix, own, slot):
        c = self.config
        h = Norm(c, name="attention_norm")(x_BTD)
        h, kv = Attention(c, name="attention")(h, positions_BT, table, prefix, own, slot)
        x_BTD = x_BTD + h
        return x_BTD + Mlp(c, name="mlp")(Norm(c, name="mlp_norm")(x_BTD)), kv


class Transformer(nn.Module):
    """Tokens to hidden states, and hidden states to logits and values."""

    config: TransformerConfig

    def setup(self):
        c = self.config
        self.embedding = self.param("embedding", nn.initializers.normal(0.02), (c.vocab_size, c.width))
        if c.rope_theta is None:
            self.position_embedding = self.param(
                "position_embedding", nn.initializers.normal(0.02), (c.context, c.width)
            )
        self.blocks = [Block(c, name=f"layer_{i}") for i in range(c.layers)]
        self.final_norm = Norm(c)
        if not c.tied:
            self.unembedding = self.param("unembedding", nn.initializers.normal(0.02), (c.width, c.vocab_size))
        self.value_head = self.param("value_head", nn.initializers.zeros, (c.width,))

    def hidden(
        self,
        tokens_BT: Array,
        positions_BT: Array,
        prefix: Cache | None = None,
        cache: Cache | None = None,
        slot: Array | int = 0,
    ) -> tuple[Array, Cache]:
        """Final hidden states `[B, T, D]`, and the keys and values that this call made.

        Args:
          tokens_BT: token ids.
          positions_BT: their positions; `EMPTY` marks padding.
          prefix: keys that every query may read besides the call's own, for each of `G` prompts; `B` is a multiple of `G`.
          cache: where to store keys and values, from `slot` on. None: the call's own tokens are all there is.
          slot: first slot of the cache to write, one for the whole batch.
        Returns:
          The hidden states; the updated cache, or a new one of length T.
        """
        c = self.config
        x_BTD = self.embedding[tokens_BT].astype(c.dtype)
        table = None
        if c.rope_theta is None:
            x_BTD = x_BTD + self.position_embedding[jnp.minimum(positions_BT, c.context - 1)].astype(c.dtype)
        else:
            table = rotary_table(jnp.where(positions_BT == EMPTY, 0, positions_BT), c.rope_theta, c.channels)
        positions = positions_BT
        if cache is not None:
            positions = jax.lax.dynamic_update_slice(cache.positions, positions_BT, (0, slot))
        keys, values = [], []
        for i, block in enumerate(self.blocks):
            shared = None if prefix is None else (prefix.keys[i], prefix.values[i], prefix.positions)
            own = None if cache is None else (cache.keys[i], cache.values[i], positions)
            x_BTD, (k, v) = block(x_BTD, positions_BT, table, shared, own, slot)
            keys.append(k)
            values.append(v)
        return self.final_norm(x_BTD), Cache(tuple(keys), tuple(values), positions)

    def logits(self, hidden: Array) -> Array:
        """Float32 logits `[..., V]`."""
        kernel = self.embedding.T if self.config.tied else self.unembedding
        return dense(hidden, kernel, None, jnp.float32)

    def values(self, hidden: Array) -> Array:
        """Float32 state values `[...]`, 0 at initialisation."""
        return jnp.matmul(hidden.astype(jnp.float32), self.value_head)

    def __call__(self, tokens_BT: Array, positions_BT: Array) -> tuple[Array, Array]:
        hidden, _ = self.hidden(tokens_BT, positions_BT)
        return self.logits(hidden), self.values(hidden)
