"""Learning curves and parameter studies of bandit algorithms."""

import pathlib
from collections.abc import Mapping

import matplotlib.figure
import matplotlib.ticker
import numpy as np


def draw_learning_curves(
    curves: Mapping[str, Mapping[str, np.ndarray]],
    best: float,
    title: str,
    path: pathlib.Path,
    *,
    bound: float | None = None,
) -> None:
    """Draws average reward, share of optimal actions and cumulative regret against steps, one line a learner.

    Args:
      curves: learner → {"rewards", "optimal", "regrets"}, each `[T]`, means over runs.
      best: average reward of a best arm, drawn as a dotted line.
      title: above the picture.
      path: where to write a PNG.
      bound: c of the regret c · ln t that none can stay below; it is then drawn, and steps of the regret are logarithmic.
    """
    figure = matplotlib.figure.Figure(figsize=(15, 5), layout="constrained")
    reward, optimal, regret = figure.subplots(1, 3)
    for place, (name, curve) in enumerate(curves.items()):
        style = {"color": f"C{place % 10}", "linewidth": 1.2, "linestyle": "-" if place < 10 else "--"}
        steps = np.arange(1, len(curve["rewards"]) + 1)
        if len(steps) == 1:  # no line leads there
            style["marker"] = "o"
        reward.plot(steps, _smooth(curve["rewards"]), label=name, **style)
        optimal.plot(steps, _smooth(curve["optimal"]), **style)
        regret.plot(steps, np.cumsum(curve["regrets"]), **style)
    if bound is not None:
        regret.plot(
            steps,
            bound * np.log(steps),
            color="0.2",
            linestyle=":",
            linewidth=1.6,
            label=f"{bound:.1f} ln t (Lai & Robbins)",
        )
        regret.set_xscale("log")
        regret.set_ylim(0, max(3 * bound * np.log(len(steps)), 1))
    reward.axhline(best, color="0.4", linestyle=":", linewidth=1.2)
    reward.text(len(steps), best, "best arm", ha="right", va="bottom", color="0.4", fontsize=9)
    optimal.set_ylim(0, 1)
    optimal.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    window = _window(len(steps))
    smoothed = f" (mean of {window} steps)" if window > 1 else ""
    for ax, label in (
        (reward, f"average reward{smoothed}"),
        (optimal, f"optimal action{smoothed}"),
        (regret, "cumulative regret"),
    ):
        ax.set_title(label, fontsize=11)
        ax.set_xlabel("steps")
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def draw_parameter_study(
    studies: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str, path: pathlib.Path
) -> None:
    """Draws the average reward over all steps against each learner's hyper-parameter, on a logarithmic axis.

    Args:
      studies: learner and parameter → (values of the parameter, average rewards), 1-D.
      title: above the picture.
      path: where to write a PNG.
    """
    figure = matplotlib.figure.Figure(figsize=(8, 5), layout="constrained")
    ax = figure.subplots()
    for name, (parameters, rewards) in studies.items():
        ax.plot(parameters, rewards, marker="o", markersize=4, label=name)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(_format_fraction))
    ax.set_xlabel("hyper-parameter")
    ax.set_ylabel("average reward over all steps")
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    ax.set_title(title)
    figure.savefig(path, dpi=120)


def _format_fraction(value: float, _: int) -> str:
    return f"{value:g}" if value >= 1 else f"1/{round(1 / value)}"


def _window(num_steps: int) -> int:
    return max(1, num_steps // 100)


def _smooth(curve: np.ndarray) -> np.ndarray:
    """A running mean over the last 1 % of the steps; over fewer at the beginning."""
    window = _window(len(curve))
    total = np.cumsum(np.concatenate([[0.0], curve]))
    end = np.arange(1, len(curve) + 1)
    start = np.maximum(end - window, 0)
    return (total[end] - total[start]) / (end - start)
