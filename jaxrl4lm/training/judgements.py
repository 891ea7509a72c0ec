"""What was liked and what was not: rows of a file become token ids, those become batches.

Shapes: `S` steps, `B` pairs or judged completions, `K` texts of each, `L` tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl4lm.data import Tokenizer
from jaxrl4lm.data.encoding import Example
from jaxrl4lm.data.packing import pad_examples
from jaxrl4lm.data.pairs import EncodedJudged, EncodedPairs, Judged, Pair, encode_judged, encode_pairs
from jaxrl4lm.lm.config import PairConfig
from jaxrl4lm.lm.preference import Judgements
from jaxrl4lm.lm.supervised import Texts
from jaxrl4lm.training.language_stage import check_usable, digest, hold_back, make_rows
from jaxrl4lm.training.texts import LONGEST_ROW, group_rows
from jaxrl4lm.types import InputError

TOO_LONG = "too long"


class JudgementSet(NamedTuple):
    """Encoded pairs, or judged completions, parted."""

    training: Sequence[Pair | Judged]
    held_out: Sequence[Pair | Judged]
    """Not trained on, unless `seen`."""
    seen: bool
    """There were too few to hold any back: `held_out` are those trained on."""
    dropped: Mapping[str, Sequence[int]]
    """Lines of the rows that could not be used, by the reason."""
    cut: int
    """How many lost the end of a completion."""
    length: int
    """The most tokens of a prompt and a completion."""
    warnings: Sequence[str]
    """What is odd about rows that are used."""


def prepare_judgements(
    rows: Sequence[Any],
    tokenizer: Tokenizer,
    config: PairConfig,
    *,
    context: int,
    embeddings: int,
    paired: bool = True,
    whole: bool = False,
    evaluation_rows: Sequence[Any] | None = None,
) -> JudgementSet:
    """Encodes rows and holds some back.

    Args:
      rows: records, or rows of `data.load`: `prompt`, `chosen` and `rejected`; or `prompt`, `completion` and `label`.
      context: the model's, in tokens.
      embeddings: how many ids it knows.
      paired: whether two completions are compared; else pairs are parted.
      whole: whether what is too long is left out, as reward models want it; else it loses its end.
      evaluation_rows: what is held out; None: some of the rows.
    Raises:
      InputError: if a row, or every row, cannot be used.
    """
    length = min(config.max_length or LONGEST_ROW, context)

    def read(rows: Sequence[Any], name: str) -> EncodedPairs | EncodedJudged:
        encode = encode_pairs if paired else encode_judged
        known = make_rows(rows, "preferences", "chosen")
        most = None if whole else length
        encoded = encode(known, tokenizer, max_length=most, strict=config.strict, embeddings=embeddings)
        if whole:
            encoded = _leave_out_long(encoded, [row.line for row in known], length, config.strict)
        check_usable(encoded, name)
        return encoded

    encoded = read(rows, "the dataset")
    others = None if evaluation_rows is None else read(evaluation_rows, "the evaluation dataset").examples
    examples, held_out, seen = hold_back(encoded.examples, others, config.held_out, "rows")
    return JudgementSet(examples, held_out, seen, encoded.dropped, encoded.cut, length, encoded.warnings)


def _leave_out_long(encoded: Any, lines: Sequence[int], length: int, strict: bool) -> Any:
    """What was encoded, without examples of more tokens."""
    sizes = [max(len(text.tokens) for text in list_texts(example)) for example in encoded.examples]
    long = [line for line, size in zip(lines, sizes, strict=True) if size > length]
    if long and strict:
        raise InputError(f"line {long[0]}: more than {length} tokens: raise max_length, or shorten the row")
    examples = [each for each, size in zip(encoded.examples, sizes, strict=True) if size <= length]
    return encoded._replace(examples=examples, dropped={TOO_LONG: long} if long else {})


def list_texts(example: Pair | Judged) -> list[Example]:
    """The texts of a pair, the better first; or the one of a judged completion."""
    completions = [example.chosen, example.rejected] if isinstance(example, Pair) else [example.completion]
    return [join(example.prompt, completion) for completion in completions]


def join(prompt: list[int], completion: list[int]) -> Example:
    """A text, of which the completion is learned."""
    return Example([*prompt, *completion], [False] * len(prompt) + [True] * len(completion))


def arrange(examples: Sequence[Pair | Judged], length: int, mismatched: bool) -> list[list[Example]]:
    """The texts `[N][K]` that a step compares.

    Args:
      length: the most tokens of a text.
      mismatched: whether each judged completion comes with that of the example before it, after its own prompt.
    """
    texts = [list_texts(example) for example in examples]
    if mismatched:
        for i, example in enumerate(examples):
            before = examples[i - 1]
            assert isinstance(before, Judged)
            other = join(example.prompt, before.completion)
            texts[i].append(Example(other.tokens[:length], other.targets[:length]))
    return texts


class JudgementBatches:
    """Batches of the training rows: a pure function of the seed and the step, so that a resumed run sees the same."""

    def __init__(
        self,
        texts: Sequence[Sequence[Example]],
        columns: Mapping[str, np.ndarray],
        pad_id: int,
        batch: int,
        seed: int,
        make: Callable[..., Any] = Judgements,
    ):
        """Takes texts `[N][K]` and what else a row has `[N]`, by its name in the record of a batch, which `make` makes."""
        self._texts, self._columns, self._pad_id, self._seed, self._make = texts, columns, pad_id, seed, make
        lengths = [max(len(text.tokens) for text in row) for row in texts]
        self._groups = group_rows(lengths, batch)
        self.widths = self._groups.widths
        self.steps_per_epoch = len(texts) / batch
        self.kept: Callable[[], np.ndarray] | None = None
        """What gives the reference's log-probabilities `[N, K]`, if they are kept with the rows."""
        ids = [i for row in texts for text in row for i in (*text.tokens, -1)]
        targets = [t for row in texts for text in row for t in text.targets]
        self.description: dict[str, Any] = {
            "rows": len(texts),
            "lengths": self.widths,
            "digest": digest(ids, targets, *columns.values()),
        }

    def take(self, done: int, count: int) -> Any:
        """The batches of some steps, whose texts are padded to one length: arrays `[S, B, K, L]` and `[S, B]`."""
        plan = self._groups.batches(self._seed, done, count)
        columns = {
            name: np.stack([column[batch.indices] for batch in plan])
            for name, column in self._columns.items()
        }
        if self.kept is not None:
            columns["ref_log_probs"] = self.kept()[np.stack([batch.indices for batch in plan])]
        parts = [
            pad_judgements([self._texts[i] for i in indices], self._pad_id, width) for width, indices in plan
        ]
        texts = [np.stack(x) for x in zip(*(part[:3] for part in parts), strict=True)]
        return self._make(Texts(*texts), **columns)  # pyright: ignore[reportArgumentType]


def pad_judgements(rows: Sequence[Sequence[Example]], pad_id: int, width: int) -> Texts:
    """Texts `[B][K]` as arrays `[B, K, L]`."""
    padded = pad_examples([text for row in rows for text in row], pad_id, width)
    tokens, segments, targets = (x.reshape(len(rows), -1, width) for x in padded)
    return Texts(tokens, segments > 0, targets)  # pyright: ignore[reportArgumentType]
