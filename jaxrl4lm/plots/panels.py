"""Pictures of panels side by side: lines, bars and grids, described as data."""

import io
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.figure
import numpy as np
import PIL.Image

from jaxrl4lm.plots.mdp import draw_grid

FEW = 12
"""So many points of a line, or fewer, are marked."""


LONG = 34
"""So many characters below the bars are the most that fit in a row."""


class Line(NamedTuple):
    """Points that belong together."""

    x: Any
    """`[N]`."""
    y: Any
    """`[N]`."""
    label: str | None = None
    """What the legend calls it; None: nothing."""
    style: str = "-"
    """`-`, `--`, `:`, or `o` for points that no line joins."""
    color: str | None = None
    """The next one of the panel, if None."""
    low: Any = None
    """`[N]`: the lower end of a band around it; None: no band."""
    high: Any = None
    """`[N]`: its upper end."""


class Bars(NamedTuple):
    """One bar for each name; several of these stand beside each other."""

    names: Sequence[str]
    heights: Any
    """`[N]`."""
    label: str | None = None


class Grid(NamedTuple):
    """A grid world; the fields are those of `plots.mdp.draw_grid`."""

    index: np.ndarray
    values: np.ndarray
    policy: np.ndarray | None
    terminal: np.ndarray
    limits: tuple[float, float] | None = None


class Panel(NamedTuple):
    """One pair of axes."""

    title: str
    x_label: str = ""
    y_label: str = ""
    lines: Sequence[Line] = ()
    bars: Sequence[Bars] = ()
    grid: Grid | None = None
    log_x: bool = False
    log_y: bool = False
    x_limits: tuple[float | None, float | None] | None = None
    y_limits: tuple[float | None, float | None] | None = None
    levels: Sequence[tuple[float, str]] = ()
    """Dotted horizontal lines, and what stands on them."""
    notes: Sequence[tuple[float, float, str]] = ()
    """Texts at places (x, y)."""
    legend_below: bool = False
    """Whether the legend stands below the axes, where it hides nothing."""


def draw_panels(panels: Sequence[Panel], path: pathlib.Path, *, columns: int = 3) -> None:
    """Draws panels, so many a row, into a PNG.

    Args:
      panels: at least one.
      path: where to write.
      columns: the most panels of a row.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    height = 2.7 if all(panel.grid for panel in panels) else 3.4
    figure = matplotlib.figure.Figure(figsize=(3.9 * columns + 0.3, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax, panel in zip(axes, panels, strict=False):
        _draw_panel(ax, panel)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100)
    temporary = path.with_suffix(".tmp.png")
    # A palette is a third of the bytes: these pictures are also kept with the docs.
    PIL.Image.open(drawn).convert("RGB").quantize(96, dither=PIL.Image.Dither.NONE).save(
        temporary, optimize=True
    )
    temporary.replace(path)


def _draw_panel(ax: Any, panel: Panel) -> None:
    ax.set_title(panel.title, fontsize=10, parse_math=False)
    if panel.grid is not None:
        grid = panel.grid
        draw_grid(ax, grid.index, grid.values, grid.policy, grid.terminal, 0.85, grid.limits)
    else:
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    if panel.bars:
        _draw_bars(ax, panel.bars)
    for line in panel.lines:
        style: dict[str, Any] = {"linestyle": line.style, "linewidth": 1.6}
        if line.style == "o":
            style = {"linestyle": "", "marker": "o", "markersize": 5}
        elif line.style == "-" and len(line.x) <= FEW and panel.grid is None:
            style |= {"marker": "o", "markersize": 3.5}
        (drawn,) = ax.plot(line.x, line.y, label=line.label, color=line.color, **style)
        if line.low is not None:
            ax.fill_between(line.x, line.low, line.high, color=drawn.get_color(), alpha=0.15, linewidth=0)
    for level, text in panel.levels:
        ax.axhline(level, color="0.4", linestyle=":", linewidth=1.2)
        place = ax.get_yaxis_transform()
        ax.text(0.99, level, text, transform=place, ha="right", va="bottom", color="0.35", fontsize=8)
    for x, y, text in panel.notes:
        ax.annotate(text, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7.5, color="0.25")
    ax.set_xlabel(panel.x_label, parse_math=False)
    ax.set_ylabel(panel.y_label, parse_math=False)
    if panel.log_x:
        ax.set_xscale("log")
    if panel.log_y:
        ax.set_yscale("log")
    if panel.x_limits is not None:
        ax.set_xlim(panel.x_limits)
    if panel.y_limits is not None:
        ax.set_ylim(panel.y_limits)
    elif panel.levels:
        ax.margins(y=0.12)  # room for what stands on them
    labelled = ax.get_legend_handles_labels()[1]
    if labelled:
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": 2}
        ax.legend(frameon=False, fontsize=8, **(below if panel.legend_below else {}))


def _draw_bars(ax: Any, groups: Sequence[Bars]) -> None:
    width = 0.8 / len(groups)
    for i, group in enumerate(groups):
        places = np.arange(len(group.names)) + (i - (len(groups) - 1) / 2) * width
        ax.bar(places, group.heights, width, label=group.label)
    ax.set_xticks(np.arange(len(groups[0].names)), groups[0].names)
    ax.grid(axis="x", visible=False)
    if sum(map(len, groups[0].names)) > LONG:
        ax.tick_params(axis="x", labelrotation=30)
        for text in ax.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor", fontsize=8)
