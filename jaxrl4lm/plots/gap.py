"""How far algorithms are from a known optimum, against the completions that they drew."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.figure
import matplotlib.lines
import numpy as np


class GapCurve(NamedTuple):
    """Of one algorithm."""

    gaps: np.ndarray
    """`[β, seeds, points]`, in nats, the first at the start."""
    limits: np.ndarray | None
    """`[β]`: where it must end; None: at 0."""


def draw_gaps(
    curves: Mapping[str, GapCurve], samples: np.ndarray, betas: Sequence[float], path: pathlib.Path
) -> None:
    """Draws a panel for each β: the median of the seeds, a band over all of them, and the limits as dashed lines.

    Args:
      curves: algorithm → its gaps.
      samples: `[points]`, completions drawn until each measurement, the first 0.
      betas: the price of a nat in each panel.
      path: where to write a PNG.
    """
    figure = matplotlib.figure.Figure(figsize=(5 + 4.2 * len(betas), 5.6), layout="constrained")
    panels = figure.subplots(1, len(betas), sharey=True, squeeze=False)[0]
    low = min(float(np.median(curve.gaps, axis=1).min()) for curve in curves.values())
    highest = [x for curve in curves.values() for x in (curve.gaps, curve.limits) if x is not None]
    high = 1.5 * max(float(np.max(x)) for x in highest)
    for b, (ax, beta) in enumerate(zip(panels, betas, strict=True)):
        for place, (name, curve) in enumerate(curves.items()):
            style = {"color": f"C{place % 10}" if place < 10 else "0.25"}
            gaps = np.maximum(curve.gaps[b], 1e-6)
            ax.plot(samples, np.median(gaps, axis=0), label=name if b == 0 else None, linewidth=1.5, **style)
            ax.fill_between(samples, gaps.min(0), gaps.max(0), alpha=0.12, linewidth=0, **style)
            if curve.limits is not None:
                ax.axhline(curve.limits[b], linestyle="--", linewidth=1, alpha=0.9, **style)
        ax.axhline(0.01, color="0.5", linestyle=":", linewidth=1.2)
        ax.text(1.01, 0.01, "0.01", transform=ax.get_yaxis_transform(), va="center", color="0.4", fontsize=8)
        ax.set_yscale("log")
        ax.set_ylim(min(max(low / 2, 1e-4), 5e-3), max(high, 0.02))
        ax.set_xlim(0, samples[-1])
        ax.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
        ax.set_title(f"β = {beta:g}", fontsize=11)
        ax.set_xlabel("completions drawn")
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("KL(π‖π*), nats")
    handles, _ = panels[0].get_legend_handles_labels()
    limit = matplotlib.lines.Line2D(
        [], [], color="0.4", linestyle="--", label="where it must end, by enumeration"
    )
    figure.legend(handles=[*handles, limit], loc="outside right center", frameon=False, fontsize=9)
    figure.suptitle("Distance from the optimum π* = π_ref · exp(R/β) / Z")
    figure.savefig(path, dpi=120)
