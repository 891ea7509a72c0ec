"""Prompts as arrays, against loops over their tokens."""

import numpy as np
import pytest

from jaxrl4lm.data import ByteTokenizer, CharacterTokenizer
from jaxrl4lm.data.corpus import (
    bucket,
    encode_prompts,
    epoch_rows,
    pad,
)
from jaxrl4lm.data.files import Row
from jaxrl4lm.types import InputError

BYTES = ByteTokenizer()
BARE = CharacterTokenizer("abc", bos_id=None)


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
