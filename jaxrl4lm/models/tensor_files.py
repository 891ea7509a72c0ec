"""Safetensors files, one or several in a folder: read through a memory map, written tensor by tensor.

Format: 8 bytes with the length of a JSON header, the header {name: {dtype, shape, data_offsets}}, the data.
"""

import json
import math
import mmap
import operator
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrl4lm.data.files import read_object
from jaxrl4lm.types import InputError

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


class CheckpointError(InputError):
    """The files in a folder are not a model that can be read; the message names the file and the fix."""


class Tensor(NamedTuple):
    """An array to be written. `make` is called only when its turn comes, so that few arrays are in memory."""

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """The size of its data in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_tensors(folder: str | os.PathLike, stem: str = "model") -> dict[str, np.ndarray]:
    """Read-only views into `stem.safetensors`, or into the shards that `stem.safetensors.index.json` lists.

    Raises:
      CheckpointError: if a file is missing, cut short, a Git LFS pointer, or without a tensor that the index promises.
    """
    folder = pathlib.Path(folder)
    single, index = _name_files(folder, stem)
    if single.exists():
        return dict(_read_file(single))
    if not index.exists():
        raise CheckpointError(
            f"{folder} holds neither {single.name} nor {index.name}: name a folder with one of them"
        )
    tensors = {}
    promised = read_object(index).get("weight_map")
    if not isinstance(promised, dict) or not all(isinstance(shard, str) for shard in promised.values()):
        raise CheckpointError(
            f"{index} has no weight_map, which names the file of each tensor: download it again"
        )
    for shard in sorted(set(promised.values())):
        if not (folder / shard).is_file():
            raise CheckpointError(f"{folder / shard} is missing, which {index.name} lists: download it")
        tensors.update(_read_file(folder / shard))
    for name, shard in promised.items():
        if name not in tensors:
            raise CheckpointError(f"{folder / shard} has no tensor {name}, which {index.name} promises")
    return tensors


def find_tensors_file(folder: pathlib.Path, stem: str = "model") -> pathlib.Path:
    """The file from which reading starts: the only one, or the index of the shards."""
    single, index = _name_files(folder, stem)
    return single if single.exists() else index


def _name_files(folder: pathlib.Path, stem: str) -> tuple[pathlib.Path, pathlib.Path]:
    return folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"


def _read_file(path: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise CheckpointError(f"{path} is a Git LFS pointer, not the tensors: run `git lfs pull`")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or 8 + length > size:
            raise CheckpointError(
                f"{path} is cut short at {size} bytes: its header does not end; download it again"
            )
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is not a safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is not a safetensors file: its header is no JSON object")
    header.pop("__metadata__", None)
    data = _map(path)[8 + length :]
    for name, entry in header.items():
        try:
            code, shape = str(entry["dtype"]), tuple(map(operator.index, entry["shape"]))
            begin, end = map(operator.index, entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: what its header says of tensor {name} is damaged: download it again"
            ) from error
        if code not in DTYPES:
            raise CheckpointError(f"{path}: tensor {name} is of type {code}, not one of {', '.join(DTYPES)}")
        if end > data.size:
            missing = end - data.size
            raise CheckpointError(
                f"{path} is cut short: tensor {name} lacks its last {missing} bytes; download it again"
            )
        dtype = DTYPES[code]
        if (
            min((begin, *shape)) < 0
            or max((0, *shape)) > data.size
            or end - begin != math.prod(shape) * dtype.itemsize
        ):
            raise CheckpointError(
                f"{path}: tensor {name} has {end - begin} bytes, which is not its shape {shape}"
            )
        yield name, data[begin:end].view(dtype).reshape(shape)


def _map(path: pathlib.Path) -> np.ndarray:
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def is_finite(tensor: np.ndarray) -> bool:
    """Whether no float of a contiguous tensor is nan or infinite; a little of it at a time, at the speed of its reading."""
    flat = tensor.reshape(-1)
    # Both have an exponent of ones alone: of integers that is found many times as fast as of bfloat16.
    bits = flat.view(f"u{tensor.dtype.itemsize}")
    ones = np.array(np.inf, tensor.dtype).view(bits.dtype)
    step = 1 << 18
    return not any(((bits[i : i + step] & ones) == ones).any() for i in range(0, len(bits), step))


def release(tensor: np.ndarray) -> None:
    """Frees the memory that reading a tensor has filled. Reading it again fills it again."""
    owner = tensor
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)


def write_tensors(
    folder: str | os.PathLike, tensors: dict[str, Tensor], stem: str = "model", shard_bytes: int = 5 * 10**9
) -> None:
    """Writes `stem.safetensors`, or shards of at most `shard_bytes` each and their index.

    A file gets its name when it is complete. Files of an older model, which would be read too, are removed.
    """
    folder = pathlib.Path(folder)
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > shard_bytes:
            shards.append({})
        shards[-1][name] = tensor
    single, listing = _name_files(folder, stem)
    names = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        _write_file(single, shards[0])
        written = {single}
    else:
        for file, shard in zip(names, shards, strict=True):
            _write_file(folder / file, shard)
        index = {
            "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
            "weight_map": {name: file for file, shard in zip(names, shards, strict=True) for name in shard},
        }
        listing.write_text(json.dumps(index, indent=2))
        written = {listing, *(folder / name for name in names)}
    for path in {single, listing, *folder.glob(f"{stem}-*-of-*.safetensors")} - written:
        path.unlink(missing_ok=True)


def _write_file(path: pathlib.Path, tensors: dict[str, Tensor]) -> None:
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, t in tensors.items():
        header[name] = {
            "dtype": CODES[t.dtype],
            "shape": list(t.shape),
            "data_offsets": [end, end + t.nbytes],
        }
        end += t.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for t in tensors.values():
            file.write(np.ascontiguousarray(t.make()).reshape(-1).view(np.uint8).data)
    partial.replace(path)
