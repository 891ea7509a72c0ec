"""One run of a training command: stages, where they begin, and `fit` around them."""

import dataclasses
import pathlib
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from rich.console import Console

from jaxrl4lm import models
from jaxrl4lm.cli import run_folder
from jaxrl4lm.cli.compilation_cache import count_programs
from jaxrl4lm.cli.language_data import name_device
from jaxrl4lm.cli.machine_errors import explain_error
from jaxrl4lm.cli.options import RunOptions
from jaxrl4lm.cli.progress import ProgressLine
from jaxrl4lm.cli.report import announce, exit_code_of_interrupt, report
from jaxrl4lm.metrics import SINKS, check_sinks
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.training import Evaluation, Stage, fit, with_card
from jaxrl4lm.training.folder import FolderExists
from jaxrl4lm.types import InputError, Params


class Session(NamedTuple):
    """A run, ready to begin."""

    title: str
    policy: LanguagePolicy
    start: Callable[[], Params]
    """The parameters before the first stage."""
    stages: tuple[Stage, ...]
    """Those that have steps."""
    evaluation: Evaluation
    method: str
    """How the last stage trains, in a word, for the model's card."""
    base: str | None = None
    """The model that is trained further."""
    data: tuple[str, ...] = ()
    """What it is trained on."""
    notes: tuple[str, ...] = ()
    """What the user should know before it starts."""
    seeds: int = 1


def evaluation_of(stage: Stage) -> Evaluation:
    """What a stage measures, as its constructor has made it."""
    return Evaluation(stage.evaluate, stage.panels["held_out"], stage.headline, stage.samples)


def drive(command: str, session: Session, arguments: Any, name: str) -> int:
    """Runs a session to its end, or until it is interrupted; the exit code.

    Args:
      command: one of `run_folder.COMMANDS`.
      arguments: its options, with `run`.
      name: of the folder, if the options name none.
    Raises:
      InputError: if it fails by the user's or the machine's doing; it says what is left of the run.
    """
    options: RunOptions = arguments.run
    check_sinks(options.log)
    fresh = dataclasses.replace(arguments, run=dataclasses.replace(options, resume=None))
    config = run_folder.describe_run(command, fresh)
    resume = options.resume is not None
    path = options.resume or run_folder.choose_folder(options.out, name)
    try:
        return _drive(command, session, options, config, path)
    except FolderExists:
        raise
    except InputError as error:
        if not path.exists():
            raise
        raise InputError(f"{error}; {run_folder.say_what_is_left(path, command, not resume)}") from error
    except KeyboardInterrupt:
        print(run_folder.say_what_is_left(path, command, False), file=sys.stderr)
        return exit_code_of_interrupt()
    except Exception as error:
        if told := explain_error(error):
            left = run_folder.say_what_is_left(path, command, not resume)
            raise InputError(f"{told}; {left}") from error
        print(run_folder.say_what_is_left(path, command, False), file=sys.stderr)
        raise


def _drive(command: str, session: Session, options: RunOptions, config: Any, path: pathlib.Path) -> int:
    console = Console()
    size = models.parameter_count(jax.eval_shape(session.policy.init, jax.random.key(0)))
    seeds = f", {session.seeds} seeds at once" if session.seeds > 1 else ""
    lines = (*session.notes, f"seed {options.seed}; run folder {path}")
    announce(console, session.title, size, f"{name_device()}{seeds}", session.stages, lines)
    place = None
    if options.mesh is not None:
        try:
            place = partial(models.shardings, mesh=models.make_mesh(*options.mesh))
        except ValueError as error:
            raise InputError(f"--mesh: {error}") from None
    *others, last = session.stages
    last = with_card(last, name=path.name, base=session.base, data=session.data, method=session.method)
    with ProgressLine(console) as progress, count_programs() as programs:
        run = fit(
            [*others, last],
            session.start(),
            out=path,
            resume=options.resume is not None,
            title=session.title,
            config=config,
            sinks=[SINKS[name] for name in options.log],
            place=place,
            on_progress=progress.tell,
            save_interval=options.save_interval,
        )
    of_first = f" (seed {options.seed})" if session.seeds > 1 else ""
    return report(console, run, session.evaluation.label, command, programs, of_first)
