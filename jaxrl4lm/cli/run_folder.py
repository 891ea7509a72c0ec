"""The folder of a run: config.json, metrics.jsonl, samples.txt, learning_curve.png, checkpoints/ and model/."""

import hashlib
import itertools
import json
import pathlib
from typing import Any

from jaxrl4lm import __version__
from jaxrl4lm.cli.train_arguments import TrainArguments, check, from_json, to_json
from jaxrl4lm.types import InputError

CONFIG, METRICS, SAMPLES, CURVE = "config.json", "metrics.jsonl", "samples.txt", "learning_curve.png"
CHECKPOINTS, MODEL = "checkpoints", "model"
RUNS = pathlib.Path("runs")
"""Where runs go that name no folder."""


def create(arguments: TrainArguments) -> pathlib.Path:
    """A new folder, with the arguments in it.

    Raises:
      InputError: if `--out` exists, or the folder cannot be written.
    """
    out = arguments.run.out
    if out is None:
        name = arguments.world.task if arguments.world.reward is None else _stem(arguments)
        base = RUNS / f"{name}-{arguments.reinforcement.algorithm}-seed{arguments.run.seed}"
        candidates = itertools.chain([base], (base.with_name(f"{base.name}-{i}") for i in itertools.count(2)))
        out = next(path for path in candidates if not path.exists())
    elif out.exists():
        raise InputError(f"--out {out} exists: go on with it by --resume {out}, or name another folder")
    try:
        out.mkdir(parents=True)
        config = {"version": __version__, "digests": _digests(arguments), **to_json(arguments)}
        (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    except OSError as error:
        raise InputError(
            f"the run folder {out} cannot be written ({error.strerror}): name another with --out"
        ) from None
    return out


def _stem(arguments: TrainArguments) -> str:
    source = arguments.world.prompts or arguments.pretraining.text
    return source.stem if source else "prompts"


def read_arguments(folder: pathlib.Path) -> TrainArguments:
    """The arguments of a run.

    Raises:
      InputError: if the folder is not that of a run, or its prompts or text are no longer those that it began with.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(
            f"{folder} is not a run folder (it has no {CONFIG}): name one that `jaxrl4lm train` made"
        )
    try:
        data: dict[str, Any] = json.loads(path.read_text())
        data.pop("version", None)
        digests = data.pop("digests", {})
        arguments = from_json(data)
        changed = [p for p, digest in _digests(arguments).items() if digest != digests.get(p, digest)]
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise InputError(
            f"{path} is damaged or of another version ({type(error).__name__}: {error}): start the run anew"
        ) from None
    if changed:
        raise InputError(
            f"{changed[0]} has changed since the run {folder} began: put the file back as it was, or start the run anew"
        )
    check(arguments)
    return arguments


def _digests(arguments: TrainArguments) -> dict[str, str]:
    """SHA-256 of the files that decide which texts a run sees, and in which order, those that are missing left out."""
    digests = {}
    for path in (arguments.world.prompts, arguments.pretraining.text):
        if path and path.is_file():
            with path.open("rb") as file:
                digests[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def has_checkpoint(folder: pathlib.Path) -> bool:
    """Whether the run has anything to go on from."""
    saved = folder / CHECKPOINTS
    return saved.is_dir() and any(path.name.isdecimal() for path in saved.iterdir())
