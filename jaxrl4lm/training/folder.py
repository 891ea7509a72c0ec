"""The folder of a run: config.json, metrics.jsonl, completions.jsonl, samples.txt, learning_curve.png, checkpoints/, model/
and best/; of agents episode/."""

import json
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jaxrl4lm
from jaxrl4lm.checkpoint import Checkpoints
from jaxrl4lm.metrics import JsonLines
from jaxrl4lm.training.stage import Progress, Sample
from jaxrl4lm.types import InputError

CONFIG, METRICS, SAMPLES, CURVE = "config.json", "metrics.jsonl", "samples.txt", "learning_curve.png"
COMPLETIONS = "completions.jsonl"
CHECKPOINTS, MODEL, BEST, ADAPTER = "checkpoints", "model", "best", "adapter"
EPISODE = "episode"


class FolderExists(InputError):
    """The folder of a new run is there already; it may be another run's, and is to be left alone."""


class RunFolder:
    """An open run folder: its checkpoints, its metrics, and how far the run had come."""

    def __init__(self, path: pathlib.Path):
        """Opens a folder that `create` made.

        Raises:
          InputError: if a file of it is damaged.
        """
        self.path = path
        self.checkpoints = Checkpoints(path / CHECKPOINTS)
        self.saved = self.checkpoints.latest() is not None
        # A run that was killed before its first checkpoint starts again.
        self.progress = self._read_progress() if self.saved else Progress()
        self.jsonl = JsonLines(path / METRICS, keep=self.progress.records)
        self._tables = JsonLines(path / COMPLETIONS, self.progress.rows) if self.progress.rows else None

    def _read_progress(self) -> Progress:
        notes = self.checkpoints.notes()
        if set(notes) != set(Progress._fields):
            raise InputError(
                f"the checkpoint {self.path / CHECKPOINTS / str(self.checkpoints.latest())} is damaged or of another "
                "version (its notes do not fit): remove that folder to fall back to the one before it"
            )
        return Progress(**notes)

    @property
    def rows(self) -> int:
        """Rows of tables written."""
        return 0 if self._tables is None else len(self._tables.records)

    def write_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes rows of a table; the first ones make the file."""
        for row in rows:
            self._tables = self._tables or JsonLines(self.path / COMPLETIONS, keep=0)
            self._tables.write(row)

    def write_samples(self, groups: Mapping[str, Sequence[Sample]]) -> None:
        """Writes samples.txt: under each title its samples, a line each."""
        parts = []
        for title, samples in groups.items():
            rows = [
                f"{'' if s.score is None else f'{s.score:g}'}\t{s.prompt!r} -> {s.completion!r}"
                for s in samples
            ]
            parts.append("\n".join([f"# {title}: score, prompt -> completion", *rows]))
        (self.path / SAMPLES).write_text("\n\n".join(parts) + "\n", encoding="utf-8")

    def export(self, name: str, write: Callable[[pathlib.Path], None]) -> None:
        """Has a folder of the run written, and puts it in the place of an older one when it is whole."""
        replace_folder(self.path / name, write)

    def close(self) -> None:
        """Waits for the saves under way."""
        try:
            self.checkpoints.close()
        finally:
            self.jsonl.close()
            if self._tables is not None:
                self._tables.close()


def replace_folder(whole: pathlib.Path, write: Callable[[pathlib.Path], None]) -> None:
    """Has a folder written, and puts it in the place of an older one when it is whole."""
    unfinished = whole.with_name(f".{whole.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    write(unfinished)
    shutil.rmtree(whole, ignore_errors=True)
    unfinished.rename(whole)


def create(path: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Makes the folder, with its configuration in it.

    Raises:
      InputError: if it exists, or cannot be written.
    """
    try:
        content = json.dumps({"version": jaxrl4lm.__version__, **config}, indent=2, default=_describe)
    except (TypeError, ValueError) as error:
        raise InputError(f"the configuration cannot be written as JSON ({error}): give plain data") from None
    try:
        path.mkdir(parents=True)
        (path / CONFIG).write_text(content + "\n")
    except FileExistsError:
        raise FolderExists(f"the run folder {path} exists: resume it, or name another folder") from None
    except OSError as error:
        raise InputError(
            f"the run folder {path} cannot be written ({error.strerror}): name another folder"
        ) from None


def _describe(value: Any) -> Any:
    """What JSON has no form for, as a text or a list that is the same in another process: without addresses."""
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if hasattr(value, "tolist"):  # arrays
        return value.tolist()
    return getattr(value, "__qualname__", type(value).__qualname__)


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """What config.json holds, the version aside.

    Raises:
      InputError: if the folder is not that of a run, or the file is damaged.
    """
    file = path / CONFIG
    if not file.is_file():
        raise InputError(f"{path} is not a run folder (it has no {CONFIG}): name one that a run made")
    try:
        config = json.loads(file.read_text())
        config.pop("version", None)
    except (ValueError, AttributeError, TypeError, OSError) as error:
        raise InputError(
            f"{file} is damaged or of another version ({type(error).__name__}: {error}): start the run anew"
        ) from None
    return config


def check_same_config(path: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Raises InputError, naming the first difference, if the run in the folder began with another configuration."""
    before, now = read_config(path), json.loads(json.dumps(config, default=_describe))
    if difference := _find_difference(before, now):
        where, old, new = difference
        raise InputError(
            f"the run in {path} began with {where} = {old!r}, now it is {new!r}: give it as it was, or name another folder"
        )


def _find_difference(before: Any, now: Any, where: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*before, *(n for n in now if n not in before)]:
            found = _find_difference(before.get(name), now.get(name), f"{where}.{name}".lstrip("."))
            if found:
                return found
        return None
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return next((d for i, (a, b) in pairs if (d := _find_difference(a, b, f"{where}[{i}]"))), None)
    same = before == now or json.dumps(before) == json.dumps(now)  # nan is not equal to itself
    return None if same else (where, before, now)


def has_checkpoint(path: pathlib.Path) -> bool:
    """Whether the run has anything to go on from."""
    saved = path / CHECKPOINTS
    return saved.is_dir() and any(child.name.isdecimal() for child in saved.iterdir())
