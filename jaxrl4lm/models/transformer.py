"""A transformer behind one configuration: decoders, and encoders.

Positions are data. Every key carries its position, and there is one mask rule: `key position <= query position` (and, under
a sliding window, `query position - key position < window`). It covers left and right padding, ragged prompts, cached steps
and prompts shared by several completions. In an encoder every key but padding may be read, in a window on both sides. Where
several documents share a row, keys carry their places in the row, and the window of a query ends where its document begins.
The order of the keys does not matter.

Shapes: `B` sequences, `G` prompts (`B` is `G` times the completions of each), `T` queries, `S` keys, `D` width, `H` heads,
`K` key-value heads, `C` channels of a head, `V` vocabulary.
"""

import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.models.attention import EMPTY, attend, rotary_table, rotate
from jaxrl4lm.models.cache import Cache, Prefix, count_tokens
from jaxrl4lm.models.config import TransformerConfig
from jaxrl4lm.models.decoding_layout import JOINED
from jaxrl4lm.models.dense import dense
from jaxrl4lm.models.sharding import constrain_residual, gather_rows
from jaxrl4lm.types import Array, Params

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}
NO_WINDOW = 2**29
"""A sliding window longer than any text."""


class Norm(nn.Module):
    """Root-mean-square or layer normalisation over the last axis, with float32 statistics."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, width = self.config, x.shape[-1]
        shape = (1,) * (x.ndim - 1) + (width,)
        scale = self.param("scale", nn.initializers.constant(1.0 - c.norm_offset), (width,))
        y = x.astype(jnp.float32)
        if c.norm == "layer":
            y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + c.norm_eps)
        y = y * (scale.astype(jnp.float32) + c.norm_offset if c.norm_offset else scale).reshape(shape)
        if c.norm == "layer" and c.norm_bias:
            y = y + self.param("bias", nn.initializers.zeros, (width,)).reshape(shape)
        return y.astype(x.dtype)


class Dense(nn.Module):
    """x W + b, plus (x A) B where the parameters hold a low-rank adapter.

    W is stored `[in, out]` as `kernel`, or `[out, in]` as `by_output`.
    """

    features: int
    use_bias: bool = False
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.normal(0.02 * self.scale)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        if self.has_variable("params", "by_output"):
            y = dense(x, self.get_variable("params", "by_output"), bias, by_output=True)
        else:
            y = dense(x, self.param("kernel", init, (x.shape[-1], self.features)), bias)
        if self.has_variable("params", "lora_a"):
            first, second = (self.get_variable("params", name) for name in ("lora_a", "lora_b"))
            y = y + dense(dense(self._drop_inputs(x), first, None), second, None)
        return y

    def _drop_inputs(self, x: Array) -> Array:
        """What an adapter reads in training: a share of the inputs is 0, the others make up for it."""
        if not self.has_variable("params", "lora_key"):
            return x
        kept = 1 - self.get_variable("params", "lora_dropout")
        keep = jax.random.bernoulli(self.get_variable("params", "lora_key"), kept, x.shape)
        return jnp.where(keep, x / kept.astype(x.dtype), 0)


def _apply_joined(module: nn.Module, x: Array, features: dict[str, int], use_bias: bool) -> list[Array]:
    """The outputs of dense layers that read the same input.

    They are one product where `lay_out_for_decoding` has joined the weights.
    """
    joined = JOINED.get(tuple(features))
    if joined and module.has_variable("params", joined):
        y = Dense(sum(features.values()), use_bias, name=joined)(x)
        return jnp.split(y, np.cumsum(list(features.values()))[:-1], axis=-1)
    return [Dense(size, use_bias, name=name)(x) for name, size in features.items()]


class Attention(nn.Module):
    """Self-attention with its projections."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD, positions_BT, table, window, prefix, own, slot):
        """Returns the output and the segment that holds this call's keys and values."""
        c = self.config
        B, T, _ = x_BTD.shape
        H, K, C = c.heads, c.num_kv_heads, c.channels
        biased = c.bias if c.qkv_bias is None else c.qkv_bias
        q, k, v = _apply_joined(self, x_BTD, {"query": H * C, "key": K * C, "value": K * C}, biased)
        v = v.reshape(B, T, K, C)
        if c.qk_norm == "all":
            q, k = Norm(c, name="query_norm")(q), Norm(c, name="key_norm")(k)
        q, k = q.reshape(B, T, H, C), k.reshape(B, T, K, C)
        if c.qk_norm == "head":
            q, k = Norm(c, name="query_norm")(q), Norm(c, name="key_norm")(k)
        k, v = rotate(k, table), v.transpose(0, 2, 1, 3)
        if own is None:
            made = (k.transpose(0, 2, 3, 1), v)
            segments = [(*made, positions_BT)]
        else:
            # One scalar slot for the whole batch: an in-place slice update, never a scatter.
            new = (k.transpose(0, 2, 1, 3), v)
            made = tuple(
                jax.lax.dynamic_update_slice(old, x.astype(old.dtype), (0, 0, slot, 0))
                for old, x in zip(own, new, strict=False)
            )
            segments = [(made[0].swapaxes(2, 3), made[1], own[2])]
        q = rotate(q, table) * (C**-0.5 if c.attention_scale is None else c.attention_scale)
        if prefix is not None:
            segments.append(prefix)
        output = attend(q, segments, positions_BT, window, c.attention_softcap, c.causal)
        depth = 1 / math.sqrt(2 * c.layers)
        biased = c.bias if c.output_bias is None else c.output_bias
        return Dense(c.width, biased, depth, name="output")(output.reshape(B, T, H * C)), made


class Mlp(nn.Module):
    """The feed-forward part of a block, gated or plain."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        c = self.config
        activation = ACTIVATIONS[c.activation]
        biased = c.bias if c.mlp_bias is None else c.mlp_bias
        layers = ("up", "gate") if c.gated else ("up",)
        up, *gate = _apply_joined(self, x_BTD, dict.fromkeys(layers, c.hidden), biased)
        inner = activation(gate[0]) * up if c.gated else activation(up)
        return Dense(c.width, biased, 1 / math.sqrt(2 * c.layers), name="down")(inner)


class Block(nn.Module):
    """Attention and MLP with their norms, each added to the residual stream."""

    config: TransformerConfig
    normed: bool = False
    """Whether the input is normalised already."""

    @nn.compact
    def __call__(self, x_BTD, positions_BT, table, window, prefix, own, slot):
        c = self.config
        before, after = (c.norm_placement in (placement, "both") for placement in ("before", "after"))
        h = Norm(c, name="attention_norm")(x_BTD) if before and not self.normed else x_BTD
        h, kv = Attention(c, name="attention")(h, positions_BT, table, window, prefix, own, slot)
        if c.norm_placement == "sum":
            y = Norm(c, name="attention_post_norm")(x_BTD + h)
            y = Norm(c, name="mlp_post_norm")(y + Mlp(c, name="mlp")(y))
            return constrain_residual(y), kv
        h = Norm(c, name="attention_post_norm")(h) if after else h
        y = x_BTD if c.parallel else x_BTD + h
        m = Mlp(c, name="mlp")(Norm(c, name="mlp_norm")(y) if before else y)
        m = Norm(c, name="mlp_post_norm")(m) if after else m
        return constrain_residual(x_BTD + h + m), kv


def unembed(config: TransformerConfig, hidden: Array, kernel: Array) -> Array:
    """Float32 logits `[..., V]`, by the embedding `[V, D]` where it is tied, else by the unembedding `[D, V]`;
    or by a part of either, the logits of its ids."""
    logits = dense(hidden, kernel, None, jnp.float32, by_output=config.tied)
    cap = config.logit_softcap
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def _measure_documents(positions_BT: Array, places_BT: Array) -> Array:
    """The length `[B, T]` of the document to which each token belongs; its last token has the largest position."""
    starts_BT = places_BT - positions_BT
    same = starts_BT[:, :, None] == starts_BT[:, None, :]
    return jnp.where(same & (positions_BT != EMPTY)[:, None], positions_BT[:, None], -1).max(-1) + 1


class Transformer(nn.Module):
    """Tokens to hidden states, and hidden states to logits and values."""

    config: TransformerConfig

    def setup(self):
        c = self.config
        self.embedding = self.param("embedding", nn.initializers.normal(0.02), (c.vocab_size, c.width))
        if c.rope_theta is None:
            self.position_embedding = self.param(
                "position_embedding", nn.initializers.normal(0.02), (c.position_offset + c.context, c.width)
            )
        if c.token_types:
            self.type_embedding = self.param(
                "type_embedding", nn.initializers.normal(0.02), (c.token_types, c.width)
            )
        if c.embedding_norm:
            self.embedding_norm = Norm(c)
        self.blocks = [Block(c, i == 0 and c.embedding_norm, name=f"layer_{i}") for i in range(c.layers)]
        self.final_norm = Norm(c) if c.norm_placement != "sum" else lambda x_BTD: x_BTD
        if c.readout == "transformed":
            biased = c.bias if c.mlp_bias is None else c.mlp_bias
            self.readout, self.readout_norm = Dense(c.width, biased), Norm(c)
            self.unembedding_bias = self.param("unembedding_bias", nn.initializers.zeros, (c.vocab_size,))
        if not c.tied:
            self.unembedding = self.param(
                "unembedding", nn.initializers.normal(0.02), (c.width, c.vocab_size)
            )
        self.value_head = self.param("value_head", nn.initializers.zeros, (c.width,))

    def hidden(
        self,
        tokens_BT: Array,
        positions_BT: Array,
        prefix: Prefix | None = None,
        cache: Cache | None = None,
        slot: Array | int = 0,
        room: int = 0,
        places_BT: Array | None = None,
        types_BT: Array | None = None,
    ) -> tuple[Array, Cache | Prefix]:
        """Final hidden states `[B, T, D]`, and the keys and values that this call made.

        Args:
          tokens_BT: token ids; or floats `[B, T, V]`, weights by which embeddings are added up: one-hot vectors are ids.
          positions_BT: their positions; `EMPTY` at padding.
          prefix: keys and values of `G` prompts, which every query may read; `B` is a multiple of `G`.
          cache: where to store keys and values, from `slot` on. None: queries read the prefix and the call's own tokens.
          slot: the first slot of the cache to write, one for the whole batch.
          room: how many tokens may follow. LongRoPE chooses a text's factors by the length that it may come to have, so
            that no state depends on a later token, and no cached key must be rotated again.
          places_BT: the tokens' places in their rows, `EMPTY` at padding, where a row holds several documents one after
            another, each with positions from 0; without a cache. The first document of a row may go on with one that a prefix
            holds, whose positions then are places, too. None: a row is one document.
          types_BT: the part of the text, from 0, that each token belongs to. None: there is one.
        Returns:
          The hidden states; the updated cache, or without one the keys and values of the tokens as a prefix.
        """
        c = self.config
        chex.assert_rank(tokens_BT, {2, 3})
        chex.assert_shape(positions_BT, tokens_BT.shape[:2])
        x_BTD = self._embed(tokens_BT, positions_BT, types_BT)
        positions = positions_BT
        if cache is not None:
            positions = jax.lax.dynamic_update_slice(cache.positions, positions_BT, (0, slot))
        windows = c.layer_windows
        if places_BT is None:
            lengths_BT = count_tokens(positions_BT, prefix, cache, slot) + room
        else:
            assert cache is None, "documents that share a row are read whole"
            lengths_BT = _measure_documents(positions_BT, places_BT)
            back_BT = positions_BT + 1  # to the first token of the document
            windows = tuple(back_BT if w is None else jnp.minimum(w, back_BT) for w in windows)
        tables = {
            rope: rope and rotary_table(positions_BT, rope, c.rotated, lengths_BT)
            for rope in dict.fromkeys(c.layer_ropes)
        }
        positions_BT = positions_BT if places_BT is None else places_BT
        if c.scan and cache is None and not self.is_initializing():
            x_BTD, keys, values = self._scan(x_BTD, positions_BT, tables, windows, prefix)
        else:
            keys, values = [], []
            for i, block in enumerate(self.blocks):
                shared = None if prefix is None else (prefix.keys[i], prefix.values[i], prefix.positions)
                own = None if cache is None else (cache.keys[i], cache.values[i], positions)
                call = block
                if c.remat != "none" and cache is None and not self.is_initializing():
                    call = functools.partial(self._block, self.variables["params"][f"layer_{i}"])
                table, window = tables[c.layer_ropes[i]], windows[i]
                x_BTD, (k, v) = call(x_BTD, positions_BT, table, window, shared, own, slot)
                keys.append(k)
                values.append(v)
        made = (Prefix if cache is None else Cache)(tuple(keys), tuple(values), positions)
        return self.final_norm(x_BTD), made

    def _block(self, params: Params, *args):
        """One block as a function of its parameters. `remat` says what the backward pass computes again."""
        c = self.config
        policies = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}

        def run(params, *args):
            return Block(c, "attention_norm" not in params, parent=None).apply({"params": params}, *args)

        return (
            run(params, *args)
            if c.remat == "none"
            else jax.checkpoint(run, policy=policies[c.remat])(params, *args)
        )

    def _scan(
        self, x_BTD: Array, positions_BT: Array, tables: dict, windows: tuple, prefix: Prefix | None
    ) -> tuple[Array, list[Array], list[Array]]:
        """All blocks as one loop over their stacked parameters. What differs between layers is data."""
        c = self.config
        layers = [self.variables["params"][f"layer_{i}"] for i in range(c.layers)]
        stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *layers)
        rope_ids = jnp.array([list(tables).index(rope) for rope in c.layer_ropes])
        some = next((t for t in tables.values() if t is not None), None)
        if some is not None:  # a layer without positions rotates by no angle
            still = (jnp.ones_like(some[0]), jnp.zeros_like(some[1]))
            rows = [still if t is None else t for t in tables.values()]
            some = (jnp.stack([r[0] for r in rows]), jnp.stack([r[1] for r in rows]))
        stacked_windows = None
        if any(w is not None for w in windows):
            stacked_windows = jnp.stack([jnp.asarray(NO_WINDOW if w is None else w) for w in windows])
        shared = None if prefix is None else (jnp.stack(prefix.keys), jnp.stack(prefix.values))

        def body(x_BTD: Array, layer):
            params, rope_id, window, kv = layer
            table = None if some is None else (some[0][rope_id], some[1][rope_id])
            kv = None if prefix is None else (*kv, prefix.positions)
            return self._block(params, x_BTD, positions_BT, table, window, kv, None, 0)

        x_BTD, made = jax.lax.scan(body, x_BTD, (stacked, rope_ids, stacked_windows, shared))
        keys, values = zip(*[jax.tree.map(lambda x, i=i: x[i], made) for i in range(c.layers)], strict=True)
        return x_BTD, list(keys), list(values)

    def _embed(self, tokens_BT: Array, positions_BT: Array, types_BT: Array | None) -> Array:
        c = self.config
        if tokens_BT.ndim == 3:
            x_BTD = tokens_BT.astype(c.dtype) @ self.embedding.astype(c.dtype)
        else:
            x_BTD = gather_rows(self.embedding)[tokens_BT].astype(c.dtype)
        if c.embedding_scale != 1.0:
            x_BTD = x_BTD * jnp.asarray(c.embedding_scale, c.dtype)
        if c.token_types:
            types_BT = jnp.zeros_like(positions_BT) if types_BT is None else types_BT
            x_BTD = x_BTD + self.type_embedding[types_BT].astype(c.dtype)
        if c.rope_theta is None:
            rows_BT = jnp.minimum(positions_BT, c.context - 1) + c.position_offset
            x_BTD = x_BTD + self.position_embedding[rows_BT].astype(c.dtype)
        if c.embedding_norm:
            x_BTD = self.embedding_norm(x_BTD)
        return constrain_residual(x_BTD)

    def logits(self, hidden: Array) -> Array:
        """Float32 logits `[..., V]`."""
        c = self.config
        if c.readout == "transformed":
            hidden = self.readout_norm(ACTIVATIONS[c.activation](self.readout(hidden)))
        logits = unembed(c, hidden, self.embedding if c.tied else self.unembedding)
        if c.readout == "transformed":
            logits = logits + self.unembedding_bias.reshape((1,) * (logits.ndim - 1) + (-1,))
        return logits

    def values(self, hidden: Array) -> Array:
        """Float32 state values `[...]`, 0 at initialisation."""
        return jnp.matmul(hidden.astype(jnp.float32), self.value_head.astype(jnp.float32))

    def __call__(
        self, tokens_BT: Array, positions_BT: Array, types_BT: Array | None = None
    ) -> tuple[Array | None, Array]:
        hidden, _ = self.hidden(tokens_BT, positions_BT, types_BT=types_BT)
        return None if self.config.readout == "none" else self.logits(hidden), self.values(hidden)
