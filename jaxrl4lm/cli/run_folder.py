"""Run folders of the command line: their names, the options of a run, and the files that decide what it sees."""

import contextlib
import dataclasses
import hashlib
import itertools
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from jaxrl4lm.checkpoint import Checkpoints
from jaxrl4lm.cli.options import RunOptions, from_json, to_json
from jaxrl4lm.training import Progress, Stage, folder
from jaxrl4lm.types import InputError, Params

COMMANDS = ("train", "sft", "preference", "distill", "reward", "head", "agent", "best-of-n")
"""Those that leave a run that can be gone on with."""
RUNS = pathlib.Path("runs")
"""Where runs go that name no folder."""
WHOLE = 2**26
"""Bytes of a file up to which all of it is read for its digest; of larger ones the ends."""


def choose_folder(out: pathlib.Path | None, name: str) -> pathlib.Path:
    """Where a new run goes: `out`, or a free name.

    Raises:
      InputError: if `out` exists.
    """
    if out is None:
        base = RUNS / name
        candidates = itertools.chain([base], (base.with_name(f"{base.name}-{i}") for i in itertools.count(2)))
        return next(path for path in candidates if not path.exists())
    if out.exists():
        raise InputError(f"--out {out} exists: go on with it by --resume {out}, or name another folder")
    return out


def describe_run(command: str, arguments: Any) -> dict[str, Any]:
    """What config.json holds: the command, its options, and digests of the files that they name."""
    return {"command": command, "digests": digest_files(arguments), **to_json(arguments)}


def read_command(path: pathlib.Path) -> str:
    """The command that made the run: one of `COMMANDS`.

    Raises:
      InputError: if no command did.
    """
    config = folder.read_config(path)
    if "command" not in config and "stages" in config:
        raise InputError(f"{path} was made in Python: go on with it by training.fit(..., resume=True)")
    command = config.get("command")
    if command not in COMMANDS:
        raise InputError(
            f"{path / folder.CONFIG} is damaged or of another version (its command is {command!r}): "
            "start the run anew"
        )
    return command


def read_arguments(path: pathlib.Path, kind: type) -> tuple[Any, list[str]]:
    """The options of a run, and those of the files it began with that have changed, are gone or came to them.

    Raises:
      InputError: if the folder is not that of a run.
    """
    file = path / folder.CONFIG
    data = folder.read_config(path)
    try:
        digests = data.pop("digests")
        data.pop("command")
        arguments = from_json(kind, data)
        now = digest_files(arguments)
        changed = [name for name, digest in digests.items() if now.get(name) != digest]
        changed += [name for name in now if name not in digests]
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise InputError(
            f"{file} is damaged or of another version ({type(error).__name__}: {error}): start the run anew"
        ) from None
    return arguments, changed


def take_up(command: str, arguments: Any, check: Callable[[Any], None]) -> Any:
    """The options of the run that is to be resumed; the given ones where it is a new run.

    Raises:
      InputError: if other options are given beside --resume, or the run cannot be resumed.
    """
    path = arguments.run.resume
    if path is None:
        return arguments
    if arguments != type(arguments)(run=RunOptions(resume=path)):
        raise InputError(f"--resume {path} takes the options of that run: give no other option")
    if (made := read_command(path)) != command:
        raise InputError(f"{path} is a run of {made}: jaxrl4lm {made} --resume {path}")
    saved, changed = read_arguments(path, type(arguments))
    refuse_changes(path, changed)
    check(saved)
    return dataclasses.replace(saved, run=dataclasses.replace(saved.run, resume=path))


def restore_newest(
    path: pathlib.Path, stages: Sequence[Stage], start: Callable[[], Params]
) -> tuple[Params, Progress]:
    """The newest parameters of a run, and how far it is. Arguments as of `restore_newest_state`."""
    state, progress = restore_newest_state(path, stages, start)
    return stages[progress.stage].params_of(state), progress


def restore_newest_state(
    path: pathlib.Path, stages: Sequence[Stage], start: Callable[[], Params]
) -> tuple[Any, Progress]:
    """The newest state of a run, and how far it is.

    Args:
      start: gives the parameters that the first stage began with, of which the shapes are looked at.
    """
    checkpoints = Checkpoints(path / folder.CHECKPOINTS, write=False)
    progress: Any = Progress(**checkpoints.notes())
    stage = stages[progress.stage]
    shapes = jax.eval_shape(stage.init, jax.eval_shape(start))
    return checkpoints.restore({"state": shapes})["state"], progress


def refuse_changes(path: pathlib.Path, changed: list[str]) -> None:
    """Raises InputError, naming the first, if there are files that are no longer what they were as the run began."""
    if changed:
        what = "has changed" if pathlib.Path(changed[0]).exists() else "is gone"
        raise InputError(
            f"{changed[0]} {what} since the run {path} began: put the file back as it was, or start the run anew"
        )


def digest_files(arguments: Any) -> dict[str, str]:
    """SHA-256 of every file, and of the files of every model folder, that the options name; missing ones left out."""
    return {str(path): _digest_file(path) for path in _find_files(arguments)}


def _find_files(arguments: Any) -> Iterator[pathlib.Path]:
    for group in dataclasses.fields(arguments):
        record = getattr(arguments, group.name)
        for each in dataclasses.fields(record):
            value = getattr(record, each.name)
            if each.name == "env" and ".py:" in value:  # what is learnt; a reward's may be mended
                value = pathlib.Path(value.rpartition(":")[0])
            if each.name not in ("out", "resume"):
                paths = map(_find_path, value if isinstance(value, tuple) else (value,))
                yield from (file for path in paths if path is not None for file in _list_files(path))


def _find_path(value: Any) -> pathlib.Path | None:
    """A path, or that of NAME=FILE where it is a whole one."""
    if isinstance(value, str) and (whole := pathlib.Path(value.partition("=")[2])).is_absolute():
        return whole
    return value if isinstance(value, pathlib.Path) else None


def _list_files(path: pathlib.Path) -> list[pathlib.Path]:
    """A file, or those of a model's or a data set's folder."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    kept = (
        ".json",
        ".jinja",
        ".safetensors",
        ".npy",
        ".model",
        ".txt",
        ".arrow",
        ".parquet",
        ".jsonl",
        ".csv",
    )
    return [p for p in sorted(path.iterdir()) if p.is_file() and p.suffix in kept]


def _digest_file(path: pathlib.Path) -> str:
    bytes_there = path.stat().st_size
    with path.open("rb") as file:
        if bytes_there <= WHOLE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        hashed = hashlib.sha256(f"{bytes_there}".encode() + file.read(WHOLE // 2))
        file.seek(-WHOLE // 2, 2)
        hashed.update(file.read())
        return hashed.hexdigest()


def say_what_is_left(path: pathlib.Path, command: str, fresh: bool) -> str:
    """What is left of a run that failed, after taking away the folder of one that never got anywhere."""
    if fresh and not folder.has_checkpoint(path):
        shutil.rmtree(path, ignore_errors=True)
        if path.parent == RUNS:
            with contextlib.suppress(OSError):  # where it holds other runs
                path.parent.rmdir()
        return f"the run had not come to a checkpoint, so {path} is removed"
    return f"go on from the last checkpoint with: jaxrl4lm {command} --resume {path}"
