"""`jaxrl4lm sft`: teacher forcing on texts, or on prompts and their completions."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from jaxrl4lm.cli import run_folder
from jaxrl4lm.cli.compilation_cache import enable_compilation_cache
from jaxrl4lm.cli.language_data import NO_PROMPTS, StartingModel, build_model, describe_corpus
from jaxrl4lm.cli.options import (
    Group,
    ModelOptions,
    RunOptions,
    SamplingOptions,
    check_numbers,
    check_seeds,
    parse,
)
from jaxrl4lm.cli.session import Session, drive
from jaxrl4lm.data.corpus import Document, encode_documents, encode_prompts, read_documents
from jaxrl4lm.data.files import Row
from jaxrl4lm.lm import SupervisedConfig
from jaxrl4lm.lm.config import size
from jaxrl4lm.training import Sample, evaluate_texts, supervised
from jaxrl4lm.training.evaluation import SHOWN, complete_prompts, make_greedy
from jaxrl4lm.training.language_stage import split_indices
from jaxrl4lm.training.reinforcement_stage import LONGEST_COMPLETION
from jaxrl4lm.types import InputError, Params

NEW_MODEL = SupervisedConfig(learning_rate=3e-3, steps=1000)
"""Of a small new model. With --model the defaults are those of `lm.SupervisedConfig`."""


@dataclass(frozen=True)
class DataOptions:
    """What is imitated."""

    dataset: Path | None = None
    """A plain text, or JSONL with a column of completions, and one of prompts that are not imitated themselves."""
    prompt_column: str = "prompt"
    """Column of the prompts."""
    completion_column: str = "completion"
    """Column of what is imitated after the prompt."""
    text_unit: Literal["line", "file"] = "line"
    """What a document of a plain text is."""
    held_out: int | None = size(None, least=0)
    """Texts kept back for evaluation: a tenth of them, at most 256, if not given; 0: evaluate on what is trained on."""


@dataclass(frozen=True)
class SftArguments:
    """Fine-tune a language model on texts.

    The run folder keeps config.json, metrics.jsonl, learning_curve.png, samples.txt, checkpoints, and the model as a Hugging
    Face folder.
    """

    data: Annotated[DataOptions, Group] = field(default_factory=DataOptions)
    model: Annotated[ModelOptions, Group] = field(default_factory=ModelOptions)
    supervised: Annotated[SupervisedConfig, Group] = NEW_MODEL
    sampling: Annotated[SamplingOptions, Group] = field(default_factory=SamplingOptions)
    run: Annotated[RunOptions, Group] = field(default_factory=RunOptions)


def main(words: list[str]) -> int:
    """Runs the command."""
    arguments = run_folder.take_up("sft", _parse(words), check)
    enable_compilation_cache()
    session = build(arguments)
    return drive("sft", session, arguments, f"{_dataset(arguments).stem}-sft-seed{arguments.run.seed}")


def _parse(words: list[str]) -> SftArguments:
    parsed = parse(SftArguments, words, "sft")
    if parsed.run.resume:
        return parsed
    if parsed.model.model is not None:
        parsed = parse(SftArguments, words, "sft", default=SftArguments(supervised=SupervisedConfig()))
    check(parsed)
    folder = parsed.model.model.absolute() if parsed.model.model else None
    return dataclasses.replace(
        parsed,
        data=dataclasses.replace(parsed.data, dataset=_dataset(parsed).absolute()),
        model=dataclasses.replace(parsed.model, model=folder),
    )


def check(arguments: SftArguments) -> None:
    """Raises InputError where an option is missing or a number is out of range."""
    check_numbers(arguments, {})
    check_seeds(arguments.run.seed)
    _dataset(arguments)


def _dataset(arguments: SftArguments) -> Path:
    if arguments.data.dataset is None:
        raise InputError("--dataset is missing: name a text, or JSONL with prompts and completions")
    return arguments.data.dataset


def build(arguments: SftArguments) -> Session:
    """The session that the options describe.

    Raises:
      InputError: where a file or a size cannot be used.
    """
    data, run, dataset = arguments.data, arguments.run, _dataset(arguments)
    documents = read_documents(dataset, data.prompt_column, data.completion_column, data.text_unit)
    room = arguments.sampling.max_new_tokens or LONGEST_COMPLETION
    model = build_model(arguments.model, documents, NO_PROMPTS, room, run.seed)
    training, held_out = _split(documents, data.held_out)
    corpus, held_corpus = (
        encode_documents(part, model.tokenizer, model.context, embeddings=model.policy.config.vocab_size)
        for part in (training, held_out)
    )
    evaluation = evaluate_texts(model.policy, held_corpus, _make_samples(arguments, model, held_out, room))
    stage = supervised(
        model.policy,
        corpus,
        arguments.supervised,
        tokenizer=model.tokenizer,
        evaluation=evaluation,
        seed=run.seed,
        evaluate_every=run.evaluate_every,
    )
    notes = (
        describe_corpus(corpus, model.context),
        describe_corpus(held_corpus, model.context, "held out"),
    )
    title = f"{dataset.name}, teacher forcing"
    return Session(title, model.policy, model.start, (stage,), evaluation, notes)


def _split(documents: list[Document], held_out: int | None) -> tuple[list[Document], list[Document]]:
    """(to train on, held out)."""
    try:
        training, kept_back = split_indices(len(documents), held_out, "texts")
    except InputError as error:
        raise InputError(str(error).replace("held_out", "--held-out")) from None
    return [documents[i] for i in training], [documents[i] for i in kept_back]


def _make_samples(arguments: SftArguments, model: StartingModel, held_out: list[Document], room: int):
    """A function that completes a few held-out prompts; None where a prompt would be empty."""
    tokenizer = model.tokenizer
    if not tokenizer.begin_ids and not all(document.prompt for document in held_out[:SHOWN]):
        return None
    room = min(room, model.context // 2)
    sampling = arguments.sampling.make(tokenizer, room)
    same = len({document.prompt for document in held_out}) == 1
    settings = dataclasses.replace(arguments.sampling, max_new_tokens=None, stop=())
    drawn = same or settings != SamplingOptions()  # as the options say, if any does
    complete = complete_prompts(model.policy, tokenizer, sampling if drawn else make_greedy(sampling))
    fitting = [d for d in held_out if len(tokenizer.encode(d.prompt)) + 1 + sampling.length <= model.context]
    rows = [Row(i, {"prompt": d.prompt}) for i, d in enumerate(fitting[:SHOWN], start=1)]
    if not rows:
        return None
    prompts = encode_prompts(rows, "prompt", tokenizer, "--dataset", sampling.length, model.context)

    def samples(params: Params) -> list[Sample]:
        completions = complete(params, prompts)
        return [Sample(*pair, score=None) for pair in zip(prompts.texts, completions, strict=True)]

    return samples
