"""Where numbers go while a run is under way: JSONL always, and the trackers that are asked for."""

import importlib
import json
import pathlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

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


def _name_scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The same by `stage/name`."""
    return {f"{record['stage']}/{name}": value for name, value in _scalars(record).items()}


class TensorBoard:
    """Event files, through tensorboardX. A resumed run writes the steps since its checkpoint again, with the same values."""

    def __init__(self, folder: pathlib.Path):
        self._writer = _import(PACKAGES["tensorboard"], "tensorboard").SummaryWriter(
            str(folder / "tensorboard")
        )

    def write(self, record: Mapping[str, Any]) -> None:
        for name, value in _name_scalars(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class _Tracker(ABC):
    """A run of a tracker. A resumed run goes on in it, and tells it no step twice: both are kept in the run folder.

    What a tracker had not yet sent when the process was killed, it never gets; metrics.jsonl has it.
    """

    name: ClassVar[str]
    """Its option of `--log`."""

    def __init__(self, folder: pathlib.Path):
        self._file = folder / f"{self.name}.json"
        told = json.loads(self._file.read_text()) if self._file.exists() else {"run": None, "steps": {}}
        self._steps: dict[str, int] = told["steps"]
        self._package = _import(PACKAGES[self.name], self.name)
        self._run = self._begin(folder, told["run"])
        self._remember()

    @abstractmethod
    def _begin(self, folder: pathlib.Path, run: str | None) -> str:
        """Begins a run there, or goes on with the one of that id; its id."""

    @abstractmethod
    def _tell(self, record: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def close(self) -> None: ...

    def write(self, record: Mapping[str, Any]) -> None:
        stage, step = record["stage"], record["step"]
        if step > self._steps.get(stage, -1):
            self._tell(record)
            self._steps[stage] = step
            self._remember()

    def _remember(self) -> None:
        written = self._file.with_suffix(".new")
        written.write_text(json.dumps({"run": self._run, "steps": self._steps}))
        written.replace(self._file)  # a process that is killed here leaves the old file whole


class WeightsAndBiases(_Tracker):
    """A run of Weights & Biases; offline where `WANDB_MODE` says so."""

    name = "wandb"

    def _begin(self, folder: pathlib.Path, run: str | None) -> str:
        again = {} if run is None else {"id": run, "resume": "allow"}
        self._logged = self._package.init(project="jaxrl4lm", name=folder.name, dir=str(folder), **again)
        return self._logged.id

    def _tell(self, record: Mapping[str, Any]) -> None:
        self._logged.log(_name_scalars(record) | {f"{record['stage']}/step": record["step"]})

    def close(self) -> None:
        self._logged.finish()


class Trackio(_Tracker):
    """A run of trackio, on this machine or where `TRACKIO_SPACE_ID` says."""

    name = "trackio"

    def _begin(self, folder: pathlib.Path, run: str | None) -> str:
        resume = "never" if run is None else "allow"
        self._logged = self._package.init(
            project="jaxrl4lm", name=run or folder.name, resume=resume, embed=False
        )
        return self._logged.name

    def _tell(self, record: Mapping[str, Any]) -> None:
        self._logged.log(_name_scalars(record), step=record["step"])

    def close(self) -> None:
        self._logged.finish()


class MLflow(_Tracker):
    """A run of MLflow, where `MLFLOW_TRACKING_URI` says."""

    name = "mlflow"

    def _begin(self, folder: pathlib.Path, run: str | None) -> str:
        self._package.set_experiment("jaxrl4lm")
        return self._package.start_run(run_id=run, run_name=folder.name).info.run_id

    def _tell(self, record: Mapping[str, Any]) -> None:
        self._package.log_metrics(_name_scalars(record), step=record["step"])

    def close(self) -> None:
        self._package.end_run()


def _import(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(
            f"--log {extra} needs the package {module}: pip install 'jaxrl4lm[{extra}]'"
        ) from None


PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow"}
SINKS: Mapping[str, Callable[[pathlib.Path], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
    "mlflow": MLflow,
}
"""What the option `--log` names: functions of the run folder."""


def check_sinks(names: Sequence[str]) -> None:
    """Raises InputError if a sink's package is not installed."""
    for name in names:
        _import(PACKAGES[name], name)
