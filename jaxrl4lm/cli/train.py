"""`jaxrl4lm train`: pre-train, then reinforce; everything on disk, every moment resumable."""

import contextlib
import os
import pathlib
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from jaxrl4lm import models
from jaxrl4lm.checkpoint import Checkpoints
from jaxrl4lm.cli import prompt_session, run_folder, task_session
from jaxrl4lm.cli.compilation_cache import enable_compilation_cache
from jaxrl4lm.cli.machine_errors import explain_error
from jaxrl4lm.cli.session import Phase, Sample, Session, StepFailed
from jaxrl4lm.cli.train_arguments import Run, TrainArguments, resolve
from jaxrl4lm.metrics import JsonLines, ProgressLine, Sink, check_sinks, sinks
from jaxrl4lm.plots.learning_curve import learning_curve
from jaxrl4lm.types import InputError, Params


def main(arguments: list[str]) -> int:
    """Runs the command."""
    parsed = tyro.cli(TrainArguments, args=arguments, prog="jaxrl4lm train")
    enable_compilation_cache()
    console = Console()
    folder = parsed.run.resume
    fresh = folder is None
    if folder is None:
        parsed = resolve(parsed)
        check_sinks(parsed.run.log)
        session = build(parsed)
        folder = run_folder.create(parsed)
    else:
        if parsed != TrainArguments(run=Run(resume=folder)):
            raise InputError(f"--resume {folder} takes the options of that run: give no other option")
        parsed = run_folder.read_arguments(folder)
        session = build(parsed)
    try:
        return Driver(parsed, session, folder, console).drive()
    except InputError as error:
        raise InputError(f"{error}; {_aftermath(folder, fresh)}") from error
    except KeyboardInterrupt:
        print(_aftermath(folder, False), file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        if told := explain_error(error):
            raise InputError(f"{told}; {_aftermath(folder, fresh)}") from error
        print(_aftermath(folder, False), file=sys.stderr)
        raise


def _aftermath(folder: pathlib.Path, fresh: bool) -> str:
    """What is left of a run that failed, after taking away the folder of one that never got anywhere."""
    if fresh and not run_folder.has_checkpoint(folder):
        shutil.rmtree(folder)
        if folder.parent == run_folder.RUNS:
            with contextlib.suppress(OSError):  # where it holds other runs
                folder.parent.rmdir()
        return f"the run had not come to a checkpoint, so {folder} is removed"
    return f"go on from the last checkpoint with: jaxrl4lm train --resume {folder}"


def build(arguments: TrainArguments) -> Session:
    """The session that the arguments describe."""
    return (task_session if arguments.world.reward is None else prompt_session).build(arguments)


class _Interrupt:
    """Remembers that the user or the system asked the run to stop; a second request stops at once."""

    def __init__(self):
        self.signal: int | None = None

    def __enter__(self) -> "_Interrupt":
        self._before = {s: signal.signal(s, self._remember) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: object) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nfinishing the current updates and saving ... (again to stop at once)\n")


class Driver:
    """Takes a session through its phases: the state, its metrics and its checkpoints."""

    def __init__(self, arguments: TrainArguments, session: Session, folder: pathlib.Path, console: Console):
        self.arguments, self.session, self.folder, self.console = arguments, session, folder, console
        self.checkpoints = Checkpoints(folder / run_folder.CHECKPOINTS)
        # A run that was killed before its first checkpoint starts again.
        resuming = self.checkpoints.latest() is not None
        fresh = {"phase": 0, "done": 0, "lines": 0, "seconds": 0.0, "before": None, "scores": {}}
        self.notes: dict[str, Any] = self.checkpoints.notes() if resuming else fresh
        self.jsonl = JsonLines(folder / run_folder.METRICS, keep=self.notes["lines"])
        self.sinks: list[Sink] = [self.jsonl, *sinks(arguments.run.log, folder)]
        self.started = time.monotonic() - self.notes["seconds"]
        self.saved = time.monotonic()
        self._announce(resuming)

    def _announce(self, resuming: bool) -> None:
        device = jax.devices()[0]
        size = models.parameter_count(jax.eval_shape(self.session.policy.init, jax.random.key(0)))
        plan = ", then ".join(map(_plan, self.session.phases))
        seeds = f", {self.session.seeds} seeds at once" if self.session.seeds > 1 else ""
        out = self.console.print
        out(
            f"[bold]{escape(self.session.title)}[/]: {size:,} parameters on {device.device_kind} ({device.platform}){seeds}"
        )
        for note in self.session.notes:
            out(note, highlight=False, markup=False, soft_wrap=True)
        out(
            f"{plan}; seed {self.arguments.run.seed}; run folder {self.folder}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        if resuming and self.notes["phase"] < len(self.session.phases):
            phase = self.session.phases[self.notes["phase"]]
            out(f"resumed at {phase.name} {self.notes['done']}/{phase.total}", highlight=False)

    def drive(self) -> int:
        """Runs to the end, or until interrupted; the exit code."""
        try:
            return self._drive()
        finally:
            self.checkpoints.close()
            for sink in self.sinks:
                sink.close()

    def _drive(self) -> int:
        with _Interrupt() as interrupt, ProgressLine(self.console) as progress:
            params = self._phases(progress, interrupt)
        if params is None:
            self._draw()
            self.console.print(
                f"stopped; go on with: jaxrl4lm train --resume {self.folder}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
            return 128 + (interrupt.signal or 0)
        samples = self.session.samples(params)
        self._write_samples(samples)
        if self.session.seeds == 1:
            self._export(params)
        self._draw()
        self._report(samples)
        return 0

    def _phases(self, progress: ProgressLine, interrupt: _Interrupt) -> Params | None:
        """The final parameters, or None if interrupted."""
        phases = self.session.phases
        params = state = None
        if self.checkpoints.latest() is not None and phases:
            shapes = jax.eval_shape(phases[self.notes["phase"]].init, jax.eval_shape(self.session.start))
            state = self.checkpoints.restore({"state": shapes})["state"]
            params = state.params
        if params is None:
            params = self.session.start()
            self.notes["scores"]["start"] = np.asarray(self.session.evaluate(params)).tolist()
        while self.notes["phase"] < len(phases):
            phase = phases[self.notes["phase"]]
            if state is None:
                state = phase.init(params)
                if phase.name == "reinforcement":
                    self.notes["before"] = [list(s) for s in self.session.samples(params)]
                    self._record(
                        phase, 0, {}, self.notes["scores"].get("supervised", self.notes["scores"]["start"])
                    )
            state = self._phase(phase, state, progress, interrupt)
            params = state.params
            if not self._ended(phase):
                return None
            if self.notes["phase"] == len(phases) - 1:
                self._save(state)
                break
            self.notes |= {"phase": self.notes["phase"] + 1, "done": 0}
            state = None
        return params

    def _phase(self, phase: Phase, state: Any, progress: ProgressLine, interrupt: _Interrupt) -> Any:
        """Steps until the phase ends or the user interrupts."""
        progress.begin(phase.name, self.notes["done"], phase.total)
        while not self._ended(phase) and interrupt.signal is None:
            count = min(phase.chunk - self.notes["done"] % phase.chunk, phase.total - self.notes["done"])
            began = time.monotonic()
            state, metrics = self._steps(phase, state, count)
            seconds = time.monotonic() - began
            score = self.session.evaluate(state.params)
            self.notes["done"] += count
            self.notes["scores"][phase.name] = np.asarray(score).tolist()
            self._record(phase, count, metrics, self.notes["scores"][phase.name])
            ended = self._ended(phase)
            progress.show(self.notes["done"], _summary(phase, metrics, score, seconds), ended)
            due = time.monotonic() - self.saved >= self.arguments.run.save_interval
            if due and not ended:
                self._save(state)
        if not self._ended(phase):
            self._save(state)
        return state

    def _ended(self, phase: Phase) -> bool:
        """Whether the phase has done its steps, or reached the score that was asked of it."""
        if self.notes["done"] >= phase.total:
            return True
        score = self.notes["scores"].get(phase.name)
        return None not in (score, phase.until) and np.mean(score) >= phase.until

    def _steps(self, phase: Phase, state: Any, count: int) -> tuple[Any, Mapping[str, np.ndarray]]:
        """A chunk; where a step of it fails, those before it are recorded and saved."""
        try:
            return phase.run(state, self.notes["done"], count)
        except StepFailed as failed:
            done = len(next(iter(failed.metrics.values()), ()))
            self.notes["done"] += done
            if done:
                self._record(phase, done, failed.metrics)
            self._save(failed.state)
            raise

    def _record(self, phase: Phase, count: int, metrics: Mapping[str, np.ndarray], score: Any = None) -> None:
        """Writes a record a step; the evaluation, if there is one, belongs to the last."""
        done = self.notes["done"]
        for i in range(max(count, 1)):
            record = {"phase": phase.name, "update": done - count + i + 1 if count else 0}
            record |= {name: values[i].tolist() for name, values in metrics.items()}
            if i == max(count, 1) - 1 and score is not None:
                record |= {"held_out": score, "seconds": round(time.monotonic() - self.started, 3)}
            for sink in self.sinks:
                sink.write(record)

    def _save(self, state: Any) -> None:
        self.notes |= {"lines": len(self.jsonl.records), "seconds": time.monotonic() - self.started}
        number = self.notes["done"] + sum(p.total for p in self.session.phases[: self.notes["phase"]])
        self.checkpoints.save(number, {"state": state}, self.notes)
        self.saved = time.monotonic()

    def _draw(self) -> None:
        learning_curve(self.jsonl.records, self.session.title, self.folder / run_folder.CURVE)

    def _export(self, params: Params) -> None:
        models.save(self.folder / run_folder.MODEL, self.session.policy, params, self.session.tokenizer)

    def _write_samples(self, after: Sequence[Sample]) -> None:
        parts = []
        for title, samples in (("before reinforcement learning", self._before()), ("after", after)):
            rows = [f"{s.score:g}\t{s.prompt!r} -> {s.completion!r}" for s in samples]
            parts.append("\n".join([f"# {title}: score, prompt -> completion", *rows]))
        (self.folder / run_folder.SAMPLES).write_text("\n\n".join(parts) + "\n", encoding="utf-8")

    def _before(self) -> list[Sample]:
        return [Sample(*s) for s in self.notes["before"] or []]

    def _report(self, after: Sequence[Sample]) -> None:
        before = self._before() or after
        of = f" (seed {self.arguments.run.seed})" if self.session.seeds > 1 else ""
        title = f"samples of held-out prompts{of}"
        table = Table("prompt", "before", "after", title=title, title_justify="left")
        for b, a in zip(before, after, strict=True):
            table.add_row(*map(cell, (a.prompt, b.completion, a.completion)))
        self.console.print(table)
        table = Table("", self.session.score_name, title="result", title_justify="left")
        names = {"start": "at the start", "supervised": "supervised", "reinforcement": "after RL"}
        for key, name in names.items():
            if key in self.notes["scores"]:
                table.add_row(name, spread(self.notes["scores"][key]))
        self.console.print(table)
        # Each phase counts its own; the last record holds the count.
        counts = {
            r["phase"]: np.sum(r["skipped_updates"]) for r in self.jsonl.records if "skipped_updates" in r
        }
        skipped = sum(counts.values())
        if skipped:
            self.console.print(
                f"{skipped:g} optimizer steps were not applied, because their gradient was not finite"
            )
        minutes, seconds = divmod(round(time.monotonic() - self.started), 60)
        self.console.print(
            f"{minutes} min {seconds} s; look at {self.folder / run_folder.CURVE}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )


def _plan(phase: Phase) -> str:
    if phase.name == "supervised":
        if phase.until is None:
            return f"{phase.total} steps supervised"
        return f"at most {phase.total} steps supervised, until the held-out score is {phase.until:g}"
    return f"{phase.total} updates {phase.name}"


def _summary(phase: Phase, metrics: Mapping[str, np.ndarray], score: Any, seconds: float) -> str:
    """The progress line: what the last chunk showed."""
    mean = {name: float(values.mean()) for name, values in metrics.items()}
    held_out = f"held-out {float(np.mean(score)):.3f}"
    if phase.name == "supervised":
        return f"loss {mean['loss']:.3f}  {held_out}"
    clip = mean["policy/clip_frac_low"] + mean["policy/clip_frac_high"]
    tokens = float(metrics["completion/tokens"].sum()) / seconds
    return (
        f"reward {mean['reward/mean']:.3f}  {held_out}  KL {mean['kl/ref_sequence']:z.2f}  "
        f"entropy {mean['policy/entropy']:.2f}  clip {clip:.2f}  {tokens:,.0f} tokens/s"
    )


def cell(text: str) -> Text:
    """Text on one line of a table, where nothing in it is markup."""
    flat = text if text.isprintable() else repr(text)[1:-1]
    return Text(flat if len(flat) <= 60 else flat[:57] + "...")


def spread(score: Any) -> str:
    """A score as text; the scores of several seeds as mean, standard deviation and range."""
    values = np.atleast_1d(score)
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f} ({values.min():.3f} to {values.max():.3f}, {len(values)} seeds)"
