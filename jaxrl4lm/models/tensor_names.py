"""Where each parameter of ours stands in a Hugging Face checkpoint, and how it is laid out there.

A path of ours is the keys of the parameter tree, joined by `/`. Our kernels are `[in, out]`, PyTorch's `[out, in]`.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np


class TensorRow(NamedTuple):
    """One tensor of a checkpoint, and our leaves that it holds, side by side along the output axis."""

    name: str
    leaves: tuple[str, ...]
    layout: Literal["as is", "transposed", "interleaved"] = "as is"
    """How it is stored. Interleaved (GPT-NeoX): transposed, and the leaves alternate head by head."""

    def shape(self, leaf_shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """The shape of the tensor in the checkpoint, from those of the leaves."""
        *rest, _ = leaf_shapes[0]
        whole = (*rest, sum(shape[-1] for shape in leaf_shapes))
        return whole if self.layout == "as is" else whole[::-1]

    def split(self, tensor: np.ndarray, widths: Sequence[int], channels: int) -> list[np.ndarray]:
        """The leaves, from the checkpoint's tensor. `widths` are the sizes of their last axes, `channels` that of a head."""
        return [self.part(i, tensor, widths, channels) for i in range(len(self.leaves))]

    def part(self, i: int, tensor: np.ndarray, widths: Sequence[int], channels: int) -> np.ndarray:
        """The i-th leaf: a view, or of an interleaved tensor a copy."""
        whole = tensor if self.layout == "as is" else tensor.T
        if self.layout == "interleaved":
            heads = whole.reshape(*whole.shape[:-1], -1, len(self.leaves), channels)
            return heads[..., i, :].reshape(*whole.shape[:-1], -1)
        begin = sum(widths[:i])
        return whole[..., begin : begin + widths[i]]

    def join(self, leaves: Sequence[np.ndarray], channels: int) -> np.ndarray:
        """The checkpoint's tensor, from the leaves."""
        if self.layout == "interleaved":
            heads = [x.reshape(*x.shape[:-1], -1, channels) for x in leaves]
            whole = np.stack(heads, axis=-2).reshape(*leaves[0].shape[:-1], -1)
        else:
            whole = np.concatenate(leaves, axis=-1) if len(leaves) > 1 else leaves[0]
        return whole if self.layout == "as is" else whole.T


def _dense(
    name: str, *leaves: str, layout: Literal["as is", "transposed", "interleaved"] = "transposed"
) -> list[TensorRow]:
    biases = tuple(f"{leaf}/bias" for leaf in leaves)
    kernels = tuple(f"{leaf}/kernel" for leaf in leaves)
    return [TensorRow(f"{name}.weight", kernels, layout), TensorRow(f"{name}.bias", biases, layout)]


def _norm(name: str, leaf: str) -> list[TensorRow]:
    return [TensorRow(f"{name}.weight", (f"{leaf}/scale",)), TensorRow(f"{name}.bias", (f"{leaf}/bias",))]


ATTENTION = tuple(f"attention/{name}" for name in ("query", "key", "value"))


def gpt2() -> tuple[list[TensorRow], list[TensorRow]]:
    """Rows outside the layers, and rows of one layer."""
    top = [
        TensorRow("transformer.wte.weight", ("embedding",)),
        TensorRow("transformer.wpe.weight", ("position_embedding",)),
        TensorRow("lm_head.weight", ("unembedding",), "transposed"),
        *_norm("transformer.ln_f", "final_norm"),
    ]
    layer = [
        *_norm("ln_1", "attention_norm"),
        *_norm("ln_2", "mlp_norm"),
        *_dense("attn.c_attn", *ATTENTION, layout="as is"),
        *_dense("attn.c_proj", "attention/output", layout="as is"),
        *_dense("mlp.c_fc", "mlp/up", layout="as is"),
        *_dense("mlp.c_proj", "mlp/down", layout="as is"),
    ]
    return top, [row._replace(name=f"transformer.h.{{i}}.{row.name}") for row in layer]


def gpt_neox() -> tuple[list[TensorRow], list[TensorRow]]:
    """Rows outside the layers, and rows of one layer."""
    top = [
        TensorRow("gpt_neox.embed_in.weight", ("embedding",)),
        TensorRow("embed_out.weight", ("unembedding",), "transposed"),
        *_norm("gpt_neox.final_layer_norm", "final_norm"),
    ]
    layer = [
        *_norm("input_layernorm", "attention_norm"),
        *_norm("post_attention_layernorm", "mlp_norm"),
        *_dense("attention.query_key_value", *ATTENTION, layout="interleaved"),
        *_dense("attention.dense", "attention/output"),
        *_dense("mlp.dense_h_to_4h", "mlp/up"),
        *_dense("mlp.dense_4h_to_h", "mlp/down"),
    ]
    return top, [row._replace(name=f"gpt_neox.layers.{{i}}.{row.name}") for row in layer]


def llama(norm_after: bool = False, fused: bool = False) -> tuple[list[TensorRow], list[TensorRow]]:
    """Rows outside the layers, and rows of one layer.

    Args:
      norm_after: outputs of attention and MLP are normalised (Gemma 2, OLMo 2). There `post_attention_layernorm` is the
        norm of attention's output; elsewhere it is the norm before the MLP.
      fused: query, key and value are one tensor, gate and up are one (Phi-3).
    """
    top = [
        TensorRow("model.embed_tokens.weight", ("embedding",)),
        TensorRow("lm_head.weight", ("unembedding",), "transposed"),
        *_norm("model.norm", "final_norm"),
    ]
    if norm_after:
        mlp_norm = [
            *_norm("pre_feedforward_layernorm", "mlp_norm"),
            *_norm("post_feedforward_layernorm", "mlp_post_norm"),
        ]
        norms = [*_norm("post_attention_layernorm", "attention_post_norm"), *mlp_norm]
    else:
        norms = _norm("post_attention_layernorm", "mlp_norm")
    if fused:
        joint = [*_dense("self_attn.qkv_proj", *ATTENTION), *_dense("mlp.gate_up_proj", "mlp/gate", "mlp/up")]
    else:
        letters = zip("qkv", ATTENTION, strict=True)
        joint = [row for x, leaf in letters for row in _dense(f"self_attn.{x}_proj", leaf)]
        joint += [*_dense("mlp.gate_proj", "mlp/gate"), *_dense("mlp.up_proj", "mlp/up")]
    layer = [
        *_norm("input_layernorm", "attention_norm"),
        *norms,
        *joint,
        *_dense("self_attn.o_proj", "attention/output"),
        *_norm("self_attn.q_norm", "attention/query_norm"),
        *_norm("self_attn.k_norm", "attention/key_norm"),
        *_dense("mlp.down_proj", "mlp/down"),
    ]
    return top, [row._replace(name=f"model.layers.{{i}}.{row.name}") for row in layer]


def _readout(dense: str, norm: str, unembedding: str, *bias: str) -> list[TensorRow]:
    """How a masked language model reads its hidden states. The weight stands there if it is not the embedding; a bias of two
    names stands there twice."""
    return [
        *_dense(dense, "readout"),
        *_norm(norm, "readout_norm"),
        TensorRow(f"{unembedding}.weight", ("unembedding",), "transposed"),
        *(TensorRow(name, ("unembedding_bias",)) for name in bias),
    ]


def bert(base: str = "bert") -> tuple[list[TensorRow], list[TensorRow]]:
    """Rows outside the layers, and rows of one layer; `base`: bert or roberta."""
    head = {
        "bert": (
            "predictions.transform.dense",
            "predictions.transform.LayerNorm",
            "predictions.decoder",
            "predictions.bias",
        ),
        "roberta": ("dense", "layer_norm", "decoder", "bias"),
    }[base]
    head = (*head, f"{head[2]}.bias")
    above = "cls" if base == "bert" else "lm_head"
    top = [
        TensorRow(f"{base}.embeddings.word_embeddings.weight", ("embedding",)),
        TensorRow(f"{base}.embeddings.position_embeddings.weight", ("position_embedding",)),
        TensorRow(f"{base}.embeddings.token_type_embeddings.weight", ("type_embedding",)),
        *_norm(f"{base}.embeddings.LayerNorm", "embedding_norm"),
        *_readout(*(f"{above}.{name}" for name in head)),
    ]
    layer = [
        *[row for leaf in ATTENTION for row in _dense(f"attention.self.{leaf.split('/')[1]}", leaf)],
        *_dense("attention.output.dense", "attention/output"),
        *_norm("attention.output.LayerNorm", "attention_post_norm"),
        *_dense("intermediate.dense", "mlp/up"),
        *_dense("output.dense", "mlp/down"),
        *_norm("output.LayerNorm", "mlp_post_norm"),
    ]
    return top, [row._replace(name=f"{base}.encoder.layer.{{i}}.{row.name}") for row in layer]


def distilbert() -> tuple[list[TensorRow], list[TensorRow]]:
    """Rows outside the layers, and rows of one layer."""
    top = [
        TensorRow("distilbert.embeddings.word_embeddings.weight", ("embedding",)),
        TensorRow("distilbert.embeddings.position_embeddings.weight", ("position_embedding",)),
        *_norm("distilbert.embeddings.LayerNorm", "embedding_norm"),
        *_readout("vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector.bias"),
    ]
    letters = zip("qkv", ATTENTION, strict=True)
    layer = [
        *[row for x, leaf in letters for row in _dense(f"attention.{x}_lin", leaf)],
        *_dense("attention.out_lin", "attention/output"),
        *_norm("sa_layer_norm", "attention_post_norm"),
        *_dense("ffn.lin1", "mlp/up"),
        *_dense("ffn.lin2", "mlp/down"),
        *_norm("output_layer_norm", "mlp_post_norm"),
    ]
    return top, [row._replace(name=f"distilbert.transformer.layer.{{i}}.{row.name}") for row in layer]


def modernbert() -> tuple[list[TensorRow], list[TensorRow]]:
    """Rows outside the layers, and rows of one layer."""
    top = [
        TensorRow("model.embeddings.tok_embeddings.weight", ("embedding",)),
        *_norm("model.embeddings.norm", "embedding_norm"),
        *_norm("model.final_norm", "final_norm"),
        *_readout("head.dense", "head.norm", "decoder", "decoder.bias"),
    ]
    layer = [
        *_norm("attn_norm", "attention_norm"),
        *_norm("mlp_norm", "mlp_norm"),
        *_dense("attn.Wqkv", *ATTENTION),
        *_dense("attn.Wo", "attention/output"),
        *_dense("mlp.Wi", "mlp/gate", "mlp/up"),
        *_dense("mlp.Wo", "mlp/down"),
    ]
    return top, [row._replace(name=f"model.layers.{{i}}.{row.name}") for row in layer]


def list_rows(
    table: tuple[list[TensorRow], list[TensorRow]], layers: int, leaves: set[str]
) -> list[TensorRow]:
    """The rows whose leaves the model has, with one row for each layer."""
    top, layer = table
    numbered = [
        TensorRow(row.name.format(i=i), tuple(f"layer_{i}/{leaf}" for leaf in row.leaves), row.layout)
        for i in range(layers)
        for row in layer
    ]
    return [row for row in top + numbered if row.leaves[0] in leaves]
