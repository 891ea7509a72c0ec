"""Documents and prompts as arrays, against loops over their tokens."""

import json

import numpy as np
import pytest

from jaxrl4lm.data import ByteTokenizer, CharacterTokenizer
from jaxrl4lm.data.corpus import (
    Document,
    bucket,
    encode_documents,
    encode_prompts,
    epoch_rows,
    pad,
    read_documents,
)
from jaxrl4lm.data.files import Row
from jaxrl4lm.types import InputError

BYTES = ByteTokenizer()
BARE = CharacterTokenizer("abc", bos_id=None)


def test_documents_of_each_form(tmp_path):
    plain, rows = tmp_path / "text.txt", tmp_path / "rows.jsonl"
    plain.write_text("one\n\n two\n")
    rows.write_text("\n".join(json.dumps({"q": "1+1", "a": a, "prompt": 3}) for a in ("2", "3")))
    assert read_documents(plain, "q", "a", "line") == [Document("", "one"), Document("", " two")]
    assert read_documents(plain, "q", "a", "file") == [Document("", "one\n\n two\n")]
    assert read_documents(rows, "q", "a", "line") == [Document("1+1", "2"), Document("1+1", "3")]
    with pytest.raises(InputError, match="line 1: no column 'completion'"):
        read_documents(rows, "q", "completion", "line")


@pytest.mark.parametrize(
    "tokenizer", [BYTES, CharacterTokenizer("abc é"), BARE], ids=["bytes", "begin", "bare"]
)
def test_rows_begin_end_and_are_masked(tokenizer):
    documents = [Document("a", "bc"), Document("", "abcabc"), Document("abcabcabc", "a")]
    corpus = encode_documents(documents, tokenizer, longest=9)
    begin = tokenizer.begin_ids
    assert corpus.cut == sum(len(begin) + len(p + c) + 1 > 9 for p, c in documents)
    for row, real, target, (prompt, completion) in zip(*corpus[:3], documents, strict=True):
        whole = [*begin, *tokenizer.encode(prompt + completion), tokenizer.eos_id][:9]
        assert row[real].tolist() == whole
        assert real.tolist() == [i < len(whole) for i in range(len(real))]
        first = len(begin) + len(prompt)
        assert target.tolist() == [first <= i < len(whole) for i in range(len(real))]
        assert (row[~real] == tokenizer.pad_id).all()


def test_one_long_document_is_a_stream():
    text = "abc" * 50
    corpus = encode_documents([Document("", text)], BYTES, longest=8)
    assert corpus.tokens.shape == (151 // 8, 8)
    assert BYTES.decode(corpus.tokens.reshape(-1).tolist()) == text[: len(text) - 151 % 8]
    assert corpus.mask.all()
    assert corpus.target_mask.all()


@pytest.mark.parametrize("left", [True, False])
def test_padding(left):
    tokens, mask = pad([[5], [], [6, 7, 8]], 3, 0, left=left)
    assert tokens.tolist() == (
        [[0, 0, 5], [0, 0, 0], [6, 7, 8]] if left else [[5, 0, 0], [0, 0, 0], [6, 7, 8]]
    )
    assert (mask == (tokens > 0)).all()


def test_buckets_are_few_and_at_most_a_third_empty():
    sizes = [bucket(n) for n in range(1, 5000)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) <= 18
    assert all(size >= n and (n <= 32 or 3 * n > 2 * size) for n, size in enumerate(sizes, start=1))


def prompts_of(*texts, tokenizer=BYTES, room=4, context=16):
    rows = [Row(i, {"prompt": text, "n": i}) for i, text in enumerate(texts, start=1)]
    return encode_prompts(rows, "prompt", tokenizer, "file.jsonl", room, context)


def test_prompts_are_padded_on_the_left():
    prompts = prompts_of("é→", "", "abc")
    tokens, mask = prompts.batch([2, 0], BYTES.pad_id)
    assert tokens.shape == mask.shape == (2, 8)
    assert [BYTES.decode(row[real].tolist()) for row, real in zip(tokens, mask, strict=True)] == ["abc", "é→"]
    assert mask[:, -1].all()
    assert prompts.select([1]).texts == [""]
    assert prompts.columns([2, 0], 2) == {"prompt": ["abc", "abc", "é→", "é→"], "n": [3, 3, 1, 1]}


@pytest.mark.parametrize(
    "texts, options, said",
    [
        (
            ["a", "b" * 12],
            {},
            "line 2: the prompt has 13 tokens, which with 4 new ones exceeds the context of 16",
        ),
        (["a", "axb"], {"tokenizer": BARE}, "line 2: the character 'x' is not in the vocabulary"),
        (["a", ""], {"tokenizer": BARE}, "line 2: the prompt is empty"),
    ],
)
def test_prompts_that_cannot_be_completed(texts, options, said):
    with pytest.raises(InputError) as error:
        prompts_of(*texts, **options)
    assert f"file.jsonl, {said}" in str(error.value)


def test_prompts_are_never_padded_beyond_the_context():
    prompts = prompts_of("b" * 11, "b" * 8)
    assert bucket(12) > 12
    for some in (prompts, prompts.select([1, 0])):
        tokens, mask = some.batch([0, 1], BYTES.pad_id)
        assert tokens.shape == (2, 12)  # and 4 new ones make 16
        assert sorted(mask.sum(1)) == [9, 12]


@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_stream_visits_every_row_once_an_epoch(size):
    stream = epoch_rows(seed=3, first=0, count=5 * size, size=size)
    for epoch in stream.reshape(5, size):
        assert sorted(epoch.tolist()) == list(range(size))
    if size == 64:
        assert len({tuple(epoch) for epoch in stream.reshape(5, size).tolist()}) == 5
        assert epoch_rows(4, 0, size, size).tolist() != stream[:size].tolist()


def test_a_stream_can_be_taken_up_anywhere():
    whole = epoch_rows(0, 0, 50, 7)
    pieces = [epoch_rows(0, first, 5, 7) for first in range(0, 50, 5)]
    assert np.concatenate(pieces).tolist() == whole.tolist()
