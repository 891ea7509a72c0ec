"""Rows as token ids, and which of them carry loss."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jaxrl4lm.data.chats import find_spoken, render_messages
from jaxrl4lm.data.corpus import check_ids, encode_prompt
from jaxrl4lm.data.files import Message, Row
from jaxrl4lm.data.formats import Format, count_common, recognize
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxrl4lm.data.tokenizer import Tokenizer
from jaxrl4lm.types import InputError

NOTHING, CUT = "nothing to learn", "cut before what is to be learned"
"""Why a row is dropped: it has no token that carries loss, or none before `max_length`."""

NO_LOSS = -100
"""The label of a token without loss, in rows that bring labels."""

SHOWN = 5
"""Rows that a warning names."""


class Example(NamedTuple):
    """One document."""

    tokens: list[int]
    targets: list[bool]
    """Which tokens carry loss: those that are predicted and learned. Never the first: nothing stands before it."""


class Encoded(NamedTuple):
    """Rows, ready for packing or padding."""

    examples: list[Example]
    dropped: dict[str, list[int]]
    """Why rows could not be used → their lines."""
    cut: int
    """How many examples lost their end to `max_length`."""
    warnings: list[str]
    """What is odd about rows that are used: a sentence each, which counts and names them."""


class _Whole(NamedTuple):
    """A row before it is cut."""

    tokens: list[int]
    targets: list[bool]
    lost: list[int]
    """The end of the prompt's own tokens that the whole does not have."""


def encode(
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    *,
    max_length: int | None = None,
    completion_only: bool | None = None,
    assistant_only: bool = False,
    strict: bool = False,
    embeddings: int | None = None,
) -> Encoded:
    """Documents to imitate, of rows of text, messages, prompts with completions, or token ids.

    A text, and a prompt with its completion, are encoded as one text, between what the tokenizer puts before every
    text and an end token, each once. A conversation is what the model's template writes. The completion begins with
    the first token that the prompt alone does not have there.

    Args:
      max_length: of more tokens, the first are kept. None: all, for packing that splits.
      completion_only: whether prompts carry no loss. None: where rows have prompts and completions.
      assistant_only: whether only what an assistant says carries loss, as the template marks it
        ({% generation %}).
      strict: whether a row that would be dropped is an error.
      embeddings: of the model that is to read them. None: as many as the tokenizer may ask for.
    Raises:
      InputError: naming the line, if a row is of no format to imitate, cannot be encoded, or (`strict`) has nothing
        to learn.
    """
    if max_length is not None and max_length < 2:
        raise InputError(f"max_length {max_length}: a token is learned after another, give 2 or more")
    kind, rows = recognize(rows)
    encode_row = _choose_encoder(kind, tokenizer, completion_only, assistant_only, rows[0])
    examples, dropped, cut, unlike = [], {}, 0, []
    for row in rows:
        whole = encode_row(row)
        check_ids(whole.tokens, embeddings, row.where)
        if whole.lost:
            unlike.append((row, tokenizer.decode(whole.lost)))
        targets = [False, *whole.targets[1:]]
        kept = Example(whole.tokens[:max_length], targets[:max_length])
        if any(kept.targets):
            examples.append(kept)
            cut += len(kept.tokens) < len(targets)
            continue
        reason = CUT if any(targets) else NOTHING
        if strict:
            raise InputError(
                f"{row.where}: {reason}, with {len(whole.tokens)} tokens: mend or leave out the row"
            )
        dropped.setdefault(reason, []).append(row.line)
    return Encoded(examples, dropped, cut, warn_of_boundaries(unlike) + _warn_of_ends(examples, tokenizer))


def warn_of_boundaries(unlike: Sequence[tuple[Row, str]]) -> list[str]:
    """A sentence about rows whose prompt's own tokens end otherwise than before a completion, or none.

    Args:
      unlike: the rows, each with the end of its prompt that is tokenized otherwise.
    """
    if not unlike:
        return []
    named = ", ".join(f"{row.where} ({end!r})" for row, end in unlike[:SHOWN])
    more = ", ..." if len(unlike) > SHOWN else ""
    return [
        f"{len(unlike)} prompts have other tokens alone than before their completion, which then begins earlier: "
        f"{named}{more}. End prompts where a token ends, or use a template that writes them the same both times"
    ]


def _warn_of_ends(examples: Sequence[Example], tokenizer: Tokenizer) -> list[str]:
    """A sentence if nothing teaches a model to end, or none."""
    ends = set(tokenizer.eos_ids)
    if any(target and token in ends for example in examples for token, target in zip(*example, strict=True)):
        return []
    return [
        f"no example teaches an end token ({', '.join(map(str, tokenizer.eos_ids))}), so the model will not stop: "
        "let the template write it where the assistant ends, or cut less"
    ]


def _choose_encoder(
    kind: Format, tokenizer: Tokenizer, completion_only: bool | None, assistant_only: bool, first: Row
) -> Callable[[Row], _Whole]:
    """What encodes a row of this format, once the options are found to fit it."""
    if kind == "tokens":
        return partial(_take_tokens, completion_only is not False, assistant_only)
    if kind not in ("text", "messages", "prompt_completion"):
        raise InputError(
            f"{first.where}: rows of format {kind} are no documents to imitate: give `text`, `messages`, or "
            "`prompt` and `completion`"
        )
    if completion_only and kind != "prompt_completion":
        raise InputError(
            f"{first.where}: loss on completions only needs `prompt` and `completion`, this is {kind}: "
            "leave the option out, or give the columns"
        )
    if kind == "prompt_completion":
        return partial(_encode_pair, tokenizer, completion_only is not False, assistant_only)
    return partial(_encode_whole, tokenizer, assistant_only)


def _encode_whole(tokenizer: Tokenizer, assistant_only: bool, row: Row) -> _Whole:
    value = row.columns.get("messages") or row.columns["text"]
    return _Whole(*encode_value(tokenizer, value, row, assistant_only), [])


def _encode_pair(tokenizer: Tokenizer, completion_only: bool, assistant_only: bool, row: Row) -> _Whole:
    prompt, completion = row.columns["prompt"], row.columns["completion"]
    alone = encode_prompt_of(tokenizer, prompt, row)
    tokens, targets = encode_value(tokenizer, prompt + completion, row, assistant_only, empty=not completion)
    start = count_common(alone, tokens)
    if completion_only:
        targets = [target and i >= start for i, target in enumerate(targets)]
    return _Whole(tokens, targets, alone[start:])


def encode_value(
    tokenizer: Tokenizer,
    value: str | list[Message],
    row: Row,
    assistant_only: bool = False,
    *,
    empty: bool = False,
) -> tuple[list[int], list[bool]]:
    """Ids of a whole text or conversation, and which carry loss: all, or those of what an assistant says.

    Args:
      empty: nothing completes the text: whatever it ends with, an end token comes.
    """
    if not isinstance(value, str):
        return _encode_chat(tokenizer, value, row, assistant_only)
    if assistant_only:
        raise InputError(f"{row.where}: loss on the assistant only needs messages, this is text")
    ids = _encode_string(tokenizer, value, row)
    ended = len(ids) > len(tokenizer.begin_ids) and ids[-1] in tokenizer.eos_ids and not empty
    ids = ids if ended else [*ids, tokenizer.eos_id]
    return ids, [True] * len(ids)


def encode_prompt_of(tokenizer: Tokenizer, prompt: str | list[Message], row: Row) -> list[int]:
    """Ids of a prompt alone, up to where the completion begins."""
    if isinstance(prompt, str):
        return _encode_string(tokenizer, prompt, row)
    return tokenizer.encode(render_messages(tokenizer, prompt, row.where, **_read_variables(row)))


def _encode_string(tokenizer: Tokenizer, text: str, row: Row) -> list[int]:
    try:
        return encode_prompt(tokenizer, text)
    except ValueError as error:  # a character outside of the vocabulary
        raise InputError(f"{row.where}: {error}") from None


def _encode_chat(
    tokenizer: Tokenizer, messages: list[Message], row: Row, assistant_only: bool
) -> tuple[list[int], list[bool]]:
    options = _read_variables(row)
    text = render_messages(tokenizer, messages, row.where, add_generation_prompt=False, **options)
    if not assistant_only or not isinstance(tokenizer, HuggingFaceTokenizer):
        ids = tokenizer.encode(text)
        return ids, [True] * len(ids)
    spans = find_spoken(tokenizer, messages, text, row.where, **options)
    ids, offsets = tokenizer.encode_with_offsets(text)
    targets = [any(begin < last and end > first for first, last in spans) for begin, end in offsets]
    return ids, targets


def _read_variables(row: Row) -> dict[str, Any]:
    return {"tools": row.columns.get("tools"), "variables": row.columns.get("chat_template_kwargs")}


def _take_tokens(completion_only: bool, assistant_only: bool, row: Row) -> _Whole:
    """A row of ids with its own labels, or masks."""
    ids = read_ids(row, "input_ids")
    if "labels" in row.columns:
        labels = read_ids(row, "labels", like=ids, lowest=NO_LOSS)
        wrong = next((i for i, x in enumerate(labels) if x != NO_LOSS and x != ids[i]), None)
        if wrong is not None:
            raise InputError(
                f"{row.where}: label {wrong} is {labels[wrong]} where the token is {ids[wrong]}: labels are the "
                f"tokens themselves, or {NO_LOSS}"
            )
        return _Whole(ids, [label != NO_LOSS for label in labels], [])
    names = ["assistant_masks", *(["completion_mask"] if completion_only else [])]
    masks = [read_ids(row, name, like=ids) for name in names if name in row.columns]
    if assistant_only and "assistant_masks" not in row.columns:
        raise InputError(
            f"{row.where}: loss on the assistant only needs a column `assistant_masks` or `labels`"
        )
    return _Whole(ids, [all(mask[i] for mask in masks) for i in range(len(ids))], [])


def read_ids(row: Row, name: str, *, like: Sequence[int] | None = None, lowest: int = 0) -> list[int]:
    """A column of whole numbers.

    Args:
      like: they are as many.
      lowest: none is less.
    """
    where, value = f"{row.where}: column {name!r}", row.columns[name]
    try:
        numbers = np.asarray(value)
    except ValueError:  # lists of several lengths
        numbers = np.asarray("")
    if numbers.ndim != 1 or (len(numbers) and numbers.dtype.kind not in "iub"):
        raise InputError(f"{where} holds no list of whole numbers: give token ids")
    if like is not None and len(numbers) != len(like):
        raise InputError(f"{where} has {len(numbers)} numbers for {len(like)} tokens: give one for each")
    if len(numbers) and numbers.min() < lowest:
        raise InputError(f"{where} has the number {numbers.min()}, less than {lowest}: give token ids")
    return numbers.astype(int).tolist()
