"""Packing loses no target but by its rule, keeps the order of tokens, and lets no segment cross a document."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl4lm import data

DOCUMENTS = st.lists(st.lists(st.booleans(), max_size=20), max_size=30)


def examples_of(masks):
    """Documents in which every token is another number: the document times 100, and its place."""
    return [
        data.Example([100 * n + i for i in range(len(mask))], mask) for n, mask in enumerate(masks, start=1)
    ]


def segments_of(sequences):
    """(tokens, targets) of each segment, after all that rows promise is checked."""
    for tokens, segments, targets in zip(*sequences, strict=True):
        real = segments > 0
        assert real.tolist() == sorted(real.tolist(), reverse=True)  # padding on the right
        assert (tokens[~real] == -1).all()
        assert not targets[~real].any()
        assert np.unique(segments[real]).tolist() == list(range(1, segments.max() + 1))
        assert (np.diff(segments[real]) >= 0).all()
        for number in range(1, segments.max() + 1):
            yield tokens[segments == number].tolist(), targets[segments == number].tolist()


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(masks=DOCUMENTS, length=st.integers(1, 12))
def test_nothing_is_lost_but_by_the_rule(strategy, masks, length):
    examples = examples_of(masks)
    packed = data.pack(examples, length, -1, strategy)
    assert packed.tokens.shape[1] == length
    pieces = list(segments_of(packed))
    kept = [example.tokens[:length] if strategy == "bfd" else example.tokens for example in examples]
    assert sorted(t for tokens, _ in pieces for t in tokens) == sorted(t for tokens in kept for t in tokens)
    learned = {t for ids, mask in examples for t, on in zip(ids, mask, strict=True) if on}
    for tokens, targets in pieces:
        assert tokens == list(range(tokens[0], tokens[0] + len(tokens)))  # of one document, in its order
        assert targets == [i > 0 and t in learned for i, t in enumerate(tokens)]
    if strategy != "wrapped":
        starts = [tokens[0] % 100 for tokens, _ in pieces]
        assert all(start % length == 0 for start in starts)  # a document is cut only where it must be
        assert strategy == "bfd_split" or not any(starts)
    else:
        assert [t for tokens, _ in pieces for t in tokens] == [t for tokens in kept for t in tokens]
        assert (packed.segments[:-1] > 0).all()


def test_best_fit_leaves_little_empty():
    lengths = np.random.default_rng(0).geometric(1 / 60, 2000)
    packed = data.pack([data.Example([1] * n, [True] * n) for n in lengths], 256, 0)
    assert (packed.segments > 0).mean() > 0.99


@settings(max_examples=40, deadline=None, derandomize=True)
@given(masks=st.lists(st.lists(st.booleans(), min_size=1, max_size=20), min_size=1, max_size=10))
def test_one_document_a_row(masks):
    examples = examples_of(masks)
    for length in (None, 25):
        padded = data.pad_examples(examples, -1, length)
        assert padded.tokens.shape == (len(masks), length or max(map(len, masks)))
        assert list(segments_of(padded)) == [(ids, [False, *mask[1:]]) for ids, mask in examples]
    with pytest.raises(ValueError, match="cut it first"):
        data.pad_examples(examples, -1, max(map(len, masks)) - 1)


def test_arrays_have_the_types_that_programs_take():
    for sequences in (
        data.pack(examples_of([[True] * 3]), 4, 0),
        data.pad_examples([], 0),
        data.pack([], 4, 0),
    ):
        assert [x.dtype for x in sequences] == [np.int32, np.int32, bool]
        assert len({x.shape for x in sequences}) == 1


@pytest.mark.parametrize("options, said", [({"length": 0}, "length 0"), ({"strategy": "ffd"}, "choose bfd")])
def test_what_cannot_be_packed(options, said):
    with pytest.raises(ValueError, match=said):
        data.pack([], **{"length": 4, "pad_id": 0} | options)
