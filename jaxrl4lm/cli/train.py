"""`jaxrl4lm train`: a little teacher forcing, then reinforcement learning on a task, or on your prompts and your reward."""

import dataclasses
from collections.abc import Sequence

from jaxrl4lm import tasks
from jaxrl4lm.cli import run_folder
from jaxrl4lm.cli.compilation_cache import enable_compilation_cache
from jaxrl4lm.cli.machine_errors import explain_error
from jaxrl4lm.cli.session import Phase, Sample, Session, StepFailed
from jaxrl4lm.cli.train_arguments import Run, TrainArguments, resolve
from jaxrl4lm.metrics import JsonLines, ProgressLine, Sink, check_sinks, sinks
from jaxrl4lm.plots.learning_curve import draw_learning_curve
from jaxrl4lm.types import InputError, Params


def main(words: list[str]) -> int:
    """Runs the command."""
    arguments = parse_train(words)
    enable_compilation_cache()
    if path := arguments.run.resume:
        arguments, changed = run_folder.read_arguments(path, TrainArguments)
        run_folder.refuse_changes(path, changed)
        check(arguments)
        arguments = dataclasses.replace(arguments, run=dataclasses.replace(arguments.run, resume=path))
    session = build(arguments)
    fresh = dataclasses.replace(arguments, run=dataclasses.replace(arguments.run, resume=None))
    source = arguments.world.prompts or arguments.text.text
    name = arguments.world.task if arguments.on_task or source is None else source.stem
    name = f"{name}-{arguments.algorithm.algorithm}-seed{arguments.run.seed}"
    return drive("train", session, arguments.run, run_folder.describe_run("train", fresh), name)


def build(arguments: TrainArguments) -> Session:
    """The session that the options describe.

    Raises:
      InputError: where a file, the reward or a size cannot be used.
    """
    return _build_task(arguments) if arguments.on_task else _build_prompts(arguments)


def _build_task(arguments: TrainArguments) -> Session:
    """A built-in task: its reward is part of the compiled program."""
    world, run, seeds = arguments.world, arguments.run, arguments.algorithm.seeds
    task = _make_task(arguments)
    needed = task.prompt_length + task.completion_length
    if (arguments.model.context or needed) < needed:
        raise InputError(f"--context {arguments.model.context}: {task.name} needs {needed} tokens, raise it")
    context = arguments.model.context or needed
    policy = LanguagePolicy(build_transformer(arguments.model, task.tokenizer.vocab_size, context))
    count = EVALUATED_PROBLEMS if world.held_out is None else world.held_out
    if count == 0:
        raise InputError(
            "--held-out 0: a built-in task has held-out problems to spare, give a number of them"
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
        draw_learning_curve(self.jsonl.records, self.session.title, self.folder / run_folder.CURVE)

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


def _make_task(arguments: TrainArguments) -> tasks.Task:
    world, length = arguments.world, arguments.sampling.max_new_tokens
    try:
        task = TASKS[world.task](world.digits or 2)
    except ValueError as error:
        raise InputError(f"--digits: {error}") from None
    if length not in (None, task.completion_length):
        raise InputError(
            f"--max-new-tokens {length}: {task.name} is answered in {task.completion_length} tokens, drop it"
        )
    return task


def _reach(score: float | None):
    """Whether the held-out score (of several seeds: their mean) has come so far."""
    return None if score is None else lambda metrics: metrics["held_out"].mean() >= score


def _keep_stages(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Those that have steps; if none has, the last one, which evaluates the model as it is."""
    return tuple(stage for stage in stages if stage.steps) or tuple(stages[-1:])


def _build_prompts(arguments: TrainArguments) -> Session:
    """Your prompts and your reward: a Python function is called between two compiled halves of each update."""
    world, run = arguments.world, arguments.run
    name = world.reward or ""
    rows, documents = _read(arguments)
    reward = rewards.parse(name)
    rewards.check_columns(reward, name, [c for c in rows[0].columns if c != world.prompt_column])
    room = arguments.sampling.max_new_tokens or LONGEST_COMPLETION
    learner = build_learner(
        arguments.model, documents, [row.columns[world.prompt_column] for row in rows], room, run.seed
    )
    policy, tokenizer = learner.policy, learner.tokenizer
    source = str(world.prompts or "--prompts")
    prompts = encode_prompts(rows, world.prompt_column, tokenizer, source, room, learner.context)
    training, held_out = _split(hide_column(prompts, world.prompt_column), world.held_out)
    notes = [
        f"{len(training.rows)} prompts to train on, {len(held_out.rows)} held out, at most "
        f"{max(map(len, prompts.ids))} tokens long"
    ]
    config = arguments.reinforcement.replace(sampling=arguments.sampling.make(tokenizer, room))
    evaluation = _evaluate(arguments, learner, held_out, {name: reward})
    stages: list[Stage] = []
    if documents and arguments.pretrain.steps:
        corpus = encode_documents(documents, tokenizer, learner.context)
        notes.append(describe_corpus(corpus, learner.context))
        stages.append(
            supervised(
                policy,
                corpus,
                arguments.pretrain,
                tokenizer=tokenizer,
                evaluation=evaluation,
                until=_reach(arguments.text.pretrain_until),
                seed=run.seed,
            )
        )
    stages.append(
        reinforcement(
            policy,
            tokenizer,
            training,
            rewards={name: reward},
            algorithm=arguments.algorithm.make(),
            config=config,
            evaluation=evaluation,
            seed=run.seed,
            evaluate_every=run.evaluate_every or 10,
        )
    )
    source_name = (world.prompts or arguments.text.text).name  # pyright: ignore[reportOptionalMemberAccess]
    return Session(
        title=f"{source_name}, {name.split('/')[-1]}, {arguments.algorithm.algorithm.upper()}",
        policy=policy,
        start=learner.start,
        stages=_keep_stages(stages),
        evaluation=evaluation,
        notes=tuple(notes),
    )


def _split(prompts: PromptSet, held_out: int | None) -> tuple[PromptSet, PromptSet]:
    try:
        return split_prompts(prompts, held_out)
    except InputError as error:
        raise InputError(str(error).replace("held_out", "--held-out")) from None


def _evaluate(
    arguments: TrainArguments, learner: Learner, held_out: PromptSet, named: dict[str, rewards.Reward]
) -> Evaluation:
    """Greedy completions of held-out prompts; where all prompts are the same, many samples of it."""
    distinct = len(set(held_out.texts))
    by = arguments.world.evaluate_by
    greedy = by == "greedy" or (by is None and distinct > 1)
    if distinct == 1:
        held_out = held_out.select([0] * EVALUATED_SAMPLES)
    room = arguments.sampling.max_new_tokens or LONGEST_COMPLETION
    sampling = arguments.sampling.make(learner.tokenizer, room)
    return evaluate_prompts(learner.policy, learner.tokenizer, held_out, named, sampling, greedy=greedy)


def _read(arguments: TrainArguments) -> tuple[list[Row], list[Document]]:
    """Prompts, one empty one where there is no file of them, and what is to be imitated."""
    world, text = arguments.world, arguments.text
    rows = [Row(0, {world.prompt_column: ""})]
    if world.prompts:
        rows = read_jsonl(world.prompts, [world.prompt_column])
    documents = []
    if text.text:
        documents = read_documents(text.text, world.prompt_column, text.completion_column, text.text_unit)
    names = dict.fromkeys(name for row in rows for name in row.columns)
    # Every row has every column, None where the file has none, so that the reward is always called with the same.
    return [Row(row.line, dict.fromkeys(names) | row.columns) for row in rows], documents
