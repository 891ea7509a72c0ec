"""Text in: tokenizers, files, batches."""

from jaxrl4lm.data.files import Row, load
from jaxrl4lm.data.tokenizer import ByteTokenizer, CharacterTokenizer, Tokenizer

__all__ = ["ByteTokenizer", "CharacterTokenizer", "Row", "Tokenizer", "load"]
