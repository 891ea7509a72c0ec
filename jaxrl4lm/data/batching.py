"""Batches of documents of similar length, in few shapes."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

CANDIDATES = 512
"""Widths among which the best few are sought."""

WORTH = 0.02
"""A further width is one more program to compile: it must save this share of the tokens."""


class LengthBatch(NamedTuple):
    """What one step sees."""

    width: int
    """Tokens to which its documents are padded: one of the few of the corpus."""
    indices: np.ndarray
    """int `[B]`, of the documents."""


class LengthGroups(NamedTuple):
    """The documents of a corpus, by the width to which they are padded."""

    widths: list[int]
    """Ascending."""
    members: list[np.ndarray]
    """int `[n]` for each width: its documents."""
    batch: int

    def batches(self, seed: int, done: int, count: int) -> list[LengthBatch]:
        """The batches of steps done ... done + count − 1 of an endless stream.

        A function of its arguments alone, so that a resumed run sees what an uninterrupted one would have seen.

        Each group visits all of its documents in a new random order again and again; nothing is left out, and every
        batch is full: one that ends an order begins the next. In `steps_before(e)` steps every group has come e times
        through its documents, but for less than a batch; within such an epoch the groups' batches come shuffled.
        """
        plan: list[LengthBatch] = []
        epoch = self._epoch_of(done)
        while len(plan) < count:
            first, order = self.steps_before(epoch), self._order(seed, epoch)
            begin = max(done - first, 0)
            for i in range(begin, min(len(order), begin + count - len(plan))):
                group = order[i]
                number = self._before(group, epoch) + int((order[:i] == group).sum())
                plan.append(LengthBatch(self.widths[group], self._members(seed, group, number)))
            epoch += 1
        return plan

    def steps_before(self, epoch: int) -> int:
        """Steps until the epoch, counted from 0, begins."""
        return sum(self._before(group, epoch) for group in range(len(self.widths)))

    def _before(self, group: int, epoch: int) -> int:
        """Batches of a group before an epoch."""
        return epoch * len(self.members[group]) // self.batch

    def _epoch_of(self, step: int) -> int:
        """The last epoch that begins at or before a step."""
        size = sum(map(len, self.members))
        epoch = step * self.batch // size  # its steps are at most step; later ones may be as well
        while self.steps_before(epoch + 1) <= step:
            epoch += 1
        return epoch

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        """The groups of an epoch's batches."""
        counts = [self._before(g, epoch + 1) - self._before(g, epoch) for g in range(len(self.widths))]
        return np.repeat(np.arange(len(counts)), counts)[_permute(seed, 0, epoch, sum(counts))]

    def _members(self, seed: int, group: int, number: int) -> np.ndarray:
        """Documents of a group's batch number so and so."""
        members = self.members[group]
        positions = np.arange(number * self.batch, (number + 1) * self.batch)
        rounds = positions // len(members)
        parts = [
            members[_permute(seed, group + 1, r, len(members))[positions[rounds == r] % len(members)]]
            for r in np.unique(rounds).tolist()
        ]
        return np.concatenate(parts)


@lru_cache(maxsize=16)
def _permute(seed: int, stream: int, number: int, size: int) -> np.ndarray:
    key, counter = [seed % 2**64, number], [0, 0, 0, stream]
    return np.random.Generator(np.random.Philox(key=key, counter=counter)).permutation(size)


def group_by_length(lengths: Sequence[int], batch: int, *, most: int = 6) -> LengthGroups:
    """Groups of documents of similar length, whose widths waste as little as so few can.

    Args:
      lengths: tokens of each document.
      batch: documents of a batch. No group is smaller, unless the corpus is.
      most: widths.
    """
    sizes = np.asarray(lengths)
    if batch < 1 or not len(sizes) or sizes.min() < 1:
        raise ValueError("groups need documents of at least one token, and batches of at least one document")
    widths = _choose_widths(sizes, batch, most)
    group = np.searchsorted(widths, sizes)
    return LengthGroups(widths, [np.flatnonzero(group == g) for g in range(len(widths))], batch)


def _choose_widths(sizes: np.ndarray, batch: int, most: int) -> list[int]:
    """The fewest widths that pad to nearly as few tokens as the best `most`, by dynamic programming."""
    step = -(-int(sizes.max()) // CANDIDATES)
    candidates, counts = np.unique(np.minimum(-(-sizes // step) * step, sizes.max()), return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])  # documents of the first i candidates
    total = np.full(len(candidates) + 1, np.inf)  # tokens of the first i candidates in so many groups
    total[0] = 0
    ends, totals = [], []
    for _ in range(most):
        size = below[None, :] - below[:, None]  # [from, to]
        cost = total[:, None] + size * np.concatenate([[0], candidates])[None, :]
        cost = np.where(size >= min(batch, len(sizes)), cost, np.inf)
        ends.append(cost.argmin(0))
        total = cost.min(0)
        totals.append(total[-1])
    groups = int(np.flatnonzero(np.array(totals) <= min(totals) * (1 + WORTH))[0]) + 1
    widths, end = [], len(candidates)
    for choice in reversed(ends[:groups]):
        widths.append(int(candidates[end - 1]))
        end = choice[end]
    return widths[::-1]
