"""Hugging Face `config.json` to `TransformerConfig` and back, one reader and one writer a `model_type`.

Both configuration formats are read: that of transformers 4 (`rope_theta`, `rope_scaling`) and that of 5
(`rope_parameters`). The older is written, which both read.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from jaxrl4lm.models import decoder_families as decoders
from jaxrl4lm.models import encoder_families as encoders
from jaxrl4lm.models import tensor_names
from jaxrl4lm.models.config import TransformerConfig
from jaxrl4lm.models.config_values import Json
from jaxrl4lm.models.tensor_files import CheckpointError


class Family(NamedTuple):
    """One `model_type`."""

    architecture: str
    """The class of transformers that runs it. An encoder's writer may name another, without logits."""
    table: tuple[list[tensor_names.TensorRow], list[tensor_names.TensorRow]]
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
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise CheckpointError(f"{where}: model_type {model_type!r} is not one of {', '.join(FAMILIES)}")
    try:
        return TransformerConfig(**FAMILIES[model_type].read(hf), family=model_type)
    except KeyError as error:
        raise CheckpointError(
            f"{where}: the key {error} is missing, which model_type {model_type!r} needs"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{where}: a value is not of the kind that it should be ({error}): mend it"
        ) from error


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
        try:
            meant = TransformerConfig(**family.read(hf))
        except ValueError:  # what another family's file cannot say
            continue
        if _fills(meant) == _fills(dataclasses.replace(config, **running)):
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
    rope["rope_theta"] = None if config.rope_theta is None else 1.0
    scale = {
        "attention_scale": config.channels**-0.5 if config.attention_scale is None else config.attention_scale
    }
    context = {} if config.rope_theta is None else {"context": 1}  # a table's size, or only a hint
    return dataclasses.replace(config, **plain, **biases, **rope, **scale, **context)


LLAMA, SANDWICH = tensor_names.llama(), tensor_names.llama(norm_after=True)
FAMILIES: dict[str, Family] = {
    "gpt2": Family("GPT2LMHeadModel", tensor_names.gpt2(), decoders.read_gpt2, decoders.write_gpt2),
    "llama": Family("LlamaForCausalLM", LLAMA, decoders.read_llama, decoders.write_llama),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM", tensor_names.gpt_neox(), decoders.read_gpt_neox, decoders.write_gpt_neox
    ),
    "mistral": Family("MistralForCausalLM", LLAMA, decoders.read_mistral, decoders.write_mistral),
    "qwen2": Family("Qwen2ForCausalLM", LLAMA, decoders.read_qwen2, decoders.write_llama),
    "qwen3": Family("Qwen3ForCausalLM", LLAMA, decoders.read_qwen3, decoders.write_llama),
    "gemma": Family("GemmaForCausalLM", LLAMA, decoders.read_gemma, decoders.write_gemma),
    "gemma2": Family("Gemma2ForCausalLM", SANDWICH, decoders.read_gemma2, decoders.write_gemma),
    "gemma3_text": Family("Gemma3ForCausalLM", SANDWICH, decoders.read_gemma3, decoders.write_gemma3),
    "smollm3": Family("SmolLM3ForCausalLM", LLAMA, decoders.read_smollm3, decoders.write_smollm3),
    "phi3": Family(
        "Phi3ForCausalLM", tensor_names.llama(fused=True), decoders.read_phi3, decoders.write_phi3
    ),
    "olmo2": Family("Olmo2ForCausalLM", SANDWICH, decoders.read_olmo2, decoders.write_llama),
    "bert": Family("BertForMaskedLM", tensor_names.bert(), encoders.read_bert, encoders.write_bert),
    "roberta": Family(
        "RobertaForMaskedLM", tensor_names.bert("roberta"), encoders.read_roberta, encoders.write_roberta
    ),
    "distilbert": Family(
        "DistilBertForMaskedLM",
        tensor_names.distilbert(),
        encoders.read_distilbert,
        encoders.write_distilbert,
    ),
    "modernbert": Family(
        "ModernBertForMaskedLM",
        tensor_names.modernbert(),
        encoders.read_modernbert,
        encoders.write_modernbert,
    ),
}
