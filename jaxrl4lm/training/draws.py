"""Several sampled completions of each prompt, and what they say of a model.

Shapes: `N` prompts, `n` completions of each.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import comb
from typing import NamedTuple

import numpy as np


class Draws(NamedTuple):
    """Completions of prompts, and their scores."""

    prompts: Sequence[str]
    """`[N]`."""
    texts: Sequence[Sequence[str]]
    """`[N][n]`."""
    totals: np.ndarray
    """`[N, n]`: what is learned from; nan where nothing scores a completion."""
    lengths: np.ndarray
    """int `[N, n]`, in tokens."""
    ended: np.ndarray
    """bool `[N, n]`: by itself, not at the length limit."""
    each: Mapping[str, np.ndarray]
    """Scores `[N, n]` of single rewards, by their names; nan where one does not apply."""


def pass_at_k(right: np.ndarray, k: int) -> float:
    """The chance that one of k completions is right, unbiased from n ≥ k: the mean over prompts of 1 − C(n−c, k) / C(n, k), where
    c are right.

    Args:
      right: bool `[N, n]`.
    Raises:
      ValueError: if k is not in 1 ... n.
    Reference: Chen et al. 2021, arXiv:2107.03374, eq. 1.
    """
    n = right.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}, and there are {n} completions of a prompt: choose 1 <= k <= {n}")
    return float(np.mean([1 - comb(n - int(c), k) / comb(n, k) for c in right.sum(1)]))


def majority(right: np.ndarray, texts: Sequence[Sequence[str]]) -> float:
    """maj@n: the share of prompts whose most frequent completion is right; of several as frequent, the one that came first.

    Args:
      right: bool `[N, n]`.
      texts: `[N][n]`, compared without the white space around them.
    Reference: Wang et al. 2022, arXiv:2203.11171.
    """
    chosen = []
    for row, said in zip(right, texts, strict=True):
        plain = [text.strip() for text in said]
        chosen.append(row[plain.index(Counter(plain).most_common(1)[0][0])])
    return float(np.mean(chosen))


def summarize(draws: Draws, success: float) -> dict[str, float]:
    """Mean reward, pass@k for k = 1, 2, 4, ... and n, maj@n, mean length, share that ended, mean of each reward.

    Args:
      success: the least score that counts as right.
    """
    right, n = draws.totals >= success, draws.totals.shape[1]
    ks = sorted({2**i for i in range(n.bit_length()) if 2**i <= n} | {n})
    numbers = {"reward": float(np.nanmean(draws.totals)) if np.isfinite(draws.totals).any() else float("nan")}
    numbers |= {f"pass@{k}": pass_at_k(right, k) for k in ks}
    numbers |= {
        f"maj@{n}": majority(right, draws.texts),
        "length": float(draws.lengths.mean()),
        "ended": float(draws.ended.mean()),
    }
    for name, scores in draws.each.items():
        known = scores[~np.isnan(scores)]
        numbers[f"reward/{name}"] = float(known.mean()) if len(known) else float("nan")
    return numbers
