"""From options to what preferences are learned with: a model, and encoded pairs or judged completions."""

from collections.abc import Sequence

from jaxrl4lm import data, models
from jaxrl4lm.cli.language_data import (
    LONGEST_TEXT,
    DataOptions,
    StartingModel,
    build_model,
    describe_texts,
    list_texts,
    load_rows,
    shorten_example,
)
from jaxrl4lm.cli.options import ModelOptions, name_options
from jaxrl4lm.data import Row, Tokenizer
from jaxrl4lm.data.pairs import encode_judged, encode_pairs
from jaxrl4lm.lm import PairConfig
from jaxrl4lm.training import judgements
from jaxrl4lm.types import InputError


def load_judgements(
    given: DataOptions,
    pairs: PairConfig,
    options: ModelOptions,
    seed: int,
    *,
    paired: bool = True,
    whole: bool = False,
) -> tuple[StartingModel, judgements.JudgementSet]:
    """The model that the options name, and the rows as it reads them.

    Args:
      paired: whether two completions are compared; else pairs are taken apart.
      whole: whether texts are rated: any model reads them, and what is too long is left out; else a language model, and it
        loses its end.
    Raises:
      InputError: where a file or a size cannot be used.
    """
    rows, evaluation_rows = load_rows(given)
    everything = data.recognize([*rows, *(evaluation_rows or ())])[1]
    longest = pairs.max_length
    model = build_model(
        options,
        list(list_texts(everything)),
        lambda tokenizer: longest or _measure(everything, tokenizer, paired),
        seed,
        load=models.load_backbone if whole else models.load,
    )
    try:
        known = judgements.prepare_judgements(
            rows,
            model.tokenizer,
            pairs,
            context=model.context,
            embeddings=model.policy.config.vocab_size,
            paired=paired,
            whole=whole,
            evaluation_rows=evaluation_rows,
        )
    except InputError as error:
        raise name_options(error, "held_out", "max_length") from None
    return model, known


def _measure(rows: Sequence[Row], tokenizer: Tokenizer, paired: bool) -> int:
    """Tokens of the longest of these texts, at most those that a new model is made for."""
    examples = (encode_pairs if paired else encode_judged)(rows, tokenizer).examples
    longest = max(len(text.tokens) for example in examples for text in judgements.list_texts(example))
    return min(longest, LONGEST_TEXT)


def describe_judgements(
    known: judgements.JudgementSet, model: StartingModel, what: str, lengths: Sequence[int]
) -> tuple[str, ...]:
    """How many rows there are, what became of the rest, and the first of them."""
    first = judgements.list_texts(known.training[0])
    names = ("better", "worse") if len(first) == 2 else ("completion",)
    shown = (
        f"the first, {name}: {shorten_example(text, model.tokenizer)}"
        for name, text in zip(names, first, strict=True)
    )
    program = f"rows of {', '.join(map(str, lengths))} tokens, a program for each length"
    return (*describe_texts(known, what), program, *shown)
