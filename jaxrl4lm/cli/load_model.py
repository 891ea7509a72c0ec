"""A Hugging Face folder as the commands use it: errors are one sentence, and ids without a token are never drawn."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from jaxrl4lm import models
from jaxrl4lm.data import Tokenizer
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.types import InputError, Params


def load_model(
    folder: pathlib.Path,
    compute_dtype: str = "float32",
    dtype: str = "float32",
    *,
    load: Callable[..., tuple[LanguagePolicy, Params, Any]] = models.load,
) -> tuple[LanguagePolicy, Params, HuggingFaceTokenizer]:
    """The policy (of the tokenizer's tokens), parameters (of `dtype`) and tokenizer of a Hugging Face folder.

    Args:
      load: what reads it; `models.load_backbone` takes any folder, for a task head.
    """
    try:
        policy, params, tokenizer = load(folder, dtype=dtype, compute_dtype=compute_dtype)
    except InputError:
        raise
    except Exception as error:  # the readers of JSON, tensors and tokenizers raise many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            f"{folder} cannot be loaded ({reason}): mend or replace the folder's files"
        ) from error
    if load is models.load and not policy.config.causal:
        raise InputError(
            f"{folder} is an encoder, which completes nothing: give a language model (heads and reward models take encoders)"
        )
    if tokenizer is None:
        raise InputError(f"{folder} has no tokenizer.json: save the tokenizer beside the model")
    _check_vocabulary(folder, tokenizer, policy.config.vocab_size)
    if tokenizer.vocab_size < policy.config.vocab_size:
        policy = dataclasses.replace(policy, tokens=tokenizer.vocab_size)
    return policy, params, tokenizer


def check_tokenizer(named: str, theirs: HuggingFaceTokenizer, ours: Tokenizer, whose: str) -> None:
    """Raises InputError where a model that is compared with ours reads ids as other tokens.

    Args:
      named: the option and folder of that model.
      whose: our model, as a user calls it.
    """
    known, mine = (each.backend.get_vocab() for each in (theirs, HuggingFaceTokenizer.of(ours)))
    other = next((token for token in sorted({*known, *mine}) if known.get(token) != mine.get(token)), None)
    if other is not None:
        raise InputError(
            f"{named}: its tokenizer is another than {whose}'s ({other!r} is {known.get(other)} there and "
            f"{mine.get(other)} here): take models of one tokenizer"
        )


def _check_vocabulary(folder: pathlib.Path, tokenizer: HuggingFaceTokenizer, size: int) -> None:
    """Raises InputError where the tokenizer writes ids that the model has no embedding for.

    Tokens that were added later may lie beyond it: some published folders have a pad token there, which is masked.
    """
    known = tokenizer.backend.get_vocab(with_added_tokens=False).values()
    largest = max(*known, *tokenizer.eos_ids)
    if largest >= size:
        raise InputError(
            f"{folder}: the tokenizer has ids up to {largest}, the model {size} embeddings: put the tokenizer and the "
            "model of one training together"
        )
