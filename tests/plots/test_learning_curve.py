"""The picture of a run, by what is drawn in it."""

import matplotlib.figure
import numpy as np
import pytest

from jaxrl4lm.plots.learning_curve import draw_learning_curve

PANELS = {"reward/mean": "mean reward", "held_out": "held-out score", "kl/ref_sequence": "KL"}


def run(updates: int, seeds: int = 1):
    def value(x):
        return float(x) if seeds == 1 else [float(x) + i for i in range(seeds)]

    supervised = [{"stage": "supervised", "step": 40, "loss": value(1), "held_out": value(0.25)}]
    first = [{"stage": "reinforcement", "step": 0, "held_out": value(0.25)}]
    rest = [
        {
            "stage": "reinforcement",
            "step": i,
            "reward/mean": value(i / updates),
            "kl/ref_sequence": value(i),
        }
        | ({"held_out": value(i / updates)} if i % 10 == 0 else {})
        for i in range(1, updates + 1)
    ]
    return supervised + first + rest


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws, and gives the figure."""
    figures = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))
    )

    def draw(records, title="a run", **options):
        draw_learning_curve(records, "reinforcement", PANELS, title, tmp_path / "curve.png", **options)
        assert [p.name for p in tmp_path.iterdir()] == ["curve.png"]
        return figures[-1]

    return draw


@pytest.mark.parametrize("updates", [10, 100])
def test_one_seed(drawn, updates):
    figure = drawn(run(updates))
    reward, held_out, kl = figure.axes
    assert [ax.get_title() for ax in figure.axes] == list(PANELS.values())
    x, y = reward.lines[0].get_data()
    np.testing.assert_array_equal(x, np.arange(1, updates + 1))
    np.testing.assert_allclose(y, np.arange(1, updates + 1) / updates)
    running = [y[max(0, i - updates // 40 + 1) : i + 1].mean() for i in range(updates)] if updates > 40 else y
    np.testing.assert_allclose(reward.lines[-1].get_ydata(), running)
    np.testing.assert_array_equal(held_out.lines[0].get_xdata(), np.arange(0, updates + 1, 10))
    assert kl.lines[0].get_ydata()[-1] == updates
    assert len(kl.lines) == (1 if updates <= 40 else 2)
    (level,) = [line for line in held_out.lines if line.get_linestyle() == "--"]
    assert set(level.get_ydata()) == {0.25}


def test_many_seeds_are_a_mean_and_a_range(drawn):
    figure = drawn(run(20, seeds=3))
    reward = figure.axes[0]
    np.testing.assert_allclose(reward.lines[0].get_ydata(), np.arange(1, 21) / 20 + 1)
    (band,) = reward.collections
    edges = band.get_paths()[0].vertices
    assert edges[:, 1].min() == pytest.approx(1 / 20)
    assert edges[:, 1].max() == pytest.approx(3)
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()][:2] == ["range of 3 seeds", "mean"]


@pytest.mark.parametrize("records", [[], run(10)[:1], run(10)[:2]], ids=["nothing", "supervised", "first"])
def test_runs_that_were_cut_short(drawn, records):
    figure = drawn(records)
    assert [t.get_text() for t in figure.axes[0].texts] == ["nothing yet"]


def test_titles_are_no_mathematics(drawn):
    assert drawn(run(3), title="regex:^$a_{$").get_suptitle() == "regex:^$a_{$"


def test_steps_may_be_counted_in_something_else(drawn):
    reward = drawn(run(10), axis=("environment step", lambda step: 40 + 8 * step)).axes[0]
    np.testing.assert_array_equal(reward.lines[0].get_xdata(), 40 + 8 * np.arange(1, 11))
    assert reward.get_xlabel() == "environment step (reinforcement)"
    reward.figure.canvas.draw()
    assert drawn(run(10)).axes[0].get_xlabel() == "step (reinforcement)"
