"""Many small MDPs at once: blocks that fit the cache, each of which stops on its own."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.mdp import bounds, operators
from jaxrl4lm.mdp.finite_mdp import FiniteMDP
from jaxrl4lm.mdp.implicit import fixed_point
from jaxrl4lm.mdp.solvers import Solution, certify, value_iteration
from jaxrl4lm.types import Array, ScalarLike

CACHE_BYTES, MAX_BLOCK = 512 * 1024, 16
"""A block's kernels may take about half of a core's second-level cache; and the more MDPs a block has, the longer
its quicker ones wait for the slowest."""


class _Point(NamedTuple):
    values: Array
    """v, `[N, S]`."""
    swept: Array
    """T v."""
    sweeps: Array


def solve_batch(
    mdps: FiniteMDP,
    *,
    tolerance: ScalarLike = 1e-3,
    max_iterations: ScalarLike = 100_000,
    block: int | None = None,
) -> Solution:
    """Value iteration on N MDPs of one shape, `[N, ...]` in every leaf; every leaf of the solution too.

    As `vmap(value_iteration)`, but a sweep over all of a large batch comes from memory, and the slowest MDP
    would hold up all the others. Here a block of MDPs is solved at a time, in the cache, and stops when its
    own slowest has converged: `iterations` are the block's. Blocks with a γ of 1 take `value_iteration`.

    Args:
      mdps: N MDPs stacked (`jax.tree.map(lambda *x: jnp.stack(x), *worlds)`); each may have its own γ.
      tolerance, max_iterations: as in `value_iteration`.
      block: MDPs a block (static); by default as many as fit `CACHE_BYTES`, up to `MAX_BLOCK`.
    """
    num_mdps = mdps.rewards.shape[0]
    if block is None:
        bytes_each = sum(leaf.nbytes for leaf in jax.tree.leaves(mdps.transitions)) // num_mdps
        block = max(1, min(MAX_BLOCK, CACHE_BYTES // max(bytes_each, 1)))
    block = min(block, num_mdps)
    num_blocks = -(-num_mdps // block)
    # The last block overlaps the one before rather than have another shape.
    starts = jnp.minimum(jnp.arange(num_blocks) * block, num_mdps - block)

    def solve(start: Array) -> Solution:
        members = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, block), mdps)
        return _solve_block(members, jnp.asarray(tolerance), max_iterations)

    solutions = jax.lax.map(solve, starts)
    if num_mdps % block == 0:
        return jax.tree.map(lambda x: x.reshape(num_mdps, *x.shape[2:]), solutions)
    rest = num_mdps % block
    return jax.tree.map(
        lambda x: jnp.concatenate([x[:-1].reshape(-1, *x.shape[2:]), x[-1, -rest:]]), solutions
    )


def _solve_block(mdps: FiniteMDP, tolerance: Array, max_iterations: ScalarLike) -> Solution:
    def general() -> Solution:
        limits = {"tolerance": tolerance, "max_iterations": max_iterations}
        return jax.vmap(lambda mdp: value_iteration(mdp, **limits))(mdps)

    return jax.lax.cond(
        (mdps.discount < 1).all(), lambda: _solve_discounted(mdps, tolerance, max_iterations), general
    )


def _solve_discounted(mdps: FiniteMDP, tolerance: Array, max_iterations: ScalarLike) -> Solution:
    # A range of T v - v at which the bound will hold, from what is known before: to test the bound itself would
    # cost as much as a sweep.
    ends = mdps.terminal.any(axis=-1)
    largest = jnp.abs(mdps.rewards).max(axis=(1, 2)) / (1 - mdps.discount)
    noise = 4 * jnp.finfo(largest.dtype).eps * largest
    wanted = jnp.where(ends, 0.9, 1.8) * (1 - mdps.discount) * tolerance
    target = jnp.maximum(wanted, noise).astype(largest.dtype)

    def going(point: _Point) -> Array:
        low, high = _change(point, ends)
        return (high - low > target).any() & (point.sweeps < max_iterations)

    def sweep(point: _Point) -> _Point:
        return _Point(point.swept, jax.vmap(operators.backup)(mdps, point.swept), point.sweeps + 1)

    nothing = jnp.zeros_like(mdps.rewards[..., 0])
    point = _Point(nothing, mdps.rewards.max(axis=-1), jnp.int32(0))
    point = jax.lax.while_loop(going, sweep, point)
    shift, error = _certify(mdps, point, ends)
    values = jax.vmap(lambda mdp, v: fixed_point(lambda x: operators.backup(mdp, x), v))(
        mdps, point.values + shift[:, None]
    )
    q = jax.vmap(operators.action_values)(mdps, values)
    policy = jnp.argmax(q, axis=-1).astype(jnp.int32)
    iterations = jnp.broadcast_to(point.sweeps, error.shape)
    return Solution(values, q, policy, iterations, error, error <= tolerance)


def _change(point: _Point, ends: Array) -> tuple[Array, Array]:
    """Least and greatest element of T v − v, `[N]` each; 0 lies between them where episodes end."""
    change = point.swept - point.values
    low, high = change.min(axis=-1), change.max(axis=-1)
    return jnp.where(ends, jnp.minimum(low, 0), low), jnp.where(ends, jnp.maximum(high, 0), high)


def _certify(mdps: FiniteMDP, point: _Point, ends: Array) -> tuple[Array, Array]:
    """(shift, error), `[N]` each: |v + shift − V*| ≤ error. Where episodes end the shift is 0: their terminal
    states are not to be shifted."""
    horizon = 1 / (1 - mdps.discount)  # V* lies between v + horizon·low and v + horizon·high
    shift, error = jax.vmap(functools.partial(certify, within=bounds.span))(
        mdps, jax.vmap(bounds.rounding)(mdps), point.values, *_change(point, ends), horizon
    )
    return jnp.where(ends, 0, shift), error + jnp.where(ends, jnp.abs(shift), 0)
