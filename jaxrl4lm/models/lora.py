"""Low-rank adapters: W + (α / r) A B beside frozen kernels, as a tree of their own (Hu et al. 2021,
arXiv:2106.09685).

Train `adapters` with `attach`, which keeps the two products apart; roll out and export with `merge`, which
costs nothing at run time. The frozen model itself is the reference policy.

Shapes: `I` inputs, `O` outputs of a kernel, `r` rank.
"""

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.models import names
from jaxrl4lm.models.huggingface import flatten, nest, rows_of
from jaxrl4lm.models.partition import Rule, matching
from jaxrl4lm.models.policy import LanguagePolicy
from jaxrl4lm.models.tensor_files import CheckpointError, Tensor, read_tensors, write_tensors
from jaxrl4lm.types import Key, Params, ScalarLike

EVERY_DENSE = matching(r"layer_\d+/(attention|mlp)/(query|key|value|output|up|gate|down)/kernel")
PREFIX, STEM = "base_model.model.", "adapter_model"


def init(key: Key, params: Params, rank: int, targets: Rule = EVERY_DENSE) -> Params:
    """Adapters of the targeted kernels: A `[I, r]` normal with variance 1 / r, B `[r, O]` zero, so that
    nothing changes yet.

    Args:
      rank: r.
      targets: which kernels, by their path. All dense layers of the blocks if not given.
    Raises:
      ValueError: if no kernel is targeted.
    """
    kernels = {path: x for path, x in flatten(params).items() if path.endswith("/kernel") and targets(path)}
    if not kernels:
        raise ValueError("no kernel is targeted: targets sees paths such as layer_0/attention/query/kernel")
    adapters = {}
    for subkey, (path, kernel) in zip(jax.random.split(key, len(kernels)), kernels.items(), strict=True):
        base = path.removesuffix("kernel")
        adapters[f"{base}lora_a"] = jax.random.normal(subkey, (kernel.shape[0], rank)) * rank**-0.5
        adapters[f"{base}lora_b"] = jnp.zeros((rank, kernel.shape[1]))
    return nest(adapters)


def attach(params: Params, adapters: Params, scale: ScalarLike) -> Params:
    """Parameters whose dense layers compute x W + scale · (x A) B; gradients flow to the adapters only.

    Args:
      scale: α / r.
    """
    frozen = jax.tree.map(jax.lax.stop_gradient, params)
    scaled = {p: x * scale if p.endswith("lora_b") else x for p, x in flatten(adapters).items()}
    return nest({**flatten(frozen), **scaled})


def merge(params: Params, adapters: Params, scale: ScalarLike) -> Params:
    """Parameters of the plain form with W + scale · A B for every adapted kernel."""
    leaves, low_rank = dict(flatten(params)), flatten(adapters)
    for path, a in low_rank.items():
        if path.endswith("lora_a"):
            base = path.removesuffix("lora_a")
            kernel = leaves[f"{base}kernel"]
            update = jnp.matmul(a, low_rank[f"{base}lora_b"]) * scale
            leaves[f"{base}kernel"] = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
    return nest(leaves)


def save(folder: str | os.PathLike, policy: LanguagePolicy, adapters: Params, alpha: float) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors` in PEFT's format.

    Raises:
      CheckpointError: if the checkpoint keeps several adapted kernels in one tensor (GPT-2, GPT-NeoX,
        Phi-3): merge the adapters and save the model.
    """
    folder = pathlib.Path(folder)
    leaves, tensors, targets = flatten(adapters), {}, set()
    rank = next(x for path, x in leaves.items() if path.endswith("lora_a")).shape[-1]
    for row in rows_of(policy):
        base = row.leaves[0].removesuffix("kernel")
        if f"{base}lora_a" not in leaves:
            continue
        if len(row.leaves) > 1:
            raise CheckpointError(
                f"{row.name} holds {len(row.leaves)} kernels, adapted apart: merge them, save the model"
            )
        name = row.name.removesuffix(".weight")
        targets.add(name.rsplit(".", 1)[-1])
        for ours, theirs in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
            array = np.asarray(leaves[base + ours]).T
            tensors[f"{PREFIX}{name}.{theirs}.weight"] = Tensor(array.shape, array.dtype, lambda x=array: x)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha}
    config |= {
        "target_modules": sorted(targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder, tensors, STEM)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))


def load(folder: str | os.PathLike, policy: LanguagePolicy) -> tuple[Params, float]:
    """Adapters and their scale α / r from a folder in PEFT's format, for the policy of the base model.

    Raises:
      CheckpointError: if an option other than rank, α and rsLoRA is used, or a tensor has no place in the
        model.
    """
    folder = pathlib.Path(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    for option in ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "trainable_token_indices"):
        if config.get(option):
            raise CheckpointError(f"{folder}/adapter_config.json: {option} is not supported")
    tensors, adapters = read_tensors(folder, STEM), {}
    shapes = {path: x.shape for path, x in flatten(jax.eval_shape(policy.init, jax.random.key(0))).items()}
    for row in rows_of(policy):
        name = PREFIX + row.name.removesuffix(".weight")
        if f"{name}.lora_A.weight" not in tensors:
            continue
        a, b = tensors.pop(f"{name}.lora_A.weight").T, tensors.pop(f"{name}.lora_B.weight")
        # PEFT's second factor is [out, in] whatever the kernel's own layout is.
        layout = "transposed" if row.layout == "as is" else row.layout
        parts = names.Row(row.name, row.leaves, layout).split(
            b, [shapes[leaf][-1] for leaf in row.leaves], policy.config.channels
        )
        for leaf, part in zip(row.leaves, parts, strict=True):
            base = leaf.removesuffix("kernel")
            adapters |= {
                f"{base}lora_a": jnp.array(a, jnp.float32),
                f"{base}lora_b": jnp.array(part, jnp.float32),
            }
    if tensors:
        raise CheckpointError(
            f"{folder}: the tensor {min(tensors)} has no place in a {policy.config.family} model"
        )
    rank = config["r"] ** 0.5 if config.get("use_rslora") else config["r"]
    return nest(adapters), config["lora_alpha"] / rank
