"""Values that the `config.json` of several families writes alike: activations and rotary positions."""

import math
from typing import Any

from jaxrl4lm.models.config import Rope

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
# The fields of a `Rope` that each kind reads, and their names in the file.
STRETCHES: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "original_context": "original_max_position_embeddings",
        "low_frequency": "low_freq_factor",
        "high_frequency": "high_freq_factor",
    },
    "yarn": {
        "factor": "factor",
        "original_context": "original_max_position_embeddings",
        "beta_slow": "beta_slow",
        "beta_fast": "beta_fast",
        "attention_factor": "attention_factor",
        "truncate": "truncate",
    },
    "longrope": {
        "factor": "factor",
        "original_context": "original_max_position_embeddings",
        "attention_factor": "attention_factor",
        "short_factors": "short_factor",
        "long_factors": "long_factor",
    },
}
SLIDING, FULL = "sliding_attention", "full_attention"


def read_activation(name: str) -> str:
    """Our name of an activation; raises ValueError if it is not known."""
    if name not in ACTIVATIONS:
        raise ValueError(f"the activation {name!r} is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def read_rope(hf: Json, theta: float) -> tuple[Rope, float]:
    """Rotary positions from either format, and the fraction of channels that rotate; `theta` is the default
    base."""
    older = {"rope_theta": hf.get("rope_theta", theta), **(hf.get("rope_scaling") or {})}
    p = hf.get("rope_parameters") or older
    kind = p.get("rope_type", p.get("type", "default"))
    if kind not in STRETCHES:
        raise ValueError(f"the rope type {kind!r} is not one of {', '.join(STRETCHES)}")
    name = "original_max_position_embeddings"
    context = {name: hf.get(name, hf.get("max_position_embeddings"))}
    given = {k: v for k, v in {**context, **p}.items() if v is not None}
    if kind == "longrope":
        missing = {"short_factor", "long_factor", name, "max_position_embeddings"} - {*given, *hf}
        if missing:
            raise ValueError(f"the rope type 'longrope' needs {', '.join(sorted(missing))}")
        given.setdefault("factor", hf["max_position_embeddings"] / given[name])
    if kind in ("linear", "llama3", "yarn") and "factor" not in given:
        raise ValueError(f"the rope type {kind!r} needs a factor")
    if kind == "yarn" and given.get("mscale") and given.get("mscale_all_dim"):
        given.setdefault("attention_factor", _mscale(given, "mscale") / _mscale(given, "mscale_all_dim"))
    stretch: Json = {ours: given[name] for ours, name in STRETCHES[kind].items() if name in given}
    stretch |= {ours: tuple(x) for ours, x in stretch.items() if isinstance(x, list)}
    rope = Rope(float(p.get("rope_theta", theta)), kind, **stretch)
    return rope, p.get("partial_rotary_factor", hf.get("partial_rotary_factor", 1.0))


def _mscale(given: Json, name: str) -> float:
    """YaRN's factor of attention as DeepSeek's files give it, by two weights of its logarithm."""
    return 1 + 0.1 * given[name] * math.log(max(given["factor"], 1))


def write_rope(rope: Rope) -> Json | None:
    """`rope_scaling`, in the format of transformers 4."""
    if rope.kind == "default":
        return None
    given = {name: getattr(rope, ours) for ours, name in STRETCHES[rope.kind].items()}
    given = {k: list(v) if isinstance(v, tuple) else v for k, v in given.items() if v is not None}
    return {"rope_type": rope.kind, **given}
