"""Prompts as token ids with what completes them: two completions, one that was liked or not, one to learn from, or none."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxrl4lm.data.corpus import check_ids
from jaxrl4lm.data.encoding import (
    CUT,
    encode_prompt_of,
    encode_value,
    read_ids,
    warn_of_boundaries,
)
from jaxrl4lm.data.files import Row
from jaxrl4lm.data.formats import count_common, recognize
from jaxrl4lm.data.tokenizer import Tokenizer
from jaxrl4lm.types import InputError


class Pair(NamedTuple):
    """Two completions of a prompt, one better than the other."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    margin: float = 0.0
    """By how much the better is better, for a reward model: the column `margin`."""


class Judged(NamedTuple):
    """A completion of a prompt, liked or not."""

    prompt: list[int]
    completion: list[int]
    label: bool


class Prompted(NamedTuple):
    """A prompt, and a completion to learn from; empty where the row has none."""

    prompt: list[int]
    completion: list[int]


class EncodedPairs(NamedTuple):
    """Preferences ready for batches."""

    examples: list[Pair]
    dropped: dict[str, list[int]]
    """Why rows could not be used → their lines."""
    cut: int
    """How many lost the end of a completion to `max_length`."""
    warnings: list[str]
    """As of `encoding.Encoded`."""


class EncodedJudged(NamedTuple):
    """Judged completions ready for batches."""

    examples: list[Judged]
    dropped: dict[str, list[int]]
    cut: int
    warnings: list[str]


class EncodedPrompted(NamedTuple):
    """Prompts ready for batches."""

    examples: list[Prompted]
    dropped: dict[str, list[int]]
    cut: int
    warnings: list[str]


class _Split(NamedTuple):
    """A prompt and the completions that follow it, before they are cut."""

    prompt: list[int]
    completions: list[list[int]]
    lost: list[int]
    """The end of the prompt's own tokens that some completion does not follow."""


def encode_pairs(
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    *,
    max_length: int | None = None,
    strict: bool = False,
    embeddings: int | None = None,
) -> EncodedPairs:
    """Preferences: the prompt is what the ids of both whole texts begin with of its own.

    Args:
      rows: of format `preference`, or `preference_tokens`, whose prompt is empty then.
      max_length: of prompt and completion together; the first tokens are kept. A row whose prompt alone has as many
        is dropped. None: all.
      strict: whether a row that would be dropped is an error.
      embeddings: of the model that is to read them. None: as many as the tokenizer may ask for.
    Raises:
      InputError: naming the line, if a row is no preference, or (`strict`) its prompt is too long.
    """
    kind, rows = recognize(rows)
    if kind == "preference_tokens":
        splits = [
            _Split([], [read_ids(row, name) for name in ("chosen_ids", "rejected_ids")], []) for row in rows
        ]
    elif kind == "preference":
        splits = [_split(tokenizer, row, "chosen", "rejected") for row in rows]
    else:
        raise InputError(
            f"{rows[0].where}: this is {kind}, no preference: give `prompt`, `chosen` and `rejected`"
        )
    kept, dropped, cut, warnings = _cut(rows, splits, tokenizer, max_length, strict, embeddings)
    pairs = [Pair(split.prompt, *split.completions, margin=_read_margin(row)) for row, split in kept]
    return EncodedPairs(pairs, dropped, cut, warnings)


def encode_judged(
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    *,
    max_length: int | None = None,
    strict: bool = False,
    embeddings: int | None = None,
) -> EncodedJudged:
    """Completions with a label each; arguments as of `encode_pairs`.

    Preferences are split: all that were chosen are liked, and after them all that were rejected are not, so that
    neighbours have other prompts.
    """
    kind, rows = recognize(rows)
    if kind == "preference":
        rows = [
            row._replace(columns=row.columns | {"completion": row.columns[name], "label": name == "chosen"})
            for name in ("chosen", "rejected")
            for row in rows
        ]
    elif kind != "unpaired_preference":
        raise InputError(f"{rows[0].where}: this is {kind}: give `prompt`, `completion` and `label`")
    splits = [_split(tokenizer, row, "completion") for row in rows]
    kept, dropped, cut, warnings = _cut(rows, splits, tokenizer, max_length, strict, embeddings)
    judged = [Judged(split.prompt, split.completions[0], row.columns["label"]) for row, split in kept]
    return EncodedJudged(judged, dropped, cut, warnings)


def encode_prompted(
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    *,
    max_length: int | None = None,
    room: int = 1,
    strict: bool = False,
    embeddings: int | None = None,
) -> EncodedPrompted:
    """Prompts, with the completion of those rows that have one; other arguments as of `encode_pairs`.

    Of a conversation the last message is the completion, of a preference the prompt alone is read.

    Args:
      room: tokens that `max_length` must leave for a completion; else the row is dropped.
    """
    kind, rows = recognize(rows)
    if kind == "messages":
        rows = [_part_conversation(row) for row in rows]
    if kind in ("messages", "prompt_completion", "unpaired_preference"):
        splits = [_split(tokenizer, row, "completion") for row in rows]
    elif kind in ("prompt", "preference"):
        prompts = [encode_prompt_of(tokenizer, row.columns["prompt"], row) for row in rows]
        splits = [_Split(prompt, [[]], []) for prompt in prompts]
    else:
        raise InputError(
            f"{rows[0].where}: this is {kind}: give `prompt`, `prompt` and `completion`, or `messages`"
        )
    if empty := next((row for row, split in zip(rows, splits, strict=True) if not split.prompt), None):
        raise InputError(f"{empty.where}: the prompt is empty, and the tokenizer has no begin token")
    kept, dropped, cut, warnings = _cut(rows, splits, tokenizer, max_length, strict, embeddings, room)
    prompted = [Prompted(split.prompt, *split.completions) for _, split in kept]
    return EncodedPrompted(prompted, dropped, cut, warnings)


def _part_conversation(row: Row) -> Row:
    messages = row.columns["messages"]
    if len(messages) < 2:
        raise InputError(f"{row.where}: a conversation of one message has no prompt: add what it answers")
    return row._replace(columns=row.columns | {"prompt": messages[:-1], "completion": messages[-1:]})


def _read_margin(row: Row) -> float:
    margin = row.columns.get("margin", 0.0)
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
        raise InputError(f"{row.where}: column 'margin' holds {margin!r}: give a number")
    return float(margin)


def _split(tokenizer: Tokenizer, row: Row, *names: str) -> _Split:
    prompt = row.columns["prompt"]
    alone = encode_prompt_of(tokenizer, prompt, row)
    wholes = []
    for name in names:
        completion = row.columns[name]
        wholes.append(encode_value(tokenizer, prompt + completion, row, empty=not completion)[0])
    start = min(count_common(alone, whole) for whole in wholes)
    return _Split(alone[:start], [whole[start:] for whole in wholes], alone[start:])


def _cut(
    rows: Sequence[Row],
    splits: Sequence[_Split],
    tokenizer: Tokenizer,
    max_length: int | None,
    strict: bool,
    embeddings: int | None,
    least: int = 1,
) -> tuple[list[tuple[Row, _Split]], dict[str, list[int]], int, list[str]]:
    """Rows that can be used, cut; and what is to be said of the others. `least`: tokens that a prompt must leave."""
    kept, dropped, cut = [], {}, 0
    for row, split in zip(rows, splits, strict=True):
        for completion in split.completions:
            check_ids([*split.prompt, *completion], embeddings, row.where)
        room = None if max_length is None else max_length - len(split.prompt)
        if room is not None and room < least:
            if strict:
                raise InputError(f"{row.where}: {CUT}, the prompt has {len(split.prompt)} tokens: shorten it")
            dropped.setdefault(CUT, []).append(row.line)
            continue
        completions = [completion[:room] for completion in split.completions]
        cut += completions != split.completions
        kept.append((row, split._replace(completions=completions)))
    unlike = [(row, tokenizer.decode(x.lost)) for row, x in zip(rows, splits, strict=True) if x.lost]
    return kept, dropped, cut, warn_of_boundaries(unlike)
