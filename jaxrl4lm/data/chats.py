"""Conversations, as rows of a file hold them, as text under a model's template."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrl4lm.data.files import Message
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxrl4lm.data.tokenizer import Tokenizer
from jaxrl4lm.types import InputError


def render_messages(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    where: str,
    *,
    tools: Any = None,
    variables: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
    marked: bool = False,
) -> str:
    """The text of a conversation under the model's template, up to where the assistant is to speak.

    Args:
      where: begins the sentences of errors.
      tools: schemas of functions, or the JSON of such.
      variables: further ones that the template reads.
      add_generation_prompt: False: up to the end of what was said.
      marked: as of `HuggingFaceTokenizer.chat`.
    Raises:
      InputError: if there is no template, or it refuses the conversation, or jinja2 is missing.
    """
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        raise InputError(
            f"{where}: a new model has no chat template: give texts, or the folder of a chat model"
        )
    given = variables if isinstance(variables, Mapping) else ()
    if own := {"messages", "tools", "add_generation_prompt", "marked"}.intersection(given):
        raise InputError(
            f"{where}: column 'chat_template_kwargs' sets {min(own)!r}, which is set for every conversation: leave it out"
        )
    try:
        schemas = json.loads(tools) if isinstance(tools, str) else tools
        text = tokenizer.chat(
            messages,
            tools=schemas or None,
            add_generation_prompt=add_generation_prompt,
            marked=marked,
            **(variables or {}),
        )
        text.encode()  # half of a surrogate pair is no text
    except ImportError:
        raise InputError(f"{where}: chats need the package jinja2: pip install 'jaxrl4lm[chat]'") from None
    except Exception as error:  # templates are programs: they may fail in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{where}: {reason}") from None
    return text


def find_spoken(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    text: str,
    where: str,
    *,
    tools: Any = None,
    variables: Mapping[str, Any] | None = None,
) -> list[tuple[int, int]]:
    """The characters [begin, end) of a rendered conversation that its template says are an assistant's.

    Args:
      text: what `render_messages` makes of the same conversation.
    Raises:
      InputError: if the template marks nothing, or acts on the marks.
    """
    options: dict[str, Any] = {"tools": tools, "variables": variables, "add_generation_prompt": False}
    marked = render_messages(tokenizer, messages, where, marked=True, **options)
    fix = "put {% generation %} ... {% endgeneration %} around what the assistant says in the chat template"
    from jaxrl4lm.data.chat_template import BEGIN, END  # jinja2, which is there by now

    if marked == text:
        raise InputError(
            f"{where}: nothing is marked as the assistant's: leave the row out if none speaks, or {fix}"
        )
    if marked.replace(BEGIN, "").replace(END, "") != text:
        raise InputError(
            f"{where}: the template changes what it marks as the assistant's: {fix}, last of all"
        )
    spans, position = [], 0
    for piece in marked.split(BEGIN):
        spoken, ended, rest = piece.partition(END)
        if ended:
            spans.append((position, position + len(spoken)))
        position += len(spoken) + len(rest)
    return spans
