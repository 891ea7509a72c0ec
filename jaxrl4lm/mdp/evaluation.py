"""Rough evaluation of a policy: what one sweep still lacks of its value, by sweeps, BiCGStab or a direct solve."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.mdp.krylov import bicgstab
from jaxrl4lm.mdp.transitions import Banded, Kernel
from jaxrl4lm.types import Array, ScalarLike


class Correction(NamedTuple):
    """c = Σ_{k≥1} (γP)^k δ, roughly: V^π − T_π v, given δ = T_π v − v."""

    total: Array
    """`[S]`, the best estimate of c."""
    safe: Array
    """`[S]`, the estimate by sweeps alone, each of which comes closer to c."""
    tried: Array
    """Whether sweeps were not enough, so that BiCGStab was tried."""
    solved: Array
    """Whether `total` is BiCGStab's: its residual was smaller than that of the sweeps."""


def find_correction(
    chain: Kernel,
    discount: Array,
    change: Array,
    target: Array,
    *,
    sweeps: ScalarLike,
    krylov: ScalarLike,
) -> Correction:
    """The correction by sweeps, until the residual's span is at most `target`; by BiCGStab if they are not enough.

    Both run in single precision: a sweep of half the bytes takes half the time, and few digits suffice, because the
    next improvement measures in full precision what is left. A birth-death chain (successors s − 1, s, s + 1, or
    one hub) is solved directly, in full precision.

    Args:
      chain: P_π, a kernel with one action.
      discount: γ.
      change: δ, `[S]`.
      target: the span of the residual at which to stop, in units of δ.
      sweeps, krylov: the most sweeps, and the most BiCGStab iterations; 0 for none.
    """
    precision = change.dtype
    direct = isinstance(chain, Banded) and set(chain.offsets) <= {-1, 0, 1}
    if not direct:
        chain, discount, change, target = jax.tree.map(_halve_precision, (chain, discount, change, target))

    def product(x: Array) -> Array:
        return discount * chain.expect_by_action(x)[0]

    def is_unfinished(state: tuple[Array, Array, Array]) -> Array:
        # Measured here, when the sweep's result is in memory: beside the sweep, the compiler would compute
        # the sweep once for the result and once each for minimum and maximum.
        return (extent(state[0]) > target) & (state[2] < (1 if direct else sweeps))

    def sweep(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        increment, total, count = state
        new = product(increment)
        return new, total + new, count + 1

    start = (change, jnp.zeros_like(change), jnp.int32(0))
    increment, total, _ = jax.lax.while_loop(is_unfinished, sweep, start)

    def solve() -> tuple[Array, Array]:
        if isinstance(chain, Banded) and direct:
            solution = _solve_birth_death(chain, discount, product(change))
        else:
            limits = {"tolerance": target / 2, "max_iterations": krylov}
            solution, _ = bicgstab(lambda x: x - product(x), product(change), total, **limits)
        left = product(change + solution) - solution
        # Spans do not see a shift common to all states, of which BiCGStab can pick up any amount.
        better = (extent(left) < extent(increment)) & (jnp.abs(left).max() <= jnp.abs(change).max())
        better &= jnp.isfinite(left).all()
        return jnp.where(better, solution, total), better

    slow = (extent(increment) > target) & (jnp.asarray(krylov) > 0)
    best, solved = jax.lax.cond(slow, solve, lambda: (total, jnp.asarray(False)))
    # Policy iteration with exact values cannot go round in circles, whatever the residual does meanwhile.
    best, total = best.astype(precision), total.astype(precision)
    return Correction(best, total, slow & (not direct), solved & (not direct))


def extent(change: Array) -> Array:
    """max − min."""
    return change.max() - change.min()


def _solve_birth_death(chain: Banded, discount: Array, target: Array) -> Array:
    """x = (I − γP)⁻¹ b, `[S]`, where P is tridiagonal but for the column of a hub (Sherman & Morrison 1950)."""
    rows = -discount * chain.probabilities[0]
    bands = dict(zip(chain.offsets, rows, strict=False))
    zeros = jnp.zeros_like(target)
    lower, middle, upper = (bands.get(offset, zeros) for offset in (-1, 0, 1))
    lower, upper = lower.at[0].set(0), upper.at[-1].set(0)
    sides = target[:, None] if chain.hub is None else jnp.stack([target, rows[-1]], axis=1)
    solved = jax.lax.linalg.tridiagonal_solve(lower, 1 + middle, upper, sides)
    if chain.hub is None:
        return solved[:, 0]
    without, of_column = solved[:, 0], solved[:, 1]
    return without - of_column * (without[chain.hub] / (1 + of_column[chain.hub]))


def _halve_precision(x: Array) -> Array:
    return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x
