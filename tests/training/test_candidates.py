"""Best of n: the estimator against all subsets, what is kept, and a model that imitates its own best completions."""

import itertools
import math

import jax
import numpy as np
import pytest

from jaxrl4lm import decoding, lm, training
from jaxrl4lm.training.candidates import Candidates, check_kept, expected_best, keep_best, kl_of_best
from jaxrl4lm.types import InputError
from tests.training.test_reinforcement_stage import PARAMS, POLICY, PROMPTS, TOKENIZER

SCORES = np.array([[3.0, 1.0, 2.0, 1.0], [0.5, math.nan, -1.0, 4.0]])
GOLD = np.array([[1.0, 5.0, 2.0, 7.0], [3.0, 9.0, 2.0, 0.0]])


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_the_expected_best_is_the_mean_over_all_subsets(m):
    rows = [[s for s in row if not math.isnan(s)] for row in SCORES]
    means = [np.mean([max(c) for c in itertools.combinations(row, m)]) for row in rows if len(row) >= m]
    np.testing.assert_allclose(expected_best(SCORES, m), np.mean(means))
    # Of distinct scores: the gold of the one that is chosen.
    chosen = [
        GOLD[1, max(c, key=lambda i: SCORES[1, i])] for c in itertools.combinations([0, 2, 3], min(m, 3))
    ]
    if m <= 3:
        np.testing.assert_allclose(expected_best(SCORES[1:], m, values=GOLD[1:]), np.mean(chosen))
    else:
        assert math.isnan(expected_best(SCORES[1:], m))


def test_the_divergence_of_the_best_is_that_of_its_distribution():
    """With one of k equally likely scores, k large, the best of m is drawn with the density m u^(m-1)."""
    u = (np.arange(100_000) + 0.5) / 100_000
    for m in (1, 2, 8):
        density = m * u ** (m - 1)
        np.testing.assert_allclose(kl_of_best(m), np.mean(density * np.log(density)), atol=1e-3)


ONE = Candidates(
    "2+2=", ["4", "5", "4", "44", "4!"], [1.0, 0.0, 1.0, None, 2.0], [True, True, True, True, False]
)
CHAT = ONE._replace(prompt=[{"role": "user", "content": "2+2?"}])


@pytest.mark.parametrize(
    "options, kept",
    [
        ({}, ["4"]),
        ({"top": 2}, ["4", "5"]),
        ({"least": 0.5}, ["4"]),
        ({"least": 0.5, "unended": True}, ["4!", "4"]),
        ({"top": 1, "unended": True}, ["4!"]),
        ({"least": 3.0}, []),
    ],
)
def test_what_is_kept(options, kept):
    rows = keep_best([ONE], **options)
    assert [row["completion"] for row in rows] == kept
    assert [row["score"] for row in rows] == [ONE.scores[ONE.completions.index(text)] for text in kept]
    messages = [[{"role": "assistant", "content": text}] for text in kept]
    assert [row["completion"] for row in keep_best([CHAT], **options)] == messages
    if not kept:
        with pytest.raises(InputError, match=r"the best score is 2, and 4 of 5 ended"):
            check_kept(rows, [ONE])


def test_a_model_that_imitates_its_best_completions_scores_higher():
    def digits(prompts, completions, **columns):
        return [float(completion.count("7")) for completion in completions]

    def draw(params):
        sampling = decoding.Sampling(3)
        return training.draw_candidates(
            POLICY, params, TOKENIZER, PROMPTS, rewards=digits, n=8, sampling=sampling
        )

    before = draw(PARAMS)
    assert before == draw(PARAMS)
    assert [each.prompt for each in before] == PROMPTS
    rows = training.keep_best(before, unended=True)
    config = lm.SupervisedConfig(steps=30, batch=8, learning_rate=0.02, warmup=0)
    stage = training.supervised(POLICY, rows, config, tokenizer=TOKENIZER, texts=lm.TextConfig(held_out=0))
    run = training.fit([stage], jax.tree.map(np.copy, PARAMS))
    means = [np.mean([each.scores for each in candidates]) for candidates in (before, draw(run.params))]
    assert means[1] > means[0] + 0.3
