"""Figures of several completions of a prompt, against brute force."""

import itertools

import numpy as np
import pytest

from jaxrl4lm.training.draws import Draws, majority, pass_at_k, summarize

rng = np.random.default_rng(0)


def test_pass_at_k_is_the_mean_over_subsets():
    right = rng.random((5, 6)) < 0.3
    for k in (1, 2, 5, 6):
        chosen = [right[:, list(each)].any(1) for each in itertools.combinations(range(6), k)]
        np.testing.assert_allclose(pass_at_k(right, k), np.mean(chosen))
    with pytest.raises(ValueError, match="k is 7, and there are 6 completions"):
        pass_at_k(right, 7)


def test_the_majority_is_of_texts():
    texts = [["a", "b", " b", "c"], ["x", "y", "z", "w"], ["p", "q", "q", "p"]]
    right = np.array([[0, 1, 1, 0], [0, 1, 1, 1], [1, 0, 0, 1]], bool)
    assert majority(right, texts) == pytest.approx(2 / 3)


def test_summaries():
    totals = np.array([[1.0, 0.0], [np.nan, 0.5]])
    draws = Draws(
        ["p", "q"],
        [["a", "b"], ["c", "d"]],
        totals,
        np.array([[1, 2], [3, 4]]),
        np.array([[True, False], [True, True]]),
        {"x": totals, "y": np.full((2, 2), np.nan)},
    )
    numbers = summarize(draws, 1.0)
    assert np.isnan(numbers.pop("reward/y"))
    assert numbers == {
        "reward": 0.5,
        "pass@1": 0.25,
        "pass@2": 0.5,
        "maj@2": 0.5,
        "length": 2.5,
        "ended": 0.75,
        "reward/x": 0.5,
    }
    assert summarize(draws, 0.5)["pass@2"] == 1
