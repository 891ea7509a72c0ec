"""The picture of a solved grid world."""

import pathlib

import matplotlib.axes
import matplotlib.figure
import matplotlib.image
import matplotlib.patches
import matplotlib.patheffects
import numpy as np

from jaxrl4lm.mdp import ARROWS

_DIRECTIONS = {"↑": (0, 1), "→": (1, 0), "↓": (0, -1), "←": (-1, 0)}
_HALO: list[matplotlib.patheffects.AbstractPathEffect] = [
    matplotlib.patheffects.withStroke(linewidth=2.5, foreground="white")
]
"""A white outline of text and arrows, for dark cells."""
MAX_LABELLED = 400
"""Grids of more cells show colour and arrows, but no numbers."""


def draw_grid_solution(
    index: np.ndarray,
    values: np.ndarray,
    policy: np.ndarray,
    terminal: np.ndarray,
    title: str,
    path: pathlib.Path,
) -> None:
    """Draws values as colour, the policy as arrows, walls dark and terminals framed, into a PNG.

    Args:
      index: `[rows, columns]`, the state at each cell, −1 at walls (as in `GridWorld`).
      values: `[S]`.
      policy: `[S]` actions.
      terminal: `[S]` bool.
      title: above the picture.
      path: where to write.
    """
    rows, columns = index.shape
    cell = min(1.0, 12 / max(rows, columns))
    figure = matplotlib.figure.Figure(
        figsize=(max(5.6, columns * cell + 1.6), max(2.6, rows * cell + 1.0)), layout="constrained"
    )
    ax = figure.subplots()
    image = draw_grid(ax, index, values, policy, terminal, cell)
    figure.colorbar(image, ax=ax, label="value", shrink=0.9)
    ax.set_title(title, fontsize=10)
    figure.savefig(path, dpi=130)


def draw_grid(
    ax: matplotlib.axes.Axes,
    index: np.ndarray,
    values: np.ndarray,
    policy: np.ndarray | None,
    terminal: np.ndarray,
    cell: float = 1.0,
    limits: tuple[float, float] | None = None,
) -> matplotlib.image.AxesImage:
    """Draws a grid into axes; returns the image, of which a colour bar can be made.

    Args:
      index, values, policy, terminal: as of `draw_grid_solution`; no arrows without a policy.
      cell: the width of a cell, in inches; text and lines follow it.
      limits: values of the first and the last colour; by default those of the grid.
    """
    rows, columns = index.shape
    shown = np.ma.masked_where(index < 0, np.asarray(values, float)[index])
    ax.set_facecolor("0.25")  # seen through the masked cells: the walls
    largest = max(float(np.abs(shown).max()), 1e-12)
    signed = float(shown.min()) < 0 < float(shown.max())
    own = (-largest, largest) if signed else (float(shown.min()), float(shown.max()))
    low, high = limits or own
    image = ax.imshow(shown, cmap="RdYlGn" if low < 0 < high else "YlGn", vmin=low, vmax=high)
    if policy is not None:
        _draw_arrows(ax, index, policy, terminal)
    labelled, decimals = index.size <= MAX_LABELLED, _decimals(np.asarray(values))
    for row, column in np.argwhere(index >= 0):
        state = index[row, column]
        if labelled:
            sign = "+" if terminal[state] else ""
            text = f"{values[state]:{sign}.{decimals}f}"
            below = 0 if terminal[state] or policy is None else 0.27
            label = ax.text(
                column, row + below, text, ha="center", va="center",
                fontsize=11 * cell, fontweight="bold" if terminal[state] else "normal",
            )  # fmt: skip
            label.set_path_effects(_HALO)
        if terminal[state]:
            ax.add_patch(
                matplotlib.patches.Rectangle(
                    (column - 0.46, row - 0.46),
                    0.92,
                    0.92,
                    fill=False,
                    edgecolor="black",
                    linewidth=2.5 * cell,
                )
            )
    ax.set_xticks([])  # or minor ticks that fall on automatic major ones would get no line
    ax.set_yticks([])
    ax.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1.5 * cell)
    ax.tick_params(which="both", length=0, labelleft=False, labelbottom=False)
    return image


def _draw_arrows(
    ax: matplotlib.axes.Axes, index: np.ndarray, policy: np.ndarray, terminal: np.ndarray
) -> None:
    places = np.argwhere(index >= 0)
    states = index[places[:, 0], places[:, 1]]
    places, states = places[~terminal[states]], states[~terminal[states]]
    moves = np.array([_DIRECTIONS[arrow] for arrow in ARROWS])[policy[states]]
    lift = 0.12 if index.size <= MAX_LABELLED else 0.0
    arrows = ax.quiver(
        places[:, 1], places[:, 0] - lift, moves[:, 0] * 0.42, moves[:, 1] * 0.42,
        angles="uv", pivot="mid", scale=1, scale_units="xy", width=0.06, units="xy",
        headwidth=3.2, headlength=3.2, headaxislength=2.9, color="0.1",
    )  # fmt: skip
    if index.size <= MAX_LABELLED:
        arrows.set_path_effects(_HALO)


def _decimals(values: np.ndarray) -> int:
    """Decimals of all numbers in the picture: none if all values are whole, else as many as give the largest four digits."""
    if np.allclose(values, np.rint(values), rtol=0, atol=5e-4):
        return 0
    return max(0, 3 - int(np.log10(max(np.abs(values).max(), 1))))
