"""Where parameters live on a mesh with axes `data`, `fsdp`, `tensor`: a table from paths to partitions.

The model itself knows no device. The table lays out parameters, and optimizer states, whose paths end like those of
parameters. The batch is split over `data` and `fsdp`, and one constraint keeps the residual stream split so. The program
is the same under `jit` with global arrays, so a loss is the same number on any mesh.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrl4lm.models.partitioning import path_of
from jaxrl4lm.types import Array

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")
Table = Sequence[tuple[str, P]]

TABLE: Table = (
    (r"(query|key|value|gate|up)/kernel$", P("fsdp", "tensor")),
    (r"(query|key|value|gate|up)/bias$", P("tensor")),
    (r"(output|down)/kernel$", P("tensor", "fsdp")),
    (r"(^|/)embedding$", P("tensor", "fsdp")),
    (r"(^|/)unembedding$", P("fsdp", "tensor")),
    (r"(query|key|value|gate|up)/lora_a$", P("fsdp", None)),
    (r"(query|key|value|gate|up)/lora_b$", P(None, "tensor")),
    (r"(output|down)/lora_a$", P("tensor", None)),
    (r"(output|down)/lora_b$", P(None, "fsdp")),
)
"""The first pattern that matches a path decides. A leaf that none matches (norms, counters, keys) is on every device."""


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh with so many devices along each axis.

    Args:
      data: copies of the model, each for a part of the batch.
      fsdp: shards of the parameters, each also for a part of the batch.
      tensor: shards of the matrix products.
    Raises:
      ValueError: if there are fewer devices.
    """
    count = data * fsdp * tensor
    if count > jax.device_count():
        raise ValueError(
            f"a mesh of {data} x {fsdp} x {tensor} needs {count} devices, there are {jax.device_count()}"
        )
    devices = jax.devices()[:count]
    return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def fit_spec(spec: P, shape: Sequence[int], mesh: Any) -> P:
    """The partition without axes that the mesh lacks, or whose size does not divide that of the array."""
    kept = []
    for size, names in zip(shape, [*spec, *(None,) * (len(shape) - len(spec))], strict=False):
        names = (names,) if isinstance(names, str) else names or ()
        names = tuple(name for name in names if mesh.shape.get(name, 1) > 1)
        divides = size % math.prod(mesh.shape[name] for name in names) == 0
        kept.append(names if names and divides else None)
    return P(*kept)


def place(mesh: Mesh, table: Table = TABLE) -> Callable[[str, Sequence[int]], NamedSharding]:
    """A function from a leaf's path (keys of the tree joined by `/`) and shape to its sharding. `models.load` takes it."""

    def sharding(path: str, shape: Sequence[int]) -> NamedSharding:
        spec = next((spec for pattern, spec in table if re.search(pattern, path)), P())
        return NamedSharding(mesh, fit_spec(spec, shape, mesh))

    return sharding


def shardings(tree: Any, mesh: Mesh, table: Table = TABLE) -> Any:
    """The sharding of every leaf of a tree of arrays or shapes: parameters, or a whole training state.

    From the shapes of a state, `jit` can make the state where it will live, so that no device ever holds all of it:

        init = lambda key: state_of(policy.init(key))
        layout = models.shardings(jax.eval_shape(init, key), mesh)
        state = jax.jit(init, out_shardings=layout)(key)
    """
    sharding = place(mesh, table)
    return jax.tree.map_with_path(lambda keys, x: sharding(path_of(keys), x.shape), tree)


def batch_sharding(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """The sharding of an array whose first axis is the batch."""
    return NamedSharding(mesh, fit_spec(P(BATCH), shape, mesh))


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Splits a tree of host arrays `[B, ...]` over the devices. Each process gives the whole batch and places its part."""

    def put(x: np.ndarray) -> Array:
        return jax.make_array_from_callback(x.shape, batch_sharding(mesh, x.shape), lambda index: x[index])

    return jax.tree.map(lambda x: put(np.asarray(x)), batch)


def constrain_residual(x_BTD: Array) -> Array:
    """Keeps the residual stream split by the batch under `jax.set_mesh`; without a mesh, the identity.

    Without this constraint XLA may split the width instead, and move the whole stream between layers.
    """
    return _constrain(x_BTD, P(BATCH))


def gather_rows(table_VD: Array) -> Array:
    """Brings the rows of a table together before they are looked up; without a mesh, the identity.

    Otherwise XLA looks up pieces of rows, and then moves them all.
    """
    return _constrain(table_VD, P("tensor", None))


def _constrain(x: Array, spec: P) -> Array:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(AXES) & set(mesh.axis_names):
        return x
    return jax.lax.with_sharding_constraint(x, fit_spec(spec, x.shape, mesh))
