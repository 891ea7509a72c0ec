"""`jaxrl4lm evaluate`: the newest checkpoint of a run on its held-out prompts."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxrl4lm.checkpoint import Checkpoints
from jaxrl4lm.cli import run_folder, train
from jaxrl4lm.cli.compilation_cache import enable_compilation_cache
from jaxrl4lm.cli.session import Session
from jaxrl4lm.types import Params


@dataclass(frozen=True)
class EvaluateArguments:
    """Score a run's newest checkpoint on its held-out prompts, and show samples."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    json: bool = False
    """Print one JSON object instead of tables."""


def main(arguments: list[str]) -> int:
    """Runs the command."""
    parsed = tyro.cli(EvaluateArguments, args=arguments, prog="jaxrl4lm evaluate")
    enable_compilation_cache()
    session = train.build(run_folder.read_arguments(parsed.run))
    params, phase, done, total = _newest(session, parsed.run)
    score = np.asarray(session.evaluate(params))
    samples = session.samples(params)
    if parsed.json:
        record = {"phase": phase, "update": done, "held_out": score.tolist()}
        print(json.dumps(record | {"samples": [s._asdict() for s in samples]}))
        return 0
    console = Console()
    table = Table("prompt", "completion", "score", title=escape(session.title), title_justify="left")
    for s in samples:
        table.add_row(train.cell(s.prompt), train.cell(s.completion), f"{s.score:g}")
    console.print(table)
    console.print(
        f"{session.score_name}: [bold]{train.spread(score)}[/], {phase} {done}/{total}",
        highlight=False,
    )
    return 0


def _newest(session: Session, run: Path) -> tuple[Params, str, int, int]:
    """The newest parameters of a run, the phase they are of, its steps done and all of its steps."""
    if not session.phases:  # a run of no steps at all has nothing to save
        return session.start(), "untrained", 0, 0
    checkpoints = Checkpoints(run / run_folder.CHECKPOINTS, write=False)
    notes = checkpoints.notes()
    phase = session.phases[notes["phase"]]
    shapes = jax.eval_shape(phase.init, jax.eval_shape(session.start))
    params = checkpoints.restore({"state": shapes})["state"].params
    return params, phase.name, notes["done"], phase.total
