"""From options to what language models learn with: a policy and its tokenizer, rows of texts, what of the model learns."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from jaxrl4lm import data, models
from jaxrl4lm.cli.load_model import load_model
from jaxrl4lm.cli.machine_errors import check_memory
from jaxrl4lm.cli.options import AdaptationOptions, ModelOptions
from jaxrl4lm.data import ByteTokenizer, CharacterTokenizer, Tokenizer
from jaxrl4lm.data.files import Row, read_text
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxrl4lm.lm.trainable import Trainable, adapters, matching
from jaxrl4lm.models import LanguagePolicy, TransformerConfig, lora
from jaxrl4lm.training.language_stage import init_params
from jaxrl4lm.training.texts import TextSet
from jaxrl4lm.types import InputError, Params

LONGEST_TEXT = 512
"""Tokens of a text that the context of a new model is made for."""


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
    options: ModelOptions, texts: Sequence[str], measure: Callable[[Tokenizer], int], seed: int
) -> StartingModel:
    """The model that the options name.

    Args:
      texts: what it is to read: a new one's characters.
      measure: how many tokens of context the data need of a new one.
    Raises:
      InputError: if it cannot be built or loaded, or does not know a character.
    """
    if options.model:
        policy, params, tokenizer = load_model(options.model, options.dtype)
        policy = dataclasses.replace(policy, config=dataclasses.replace(policy.config, remat=options.remat))
        limit = policy.config.context
        if (options.context or 0) > limit:
            raise InputError(f"--context {options.context} exceeds that of the model ({limit}): lower it")
        tokenizer = _choose_template(options, tokenizer)
        return StartingModel(policy, tokenizer, lambda: params, options.context or limit)
    tokenizer = _choose_template(options, _choose_tokenizer(options, texts))
    try:
        context = options.context or measure(tokenizer)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{error}: give --tokenizer byte") from None
    policy = LanguagePolicy(build_transformer(options, tokenizer.vocab_size, context))
    return StartingModel(policy, tokenizer, lambda: init_params(policy, seed), context)


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


def list_texts(rows: Sequence[Row]) -> Iterator[str]:
    """Every text that a model is to read: texts, and contents of messages."""
    for row in rows:
        for name in ("text", "messages", "prompt", "completion"):
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


def describe_texts(texts: TextSet) -> list[str]:
    """How many texts there are, and what became of the rest."""
    cut = f", {texts.cut} of them cut to {texts.length} tokens" if texts.cut else ""
    lines = [f"{len(texts.training)} texts to imitate{cut}"]
    if not texts.seen:
        lines[0] += f"; {len(texts.held_out)} held out"
    for reason, numbers in texts.dropped.items():
        first = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
        lines.append(f"{len(numbers)} rows left out: {reason} (line {first})")
    return [*lines, *texts.warnings]


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


def make_absolute(path: Path | None) -> Path | None:
    """The same file or folder, named so that a run can go on from another folder; a name that is neither stays."""
    return path.absolute() if path and path.exists() else path


def name_device() -> str:
    """The device that everything runs on."""
    device = jax.devices()[0]
    return f"{device.device_kind} ({device.platform})"
