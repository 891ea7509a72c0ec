"""`jaxrl4lm sft`: teacher forcing on texts, prompts and completions, or conversations."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from jaxrl4lm import data
from jaxrl4lm.cli import run_folder
from jaxrl4lm.cli.compilation_cache import enable_compilation_cache
from jaxrl4lm.cli.language_data import (
    DataOptions,
    build_model,
    check_data,
    choose_trainable,
    describe_texts,
    list_texts,
    load_rows,
    make_paths_absolute,
    make_samples,
    measure_texts,
    name_base,
    shorten_example,
)
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
from jaxrl4lm.cli.session import Session, drive
from jaxrl4lm.lm import SupervisedConfig, TextConfig
from jaxrl4lm.lm.optimizer import OPTIMIZERS
from jaxrl4lm.lm.supervised import LOSSES
from jaxrl4lm.training import evaluate_texts, prepare_texts, supervised
from jaxrl4lm.training.texts import fill_rows
from jaxrl4lm.types import InputError

NEW_MODEL = SupervisedConfig(learning_rate=3e-3, steps=1000)
"""Of a small new model. With --model the defaults are those of `lm.SupervisedConfig`."""


@dataclass(frozen=True)
class ImitationOptions:
    """How it is imitated."""

    loss: Literal["nll", "dft"] = "nll"
    """nll: the cross-entropy. dft: each token's weighed by its probability (dynamic fine-tuning)."""
    optimizer: Literal["adam", "adafactor", "lion", "muon"] = "adam"
    """lion wants a learning rate of about a tenth of adam's; adafactor keeps hardly any state."""


@dataclass(frozen=True)
class SftArguments:
    """Fine-tune a language model on texts, on completions of prompts, or on conversations.

    The run folder keeps config.json, metrics.jsonl, learning_curve.png, samples.txt, checkpoints, the model as a Hugging
    Face folder, that of the best evaluation, and the adapter where one was trained.
    """

    data: Annotated[DataOptions, Group] = field(default_factory=DataOptions)
    texts: Annotated[TextConfig, Group] = field(default_factory=TextConfig)
    model: Annotated[ModelOptions, Group] = field(default_factory=ModelOptions)
    supervised: Annotated[SupervisedConfig, Group] = NEW_MODEL
    imitation: Annotated[ImitationOptions, Group] = field(default_factory=ImitationOptions)
    adaptation: Annotated[AdaptationOptions, Group] = field(default_factory=AdaptationOptions)
    sampling: Annotated[SamplingOptions, Group] = field(default_factory=SamplingOptions)
    run: Annotated[RunOptions, Group] = field(default_factory=RunOptions)


def main(words: list[str]) -> int:
    """Runs the command."""
    arguments = run_folder.take_up("sft", _parse(words), check)
    enable_compilation_cache()
    session = build(arguments)
    return drive("sft", session, arguments, f"{arguments.data.dataset[0].stem}-sft-seed{arguments.run.seed}")


def _parse(words: list[str]) -> SftArguments:
    parsed = parse(SftArguments, words, "sft")
    if parsed.run.resume:
        return parsed
    if parsed.model.model is not None:
        parsed = parse(SftArguments, words, "sft", default=SftArguments(supervised=SupervisedConfig()))
    check(parsed)
    return make_paths_absolute(parsed)


def check(arguments: SftArguments) -> None:
    """Raises InputError where an option is missing or a number is out of range."""
    check_numbers(arguments, {})
    check_seeds(arguments.run.seed)
    given = arguments.data
    if not given.dataset:
        raise InputError(
            "--dataset is missing: name a file of texts, of prompts and completions, or of conversations"
        )
    check_data(given)
    if arguments.imitation.loss == "dft" and arguments.supervised.label_smoothing:
        raise InputError("--label-smoothing belongs to --loss nll: drop one of them")
    config = arguments.supervised
    if config.batch % config.micro_batches:
        raise InputError(
            f"--batch {config.batch} must be a multiple of --micro-batches ({config.micro_batches}): every part takes as many"
        )


def build(arguments: SftArguments) -> Session:
    """The session that the options describe.

    Raises:
      InputError: where a file or a size cannot be used.
    """
    given, run = arguments.data, arguments.run
    rows, evaluation_rows = load_rows(given)
    _, rows = data.recognize(rows)
    everything = [*rows, *(evaluation_rows or ())]
    longest = arguments.texts.max_length
    model = build_model(
        arguments.model,
        list(list_texts(everything)),
        lambda tokenizer: longest or measure_texts(everything, tokenizer),
        run.seed,
    )
    try:
        texts = prepare_texts(
            rows,
            model.tokenizer,
            arguments.texts,
            context=model.context,
            embeddings=model.policy.config.vocab_size,
            evaluation_rows=evaluation_rows,
        )
    except InputError as error:
        raise name_options(error, "held_out", "max_length") from None
    pad_id = model.tokenizer.pad_id
    evaluation = evaluate_texts(
        model.policy,
        fill_rows(texts, texts.held_out, pad_id),
        make_samples(arguments.sampling, model, texts.held_out),
        what="training" if texts.seen else "held-out",
    )
    stage = supervised(
        model.policy,
        texts,
        arguments.supervised,
        tokenizer=model.tokenizer,
        evaluation=evaluation,
        optimizer=OPTIMIZERS[arguments.imitation.optimizer],
        trainable=choose_trainable(arguments.adaptation, model.policy, name_base(arguments.model)),
        loss=LOSSES[arguments.imitation.loss],
        seed=run.seed,
        evaluate_every=run.evaluate_every,
    )
    lengths = ", ".join(map(str, stage.config["dataset"]["lengths"]))
    notes = (
        *describe_texts(texts),
        f"rows of {lengths} tokens, a program for each length",
        f"the first, where ⟦this⟧ is imitated: {shorten_example(texts.training[0], model.tokenizer)}",
    )
    title = f"{', '.join(path.name for path in given.dataset)}, teacher forcing"
    return Session(
        title=title,
        policy=model.policy,
        start=model.start,
        stages=(stage,),
        evaluation=evaluation,
        method="sft",
        base=name_base(arguments.model),
        data=tuple(map(str, given.dataset)),
        notes=notes,
    )
