"""Low-rank adapters: kernels become W + (α / r) A B, where A and B are trained and W is frozen.

Adapters are a tree of their own. Train them with `attach`, which computes x W and (x A) B apart. Sample and export with
`merge`, which costs nothing at run time. The frozen model is the reference policy.

Reference: Hu et al. 2021, arXiv:2106.09685.

Shapes: `I` inputs, `O` outputs of a kernel, `r` rank.
"""

import json
import os
import pathlib
import re
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.data.files import read_object
from jaxrl4lm.models import tensor_names
from jaxrl4lm.models.huggingface import flatten, nest, rows_of
from jaxrl4lm.models.partitioning import Rule, match_paths
from jaxrl4lm.models.policy import LanguagePolicy
from jaxrl4lm.models.tensor_files import CheckpointError, Tensor, read_tensors, write_tensors
from jaxrl4lm.types import Key, Params, ScalarLike

EVERY_DENSE = match_paths(r"layer_\d+/(attention|mlp)/(query|key|value|output|up|gate|down)/kernel")
UNSUPPORTED = (
    *("use_dora", "modules_to_save", "trainable_token_indices"),
    *("layer_replication", "alora_invocation_tokens", "lora_bias"),
)
"""Options of PEFT that change what an adapter computes in other ways than by ranks, α and rsLoRA."""
REBASED = ("pissa", "olora", "corda", "loftq")
"""With an `init_lora_weights` that begins so, PEFT changes the frozen weights too."""
PREFIX, STEM = "base_model.model.", "adapter_model"


def init(key: Key, params: Params, rank: int, targets: Rule = EVERY_DENSE) -> Params:
    """New adapters: A `[I, r]` normal with variance 1 / r, B `[r, O]` zero, so that the model is unchanged at first.

    Args:
      rank: r.
      targets: which kernels get an adapter, by their path; by default those of all dense layers of the blocks.
    Raises:
      ValueError: if no kernel is targeted, or the rank is below 1.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, not {rank}")
    kernels = {path: x for path, x in flatten(params).items() if path.endswith("/kernel") and targets(path)}
    if not kernels:
        raise ValueError("no kernel is targeted: targets sees paths such as layer_0/attention/query/kernel")
    adapters = {}
    for subkey, (path, kernel) in zip(jax.random.split(key, len(kernels)), kernels.items(), strict=True):
        base = path.removesuffix("kernel")
        adapters[f"{base}lora_a"] = jax.random.normal(subkey, (kernel.shape[0], rank)) * rank**-0.5
        adapters[f"{base}lora_b"] = jnp.zeros((rank, kernel.shape[1]))
    return nest(adapters)


def match_targets(words: Sequence[str], policy: LanguagePolicy) -> Rule:
    """Which kernels get an adapter.

    Args:
      words: `all-linear`, for every dense layer of the blocks; names of layers, as we call them (`query`, `up`) or as the
        checkpoint of this model does (`q_proj`, or more of it: `attn.c_proj`); or regular expressions over paths
        (`layer_0/`).
    Raises:
      ValueError: if a word names no dense layer; it says which there are.
    """
    shapes = flatten(jax.eval_shape(policy.init, jax.random.key(0)))
    kernels = [path for path in shapes if EVERY_DENSE(path)]
    ours = {path.split("/")[-2] for path in kernels}
    theirs = {
        row.name.removesuffix(".weight"): row.leaves for row in rows_of(policy) if row.leaves[0] in kernels
    }
    chosen: set[str] = set()
    for word in words:
        if word == "all-linear":
            found = set(kernels)
        elif word in ours:
            found = {path for path in kernels if path.split("/")[-2] == word}
        else:
            ends = [leaves for name, leaves in theirs.items() if f".{name}".endswith(f".{word}")]
            found = {path for leaves in ends for path in leaves}
            found = found or {path for path in kernels if re.search(word, path)}
        if not found:
            names = sorted(ours | {name.rsplit(".", 1)[-1] for name in theirs})
            raise ValueError(
                f"{word!r} names no dense layer of this model: choose all-linear, {', '.join(names)}, "
                "or a pattern of paths such as layer_0/"
            )
        chosen |= found
    return chosen.__contains__


def attach(
    params: Params, adapters: Params, scale: ScalarLike, *, dropout: float = 0.0, key: Key | None = None
) -> Params:
    """Parameters whose dense layers compute x W + scale · (x A) B. Gradients flow to the adapters only.

    Args:
      scale: α / r.
      dropout: share of the inputs that each adapter leaves out, drawn anew for each call; the others are scaled up.
      key: of what is left out. None: nothing is.
    Raises:
      ValueError: if an adapter has no kernel here, or one of another shape.
    """
    _check_fit(params, adapters)
    frozen = jax.tree.map(jax.lax.stop_gradient, params)
    leaves = {p: x * scale if p.endswith("lora_b") else x for p, x in flatten(adapters).items()}
    if key is not None and dropout > 0:
        firsts = sorted(path for path in leaves if path.endswith("lora_a"))
        for subkey, path in zip(jax.random.split(key, len(firsts)), firsts, strict=True):
            base = path.removesuffix("lora_a")
            leaves |= {f"{base}lora_key": subkey, f"{base}lora_dropout": jnp.float32(dropout)}
    return nest({**flatten(frozen), **leaves})


def merge(params: Params, adapters: Params, scale: ScalarLike) -> Params:
    """Plain parameters, in which W + scale · A B replaces every adapted kernel. Raises as `attach` does."""
    _check_fit(params, adapters)
    leaves, low_rank = dict(flatten(params)), flatten(adapters)
    for path, a in low_rank.items():
        if path.endswith("lora_a"):
            base = path.removesuffix("lora_a")
            kernel = leaves[f"{base}kernel"]
            update = jnp.matmul(a, low_rank[f"{base}lora_b"]) * scale
            leaves[f"{base}kernel"] = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
    return nest(leaves)


def _check_fit(params: Params, adapters: Params) -> None:
    """Refuses adapters that belong to other parameters: `attach` would add leaves that nothing reads."""
    kernels, low_rank = flatten(params), flatten(adapters)
    for path, a in low_rank.items():
        if not path.endswith("lora_a"):
            continue
        base = path.removesuffix("lora_a")
        kernel, b = kernels.get(f"{base}kernel"), low_rank[f"{base}lora_b"]
        if kernel is None:
            raise ValueError(
                f"the parameters have no {base}kernel, which an adapter is for: it is of another model"
            )
        if (a.shape[-2], b.shape[-1]) != kernel.shape[-2:] or a.shape[-1] != b.shape[-2]:
            raise ValueError(
                f"the adapter of {base}kernel is {a.shape} x {b.shape}, the kernel {kernel.shape}: "
                "it is of another model"
            )


def save(
    folder: str | os.PathLike,
    policy: LanguagePolicy,
    adapters: Params,
    alpha: float,
    *,
    dropout: float = 0.0,
    base: str | None = None,
) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors` in PEFT's format.

    Some checkpoints keep several kernels in one tensor (GPT-2, GPT-NeoX, Phi-3). The adapters of these kernels become one:
    of the same rank if they have the same A; otherwise of the sum of their ranks, which `rank_pattern` then says. A kernel
    among them that has no adapter gets a B of 0.

    Args:
      alpha: α, where the adapters were trained with the scale α / r, and r is the rank of the first of them.
      dropout: with which they were trained.
      base: name or folder of the model that they adapt.
    """
    folder = pathlib.Path(folder)
    leaves, tensors = flatten(adapters), {}
    ranks, rank = {}, next(x for path, x in leaves.items() if path.endswith("lora_a")).shape[-1]
    rows = [
        row for row in rows_of(policy) if any(f"{_strip_kernel(leaf)}lora_a" in leaves for leaf in row.leaves)
    ]
    shapes = flatten(jax.eval_shape(policy.init, jax.random.key(0)))
    for row in rows:
        name = row.name.removesuffix(".weight")
        a, b = _join(row, leaves, [shapes[leaf].shape[-1] for leaf in row.leaves], policy.config.channels)
        ranks[name] = a.shape[-1]
        for theirs, array in (("lora_A", a.T), ("lora_B", b)):
            tensors[f"{PREFIX}{name}.{theirs}.weight"] = Tensor(array.shape, array.dtype, lambda x=array: x)
    others = {name: width for name, width in ranks.items() if width != rank}
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha}
    config |= {
        "target_modules": _name_targets(ranks, policy),
        "rank_pattern": others,
        "alpha_pattern": {name: alpha * width / rank for name, width in others.items()},
        "lora_dropout": dropout,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": any(row.layout == "as is" for row in rows),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder, tensors, STEM)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))


def _name_targets(names: Collection[str], policy: LanguagePolicy) -> list[str]:
    """What PEFT shall adapt: names of layers, or whole names where others that are called so are not adapted."""
    modules = [row.name.removesuffix(".weight") for row in rows_of(policy)]
    short = {name.rsplit(".", 1)[-1] for name in names}
    every = {name for name in modules if name.rsplit(".", 1)[-1] in short} <= set(names)
    return sorted(short if every else names)


def _strip_kernel(leaf: str) -> str:
    return leaf.removesuffix("kernel")


def _put_output_first(row: tensor_names.TensorRow) -> tensor_names.TensorRow:
    """The row with the layout of PEFT's B: `[out, in]`, whatever the layout of the kernel."""
    return row._replace(layout="transposed") if row.layout == "as is" else row


def _join(
    row: tensor_names.TensorRow, leaves: dict, widths: Sequence[int], channels: int
) -> tuple[np.ndarray, np.ndarray]:
    """A `[I, R]` and B `[O, R]` for one tensor of the checkpoint, from the adapters of its kernels.

    A kernel without an adapter has a B of 0.
    """
    pairs = [
        (leaves.get(f"{base}lora_a"), leaves.get(f"{base}lora_b")) for base in map(_strip_kernel, row.leaves)
    ]
    firsts = [np.asarray(a) for a, _ in pairs if a is not None]
    if all(a.shape == firsts[0].shape and (a == firsts[0]).all() for a in firsts):
        shared, rank = firsts[0], firsts[0].shape[1]
        starts = [0] * len(pairs)
    else:
        # Each kernel has its own part of the joint rank: the other rows of its B are 0.
        shared = np.concatenate(firsts, 1)
        rank = shared.shape[1]
        starts = np.cumsum([0, *(0 if a is None else a.shape[1] for a, _ in pairs)])[:-1]
    spread = [np.zeros((rank, width), firsts[0].dtype) for width in widths]
    for whole, (_, b), begin in zip(spread, pairs, starts, strict=True):
        if b is not None:
            whole[begin : begin + b.shape[0]] = b
    return shared, _put_output_first(row).join(spread, channels)


def load(folder: str | os.PathLike, policy: LanguagePolicy) -> tuple[Params, float]:
    """Adapters and their scale α / r from a folder in PEFT's format, for the policy of the base model.

    Raises:
      CheckpointError: if an option is used that is not supported (all but ranks, α and rsLoRA), or a tensor is missing,
        has the wrong shape, or has no place in the model.
    """
    folder = pathlib.Path(folder)
    config = read_object(folder / "adapter_config.json")
    for option in UNSUPPORTED:
        if config.get(option):
            raise CheckpointError(f"{folder}/adapter_config.json: {option} is not supported")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(REBASED):
        raise CheckpointError(
            f"{folder}/adapter_config.json: init_lora_weights {start!r} changes the base model's weights as well: let PEFT "
            "convert the adapter (path_initial_model_for_weight_conversion)"
        )
    if config.get("peft_type", "LORA") != "LORA" or not {"r", "lora_alpha"} <= set(config):
        raise CheckpointError(f"{folder}/adapter_config.json is not of a LoRA adapter with r and lora_alpha")
    tensors, adapters = read_tensors(folder, STEM), {}
    shapes = {path: x.shape for path, x in flatten(jax.eval_shape(policy.init, jax.random.key(0))).items()}
    scale = _read_scale(config)
    for row in rows_of(policy):
        name = row.name.removesuffix(".weight")
        if f"{PREFIX}{name}.lora_A.weight" not in tensors or not row.leaves[0].endswith("/kernel"):
            continue
        a = tensors.pop(f"{PREFIX}{name}.lora_A.weight").T
        b = tensors.pop(f"{PREFIX}{name}.lora_B.weight", None)
        widths = [shapes[leaf][-1] for leaf in row.leaves]
        expected = (shapes[row.leaves[0]][0], a.shape[1]), (sum(widths), a.shape[1])
        if a.shape[1] != _read_option(config, "rank_pattern", "r", name):
            raise CheckpointError(
                f"{folder}: the adapter of {name} has rank {a.shape[1]}, not what its adapter_config.json says"
            )
        if b is None or (a.shape, b.shape) != expected:
            raise CheckpointError(
                f"{folder}: the adapter of {name} does not fit a kernel {expected[0][0]} x {expected[1][0]}: "
                "it is of another model"
            )
        # Where a tensor has a rank or α of its own, B takes up the difference of the scales.
        own = _read_scale(config, name) / scale
        for leaf, part in zip(
            row.leaves, _put_output_first(row).split(b, widths, policy.config.channels), strict=True
        ):
            adapters |= {
                f"{_strip_kernel(leaf)}lora_a": jnp.array(a, jnp.float32),
                f"{_strip_kernel(leaf)}lora_b": jnp.array(part, jnp.float32) * own,
            }
    if tensors:
        raise CheckpointError(
            f"{folder}: the tensor {min(tensors)} has no place among the adapters of a {policy.config.family} model's "
            "dense layers"
        )
    return nest(adapters), scale


def _read_option(config: dict, patterns: str, default: str, name: str) -> float:
    """An option for the tensor of that name: by the first pattern that matches it, or the default."""
    given = (config.get(patterns) or {}).items()
    return next((x for key, x in given if re.match(rf"(.*\.)?({key})$", name)), config[default])


def _read_scale(config: dict, name: str = "") -> float:
    """The scale of the tensor of that name: α / r, with rsLoRA α / √r."""
    rank = _read_option(config, "rank_pattern", "r", name)
    return _read_option(config, "alpha_pattern", "lora_alpha", name) / (
        rank**0.5 if config.get("use_rslora") else rank
    )
