"""Text in pieces: together they are the whole, and no piece shows half a character or part of a stop string."""

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl4lm.data import ByteTokenizer
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxrl4lm.data.text_stream import HALF, TextStream


def metaspace():
    """As Llama 2's: words begin with a space that is dropped at the beginning of a text; bytes where need be."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *"▁abcdé", "▁a", "▁ab", "b▁"]
    merges = [("▁", "a"), ("▁a", "b"), ("b", "▁")]
    model = tokenizers.models.BPE({p: i for i, p in enumerate(pieces)}, merges, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    steps = [
        tokenizers.decoders.Replace("▁", " "),
        tokenizers.decoders.ByteFallback(),
        tokenizers.decoders.Fuse(),
        tokenizers.decoders.Strip(" ", 1, 0),
    ]
    backend.decoder = tokenizers.decoders.Sequence(steps)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return HuggingFaceTokenizer(backend, pad_id=0, eos_id=2, begin_ids=(1,))


TOKENIZERS = {
    "bytes": ByteTokenizer(),
    "byte level": HuggingFaceTokenizer.of(ByteTokenizer()),
    "byte fallback": metaspace(),
}
TEXTS = st.text(alphabet="ab é漢🎉c", max_size=12)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(prompt=TEXTS, text=TEXTS, cuts=st.lists(st.integers(1, 3), max_size=40))
@settings(max_examples=60, deadline=None)
def test_pieces_are_the_text_and_never_half_a_character(name, prompt, text, cuts):
    tokenizer = TOKENIZERS[name]
    before = tokenizer.encode(prompt)
    ids = tokenizer.encode(prompt + text)
    ids = ids[len(before) :] if ids[: len(before)] == before else tokenizer.encode(text)
    stream, pieces, at = TextStream(tokenizer, before), [], 0
    for n in [*cuts, len(ids)]:
        pieces.append(stream.push(ids[at : at + n]))
        at += n
    pieces.append(stream.push(last=True))
    whole = tokenizer.decode([*before, *ids])
    assert tokenizer.decode(before) + "".join(pieces) == whole
    assert HALF not in "".join(pieces)


def test_bytes_that_are_no_character_come_with_what_follows_or_at_the_end():
    tokenizer = ByteTokenizer()
    stream = TextStream(tokenizer)
    assert stream.push([3 + 0xFF]) == ""
    assert stream.push(tokenizer.encode("a")) == HALF + "a"
    assert stream.push([3 + 0xE6, 3 + 0xBC]) == ""
    assert stream.push(last=True) == HALF


def test_characters_that_were_shown_stay_where_bytes_that_are_none_follow():
    tokenizer = TOKENIZERS["byte fallback"]
    ids = [3 + 0xC3, 3 + 0xA9, 3 + 0xFF]
    stream = TextStream(tokenizer)
    assert "".join(stream.push([i]) for i in ids) + stream.push(last=True) == "é" + 2 * HALF
    assert tokenizer.decode(ids) == 3 * HALF


@given(text=st.text(alphabet="ab\n", max_size=14), cuts=st.lists(st.integers(1, 3), max_size=14))
@settings(max_examples=100, deadline=None)
def test_nothing_of_a_stop_string_and_nothing_after_it_is_shown(text, cuts):
    stops = ["ab\n", "bb"]
    tokenizer = ByteTokenizer()
    # One that begins in the prompt does not count.
    stream, shown, at, ids = (
        TextStream(tokenizer, tokenizer.encode("xab"), stops),
        "",
        0,
        tokenizer.encode(text),
    )
    expected = text[: min([i for i in map(text.find, stops) if i >= 0], default=len(text))]
    for n in [*cuts, len(ids)]:
        shown += stream.push(ids[at : at + n])
        at += n
        assert expected.startswith(shown)
    assert shown + stream.push(last=True) == expected
    assert stream.ended == (expected != text)
