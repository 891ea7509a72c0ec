"""`jaxrl4lm distill`: a student learns from one or several teachers, on its own completions or given ones."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from jaxrl4lm import data
from jaxrl4lm.cli import run_folder
from jaxrl4lm.cli.compilation_cache import enable_compilation_cache
from jaxrl4lm.cli.language_data import (
    LONGEST_TEXT,
    DataOptions,
    StartingModel,
    build_model,
    check_data,
    choose_trainable,
    describe_texts,
    list_texts,
    load_rows,
    make_absolute,
    make_paths_absolute,
    make_samples,
    name_base,
    shorten_example,
)
from jaxrl4lm.cli.load_model import check_tokenizer, load_model
from jaxrl4lm.cli.options import (
    AdaptationOptions,
    Group,
    ModelOptions,
    RunOptions,
    SamplingOptions,
    check_numbers,
    check_seeds,
    name_options,
    parse,
)
from jaxrl4lm.cli.session import Session, drive, evaluation_of
from jaxrl4lm.data import Row, Tokenizer
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxrl4lm.lm import DistillationConfig, PairConfig
from jaxrl4lm.lm.optimizer import OPTIMIZERS
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.training import Stage, distillation, prepare_prompted
from jaxrl4lm.training.reinforcement_stage import LONGEST_COMPLETION
from jaxrl4lm.training.texts import TextSet
from jaxrl4lm.types import InputError, Params

Loaded = tuple[LanguagePolicy, Params, HuggingFaceTokenizer]


@dataclass(frozen=True)
class TeacherOptions:
    """From whom it learns."""

    teacher: tuple[Path, ...] = ()
    """Folders of the teachers, models of the student's tokenizer. Without --model the student is a new model of the sizes above,
    with the tokenizer of the first."""
    teacher_weights: tuple[float, ...] = ()
    """With which the divergences of several teachers are added; equal ones, whose sum is 1, if not given."""
    optimizer: Literal["adam", "adafactor", "lion", "muon"] = "adam"
    """lion wants a learning rate of about a tenth of adam's; adafactor keeps hardly any state."""


@dataclass(frozen=True)
class DistillArguments:
    """Train a student on what teachers say of completions.

    The rows have `prompt`, or `prompt` and `completion`, or `messages`. The run folder keeps config.json, metrics.jsonl,
    learning_curve.png, samples.txt, checkpoints, the model as a Hugging Face folder, that of the best evaluation, and the
    adapter where one was trained.
    """

    data: Annotated[DataOptions, Group] = field(default_factory=DataOptions)
    rows: Annotated[PairConfig, Group] = field(default_factory=PairConfig)
    model: Annotated[ModelOptions, Group] = field(default_factory=ModelOptions)
    teachers: Annotated[TeacherOptions, Group] = field(default_factory=TeacherOptions)
    distillation: Annotated[DistillationConfig, Group] = field(default_factory=DistillationConfig)
    adaptation: Annotated[AdaptationOptions, Group] = field(default_factory=AdaptationOptions)
    sampling: Annotated[SamplingOptions, Group] = field(default_factory=SamplingOptions)
    run: Annotated[RunOptions, Group] = field(default_factory=RunOptions)


def main(words: list[str]) -> int:
    """Runs the command."""
    arguments = run_folder.take_up("distill", _parse(words), check)
    enable_compilation_cache()
    session = build(arguments)
    name = f"{arguments.data.dataset[0].stem}-distill-seed{arguments.run.seed}"
    return drive("distill", session, arguments, name)


def _parse(words: list[str]) -> DistillArguments:
    parsed = parse(DistillArguments, words, "distill")
    if parsed.run.resume:
        return parsed
    check(parsed)
    folders = tuple(make_absolute(path) for path in parsed.teachers.teacher)
    teachers = dataclasses.replace(parsed.teachers, teacher=folders)
    return make_paths_absolute(dataclasses.replace(parsed, teachers=teachers))


def check(arguments: DistillArguments) -> None:
    """Raises InputError where an option is missing or a number is out of range."""
    check_numbers(arguments, {})
    check_seeds(arguments.run.seed)
    if not arguments.data.dataset:
        raise InputError("--dataset is missing: name a file of prompts, with completions or without")
    check_data(arguments.data)
    if not arguments.teachers.teacher:
        raise InputError("--teacher is missing: name the folder of a model to learn from")
    if arguments.model.tokenizer is not None:
        raise InputError(
            f"--tokenizer {arguments.model.tokenizer}: a student has its teacher's: leave it out"
        )
    try:
        arguments.distillation.check()
    except ValueError as error:
        raise _name_options(InputError(str(error))) from None


def _name_options(error: InputError) -> InputError:
    return name_options(
        error,
        *("held_out", "max_length", "micro_batches", "on_policy_share", "teacher_top_k", "loss_temperature"),
    )


def build(arguments: DistillArguments) -> Session:
    """The session that the options describe.

    Raises:
      InputError: where a file or a size cannot be used.
    """
    loaded = [load_model(path, arguments.model.dtype) for path in arguments.teachers.teacher]
    rows, evaluation_rows = load_rows(arguments.data)
    model = _choose_student(arguments, loaded, [*rows, *(evaluation_rows or ())])
    for path, (_, _, tokenizer) in zip(arguments.teachers.teacher, loaded, strict=True):
        check_tokenizer(f"--teacher {path}", tokenizer, model.tokenizer, "the student")
    try:
        stage, known = _make_stage(arguments, model, loaded, rows, evaluation_rows)
    except InputError as error:
        raise _name_options(error) from None
    lengths = ", ".join(map(str, stage.config["dataset"]["lengths"]))
    notes = (
        *describe_texts(known, "prompts"),
        f"rows of {lengths} tokens, a program for each length",
        f"the first: {shorten_example(known.training[0], model.tokenizer)}",
    )
    named = ", ".join(path.name for path in arguments.data.dataset)
    return Session(
        title=f"{named}, from {', '.join('/'.join(path.parts[-2:]) for path in arguments.teachers.teacher)}",
        policy=model.policy,
        start=model.start,
        stages=(stage,),
        evaluation=evaluation_of(stage),
        method="distillation",
        base=name_base(arguments.model),
        data=tuple(map(str, arguments.data.dataset)),
        notes=notes,
    )


def _choose_student(
    arguments: DistillArguments, loaded: Sequence[Loaded], rows: Sequence[Row]
) -> StartingModel:
    """The model that the options name; a new one has the first teacher's tokenizer."""
    room = _choose_room(arguments)

    def measure(tokenizer: Tokenizer) -> int:
        examples = data.encode_prompted(rows, tokenizer).examples
        longest = max(len(each.prompt) + max(len(each.completion), room) for each in examples)
        return min(arguments.rows.max_length or longest, LONGEST_TEXT)

    return build_model(
        arguments.model, list(list_texts(rows)), measure, arguments.run.seed, tokenizer=loaded[0][2]
    )


def _choose_room(arguments: DistillArguments) -> int:
    """Tokens of the longest completion that is drawn."""
    return arguments.sampling.max_new_tokens or LONGEST_COMPLETION


def _make_stage(
    arguments: DistillArguments,
    model: StartingModel,
    loaded: Sequence[Loaded],
    rows: Sequence[Row],
    evaluation_rows: Sequence[Row] | None,
) -> tuple[Stage, TextSet]:
    """The stage, and the rows as it reads them."""
    config, run = arguments.distillation, arguments.run
    sampling = arguments.sampling.make(model.tokenizer, _choose_room(arguments))
    context = min(model.context, *(policy.config.context for policy, _, _ in loaded))
    if config.on_policy_share > 0 and sampling.length >= context:
        raise InputError(
            f"--max-new-tokens {sampling.length} leaves no room for a prompt in a context of {context} tokens, the shortest of "
            "student and teachers: lower it"
        )
    known = prepare_prompted(
        rows,
        model.tokenizer,
        arguments.rows,
        context=context,
        embeddings=model.policy.config.vocab_size,
        room=sampling.length if config.on_policy_share > 0 else 1,
        evaluation_rows=evaluation_rows,
    )
    stage = distillation(
        model.policy,
        model.tokenizer,
        known,
        [(policy, params) for policy, params, _ in loaded],
        weights=arguments.teachers.teacher_weights or None,
        config=config,
        sampling=sampling,
        samples=make_samples(arguments.sampling, model, known.held_out),
        optimizer=OPTIMIZERS[arguments.teachers.optimizer],
        trainable=choose_trainable(arguments.adaptation, model.policy, name_base(arguments.model)),
        seed=run.seed,
        **({} if run.evaluate_every is None else {"evaluate_every": run.evaluate_every}),
    )
    return stage, known
