"""Batches of like length: few shapes, little waste, every document equally often, and a stream to take up anywhere."""

import itertools

import numpy as np
import pytest

from jaxrl4lm import data

LENGTHS = np.random.default_rng(0).geometric(1 / 40, 1000).tolist()


def same(a, b):
    return len(a) == len(b) and all(
        x.width == y.width and x.indices.tolist() == y.indices.tolist() for x, y in zip(a, b, strict=True)
    )


def waste(lengths, widths):
    return sum(min(w for w in widths if w >= n) - n for n in lengths)


@pytest.mark.parametrize("lengths, most", [([3, 3, 4, 9, 9, 10, 20, 1], 3), ([5, 1, 2, 8, 13, 13, 7], 2)])
def test_widths_waste_as_little_as_any(lengths, most):
    groups = data.group_by_length(lengths, 1, most=most)
    choices = itertools.combinations_with_replacement(sorted(set(lengths)), most)
    best = min(waste(lengths, choice) for choice in choices if max(lengths) in choice)
    assert waste(lengths, groups.widths) == best
    assert len(groups.widths) <= most


def test_a_width_is_worth_its_program():
    """It saves some hundredths of all tokens, and has a batch of documents."""
    assert data.group_by_length([100, 101] * 50, 8).widths == [101]
    assert data.group_by_length([5] * 50 + [90] * 7, 8).widths == [90]
    assert data.group_by_length([5] * 50 + [90] * 8, 8).widths == [5, 90]


def test_few_shapes_and_full_batches():
    groups = data.group_by_length(LENGTHS, 16)
    assert 2 <= len(groups.widths) <= 6
    assert sorted(np.concatenate(groups.members).tolist()) == list(range(1000))
    padded = sum(w * len(m) for w, m in zip(groups.widths, groups.members, strict=True))
    assert padded < 0.5 * max(LENGTHS) * 1000  # one width would be twice as many tokens at least
    for batch in groups.batches(0, 0, 200):
        assert batch.indices.shape == (16,)
        assert {min(w for w in groups.widths if w >= LENGTHS[i]) for i in batch.indices} == {batch.width}


def test_every_document_comes_equally_often():
    groups = data.group_by_length(LENGTHS, 16)
    for epochs in (1, 3):
        steps = groups.steps_before(epochs)
        assert abs(steps - epochs * 1000 / 16) < len(groups.widths)
        seen = np.bincount(
            np.concatenate([batch.indices for batch in groups.batches(5, 0, steps)]), minlength=1000
        )
        assert set(seen) <= {epochs - 1, epochs}
        assert (seen < epochs).sum() < 16 * len(
            groups.widths
        )  # what has not come is less than a batch of each


def test_batches_come_in_another_order_each_epoch_and_by_seed():
    groups = data.group_by_length(LENGTHS, 16)
    steps = groups.steps_before(1)
    first, second = groups.batches(0, 0, steps), groups.batches(0, steps, steps)
    widths = [batch.width for batch in first]
    assert widths != sorted(widths)
    assert widths != [batch.width for batch in second]
    members = [
        {i for b in batches if b.width == groups.widths[0] for i in b.indices[:4].tolist()}
        for batches in (first, second)
    ]
    assert members[0] != members[1]
    twins = data.group_by_length([1] * 64 + [100] * 64, 64)
    short, long = sorted(twins.batches(0, 0, 2), key=lambda batch: batch.width)
    assert short.indices.tolist() != (long.indices - 64).tolist()
    assert not same(first, groups.batches(1, 0, steps))


@pytest.mark.parametrize(
    "lengths, batch", [(LENGTHS, 16), (LENGTHS[:7], 3), (LENGTHS[:3], 8), ([5], 1), ([4] * 50, 7)]
)
def test_a_stream_can_be_taken_up_anywhere(lengths, batch):
    groups = data.group_by_length(lengths, batch)
    whole = groups.batches(2, 0, 150)
    assert len(whole) == 150
    pieces = [b for done in range(0, 150, 7) for b in groups.batches(2, done, min(7, 150 - done))]
    assert same(whole, pieces)
    assert same(groups.batches(2, 149, 1), whole[149:])
    assert {len(b.indices) for b in whole} == {batch}


def test_long_corpora_have_widths_quickly_enough():
    lengths = np.random.default_rng(1).integers(1, 30_000, 5000).tolist()
    groups = data.group_by_length(lengths, 8)
    assert len(groups.widths) == 6
    assert groups.widths[-1] == max(lengths)
    assert waste(lengths, groups.widths) < 0.2 * sum(lengths)


@pytest.mark.parametrize("lengths, batch", [([], 1), ([3, 0], 1), ([3], 0)])
def test_what_makes_no_groups(lengths, batch):
    with pytest.raises(ValueError, match="at least one"):
        data.group_by_length(lengths, batch)
