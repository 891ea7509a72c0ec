"""Text in: files to rows, rows to tokens and loss masks, packing, tokenizers."""

from jaxrl4lm.data.files import Row
from jaxrl4lm.data.sources import load, mix
from jaxrl4lm.data.tokenizer import ByteTokenizer, CharacterTokenizer, Tokenizer

__all__ = [
    "ByteTokenizer",
    "CharacterTokenizer",
    "Row",
    "Tokenizer",
    "load",
    "mix",
]
