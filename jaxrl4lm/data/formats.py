"""What kind of data rows are, told by their columns, and the rows in the columns that the library knows."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jaxrl4lm.data.files import Row, check_messages, check_text, list_columns
from jaxrl4lm.types import InputError

Format = Literal[
    "text",
    "messages",
    "prompt_completion",
    "prompt",
    "preference",
    "unpaired_preference",
    "tokens",
    "preference_tokens",
]
"""What rows hold; `COLUMNS` says by which columns each is recognized."""

COLUMNS: dict[Format, tuple[str, ...]] = {
    "tokens": ("input_ids",),
    "preference_tokens": ("chosen_ids", "rejected_ids"),
    "preference": ("chosen", "rejected"),
    "unpaired_preference": ("prompt", "completion", "label"),
    "prompt_completion": ("prompt", "completion"),
    "messages": ("messages",),
    "text": ("text",),
    "prompt": ("prompt",),
}
"""The columns of each format. A row is of the first whose columns it has: more columns may stand beside them."""

ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "model", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
}
"""Names of speakers where messages are `from` and `value`; others stay as they are."""

CHATS = ("messages", "prompt", "completion", "chosen", "rejected")
"""Columns that hold conversations, or text."""

FOR_TEMPLATES = {
    "tools": (list, "a list of schemas"),
    "chat_template_kwargs": (dict, "names with their values"),
}
"""Columns that chat templates read, and what they hold, as it is or as JSON."""

LABELS = {"true": True, "1": True, "false": False, "0": False}


def recognize(rows: Sequence[Row]) -> tuple[Format, list[Row]]:
    """What the rows are, and the same rows in the columns of that format (`COLUMNS`).

    `conversations` become `messages`; `from` and `value` become `role` and `content`, with the roles that templates
    know; a prompt that both completions of a preference begin with becomes the column `prompt`; `tools` and
    `chat_template_kwargs` given as JSON are parsed; a value of None counts as absent. Rows that are so already come
    back as they are.

    Raises:
      InputError: naming the first row of no format, or of another than the first row, or with other values in its
        columns than the format has.
    """
    if not rows:
        raise InputError("the data has no rows: give it at least one")
    given = [row._replace(columns=_translate(row)) for row in rows]
    formats: list[Format] = [_find_format(row) for row in given]
    for row, kind in zip(given, formats, strict=True):
        if kind != formats[0]:
            raise InputError(
                f"{row.where}: a row of format {kind} ({list_columns(row)}), where the first is {formats[0]}: "
                "give all rows the same columns"
            )
    return formats[0], [_check(row, formats[0]) for row in given]


def _translate(row: Row) -> dict[str, Any]:
    """The columns that are there, conversations in one form."""
    columns = {name: value for name, value in row.columns.items() if value is not None}
    if "conversations" in columns and "messages" not in columns:
        columns["messages"] = columns.pop("conversations")
    for name in CHATS:
        if isinstance(columns.get(name), Sequence) and not isinstance(columns[name], str):
            columns[name] = [_translate_message(message) for message in columns[name]]
    for name in FOR_TEMPLATES:
        if name in columns and (value := _read_json(columns.pop(name), name, row.where)):
            columns[name] = value
    return columns


def _read_json(value: Any, name: str, where: str) -> Any:
    """What a column for the template holds, parsed if it is text; nothing at all is no more than an empty list."""
    kind, form = FOR_TEMPLATES[name]
    try:
        value = json.loads(value or "null") if isinstance(value, str) else value
        if name == "tools" and isinstance(value, list):  # each may be text, too
            value = [json.loads(each) if isinstance(each, str) else each for each in value]
    except ValueError as error:
        raise InputError(f"{where}: column {name!r} is no JSON ({error}): mend it") from None
    if value is not None and not isinstance(value, kind):
        raise InputError(f"{where}: column {name!r} is {value!r}: write {form}")
    return value


def _translate_message(message: Any) -> Any:
    if not isinstance(message, Mapping) or "from" not in message:
        return message
    rest = {name: value for name, value in message.items() if name not in ("from", "value")}
    speaker = message["from"]
    role = ROLES.get(speaker, speaker) if isinstance(speaker, str) else speaker
    return {"role": role, "content": message.get("value"), **rest}


def _find_format(row: Row) -> Format:
    kind: Format
    for kind, names in COLUMNS.items():
        known = kind != "unpaired_preference" or read_label(row.columns.get("label")) is not None
        if known and all(name in row.columns for name in names):
            return kind
    raise InputError(
        f"{row.where}: {list_columns(row)}, none of a known format: give it `text`, `messages`, or `prompt` and "
        "`completion`, or say which column is which, as in columns={'prompt': 'question'}"
    )


def read_label(value: Any) -> bool | None:
    """Whether a completion was liked: a boolean, 0 or 1, or such as text. None: it says nothing of that kind."""
    return LABELS.get(str(value).lower())


def _check(row: Row, kind: Format) -> Row:
    """The row with its values as the format has them."""
    columns = row.columns
    mine = (*COLUMNS[kind], "prompt") if kind == "preference" else COLUMNS[kind]
    for name in mine:
        if name in (*CHATS, "text") and name in columns:
            where = f"{row.where}: column {name!r}"
            if isinstance(columns[name], list) and name != "text":
                check_messages(columns[name], where, answered=kind != "prompt")
            else:
                check_text(columns[name], where)
    if kind == "preference":
        columns = _find_prompt(row)
    elif kind == "unpaired_preference":
        columns = {**columns, "label": read_label(columns["label"])}
    names = [name for name in CHATS if name in columns and name in mine]
    texts = [name for name in names if isinstance(columns[name], str)]
    if kind == "messages" and texts:
        raise InputError(f"{row.where}: column 'messages' holds text: call it `text`, or write messages")
    if texts and len(texts) < len(names):
        chat = next(name for name in names if name not in texts)
        raise InputError(
            f"{row.where}: column {texts[0]!r} holds text and column {chat!r} messages: write both as messages"
        )
    return row._replace(columns=columns)


def _find_prompt(row: Row) -> dict[str, Any]:
    """The columns of a preference, its prompt explicit.

    A prompt in text beside two whole conversations says again what those begin with.
    """
    columns, (chosen, rejected) = row.columns, (row.columns["chosen"], row.columns["rejected"])
    texts = isinstance(chosen, str)
    if texts != isinstance(rejected, str):
        raise InputError(f"{row.where}: of 'chosen' and 'rejected' one is text: write both as messages")
    if "prompt" in columns and (texts or not isinstance(columns["prompt"], str)):
        return columns
    size = count_common(chosen, rejected)
    if not texts:
        size = min(size, len(chosen) - 1, len(rejected) - 1)  # both say something
    elif size and chosen[size - 1] == " ":
        size -= 1  # a space belongs to the word that it stands before
    if not texts and size < 1:
        raise InputError(
            f"{row.where}: 'chosen' and 'rejected' begin with no message in common: add a `prompt`"
        )
    return {**columns, "prompt": chosen[:size], "chosen": chosen[size:], "rejected": rejected[size:]}


def count_common(a: Sequence, b: Sequence) -> int:
    """With how many elements two sequences begin alike."""
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)
