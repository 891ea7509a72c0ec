"""Rows, and reading JSONL and text into them, with errors that name the file and the line."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxrl4lm.types import InputError

Message = dict[str, Any]
"""`role` (system, user, assistant, tool) and `content`."""


class Row(NamedTuple):
    """One line of a JSONL file, or one record of another source."""

    line: int
    """Counted from 1; the number of the record where a source has no lines."""
    columns: dict[str, Any]
    source: str = ""
    """The name of the file or data set, for messages."""

    @property
    def where(self) -> str:
        """What begins the sentence of an error."""
        return f"{self.source or 'the data'}, line {self.line}"


def read_bytes(path: pathlib.Path) -> bytes:
    """The whole of a file.

    Raises:
      InputError: if it is missing or unreadable.
    """
    try:
        return path.read_bytes()
    except IsADirectoryError:
        raise InputError(f"{path} is a folder: name a file") from None
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check the path") from None
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): check the path and its permissions"
        ) from None


def decode_text(raw: bytes, name: str) -> str:
    """The text of a UTF-8 file; every line ends with a line feed, and there is no byte order mark.

    Raises:
      InputError: if it is not UTF-8, empty, or not the file but a pointer to it.
    """
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text (byte {error.start}): convert it") from None
    if not text.strip():
        raise InputError(f"{name} is empty: give it at least one line")
    if text.startswith("version https://git-lfs"):
        raise InputError(f"{name} is a Git LFS pointer, not the file: run `git lfs pull`")
    return text


def read_text(path: pathlib.Path) -> str:
    """The whole of a UTF-8 file.

    Raises:
      InputError: if it is missing, unreadable, not UTF-8 or empty.
    """
    return decode_text(read_bytes(path), str(path))


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
      InputError: if it cannot be read, or holds something else.
    """
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}): mend or replace it") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__} where a JSON object is expected")
    return content


def read_jsonl(path: pathlib.Path, required: Sequence[str], *, chats: bool = False) -> list[Row]:
    """The rows of a JSONL file; blank lines are skipped.

    Args:
      required: columns that every row must have, with text in them.
      chats: lists of messages will do as well as text.
    Raises:
      InputError: if the file or a line of it cannot be used.
    """
    rows = parse_jsonl(read_text(path), str(path))
    require_texts(rows, required, chats=chats)
    return rows


def require_texts(rows: Sequence[Row], required: Sequence[str], *, chats: bool = False) -> None:
    """Raises InputError where a row lacks one of the columns, or it holds no text; nor messages, where `chats` may."""
    for row in rows:
        for name in required:
            if name not in row.columns:
                raise InputError(f"{row.where}: no column {name!r}; {list_columns(row)}")
            value = row.columns[name]
            if chats and isinstance(value, list):
                check_messages(value, f"{row.where}: column {name!r}")
            else:
                check_text(value, f"{row.where}: column {name!r}")


def parse_jsonl(text: str, source: str) -> list[Row]:
    """One row a line that is not blank.

    Raises:
      InputError: naming the first line that is no JSON object.
    """
    # Only a line feed ends a line of JSONL: other separators may stand inside strings.
    lines = enumerate(text.split("\n"), start=1)
    return [_parse_line(number, line, source) for number, line in lines if line.strip()]


def _parse_line(number: int, line: str, source: str) -> Row:
    try:
        columns = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{source}, line {number}: not JSON ({error.msg} at column {error.colno}), mend the line"
        ) from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, nesting without end
        raise InputError(f"{source}, line {number}: unreadable JSON ({error}), mend the line") from None
    return make_row(number, columns, source)


def make_row(number: int, columns: Any, source: str) -> Row:
    """A row of what stands in a file.

    Raises:
      InputError: if that is not an object.
    """
    if not isinstance(columns, dict):
        raise InputError(
            f"{source}, line {number}: a {type(columns).__name__} where an object is expected, as in "
            '{"prompt": "..."}'
        )
    return Row(number, columns, source)


def list_columns(row: Row) -> str:
    """Half a sentence about the columns that a row has."""
    return f"its columns are {', '.join(map(repr, row.columns)) or 'none'}"


def check_text(value: Any, where: str) -> None:
    """Refuses what is no text.

    Args:
      where: begins the sentence of the error.
    """
    if not isinstance(value, str):
        raise InputError(f"{where} holds a {type(value).__name__} where text is expected")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise InputError(f"{where} holds half of a surrogate pair, which is not text: mend it")


def check_messages(value: Any, where: str, *, answered: bool = False) -> None:
    """Refuses what is no conversation.

    Args:
      where: begins the sentence of the error.
      answered: it may end with what the assistant says.
    Raises:
      InputError: if it is no list of messages, or the assistant has just spoken though it is to answer.
    """
    if not isinstance(value, list) or not value:
        raise InputError(f"{where} holds no text and no messages: write a text, or a list of messages")
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InputError(
                f'{where}: message {i + 1} is not of the form {{"role": "user", "content": "..."}}: mend it'
            )
    if not answered and value[-1]["role"] == "assistant":
        raise InputError(f"{where} ends with the assistant's own message: end with what it is to answer")


def find_last_text(prompt: str | Sequence[Message]) -> str:
    """A text as it is; of a conversation, the text of its last message."""
    return prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))
