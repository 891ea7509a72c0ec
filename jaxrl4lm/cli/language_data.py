"""From options to what language models learn with: a policy and its tokenizer, prompts, texts as arrays."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from jaxrl4lm.cli.load_model import load_model
from jaxrl4lm.cli.machine_errors import check_memory
from jaxrl4lm.cli.options import ModelOptions
from jaxrl4lm.data import ByteTokenizer, CharacterTokenizer, Tokenizer
from jaxrl4lm.data.corpus import Corpus, Document, encode_prompt, encode_row
from jaxrl4lm.data.files import Row
from jaxrl4lm.models import LanguagePolicy, TransformerConfig
from jaxrl4lm.training.language_stage import init_params
from jaxrl4lm.types import InputError, Params

LONGEST_TEXT = 512


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
        )
    except ValueError as error:
        raise InputError(f"the model cannot be built: {error}") from None


class Source(NamedTuple):
    """Prompts as a file has them: text or messages in a column of its rows."""

    name: str
    """For messages."""
    column: str
    rows: Sequence[Row]


NO_PROMPTS = Source("", "", ())


def build_model(
    options: ModelOptions, documents: Sequence[Document], prompts: Source, room: int, seed: int
) -> StartingModel:
    """The model that the options name, large enough for the texts and for prompts with `room` tokens after them.

    Raises:
      InputError: if it cannot be built or loaded, or does not know a character.
    """
    loaded = load_model(options.model, options.dtype) if options.model else None
    tokenizer = loaded[2] if loaded else choose_tokenizer(options, documents, prompts)
    texts = [document.prompt + document.completion for document in documents]
    try:
        encoded = [encode_row(row, prompts.column, tokenizer, prompts.name)[1] for row in prompts.rows]
        longest_prompt = max(map(len, encoded), default=0)
        longest_text = max((len(encode_prompt(tokenizer, text)) + 1 for text in texts), default=0)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{error}: give --tokenizer byte") from None
    context = options.context or max(longest_prompt + room, min(longest_text, LONGEST_TEXT))
    if not loaded:
        policy = LanguagePolicy(build_transformer(options, tokenizer.vocab_size, context))
        return StartingModel(policy, tokenizer, lambda: init_params(policy, seed), context)
    policy, params, _ = loaded
    if (options.context or 0) > policy.config.context:
        raise InputError(f"--context {context} exceeds that of the model ({policy.config.context}): lower it")
    return StartingModel(policy, tokenizer, lambda: params, min(context, policy.config.context))


def choose_tokenizer(options: ModelOptions, documents: Sequence[Document], prompts: Source) -> Tokenizer:
    """The one asked for; else characters, if there are few."""
    if options.tokenizer == "byte":
        return ByteTokenizer()
    asked = [row.columns[prompts.column] for row in prompts.rows]
    texts = [d.prompt + d.completion for d in documents] + [text for text in asked if isinstance(text, str)]
    characters = CharacterTokenizer.from_texts(texts)
    if not characters.characters:
        raise InputError(
            "there is no text to make a character tokenizer from: give --text, or --tokenizer byte"
        )
    if options.tokenizer is None and len(characters.characters) > 256:
        return ByteTokenizer()
    return characters


def describe_corpus(corpus: Corpus, context: int, what: str = "texts to imitate") -> str:
    """How many texts there are, and how many were cut."""
    cut = f", {corpus.cut} of them cut to the context of {context}" if corpus.cut else ""
    return f"{len(corpus.tokens)} {what}{cut}"


def name_device() -> str:
    """The device that everything runs on."""
    device = jax.devices()[0]
    return f"{device.device_kind} ({device.platform})"
