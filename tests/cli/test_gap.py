"""`jaxrl4lm gap`: a table, a picture and all numbers, at sizes that take seconds."""

import json

import matplotlib.figure
import numpy as np
import pytest

from jaxrl4lm.plots.gap import GapCurve, draw_gaps

SMALL = [
    "--length",
    "1",
    "--groups",
    "8",
    "--completions",
    "2",
    "--updates",
    "2",
    "--points",
    "2",
    "--seeds",
    "2",
]


def test_table_picture_and_numbers(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = cli("gap", *SMALL, "--betas", "1.5", "--only", "best_of_n", "--folder", tmp_path)
    assert result.code == 0, result.err
    assert "3 completions, 2 seeds, 32 draws a run" in result.out
    assert (tmp_path / "gap.png").read_bytes()[:4] == b"\x89PNG"
    told = json.loads((tmp_path / "gap.json").read_text())
    assert told["samples"] == [0, 16, 32]
    row = told["algorithms"]["best_of_n"]
    gaps, (limit,) = np.array(row["gaps"]), row["limits"]
    assert gaps.shape == (1, 2, 3)
    assert 0 < limit < gaps[0, 0, 0] == gaps[0, 1, 0]
    assert f"{gaps[0, :, -1].mean():.4f}, {limit:.4f}" in result.out


def test_what_a_picture_shows(tmp_path, monkeypatch):
    """The median of the seeds, a limit of the same colour, in each panel."""
    drawn = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda self, *a, **k: drawn.append(self))
    gaps = np.array([[[1.0, 0.1], [1.0, 0.3], [1.0, 0.2]], [[2.0, 0.4]] * 3])
    curves = {"ours": GapCurve(gaps, None), "theirs": GapCurve(gaps, np.array([0.05, 0.06]))}
    draw_gaps(curves, np.array([0, 8]), [1.0, 2.0], tmp_path / "gap.png")
    first, second = drawn[0].axes
    np.testing.assert_allclose(first.lines[0].get_ydata(), [1.0, 0.2])
    curve, limit = second.lines[1:3]
    assert curve.get_color() == limit.get_color() != second.lines[0].get_color()
    assert limit.get_ydata()[0] == 0.06


@pytest.mark.parametrize(
    "words, message",
    [
        (["--only", "ppx"], "--only has 'ppx': there are ppo"),
        (["--betas"], "--betas is missing its value: give at least one price"),
        (["--betas", "0"], "--betas has 0: a price is positive"),
        (["--updates", "7", "--points", "2"], "--updates is 7: give a multiple of --points, 2"),
        (["--completions", "1"], "--completions must be at least 2"),
        (
            ["--vocabulary", "50", "--length", "9"],
            "vocabulary is 50 and length 9, which make 1,953,125,000,000,000 texts",
        ),
    ],
)
def test_bad_input_is_refused(cli, tmp_path, words, message):
    result = cli("gap", *words, "--folder", tmp_path / "none")
    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "none").exists()
