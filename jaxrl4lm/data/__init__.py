"""Text in: files to rows, rows to tokens and loss masks, packing, tokenizers."""

from jaxrl4lm.data.batching import LengthBatch, LengthGroups, group_by_length
from jaxrl4lm.data.encoding import Encoded, Example, encode
from jaxrl4lm.data.files import Row
from jaxrl4lm.data.formats import Format, recognize
from jaxrl4lm.data.packing import Sequences, pack, pad_examples
from jaxrl4lm.data.pairs import (
    EncodedJudged,
    EncodedPairs,
    EncodedPrompted,
    Judged,
    Pair,
    Prompted,
    encode_judged,
    encode_pairs,
    encode_prompted,
)
from jaxrl4lm.data.preview import show_example
from jaxrl4lm.data.sources import load, mix
from jaxrl4lm.data.tokenizer import ByteTokenizer, CharacterTokenizer, Tokenizer

__all__ = [
    "ByteTokenizer",
    "CharacterTokenizer",
    "Encoded",
    "EncodedJudged",
    "EncodedPairs",
    "EncodedPrompted",
    "Example",
    "Format",
    "Judged",
    "LengthBatch",
    "LengthGroups",
    "Pair",
    "Prompted",
    "Row",
    "Sequences",
    "Tokenizer",
    "encode",
    "encode_judged",
    "encode_pairs",
    "encode_prompted",
    "group_by_length",
    "load",
    "mix",
    "pack",
    "pad_examples",
    "recognize",
    "show_example",
]
