"""Hugging Face folders of models with a task head in place of logits, in and out."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxrl4lm.data.tokenizer import Tokenizer
from jaxrl4lm.models.families import FAMILIES, read_config, write_config
from jaxrl4lm.models.heads import Head
from jaxrl4lm.models.huggingface import (
    HEADED,
    Placement,
    list_tensors,
    place_leaves,
    read_hf_config,
    read_leaves,
    read_tokenizer,
    write_around,
)
from jaxrl4lm.models.policy import LanguagePolicy
from jaxrl4lm.models.tensor_files import CheckpointError, Tensor, read_tensors, write_tensors
from jaxrl4lm.types import Params

Kind = Literal["sequence", "token", "span"]
ARCHITECTURES: dict[Kind, str] = dict(zip(("sequence", "token", "span"), HEADED, strict=True))
NAMES = ("score", "classifier", "qa_outputs")
"""What transformers calls the head: `score`, but `classifier` of tokens in its older families."""
OLDER = ("gpt2", "gpt_neox")
HEADLESS: dict[Kind, tuple[str, ...]] = {
    "sequence": (),
    "token": ("gemma3_text", "olmo2"),
    "span": ("gemma", "gemma2", "gemma3_text", "phi3", "olmo2"),
}
"""The families for which transformers has no such model."""
RENAMED = ("llama", "qwen2", "qwen3", "smollm3")
"""Families whose backbone is called `transformer` under a head for spans."""


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
    config = read_config(read_hf_config(folder), str(folder / "config.json"))
    policy = LanguagePolicy(dataclasses.replace(config, tied=True, dtype=jnp.dtype(dtype).name))
    tensors = read_tensors(folder)
    name = next((name for name in NAMES if f"{name}.weight" in tensors), None)
    if name is None:
        raise CheckpointError(f"{folder} has no task head ({', '.join(NAMES)}): use models.load")
    kernel = np.array(tensors.pop(f"{name}.weight"), np.float32).T
    bias = np.array(tensors.pop(f"{name}.bias", np.zeros(kernel.shape[1])), np.float32)
    if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
        raise CheckpointError(f"{folder}: the head {name} holds nan or an infinity: the file is damaged")
    params = place_leaves(read_leaves(folder, policy, tensors), dtype, sharding)
    return policy, params, Head(jnp.asarray(kernel), jnp.asarray(bias)), read_tokenizer(folder)


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
      CheckpointError: if transformers has no such model of the family, or the head has a bias where it has none.
    """
    folder = pathlib.Path(folder)
    hf = write_config(policy.config)
    model_type, outputs = hf["model_type"], head.kernel.shape[1]
    stem = FAMILIES[model_type].architecture.removesuffix("LMHeadModel").removesuffix("ForCausalLM")
    stem = "Gemma3Text" if model_type == "gemma3_text" else stem
    if model_type in HEADLESS[kind]:
        raise CheckpointError(f"transformers has no {stem}{ARCHITECTURES[kind]}: save the head by itself")
    biased = kind != "sequence"
    if not biased and np.asarray(head.bias).any():
        raise CheckpointError(f"the head of a {stem}{ARCHITECTURES[kind]} has no bias: train it with bias 0")
    if labels and len(labels) != outputs:
        raise CheckpointError(f"{len(labels)} labels for the {outputs} outputs of the head: give one each")
    names = [*labels] or [f"LABEL_{i}" for i in range(outputs)]
    hf |= {
        "architectures": [stem + ARCHITECTURES[kind]],
        "id2label": {str(i): x for i, x in enumerate(names)},
    }
    hf["label2id"] = {x: i for i, x in enumerate(names)}
    tensors = list_tensors(policy, params)
    tensors = {n: t for n, t in tensors.items() if n not in ("lm_head.weight", "embed_out.weight")}
    if kind == "span" and model_type in RENAMED:
        tensors = {n.replace("model.", "transformer.", 1): t for n, t in tensors.items()}
    name = (
        "qa_outputs"
        if kind == "span"
        else "classifier"
        if kind == "token" and model_type in OLDER
        else "score"
    )
    dtype = np.dtype(params["embedding"].dtype)
    parts = {"weight": np.asarray(head.kernel).T} | ({"bias": np.asarray(head.bias)} if biased else {})
    for part, x in parts.items():
        tensors[f"{name}.{part}"] = Tensor(x.shape, dtype, lambda x=x: x.astype(dtype))
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder, tensors)
    write_around(folder, hf, params, tokenizer)
