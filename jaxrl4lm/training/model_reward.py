"""A reward model's folder as a reward, and as the beginning of a critic.

Shapes: `B` texts, `T` tokens.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxrl4lm import models
from jaxrl4lm.data import Tokenizer
from jaxrl4lm.data.corpus import bucket, pad
from jaxrl4lm.data.files import Row, find_last_text
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxrl4lm.data.pairs import encode_prompted
from jaxrl4lm.lm.critic import Critic, begin_with_rewards
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.training.evaluation import AT_ONCE
from jaxrl4lm.training.reward_stage import SCALE
from jaxrl4lm.types import InputError, Params


def load_critic(folder: pathlib.Path | str, tokenizer: Tokenizer) -> Critic:
    """A critic that begins as the reward model of a folder, whose scores are normalised where it has reward.json.

    Args:
      tokenizer: of the policy, whose ids the critic reads.
    Raises:
      InputError: if the folder holds no reward model, or one that reads other ids.
    """
    folder = pathlib.Path(folder)
    policy, _, _, theirs = _load(folder)
    known, mine = (HuggingFaceTokenizer.of(each).backend.get_vocab() for each in (theirs, tokenizer))
    if other := sorted(token for token, number in mine.items() if known.get(token) != number):
        raise InputError(
            f"the critic {folder} reads other ids than the policy writes ({other[0]!r} is {known.get(other[0])} there and "
            f"{mine[other[0]]} here): take a reward model with the policy's tokenizer"
        )
    mean, deviation = _read_scale(folder)
    return begin_with_rewards(policy, lambda: _load(folder)[1:3], mean=mean, deviation=deviation)


def _load(folder: pathlib.Path) -> tuple[LanguagePolicy, Params, models.Head, HuggingFaceTokenizer]:
    policy, params, head, tokenizer = models.load_with_head(folder)
    if head.kernel.shape[1] != 1:
        raise InputError(
            f"{folder} has {head.kernel.shape[1]} outputs: a reward model has one (jaxrl4lm reward trains one)"
        )
    if tokenizer is None:
        raise InputError(f"{folder} has no tokenizer.json: save the tokenizer beside the model")
    return policy, params, head, tokenizer


def _read_scale(folder: pathlib.Path) -> tuple[float, float]:
    """Mean and deviation of the rewards, 0 and 1 where they are not known."""
    known = json.loads((folder / SCALE).read_text()) if (folder / SCALE).exists() else {}
    return known.get("mean", 0.0), max(known.get("deviation", 1.0), 1e-6)


class ModelReward:
    """What a `*ForSequenceClassification` with one output says of prompt and completion, on the device.

    It reads both with its own tokenizer and, of chats, its own template. Where the folder has reward.json, as those of
    `training.reward_model` have, scores are normalised: they have mean 0 and deviation 1 on the texts held out there. A text that
    is too long for it loses its end.
    """

    def __init__(self, folder: pathlib.Path | str, *, normalized: bool = True):
        """Loads the folder.

        Raises:
          InputError: if it holds no such model, or no tokenizer.
        """
        folder = pathlib.Path(folder)
        self.__name__ = folder.name
        self._policy, params, head, self._tokenizer = _load(folder)
        self._mean, self._deviation = _read_scale(folder) if normalized else (0.0, 1.0)

        @jax.jit
        def score(params: Any, head: models.Head, tokens: jax.Array, mask: jax.Array) -> jax.Array:
            return models.sequence_outputs(head, self._policy.hidden(params, tokens, mask), mask)[:, 0]

        self._score = lambda tokens, mask: score(params, head, tokens, mask)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[float | None]:
        """Scores; None of a text that it cannot read."""
        ids = [self._encode(*each) for each in zip(prompts, completions, strict=True)]
        known = [i for i, row in enumerate(ids) if row]
        scores: list[float | None] = [None] * len(ids)
        count = min(AT_ONCE, len(ids))
        for first in range(0, len(known), count):
            chosen = known[first : first + count]
            rows = [ids[i] for i in chosen]
            rows += [rows[-1]] * (count - len(rows))  # filled up, to keep the shape
            width = min(bucket(max(map(len, rows))), self._policy.config.context)
            batch = pad(rows, width, self._tokenizer.pad_id, left=False)
            said = np.asarray(self._score(*batch), np.float64)[: len(chosen)]
            for i, value in zip(chosen, (said - self._mean) / self._deviation, strict=True):
                scores[i] = float(value)
        return scores

    def _encode(self, prompt: Any, completion: Any) -> list[int]:
        said = find_last_text(completion) if isinstance(prompt, str) else completion
        row = Row(0, {"prompt": prompt, "completion": said})
        sizes = self._policy.config
        encoded = encode_prompted(
            [row], self._tokenizer, max_length=sizes.context, embeddings=sizes.vocab_size
        )
        examples = encoded.examples
        return [i for example in examples for i in (*example.prompt, *example.completion)]
