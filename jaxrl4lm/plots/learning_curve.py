"""The picture of a training run: metrics against steps."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.figure
import matplotlib.ticker
import numpy as np

MANY = 8
"""So many seeds are drawn by their middle half; fewer by their range."""


def draw_learning_curve(
    records: Sequence[Mapping[str, Any]],
    stage: str,
    panels: Mapping[str, str],
    title: str,
    path: pathlib.Path,
    axis: tuple[str, Callable[[int], int]] = ("step", lambda step: step),
) -> None:
    """Draws the records of a run, as `metrics.jsonl` holds them, into a PNG.

    Args:
      records: each with `stage`, `step`, and the metrics of `panels` where it has them: a number, or a list of one number a
        seed (then the mean is drawn, over the range of the seeds, or of the middle half of many); None is left out.
      stage: whose steps are drawn. What an earlier stage reached of a metric is a dashed line.
      panels: metrics, and their titles.
      axis: what they are drawn against: its name, and how much of it a step's number is.
    """
    unit, count = axis
    width = max(len(panels), 1)
    figure = matplotlib.figure.Figure(figsize=(1 + 4 * width, 4), layout="constrained")
    axes = figure.subplots(1, width, squeeze=False)[0]
    records = [{name: value for name, value in r.items() if _is_drawn(value)} for r in records]
    earlier = dict.fromkeys(r["stage"] for r in records if r["stage"] != stage)
    for ax, (name, label) in zip(axes, panels.items(), strict=False):
        chosen = [r for r in records if r["stage"] == stage and name in r]
        _draw_curve(ax, [count(r["step"]) for r in chosen], [r[name] for r in chosen], "C0")
        for color, other in enumerate(earlier, start=1):
            if before := [r[name] for r in records if r["stage"] == other and name in r]:
                level = float(np.mean(before[-1]))
                ax.axhline(level, color=f"C{color}", linestyle="--", label=f"after {other}: {level:.2f}")
        ax.set_title(label, fontsize=10)
        ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.set_xlabel(f"{unit} ({stage})")
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    # One legend below the panels: inside one it would lie on a curve.
    entries = {
        label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    if entries:
        where = "outside lower center"
        figure.legend(entries.values(), entries.keys(), loc=where, ncols=len(entries), frameon=False)
    figure.suptitle(title, parse_math=False)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)


def _is_drawn(value: Any) -> bool:
    return value is not None and not (isinstance(value, list) and None in value)


def _draw_curve(ax: Any, steps: Sequence[int], values: Sequence[Any], color: str) -> None:
    if not steps:
        ax.text(0.5, 0.5, "nothing yet", ha="center", transform=ax.transAxes)
        return
    table = np.array([np.atleast_1d(v) for v in values], float)
    window = max(1, len(table) // 40)
    # A noisy curve is drawn as its running mean; that of one seed with itself, pale, behind it.
    smooth = np.array([table[max(0, i - window + 1) : i + 1].mean(0) for i in range(len(table))])
    if (seeds := table.shape[1]) > 1:
        many = seeds >= MANY
        low, high = np.quantile(smooth, [0.25, 0.75] if many else [0, 1], axis=1)
        label = f"middle half of {seeds} seeds" if many else f"range of {seeds} seeds"
        ax.fill_between(steps, low, high, color=color, alpha=0.2, label=label)
    elif window > 1:
        ax.plot(steps, table[:, 0], color=color, alpha=0.25, linewidth=0.8)
    marker = "o" if len(table) < 15 else None
    ax.plot(
        steps, smooth.mean(1), color=color, marker=marker, markersize=3, label="mean" if seeds > 1 else None
    )
