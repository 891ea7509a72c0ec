"""Two 4×3 worlds, at two discounts."""

import jax
import numpy as np

from jaxrl4lm import mdp
from jaxrl4lm.cli.tour.chapter import Chapter, Findings, Table
from jaxrl4lm.cli.tour.small_worlds import find_start
from jaxrl4lm.plots.panels import Grid, Panel

TEXT = """
The **optimal value** V\\*(s) is the largest return that any policy can expect from s, and it satisfies Bellman's
equation: V\\*(s) = maxₐ E[R + γ V\\*(S′)]. Whoever knows V\\* knows the best action: the one that attains the maximum.

The same map is two worlds. In the lecture's, moves go where they are meant to and only the ends pay. In that of Russell
and Norvig moves slip to the side, and each step costs 0.04. Both are solved here at γ = 1 and γ = .9; each value comes
with a proven bound on its error. An end is a state here that is worth ±1: who enters it has that in the next step, so it
counts γ times in the last move.
"""
WORLDS = {"lecture": mdp.lecture, "Russell & Norvig": mdp.russell_norvig}
DISCOUNTS = (1.0, 0.9)


def _compute() -> Findings:
    panels, rows, values = [], [], {}
    solve = jax.jit(mdp.value_iteration)
    with jax.enable_x64(True):
        for name, make in WORLDS.items():
            for discount in DISCOUNTS:
                world = make(discount)
                solution = jax.tree.map(np.asarray, solve(world.mdp, tolerance=1e-9))
                start = find_start(world.mdp)
                values[name, discount] = solution.values[start]
                grid = Grid(
                    world.index, solution.values, solution.policy, np.asarray(world.mdp.terminal), (-1, 1)
                )
                panels.append(Panel(f"{name}, γ = {discount:g}", grid=grid))
                rows.append(
                    [
                        name,
                        f"{discount:g}",
                        f"{solution.values[start]:.6f}",
                        str(int(solution.iterations)),
                        f"{float(solution.error_bound):.0e}",
                    ]
                )
    return Findings(
        panels=panels,
        tables=(Table(["world", "γ", "V\\* of the start (1,1)", "sweeps", "error at most"], rows),),
        remarks=(
            f"In the lecture's world at γ = .9 the start is worth {values['lecture', 0.9]:.5f} = .9⁵: the +1 is five"
            " moves away. At γ = 1 every cell is worth the same, and nothing says which way is shorter. In the world"
            " that slips, the cells right of the start turn back at γ = 1, to go around the wall and far from the"
            " −1. At γ = .9 a detour costs more than the risk: they go past it."
        ),
        columns=2,
    )


CHAPTER = Chapter(
    name="worlds",
    title="Two worlds, two discounts",
    text=TEXT,
    functions=("mdp.lecture", "mdp.russell_norvig", "mdp.value_iteration"),
    picture="Optimal values and actions of the two 4×3 worlds, at γ = 1 and γ = .9",
    compute=_compute,
    commands=("jaxrl4lm solve --world lecture --discount 1", "jaxrl4lm solve --world russell-norvig"),
)
