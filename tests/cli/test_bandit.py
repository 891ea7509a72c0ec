"""`jaxrl4lm bandit`: one line per algorithm and two pictures."""

import matplotlib.figure
import numpy as np
import pytest

from jaxrl4lm.cli import bandit
from jaxrl4lm.plots.bandits import draw_learning_curves
from jaxrl4lm.types import InputError
from tests.selection import slow_but


@pytest.mark.parametrize(
    "rewards, names",
    slow_but([("bernoulli", ["KL-UCB", "EXP3"]), ("gaussian", ["UCB", "Thompson, Gaussian"])], 1),
)
def test_table_and_pictures(tmp_path, capsys, monkeypatch, rewards, names):
    monkeypatch.setenv("COLUMNS", "200")
    study = ["--no-study"] if rewards == "bernoulli" else []
    arguments = [
        "--runs",
        "8",
        "--steps",
        "30",
        "--arms",
        "3",
        "--rewards",
        rewards,
        "--folder",
        str(tmp_path),
    ]
    assert bandit.main(arguments + study) == 0
    out = capsys.readouterr().out
    for name in ["greedy", "ε-greedy, ε = 0.1", "gradient, α = 0.1", *names]:
        assert name in out
    assert (tmp_path / "bandit.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "bandit_study.png").exists() == (rewards == "gaussian")


def test_arms_that_are_given_have_a_bound(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = []
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *a, **k: lines.extend(self.axes[2].lines)
    )
    words = [
        "--means",
        "0.5",
        "0.5",
        "0.75",
        "--runs",
        "4",
        "--steps",
        "9",
        "--no-study",
        "--folder",
        str(tmp_path),
    ]
    assert bandit.main(words) == 0
    assert "grows slower than 3.5 ln t" in capsys.readouterr().out  # 2 · ¼ / (½ ln(2/3) + ½ ln 2)
    np.testing.assert_allclose(lines[-1].get_ydata()[-1], 0.5 / (0.5 * np.log(4 / 3)) * np.log(9), rtol=1e-5)


@pytest.mark.parametrize("words", [["1"], ["0.5", "1.5"]])
def test_means_that_are_no_probabilities_are_refused(words):
    with pytest.raises(InputError, match="give at least two probabilities"):
        bandit.main(["--means", *words])


@pytest.mark.parametrize("steps, marker", [(1, "o"), (2, "None")])
def test_a_single_step_is_a_point(tmp_path, monkeypatch, steps, marker):
    drawn = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda self, *a, **k: drawn.append(self))
    curves = {"ours": dict.fromkeys(("rewards", "optimal", "regrets"), np.full(steps, 0.5))}
    draw_learning_curves(curves, 1.0, "a title", tmp_path / "bandit.png")
    for panel in drawn[0].axes:
        assert panel.lines[0].get_marker() == marker
        assert panel.lines[0].get_ydata()[0] == 0.5


def test_a_seed_beyond_64_bits_is_refused():
    with pytest.raises(InputError, match="--seed is 99999999999999999999: give a number"):
        bandit.main(["--seed", "9" * 20])


@pytest.mark.parametrize("option, value", [("--arms", "1"), ("--runs", "0"), ("--steps", "-3")])
def test_sizes_that_make_no_sense_are_refused(option, value):
    with pytest.raises(InputError, match=f"{option} is {value}: give at least"):
        bandit.main([option, value])


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        bandit.main(["--folder", str(tmp_path / "file" / "below")])
