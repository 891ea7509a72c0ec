"""Characters and bytes as tokens."""

import string

import pytest
from hypothesis import given, strategies

from jaxrl4lm.data import ByteTokenizer, CharacterTokenizer


@given(strategies.text())
def test_any_text_survives_bytes(text):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(3 <= i < tokenizer.vocab_size for i in ids)
    assert len(ids) == len(text.encode())


@given(strategies.text(string.printable), strategies.text(string.printable))
def test_texts_survive_their_characters(a, b):
    tokenizer = CharacterTokenizer.from_texts([a, b])
    assert tokenizer.vocab_size == 3 + len(set(a + b))
    for text in (a, b, a + b):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert CharacterTokenizer.from_texts([b, a]) == tokenizer


@pytest.mark.parametrize(
    "tokenizer", [ByteTokenizer(), CharacterTokenizer("abc")], ids=["bytes", "characters"]
)
def test_special_tokens_are_no_text(tokenizer):
    special = [tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id]
    assert len(set(special)) == 3
    a, b = tokenizer.encode("a"), tokenizer.encode("b")
    assert tokenizer.decode([special[2], *a, special[0], *b, special[1], tokenizer.vocab_size]) == "ab"


def test_unknown_characters_are_refused():
    with pytest.raises(ValueError, match="'é' is not in the vocabulary of 2"):
        CharacterTokenizer("ab").encode("abé")


def test_broken_bytes_are_replaced():
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"
