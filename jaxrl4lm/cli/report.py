"""What a training command says before a run and after it."""

import signal
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from jaxrl4lm.data.files import find_last_text
from jaxrl4lm.training import Run, Sample, Stage
from jaxrl4lm.training.folder import BEST, CURVE


def announce(
    console: Console, title: str, size: int, device: str, stages: Sequence[Stage], lines: Sequence[str]
) -> None:
    """Says what is about to be trained, on what, and how long."""
    console.print(f"[bold]{escape(title)}[/]: {size:,} parameters on {escape(device)}")
    plan = ", then ".join(_plan(stage) for stage in stages) or "nothing to train"
    for line in [*lines[:-1], f"{plan}; {lines[-1]}"]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _plan(stage: Stage) -> str:
    return f"{'at most ' if stage.until else ''}{stage.steps} steps {stage.name}"


def report(
    console: Console, run: Run, score_name: str, command: str, programs: Sequence[float], first_seed: str = ""
) -> int:
    """Says how a run ended; the exit code.

    Args:
      score_name: what `held_out` is.
      command: that made the run, and goes on with it.
      programs: seconds that it took to compile each program, or to read it.
      first_seed: whose samples are shown, where there are several.
    """
    if run.interrupted is not None:
        line = f"stopped; go on with: jaxrl4lm {command} --resume {run.folder}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
        return 128 + run.interrupted
    if run.after:
        console.print(_compare_samples(run.before or run.after, run.after, first_seed))
    table = Table("", score_name, title="result", title_justify="left")
    for name, score in run.progress.scores.items():
        if "held_out" in score:
            table.add_row(
                "at the start" if name == "start" else f"after {name}", format_spread(score["held_out"])
            )
    if table.row_count:
        console.print(table)
    if run.skipped:
        console.print(
            f"{run.skipped:g} optimizer steps were not applied, because their gradient was not finite"
        )
    minutes, seconds = divmod(round(run.progress.seconds), 60)
    compiled = f"{len(programs)} programs compiled in {sum(programs):.0f} s"
    if best := run.progress.best:
        compiled += f"; the best evaluation, of step {best['step']}, is kept in {BEST}/"
    where = f"; look at {run.folder / CURVE}" if run.folder else ""
    console.print(
        f"{minutes} min {seconds} s, {compiled}{where}", soft_wrap=True, highlight=False, markup=False
    )
    return 0


def exit_code_of_interrupt() -> int:
    """Of a process that Ctrl-C ended at once."""
    return 128 + signal.SIGINT


def _compare_samples(before: Sequence[Sample], after: Sequence[Sample], first_seed: str) -> Table:
    title = f"samples of held-out prompts{first_seed}"
    table = Table("prompt", "before", "after", title=title, title_justify="left")
    for b, a in zip(before, after, strict=True):
        table.add_row(*map(make_cell, (a.prompt, b.completion, a.completion)))
    return table


def tabulate_completions(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Completions of one step with what rewards say of them, as a table; each reward by the name of its function."""
    names = [name for name in rows[0] if name not in ("stage", "step")]
    table = Table(title=f"completions of step {rows[0]['step']}", title_justify="left")
    for name in names:
        table.add_column(make_cell(name.removeprefix("reward/").rpartition(".py:")[2]))
    for row in rows:
        table.add_row(*(make_cell(_say(row.get(name))) for name in names))
    return table


def _say(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else find_last_text(value) if isinstance(value, list) else str(value)


def make_cell(text: str) -> Text:
    """Text on one line of a table, where nothing in it is markup."""
    flat = text if text.isprintable() else repr(text)[1:-1]
    return Text(flat if len(flat) <= 60 else flat[:57] + "...")


def format_spread(score: Any) -> str:
    """A score as text; the scores of several seeds as mean, standard deviation and range."""
    values = np.atleast_1d(np.array(score, float))
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f} ({values.min():.3f} to {values.max():.3f}, {len(values)} seeds)"
