"""Best of n: several completions of each prompt are drawn and scored, and the best are kept, to be imitated.

Shapes: `N` prompts, `n` completions of each.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from math import comb
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl4lm.data import Tokenizer
from jaxrl4lm.data.corpus import PromptSet, encode_prompts
from jaxrl4lm.data.files import Message
from jaxrl4lm.data.rewards import RewardSet, gather_rewards
from jaxrl4lm.decoding import Sampling
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.training.evaluation import AT_ONCE, compile_rewards, complete_prompts, judge_completions
from jaxrl4lm.training.hosted_updates import fill_columns, hide_column
from jaxrl4lm.training.language_stage import make_rows
from jaxrl4lm.training.reinforcement_stage import LONGEST_COMPLETION, Rewards
from jaxrl4lm.types import InputError, Params


class Candidates(NamedTuple):
    """The completions of a prompt; plain data, one line of JSON."""

    prompt: str | list[Message]
    completions: list[str]
    """`[n]`."""
    scores: list[float | None]
    """What they are compared by: the weighted sum of the rewards; None where none applies."""
    ended: list[bool]
    """Whether each ended by itself, not at the length limit."""
    rewards: dict[str, list[float | None]] = {}  # noqa: RUF012 (never changed)
    """Scores of single rewards by their names, where they are several."""


def draw_candidates(
    policy: LanguagePolicy,
    params: Params,
    tokenizer: Tokenizer,
    prompts: PromptSet | Sequence[Any],
    *,
    rewards: Rewards,
    n: int = 8,
    sampling: Sampling = Sampling(),
    seed: int = 0,
) -> list[Candidates]:
    """Draws n completions of each prompt and scores them; `keep_best` chooses among them.

    Args:
      prompts: texts, records with a `prompt`, text or messages (their other columns go to the rewards), or a `PromptSet`.
      rewards: as of `training.reinforcement`.
      sampling: may leave length and end tokens open: then 64, and those of the tokenizer.
      seed: decides the draws; those of a prompt depend on its place.
    Raises:
      InputError: where a prompt or a reward cannot be used.
    """
    sampling = sampling.complete(LONGEST_COMPLETION, tokenizer.eos_ids, tokenizer.pad_id)
    if not isinstance(prompts, PromptSet):
        rows, sizes = fill_columns(make_rows(prompts, "prompts", "prompt")), policy.config
        encoded = encode_prompts(
            rows,
            "prompt",
            tokenizer,
            "prompts",
            sampling.length,
            sizes.context,
            embeddings=sizes.vocab_size,
        )
        prompts = hide_column(encoded, "prompt")
    batches = draw_batches(
        policy, params, tokenizer, prompts, gather_rewards(rewards), n, sampling, jax.random.key(seed)
    )
    return [each for batch in batches for each in batch]


def choose_batch(n: int) -> int:
    """Prompts that are completed at once."""
    return max(1, AT_ONCE // n)


def draw_batches(
    policy: LanguagePolicy,
    params: Params,
    tokenizer: Tokenizer,
    prompts: PromptSet,
    rewards: RewardSet,
    n: int,
    sampling: Sampling,
    key: jax.Array,
    *,
    first: int = 0,
) -> Iterator[list[Candidates]]:
    """The candidates of `choose_batch(n)` prompts at a time.

    Args:
      sampling: whole: with its length and end tokens.
      first: the prompt to begin with, the first of a batch; batches are the same whichever come before them.
    """
    complete = complete_prompts(policy, tokenizer, dataclasses.replace(sampling, copies=n))
    rewards = compile_rewards(rewards, tokenizer, prompts, sampling.length)
    total, size = len(prompts.rows), choose_batch(n)
    for begin in range(first, total, size):
        count = min(size, total - begin)
        # The last batch is filled up, to keep the shape.
        chosen = prompts.select([min(i, total - 1) for i in range(begin, begin + size)])
        said = complete(params, chosen, jax.random.fold_in(key, begin))[: count * n]
        each = judge_completions(rewards, chosen, range(count), said, n, room=sampling.length)
        totals = rewards.add(each, n)
        several = dict(zip(rewards.functions, each, strict=True)) if len(each) > 1 else {}
        yield [
            Candidates(
                chosen.given[i],
                [one.text for one in said[i * n : (i + 1) * n]],
                _list_numbers(totals[i * n : (i + 1) * n]),
                [one.ended for one in said[i * n : (i + 1) * n]],
                {name: _list_numbers(scores[i * n : (i + 1) * n]) for name, scores in several.items()},
            )
            for i in range(count)
        ]


def _list_numbers(values: np.ndarray) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


def keep_best(
    candidates: Sequence[Candidates],
    *,
    top: int | None = None,
    least: float | None = None,
    unended: bool = False,
) -> list[dict[str, Any]]:
    """Records with `prompt`, `completion` and `score`, which `training.supervised` and TRL's SFT take.

    Args:
      top: so many of each prompt, the best first, of different text. None: 1, or with `least` all that reach it.
      least: the lowest score that is kept.
      unended: also those that were cut at the length limit; to imitate one is to learn to end there.
    """
    top = 1 if top is None and least is None else top
    kept = []
    for each in candidates:
        known = [
            (-score, i)
            for i, (score, ended) in enumerate(zip(each.scores, each.ended, strict=True))
            if score is not None and (ended or unended) and (least is None or score >= least)
        ]
        distinct: dict[str, int] = {}
        for _, i in sorted(known):
            distinct.setdefault(each.completions[i], i)
        for text, i in list(distinct.items())[:top]:
            completion = text if isinstance(each.prompt, str) else [{"role": "assistant", "content": text}]
            kept.append({"prompt": each.prompt, "completion": completion, "score": each.scores[i]})
    return kept


def expected_best(scores: np.ndarray, m: int, *, values: np.ndarray | None = None) -> float:
    """What the best of m completions scores, unbiased from n ≥ m: Σᵢ C(i−1, m−1)/C(n, m) r₍ᵢ₎, r₍₁₎ ≤ ... ≤ r₍ₙ₎; the mean over
    prompts.

    Args:
      scores: `[N, n]`, nan where there is none; a prompt with fewer than m is left out.
      values: `[N, n]`, averaged in place of the scores, which only choose: a gold reward, say.
    Returns:
      nan if no prompt has m scores.
    Raises:
      ValueError: if m is not in 1 ... n.
    Reference: Nakano et al. 2021, arXiv:2112.09332, appendix I.

    >>> expected_best(np.array([[3.0, 1.0, 2.0]]), 2)  # of the pairs (1, 2), (1, 3), (2, 3)
    2.6666666666666665
    """
    count = scores.shape[1]
    if not 1 <= m <= count:
        raise ValueError(f"m is {m}, and there are {count} completions of a prompt: choose 1 <= m <= {count}")
    means = []
    for row, said in zip(scores, scores if values is None else values, strict=True):
        known = ~np.isnan(row)
        size = int(known.sum())
        if size >= m:
            order = np.argsort(row[known], kind="stable")
            weights = [comb(i, m - 1) / comb(size, m) for i in range(size)]
            means.append(np.dot(weights, said[known][order]))
    return float(np.mean(means)) if means else math.nan


def kl_of_best(m: int) -> float:
    """log m − (m − 1)/m: nats by which the best of m diverges from the policy, at most (exactly, where no scores are equal).

    Reference: Beirami et al. 2024, arXiv:2401.01879.
    """
    return math.log(m) - (m - 1) / m


def summarize_candidates(candidates: Sequence[Candidates]) -> dict[str, Any]:
    """How many there are, share that ended, mean of each reward; `best`, what the best of 1, 2, ... n score."""
    scores = np.array([[math.nan if s is None else s for s in each.scores] for each in candidates], float)
    names = list(candidates[0].rewards)
    known = {name: [s for c in candidates for s in c.rewards[name] if s is not None] for name in names}
    return {
        "prompts": len(candidates),
        "n": scores.shape[1],
        "ended": float(np.mean([each.ended for each in candidates])),
        "best": [expected_best(scores, m) for m in range(1, scores.shape[1] + 1)],
        "rewards": {name: float(np.mean(values)) if values else math.nan for name, values in known.items()},
    }


class NothingKept(InputError):
    """No completion is good enough."""


def check_kept(kept: Sequence[Mapping[str, Any]], candidates: Sequence[Candidates]) -> None:
    """Raises NothingKept where nothing was, with the reason."""
    if kept:
        return
    scores = [s for each in candidates for s in each.scores if s is not None]
    ended = sum(sum(each.ended) for each in candidates)
    best = f"the best score is {max(scores):g}" if scores else "no reward applies to any"
    total = sum(len(each.ended) for each in candidates)
    raise NothingKept(
        f"no completion can be kept: {best}, and {ended} of {total} ended by themselves; lower the least score, raise "
        "--max-new-tokens, or keep those that were cut (--keep-unended)"
    )
