"""`jaxrl4lm sft`: teacher forcing on texts, prompts and completions, or conversations."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from jaxrl4lm import data
from jaxrl4lm.cli import run_folder
from jaxrl4lm.cli.compilation_cache import enable_compilation_cache
from jaxrl4lm.cli.language_data import (
    StartingModel,
    build_model,
    choose_trainable,
    describe_texts,
    list_texts,
    make_absolute,
    measure_texts,
    name_base,
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
from jaxrl4lm.data.corpus import PromptSet
from jaxrl4lm.data.encoding import Example
from jaxrl4lm.data.files import Row
from jaxrl4lm.data.preview import show_example
from jaxrl4lm.lm import SupervisedConfig, TextConfig
from jaxrl4lm.lm.optimizer import OPTIMIZERS
from jaxrl4lm.lm.supervised import LOSSES
from jaxrl4lm.training import Sample, evaluate_texts, prepare_texts, supervised
from jaxrl4lm.training.evaluation import SHOWN, complete_prompts, make_greedy
from jaxrl4lm.training.reinforcement_stage import LONGEST_COMPLETION
from jaxrl4lm.training.texts import TextSet, fill_rows
from jaxrl4lm.types import InputError, Params

NEW_MODEL = SupervisedConfig(learning_rate=3e-3, steps=1000)
"""Of a small new model. With --model the defaults are those of `lm.SupervisedConfig`."""

SHOWN_EXAMPLE = 400
"""Characters of an example that are shown before the run."""


@dataclass(frozen=True)
class DataOptions:
    """What is imitated."""

    dataset: tuple[Path, ...] = ()
    """Files of texts, prompts and completions, or conversations: JSONL, JSON, CSV, Parquet, plain text, packed or not; or
    names of data sets of the package `datasets`. Several are mixed."""
    fractions: tuple[float, ...] = ()
    """Shares of several datasets in the mixture; all of each if not given."""
    columns: tuple[str, ...] = ()
    """What its columns are called, where not as here: prompt=question completion=answer."""
    text_unit: Literal["line", "file"] = "line"
    """What a document of a plain text is."""
    eval_dataset: Path | None = None
    """What is held out, in place of a part of the dataset."""


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
    given, model = parsed.data, parsed.model
    files = {
        "dataset": tuple(make_absolute(path) for path in given.dataset),
        "eval_dataset": make_absolute(given.eval_dataset),
    }
    paths = {"model": make_absolute(model.model), "chat_template": make_absolute(model.chat_template)}
    return dataclasses.replace(
        parsed, data=dataclasses.replace(given, **files), model=dataclasses.replace(model, **paths)
    )


def check(arguments: SftArguments) -> None:
    """Raises InputError where an option is missing or a number is out of range."""
    check_numbers(arguments, {})
    check_seeds(arguments.run.seed)
    given = arguments.data
    if not given.dataset:
        raise InputError(
            "--dataset is missing: name a file of texts, of prompts and completions, or of conversations"
        )
    if given.fractions and len(given.fractions) != len(given.dataset):
        raise InputError(
            f"--fractions has {len(given.fractions)} numbers for {len(given.dataset)} datasets: give one for each"
        )
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
    columns = _read_columns(given.columns)
    parts = [data.load(path, columns=columns, unit=given.text_unit) for path in given.dataset]
    rows = data.mix(parts, given.fractions) if given.fractions else [row for part in parts for row in part]
    evaluation_rows = None
    if given.eval_dataset:
        evaluation_rows = data.load(given.eval_dataset, columns=columns, unit=given.text_unit)
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
        _make_samples(arguments, model, texts),
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
    example = repr(show_example(texts.training[0], model.tokenizer))[1:-1]
    shown = example if len(example) <= SHOWN_EXAMPLE else f"{example[:SHOWN_EXAMPLE]}..."
    lengths = ", ".join(map(str, stage.config["dataset"]["lengths"]))
    notes = (
        *describe_texts(texts),
        f"rows of {lengths} tokens, a program for each length",
        f"the first, where ⟦this⟧ is imitated: {shown}",
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


def _read_columns(words: tuple[str, ...]) -> dict[str, str]:
    columns = {}
    for word in words:
        ours, separator, theirs = word.partition("=")
        if not (ours and separator and theirs):
            raise InputError(f"--columns {word}: write it as prompt=question")
        columns[ours] = theirs
    return columns


def _make_samples(arguments: SftArguments, model: StartingModel, texts: TextSet):
    """A function that completes what a few held-out texts begin with; None where there is no room to."""
    tokenizer = model.tokenizer
    room = min(arguments.sampling.max_new_tokens or LONGEST_COMPLETION, model.context // 2)
    sampling = arguments.sampling.make(tokenizer, room)
    begun = [example.tokens[: _find_start(example)] for example in texts.held_out]
    ids = [each for each in begun if len(each) + sampling.length <= model.context][:SHOWN]
    if not ids:
        return None
    same = len(set(map(tuple, ids))) == 1
    settings = dataclasses.replace(arguments.sampling, max_new_tokens=None, stop=())
    drawn = same or settings != SamplingOptions()  # as the options say, if any does
    complete = complete_prompts(model.policy, tokenizer, sampling if drawn else make_greedy(sampling))
    shown = [tokenizer.decode(each) for each in ids]
    rows = [Row(i, {}) for i in range(len(ids))]
    prompts = PromptSet(rows, shown, ids, model.context - sampling.length, list(shown))

    def samples(params: Params) -> list[Sample]:
        completions = complete(params, prompts)
        return [Sample(*pair, score=None) for pair in zip(shown, completions, strict=True)]

    return samples


def _find_start(example: Example) -> int:
    """Where the first target stands."""
    return max(1, example.targets.index(True))
