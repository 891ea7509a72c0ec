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
    checkpoints = Checkpoints(parsed.run / run_folder.CHECKPOINTS, write=False)
    notes = checkpoints.notes()
    phase = session.phases[notes["phase"]]
    shapes = jax.eval_shape(phase.init, jax.eval_shape(session.start))
    params = checkpoints.restore({"state": shapes})["state"].params
    score = np.asarray(session.evaluate(params))
    samples = session.samples(params)
    if parsed.json:
        record = {"phase": phase.name, "update": notes["done"], "held_out": score.tolist()}
        print(json.dumps(record | {"samples": [s._asdict() for s in samples]}))
        return 0
    console = Console()
    table = Table("prompt", "completion", "score", title=escape(session.title), title_justify="left")
    for s in samples:
        table.add_row(train.cell(s.prompt), train.cell(s.completion), f"{s.score:g}")
    console.print(table)
    console.print(
        f"{session.score_name}: [bold]{train.spread(score)}[/], {phase.name} {notes['done']}/{phase.total}",
        highlight=False,
    )
    return 0
