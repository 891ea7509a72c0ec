"""How good an agent is, over seeds."""

import numpy as np


def interquartile_mean(scores: np.ndarray) -> float:
    """The mean of the middle half of scores `[N]`; a quarter on each side, rounded down, is left out.

    Reference: Agarwal et al. 2021, arXiv:2108.13264, sec. 4.3.

    >>> interquartile_mean(np.array([0.0, 4.0, 5.0, 90.0]))
    4.5
    """
    ordered = np.sort(np.asarray(scores, float))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def bootstrap_interval(
    scores: np.ndarray, *, samples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """An interval of the interquartile mean, by percentiles over resampled seeds; always of the same random numbers.

    Reference: Agarwal et al. 2021, arXiv:2108.13264, sec. 4.1.
    """
    scores = np.asarray(scores, float)
    drawn = np.random.default_rng(0).integers(0, len(scores), (samples, len(scores)))
    means = [interquartile_mean(scores[rows]) for rows in drawn]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
