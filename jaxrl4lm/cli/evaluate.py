"""`jaxrl4lm evaluate`: the newest checkpoint of a run on what it held out."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxrl4lm.cli import distill, head, preference, reward, run_folder, sft, train
from jaxrl4lm.cli.compilation_cache import enable_compilation_cache
from jaxrl4lm.cli.evaluation_sets import name_files
from jaxrl4lm.cli.options import name_option, parse
from jaxrl4lm.cli.report import format_spread, make_cell
from jaxrl4lm.cli.session import Session
from jaxrl4lm.fields import find_out_of_range, number, size
from jaxrl4lm.training import folder
from jaxrl4lm.training.draws import summarize
from jaxrl4lm.training.records import drop_non_finite
from jaxrl4lm.types import InputError, Params

COMMANDS = {
    "train": (train.TrainArguments, train),
    "sft": (sft.SftArguments, sft),
    "preference": (preference.PreferenceArguments, preference),
    "distill": (distill.DistillArguments, distill),
    "reward": (reward.RewardArguments, reward),
    "head": (head.HeadArguments, head),
}


@dataclass(frozen=True)
class EvaluateArguments:
    """Score a run's newest checkpoint on what it held out, and show samples."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    draws: int = size(0, least=0)
    """Sample so many completions of each held-out prompt, too, as the run does: mean reward, pass@k, maj@k, length, share that
    ended, each reward."""
    success: float = number(1.0)
    """The least score that counts as right in pass@k and maj@k."""
    eval_dataset: tuple[str, ...] = ()
    """Score these files of prompts, too, as NAME=FILE (runs of `train` on prompts); those of the run are scored in any case."""
    json: bool = False
    """Print one JSON object instead of tables."""


def main(words: list[str]) -> int:
    """Runs the command."""
    parsed = parse(EvaluateArguments, words, "evaluate")
    if found := find_out_of_range(parsed):
        raise InputError(f"{name_option(found[0])} {found[1]}")
    if parsed.success != EvaluateArguments.success and not parsed.draws:
        raise InputError(
            f"--success {parsed.success:g} is for pass@k and maj@k of draws: give --draws, or leave it out"
        )
    enable_compilation_cache()
    if run_folder.read_command(parsed.run) == "agent":
        from jaxrl4lm.cli import agent

        return agent.evaluate_run(parsed.run, parsed.json)
    session = _rebuild(parsed.run, parsed.eval_dataset)
    draw = session.evaluation.draw
    if parsed.draws and draw is None:
        raise InputError(f"--draws {parsed.draws}: {parsed.run} is a run that samples nothing: leave it out")
    params, name, done, total = _restore_newest(session, parsed.run)
    score = {name: np.asarray(value).tolist() for name, value in session.evaluation.score(params).items()}
    samples = session.evaluation.samples(params) if session.evaluation.samples else []
    drawn = _draw(session, params, parsed)
    sets = session.evaluation.sets
    if parsed.json:
        record = {"stage": name, "step": done, **score}
        record |= {"draws": drawn} if drawn else {}
        record |= {"samples": [s._asdict() for s in samples]}
        print(json.dumps(drop_non_finite(record), allow_nan=False))
        return 0
    console = Console()
    if samples:
        table = Table("prompt", "completion", "score", title=escape(session.title), title_justify="left")
        for s in samples:
            score_cell = "" if s.score is None else f"{s.score:g}"
            table.add_row(make_cell(s.prompt), make_cell(s.completion), score_cell)
        console.print(table)
    else:
        console.print(session.title, markup=False)
    if sets:
        plain = {"reward": score["held_out"], **{k.removeprefix("held_out/"): v for k, v in score.items()}}
        plain.pop("held_out")
        console.print(_tabulate(plain, session.evaluation.label, tuple(sets)))
    if drawn:
        console.print(_tabulate(drawn, f"{parsed.draws} draws each", tuple(sets)))
    said = format_spread(score["held_out"])
    console.print(f"{session.evaluation.label}: [bold]{said}[/], {name} {done}/{total}", highlight=False)
    return 0


def _draw(session: Session, params: Params, parsed: EvaluateArguments) -> dict[str, float]:
    """The figures of draws; those of a named set by NAME/FIGURE."""
    drawn: dict[str, float] = {}
    for name, each in {"": session.evaluation, **session.evaluation.sets}.items():
        if parsed.draws and each.draw is not None:
            figures = summarize(each.draw(params, parsed.draws), parsed.success)
            drawn |= {f"{name}/{figure}" if name else figure: value for figure, value in figures.items()}
    return drawn


def _tabulate(numbers: Mapping[str, float], title: str, sets: Sequence[str]) -> Table:
    """Figures by row: of what is held out, and of each set."""
    columns: dict[str, dict[str, float]] = {"held out": {}, **{name: {} for name in sets}}
    for key, value in numbers.items():
        name, _, figure = key.partition("/")
        known = name in sets
        columns[name if known else "held out"][figure if known else key] = value
    table = Table("", *map(escape, columns), title=escape(title), title_justify="left")
    for figure in dict.fromkeys(figure for each in columns.values() for figure in each):
        said = (f"{each[figure]:.3f}" if figure in each else "" for each in columns.values())
        table.add_row(escape(figure), *said)
    return table


def _rebuild(path: Path, more_sets: Sequence[str]) -> Session:
    """The session of a run; where its base model has gone or changed, around the model that it saved.

    Args:
      more_sets: what is evaluated on as well, NAME=FILE.
    """
    made = run_folder.read_command(path)
    if made not in COMMANDS:
        raise InputError(
            f"{path} is of {made}, whose report.json says how good it is: name one of its sft runs"
        )
    kind, command = COMMANDS[made]
    arguments, changed = run_folder.read_arguments(path, kind)
    base, saved = arguments.model.model, path / folder.MODEL
    if base and saved.is_dir():
        others = [name for name in changed if not Path(name).is_relative_to(base)]
        if others != changed:
            changed = others
            arguments = dataclasses.replace(
                arguments, model=dataclasses.replace(arguments.model, model=saved)
            )
    run_folder.refuse_changes(path, changed)
    command.check(arguments)
    if not more_sets:
        return command.build(arguments)
    if command is not train or arguments.on_task:
        raise InputError(f"--eval-dataset: {path} is no run of train on prompts: leave it out")
    name_files([*arguments.world.eval_dataset, *more_sets])
    return train.build(arguments, more_sets)


def _restore_newest(session: Session, path: Path) -> tuple[Params, str, int, int]:
    """The newest parameters of a run, the stage they are of, its steps done and all of its steps."""
    if not any(stage.steps for stage in session.stages):  # a run of no steps at all has nothing to save
        return session.start(), "untrained", 0, 0
    params, progress = run_folder.restore_newest(path, session.stages, session.start)
    stage = session.stages[progress.stage]
    return params, stage.name, progress.done, stage.steps
