"""Hugging Face tokenizers: `tokenizer.json`, its special tokens and chat template, in and out."""

import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import tokenizers

from jaxrl4lm.data.files import read_object
from jaxrl4lm.data.tokenizer import ByteTokenizer, CharacterTokenizer, Tokenizer
from jaxrl4lm.types import InputError

OTHER_TEMPLATES = "additional_chat_templates"
"""The folder of chat templates that have a name, a file each."""


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
    other_templates: dict[str, str] = field(default_factory=dict)
    """Chat templates that have a name ("tool_use"), which `save` writes as they were."""
    generation: dict[str, Any] | None = None
    """`generation_config.json`, which `models.save` writes as it was. None: there was none."""

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
        config = _read_config(folder)
        model, generation = _read(folder / "config.json"), _read(folder / "generation_config.json")
        templates = _read_templates(folder, config)
        says = generation if generation.get("eos_token_id") is not None else model
        eos_ids = _list_ends(backend, config, says)
        if not eos_ids:
            raise InputError(
                f"{folder}: no end token in tokenizer_config.json or config.json: set eos_token there"
            )
        return cls(
            backend=backend,
            pad_id=_choose_pad(backend, _find_id(backend, config.get("pad_token")), eos_ids),
            eos_id=eos_ids[0],
            begin_ids=_find_begin(backend),
            eos_ids=eos_ids,
            config=config,
            chat_template=templates.pop("default", None),
            other_templates=templates,
            generation=generation if (folder / "generation_config.json").exists() else None,
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
            model = tokenizers.models.BPE({p: i for i, p in enumerate(special + _list_byte_characters())}, [])
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
        return _find_id(self.backend, self.config.get(name))

    def describe_generation(self) -> dict[str, Any]:
        """What `generation_config.json` should say: all that it said, and the end tokens where they have changed."""
        ends = list(self.eos_ids) if len(self.eos_ids) > 1 else self.eos_id
        if self.generation is None:
            ids = {"bos_token_id": self.special_id("bos_token"), "eos_token_id": ends}
            ids["pad_token_id"] = self.special_id("pad_token")
            return {name: value for name, value in ids.items() if value is not None}
        same = _list_ends(self.backend, self.config, self.generation) == self.eos_ids
        return self.generation if same else {**self.generation, "eos_token_id": ends}

    def encode(self, text: str) -> list[int]:
        """Token ids, without special tokens put around the text."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids as of `encode`, and the characters [begin, end) of the text that each stands for."""
        encoding = self.backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

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

    def chat(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[dict[str, Any]] | None = None,
        marked: bool = False,
        **variables: Any,
    ) -> str:
        """The text of a conversation under the model's template, with what begins a text.

        Args:
          messages: each with a `role` (system, user, assistant) and its `content`.
          add_generation_prompt: end where the assistant is to speak.
          tools: schemas of functions that the assistant may call, where the template knows of such.
          marked: with `chat_template.BEGIN` and `END` around what its tag `generation` says is an assistant's.
          variables: further ones that the template reads ("enable_thinking").
        Raises:
          ValueError: if the tokenizer has no template.
        """
        if self.chat_template is None:
            raise ValueError(
                "this tokenizer has no chat template: write the prompt out, or load a chat model's folder"
            )
        from jaxrl4lm.data.chat_template import compile_template  # jinja2: only chat models need it

        special = {k: _read_token(v) for k, v in self.config.items() if k.endswith("_token")}
        # What is not there stays undefined, which templates write as nothing and can ask about.
        given: dict[str, Any] = {k: v for k, v in special.items() if v is not None}
        given |= {"documents": None, "tools": tools, "add_generation_prompt": add_generation_prompt}
        said = [{k: v for k, v in message.items() if v is not None} for message in messages]
        return compile_template(self.chat_template, marked=marked).render(**given | variables, messages=said)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which holds the chat template."""
        folder = pathlib.Path(folder)
        # Of what was there before: they would be read first.
        for name in ("chat_template.jinja", "special_tokens_map.json"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / OTHER_TEMPLATES, ignore_errors=True)
        self.backend.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self.config}
        templates = {"default": self.chat_template, **self.other_templates}
        named = [{"name": name, "template": text} for name, text in templates.items() if text is not None]
        if named:
            config["chat_template"] = named if self.other_templates else self.chat_template
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False))


def _read(path: pathlib.Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
    """`tokenizer_config.json`; older folders have the special tokens in a file of their own, which counts more."""
    config = _read(folder / "tokenizer_config.json")
    if "added_tokens_decoder" in config:
        return config
    return config | _read(folder / "special_tokens_map.json")


def _read_templates(folder: pathlib.Path, config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name, of the configuration, and of files, which count more."""
    given = config.get("chat_template")
    records = given if isinstance(given, list) else [{"name": "default", "template": given}] if given else []
    files = {path.stem: path for path in sorted((folder / OTHER_TEMPLATES).glob("*.jinja"))}
    if (single := folder / "chat_template.jinja").exists():
        files["default"] = single
    named = {record["name"]: record["template"] for record in records}
    return named | {name: path.read_text(encoding="utf-8") for name, path in files.items()}


def _read_token(token: Any) -> str | None:
    """The text of a special token, which is written as it is, or as a record that holds it; None if it is neither."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _find_id(backend: tokenizers.Tokenizer, token: Any) -> int | None:
    text = _read_token(token)
    return None if text is None else backend.token_to_id(text)


def _list_ends(
    backend: tokenizers.Tokenizer, config: dict[str, Any], generation: dict[str, Any]
) -> tuple[int, ...]:
    """The end token that the tokenizer names (encoders call it a separator), then those at which generation stops."""
    listed = generation.get("eos_token_id")
    named = _find_id(backend, config.get("eos_token") or config.get("sep_token"))
    ids = [named, *(listed if isinstance(listed, list) else [listed])]
    return tuple(dict.fromkeys(i for i in ids if i is not None))


def _find_begin(backend: tokenizers.Tokenizer) -> tuple[int, ...]:
    """The ids that come before those of a text; the text tried is any that has tokens of its own."""
    added = [token.content for token in backend.get_added_tokens_decoder().values()]
    for text in ("a", *added):
        encoding = backend.encode(text, add_special_tokens=True)
        own = [i for i, sequence in enumerate(encoding.sequence_ids) if sequence is not None]
        if own:
            return tuple(encoding.ids[: own[0]])
    return ()


def _choose_pad(backend: tokenizers.Tokenizer, pad_id: int | None, eos_ids: Sequence[int]) -> int:
    """The pad token if it is not an end token; else another special token; else any id that ends nothing."""
    special = [i for i, token in sorted(backend.get_added_tokens_decoder().items()) if token.special]
    first = [] if pad_id is None else [pad_id]
    return next(i for i in [*first, *special, *range(len(eos_ids) + 1)] if i not in eos_ids)


def _list_byte_characters() -> list[str]:
    """The character by which byte-level tokenizers write each byte: itself where printable, else one from
    256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    names = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [names[b] for b in range(256)]
