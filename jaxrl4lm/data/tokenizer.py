"""Text to token ids and back, over characters or bytes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

PAD, EOS, BOS = 0, 1, 2
SPECIAL = 3
"""Ids below this are the pad, end and begin tokens."""


class Tokenizer(Protocol):
    """What the library asks of a tokenizer."""

    @property
    def pad_id(self) -> int:
        """What fills rows up. Any id but those that end a text: masks say what is padding, never this id."""
        ...

    @property
    def eos_id(self) -> int: ...

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a text, `eos_id` first."""
        ...

    @property
    def begin_ids(self) -> tuple[int, ...]:
        """What stands before every text; () if texts begin bare."""
        ...

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Token ids of the text, without special tokens."""
        ...

    def find_unknown(self, text: str) -> str | None:
        """The first part of the text that the tokenizer has no tokens for."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, special tokens left out."""
        ...


@dataclass(frozen=True)
class CharacterTokenizer:
    """One token a character, after the pad, end and begin tokens."""

    characters: str
    pad_id: int = PAD
    eos_id: int = EOS
    bos_id: int | None = BOS

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> "CharacterTokenizer":
        """The tokenizer of every character that occurs."""
        return cls("".join(sorted(set().union(*texts))))

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return (self.eos_id,)

    @property
    def begin_ids(self) -> tuple[int, ...]:
        return () if self.bos_id is None else (self.bos_id,)

    @property
    def vocab_size(self) -> int:
        return SPECIAL + len(self.characters)

    def encode(self, text: str) -> list[int]:
        """Token ids.

        Raises:
          ValueError: if a character is not in the vocabulary.
        """
        unknown = self.find_unknown(text)
        if unknown is not None:
            raise ValueError(
                f"the character {unknown!r} is not in the vocabulary of {len(self.characters)} characters"
            )
        index = {c: SPECIAL + i for i, c in enumerate(self.characters)}
        return [index[c] for c in text]

    def find_unknown(self, text: str) -> str | None:
        """The first character that is not in the vocabulary."""
        known = set(self.characters)
        return next((c for c in text if c not in known), None)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, special tokens left out."""
        return "".join(self.characters[i - SPECIAL] for i in ids if SPECIAL <= i < self.vocab_size)


@dataclass(frozen=True)
class ByteTokenizer:
    """One token a byte of UTF-8, after the pad, end and begin tokens: any text goes through."""

    pad_id: int = PAD
    eos_id: int = EOS
    bos_id: int | None = BOS
    vocab_size: int = SPECIAL + 256

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return (self.eos_id,)

    @property
    def begin_ids(self) -> tuple[int, ...]:
        return () if self.bos_id is None else (self.bos_id,)

    def encode(self, text: str) -> list[int]:
        """Token ids."""
        return [SPECIAL + b for b in text.encode("utf-8", errors="surrogatepass")]

    def find_unknown(self, text: str) -> str | None:
        """None: every text is bytes."""
        return None

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; bytes that are not UTF-8 become the replacement character."""
        return bytes(i - SPECIAL for i in ids if SPECIAL <= i < self.vocab_size).decode(
            "utf-8", errors="replace"
        )
