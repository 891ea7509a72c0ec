"""The picture of best of n: what the best of m completions is expected to score."""

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib.figure


def draw_best_of(curves: Mapping[str, Sequence[float]], title: str, path: pathlib.Path) -> None:
    """Draws curves over m = 1, 2, ... n into a PNG.

    Args:
      curves: what the best of m scores, for each m, by what the curve is called; no legend for a single one.
    """
    figure = matplotlib.figure.Figure(figsize=(5.5, 4), layout="constrained")
    ax = figure.subplots()
    for name, values in curves.items():
        ax.plot(range(1, len(values) + 1), values, marker="o", markersize=3, label=name)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("m completions of a prompt")
    ax.set_ylabel("expected score of the best")
    ax.set_title(title, fontsize=10, parse_math=False)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        ax.legend(frameon=False)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)
