"""Hugging Face tokenizers: `tokenizer.json`, its special tokens and chat template, in and out."""

import json
import os
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import tokenizers

from jaxrl4lm.data.files import read_object
from jaxrl4lm.data.tokenizer import ByteTokenizer, CharacterTokenizer, Tokenizer
from jaxrl4lm.types import InputError


@dataclass(frozen=True)
class HuggingFaceTokenizer:
    """A `tokenizers.Tokenizer` and the ids that the library asks for.

    `pad_id` is no end token: where a tokenizer has no pad token of its own, or one that ends texts, it is another
    id, harmless because masks never come from ids.
    """

    backend: tokenizers.Tokenizer
    pad_id: int
    eos_id: int
    begin_ids: tuple[int, ...] = ()
    """What the tokenizer's post-processor puts before every text."""
    eos_ids: tuple[int, ...] = ()
    """Every id that ends a text, `eos_id` first (chat models have several)."""
    config: dict[str, Any] = field(default_factory=dict)
    """`tokenizer_config.json`."""
    chat_template: str | None = None

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "HuggingFaceTokenizer":
        """The tokenizer of a model's folder; the end tokens are those of `generation_config.json`, where it
        says."""
        folder = pathlib.Path(folder)
        read_object(folder / "tokenizer.json")  # says more clearly what is wrong
        try:
            backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # that is what it raises
            raise InputError(f"{folder / 'tokenizer.json'} is no tokenizer ({error}): replace it") from None
        # What some program asked for when it saved them: lengths are the caller's matter.
        backend.no_truncation()
        backend.no_padding()
        config = _json(folder / "tokenizer_config.json")
        model, generation = _json(folder / "config.json"), _json(folder / "generation_config.json")
        template = folder / "chat_template.jinja"
        chat_template = template.read_text() if template.exists() else config.get("chat_template")
        named = [_id(backend, config.get("eos_token"))]
        listed = generation.get("eos_token_id", model.get("eos_token_id"))
        listed = listed if isinstance(listed, list) else [listed]
        eos_ids = tuple(dict.fromkeys(i for i in [*named, *listed] if i is not None))
        if not eos_ids:
            raise InputError(
                f"{folder}: no end token in tokenizer_config.json or config.json: set eos_token there"
            )
        if isinstance(chat_template, list):  # several templates, by name
            chat_template = next((t["template"] for t in chat_template if t["name"] == "default"), None)
        return cls(
            backend=backend,
            pad_id=_pad(backend, _id(backend, config.get("pad_token")), eos_ids),
            eos_id=eos_ids[0],
            begin_ids=_find_begin(backend),
            eos_ids=eos_ids,
            config=config,
            chat_template=chat_template,
        )

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "HuggingFaceTokenizer":
        """The same ids and texts in Hugging Face's form, for the character and byte tokenizers.

        Raises:
          ValueError: if the tokenizer is of another kind.
        """
        if isinstance(tokenizer, HuggingFaceTokenizer):
            return tokenizer
        special = ["<pad>", "<eos>", "<bos>"]
        if isinstance(tokenizer, CharacterTokenizer):
            pieces = list(tokenizer.characters)
            model = tokenizers.models.WordLevel(
                {p: i for i, p in enumerate(special + pieces)}, unk_token="<pad>"
            )
            before = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
            after = tokenizers.decoders.Fuse()
        elif isinstance(tokenizer, ByteTokenizer):
            model = tokenizers.models.BPE({p: i for i, p in enumerate(special + _byte_characters())}, [])
            before = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            after = tokenizers.decoders.ByteLevel()
        else:
            raise ValueError(
                f"cannot write a {type(tokenizer).__name__} as tokenizer.json: give a HuggingFaceTokenizer"
            )
        backend = tokenizers.Tokenizer(model)
        backend.pre_tokenizer, backend.decoder = before, after
        backend.add_special_tokens(special)
        if tokenizer.bos_id is not None:
            begin = ("<bos>", tokenizer.bos_id)
            backend.post_processor = tokenizers.processors.TemplateProcessing(
                "<bos> $A", special_tokens=[begin]
            )
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        config |= dict(zip(("pad_token", "eos_token", "bos_token"), special, strict=True))
        eos = tokenizer.eos_id
        return cls(backend, tokenizer.pad_id, eos, tokenizer.begin_ids, (eos,), config)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id; a model's own vocabulary may be padded beyond it."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    def special_id(self, name: str) -> int | None:
        """Id of the token that the configuration calls so ("bos_token"), None where it names none."""
        return _id(self.backend, self.config.get(name))

    def encode(self, text: str) -> list[int]:
        """Token ids, without special tokens put around the text."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def find_unknown(self, text: str) -> str | None:
        """The first part of the text for which there is only the unknown token; written out, that is a token as any."""
        unknown = getattr(self.backend.model, "unk_token", None)
        encoding = self.backend.encode(text, add_special_tokens=False)
        for token, (begin, end) in zip(encoding.tokens, encoding.offsets, strict=True):
            if token == unknown and text[begin:end].strip() != unknown:
                return text[begin:end]
        return None

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, special tokens left out."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def chat(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
        """The text of a conversation under the model's template.

        Args:
          messages: each with a `role` (system, user, assistant) and its `content`.
          add_generation_prompt: end where the assistant is to speak.
        Raises:
          ValueError: if the tokenizer has no template.
        """
        if self.chat_template is None:
            raise ValueError(
                "this tokenizer has no chat template: write the prompt out, or load a chat model's folder"
            )
        from jaxrl4lm.data.chat_template import compiled  # jinja2: only chat models need it

        special = {k: _content(v) for k, v in self.config.items() if k.endswith("_token")}
        given = {"messages": messages, "add_generation_prompt": add_generation_prompt, **special}
        return compiled(self.chat_template).render(tools=None, documents=None, **given)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which holds the chat template."""
        folder = pathlib.Path(folder)
        # Of what was there before: it would be read first.
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        self.backend.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self.config}
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False))


def _json(path: pathlib.Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}


def _content(token: str | dict | None) -> str | None:
    """A special token is written as its text, or as a record that holds it."""
    return token.get("content") if isinstance(token, dict) else token


def _id(backend: tokenizers.Tokenizer, token: str | dict | None) -> int | None:
    text = _content(token)
    return None if text is None else backend.token_to_id(text)


def _find_begin(backend: tokenizers.Tokenizer) -> tuple[int, ...]:
    """The ids that come before those of a text; the text tried is any that has tokens of its own."""
    added = [token.content for token in backend.get_added_tokens_decoder().values()]
    for text in ("a", *added):
        encoding = backend.encode(text, add_special_tokens=True)
        own = [i for i, sequence in enumerate(encoding.sequence_ids) if sequence is not None]
        if own:
            return tuple(encoding.ids[: own[0]])
    return ()


def _pad(backend: tokenizers.Tokenizer, pad_id: int | None, eos_ids: Sequence[int]) -> int:
    """The pad token if it is not an end token; else another special token; else any id that ends nothing."""
    special = [i for i, token in sorted(backend.get_added_tokens_decoder().items()) if token.special]
    first = [] if pad_id is None else [pad_id]
    return next(i for i in [*first, *special, *range(len(eos_ids) + 1)] if i not in eos_ids)


def _byte_characters() -> list[str]:
    """The character by which byte-level tokenizers write each byte: itself where printable, else one from
    256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    names = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [names[b] for b in range(256)]
