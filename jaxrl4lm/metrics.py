"""Where numbers go while a run is under way: JSONL always, TensorBoard and Weights & Biases where asked for, the terminal."""

import importlib
import json
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from jaxrl4lm.types import InputError


class Sink(Protocol):
    """A place that takes records: `phase`, `update`, and metrics that are numbers or lists of one number a seed."""

    def write(self, record: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One JSON object a line, flushed at every write."""

    def __init__(self, path: pathlib.Path, keep: int):
        """Opens the file, keeping its first `keep` lines: those that the state to go on from knows of.

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
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _scalars(record: Mapping[str, Any]) -> dict[str, float]:
    others = ("phase", "update", "seconds")
    return {k: float(np.mean(v)) for k, v in record.items() if k not in others}


class TensorBoard:
    """Event files, through tensorboardX."""

    def __init__(self, folder: pathlib.Path):
        self._writer = _import(PACKAGES["tensorboard"], "tensorboard").SummaryWriter(
            str(folder / "tensorboard")
        )

    def write(self, record: Mapping[str, Any]) -> None:
        for name, value in _scalars(record).items():
            self._writer.add_scalar(f"{record['phase']}/{name}", value, record["update"])

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; offline where `WANDB_MODE` says so."""

    def __init__(self, folder: pathlib.Path):
        self._run = _import(PACKAGES["wandb"], "wandb").init(
            project="jaxrl4lm", name=folder.name, dir=str(folder)
        )

    def write(self, record: Mapping[str, Any]) -> None:
        prefix = record["phase"]
        self._run.log(
            {f"{prefix}/{k}": v for k, v in _scalars(record).items()} | {f"{prefix}/update": record["update"]}
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


def check_sinks(names: Sequence[str]) -> None:
    """Raises InputError if a sink's package is not installed."""
    for name in names:
        _import(PACKAGES[name], name)


def sinks(names: Sequence[str], folder: pathlib.Path) -> list[Sink]:
    """The sinks that the option `--log` names."""
    return [{"tensorboard": TensorBoard, "wandb": WeightsAndBiases}[name](folder) for name in names]


class _TimeLeft(ProgressColumn):
    """Time left from the speed since the phase's first chunk, which compiles; that one says so."""

    def render(self, task: Task) -> Text:
        started = task.fields["started"]
        if started is None:
            return Text("compiling")
        done = task.completed - task.fields["first"]
        if done <= 0 or not task.total:
            return Text("")
        seconds = (task.total - task.completed) * (time.monotonic() - started) / done
        return Text(f"{int(seconds) // 60}:{int(seconds) % 60:02d} left")


class _TwoRows(Progress):
    """The bar, and below it how it goes, cut where the terminal is narrower: nothing wraps."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (
            Text(t.fields["text"], no_wrap=True, overflow="ellipsis") for t in self.tasks if t.visible
        )


class ProgressLine:
    """A live display on a terminal; elsewhere a plain line at most every few seconds. The end of a phase leaves a line."""

    def __init__(self, console: Console, every: float = 5.0):
        self._console, self._every, self._last = console, every, 0.0
        self._progress = _TwoRows(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            _TimeLeft(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", visible=False, text="", started=None, first=0)

    def __enter__(self) -> "ProgressLine":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, name: str, done: int, total: int) -> None:
        """A phase of `total` steps begins, `done` of them done."""
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(
            name, total=total, completed=done, text="", started=None, first=done
        )
        self._name, self._total, self._last = name, total, 0.0

    def show(self, done: int, text: str, ended: bool) -> None:
        """`done` steps are done, this is how it goes, and whether the phase has ended."""
        task = self._progress.tasks[-1]
        if task.fields["started"] is None:
            self._progress.update(self._task, started=time.monotonic(), first=done)
        self._progress.update(self._task, completed=done, text=text)
        now = time.monotonic()
        if ended or (not self._console.is_terminal and now - self._last >= self._every):
            self._last = now
            self._console.print(f"{self._name} {done}/{self._total}  {text}", highlight=False, soft_wrap=True)
