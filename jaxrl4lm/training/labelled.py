"""Labelled rows for task heads: rows of a file become examples, examples become batches.

Shapes: `S` steps, `B` rows of a batch, `L` tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl4lm.data import Row, Tokenizer
from jaxrl4lm.data.labels import NO_LABEL, EncodedLabels, Kind, Labelled, encode_labelled, list_labels
from jaxrl4lm.lm.config import PairConfig
from jaxrl4lm.lm.heads import LabelledTexts
from jaxrl4lm.training.language_stage import digest, hold_back
from jaxrl4lm.training.texts import LONGEST_ROW, group_rows
from jaxrl4lm.types import InputError


class LabelledSet(NamedTuple):
    """Encoded rows, parted."""

    kind: Kind
    labels: Sequence[Any]
    """The classes or tags, in the order of the head's outputs; of spans there are none."""
    training: Sequence[Labelled]
    held_out: Sequence[Labelled]
    """Not trained on, unless `seen`."""
    seen: bool
    """There were too few rows to hold any back: `held_out` are those trained on."""
    dropped: Mapping[str, Sequence[int]]
    """Lines of the rows that could not be used, by the reason."""
    cut: int
    """How many texts were too long, and lost their end."""
    length: int
    """The most tokens of a row."""
    warnings: Sequence[str] = ()

    @property
    def outputs(self) -> int:
        """N of the head."""
        return 2 if self.kind == "span" else len(self.labels)

    @property
    def names(self) -> list[str]:
        """The labels as text; none where they are numbers 0, 1 ... or there are none."""
        return [] if list(self.labels) == list(range(len(self.labels))) else [str(x) for x in self.labels]


def prepare_labelled(
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    kind: Kind,
    config: PairConfig,
    *,
    context: int,
    embeddings: int,
    evaluation_rows: Sequence[Row] | None = None,
) -> LabelledSet:
    """Encodes rows and holds some back.

    Args:
      rows: of `data.load`, with the columns of the kind (`data.labels.COLUMNS`).
      context: the model's, in tokens.
      embeddings: how many ids it knows.
      evaluation_rows: what is held out; None: some of the rows.
    Raises:
      InputError: if a row, or every row, cannot be used.
    """
    length = min(config.max_length or LONGEST_ROW, context)
    labels = list_labels([*rows, *(evaluation_rows or ())], kind)
    if kind != "span" and len(labels) < 2:
        raise InputError(f"the dataset has {len(labels)} different labels: give at least 2")

    def read(rows: Sequence[Row], name: str) -> EncodedLabels:
        encoded = encode_labelled(rows, tokenizer, kind, labels, max_length=length, embeddings=embeddings)
        reasons = ", ".join(f"{len(lines)} {reason}" for reason, lines in encoded.dropped.items())
        if not encoded.examples or (config.strict and reasons):
            raise InputError(f"rows of {name} cannot be used: {reasons}")
        return encoded

    encoded = read(rows, "the dataset")
    others = None if evaluation_rows is None else read(evaluation_rows, "the evaluation dataset").examples
    training, held_out, seen = hold_back(encoded.examples, others, config.held_out, "rows")
    return LabelledSet(kind, labels, training, held_out, seen, encoded.dropped, encoded.cut, length)


class LabelledBatches:
    """Batches of the training rows: a pure function of the seed and the step, so that a resumed run sees the same."""

    def __init__(self, dataset: LabelledSet, pad_id: int, batch: int, seed: int, *, parts: int):
        """`parts`: how many parts of a text the model tells apart."""
        self._examples = dataset.training
        self._kind: Kind = dataset.kind
        self._pad_id, self._parts = pad_id, parts
        lengths = [len(example.tokens) for example in self._examples]
        self._groups, self._seed = group_rows(lengths, batch), seed
        self.widths = self._groups.widths
        self.steps_per_epoch = len(lengths) / batch
        flat = (
            [i for e in self._examples for i in (*e.tokens, -1)],
            [i for e in self._examples for i in e.targets],
        )
        self.description: dict[str, Any] = {
            "rows": len(lengths),
            "lengths": self.widths,
            "labels": [*dataset.labels],
            "digest": digest(*flat),
        }

    def take(self, done: int, count: int) -> LabelledTexts:
        """The batches of some steps, whose rows are of one length: arrays with a leading axis `[S]`."""
        plan = self._groups.batches(self._seed, done, count)
        batches = [
            pad_labelled(
                [self._examples[i] for i in rows], self._kind, self._pad_id, width, parts=self._parts
            )
            for width, rows in plan
        ]
        stacked = [None if each[0] is None else np.stack(each) for each in zip(*batches, strict=True)]
        return LabelledTexts(*stacked)  # pyright: ignore[reportArgumentType]


def pad_labelled(
    examples: Sequence[Labelled], kind: Kind, pad_id: int, width: int, *, parts: int
) -> LabelledTexts:
    """Examples as arrays, padded on the right."""

    def fill(values: Sequence[Sequence[int]], empty: int) -> np.ndarray:
        return np.array([[*row, *[empty] * (width - len(row))] for row in values], np.int32)

    targets = [example.targets for example in examples]
    if kind == "token":
        labels = fill(targets, NO_LABEL)
    else:
        labels = np.array(targets, np.int32) if kind == "span" else np.array(targets, np.int32)[:, 0]
    lengths = np.array([len(example.tokens) for example in examples])
    filled = (
        fill([example.tokens for example in examples], pad_id),
        np.arange(width) < lengths[:, None],
        np.minimum(fill([example.parts for example in examples], 0), parts - 1) if parts > 1 else None,
        labels,
    )
    return LabelledTexts(*filled)  # pyright: ignore[reportArgumentType]
