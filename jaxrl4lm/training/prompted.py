"""Prompts, with completions or without: rows of a file become token ids, those become batches.

Shapes: `S` steps, `B` rows, `P` tokens of a prompt.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrl4lm.data import EncodedPrompted, Example, Tokenizer, encode_prompted
from jaxrl4lm.data.corpus import pad
from jaxrl4lm.lm import PairConfig
from jaxrl4lm.lm.distillation import Prompts
from jaxrl4lm.lm.supervised import Texts
from jaxrl4lm.training.judgements import join
from jaxrl4lm.training.language_stage import check_usable, digest, hold_back, make_rows
from jaxrl4lm.training.texts import LONGEST_ROW, TextBatches, TextSet, group_rows


def prepare_prompted(
    rows: Sequence[Any],
    tokenizer: Tokenizer,
    config: PairConfig,
    *,
    context: int,
    embeddings: int,
    room: int = 1,
    evaluation_rows: Sequence[Any] | None = None,
) -> TextSet:
    """Encodes rows and holds some back. The tokens of completions are targets; a row without one has none.

    Args:
      rows: prompts (text or messages), records, or rows of `data.load`: with `prompt`, maybe with `completion`; or `messages`,
        whose last one is the completion.
      context: the models', in tokens.
      embeddings: how many ids they know.
      room: tokens that must be left for a completion.
      evaluation_rows: what is held out; None: some of the rows.
    Raises:
      InputError: if a row, or every row, cannot be used.
    """
    length = min(config.max_length or LONGEST_ROW, context)

    def read(rows: Sequence[Any], name: str) -> EncodedPrompted:
        known, sizes = make_rows(rows, "prompts", "prompt"), {"max_length": length, "embeddings": embeddings}
        encoded = encode_prompted(known, tokenizer, room=room, strict=config.strict, **sizes)
        check_usable(encoded, name)
        return encoded

    encoded = read(rows, "the dataset")
    others = None if evaluation_rows is None else read(evaluation_rows, "the evaluation dataset").examples
    parts = hold_back(encoded.examples, others, config.held_out, "rows")
    training, held_out = ([join(*example) for example in part] for part in parts[:2])
    return TextSet(
        training, held_out, parts[2], encoded.dropped, encoded.cut, length, "none", encoded.warnings
    )


def list_prompts(examples: Sequence[Example]) -> list[list[int]]:
    """The tokens before the first targets; all where there is none."""
    ends = (e.targets.index(True) if any(e.targets) else len(e.tokens) for e in examples)
    return [example.tokens[:end] for example, end in zip(examples, ends, strict=True)]


class PromptBatches:
    """Batches of prompts: a pure function of the seed and the step, so that a resumed run sees the same."""

    def __init__(self, prompts: Sequence[Sequence[int]], pad_id: int, batch: int, seed: int):
        self._prompts, self._pad_id, self._seed = prompts, pad_id, seed
        self._groups = group_rows([len(ids) for ids in prompts], batch)
        self.widths = self._groups.widths

    def take(self, done: int, count: int) -> Prompts:
        """The batches of some steps, whose prompts are padded to one length: arrays `[S, B, P]`."""
        plan = self._groups.batches(self._seed, done, count)
        parts = [
            pad([self._prompts[i] for i in rows], width, self._pad_id, left=True) for width, rows in plan
        ]
        return Prompts(*(np.stack(x) for x in zip(*parts, strict=True)))  # pyright: ignore[reportArgumentType]


class MixedBatches:
    """Batches of prompts in a share of the steps, evenly spread, and of prompts with their completions in the others."""

    def __init__(self, known: TextSet, pad_id: int, batch: int, seed: int, share: float, room: int):
        """Takes the share, and the tokens of a completion that is drawn."""
        self._share, examples = share, known.training
        prompts = list_prompts(examples)
        self._texts = TextBatches(known, pad_id, batch, seed) if share < 1 else None
        self._prompts = PromptBatches(prompts, pad_id, batch, seed) if share > 0 else None
        drawn = [width + room for width in self._prompts.widths] if self._prompts else []
        self.widths = [*(self._texts.widths if self._texts else []), *drawn]
        self.steps_per_epoch = len(examples) / batch
        ids = [i for example in examples for i in (*example.tokens, -1)]
        self.description: dict[str, Any] = {
            "rows": len(examples),
            "lengths": self.widths,
            "digest": digest(ids, list(map(len, prompts))),
        }

    def take(self, done: int, count: int) -> Texts | Prompts:
        """The batches of some steps; of one, where some steps take prompts alone and others do not."""
        drawn = math.floor(done * self._share)
        if self._texts is None or (self._prompts and math.floor((done + 1) * self._share) > drawn):
            assert self._prompts is not None
            return self._prompts.take(drawn, count)
        return self._texts.take(done - drawn, count)
