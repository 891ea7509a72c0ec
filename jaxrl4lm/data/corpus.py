"""Prompts as arrays, and what all texts share on their way to arrays.

Shapes: `N` rows, `L` tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxrl4lm.data.chats import render_messages
from jaxrl4lm.data.files import Message, Row
from jaxrl4lm.data.formats import count_common
from jaxrl4lm.data.tokenizer import Tokenizer
from jaxrl4lm.types import InputError


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text after what the tokenizer puts before every text; what of that the text itself begins with comes once."""
    ids, begin = tokenizer.encode(text), tokenizer.begin_ids
    return [*begin, *ids[count_common(begin, ids) :]]


def check_ids(ids: Sequence[int], embeddings: int | None, where: str) -> None:
    """Raises InputError, which begins with `where`, if a model of so many embeddings has none for one of the ids."""
    foreign = None if embeddings is None else next((i for i in ids if i >= embeddings), None)
    if foreign is not None:
        raise InputError(
            f"{where}: the model has {embeddings} tokens, its tokenizer gave number {foreign}: "
            "tokenizer.json is not this model's"
        )


def pad(
    rows: Sequence[Sequence[int]], length: int, pad_id: int, *, left: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids as int32 `[N, length]`, and the mask of real tokens."""
    tokens = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, ids in enumerate(rows):
        span = slice(length - len(ids), length) if left else slice(0, len(ids))
        tokens[i, span], mask[i, span] = ids, True
    return tokens, mask


def bucket(length: int) -> int:
    """The least of 8, 16, 32, 48, 64, 96, 128, 192, ... that is not less: few shapes, at most a third of them padding."""
    size = 8
    while size < length:
        if size >= 32 and length <= size * 3 // 2:
            return size * 3 // 2
        size *= 2
    return size


class PromptSet(NamedTuple):
    """Prompts of a file, encoded."""

    rows: list[Row]
    texts: list[str]
    """What the model reads: texts as they are, messages under its template."""
    ids: list[list[int]]
    longest: int
    """The most tokens for which there is room beside a completion."""
    given: list[str | list[Message]]
    """As the file has them: texts or messages. What rewards are called with."""
    too_long: tuple[int, ...] = ()
    """Lines of prompts that were left out: there was no room for a completion."""

    def batch(
        self, indices: Sequence[int], pad_id: int, *, widest: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and mask `[n, P]` of some prompts, padded on the left to a bucket; `widest`: to that of the longest of all."""
        rows = [self.ids[i] for i in indices]
        longest = max(map(len, self.ids if widest else rows))
        return pad(rows, min(bucket(longest), self.longest), pad_id, left=True)

    def select(self, indices: Sequence[int]) -> "PromptSet":
        """Some of the prompts."""
        return PromptSet(
            [self.rows[i] for i in indices],
            [self.texts[i] for i in indices],
            [self.ids[i] for i in indices],
            self.longest,
            [self.given[i] for i in indices],
            self.too_long,
        )

    def columns(self, indices: Sequence[int], copies: int) -> dict[str, list]:
        """The other columns of some prompts, each value repeated for its copies; None where a row lacks one."""
        names = {name: None for i in indices for name in self.rows[i].columns}
        return {
            name: [self.rows[i].columns.get(name) for i in indices for _ in range(copies)] for name in names
        }


def encode_row(row: Row, column: str, tokenizer: Tokenizer, source: str) -> tuple[str, list[int]]:
    """The text that the model is to complete, and its ids.

    Messages are rendered by the model's template, which has the columns `tools` and `chat_template_kwargs` where the
    row has them, and writes what begins a text itself.

    Args:
      row: with text or messages in `column`.
      source: the file's name, for messages.
    Raises:
      InputError: naming the line, if the prompt is empty or unknown to the tokenizer, or there is no template.
    """
    where, value = f"{source}, line {row.line}", row.columns[column]
    try:
        if isinstance(value, str):
            text, ids = value, encode_prompt(tokenizer, value)
        else:
            tools, variables = row.columns.get("tools"), row.columns.get("chat_template_kwargs")
            text = render_messages(tokenizer, value, where, tools=tools, variables=variables)
            ids = tokenizer.encode(text)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    if not ids:
        raise InputError(f"{where}: the prompt is empty, and the tokenizer has no begin token")
    if tokenizer.find_unknown(text) is not None:
        raise InputError(f"{where}: {text!r} has characters that the model's tokenizer does not know")
    return text, ids


def encode_prompts(
    rows: Sequence[Row],
    column: str,
    tokenizer: Tokenizer,
    source: str,
    room: int,
    context: int,
    *,
    embeddings: int | None = None,
    strict: bool = True,
) -> PromptSet:
    """Prompts ready to complete.

    Args:
      rows: of a JSONL file, with text or messages in `column`.
      source: the file's name, for messages.
      room: tokens of the longest completion.
      context: tokens that prompt and completion may have together.
      embeddings: of the model that is to read them. None: as many as the tokenizer may ask for.
      strict: False: a prompt that leaves no room for a completion is left out, not refused, unless all are such.
    Raises:
      InputError: naming the line, as `encode_row`, and if a prompt leaves no room for a completion or has a token
        without an embedding.
    """
    texts, kept, too_long = [], [], []
    for row in rows:
        text, ids = encode_row(row, column, tokenizer, source)
        check_ids(ids, embeddings, f"{source}, line {row.line}")
        if len(ids) + room > context:
            too_long.append(row.line)
            if strict or len(too_long) == len(rows):
                raise InputError(
                    f"{source}, line {row.line}: the prompt has {len(ids)} tokens, which with {room} new ones exceeds "
                    f"the context of {context}: shorten the prompt, lower --max-new-tokens, or use a longer context"
                )
            continue
        texts.append((text, ids))
        kept.append(row)
    given = [row.columns[column] for row in kept]
    return PromptSet(
        kept,
        [text for text, _ in texts],
        [ids for _, ids in texts],
        context - room,
        given,
        tuple(too_long),
    )


def epoch_rows(seed: int, first: int, count: int, size: int) -> np.ndarray:
    """Rows number first ... first + count − 1 of an endless stream that visits `size` rows in a new random order each epoch.

    A function of its arguments alone, so that a resumed run sees what an uninterrupted one would have seen.
    """
    positions = np.arange(first, first + count)
    order = {
        epoch: np.random.Generator(np.random.Philox(key=[seed % 2**64, epoch])).permutation(size)
        for epoch in np.unique(positions // size).tolist()
    }
    return np.array([order[p // size][p % size] for p in positions.tolist()], np.int32)
