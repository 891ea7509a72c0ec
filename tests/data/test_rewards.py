"""Rewards: the built-in ones on cases, and every way in which a user's function can fail."""

import numpy as np
import pytest

from jaxrl4lm.data import rewards
from jaxrl4lm.types import InputError


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
    assert rewards.call(function, name, ["p"], [completion], columns) == [expected]


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
    assert rewards.call(function, "f", ["p"], ["abc"], {}) == [6.0]


@pytest.mark.parametrize(
    "scores",
    [[1, 0.5], (1, 0.5), np.array([1, 0.5]), [np.float32(1), np.float64(0.5)], [True, 0.5], iter([1, 0.5])],
    ids=lambda x: type(x).__name__,
)
def test_scores_of_any_sequence(scores):
    assert rewards.call(lambda **_: scores, "f", ["p", "q"], ["a", "b"], {}) == [1.0, 0.5]


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
        ([1.0, None], "returned None for the prompt 'q'"),
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
        rewards.call(lambda **_: scores, "my.py:f", ["p", "q"], ["a", "b"], {})
    assert "the reward my.py:f" in str(error.value)
    assert said in str(error.value)


def test_what_a_reward_raises_is_told_on_one_line():
    def reward(**columns):
        raise KeyError("first\nsecond")

    with pytest.raises(
        InputError, match=r"f raised KeyError at test_rewards.py:\d+: .*\(first prompt .* 'p'\)"
    ) as error:
        rewards.call(reward, "f", ["p"], ["a"], {})
    assert "\n" not in str(error.value)


def test_columns_reach_the_reward_without_names_that_clash():
    def reward(prompts, completions, **columns):
        assert (prompts, completions, columns) == (["p"], ["c"], {"answer": [3]})
        return [0]

    assert rewards.call(
        reward, "f", ["p"], ["c"], {"answer": [3], "prompts": ["x"], "completions": ["y"]}
    ) == [0.0]


@pytest.mark.parametrize(
    "function, columns, said",
    [
        (rewards.exact_match, [], "missing a required argument: 'answer'"),
        (rewards.exact_match, ["answer", "line"], None),
        (lambda prompts, completions: [], ["line"], "unexpected keyword argument 'line'"),
        (lambda prompts, completions: [], ["prompts"], None),
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
        rewards.call(lambda **_: [float("nan")], "f", ["x" * 1000], ["a"], {})
    assert len(str(error.value)) < 200
