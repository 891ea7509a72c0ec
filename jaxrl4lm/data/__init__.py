"""Text in: files to rows, rows to tokens and loss masks, packing, tokenizers."""

from jaxrl4lm.data.batching import LengthGroups, group_by_length
from jaxrl4lm.data.encoding import Encoded, Example, encode
from jaxrl4lm.data.files import Row
from jaxrl4lm.data.formats import Format, recognize
from jaxrl4lm.data.packing import Sequences, pack, pad_examples
from jaxrl4lm.data.preview import show_example
from jaxrl4lm.data.sources import load, mix
from jaxrl4lm.data.tokenizer import ByteTokenizer, CharacterTokenizer, Tokenizer

__all__ = [
    "ByteTokenizer",
    "CharacterTokenizer",
    "Encoded",
    "Example",
    "Format",
    "LengthGroups",
    "Row",
    "Sequences",
    "Tokenizer",
    "encode",
    "group_by_length",
    "load",
    "mix",
    "pack",
    "pad_examples",
    "recognize",
    "show_example",
]
