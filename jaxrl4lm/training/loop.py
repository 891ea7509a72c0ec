"""The one loop around everything that learns: chunks, records, checkpoints, resume, interruption, placement.

It knows no algorithm, no language model and no terminal: what a stage is, its functions say.
"""

import contextlib
import os
import pathlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.metrics import Sink
from jaxrl4lm.plots.learning_curve import draw_learning_curve
from jaxrl4lm.training import folder as run_folder
from jaxrl4lm.training.folder import RunFolder
from jaxrl4lm.training.interruption import Interruption
from jaxrl4lm.training.records import (
    check_metrics,
    count_skipped,
    drop_non_finite,
    gather_history,
    make_plain,
    split_tables,
)
from jaxrl4lm.training.stage import Numbers, Progress, Report, Sample, Stage, StepFailed
from jaxrl4lm.types import InputError, Params


class Run(NamedTuple):
    """What `fit` gives back."""

    params: Params
    """Of the last step."""
    history: Mapping[str, np.ndarray]
    """Every metric over the records that have it, in order: `[steps]`, or `[steps, members]` of a population. What is
    evaluated once a chunk has a value for each evaluation; nan stands for what was not finite."""
    folder: pathlib.Path | None
    progress: Progress
    """How far it came; its `scores` hold the evaluations."""
    records: Sequence[Mapping[str, Any]]
    """As metrics.jsonl has them: `stage`, `step`, and metrics."""
    interrupted: int | None
    """The signal that ended the run early; None if it came to its end."""
    before: Sequence[Sample]
    """Samples from before the last stage."""
    after: Sequence[Sample]
    """Samples of the last parameters."""
    skipped: int
    """Optimizer steps that were not applied because their gradient was not finite."""


def fit(
    stages: Stage | Sequence[Stage],
    params: Params,
    *,
    out: str | os.PathLike | None = None,
    resume: bool = False,
    title: str | None = None,
    config: Mapping[str, Any] | None = None,
    sinks: Sequence[Callable[[pathlib.Path], Sink]] = (),
    place: Callable[[Any], Any] | None = None,
    on_progress: Callable[[Report], None] | None = None,
    save_interval: float = 15.0,
) -> Run:
    """Takes parameters through stages.

    A run is decided by its arguments alone: killed at any moment and resumed it ends with the same bits. Ctrl-C and
    SIGTERM finish the chunk, save and return a `Run` whose `interrupted` is the signal; a kill loses what came after the last
    checkpoint.

    Args:
      params: where the first stage begins; each stage's `init` copies what it is given.
      out: a new run folder, for the configuration, metrics, the learning curve, samples, checkpoints and the last
        stage's exports (`model/`; `best/`, that of its best evaluation). None: nothing is written.
      resume: go on with the run in `out`.
      title: of the picture; the names of the stages if None.
      config: what config.json holds (JSON); what the stages say of themselves if None.
      sinks: functions of the run folder that make further places for the records, as `metrics.TensorBoard`.
      place: from any tree of shapes (states, parameters, counters) to the shardings of its leaves, all on one mesh, as
        `partial(models.shardings, mesh=mesh)`. None: one device.
      on_progress: called when a stage begins and after each chunk.
      save_interval: seconds between checkpoints, at least (never less than a chunk); inf saves only at an interruption
        and at the end.
    Raises:
      InputError: if the folder cannot be used, a parameter is not finite, or a step or an evaluation failed by
        an `InputError`; what was done before it is saved.
    """
    stages = (stages,) if isinstance(stages, Stage) else tuple(stages)
    _check_stages(stages)
    if resume and out is None:
        raise InputError("resume needs the folder of the run to go on with: give out=")
    # In a list, to be taken out of it: held here, they would be a second copy of the model throughout the run.
    given = [jax.tree.map(lambda x: x if hasattr(x, "dtype") else jnp.array(x), params)]
    del params
    _check_finite(given[0])
    name_of_run = title or ", then ".join(stage.name for stage in stages)
    config = {"stages": [_describe(stage) for stage in stages]} if config is None else config
    opened = None if out is None else _open_folder(pathlib.Path(out), config, resume)
    loop = _Loop(stages, opened, name_of_run, place, on_progress, save_interval)
    with contextlib.ExitStack() as stack:
        if opened is not None:
            stack.callback(opened.close)
            for make in sinks:
                loop.sinks.append(sink := make(opened.path))
                stack.callback(sink.close)
        stack.enter_context(loop.interruption)
        stack.callback(loop.join_preparation)
        return loop.run(given)


def _check_stages(stages: Sequence[Stage]) -> None:
    """Raises InputError where there are none, two share a name (records and scores go by it), or a number does not fit."""
    if not stages:
        raise InputError("there are no stages: give at least one")
    names = [stage.name for stage in stages]
    if "start" in names:
        raise InputError(
            "a stage is called 'start', as the score before the first step: give it another name"
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"two stages are called {twice[0]!r}: give each a name, by stage._replace(name=...)")
    for stage in stages:
        if stage.steps < 0 or stage.chunk < 1:
            raise InputError(
                f"the stage {stage.name!r} has {stage.steps} steps in chunks of {stage.chunk}: give at least 0 steps in "
                "chunks of at least 1"
            )


def _describe(stage: Stage) -> dict[str, Any]:
    return {"name": stage.name, "steps": stage.steps, "chunk": stage.chunk, **stage.config}


def _open_folder(path: pathlib.Path, config: Mapping[str, Any], resume: bool) -> RunFolder:
    if resume:
        run_folder.check_same_config(path, config)
    else:
        run_folder.create(path, config)
    return RunFolder(path)


def _check_finite(params: Params) -> None:
    """Raises InputError, naming it, where a parameter is nan or infinite."""
    named = {
        jax.tree_util.keystr(keys, simple=True, separator="/"): x
        for keys, x in jax.tree.leaves_with_path(params)
        if not isinstance(x, jax.ShapeDtypeStruct) and jnp.issubdtype(x.dtype, jnp.inexact)
    }
    finite = jax.device_get(jax.jit(partial(jax.tree.map, lambda x: jnp.isfinite(x).all()))(named))
    if broken := [name for name, is_finite in finite.items() if not is_finite]:
        raise InputError(
            f"the parameter {broken[0] or 'given'} holds numbers that are not finite: mend the model"
        )


class _Loop:
    """One run under way: what it records, saves and tells while its stages go on."""

    def __init__(
        self,
        stages: Sequence[Stage],
        opened: RunFolder | None,
        title: str,
        place: Callable[[Any], Any] | None,
        on_progress: Callable[[Report], None] | None,
        save_interval: float,
    ):
        self.stages, self.folder, self.title, self.place = stages, opened, title, place
        self.on_progress, self.save_interval = on_progress, save_interval
        self.progress = opened.progress if opened else Progress()
        self.records: list[dict[str, Any]] = [] if opened is None else opened.jsonl.records
        self.sinks: list[Sink] = [opened.jsonl] if opened else []
        self.table: list[dict[str, Any]] = []
        self.interruption = Interruption("saving" if opened else "returning")
        self.preparation: threading.Thread | None = None
        self.started = time.monotonic() - self.progress.seconds
        self.saved = time.monotonic()

    def run(self, given: list[Params]) -> Run:
        """Goes through the stages, from where the folder left off. Empties the list."""
        state, params = None, given.pop()
        if self.folder and self.folder.saved:
            state, params = self._restore(params)
        elif self.progress.stage == 0:
            params = self._put(params)
        for number in range(self.progress.stage, len(self.stages)):
            stage = self.stages[number]
            self.join_preparation()
            resumed = state is not None
            if state is None:
                self.progress = self.progress._replace(stage=number, done=0)
                state = self._begin(stage, params)
            params = jax.eval_shape(lambda x: x, params)  # the state has copies
            self._prepare_next(number, params)
            self._tell(stage, None, resumed=resumed)
            state = self._advance(stage, state)
            params = stage.params_of(state)
            if not self._has_ended(stage):
                return self._finish(params, self.interruption.signal)
            if number == len(self.stages) - 1:
                self._save(state)
                self._export(stage, state)
            state = None
        return self._finish(params, None)

    def _export(self, stage: Stage, state: Any) -> None:
        for name, export in stage.exports.items():
            if self.folder is not None:
                self.folder.export(
                    name, lambda path, export=export: export(path, state, self.progress.scores)
                )

    def _put(self, params: Params) -> Params:
        """The parameters where the mesh is."""
        return params if self.place is None else jax.device_put(params, self.place(params))

    def _on_mesh(self) -> contextlib.AbstractContextManager:
        """The mesh on which everything is placed, as JAX's context."""
        if self.place is None:
            return contextlib.nullcontext()
        sharding = jax.tree.leaves(self.place({"step": jax.ShapeDtypeStruct((), jnp.int32)}))[0]
        return jax.set_mesh(sharding.mesh)

    def _restore(self, params: Params) -> tuple[Any, Params]:
        """The state of the newest checkpoint, laid out as a new one would be, and the shapes that its stage began with."""
        assert self.folder is not None
        for passed in self.stages[: self.progress.stage]:
            params = _trace_stage(passed, params)
        state = jax.eval_shape(self.stages[self.progress.stage].init, params)
        if self.place is not None:
            layout = self.place(state)
            state = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, layout
            )
        return self.folder.checkpoints.restore({"state": state})["state"], params

    def _begin(self, stage: Stage, params: Params) -> Any:
        """The stage's first state; where it starts is evaluated and recorded as its step 0."""
        number = self.progress.stage
        score: Mapping[str, Any] = {}
        before = self.stages[number - 1]
        if number and before.evaluate is stage.evaluate and before.name in self.progress.scores:
            score = self.progress.scores[before.name]
        else:
            score = self._evaluate(stage, params)
        if number == 0:
            self._keep_score("start", score)
        if stage is self.stages[-1] and stage.samples is not None:
            with self._on_mesh():
                samples = [list(sample) for sample in stage.samples(params)]
            self.progress = self.progress._replace(before=samples)
        self._write([{"stage": stage.name, "step": 0, **self._time(score)}])
        with self._on_mesh():
            layout = None if self.place is None else self.place(jax.eval_shape(stage.init, params))
            return jax.jit(stage.init, out_shardings=layout)(params)

    def _evaluate(self, stage: Stage, params: Params) -> dict[str, Any]:
        """An evaluation, as plain numbers."""
        with self._on_mesh():
            return {name: make_plain(value) for name, value in stage.evaluate(params).items()}

    def _keep_score(self, name: str, score: Mapping[str, Any]) -> None:
        self.progress = self.progress._replace(scores={**self.progress.scores, name: score})

    def _advance(self, stage: Stage, state: Any) -> Any:
        """Chunks until the stage ends or somebody interrupts."""
        if self.progress.unfinished is not None:
            self._evaluate_last(stage, state, self.progress.unfinished)
        while not self._has_ended(stage) and self.interruption.signal is None:
            began = time.monotonic()
            state, parts, last = self._run_chunk(stage, state)
            seconds = time.monotonic() - began
            if last is None:  # interrupted within the chunk
                break
            score = self._evaluate_last(stage, state, last)
            metrics = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            numbers = {k: np.asarray(v) for k, v in score.items()} | {"seconds": np.asarray(seconds)}
            self._tell(stage, stage.headline({**metrics, **numbers}))
            if not self._has_ended(stage):
                self._save_if_due(state)
        if not self._has_ended(stage):
            self._save(state)
        return state

    def _run_chunk(self, stage: Stage, state: Any) -> tuple[Any, list[Numbers], dict[str, Any] | None]:
        """(state, metrics of each call, record of the last step: None if a signal came before it)."""
        parts = []
        left = min(stage.chunk - self.progress.done % stage.chunk, stage.steps - self.progress.done)
        while True:
            count = min(stage.stride or left, left)
            state, metrics = self._step(stage, state, count)
            self.progress = self.progress._replace(done=self.progress.done + count)
            parts.append(metrics)
            records, left = self._make_records(stage, count, metrics), left - count
            if not left:
                self._write(records[:-1])
                return state, parts, records[-1]
            self._write(records)
            if self.interruption.signal is not None:
                return state, parts, None
            self._save_if_due(state)

    def _evaluate_last(self, stage: Stage, state: Any, record: Mapping[str, Any]) -> dict[str, Any]:
        """Evaluates the end of a chunk and writes its last record; where that fails, as a user's reward may, all is saved."""
        try:
            score = self._evaluate(stage, stage.params_of(state))
        except InputError:
            self.progress = self.progress._replace(unfinished=record)
            self._save(state)
            raise
        self.progress = self.progress._replace(unfinished=None)
        self._keep_score(stage.name, score)
        self._write([{**record, **self._time(score)}])
        self._keep_best(stage, state, score)
        return score

    def _keep_best(self, stage: Stage, state: Any, score: Mapping[str, Any]) -> None:
        """Exports the parameters if no evaluation of the last stage was better so far."""
        if (
            self.folder is None
            or stage is not self.stages[-1]
            or not (score and stage.rank and stage.exports)
        ):
            return
        rank = float(stage.rank({name: np.asarray(value) for name, value in score.items()}))
        best = self.progress.best
        if np.isfinite(rank) and (best is None or rank > best["rank"]):
            self.progress = self.progress._replace(best={"step": self.progress.done, "rank": rank})
            export = next(iter(stage.exports.values()))
            self.folder.export(run_folder.BEST, lambda path: export(path, state, self.progress.scores))

    def _has_ended(self, stage: Stage) -> bool:
        """Whether the stage has done its steps, or its evaluation was good enough."""
        if self.progress.done >= stage.steps:
            return True
        score = self.progress.scores.get(stage.name)
        if stage.until is None or score is None or self.progress.done == 0:
            return False
        return bool(stage.until({name: np.asarray(value) for name, value in score.items()}))

    def _step(self, stage: Stage, state: Any, count: int) -> tuple[Any, Numbers]:
        """A chunk; where a step of it fails, those before it are recorded and saved."""
        try:
            with self._on_mesh():
                state, metrics = stage.advance(state, self.progress.done, count)
                metrics, tables = split_tables(metrics)
                check_metrics(stage, metrics, count)
                if self.place is not None:
                    # As a resumed run lays it out: otherwise sums would be taken in another order from here on.
                    state = jax.device_put(state, self.place(jax.eval_shape(lambda: state)))
            self._write_tables(stage, tables)
            return state, jax.device_get(metrics)
        except StepFailed as failed:
            metrics, tables = split_tables(failed.metrics)
            self._write_tables(stage, tables)
            done = len(next(iter(metrics.values()), ()))
            self.progress = self.progress._replace(done=self.progress.done + done)
            self._write(self._make_records(stage, done, metrics))
            self._save(failed.state)
            raise

    def _make_records(self, stage: Stage, count: int, metrics: Numbers) -> list[dict[str, Any]]:
        """A record for each of the last `count` steps."""
        first = self.progress.done - count + 1
        return [
            {"stage": stage.name, "step": first + i}
            | {name: make_plain(values[i]) for name, values in metrics.items()}
            for i in range(count)
        ]

    def _write_tables(self, stage: Stage, tables: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        """Writes what people read of the next steps, and keeps the newest for the report."""
        for step, table in enumerate(tables, start=self.progress.done + 1):
            rows = [drop_non_finite({"stage": stage.name, "step": step, **row}) for row in table]
            self.table = rows or self.table
            if self.folder is not None:
                self.folder.write_rows(rows)

    def _time(self, score: Mapping[str, Any]) -> dict[str, Any]:
        return {**score, "seconds": round(time.monotonic() - self.started, 3)}

    def _write(self, records: Sequence[Mapping[str, Any]]) -> None:
        for record in records:
            plain = drop_non_finite(dict(record))
            if self.folder is None:
                self.records.append(plain)
            for sink in self.sinks:
                sink.write(plain)

    def _save_if_due(self, state: Any) -> None:
        if time.monotonic() - self.saved >= self.save_interval:
            self._save(state)

    def _save(self, state: Any) -> None:
        seconds = time.monotonic() - self.started
        rows = 0 if self.folder is None else self.folder.rows
        self.progress = self.progress._replace(records=len(self.records), rows=rows, seconds=seconds)
        if self.folder is not None:
            number = self.progress.done + sum(stage.steps for stage in self.stages[: self.progress.stage])
            self.folder.checkpoints.save(number, {"state": state}, self.progress._asdict())
        self.saved = time.monotonic()

    def _tell(self, stage: Stage, headline: str | None, *, resumed: bool = False) -> None:
        if self.on_progress is not None:
            ended = headline is not None and self._has_ended(stage)
            self.on_progress(Report(stage, self.progress, headline, ended, resumed, self.table))
        self.table = []

    def _prepare_next(self, number: int, params: Params) -> None:
        """Compiles the next stage's program while this stage runs, from the shapes that this one began with."""
        following = self.stages[number + 1 : number + 2]
        if not following or following[0].prepare is None or self.place is not None:
            return
        prepare = following[0].prepare

        def compile_quietly() -> None:
            # What fails here fails again, and is told, when the stage itself compiles.
            with contextlib.suppress(Exception):
                prepare(_trace_stage(self.stages[number], params))

        self.preparation = threading.Thread(target=compile_quietly)
        self.preparation.start()

    def join_preparation(self) -> None:
        """Waits for a compilation under way: a second one of the same program would only slow it."""
        if self.preparation is not None:
            self.preparation.join()
            self.preparation = None

    def _finish(self, params: Params, interrupted: int | None) -> Run:
        """What a run leaves behind: its picture, and where it came to its end its samples."""
        last, after = self.stages[-1], []
        before = [Sample(*sample) for sample in self.progress.before]
        if interrupted is None and last.samples is not None:
            with self._on_mesh():
                after = list(last.samples(params))
        if self.folder is not None:
            if interrupted is None and after:
                self.folder.write_samples({f"before {last.name}": before, "after": after})
            path = self.folder.path / run_folder.CURVE
            draw_learning_curve(self.records, last.name, last.panels, self.title, path, last.axis)
        return Run(
            params=params,
            history=gather_history(self.records),
            folder=None if self.folder is None else self.folder.path,
            progress=self.progress._replace(seconds=time.monotonic() - self.started),
            records=tuple(self.records),
            interrupted=interrupted,
            before=before,
            after=after,
            skipped=count_skipped(self.records),
        )


def _trace_stage(stage: Stage, params: Params) -> Params:
    """The shapes of the parameters after a stage, from those before it."""
    return jax.eval_shape(lambda p: stage.params_of(stage.init(p)), params)
