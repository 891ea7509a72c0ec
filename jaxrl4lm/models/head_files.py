"""Hugging Face folders of models with a task head in place of logits, in and out."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxrl4lm.data.tokenizer import Tokenizer
from jaxrl4lm.models.config_values import ACTIVATION_NAMES, Json, read_activation
from jaxrl4lm.models.families import FAMILIES, read_config, write_config
from jaxrl4lm.models.heads import Head, Pooler, init_head
from jaxrl4lm.models.huggingface import (
    HEADED,
    Placement,
    list_tensors,
    load,
    place_leaves,
    read_architecture,
    read_hf_config,
    read_leaves,
    read_tokenizer,
    write_around,
)
from jaxrl4lm.models.policy import LanguagePolicy
from jaxrl4lm.models.tensor_files import CheckpointError, Tensor, read_tensors, write_tensors
from jaxrl4lm.types import Key, Params

Kind = Literal["sequence", "token", "span"]
ARCHITECTURES: dict[Kind, str] = dict(zip(("sequence", "token", "span"), HEADED, strict=True))
NAMES = ("score", "classifier", "qa_outputs")
"""What transformers calls the head: `score`, but `classifier` of tokens in its older families, and of encoders."""
OLDER = ("gpt2", "gpt_neox")
HEADLESS: dict[Kind, tuple[str, ...]] = {
    "sequence": (),
    "token": ("gemma3_text", "olmo2"),
    "span": ("gemma", "gemma2", "gemma3_text", "phi3", "olmo2"),
}
"""The families for which transformers has no such model."""
RENAMED = ("llama", "qwen2", "qwen3", "smollm3")
"""Families whose backbone is called `transformer` under a head for spans."""
READOUT = ("unembedding", "unembedding_bias", "readout", "readout_norm")
"""Parameters that make logits, which a model with a head lacks."""


class Form(NamedTuple):
    """How transformers builds the head of a family for a kind of task, and what it calls the parts."""

    output: str
    biased: bool = True
    dense: str | None = None
    """The pooler's dense layer; None: there is no pooler."""
    activation: str = "tanh"
    norm: str | None = None
    reads: Literal["first", "mean"] = "first"


POOLED = {
    "bert": Form("classifier", dense="bert.pooler.dense"),
    "roberta": Form("classifier.out_proj", dense="classifier.dense"),
    "distilbert": Form("classifier", dense="pre_classifier", activation="relu"),
}
"""Encoders that have a pooler for sequences alone."""


def find_form(hf: Json, kind: Kind) -> Form:
    """The head that transformers' model of this `config.json` has for that kind of task."""
    model_type = hf["model_type"]
    if model_type == "modernbert":
        reads = "mean" if hf.get("classifier_pooling") == "mean" else "first"
        activation = read_activation(hf.get("classifier_activation", "gelu"))
        return Form("classifier", True, "head.dense", activation, "head.norm", reads)
    if kind == "sequence" and model_type in POOLED:
        return POOLED[model_type]
    if kind == "span":
        return Form("qa_outputs")
    older = model_type in (*POOLED, *OLDER)
    return Form("classifier" if kind == "token" and older else "score", biased=kind == "token")


def new_head(key: Key, policy: LanguagePolicy, kind: Kind, outputs: int) -> Head:
    """A random head as transformers' model of the policy's family has it, with its pooler."""
    c, hf = policy.config, write_config(policy.config)
    form, (output_key, pooler_key) = find_form(hf, kind), jax.random.split(key)
    head = init_head(output_key, c.width, outputs)
    if form.dense is None:
        return head if form.biased else head._replace(bias=None)
    zeros, normed = jnp.zeros(c.width), form.norm is not None
    pooler = Pooler(
        kernel=jax.random.normal(pooler_key, (c.width, c.width)) * c.width**-0.5,
        bias=zeros if hf.get("classifier_bias", True) else None,
        scale=jnp.ones(c.width) if normed else None,
        shift=zeros if normed and c.norm_bias else None,
        reads=form.reads,
        activation=form.activation,
        norm_eps=c.norm_eps,
    )
    return head._replace(pooler=pooler)


def load_with_head(
    folder: str | os.PathLike, *, dtype: DTypeLike = jnp.float32, sharding: Placement | None = None
) -> tuple[LanguagePolicy, Params, Head, HuggingFaceTokenizer | None]:
    """The backbone, its parameters, the float32 head and the tokenizer of a folder that a model of transformers wrote:
    `*ForSequenceClassification` (reward models too), `*ForTokenClassification` or `*ForQuestionAnswering`.

    Read the head with `sequence_outputs`, `token_outputs` or `span_outputs` from `policy.hidden`. Such a model has
    no unembedding: its logits mean nothing.

    Args:
      folder, dtype, sharding: as for `load`.
    Raises:
      CheckpointError: as `load`, and if there is no head.
    """
    folder = pathlib.Path(folder)
    hf = read_hf_config(folder)
    config = read_config(hf, str(folder / "config.json"))
    policy = LanguagePolicy(dataclasses.replace(config, tied=True, dtype=jnp.dtype(dtype).name))
    tensors, architecture = read_tensors(folder), read_architecture(hf)
    kinds: list[Kind] = [kind for kind, ending in ARCHITECTURES.items() if architecture.endswith(ending)]
    kind: Kind = kinds[0] if kinds else "sequence"
    form = find_form(hf, kind)
    name = next((name for name in (form.output, *NAMES) if f"{name}.weight" in tensors), None)
    if name is None:
        raise CheckpointError(
            f"{folder} has no task head ({', '.join(NAMES)}): it is no reward model and no "
            "classifier (jaxrl4lm reward and head train such); models.load reads it"
        )

    def take(name: str, part: str) -> Any:
        tensor = tensors.pop(f"{name}.{part}", None)
        if tensor is None:
            return None
        if not np.isfinite(np.asarray(tensor, np.float32)).all():
            raise CheckpointError(f"{folder}: the head {name} holds nan or an infinity: the file is damaged")
        return jnp.asarray(np.array(tensor, np.float32).T)

    kernel, bias = take(name, "weight"), take(name, "bias")
    head = Head(kernel, jnp.zeros(kernel.shape[1]) if bias is None else bias)
    if form.dense is not None:
        if f"{form.dense}.weight" not in tensors:
            raise CheckpointError(f"{folder}: the tensor {form.dense}.weight of the head is missing")
        norm = form.norm or ""
        parts = take(form.dense, "weight"), take(form.dense, "bias"), take(norm, "weight"), take(norm, "bias")
        head = head._replace(pooler=Pooler(*parts, form.reads, form.activation, config.norm_eps))
    params = place_leaves(read_leaves(folder, policy, tensors), dtype, sharding)
    return policy, params, head, read_tokenizer(folder)


def load_backbone(
    folder: str | os.PathLike, *, dtype: DTypeLike = jnp.float32, compute_dtype: DTypeLike | None = None
) -> tuple[LanguagePolicy, Params, HuggingFaceTokenizer | None]:
    """What makes hidden states in any folder: that of a language model, of an encoder, or of a model with a task head, which
    is left out.

    Args:
      folder, dtype, compute_dtype: as for `load`.
    Raises:
      CheckpointError: as `load`.
    """
    if read_architecture(read_hf_config(pathlib.Path(folder))).endswith(HEADED):
        policy, params, _, tokenizer = load_with_head(folder, dtype=dtype)
        config = dataclasses.replace(policy.config, dtype=jnp.dtype(compute_dtype or dtype).name)
        return dataclasses.replace(policy, config=config), params, tokenizer
    policy, params, tokenizer = load(folder, dtype=dtype, compute_dtype=compute_dtype)
    return *_drop_logits(policy, params), tokenizer


def _drop_logits(policy: LanguagePolicy, params: Params) -> tuple[LanguagePolicy, Params]:
    """The model without what makes logits."""
    readout = "linear" if policy.config.causal else "none"
    config = dataclasses.replace(policy.config, tied=True, readout=readout)
    kept = {name: x for name, x in params.items() if name not in READOUT}
    return dataclasses.replace(policy, config=config), kept


def save_with_head(
    folder: str | os.PathLike,
    policy: LanguagePolicy,
    params: Params,
    head: Head,
    kind: Kind,
    tokenizer: Tokenizer | None = None,
    *,
    labels: Sequence[str] = (),
) -> None:
    """Writes a folder that transformers opens as its model for that kind of task, with the same outputs.

    Args:
      labels: names of the outputs. None given: LABEL_0, LABEL_1 ...
    Raises:
      CheckpointError: if transformers has no such model of the family, or its head has no such parts.
    """
    folder = pathlib.Path(folder)
    policy, params = _drop_logits(policy, params)
    hf = write_config(policy.config)
    form = check_head(hf, head, kind)
    outputs = head.kernel.shape[1]
    if labels and len(labels) != outputs:
        raise CheckpointError(f"{len(labels)} labels for the {outputs} outputs of the head: give one each")
    names = [*labels] or [f"LABEL_{i}" for i in range(outputs)]
    hf |= {
        "architectures": [_stem(hf["model_type"]) + ARCHITECTURES[kind]],
        "id2label": {str(i): x for i, x in enumerate(names)},
    }
    hf["label2id"] = {x: i for i, x in enumerate(names)}
    if hf["model_type"] == "modernbert" and head.pooler is not None:
        pooling = {"first": "cls", "mean": "mean"}[head.pooler.reads]
        activation = ACTIVATION_NAMES[head.pooler.activation]
        biased = head.pooler.bias is not None
        hf |= {"classifier_pooling": pooling, "classifier_activation": activation, "classifier_bias": biased}
    tensors = list_tensors(policy, params)
    if kind == "span" and hf["model_type"] in RENAMED:
        tensors = {n.replace("model.", "transformer.", 1): t for n, t in tensors.items()}
    dtype = np.dtype(params["embedding"].dtype)
    parts = {f"{form.output}.weight": head.kernel, f"{form.output}.bias": head.bias if form.biased else None}
    if head.pooler is not None:
        parts |= {f"{form.dense}.weight": head.pooler.kernel, f"{form.dense}.bias": head.pooler.bias}
        parts |= {f"{form.norm}.weight": head.pooler.scale, f"{form.norm}.bias": head.pooler.shift}
    for name, x in parts.items():
        if x is not None:
            x = np.asarray(x).T
            tensors[name] = Tensor(x.shape, dtype, lambda x=x: x.astype(dtype))
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder, tensors)
    write_around(folder, hf, params, tokenizer)


def check_head(hf: Json, head: Head, kind: Kind) -> Form:
    """The form in which a head of that kind is saved; raises CheckpointError where transformers has no such head."""
    model_type, form = hf["model_type"], find_form(hf, kind)
    model = f"{_stem(model_type)}{ARCHITECTURES[kind]}"
    if model_type in HEADLESS[kind]:
        raise CheckpointError(f"transformers has no {model}: save the head by itself")
    if not form.biased and head.bias is not None and np.asarray(head.bias).any():
        raise CheckpointError(f"the head of a {model} has no bias: train it with bias 0")
    if (form.dense is None) != (head.pooler is None):
        raise CheckpointError(
            f"the head of a {model} has {'no' if form.dense is None else 'a'} pooler: make it by models.new_head"
        )
    return form


def _stem(model_type: str) -> str:
    """What the names of a family's classes begin with."""
    if model_type == "gemma3_text":
        return "Gemma3Text"
    name = FAMILIES[model_type].architecture
    return name.removesuffix("LMHeadModel").removesuffix("ForCausalLM").removesuffix("ForMaskedLM")
