"""Hugging Face folders in and out: `config.json`, `model.safetensors`, `tokenizer.json`."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxrl4lm.data.files import read_object
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxrl4lm.data.tokenizer import Tokenizer
from jaxrl4lm.models import tensor_names
from jaxrl4lm.models.config import TransformerConfig
from jaxrl4lm.models.families import FAMILIES, read_config, write_config
from jaxrl4lm.models.policy import LanguagePolicy
from jaxrl4lm.models.tensor_files import (
    CheckpointError,
    Tensor,
    find_tensors_file,
    is_finite,
    read_tensors,
    release,
    write_tensors,
)
from jaxrl4lm.types import Params

Placement = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
VALUE_HEAD = "value_head"
HEADED = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
"""Endings of the architectures that have a task head in place of the unembedding."""
UNEMBEDDINGS = {
    "lm_head.weight",
    "embed_out.weight",
    "cls.predictions.decoder.weight",
    "lm_head.decoder.weight",
    "vocab_projector.weight",
    "decoder.weight",
}
"""Names of what a tied model keeps, if at all, as a copy of its embedding."""
TWICE = (
    ("cls.predictions.bias", "cls.predictions.decoder.bias"),
    ("lm_head.bias", "lm_head.decoder.bias"),
)
"""Two names of one tensor. Where a file has two tensors, the second is what transformers reads."""
OLDER = ((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias"))
"""Endings of names in old checkpoints, and what they are now."""
IGNORED = (
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    ".rotary_emb.inv_freq",
    "embeddings.position_ids",
    "cls.seq_relationship.weight",
    "cls.seq_relationship.bias",
    "pooler.dense.weight",
    "pooler.dense.bias",
)
"""Endings of tensors that checkpoints carry and nothing reads: masks, frequencies, and what an encoder's pretraining had
beside its logits."""


def load(
    folder: str | os.PathLike,
    *,
    dtype: DTypeLike = jnp.float32,
    compute_dtype: DTypeLike | None = None,
    sharding: Placement | None = None,
) -> tuple[LanguagePolicy, Params, HuggingFaceTokenizer | None]:
    """A policy, its parameters and its tokenizer (None where there is no `tokenizer.json`) from a model's
    folder.

    Tensors are read through a memory map, one leaf at a time. The value head is 0, unless `save` wrote one.

    Args:
      folder: with `config.json` and `model.safetensors` (or shards and their index).
      dtype: of the parameters.
      compute_dtype: of the matrix products. None: as the parameters.
      sharding: of a leaf, by its path (keys of the tree joined by `/`) and its shape, as `models.place(mesh)`
        gives it. None: the default device.
    Raises:
      CheckpointError: if the `model_type` is not supported, or a tensor is missing, left over or of the
        wrong shape or not finite, or a file is damaged.
      InputError: if `config.json` or a file of the tokenizer is damaged.
    """
    folder = pathlib.Path(folder)
    hf = read_hf_config(folder)
    if (architecture := read_architecture(hf)).endswith(HEADED):
        raise CheckpointError(
            f"{folder} holds a {architecture}, which has a task head and no logits: use models.load_with_head"
        )
    policy = LanguagePolicy(_computing(read_config(hf, str(folder / "config.json")), dtype, compute_dtype))
    params = place_leaves(read_leaves(folder, policy, read_tensors(folder)), dtype, sharding)
    return policy, params, read_tokenizer(folder)


def read_hf_config(folder: pathlib.Path) -> dict:
    """`config.json`."""
    path = folder / "config.json"
    if not path.exists():
        raise CheckpointError(f"{path} is missing: name the folder of a Hugging Face model")
    return read_object(path)


def read_architecture(hf: dict) -> str:
    """The class of transformers that wrote a folder, "" where `config.json` names none."""
    named = hf.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


def read_tokenizer(folder: pathlib.Path) -> HuggingFaceTokenizer | None:
    """The folder's tokenizer, None where it has none."""
    return HuggingFaceTokenizer.load(folder) if (folder / "tokenizer.json").exists() else None


def _computing(
    config: TransformerConfig, dtype: DTypeLike, compute_dtype: DTypeLike | None
) -> TransformerConfig:
    return dataclasses.replace(config, dtype=jnp.dtype(compute_dtype or dtype).name)


Leaves = dict[str, Callable[[], np.ndarray]]
"""Arrays by their path, each read when its turn comes."""


def place_leaves(leaves: Leaves, dtype: DTypeLike, sharding: Placement | None) -> Params:
    """The tree of these arrays, one after another put where it belongs, in that type.

    No more than one of them is held besides what is placed: each is waited for, then its file's pages are let go.
    """
    dtype = jnp.dtype(dtype)

    def place(path: str, read: Callable[[], np.ndarray]) -> jax.Array:
        array = read()
        cast = array if array.dtype == dtype else array.astype(dtype)
        # A copy always: the parameters must outlive the file.
        placed = jax.device_put(
            cast, None if sharding is None else sharding(path, array.shape), may_alias=False
        )
        placed.block_until_ready()
        release(array)
        return placed

    return nest({path: place(path, read) for path, read in leaves.items()})


def read_leaves(folder: pathlib.Path, policy: LanguagePolicy, tensors: dict[str, np.ndarray]) -> Leaves:
    """Every parameter by its path, from the folder's tensors; raises if they and the configuration disagree."""
    rows, shapes = rows_of(policy), _shapes(policy)
    prefix = rows[0].name.split(".")[0] + "."
    # Saved without the head around it, or, under a head for spans, by another name.
    first = rows[0].name.removeprefix(prefix)
    own = next((other for other in (prefix, "transformer.", "") if other + first in tensors), prefix)
    rows = [
        row._replace(name=own + row.name[len(prefix) :]) if row.name.startswith(prefix) else row
        for row in rows
    ]
    tensors = {_rename(n): t for n, t in tensors.items() if not n.endswith(IGNORED)}
    for one, other in TWICE:
        known = tensors.get(other, tensors.get(one))
        if known is not None:
            tensors = {one: known, other: known, **tensors}
    file = find_tensors_file(folder)
    if policy.config.tied:
        embedding = next((tensors.get(row.name) for row in rows if row.leaves == ("embedding",)), None)
        for name in UNEMBEDDINGS & set(tensors):
            if embedding is not None and not _equal(tensors[name], embedding):
                raise CheckpointError(
                    f"{file}: the tensor {name} is not the embedding, which config.json calls for: set its "
                    "tie_word_embeddings to false"
                )
            del tensors[name]
    leaves = {}
    for row in rows:
        tensor = tensors.pop(row.name, None)
        if tensor is None:
            raise CheckpointError(f"{file}: the tensor {row.name} is missing, which config.json calls for")
        expected = row.shape([shapes[leaf] for leaf in row.leaves])
        if tensor.shape != expected:
            raise CheckpointError(
                f"{file}: the tensor {row.name} has shape {tensor.shape}, config.json means {expected}"
            )
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise CheckpointError(f"{file}: the tensor {row.name} holds {tensor.dtype}, not floats")
        widths = [shapes[leaf][-1] for leaf in row.leaves]
        for i, leaf in enumerate(row.leaves):
            leaves[leaf] = partial(_read_part, file, row, i, tensor, widths, policy.config.channels)
    if tensors:
        raise CheckpointError(
            f"{file}: {len(tensors)} tensors are left over, which a {policy.config.family} model "
            f"does not have; the first is {min(tensors)}"
        )
    leaves[VALUE_HEAD] = partial(_read_value_head, folder / f"{VALUE_HEAD}.npy", shapes[VALUE_HEAD])
    return leaves


def _rename(name: str) -> str:
    """The name by which a tensor is looked for."""
    for old, new in OLDER:
        name = name.replace(old, new)
    return name


def _read_part(
    file: pathlib.Path,
    row: tensor_names.TensorRow,
    i: int,
    tensor: np.ndarray,
    widths: list[int],
    channels: int,
) -> np.ndarray:
    """The i-th of the leaves that a tensor holds. A copy lets go of what it was made from."""
    if i == 0 and not is_finite(tensor):
        raise CheckpointError(
            f"{file}: the tensor {row.name} holds nan or an infinity: the file is damaged, or its training diverged"
        )
    part = row.part(i, tensor, widths, channels)
    if not np.may_share_memory(part, tensor):
        release(tensor)
    return part


def _read_value_head(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray:
    if not path.exists():
        return np.zeros(shape, np.float32)
    try:
        head = np.load(path)
    except (ValueError, EOFError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}): replace it, or delete it for a value head of 0"
        ) from error
    if not np.issubdtype(head.dtype, np.floating):
        raise CheckpointError(f"{path} holds {head.dtype}, not floats: delete it for a value head of 0")
    if not np.isfinite(head).all():
        raise CheckpointError(f"{path} holds nan or an infinity: delete it for a value head of 0")
    if head.shape != shape:
        raise CheckpointError(
            f"{path} has shape {head.shape}, config.json means {shape}: it is of another model"
        )
    return head


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    same = a.shape == b.shape and a.dtype == b.dtype and bool((a.view(np.uint8) == b.view(np.uint8)).all())
    release(a)
    release(b)
    return same


def save(
    folder: str | os.PathLike,
    policy: LanguagePolicy,
    params: Params,
    tokenizer: Tokenizer | None = None,
    *,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a folder that `load` and transformers (4 and 5) open, in the parameters' own dtype.

    A value head that is not 0 goes beside the model, to `value_head.npy`, where other programs do not look.

    Args:
      tokenizer: written as `tokenizer.json`. None: none is.
      shard_bytes: the most that one file of tensors holds.
    Raises:
      CheckpointError: if no `model_type` expresses the configuration.
    """
    folder = pathlib.Path(folder)
    hf = write_config(policy.config)
    tensors = list_tensors(policy, params)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder, tensors, shard_bytes=shard_bytes)
    write_around(folder, hf, params, tokenizer)


def list_tensors(policy: LanguagePolicy, params: Params) -> dict[str, Tensor]:
    """The checkpoint's tensors, each made when its turn comes; raises if the parameters are not the policy's."""
    policy = LanguagePolicy(
        dataclasses.replace(policy.config, family=write_config(policy.config)["model_type"])
    )
    leaves, shapes = flatten(params), _shapes(policy)
    if {path: x.shape for path, x in leaves.items()} != shapes:
        wrong = min(set(shapes) ^ set(leaves) or {p for p in shapes if shapes[p] != leaves[p].shape})
        raise CheckpointError(
            f"the parameter {wrong} is not as the configuration says: merge adapters before saving"
        )
    tensors = {}
    for row in rows_of(policy):
        shape, dtype = row.shape([shapes[leaf] for leaf in row.leaves]), np.dtype(leaves[row.leaves[0]].dtype)
        tensors[row.name] = Tensor(
            shape, dtype, lambda row=row: row.join(_host(leaves, row), policy.config.channels)
        )
    return tensors


def write_around(folder: pathlib.Path, hf: dict, params: Params, tokenizer: Tokenizer | None) -> None:
    """What stands beside the tensors: configuration, tokenizer, value head."""
    ids: dict[str, int | list[int] | None] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    generation = None
    if tokenizer is not None:
        text = HuggingFaceTokenizer.of(tokenizer)
        text.save(folder)
        generation = text.describe_generation()
        ends = list(text.eos_ids) if len(text.eos_ids) > 1 else text.eos_id
        pad_id = text.special_id("pad_token")
        # A tokenizer may have more tokens than the model: transformers would refuse such an id.
        pad_id = None if (pad_id or 0) >= hf["vocab_size"] else pad_id
        ids = {"bos_token_id": text.special_id("bos_token"), "eos_token_id": ends, "pad_token_id": pad_id}
    path = folder / "generation_config.json"
    if generation is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text(json.dumps(generation, indent=2))
    # Both spellings: transformers 4 reads torch_dtype, 5 reads dtype.
    name = np.dtype(params["embedding"].dtype).name
    (folder / "config.json").write_text(
        json.dumps({**ids, **hf, "dtype": name, "torch_dtype": name}, indent=2)
    )
    head = folder / f"{VALUE_HEAD}.npy"
    head.unlink(missing_ok=True)
    value_head = np.asarray(params[VALUE_HEAD], np.float32)
    if value_head.any():
        np.save(head, value_head)


def _host(leaves: dict[str, jax.Array], row: tensor_names.TensorRow) -> list[np.ndarray]:
    return [np.asarray(leaves[leaf]) for leaf in row.leaves]


def _shapes(policy: LanguagePolicy) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by its path."""
    return {path: x.shape for path, x in flatten(jax.eval_shape(policy.init, jax.random.key(0))).items()}


def rows_of(policy: LanguagePolicy) -> list[tensor_names.TensorRow]:
    """The tensors of the policy's family and the parameters that each holds."""
    family = policy.config.family or write_config(policy.config)["model_type"]
    paths = set(_shapes(policy))
    rows = tensor_names.list_rows(FAMILIES[family].table, policy.config.layers, paths)
    placed = {leaf for row in rows for leaf in row.leaves} | {VALUE_HEAD}
    assert placed == paths, f"no name for {placed ^ paths}"
    return rows


def flatten(params: Params) -> dict[str, jax.Array]:
    """Leaves by their path, the keys of the tree joined by `/`."""
    flat = jax.tree.leaves_with_path(params)
    return {"/".join(key.key for key in path): leaf for path, leaf in flat}


def nest(leaves: dict[str, jax.Array]) -> Params:
    """The tree whose `flatten` this is."""
    tree: dict = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree
