"""Value iteration, sweep by sweep."""

import jax
import numpy as np

from jaxrl4lm import mdp
from jaxrl4lm.cli.tour.chapter import Chapter, Findings, Table
from jaxrl4lm.cli.tour.small_worlds import find_start
from jaxrl4lm.plots.panels import Grid, Line, Panel

TEXT = """
**Value iteration** turns Bellman's equation into a rule: vₖ₊₁(s) = maxₐ E[R + γ vₖ(S′)], for all states at once. What
an end pays spreads by one cell a sweep, along the ways that lead there. The rule is a contraction: no sweep leaves more
than γ times the error that was there before it.
"""
SHOWN = (0, 1, 2, 3, 5)
SWEEPS, DISCOUNT = 40, 0.9


def _compute() -> Findings:
    with jax.enable_x64(True):
        world, slippery = mdp.lecture(DISCOUNT), mdp.russell_norvig(DISCOUNT)
        history, other = _sweep(world.mdp), _sweep(slippery.mdp)
        solve = jax.jit(mdp.value_iteration)
        best, other_best = (np.asarray(solve(each.mdp, tolerance=1e-12).values) for each in (world, slippery))
    terminal = np.asarray(world.mdp.terminal)
    grids = [
        Panel(
            f"after {k} {'sweep' if k == 1 else 'sweeps'}" if k else "at the start",
            grid=Grid(world.index, history[k], None, terminal, (-1, 1)),
        )
        for k in SHOWN
    ]
    errors = {"lecture": abs(history - best).max(1), "Russell & Norvig": abs(other - other_best).max(1)}
    steps = np.arange(SWEEPS + 1)
    tail = errors["Russell & Norvig"]
    chart = Panel(
        "largest error",
        "sweeps",
        "maxₛ |vₖ(s) − V*(s)|",
        lines=(
            *(Line(steps, np.where(error > 1e-14, error, np.nan), name) for name, error in errors.items()),
            Line(steps, tail[0] * DISCOUNT**steps, f"γᵏ times the first, γ = {DISCOUNT:g}", ":", "0.4"),
        ),
        log_y=True,
        y_limits=(1e-9, 3),
    )
    start, first = find_start(world.mdp), [0, 1, 2, 3, 4, 5, 6]
    rows = [
        [str(k), f"{history[k, start]:.5f}", f"{errors['lecture'][k]:.5f}", f"{tail[k]:.5f}"] for k in first
    ]
    exact = int(np.argmax(errors["lecture"] < 1e-12))
    return Findings(
        panels=(*grids, chart),
        tables=(
            Table(
                ["sweep", "v of (1,1), lecture", "largest error, lecture", "largest error, Russell & Norvig"],
                rows,
            ),
        ),
        remarks=(
            f"In the lecture's world the answer is exact after {exact} sweeps: that is how far the farthest cell is"
            " from the +1. Where moves slip there is always a longer way, so the error only shrinks."
        ),
    )


def _sweep(world: mdp.FiniteMDP) -> np.ndarray:
    """Values after 0, 1, … sweeps, `[K + 1, S]`."""
    start = jax.jit(mdp.value_iteration)(world, max_iterations=0).values

    def sweep(values, _):
        return mdp.backup(world, values), values

    return np.asarray(jax.jit(lambda v: jax.lax.scan(sweep, v, length=SWEEPS + 1)[1])(start))


CHAPTER = Chapter(
    name="sweeps",
    title="Value iteration, sweep by sweep",
    text=TEXT,
    functions=("mdp.backup", "mdp.value_iteration"),
    picture="Values of the lecture's world after 0, 1, 2, 3 and 5 sweeps, and the largest error against sweeps",
    compute=_compute,
    commands=("jaxrl4lm solve MAP.txt --discount 0.9",),
)
