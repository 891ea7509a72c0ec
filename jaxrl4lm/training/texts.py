"""Texts for teacher forcing: rows of a file become examples, examples become batches.

Shapes: `S` steps, `B` rows of a batch, `L` tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl4lm.data import Tokenizer
from jaxrl4lm.data.batching import LengthGroups, group_by_length
from jaxrl4lm.data.encoding import Encoded, Example, encode
from jaxrl4lm.data.packing import Sequences, pack, pad_examples
from jaxrl4lm.lm.config import Packing, TextConfig
from jaxrl4lm.lm.supervised import Texts
from jaxrl4lm.training.language_stage import check_usable, digest, hold_back, make_rows

LONGEST_ROW = 1024
"""Tokens, where neither the configuration nor the model's context says less."""
MOST_WIDTHS, SHORT = 6, 64
"""Lengths to which rows of a dataset are padded, a program each; one, where no row has more than `SHORT` tokens."""
FEW = 10
"""Texts below which none is held out, and long ones are parted first where they may be cut anywhere."""


class TextSet(NamedTuple):
    """Encoded texts, parted."""

    training: Sequence[Example]
    held_out: Sequence[Example]
    """Not trained on, unless `seen`."""
    seen: bool
    """There were too few texts to hold any back: `held_out` are those trained on."""
    dropped: Mapping[str, Sequence[int]]
    """Lines of the rows that could not be used, by the reason."""
    cut: int
    """How many texts were longer than a row, and lost their end."""
    length: int
    """The most tokens of a row."""
    packing: Packing
    """`none`, or the strategy."""
    warnings: Sequence[str]
    """What is odd about rows that are used."""


def prepare_texts(
    rows: Sequence[Any],
    tokenizer: Tokenizer,
    config: TextConfig,
    *,
    context: int,
    embeddings: int,
    evaluation_rows: Sequence[Any] | None = None,
) -> TextSet:
    """Encodes rows and holds some back.

    Args:
      rows: strings, messages, records, or rows of `data.load`.
      context: the model's, in tokens.
      embeddings: how many ids it knows.
      evaluation_rows: what is held out; None: some of the rows.
    Raises:
      InputError: if a row, or every row, cannot be used.
    """
    length = min(config.max_length or LONGEST_ROW, context)
    packing: Packing = config.packing or ("wrapped" if len(rows) == 1 else "none")

    def read(rows: Sequence[Any], name: str) -> Encoded:
        encoded = encode(
            make_rows(rows, "texts", "text"),
            tokenizer,
            max_length=None if packing in ("wrapped", "bfd_split") else length,
            completion_only=config.completion_only,
            assistant_only=config.assistant_only,
            strict=config.strict,
            embeddings=embeddings,
        )
        check_usable(encoded, name)
        return encoded

    encoded = read(rows, "the dataset")
    examples = encoded.examples
    if packing == "wrapped" and len(examples) < FEW:
        examples = [piece for example in examples for piece in _part(example, length)]
    others = None if evaluation_rows is None else read(evaluation_rows, "the evaluation dataset").examples
    training, held_out, seen = hold_back(examples, others, config.held_out, "texts")
    return TextSet(training, held_out, seen, encoded.dropped, encoded.cut, length, packing, encoded.warnings)


def _part(example: Example, length: int) -> list[Example]:
    """Pieces of `length` tokens; one that has no target is left out."""
    starts = range(0, len(example.tokens), length)
    pieces = [Example(example.tokens[i : i + length], example.targets[i : i + length]) for i in starts]
    return [piece for piece in pieces if any(piece.targets[1:])]


def fill_rows(texts: TextSet, examples: Sequence[Example], pad_id: int) -> Sequences:
    """Examples that are only looked at, in as few rows as hold them."""
    longest = min(max(len(example.tokens) for example in examples), texts.length)
    return pack(examples, longest, pad_id, "bfd" if texts.packing == "none" else texts.packing)


def group_rows(lengths: Sequence[int], batch: int) -> LengthGroups:
    """Rows by the width to which they are padded: short ones are read faster than a program more is compiled."""
    return group_by_length(lengths, batch, most=1 if max(lengths) <= SHORT else MOST_WIDTHS)


class TextBatches:
    """Batches of the training texts: a pure function of the seed and the step, so that a resumed run sees the same."""

    def __init__(self, texts: TextSet, pad_id: int, batch: int, seed: int):
        examples, self._pad_id = texts.training, pad_id
        self._packed = None
        lengths = [min(len(example.tokens), texts.length) for example in examples]
        if texts.packing != "none":
            self._packed = pack(examples, min(sum(lengths), texts.length), pad_id, texts.packing)
            lengths = [self._packed.tokens.shape[1]] * len(self._packed.tokens)
        self._examples = examples
        self._groups, self._seed, self.rows = group_rows(lengths, batch), seed, len(lengths)
        self.widths = self._groups.widths
        self.steps_per_epoch = len(lengths) / batch
        flat = self._packed or (
            [i for e in examples for i in (*e.tokens, -1)],
            [t for e in examples for t in e.targets],
        )
        self.description: dict[str, Any] = {
            "texts": len(examples),
            "rows": self.rows,
            "lengths": list(self.widths),
            "packing": texts.packing,
            "digest": digest(*flat),
        }

    def take(self, done: int, count: int) -> Texts:
        """The batches of some steps, whose rows are of one length: arrays `[S, B, L]`."""
        batches = [self._fill(*batch) for batch in self._groups.batches(self._seed, done, count)]
        stacked = [None if parts[0] is None else np.stack(parts) for parts in zip(*batches, strict=True)]
        return Texts(*stacked)  # pyright: ignore[reportArgumentType]

    def _fill(self, width: int, indices: np.ndarray) -> list[np.ndarray | None]:
        """The fields of `Texts`."""
        if self._packed is not None:
            tokens, segments, targets = (x[indices] for x in self._packed)
            return [tokens, segments > 0, targets, segments]
        rows = pad_examples([self._examples[i] for i in indices], self._pad_id, width)
        return [rows.tokens, rows.segments > 0, rows.target_mask, None]
