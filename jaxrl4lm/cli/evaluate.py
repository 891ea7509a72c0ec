"""`jaxrl4lm evaluate`: the newest checkpoint of a run on what it held out."""

import dataclasses
import json
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
from jaxrl4lm.cli.options import name_option, parse
from jaxrl4lm.cli.report import format_spread, make_cell
from jaxrl4lm.cli.session import Session
from jaxrl4lm.lm.config import find_out_of_range, number, size
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
    json: bool = False
    """Print one JSON object instead of tables."""


def main(words: list[str]) -> int:
    """Runs the command."""
    parsed = parse(EvaluateArguments, words, "evaluate")
    if found := find_out_of_range(parsed):
        raise InputError(f"{name_option(found[0])} {found[1]}")
    enable_compilation_cache()
    if run_folder.read_command(parsed.run) == "agent":
        from jaxrl4lm.cli import agent

        return agent.evaluate_run(parsed.run, parsed.json)
    session = _rebuild(parsed.run)
    draw = session.evaluation.draw
    if parsed.draws and draw is None:
        raise InputError(f"--draws {parsed.draws}: {parsed.run} is a run that samples nothing: leave it out")
    params, name, done, total = _restore_newest(session, parsed.run)
    score = {name: np.asarray(value).tolist() for name, value in session.evaluation.score(params).items()}
    samples = session.evaluation.samples(params) if session.evaluation.samples else []
    drawn = summarize(draw(params, parsed.draws), parsed.success) if draw and parsed.draws else {}
    if parsed.json:
        record = {"stage": name, "step": done, **score}
        record |= {"draws": drawn} if drawn else {}
        record |= {"samples": [s._asdict() for s in samples]}
        print(json.dumps(drop_non_finite(record), allow_nan=False))
        return 0
    console = Console()
    table = Table("prompt", "completion", "score", title=escape(session.title), title_justify="left")
    for s in samples:
        table.add_row(make_cell(s.prompt), make_cell(s.completion), "" if s.score is None else f"{s.score:g}")
    console.print(table)
    if drawn:
        numbers = Table("of held-out prompts", f"{parsed.draws} draws each", title_justify="left")
        for figure, value in drawn.items():
            numbers.add_row(escape(figure), f"{value:.3f}")
        console.print(numbers)
    said = format_spread(score["held_out"])
    console.print(f"{session.evaluation.label}: [bold]{said}[/], {name} {done}/{total}", highlight=False)
    return 0


def _rebuild(path: Path) -> Session:
    """The session of a run; where its base model has gone or changed, around the model that it saved."""
    kind, command = COMMANDS[run_folder.read_command(path)]
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
    return command.build(arguments)


def _restore_newest(session: Session, path: Path) -> tuple[Params, str, int, int]:
    """The newest parameters of a run, the stage they are of, its steps done and all of its steps."""
    if not any(stage.steps for stage in session.stages):  # a run of no steps at all has nothing to save
        return session.start(), "untrained", 0, 0
    params, progress = run_folder.restore_newest(path, session.stages, session.start)
    stage = session.stages[progress.stage]
    return params, stage.name, progress.done, stage.steps
