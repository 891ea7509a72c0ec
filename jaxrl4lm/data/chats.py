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
) -> str:
    """The text of a conversation under the model's template, up to where the assistant is to speak.

    Args:
      where: begins the sentences of errors.
      tools: schemas of functions, or the JSON of such.
      variables: further ones that the template reads.
    Raises:
      InputError: if there is no template, or it refuses the conversation, or jinja2 is missing.
    """
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        raise InputError(
            f"{where}: a new model has no chat template: give texts, or the folder of a chat model"
        )
    try:
        schemas = json.loads(tools) if isinstance(tools, str) else tools
        text = tokenizer.chat(messages, tools=schemas or None, **(variables or {}))
        text.encode()  # half of a surrogate pair is no text
    except ImportError:
        raise InputError(f"{where}: chats need the package jinja2: pip install 'jaxrl4lm[chat]'") from None
    except Exception as error:  # templates are programs: they may fail in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{where}: {reason}") from None
    return text
