"""How a run goes, on the terminal."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from jaxrl4lm.cli.report import tabulate_completions
from jaxrl4lm.training import Report


class _TimeLeft(ProgressColumn):
    """Time left from the speed since the stage's first chunk, which compiles; that one says so."""

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
    """A live display on a terminal; elsewhere a plain line at most every few seconds. The end of a stage leaves a line."""

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

    def tell(self, report: Report) -> None:
        """Shows what `fit` reports."""
        name, done = report.stage.name, report.progress.done
        if report.headline is not None:
            self.show(done, report.headline, report.ended, report.table)
            return
        if report.resumed:
            self._console.print(f"resumed at {name} {done}/{report.stage.steps}", highlight=False)
        self.begin(name, done, report.stage.steps)

    def begin(self, name: str, done: int, total: int) -> None:
        """A stage of `total` steps begins, `done` of them done."""
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(
            name, total=total, completed=done, text="", started=None, first=done
        )
        self._name, self._total, self._last = name, total, 0.0

    def show(self, done: int, text: str, ended: bool, table: Sequence[Mapping[str, Any]] = ()) -> None:
        """`done` steps are done, this is how it goes, whether the stage has ended, and what there is to read of it."""
        task = self._progress.tasks[-1]
        if task.fields["started"] is None:
            self._progress.update(self._task, started=time.monotonic(), first=done)
        self._progress.update(self._task, completed=done, text=text)
        now = time.monotonic()
        if not ended and now - self._last < self._every:
            return
        self._last = now
        if table:
            self._console.print(tabulate_completions(table))
        if ended or not self._console.is_terminal:
            self._console.print(f"{self._name} {done}/{self._total}  {text}", highlight=False, soft_wrap=True)
