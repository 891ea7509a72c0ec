"""A reward model's folder as a reward, and as the beginning of a critic.

Shapes: `B` texts, `T` tokens.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm import models
from jaxrl4lm.data import Tokenizer
from jaxrl4lm.data.corpus import PromptSet, bucket, pad
from jaxrl4lm.data.files import Row, find_last_text
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxrl4lm.data.pairs import encode_prompted
from jaxrl4lm.data.token_reward import TokenReward
from jaxrl4lm.lm.critic import Critic, begin_with_rewards
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.training.evaluation import AT_ONCE
from jaxrl4lm.training.reward_stage import SCALE
from jaxrl4lm.types import Array, InputError, Params

PROBE = "a 1"
"""A completion that is encoded in both ways, to see whether a reward model reads what a policy writes."""


def load_critic(folder: pathlib.Path | str, tokenizer: Tokenizer) -> Critic:
    """A critic that begins as the reward model of a folder, whose scores are normalised where it has reward.json.

    Args:
      tokenizer: of the policy, whose ids the critic reads.
    Raises:
      InputError: if the folder holds no reward model, or one that reads other ids.
    """
    folder = pathlib.Path(folder)
    policy, _, _, theirs = _load(folder)
    if other := _find_other_ids(theirs, tokenizer):
        token, there, here = other
        raise InputError(
            f"the critic {folder} reads other ids than the policy writes ({token!r} is {there} there and {here} here): take "
            "a reward model with the policy's tokenizer"
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


def _find_other_ids(theirs: Tokenizer, mine: Tokenizer) -> tuple[str, int | None, int] | None:
    """(token, its id there, its id here) of a token of mine that is another there; None if all are the same."""
    known, ids = (HuggingFaceTokenizer.of(each).backend.get_vocab() for each in (theirs, mine))
    return min(((t, known.get(t), i) for t, i in ids.items() if known.get(t) != i), default=None)


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
        def score(params: Any, tokens: Array, mask: Array) -> Array:
            backbone, head = params
            said = models.sequence_outputs(head, self._policy.hidden(backbone, tokens, mask), mask)[:, 0]
            return (said - self._mean) / self._deviation

        self._params, self._score = (params, head), score

        def score_drawn(
            params: Any, prompts: Array, prompt_mask: Array, completions: Array, mask: Array
        ) -> Array:
            tokens, real = jnp.concatenate([prompts, completions], 1), jnp.concatenate([prompt_mask, mask], 1)
            order = jnp.argsort(~real, axis=1, stable=True)  # padding goes to the end
            arranged = (jnp.take_along_axis(x, order, 1) for x in (tokens, real))
            batch = tuple(arranged)
            if len(tokens) <= AT_ONCE or len(tokens) % AT_ONCE:
                return self._score(params, *batch)
            parts = jax.tree.map(lambda x: x.reshape(-1, AT_ONCE, x.shape[-1]), batch)
            return jax.lax.map(lambda part: self._score(params, *part), parts).reshape(-1)

        # One, so that it is compiled once for all sets of prompts.
        self._of_tokens = TokenReward(score_drawn, self._params, name=self.__name__)

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
            said = np.asarray(self._score(self._params, *batch), np.float64)[: len(chosen)]
            for i, value in zip(chosen, said, strict=True):
                scores[i] = float(value)
        return scores

    def compile_for(self, tokenizer: Tokenizer, prompts: PromptSet, room: int) -> TokenReward | None:
        """The same of a policy's own ids, for the program that draws them; None where it reads other ids, or fewer of them.

        A completion without an end is read without one, and is not encoded anew.

        Args:
          tokenizer: of the policy.
          prompts: what is completed.
          room: the most tokens of a completion.
        """
        widest = max(map(len, prompts.ids)) + room
        if widest > self._policy.config.context or _find_other_ids(self._tokenizer, tokenizer):
            return None
        if not any(self._reads_alike(tokenizer, prompts, text) for text in (PROBE, prompts.texts[0])):
            return None
        return self._of_tokens

    def _reads_alike(self, tokenizer: Tokenizer, prompts: PromptSet, text: str) -> bool:
        """Of the first prompt and this completion: a template, or what begins and ends a text, may be another there."""
        if tokenizer.find_unknown(text) is not None:
            return False
        prompt, ids = prompts.given[0], [*prompts.ids[0], *tokenizer.encode(text)]
        said = text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        return self._encode(prompt, said) in [[*ids, end] for end in tokenizer.eos_ids]

    def _encode(self, prompt: Any, completion: Any) -> list[int]:
        said = find_last_text(completion) if isinstance(prompt, str) else completion
        row = Row(0, {"prompt": prompt, "completion": said})
        sizes = self._policy.config
        encoded = encode_prompted(
            [row], self._tokenizer, max_length=sizes.context, embeddings=sizes.vocab_size
        )
        examples = encoded.examples
        return [i for example in examples for i in (*example.prompt, *example.completion)]
