"""Documents as rows of one length: one a row, or packed so that few tokens are padding.

Shapes: `N` rows, `L` tokens.
"""

import itertools
from bisect import bisect_left, insort
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from jaxrl4lm.data.encoding import Example

_Bins: TypeAlias = list[list[Example]]


class Sequences(NamedTuple):
    """Documents as arrays; rows are padded on the right."""

    tokens: np.ndarray
    """int32 `[N, L]`."""
    segments: np.ndarray
    """int32 `[N, L]`: the documents of a row are numbered from 1, padding is 0. Only equal numbers see each other."""
    target_mask: np.ndarray
    """bool `[N, L]`, True at the tokens that carry loss; never at the first of a segment."""


def pad_examples(examples: Sequence[Example], pad_id: int, length: int | None = None) -> Sequences:
    """One document a row.

    Args:
      length: L. None: that of the longest.
    Raises:
      ValueError: if a document is longer.
    """
    longest = max((len(example.tokens) for example in examples), default=0)
    if length is not None and longest > length:
        raise ValueError(f"a document has {longest} tokens, rows have {length}: cut it first")
    return _fill([[example] for example in examples], longest if length is None else length, pad_id)


def pack(
    examples: Sequence[Example],
    length: int,
    pad_id: int,
    strategy: Literal["bfd", "bfd_split", "wrapped"] = "bfd",
) -> Sequences:
    """Several documents a row, each a segment of its own.

    >>> from jaxrl4lm.data import Example
    >>> documents = [Example(ids, [True] * len(ids)) for ids in ([1, 2, 3, 4, 5], [6, 7], [8, 9, 10], [11])]
    >>> pack(documents, 4, 0).tokens.tolist()
    [[1, 2, 3, 4], [8, 9, 10, 11], [6, 7, 0, 0]]

    Args:
      length: L.
      strategy: "bfd" (best fit, decreasing) puts each document, the longest first, into the fullest row that has room;
        of a document that is longer than a row the end is lost. "bfd_split" makes several documents of such a one.
        "wrapped" fills row after row in the order given, and cuts where a row ends.
    Reference: Ding et al. 2024, arXiv:2404.10830.
    """
    if length < 1:
        raise ValueError(f"length {length}: rows have at least one token")
    if strategy == "wrapped":
        return _fill(_wrap(examples, length), length, pad_id)
    if strategy == "bfd":
        pieces = [_split(example, length, length)[0] for example in examples]
    elif strategy == "bfd_split":
        pieces = [piece for example in examples for piece in _split(example, length, length)]
    else:
        raise ValueError(f"strategy {strategy!r}: choose bfd, bfd_split or wrapped")
    bins = _fit([len(piece.tokens) for piece in pieces], length)
    return _fill([[pieces[i] for i in members] for members in bins], length, pad_id)


def _fit(lengths: Sequence[int], length: int) -> list[list[int]]:
    """Which pieces share a row: best fit, decreasing; of equal lengths, and of equal rooms, the earlier first."""
    bins: list[list[int]] = []
    rooms: list[int] = []  # that some row has left, sorted, each once
    rows_with: dict[int, deque[list[int]]] = defaultdict(deque)
    for i in sorted((i for i, n in enumerate(lengths) if n), key=lambda i: -lengths[i]):
        at = bisect_left(rooms, lengths[i])
        if at == len(rooms):
            room, row = length, []
            bins.append(row)
        else:
            room = rooms[at]
            row = rows_with[room].popleft()
            if not rows_with[room]:
                del rooms[at]
        row.append(i)
        left = room - lengths[i]
        if left and not rows_with[left]:
            insort(rooms, left)
        rows_with[left].append(row)
    return bins


def _split(example: Example, first: int, length: int) -> list[Example]:
    """Pieces of a document: of at most `first` tokens, then of `length` each, the last shorter."""
    if len(example.tokens) <= first:
        return [example]
    ends = [0, *range(first, len(example.tokens), length), len(example.tokens)]
    return [Example(example.tokens[a:b], example.targets[a:b]) for a, b in itertools.pairwise(ends)]


def _wrap(examples: Sequence[Example], length: int) -> _Bins:
    """Row after row full."""
    bins: _Bins = []
    room = 0
    for example in examples:
        for piece in _split(example, room or length, length) if example.tokens else ():
            if not room:
                bins.append([])
                room = length
            bins[-1].append(piece)
            room -= len(piece.tokens)
    return bins


def _fill(bins: _Bins, length: int, pad_id: int) -> Sequences:
    tokens = np.full((len(bins), length), pad_id, np.int32)
    segments = np.zeros((len(bins), length), np.int32)
    target_mask = np.zeros((len(bins), length), bool)
    for n, row in enumerate(bins):
        begin = 0
        for number, (ids, targets) in enumerate(row, start=1):
            end = begin + len(ids)
            tokens[n, begin:end], segments[n, begin:end], target_mask[n, begin:end] = ids, number, targets
            target_mask[n, begin : begin + 1] = False
            begin = end
    return Sequences(tokens, segments, target_mask)
