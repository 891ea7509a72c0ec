"""Where numbers go while a run is under way: JSONL always, TensorBoard and Weights & Biases where asked for."""

import importlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxrl4lm.types import InputError


class Sink(Protocol):
    """A place that takes records: `stage`, `step`, and metrics: numbers, or lists of one number a seed."""

    def write(self, record: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One JSON object a line, flushed at every write."""

    def __init__(self, path: pathlib.Path, keep: int):
        """Opens the file and keeps its first `keep` lines: the records up to the checkpoint.

        Raises:
          InputError: if one of those is damaged.
        """
        lines = path.read_bytes().splitlines(keepends=True)[:keep] if path.exists() else []
        try:
            self.records: list[dict[str, Any]] = [json.loads(line) for line in lines]
        except ValueError:
            raise InputError(f"{path} is damaged: remove its broken lines") from None
        # Cut in place: a process that is killed here has lost nothing.
        self._file = path.open("a")
        self._file.truncate(sum(map(len, lines)))

    def write(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record; of several seeds their mean. What was not finite (None) is left out."""
    others = ("stage", "step", "seconds")
    means = {k: np.mean(np.array(v, float)) for k, v in record.items() if k not in others}
    return {name: float(mean) for name, mean in means.items() if np.isfinite(mean)}


class TensorBoard:
    """Event files, through tensorboardX."""

    def __init__(self, folder: pathlib.Path):
        self._writer = _import(PACKAGES["tensorboard"], "tensorboard").SummaryWriter(
            str(folder / "tensorboard")
        )

    def write(self, record: Mapping[str, Any]) -> None:
        for name, value in _scalars(record).items():
            self._writer.add_scalar(f"{record['stage']}/{name}", value, record["step"])

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; offline where `WANDB_MODE` says so."""

    def __init__(self, folder: pathlib.Path):
        self._run = _import(PACKAGES["wandb"], "wandb").init(
            project="jaxrl4lm", name=folder.name, dir=str(folder)
        )

    def write(self, record: Mapping[str, Any]) -> None:
        prefix = record["stage"]
        self._run.log(
            {f"{prefix}/{k}": v for k, v in _scalars(record).items()} | {f"{prefix}/step": record["step"]}
        )

    def close(self) -> None:
        self._run.finish()


def _import(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(
            f"--log {extra} needs the package {module}: pip install 'jaxrl4lm[{extra}]'"
        ) from None


PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
SINKS: Mapping[str, Callable[[pathlib.Path], Sink]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
"""What the option `--log` names: functions of the run folder."""


def check_sinks(names: Sequence[str]) -> None:
    """Raises InputError if a sink's package is not installed."""
    for name in names:
        _import(PACKAGES[name], name)
