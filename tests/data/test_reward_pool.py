"""Rewards in a pool of processes: the same scores, and what raises, hangs or dies."""

import numpy as np
import pytest

from jaxrl4lm.data import rewards
from jaxrl4lm.data.reward_pool import RewardPool
from jaxrl4lm.types import InputError
from tests.data import pooled_rewards


def batch_of(completions, **columns):
    return rewards.Batch(["p"] * len(completions), completions, [[1]] * len(completions), columns)


def test_a_pool_scores_as_the_reward_itself():
    batch = batch_of(["a", "bb", "none", "dddd", "e"], answer=[1, 2, 3, 4, 5])
    pool = RewardPool(pooled_rewards.length, 2)
    try:
        for step in (3, 4):
            state, log = rewards.TrainerState(step), rewards.Log()
            scores = rewards.judge({"length": pool}, batch, state, log)
            np.testing.assert_array_equal(scores, [[1, 4, np.nan, 16, 5]])
            assert log.metrics == {"length/failures": 0, "seen": step}
            assert log.columns == {"upper": ["A", "BB", "NONE", "DDDD", "E"]}
    finally:
        pool.close()


def test_what_raises_hangs_or_dies_is_tried_twice_and_counted(tmp_path):
    said = [
        "raise",
        "ok",
        "die",
        f"raise {tmp_path / 'a'}",
        f"die {tmp_path / 'b'}",
        "fine",
        "good",
        f"hang {tmp_path / 'c'}",
    ]
    pool = RewardPool(f"{pooled_rewards.__file__}:misbehave", 2, limit=2.0, name="it")
    try:
        log = rewards.Log()
        scores = rewards.judge({"it": pool}, batch_of(said), log=log)
        np.testing.assert_array_equal(scores, [[np.nan, 2, np.nan, 5, 5, 4, 4, 5]])
        assert log.metrics == {"it/failures": 2}
        with pytest.raises(
            InputError, match=r"it failed for 2 of 3 completions, the last time because it (died|raised)"
        ):
            rewards.judge({"it": pool}, batch_of(["raise", "die", "ok"]))
    finally:
        pool.close()


def test_rewards_that_cannot_be_sent(tmp_path):
    with pytest.raises(InputError, match="cannot be sent to another process"):
        RewardPool(lambda completions: [], 1)
    (tmp_path / "broken.py").write_text("import nowhere\ndef f(completions): return []\n")
    pool = RewardPool(f"{tmp_path}/broken.py:f", 1)
    try:
        with pytest.raises(InputError, match=r"py:f cannot be loaded \(.*No module named 'nowhere'"):
            rewards.judge({"f": pool}, batch_of(["a"]))
    finally:
        pool.close()
