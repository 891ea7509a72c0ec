"""Text in: tokenizers, files, batches."""

from jaxrl4lm.data.tokenizers import ByteTokenizer, CharacterTokenizer, Tokenizer

__all__ = ["ByteTokenizer", "CharacterTokenizer", "Tokenizer"]
