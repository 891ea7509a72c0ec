"""The `config.json` of encoders to `TransformerConfig` and back, one reader and one writer a `model_type`.

An encoder's architecture says whether it has logits: those of a masked language model. Other folders hold hidden states
only, perhaps with a task head, which is no part of the configuration.
"""

from jaxrl4lm.models.config import Rope, TransformerConfig
from jaxrl4lm.models.config_values import (
    ACTIVATION_NAMES,
    FULL,
    SLIDING,
    Json,
    read_activation,
    read_rope,
    write_rope,
)

MASKED = ("ForMaskedLM", "ForPreTraining")
"""Endings of the architectures that have logits."""


def _read_encoder(hf: Json) -> Json:
    """What all encoders share."""
    architectures = hf.get("architectures")
    named = str(architectures[0]) if isinstance(architectures, list) and architectures else MASKED[0]
    masked = named.endswith(MASKED)
    return {
        "vocab_size": hf["vocab_size"],
        "causal": False,
        "norm": "layer",
        "embedding_norm": True,
        "tied": not masked or hf.get("tie_word_embeddings", True),
        "readout": "transformed" if masked else "none",
    }


def _write_encoder(c: TransformerConfig, stem: str) -> Json:
    return {
        "architectures": [stem + ("Model" if c.readout == "none" else MASKED[0])],
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.context + c.position_offset,
        "tie_word_embeddings": c.tied,
    }


def read_bert(hf: Json) -> Json:
    """BERT: learned positions and parts of the text, norms of sums, biases."""
    if hf.get("is_decoder") or hf.get("add_cross_attention"):
        raise ValueError("an encoder that is run as a decoder (is_decoder) is not supported")
    if hf.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(f"position_embedding_type {hf['position_embedding_type']!r} is not supported")
    return {
        **_read_encoder(hf),
        "layers": hf["num_hidden_layers"],
        "width": hf["hidden_size"],
        "heads": hf["num_attention_heads"],
        "mlp_width": hf["intermediate_size"],
        "context": hf.get("max_position_embeddings", 512),
        "token_types": hf.get("type_vocab_size", 2),
        "norm_eps": hf.get("layer_norm_eps", 1e-12),
        "norm_placement": "sum",
        "rope_theta": None,
        "bias": True,
        "gated": False,
        "activation": read_activation(hf.get("hidden_act", "gelu")),
    }


def write_bert(c: TransformerConfig, stem: str = "Bert") -> Json:
    """The inverse of `read_bert`."""
    return {
        **_write_encoder(c, stem),
        "num_hidden_layers": c.layers,
        "hidden_size": c.width,
        "num_attention_heads": c.heads,
        "intermediate_size": c.hidden,
        "type_vocab_size": c.token_types,
        "layer_norm_eps": c.norm_eps,
        "hidden_act": ACTIVATION_NAMES[c.activation],
    }


def read_roberta(hf: Json) -> Json:
    """RoBERTa: BERT whose positions begin after the padding token's id."""
    fields, offset = read_bert(hf), hf.get("pad_token_id", 1) + 1
    if fields["readout"] == "transformed" and fields["activation"] != "gelu":
        raise ValueError(f"the activation {hf['hidden_act']!r} is not that of RoBERTa's logits, gelu")
    return {**fields, "position_offset": offset, "context": fields["context"] - offset}


def write_roberta(c: TransformerConfig) -> Json:
    """The inverse of `read_roberta`."""
    return {**write_bert(c, "Roberta"), "pad_token_id": c.position_offset - 1}


def read_distilbert(hf: Json) -> Json:
    """DistilBERT: BERT without parts of the text."""
    names = {
        "num_hidden_layers": "n_layers",
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    }
    renamed = {name: hf[theirs] for name, theirs in names.items() if theirs in hf}
    fixed = {"type_vocab_size": 0, "layer_norm_eps": 1e-12}
    return read_bert({**hf, **renamed, **fixed})


def write_distilbert(c: TransformerConfig) -> Json:
    """The inverse of `read_distilbert`."""
    return {
        **_write_encoder(c, "DistilBert"),
        "n_layers": c.layers,
        "dim": c.width,
        "n_heads": c.heads,
        "hidden_dim": c.hidden,
        "activation": ACTIVATION_NAMES[c.activation],
    }


def read_modernbert(hf: Json) -> Json:
    """ModernBERT: rotary positions, a gated MLP, windows in most layers, which have a rope of their own."""
    fields, layers = _read_encoder(hf), hf["num_hidden_layers"]
    activation = hf.get("hidden_activation", "gelu")
    if fields["readout"] == "transformed":
        given = (hf.get("classifier_activation", "gelu"), hf.get("classifier_bias", False))
        if given != (activation, hf.get("mlp_bias", False)) or not hf.get("decoder_bias", True):
            raise ValueError(
                "logits without a bias (decoder_bias), or a classifier_activation or classifier_bias that are not those "
                "of the MLP, are not supported"
            )
    every = hf.get("global_attn_every_n_layers", 3)
    kinds = hf.get("layer_types") or [SLIDING if i % every else FULL for i in range(layers)]
    both = hf.get("rope_parameters") or {}
    full, local = (
        read_rope({**hf, "rope_parameters": both.get(kind), "rope_theta": hf.get(name, theta)}, theta)[0]
        for kind, name, theta in (
            (FULL, "global_rope_theta", 160_000.0),
            (SLIDING, "local_rope_theta", 10_000.0),
        )
    )
    return {
        **fields,
        "layers": layers,
        "width": hf["hidden_size"],
        "heads": hf["num_attention_heads"],
        "mlp_width": hf["intermediate_size"],
        "context": hf.get("max_position_embeddings", 8192),
        "norm_eps": hf.get("norm_eps", 1e-5),
        "norm_bias": hf.get("norm_bias", False),
        "qkv_bias": hf.get("attention_bias", False),
        "output_bias": hf.get("attention_bias", False),
        "mlp_bias": hf.get("mlp_bias", False),
        "activation": read_activation(activation),
        "rope_theta": full.theta,
        "ropes": tuple(local if kind == SLIDING else full for kind in kinds),
        "windows": tuple(
            hf.get("local_attention", 128) // 2 + 1 if kind == SLIDING else None for kind in kinds
        ),
    }


def write_modernbert(c: TransformerConfig) -> Json:
    """The inverse of `read_modernbert`."""
    kinds = [FULL if window is None else SLIDING for window in c.layer_windows]
    ropes = dict(zip(kinds, c.layer_ropes, strict=True))
    full, local = ropes.get(FULL) or Rope(160_000.0), ropes.get(SLIDING) or Rope()
    window = next(filter(None, c.layer_windows), 65)
    again = [i for i, kind in enumerate(kinds) if kind == FULL and i]
    hf = {
        **_write_encoder(c, "ModernBert"),
        "num_hidden_layers": c.layers,
        "hidden_size": c.width,
        "num_attention_heads": c.heads,
        "intermediate_size": c.hidden,
        "norm_eps": c.norm_eps,
        "norm_bias": c.norm_bias,
        "attention_bias": c.bias if c.qkv_bias is None else c.qkv_bias,
        "mlp_bias": c.bias if c.mlp_bias is None else c.mlp_bias,
        "classifier_bias": c.bias if c.mlp_bias is None else c.mlp_bias,
        "hidden_activation": ACTIVATION_NAMES[c.activation],
        "classifier_activation": ACTIVATION_NAMES[c.activation],
        "layer_types": kinds,
        "global_attn_every_n_layers": min(again, default=c.layers),
        "local_attention": 2 * (window - 1),
        "global_rope_theta": full.theta,
        "local_rope_theta": local.theta,
    }
    if (
        full.kind != "default" or local.kind != "default"
    ):  # only the format of transformers 5 has a place for it
        hf["rope_parameters"] = {
            kind: {"rope_theta": rope.theta, **(write_rope(rope) or {"rope_type": "default"})}
            for kind, rope in ((FULL, full), (SLIDING, local))
        }
    return hf
