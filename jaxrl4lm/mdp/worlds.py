"""Example MDPs: Russell & Norvig's grid, any grid from text, chains, queues, forests, garnets."""

from typing import NamedTuple

import jax
import numpy as np

from jaxrl4lm.mdp.finite_mdp import FiniteMDP, from_arrays, from_successors
from jaxrl4lm.types import InputError

ARROWS = "↑→↓←"
"""The actions of a grid world in order: up, right, down, left."""
_MOVES = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])

RUSSELL_NORVIG_MAP = """\
.  .  .  +1
.  #  .  -1
S  .  .  .
"""
CLIFF_MAP = """\
.  .    .    .    .    .    .    .    .    .    .    .
.  .    .    .    .    .    .    .    .    .    .    .
.  .    .    .    .    .    .    .    .    .    .    .
S  -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 0
"""


class MapError(InputError):
    """A map that cannot be read; the message names line and column."""


class GridWorld(NamedTuple):
    """A grid world: its MDP, and the cells of its states."""

    mdp: FiniteMDP
    index: np.ndarray
    """`[rows, columns]`: the state at each cell, −1 at walls."""


def grid_world(
    text: str,
    *,
    discount: float = 0.9,
    slip: float = 0.0,
    living_reward: float = 0.0,
) -> GridWorld:
    """A grid world from a map of cells separated by blanks.

    `.` is free, `#` a wall, `S` free and a start, a number a terminal state of that value. An action moves one
    cell; towards a wall or an edge it stays. Actions are up, right, down, left (`ARROWS`).

    Args:
      text: the map, one row a line; blank lines at the ends do not count.
      discount: γ in [0, 1].
      slip: probability of going to *each* side of the intended direction, in [0, ½].
      living_reward: reward of every step from a non-terminal cell.
    Raises:
      MapError: naming line and column of the first cell that cannot be read, or the option.
    """
    if not 0 <= slip <= 0.5:
        raise MapError(f"slip is {slip}: give the probability of slipping to each side, in [0, 0.5].")
    if not np.isfinite(living_reward):
        raise MapError(f"living_reward is {living_reward}: give a finite number.")
    walls, starts, held = _read_map(text)
    index = np.where(walls, -1, np.cumsum(~walls).reshape(walls.shape) - 1)
    free = np.argwhere(~walls)
    targets = free[:, None, :] + _MOVES
    inside = ((targets >= 0) & (targets < walls.shape)).all(axis=-1)
    clipped = np.clip(targets, 0, np.array(walls.shape) - 1)
    there = np.where(inside, index[clipped[..., 0], clipped[..., 1]], -1)
    moved = np.where(there < 0, np.arange(len(free))[:, None], there)  # [S, 4]: where each direction leads

    directions = (
        np.arange(4)[:, None] + np.array([0, -1, 1])
    ) % 4  # [A, 3]: intended, left of it, right of it
    probabilities = np.broadcast_to([1 - 2 * slip, slip, slip], (len(free), 4, 3))
    value = held[~walls]
    terminal = ~np.isnan(value)
    start = starts[~walls]
    mdp = from_successors(
        moved[:, directions],
        probabilities,
        np.where(terminal, np.nan_to_num(value), living_reward),
        discount,
        terminal=terminal,
        initial=start / start.sum() if start.any() else None,
    )
    return GridWorld(mdp, index)


def russell_norvig(discount: float = 1.0) -> GridWorld:
    """The 4×3 world: slip 0.1 to each side, living reward −0.04. Russell & Norvig 2020, fig. 17.1."""
    return grid_world(RUSSELL_NORVIG_MAP, discount=discount, slip=0.1, living_reward=-0.04)


def lecture(discount: float = 0.9) -> GridWorld:
    """Russell & Norvig's map as lectures use it: deterministic, living reward 0; V(1,1) = γ⁵."""
    return grid_world(RUSSELL_NORVIG_MAP, discount=discount)


def cliff(discount: float = 1.0) -> GridWorld:
    """The cliff walk: −1 a step, −100 and the end at the cliff. After Sutton & Barto 2018, example 6.6."""
    return grid_world(CLIFF_MAP, discount=discount, living_reward=-1.0)


def chain(num_states: int, *, discount: float = 1.0, right: float = 0.5) -> FiniteMDP:
    """A random walk with one action between two terminals, +1 at the right end and 0 at the left.

    With `right` = ½ and γ = 1, V(s) = s/(S − 1). Reference: Sutton & Barto 2018, example 6.2.
    """
    states = np.arange(num_states)
    ends = (states == 0) | (states == num_states - 1)
    successors = np.clip(np.stack([states - 1, states + 1], axis=-1), 0, num_states - 1)
    middle = states == num_states // 2
    return from_successors(
        successors[:, None],
        np.broadcast_to([1 - right, right], (num_states, 1, 2)),
        (states == num_states - 1).astype(float),
        discount,
        terminal=ends,
        initial=middle.astype(float),
    )


def garnet(
    key: jax.Array, num_states: int, num_actions: int, successors: int, *, discount: float = 0.9
) -> FiniteMDP:
    """A random MDP: distinct random successors, uniform random probabilities, rewards in [0, 1).

    Reference: Archibald, McKinnon & Thomas 1995.
    """
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    shape = (num_states, num_actions, successors)
    if num_states * successors <= 4096:
        order = generator.random((num_states, num_actions, num_states)).argsort(axis=-1)
        states = order[..., :successors]
    else:  # Distinct with probability near 1 where S ≫ K²; a repeated successor does no harm.
        states = generator.integers(0, num_states, shape)
    cuts = np.sort(generator.random((num_states, num_actions, successors - 1)), axis=-1)
    probabilities = np.diff(cuts, axis=-1, prepend=0.0, append=1.0)
    rewards = generator.random((num_states, num_actions))
    if successors == num_states:  # every state follows, in any order
        return from_arrays(probabilities, rewards, discount)
    return from_successors(states, probabilities, rewards, discount)


def queue(
    num_states: int,
    *,
    discount: float = 0.99,
    arrival: float = 0.4,
    service: tuple[float, ...] = (0.2, 0.35, 0.5),
    cost: tuple[float, ...] = (0.0, 0.3, 1.0),
) -> FiniteMDP:
    """Service-rate control: the state is the queue's length; a faster server costs more, so does waiting.

    One event a step: an arrival, a departure (at the chosen rate) or nothing; full queues turn arrivals away.
    Holding costs grow linearly up to 1. Reference: Puterman 1994, section 4.7 and 6.12.
    """
    lengths = np.arange(num_states)[:, None]
    rate = np.asarray(service)[None, :]
    up = np.where(lengths < num_states - 1, arrival * (1 - rate), 0)
    down = np.where(lengths > 0, (1 - arrival) * rate, 0)
    probabilities = np.stack([down, 1 - up - down, up], axis=-1)
    successors = np.clip(lengths + np.array([-1, 0, 1]), 0, num_states - 1)
    rewards = -np.asarray(cost)[None, :] - lengths / num_states
    return from_successors(
        np.broadcast_to(successors[:, None], probabilities.shape), probabilities, rewards, discount
    )


def forest(num_states: int, *, discount: float = 0.99, fire: float = 0.1) -> FiniteMDP:
    """Forest management: wait (the forest grows older, or burns down to age 0) or cut.

    The oldest forest earns 4 by waiting and 2 by cutting; others 0 by waiting and 1 by cutting (0 at age 0).

    Reference: the example of the MDP toolbox (Chadès et al. 2014).
    """
    ages = np.arange(num_states)
    older = np.minimum(ages + 1, num_states - 1)
    zero = np.zeros_like(ages)
    successors = np.stack([np.stack([older, zero], axis=-1), np.stack([zero, zero], axis=-1)], axis=1)
    probabilities = np.broadcast_to([[1 - fire, fire], [1.0, 0.0]], successors.shape)
    oldest = ages == num_states - 1
    rewards = np.stack([4.0 * oldest, np.where(oldest, 2.0, ages > 0)], axis=-1)
    return from_successors(successors, probabilities, rewards, discount)


def _read_map(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Walls, starts (bool) and held values (nan where not terminal), each `[rows, columns]`."""
    lines = text.rstrip().split("\n")
    skipped = next((i for i, line in enumerate(lines) if line.strip()), None)
    if skipped is None:
        raise MapError("The map is empty: give rows of '.', '#', 'S' or numbers, separated by blanks.")
    rows = [line.split() for line in lines[skipped:]]
    held = np.full((len(rows), len(rows[0])), np.nan)
    for i, row in enumerate(rows):
        where, line = f"Line {i + skipped + 1}", lines[i + skipped]
        for j, cell in enumerate(row):
            if cell not in (".", "#", "S"):
                value = _read_held_value(cell, where, line, j)
                held[i, min(j, len(rows[0]) - 1)] = value
        if len(row) != len(rows[0]):
            column = _find_column(line, len(rows[0])) if len(row) > len(rows[0]) else len(line.rstrip()) + 1
            raise MapError(
                f"{where}, column {column}: the line has {len(row)} cells, line {skipped + 1} has"
                f" {len(rows[0])}: give equal rows."
            )
    cells = np.array(rows)
    if (cells == "#").all():
        raise MapError("The map has only walls: give at least one free cell.")
    return cells == "#", cells == "S", held


def _read_held_value(cell: str, where: str, line: str, position: int) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        column = _find_column(line, position)
        raise MapError(f"{where}, column {column}: {cell!r} is not '.', '#', 'S' or a finite number.")
    return value


def _find_column(line: str, position: int) -> int:
    """1-based column at which the position-th cell of a line begins."""
    column = 0
    for cell in line.split()[:position]:
        column = line.index(cell, column) + len(cell)
    return line.index(line.split()[position], column) + 1
