"""Reading what users bring: JSONL rows and text, with errors that name the file and the line."""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxrl4lm.types import InputError

Message = dict[str, Any]
"""`role` (system, user, assistant, tool) and `content`."""


class Row(NamedTuple):
    """One line of a JSONL file."""

    line: int
    """Counted from 1."""
    columns: dict[str, Any]


def read_text(path: pathlib.Path) -> str:
    """The whole of a UTF-8 file.

    Raises:
      InputError: if it is missing, unreadable, not UTF-8 or empty.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except IsADirectoryError:
        raise InputError(f"{path} is a folder: name a file") from None
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check the path") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}): convert it") from None
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): check the path and its permissions"
        ) from None
    if not text.strip():
        raise InputError(f"{path} is empty: give it at least one line")
    return text


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
      InputError: if it cannot be read, or holds something else.
    """
    text = read_text(path)
    if text.startswith("version https://git-lfs"):
        raise InputError(f"{path} is a Git LFS pointer, not the file: run `git lfs pull`")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}): mend or replace it") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__} where a JSON object is expected")
    return content


def load(path: str | os.PathLike) -> list[Row]:
    """The rows of a JSONL file, each with its line and its columns: what `training.reinforcement` takes as prompts.

    Raises:
      InputError: if the file or a line of it cannot be used.
    """
    return read_jsonl(pathlib.Path(path), [])


def read_jsonl(path: pathlib.Path, required: Sequence[str], *, chats: bool = False) -> list[Row]:
    """The rows of a JSONL file; blank lines are skipped.

    Args:
      required: columns that every row must have, with text in them.
      chats: lists of messages will do as well as text.
    Raises:
      InputError: if the file or a line of it cannot be used.
    """
    rows = []
    # Only a line feed ends a line of JSONL: other separators may stand inside strings.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            columns = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}, line {number}: not JSON ({error.msg} at column {error.colno}), mend the line"
            ) from None
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits, nesting without end
            raise InputError(f"{path}, line {number}: unreadable JSON ({error}), mend the line") from None
        if not isinstance(columns, dict):
            raise InputError(
                f"{path}, line {number}: a {type(columns).__name__} where an object is expected, as in "
                '{"prompt": "..."}'
            )
        for name in required:
            _check_text(columns, name, f"{path}, line {number}", chats)
        rows.append(Row(number, columns))
    return rows


def _check_text(columns: dict[str, Any], name: str, where: str, chats: bool) -> None:
    if name not in columns:
        found = ", ".join(map(repr, columns)) or "none"
        raise InputError(f"{where}: no column {name!r}; its columns are {found}")
    value = columns[name]
    if chats and isinstance(value, list):
        check_messages(value, f"{where}: column {name!r}")
    elif not isinstance(value, str):
        raise InputError(f"{where}: column {name!r} holds a {type(value).__name__} where text is expected")
    elif any("\ud800" <= c <= "\udfff" for c in value):
        raise InputError(
            f"{where}: column {name!r} holds half of a surrogate pair, which is not text: mend it"
        )


def check_messages(value: Any, where: str) -> None:
    """Refuses what is no conversation that an assistant can answer.

    Args:
      where: begins the sentence of the error.
    Raises:
      InputError: if it is no list of messages, or the assistant has just spoken.
    """
    if not isinstance(value, list) or not value:
        raise InputError(f"{where} holds no text and no messages: write a text, or a list of messages")
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InputError(
                f'{where}: message {i + 1} is not of the form {{"role": "user", "content": "..."}}: mend it'
            )
    if value[-1]["role"] == "assistant":
        raise InputError(f"{where} ends with the assistant's own message: end with what it is to answer")


def find_last_text(prompt: str | Sequence[Message]) -> str:
    """A text as it is; of a conversation, the text of its last message."""
    return prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))
