"""The `config.json` of decoders to `TransformerConfig` and back, one reader and one writer a `model_type`."""

from typing import Any

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

NO_BIAS = {"qkv_bias": False, "output_bias": False, "mlp_bias": False}


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


def _write_windows(c: TransformerConfig) -> Json:
    window = _first(c.layer_windows)
    kinds = [FULL if w is None else SLIDING for w in c.layer_windows]
    return {"sliding_window": window, "use_sliding_window": window is not None, "layer_types": kinds}


def read_llama(hf: Json, *, theta: float = 10_000.0, tied: bool = False, partial: bool = False) -> Json:
    """Llama, and what all of its descendants share; `partial`: some channels may not rotate."""
    layers, heads, width = hf["num_hidden_layers"], hf["num_attention_heads"], hf["hidden_size"]
    rope, fraction = read_rope(hf, theta)
    if not partial and fraction != 1.0:
        if rope.kind != "default":
            raise ValueError(
                f"partial_rotary_factor {fraction} is not supported beside the rope type {rope.kind!r}"
            )
        fraction = 1.0  # transformers ignores it here
    if not 0 < fraction <= 1:
        raise ValueError(f"partial_rotary_factor is {fraction}: give a fraction of the head's channels")
    head_dim = hf.get("head_dim") or width // heads
    return {
        "vocab_size": hf["vocab_size"],
        "layers": layers,
        "width": width,
        "heads": heads,
        "kv_heads": hf.get("num_key_value_heads") or heads,
        "head_dim": head_dim,
        "mlp_width": hf["intermediate_size"],
        "context": hf.get("max_position_embeddings") or 2048,
        "norm_eps": hf.get("rms_norm_eps", 1e-6),
        "activation": read_activation(hf.get("hidden_act", "silu")),
        "qkv_bias": hf.get("attention_bias", False),
        "output_bias": hf.get("attention_bias", False),
        "mlp_bias": hf.get("mlp_bias", False),
        "tied": hf.get("tie_word_embeddings", tied),
        "rope_theta": rope.theta,
        "ropes": (rope,) * layers,
        "rope_dim": int(head_dim * fraction),
    }


def write_llama(c: TransformerConfig) -> Json:
    """Llama, and what all of its descendants share."""
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
        "mlp_bias": c.bias if c.mlp_bias is None else c.mlp_bias,
        "rope_theta": rope.theta,
        "rope_scaling": write_rope(rope),
        "partial_rotary_factor": c.rotated / c.channels,
        **_write_windows(c),
    }


def read_gpt2(hf: Json) -> Json:
    """GPT-2: learned positions, layer norms, biases, one tensor for query, key and value."""
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
        "activation": read_activation(hf.get("activation_function", "gelu_new")),
        "tied": hf.get("tie_word_embeddings", True),
    }


def write_gpt2(c: TransformerConfig) -> Json:
    """The inverse of `read_gpt2`."""
    return {
        "vocab_size": c.vocab_size,
        "n_layer": c.layers,
        "n_embd": c.width,
        "n_head": c.heads,
        "n_inner": c.hidden,
        "n_positions": c.context,
        "layer_norm_epsilon": c.norm_eps,
        "activation_function": "gelu_new" if c.activation == "gelu_tanh" else ACTIVATION_NAMES[c.activation],
        "tie_word_embeddings": c.tied,
    }


def read_gpt_neox(hf: Json) -> Json:
    """GPT-NeoX (Pythia): attention and MLP side by side, part of each head rotates."""
    older = {
        "rope_theta": hf.get("rotary_emb_base", 10_000.0),
        "partial_rotary_factor": hf.get("rotary_pct", 0.25),
    }
    biased = hf.get("attention_bias", True)
    return {
        **read_llama({**older, **hf, "num_key_value_heads": None, "head_dim": None}, partial=True),
        "norm": "layer",
        "norm_eps": hf.get("layer_norm_eps", 1e-5),
        "parallel": hf.get("use_parallel_residual", True),
        "qkv_bias": biased,
        "output_bias": biased,
        "mlp_bias": True,
        "gated": False,
        "activation": read_activation(hf.get("hidden_act", "gelu")),
    }


def write_gpt_neox(c: TransformerConfig) -> Json:
    """The inverse of `read_gpt_neox`."""
    llama = write_llama(c)
    theta, fraction = llama.pop("rope_theta"), llama.pop("partial_rotary_factor")
    eps = llama.pop("rms_norm_eps")
    renamed = {"layer_norm_eps": eps, "rotary_pct": fraction, "rotary_emb_base": theta}
    return {**llama, **renamed, "use_parallel_residual": c.parallel}


def read_mistral(hf: Json) -> Json:
    """Mistral: Llama with one sliding window in all layers."""
    fields = {**read_llama(hf), **NO_BIAS}
    return {**fields, "windows": _windows({**hf, "layer_types": None}, [True] * fields["layers"])}


def write_mistral(c: TransformerConfig) -> Json:
    """As Llama; a file with `layer_types` would be taken for Ministral."""
    return {name: value for name, value in write_llama(c).items() if name != "layer_types"}


def read_qwen2(hf: Json) -> Json:
    """Qwen2 and 2.5: biases of query, key and value; windows from some layer up."""
    fields = {**read_llama(hf), **NO_BIAS, "qkv_bias": True}
    first = hf.get("max_window_layers", 28)
    hf = hf if hf.get("use_sliding_window") else {**hf, "sliding_window": None}
    return {**fields, "windows": _windows(hf, [i >= first for i in range(fields["layers"])])}


def read_qwen3(hf: Json) -> Json:
    """Qwen3: Qwen2 with normalised queries and keys in place of the biases."""
    biased = hf.get("attention_bias", False)
    return {**read_qwen2(hf), "qk_norm": "head", "qkv_bias": biased, "output_bias": biased}


def _read_gemma(hf: Json, activation: str, theta: float = 10_000.0) -> Json:
    fields = read_llama({**hf, "hidden_act": activation}, theta=theta, tied=True)
    scale = float(hf["hidden_size"]) ** 0.5
    return {**fields, "mlp_bias": False, "norm_offset": 1.0, "embedding_scale": scale}


def read_gemma(hf: Json) -> Json:
    """Gemma 1."""
    activation = hf.get("hidden_activation") or hf.get("hidden_act", "gelu")
    # The first checkpoints say "gelu" and were trained with its tanh form.
    return _read_gemma(hf, "gelu_pytorch_tanh" if activation == "gelu" else activation)


def read_gemma2(hf: Json) -> Json:
    """Gemma 2: norms before and after, soft caps, windows in every second layer."""
    fields = _read_gemma(hf, hf.get("hidden_activation") or "gelu_pytorch_tanh")
    alternate = [i % 2 == 0 for i in range(fields["layers"])]
    return {
        **fields,
        "norm_placement": "both",
        "attention_scale": float(hf.get("query_pre_attn_scalar", 256)) ** -0.5,
        "attention_softcap": hf.get("attn_logit_softcapping", 50.0),
        "logit_softcap": hf.get("final_logit_softcapping", 30.0),
        "windows": _windows({"sliding_window": 4096, **hf}, alternate),
    }


def read_gemma3(hf: Json) -> Json:
    """Gemma 3 (text): Gemma 2 with normalised queries and keys in place of the caps, and a rope of its own for windows."""
    if hf.get("use_bidirectional_attention"):
        raise ValueError("attention to later tokens (use_bidirectional_attention) is not supported")
    both = hf.get("rope_parameters") or {}
    activation = hf.get("hidden_activation") or "gelu_pytorch_tanh"
    fields = _read_gemma({**hf, "rope_parameters": both.get(FULL)}, activation, theta=1e6)
    local = both.get(SLIDING) or {"rope_theta": hf.get("rope_local_base_freq", 10_000.0)}
    local_rope, _ = read_rope({**hf, "rope_parameters": local}, 10_000.0)
    layers = fields["layers"]
    pattern = hf.get("sliding_window_pattern") or hf.get("_sliding_window_pattern", 6)
    windows = _windows({"sliding_window": 4096, **hf}, [(i + 1) % pattern != 0 for i in range(layers)])
    full_rope = fields["ropes"][0]
    return {
        **fields,
        "norm_placement": "both",
        "qk_norm": "head",
        "attention_scale": float(hf.get("query_pre_attn_scalar", 256)) ** -0.5,
        "logit_softcap": hf.get("final_logit_softcapping"),
        "windows": windows,
        "ropes": tuple(full_rope if w is None else local_rope for w in windows or (None,) * layers),
    }


def write_gemma(c: TransformerConfig) -> Json:
    """The inverse of `read_gemma` and `read_gemma2`."""
    scale = c.channels**-0.5 if c.attention_scale is None else c.attention_scale
    caps = {"attn_logit_softcapping": c.attention_softcap, "final_logit_softcapping": c.logit_softcap}
    squared = scale**-2
    squared = round(squared) if abs(squared - round(squared)) < 1e-6 else squared
    name = ACTIVATION_NAMES[c.activation]
    hf = {**write_llama(c), "hidden_activation": name, "query_pre_attn_scalar": squared, **caps}
    # transformers wants a window even where no layer has one.
    return hf | {"sliding_window": hf["sliding_window"] or 4096}


def write_gemma3(c: TransformerConfig) -> Json:
    """The inverse of `read_gemma3`."""
    pairs = list(zip(c.layer_ropes, c.layer_windows, strict=True))
    full = _first(tuple(rope for rope, window in pairs if window is None), Rope(1e6))
    local = _first(tuple(rope for rope, window in pairs if window is not None), Rope())
    ropes = {
        "rope_theta": full.theta,
        "rope_scaling": write_rope(full),
        "rope_local_base_freq": local.theta,
    }
    if local.kind != "default":  # only the format of transformers 5 has a place for it
        both = {FULL: full, SLIDING: local}
        ropes["rope_parameters"] = {
            layer: {"rope_theta": rope.theta, **(write_rope(rope) or {"rope_type": "default"})}
            for layer, rope in both.items()
        }
    return {**write_gemma(c), **ropes}


def read_smollm3(hf: Json) -> Json:
    """SmolLM3: Llama with some layers that have no positions."""
    fields = read_llama(hf, theta=2e6, tied=True)
    layers, interval = fields["layers"], hf.get("no_rope_layer_interval", 4)
    # 0: a layer without positions.
    kept = hf.get("no_rope_layers") or [(i + 1) % interval for i in range(layers)]
    ropes = tuple(rope if keep else None for rope, keep in zip(fields["ropes"], kept, strict=True))
    hf = hf if hf.get("use_sliding_window") else {**hf, "sliding_window": None}
    return {**fields, "ropes": ropes, "windows": _windows(hf, [not keep for keep in kept])}


def write_smollm3(c: TransformerConfig) -> Json:
    """The inverse of `read_smollm3`."""
    return {**write_llama(c), "no_rope_layers": [int(rope is not None) for rope in c.layer_ropes]}


def read_phi3(hf: Json) -> Json:
    """Phi-3, 3.5 and 4-mini: Llama with fused tensors, partial rotation and LongRoPE."""
    key = "rope_parameters" if hf.get("rope_parameters") else "rope_scaling"
    scaling = dict(hf.get(key) or {})
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":
        scaling["rope_type"] = "longrope"  # early files call it "su" or "yarn"
    sizes = {"rms_norm_eps": 1e-5, **hf, key: scaling}
    fields = {**read_llama(sizes, partial=True), **NO_BIAS}
    return {**fields, "windows": _windows({**hf, "layer_types": None}, [True] * fields["layers"])}


def write_phi3(c: TransformerConfig) -> Json:
    """As Llama, but that the stretch stands in the sizes; transformers 4 wants just these three keys."""
    rope = _first(c.layer_ropes, Rope())
    hf = {**write_llama(c), "original_max_position_embeddings": c.context}
    if rope.kind == "longrope":
        scaling: Json = {"type": "longrope", "short_factor": list(rope.short_factors)}
        scaling["long_factor"] = list(rope.long_factors)
        scaling |= {} if rope.attention_factor is None else {"attention_factor": rope.attention_factor}
        hf |= {"rope_scaling": scaling, "original_max_position_embeddings": rope.original_context}
    return hf


def read_olmo2(hf: Json) -> Json:
    """OLMo 2: norms after attention and MLP only, queries and keys normalised over all heads."""
    fields = {**read_llama({"rms_norm_eps": 1e-5, **hf}), "mlp_bias": False}
    return {**fields, "norm_placement": "after", "qk_norm": "all"}
