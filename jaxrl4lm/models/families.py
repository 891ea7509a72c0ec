"""Hugging Face `config.json` to `TransformerConfig` and back, one reader and one writer a `model_type`.

Both configuration formats are read: that of transformers 4 (`rope_theta`, `rope_scaling`) and that of 5
(`rope_parameters`). The older is written, which both read.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxrl4lm.models import names
from jaxrl4lm.models.config import Rope, TransformerConfig
from jaxrl4lm.models.tensor_files import CheckpointError

Json = dict[str, Any]
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
ACTIVATION_NAMES = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}
SLIDING, FULL = "sliding_attention", "full_attention"


class Family(NamedTuple):
    """One `model_type`."""

    architecture: str
    """The class of transformers that runs it."""
    table: tuple[list[names.Row], list[names.Row]]
    read: Callable[[Json], Json]
    """`config.json` to the fields of a `TransformerConfig`."""
    write: Callable[[TransformerConfig], Json]
    """The inverse, for the configurations that the family can express."""


def read_config(hf: Json, where: str = "config.json") -> TransformerConfig:
    """The configuration that a `config.json` describes.

    Raises:
      CheckpointError: if the `model_type` or one of its options is not supported, or a size is missing.
    """
    model_type = hf.get("model_type")
    if model_type not in FAMILIES:
        raise CheckpointError(f"{where}: model_type {model_type!r} is not one of {', '.join(FAMILIES)}")
    try:
        return TransformerConfig(**FAMILIES[model_type].read(hf), family=model_type)
    except KeyError as error:
        raise CheckpointError(
            f"{where}: the key {error} is missing, which model_type {model_type!r} needs"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error


def write_config(config: TransformerConfig) -> Json:
    """A `config.json` that means this configuration.

    Raises:
      CheckpointError: if no family expresses it.
    """
    running = {"dtype": "float32", "remat": "none", "scan": False}  # how it runs, not what it computes
    order = [config.family, *FAMILIES] if config.family else list(FAMILIES)
    for model_type in order:
        family = FAMILIES[model_type]
        hf = {"model_type": model_type, "architectures": [family.architecture], **family.write(config)}
        if _fills(TransformerConfig(**family.read(hf))) == _fills(dataclasses.replace(config, **running)):
            return hf
    raise CheckpointError(
        f"no Hugging Face model_type expresses {config}: save its parameters with orbax instead"
    )


def _fills(config: TransformerConfig) -> TransformerConfig:
    """The same configuration with every default that stands for another field's value written out."""
    bias = config.bias
    plain = {
        "kv_heads": config.num_kv_heads,
        "head_dim": config.channels,
        "mlp_width": config.hidden,
        "bias": False,
    }
    biases = {
        f: bias if getattr(config, f) is None else getattr(config, f)
        for f in ("qkv_bias", "output_bias", "mlp_bias")
    }
    rope = {"ropes": config.layer_ropes, "rope_dim": config.rotated, "windows": config.layer_windows}
    rope["rope_theta"] = None if config.rope_theta is None else 0.0
    scale = {
        "attention_scale": config.channels**-0.5 if config.attention_scale is None else config.attention_scale
    }
    context = {} if config.rope_theta is None else {"context": 0}  # a table's size, or only a hint
    return dataclasses.replace(config, **plain, **biases, **rope, **scale, **context)


def _activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise ValueError(f"the activation {name!r} is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _rope(
    hf: Json, theta: float, parameters: Json | None = None, partial: str = "partial_rotary_factor"
) -> Json:
    """The rotary fields, from either format; `theta` is the family's default base."""
    p = (
        parameters
        or hf.get("rope_parameters")
        or {"rope_theta": hf.get("rope_theta", theta), **(hf.get("rope_scaling") or {})}
    )
    kind = p.get("rope_type", p.get("type", "default"))
    base = float(p.get("rope_theta", theta))
    stretch: Json = {
        "factor": p.get("factor"),
        "original_context": p.get("original_max_position_embeddings", hf.get("max_position_embeddings")),
        "low_frequency": p.get("low_freq_factor"),
        "high_frequency": p.get("high_freq_factor"),
        "beta_slow": p.get("beta_slow"),
        "beta_fast": p.get("beta_fast"),
        "attention_factor": p.get("attention_factor"),
        "truncate": p.get("truncate"),
    }
    used = {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "original_context", "low_frequency", "high_frequency"),
        "yarn": ("factor", "original_context", "beta_slow", "beta_fast", "attention_factor", "truncate"),
    }
    if kind not in used or p.get("mscale"):
        kind = f"{kind} with mscale" if p.get("mscale") else kind
        raise ValueError(f"the rope type {kind!r} is not one of {', '.join(used)}")
    rope = Rope(base, kind, **{k: stretch[k] for k in used[kind] if stretch[k] is not None})
    fraction = p.get(partial, hf.get(partial, 1.0))
    return {"rope": rope, "fraction": fraction}


def _write_rope(rope: Rope) -> Json | None:
    """`rope_scaling`, in the format of transformers 4."""
    if rope.kind == "default":
        return None
    p: Json = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind != "linear":
        p["original_max_position_embeddings"] = rope.original_context
    if rope.kind == "llama3":
        p |= {"low_freq_factor": rope.low_frequency, "high_freq_factor": rope.high_frequency}
    if rope.kind == "yarn":
        p |= {"beta_slow": rope.beta_slow, "beta_fast": rope.beta_fast, "truncate": rope.truncate}
        p |= {} if rope.attention_factor is None else {"attention_factor": rope.attention_factor}
    return p


def _first(xs: tuple, default: Any = None) -> Any:
    return next((x for x in xs if x is not None), default)


def _windows(hf: Json, sliding: list[bool]) -> tuple[int | None, ...] | None:
    """Windows of the layers: `layer_types` where the file has it, else as the family's rule says."""
    window = hf.get("sliding_window")
    if hf.get("layer_types") is not None:
        sliding = [kind == SLIDING for kind in hf["layer_types"]]
    if window is None or not any(sliding):
        return None
    return tuple(window if s else None for s in sliding)


def read_llama(hf: Json, *, theta: float = 10_000.0, tied: bool = False) -> Json:
    """What all descendants of Llama share."""
    layers, heads, width = hf["num_hidden_layers"], hf["num_attention_heads"], hf["hidden_size"]
    rotary = (
        _rope(hf, theta)
        if not isinstance(next(iter((hf.get("rope_parameters") or {}).values()), 0), dict)
        else None
    )
    head_dim = hf.get("head_dim") or width // heads
    fields = {
        "vocab_size": hf["vocab_size"],
        "layers": layers,
        "width": width,
        "heads": heads,
        "kv_heads": hf.get("num_key_value_heads") or heads,
        "head_dim": head_dim,
        "mlp_width": hf["intermediate_size"],
        "context": hf.get("max_position_embeddings", 2048),
        "norm_eps": hf.get("rms_norm_eps", 1e-6),
        "activation": _activation(hf.get("hidden_activation") or hf.get("hidden_act", "silu")),
        "qkv_bias": hf.get("attention_bias", False),
        "output_bias": hf.get("attention_bias", False),
        "mlp_bias": False,
        "tied": hf.get("tie_word_embeddings", tied),
    }
    if rotary is not None:
        fields |= {"rope_theta": rotary["rope"].theta, "ropes": (rotary["rope"],) * layers}
        fields["rope_dim"] = int(head_dim * rotary["fraction"])
    return fields


def write_llama(c: TransformerConfig) -> Json:
    """What all descendants of Llama share."""
    rope = _first(c.layer_ropes, Rope())
    return {
        "vocab_size": c.vocab_size,
        "hidden_size": c.width,
        "intermediate_size": c.hidden,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.channels,
        "hidden_act": ACTIVATION_NAMES[c.activation],
        "max_position_embeddings": c.context,
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tied,
        "attention_bias": c.bias if c.qkv_bias is None else c.qkv_bias,
        "rope_theta": rope.theta,
        "rope_scaling": _write_rope(rope),
        "use_cache": True,
    }


def _mlp_bias(c: TransformerConfig) -> bool:
    return c.bias if c.mlp_bias is None else c.mlp_bias


def _write_windows(c: TransformerConfig) -> Json:
    window = _first(c.layer_windows)
    kinds = [FULL if w is None else SLIDING for w in c.layer_windows]
    return {"sliding_window": window, "use_sliding_window": window is not None, "layer_types": kinds}


def read_gpt2(hf: Json) -> Json:
    if hf.get("scale_attn_by_inverse_layer_idx") or not hf.get("scale_attn_weights", True):
        raise ValueError("attention scaled by layer (scale_attn_by_inverse_layer_idx) is not supported")
    return {
        "vocab_size": hf["vocab_size"],
        "layers": hf["n_layer"],
        "width": hf["n_embd"],
        "heads": hf["n_head"],
        "mlp_width": hf.get("n_inner") or 4 * hf["n_embd"],
        "context": hf.get("n_positions", 1024),
        "norm": "layer",
        "norm_eps": hf.get("layer_norm_epsilon", 1e-5),
        "rope_theta": None,
        "bias": True,
        "gated": False,
        "activation": _activation(hf.get("activation_function", "gelu_new")),
        "tied": hf.get("tie_word_embeddings", True),
    }


def write_gpt2(c: TransformerConfig) -> Json:
    return {
        "vocab_size": c.vocab_size,
        "n_layer": c.layers,
        "n_embd": c.width,
        "n_head": c.heads,
        "n_inner": c.hidden,
        "n_positions": c.context,
        "layer_norm_epsilon": c.norm_eps,
        "activation_function": ACTIVATION_NAMES[c.activation],
        "tie_word_embeddings": c.tied,
    }


def read_smollm(hf: Json) -> Json:
    return {**read_llama(hf), "mlp_bias": hf.get("mlp_bias", False)}


def write_smollm(c: TransformerConfig) -> Json:
    return {**write_llama(c), "mlp_bias": _mlp_bias(c)}


FAMILIES: dict[str, Family] = {
    "gpt2": Family("GPT2LMHeadModel", names.gpt2(), read_gpt2, write_gpt2),
    "llama": Family("LlamaForCausalLM", names.llama(), read_smollm, write_smollm),
}
