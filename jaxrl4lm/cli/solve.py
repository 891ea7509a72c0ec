"""`jaxrl4lm solve`: a grid world from a text file, or a built-in one, solved exactly and drawn."""

import dataclasses
import pathlib
from typing import Annotated, Literal

import tyro

from jaxrl4lm.cli.options import parse
from jaxrl4lm.types import InputError

BUILT_IN = Literal["russell-norvig", "lecture", "cliff"]


@dataclasses.dataclass(frozen=True)
class SolveArguments:
    """Solves a grid world exactly: prints values and policy, the iterations and a proven error bound, draws
    a picture.

    A map has one row a line and cells separated by blanks: '.' free, '#' wall, 'S' a start, a number a
    terminal cell held at that value. Actions are up, right, down, left; into a wall or the edge one stays.
    """

    map: Annotated[pathlib.Path | None, tyro.conf.Positional] = None
    """The map's text file; or take a built-in world by --world."""
    world: BUILT_IN | None = None
    """The map to use without a file: Russell & Norvig's 4x3 world (the default), the lecture's (the same, deterministic
    and without living reward), or the cliff walk."""
    discount: float | None = None
    """Discount factor, from 0 to 1; by default 0.9, and for built-in worlds their own."""
    slip: float | None = None
    """Probability of slipping to each side of the intended direction, from 0 to 0.5; by default 0."""
    living_reward: float | None = None
    """Reward of every step; by default 0."""
    method: Literal["value-iteration", "policy-iteration", "modified-policy-iteration"] = "value-iteration"
    """The solver."""
    tolerance: float = 1e-6
    """Stop when every value is certainly this exact."""
    max_iterations: int = 100_000
    """Give up after so many iterations, and say so."""
    picture: pathlib.Path | None = pathlib.Path("solution.png")
    """Where to draw it; None for no picture."""


def main(arguments: list[str]) -> int:
    """Runs the command; exit code 1 if the solver did not converge."""
    parsed = parse(SolveArguments, arguments, "solve")
    if not parsed.tolerance > 0:
        raise InputError(f"--tolerance is {parsed.tolerance:g}: give a positive number.")
    if not 1 <= parsed.max_iterations < 2**31:
        raise InputError(f"--max-iterations is {parsed.max_iterations}: give at least 1, and less than 2^31.")
    import jax

    with jax.enable_x64(True):
        return _solve(parsed)


def _solve(arguments: SolveArguments) -> int:
    import functools

    import jax
    import numpy as np
    from rich.console import Console

    from jaxrl4lm import mdp

    text, options = _world(arguments)
    grid = mdp.grid_world(text, **options)
    solver = {
        "value-iteration": mdp.value_iteration,
        "policy-iteration": mdp.policy_iteration,
        "modified-policy-iteration": mdp.modified_policy_iteration,
    }[arguments.method]
    solve = jax.jit(
        functools.partial(solver, tolerance=arguments.tolerance, max_iterations=arguments.max_iterations)
    )
    solution = jax.tree.map(np.asarray, solve(grid.mdp))
    terminal = np.asarray(grid.mdp.terminal)
    console = Console()
    table = _table(grid.index, solution.values, solution.policy, terminal)
    if console.measure(table, options=console.options.update(max_width=10**6)).maximum <= console.width:
        console.print(table)
    else:
        console.print("Too wide for values here: the policy alone (# wall, * end).", soft_wrap=True)
        console.print(_arrows(grid.index, solution.policy, terminal), highlight=False, soft_wrap=True)
    settings = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in options.items())
    summary = (
        f"{grid.mdp.num_states} states, {settings}: {arguments.method.replace('-', ' ')}, "
        f"{int(solution.iterations)} iterations, every value within {float(solution.error_bound):.1e}"
    )
    console.print(summary, highlight=False, soft_wrap=True)
    if not solution.converged:
        console.print(
            f"Not converged to --tolerance {arguments.tolerance:g}: raise it or --max-iterations"
            " (at discount 1 every state must be able to reach a terminal one).",
            soft_wrap=True,
        )
    if arguments.picture is not None:
        _draw(arguments.picture, grid.index, solution, terminal, summary)
        console.print(f"Picture: {arguments.picture}", highlight=False, soft_wrap=True)
    return 0 if solution.converged else 1


def _world(arguments: SolveArguments) -> tuple[str, dict[str, float]]:
    """The map's text and its options: what the user gave over the world's own."""
    from jaxrl4lm.mdp import worlds

    own = {"discount": 0.9, "slip": 0.0, "living_reward": 0.0}
    if arguments.map is not None and arguments.world is not None:
        raise InputError(
            f"Both the map {arguments.map} and --world {arguments.world} are given: leave one out."
        )
    if arguments.map is None:
        world = arguments.world or "russell-norvig"
        text = worlds.CLIFF_MAP if world == "cliff" else worlds.RUSSELL_NORVIG_MAP
        if world == "russell-norvig":
            own = {"discount": 1.0, "slip": 0.1, "living_reward": -0.04}
        elif world == "cliff":
            own = {"discount": 1.0, "slip": 0.0, "living_reward": -1.0}
    else:
        try:
            text = arguments.map.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The map {arguments.map} cannot be read ({error}): give a text file.") from None
    given = {name: getattr(arguments, name) for name in own}
    return text, own | {name: value for name, value in given.items() if value is not None}


def _table(index, values, policy, terminal):
    """Values over arrows, as the grid lies."""
    from rich.table import Table

    from jaxrl4lm.mdp import ARROWS

    table = Table(show_header=False, show_lines=True)
    for _ in range(index.shape[1]):
        table.add_column(justify="center", no_wrap=True)
    for row in index:
        cells = []
        for state in row:
            if state < 0:
                cells.append("█████\n█████")
            elif terminal[state]:
                cells.append(f"[bold]{values[state]:+.3f}[/]\nend")
            else:
                cells.append(f"{values[state]:.3f}\n{ARROWS[policy[state]]}")
        table.add_row(*cells)
    return table


def _arrows(index, policy, terminal) -> str:
    """One character a cell."""
    from jaxrl4lm.mdp import ARROWS

    def sign(state: int) -> str:
        return "#" if state < 0 else "*" if terminal[state] else ARROWS[policy[state]]

    return "\n".join("".join(sign(state) for state in row) for row in index)


def _draw(path: pathlib.Path, index, solution, terminal, title: str) -> None:
    from jaxrl4lm.plots.mdp import draw_grid_solution

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_grid_solution(index, solution.values, solution.policy, terminal, title.replace(": ", "\n"), path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--picture {path} cannot be written ({error}): name a file ending in .png."
        ) from None
