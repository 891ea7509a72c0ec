"""From options to what language models learn with: a policy and its tokenizer, rows of texts, what of the model learns."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from jaxrl4lm import data, models
from jaxrl4lm.cli.load_model import load_model
from jaxrl4lm.cli.machine_errors import check_memory
from jaxrl4lm.cli.options import AdaptationOptions, ModelOptions, SamplingOptions
from jaxrl4lm.data import ByteTokenizer, CharacterTokenizer, Tokenizer
from jaxrl4lm.data.corpus import PromptSet
from jaxrl4lm.data.encoding import Example
from jaxrl4lm.data.files import Row, read_text
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxrl4lm.data.preview import show_example
from jaxrl4lm.lm.trainable import Trainable, adapters, matching
from jaxrl4lm.models import LanguagePolicy, TransformerConfig, lora
from jaxrl4lm.training import Sample
from jaxrl4lm.training.evaluation import SHOWN, complete_prompts, make_greedy
from jaxrl4lm.training.judgements import JudgementSet
from jaxrl4lm.training.labelled import LabelledSet
from jaxrl4lm.training.language_stage import init_params
from jaxrl4lm.training.prompted import list_prompts
from jaxrl4lm.training.reinforcement_stage import LONGEST_COMPLETION
from jaxrl4lm.training.texts import TextSet
from jaxrl4lm.types import InputError, Params

SHOWN_EXAMPLE = 400
"""Characters of an example that are shown before the run."""
LONGEST_TEXT = 512
"""Tokens of a text that the context of a new model is made for."""


@dataclass(frozen=True)
class DataOptions:
    """What is learned from."""

    dataset: tuple[Path, ...] = ()
    """Files of texts, prompts and completions, conversations, or preferences: JSONL, JSON, CSV, Parquet, plain text, packed or
    not; or names of data sets of the package `datasets`. Several are mixed."""
    fractions: tuple[float, ...] = ()
    """Shares of several datasets in the mixture; all of each if not given."""
    columns: tuple[str, ...] = ()
    """What its columns are called, where not as here: prompt=question completion=answer."""
    text_unit: Literal["line", "file"] = "line"
    """What a document of a plain text is."""
    eval_dataset: Path | None = None
    """What is held out, in place of a part of the dataset."""


class StartingModel(NamedTuple):
    """A model ready to learn."""

    policy: LanguagePolicy
    tokenizer: Tokenizer
    start: Callable[[], Params]
    """The parameters before the first step."""
    context: int
    """How many of its tokens are used."""


def build_transformer(options: ModelOptions, vocab_size: int, context: int) -> TransformerConfig:
    """The configuration of a new transformer.

    Raises:
      InputError: if the sizes do not fit, together or into this machine.
    """
    # Either style has about 12 width² parameters a block.
    least = options.layers * 12 * options.width**2
    check_memory(least, f"--layers {options.layers} --width {options.width}")
    make = TransformerConfig.gpt2 if options.style == "gpt2" else TransformerConfig
    try:
        return make(
            vocab_size,
            layers=options.layers,
            width=options.width,
            heads=options.heads,
            context=context,
            dtype=options.dtype,
            remat=options.remat,
        )
    except ValueError as error:
        raise InputError(f"the model cannot be built: {error}") from None


def build_model(
    options: ModelOptions,
    texts: Sequence[str],
    measure: Callable[[Tokenizer], int],
    seed: int,
    *,
    load: Callable[..., Any] = models.load,
    tokenizer: Tokenizer | None = None,
) -> StartingModel:
    """The model that the options name.

    Args:
      texts: what it is to read: a new one's characters.
      measure: how many tokens of context the data need of a new one.
      load: what reads a folder, as of `load_model`.
      tokenizer: of a new one; what the options say if None.
    Raises:
      InputError: if it cannot be built or loaded, or does not know a character.
    """
    if path := options.model:
        load_again = partial(load_model, path, options.dtype, load=load)
        policy, params, own = load_again()
        policy = dataclasses.replace(policy, config=dataclasses.replace(policy.config, remat=options.remat))
        limit = policy.config.context
        if (options.context or 0) > limit:
            raise InputError(f"--context {options.context} exceeds that of the model ({limit}): lower it")
        start = give_once(params, lambda: load_again()[1])
        return StartingModel(policy, _choose_template(options, own), start, options.context or limit)
    tokenizer = _choose_template(options, tokenizer or _choose_tokenizer(options, texts))
    try:
        context = options.context or measure(tokenizer)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{error}: give --tokenizer byte") from None
    policy = LanguagePolicy(build_transformer(options, tokenizer.vocab_size, context))
    return StartingModel(policy, tokenizer, lambda: init_params(policy, seed), context)


def give_once(params: Params, again: Callable[[], Params]) -> Callable[[], Params]:
    """A function that gives the parameters and forgets them, for they are a model's worth of memory; asked once more, it makes
    them again."""
    kept = [params]
    return lambda: kept.pop() if kept else again()


def _choose_tokenizer(options: ModelOptions, texts: Sequence[str]) -> Tokenizer:
    """The one asked for; else characters, if there are few."""
    if options.tokenizer == "byte":
        return ByteTokenizer()
    characters = CharacterTokenizer.from_texts(texts)
    if not characters.characters:
        raise InputError(
            "there is no text to make a character tokenizer from: give --text, or --tokenizer byte"
        )
    if options.tokenizer is None and (len(characters.characters) > 256 or options.chat_template):
        return ByteTokenizer()
    return characters


def _choose_template(options: ModelOptions, tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, with the chat template that is asked for."""
    if options.chat_template is None:
        return tokenizer
    template = read_text(options.chat_template)
    return dataclasses.replace(HuggingFaceTokenizer.of(tokenizer), chat_template=template)


def check_data(given: DataOptions) -> None:
    """Raises InputError where the shares are not those of the datasets."""
    if given.fractions and len(given.fractions) != len(given.dataset):
        raise InputError(
            f"--fractions has {len(given.fractions)} numbers for {len(given.dataset)} datasets: give one for each"
        )


def make_paths_absolute(arguments: Any) -> Any:
    """The options, with files and folders named so that a run can go on from another folder."""
    given, model = arguments.data, arguments.model
    files = {
        "dataset": tuple(make_absolute(path) for path in given.dataset),
        "eval_dataset": make_absolute(given.eval_dataset),
    }
    named = [name for name in ("model", "chat_template") if hasattr(model, name)]
    paths = {name: make_absolute(getattr(model, name)) for name in named}
    return dataclasses.replace(
        arguments, data=dataclasses.replace(given, **files), model=dataclasses.replace(model, **paths)
    )


def load_rows(given: DataOptions) -> tuple[list[Row], list[Row] | None]:
    """The rows of the datasets, and those that are held out, if they have a file of their own."""
    columns = _read_columns(given.columns)

    def load(path: Path) -> list[Row]:
        return data.load(path, columns=columns, unit=given.text_unit)

    parts = [load(path) for path in given.dataset]
    rows = data.mix(parts, given.fractions) if given.fractions else [row for part in parts for row in part]
    return rows, load(given.eval_dataset) if given.eval_dataset else None


def shorten_example(example: Example, tokenizer: Tokenizer) -> str:
    """An example on one line, with marks around what carries loss."""
    shown = repr(show_example(example, tokenizer))[1:-1]
    return shown if len(shown) <= SHOWN_EXAMPLE else f"{shown[:SHOWN_EXAMPLE]}..."


def _read_columns(words: tuple[str, ...]) -> dict[str, str]:
    columns = {}
    for word in words:
        ours, separator, theirs = word.partition("=")
        if not (ours and separator and theirs):
            raise InputError(f"--columns {word}: write it as prompt=question")
        columns[ours] = theirs
    return columns


def list_texts(rows: Sequence[Row]) -> Iterator[str]:
    """Every text that a model is to read: texts, and contents of messages."""
    for row in rows:
        for name in ("text", "messages", "prompt", "completion", "chosen", "rejected"):
            value = row.columns.get(name)
            if isinstance(value, str):
                yield value
            elif isinstance(value, list):
                yield from (
                    m["content"] for m in value if isinstance(m, dict) and isinstance(m.get("content"), str)
                )


def measure_texts(rows: Sequence[Row], tokenizer: Tokenizer) -> int:
    """Tokens of the longest of these texts, at most those that a new model is made for."""
    lengths = (len(example.tokens) for example in data.encode(rows, tokenizer).examples)
    return min(max(lengths, default=1), LONGEST_TEXT)


def describe_texts(texts: TextSet | JudgementSet | LabelledSet, what: str = "texts to imitate") -> list[str]:
    """How many rows there are, and what became of the rest."""
    cut = f", {texts.cut} of them cut to {texts.length} tokens" if texts.cut else ""
    lines = [f"{len(texts.training)} {what}{cut}"]
    if not texts.seen:
        lines[0] += f"; {len(texts.held_out)} held out"
    for reason, numbers in texts.dropped.items():
        lines.append(f"{len(numbers)} rows left out: {reason} (line {_list_some(numbers)})")
    return [*lines, *texts.warnings]


def _list_some(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")


def describe_too_long(lines: Sequence[int]) -> list[str]:
    """A sentence on prompts that leave no room for a completion, if there are any."""
    if not lines:
        return []
    return [
        f"{len(lines)} prompts left out: too long to leave room for a completion (line {_list_some(lines)})"
    ]


def choose_trainable(
    options: AdaptationOptions, policy: LanguagePolicy, base: str | None
) -> Trainable | None:
    """What of the model learns; None: everything.

    Args:
      base: the model that is trained further.
    Raises:
      InputError: if the options contradict each other, or name no parameter.
    """
    if options.lora_rank is None and not options.train:
        return None
    if options.lora_rank is not None and options.train:
        raise InputError("--train names parameters and --lora-rank adds adapters: give one of them")
    try:
        if options.lora_rank is None:
            trainable = matching(models.match_paths(*options.train))
        else:
            targets = lora.match_targets(options.lora_targets, policy)
            trainable = adapters(
                options.lora_rank, options.lora_alpha, targets, dropout=options.lora_dropout, base=base
            )
        jax.eval_shape(lambda key: trainable.split(key, policy.init(key)), jax.random.key(0))
    except (ValueError, re.error) as error:
        option = "--train" if options.lora_rank is None else "--lora-targets"
        raise InputError(f"{option}: {error}") from None
    return trainable


def name_base(options: ModelOptions) -> str | None:
    """The model that is trained further; None: a new one."""
    return str(options.model) if options.model else None


def make_samples(options: SamplingOptions, model: StartingModel, held_out: Sequence[Example]):
    """A function that completes what a few held-out texts begin with; None where there is no room to."""
    tokenizer = model.tokenizer
    room = min(options.max_new_tokens or LONGEST_COMPLETION, model.context // 2)
    sampling = options.make(tokenizer, room)
    ids = [each for each in list_prompts(held_out) if len(each) + sampling.length <= model.context][:SHOWN]
    if not ids:
        return None
    same = len(set(map(tuple, ids))) == 1
    settings = dataclasses.replace(options, max_new_tokens=None, stop=())
    drawn = same or settings != SamplingOptions()  # as the options say, if any does
    complete = complete_prompts(model.policy, tokenizer, sampling if drawn else make_greedy(sampling))
    shown = [tokenizer.decode(each) for each in ids]
    rows = [Row(i, {}) for i in range(len(ids))]
    prompts = PromptSet(rows, shown, ids, model.context - sampling.length, list(shown))

    def samples(params: Params) -> list[Sample]:
        completions = [each.text for each in complete(params, prompts)]
        return [Sample(*pair, score=None) for pair in zip(shown, completions, strict=True)]

    return samples


def make_absolute(path: Path | None) -> Path | None:
    """The same file or folder, named so that a run can go on from another folder; a name that is neither stays."""
    return path.absolute() if path and path.exists() else path


def name_device() -> str:
    """The device that everything runs on."""
    device = jax.devices()[0]
    return f"{device.device_kind} ({device.platform})"
