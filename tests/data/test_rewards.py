"""Rewards: the built-in ones on cases, and every way in which a user's function can fail."""

import asyncio

import numpy as np
import pytest

from jaxrl4lm.data import rewards
from jaxrl4lm.types import InputError
from tests.data.judging import call


@pytest.mark.parametrize(
    "name, completion, answer, expected",
    [
        ("exact_match", " 42\n", "42", 1.0),
        ("exact_match", "42.", "42", 0.0),
        ("exact_match", "42", 42, 1.0),
        ("numeric_answer", "so 3 and then 1,234.50", "#### 1234.5", 1.0),
        ("numeric_answer", "-7", "7", 0.0),
        ("numeric_answer", "it is .5", "0.5", 1.0),
        ("numeric_answer", "no number", "no number", 0.0),
        ("numeric_answer", "", "3", 0.0),
        ("numeric_answer", "3", None, 0.0),
        ("length:4", "abcd", None, 1.0),
        ("length:4", "abc", None, 0.75),
        ("length:4", "", None, 0.0),
        ("length:4", "a" * 99, None, 0.0),
        ("regex:^a.c$", "abc", None, 1.0),
        ("regex:^a.c$", "xabc", None, 0.0),
        ("regex:a:b", "a:b", None, 1.0),
    ],
)
def test_built_in(name, completion, answer, expected):
    function = rewards.parse(name)
    columns = {"answer": [answer], "other": [0]}
    assert call(function, name, ["p"], [completion], columns) == [expected]


@pytest.mark.parametrize(
    "text, said",
    [
        ("bleu", "--reward bleu: not a reward; use exact_match"),
        ("length", "length:20"),
        ("length:0", "length:20"),
        ("length:x", "length:20"),
        ("regex:(", "not a regular expression"),
        ("exact_match:x", "not a reward"),
        ("missing.py:f", "missing.py does not exist"),
        ("good.py", "not a reward"),
        ("good.py:", "no function ''"),
        ("folder.py:f", "folder.py is no file"),
        ("good.py:g", "has no function 'g'"),
        ("good.py:X", "has no function 'X'"),
        ("syntax.py:f", "SyntaxError"),
        ("imports.py:f", "ModuleNotFoundError at imports.py:1: No module named 'nowhere'"),
        ("exits.py:f", "SystemExit at exits.py:2: 3"),
    ],
)
def test_rewards_that_do_not_load(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.py").write_text("X = 1\ndef f(prompts, completions): return []\n")
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "imports.py").write_text("import nowhere\n")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(InputError) as error:
        rewards.parse(text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_may_import_its_neighbour_and_define_dataclasses(tmp_path):
    (tmp_path / "neighbour_of_reward.py").write_text("FACTOR = 2\n")
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom neighbour_of_reward import FACTOR\n"
        "@dataclass\nclass A:\n    x: int\n"
        "def f(prompts, completions, **columns): return [FACTOR * A(len(c)).x for c in completions]\n"
    )
    function = rewards.parse(f"{tmp_path}/mine.py:f")
    assert call(function, "f", ["p"], ["abc"], {}) == [6.0]


@pytest.mark.parametrize(
    "scores",
    [[1, 0.5], (1, 0.5), np.array([1, 0.5]), [np.float32(1), np.float64(0.5)], [True, 0.5], iter([1, 0.5])],
    ids=lambda x: type(x).__name__,
)
def test_scores_of_any_sequence(scores):
    assert call(lambda **_: scores, "f", ["p", "q"], ["a", "b"], {}) == [1.0, 0.5]


class Unfloatable:
    def __repr__(self):
        return "<unfloatable>"

    def __float__(self):
        raise RuntimeError("no number")


@pytest.mark.parametrize(
    "scores, said",
    [
        ([1.0], "returned 1 scores for 2 completions (first prompt of the batch: 'p')"),
        ([1.0] * 3, "returned 3 scores for 2 completions"),
        (None, "returned a NoneType"),
        (1.0, "returned a float"),
        ("10", "returned a str"),
        ({0: 1.0, 1: 2.0}, "returned a dict"),
        ([1.0, float("nan")], "returned nan for the prompt 'q'"),
        ([float("-inf"), 1.0], "returned -inf for the prompt 'p'"),
        ([1.0, 1e39], "returned 1e+39 for the prompt 'q'"),
        ([1.0, 10**400], "for the prompt 'q'"),
        ([1.0, "2"], "returned '2' for the prompt 'q'"),
        ([1.0, [2.0]], "returned [2.0] for the prompt 'q'"),
        ([1.0, Unfloatable()], "returned <unfloatable> for the prompt 'q'"),
        ((1 / (1 - i) for i in range(2)), "raised ZeroDivisionError at test_rewards.py"),
        (map(float, ["1", "x"]), "raised ValueError"),
    ],
    ids=lambda x: x[:20] if isinstance(x, str) else type(x).__name__,  # no addresses: workers must agree
)
def test_scores_that_are_none(scores, said):
    with pytest.raises(InputError) as error:
        call(lambda **_: scores, "my.py:f", ["p", "q"], ["a", "b"], {})
    assert "the reward my.py:f" in str(error.value)
    assert said in str(error.value)


def test_what_a_reward_raises_is_told_on_one_line():
    def reward(**columns):
        raise KeyError("first\nsecond")

    with pytest.raises(
        InputError, match=r"f raised KeyError at test_rewards.py:\d+: .*\(first prompt .* 'p'\)"
    ) as error:
        call(reward, "f", ["p"], ["a"], {})
    assert "\n" not in str(error.value)


def test_what_a_reward_is_called_with():
    """TRL's arguments: those that it names, or all of them; columns of those names are left out."""
    batch = rewards.Batch(["p"], ["c"], [[5, 6]], {"answer": [3], "prompts": ["x"], "completion_ids": [0]})
    state, log = rewards.TrainerState(7, 9, 0.5), rewards.Log()

    def everything(prompts, completions, trainer_state, log_extra, log_metric, **others):
        assert (prompts, completions, others) == (["p"], ["c"], {"answer": [3], "completion_ids": [[5, 6]]})
        assert (trainer_state.global_step, trainer_state.max_steps, trainer_state.epoch) == (7, 9, 0.5)
        log_extra("length", [1])
        log_metric("mean", 1)
        log_metric("mean", 2)
        return [0]

    def little(completion_ids):
        return [len(completion_ids[0])]

    scores = rewards.judge({"everything": everything, "little": little}, batch, state, log)
    np.testing.assert_array_equal(scores, [[0], [2]])
    assert (log.metrics, log.columns) == ({"mean": 1.5}, {"length": [1]})


def test_rewards_that_wait_wait_together():
    order = []

    async def slow(completions, **_):
        order.append("slow begins")
        await asyncio.sleep(0.05)
        order.append("slow ends")
        return [1.0] * len(completions)

    async def quick(completions, **_):
        order.append("quick")
        return [2.0, None]

    async def fails(**_):
        raise OSError("no answer")

    batch = rewards.Batch(["p", "q"], ["a", "b"], [[], []], {})
    scores = rewards.judge({"slow": slow, "quick": quick}, batch)
    np.testing.assert_array_equal(scores, [[1, 1], [2, np.nan]])
    assert order == ["slow begins", "quick", "slow ends"]

    async def in_a_notebook():
        return rewards.judge({"quick": quick}, batch)

    np.testing.assert_array_equal(asyncio.run(in_a_notebook()), [[2, np.nan]])
    with pytest.raises(InputError, match=r"the reward fails raised OSError at test_rewards.py.*: no answer"):
        rewards.judge({"slow": slow, "fails": fails}, batch)


def test_weighted_sums_leave_out_what_does_not_apply():
    scores = np.array([[1.0, np.nan, np.nan], [2.0, 3.0, np.nan]])
    several = rewards.gather_rewards([rewards.exact_match, rewards.exact_match])
    assert list(several.functions) == ["exact_match", "exact_match (2)"]
    np.testing.assert_array_equal(several.add(scores), [3, 3, np.nan])
    np.testing.assert_array_equal(several._replace(weights=(1, -0.5)).add(scores), [0, -1.5, np.nan])
    groups = np.array([[0.0, 2.0, 1.0, 1.0], [0.0, 100.0, np.nan, np.nan]])
    sums = several._replace(weights=(3.0, 1.0), normalized=True).add(groups, copies=2)
    np.testing.assert_allclose(sums, np.array([-1, 1, 0, 0]) * np.sqrt(1.5), rtol=1e-3)
    with pytest.raises(InputError, match="reward_weights has 1 numbers for 2 rewards"):
        rewards.gather_rewards([rewards.exact_match] * 2, [1.0])


@pytest.mark.filterwarnings("ignore")
def test_the_rewards_that_trl_ships():
    trl = pytest.importorskip("trl.rewards", reason="needs the extra 'peers'")
    chat = [{"role": "user", "content": "q"}]
    said = ["<think>\na\n</think>\nb", "b"]
    batch = rewards.Batch([chat, chat], said, [[1] * 30, [1] * 3], {"solution": ["1", "2"]})
    shipped = {
        "think": trl.think_format_reward,
        "overlong": trl.get_soft_overlong_punishment(max_completion_len=20, soft_punish_cache=10),
    }
    scores = rewards.judge(shipped, batch)
    messages = [[{"role": "assistant", "content": text}] for text in said]
    expected = [
        trl.think_format_reward(messages),
        shipped["overlong"](completion_ids=batch.completion_ids),
    ]
    np.testing.assert_array_equal(scores, expected)
    assert scores.tolist() == [[1, 0], [-1, 0]]


@pytest.mark.parametrize(
    "function, columns, said",
    [
        (rewards.exact_match, [], "missing a required argument: 'answer'"),
        (rewards.exact_match, ["answer", "line"], None),
        (lambda prompts, completions: [], ["line", "prompts"], None),
        (lambda completions, trainer_state: [], [], None),
        (lambda completions, **columns: [], [], None),
        (lambda texts: [], [], "missing a required argument"),
        (max, ["line"], None),
    ],
)
def test_columns_are_checked_before_anything_runs(function, columns, said):
    if said is None:
        rewards.check_columns(function, "f", columns)
        return
    with pytest.raises(InputError) as error:
        rewards.check_columns(function, "f", columns)
    assert said in str(error.value)


def test_long_prompts_are_shortened_in_messages():
    with pytest.raises(InputError) as error:
        call(lambda **_: [float("nan")], "f", ["x" * 1000], ["a"], {})
    assert len(str(error.value)) < 200
