"""Many small MDPs at once: solved block by block. A block fits the cache and stops on its own."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.mdp import bounds, operators
from jaxrl4lm.mdp.finite_mdp import FiniteMDP
from jaxrl4lm.mdp.implicit import fixed_point
from jaxrl4lm.mdp.solvers import Solution, certify, value_iteration
from jaxrl4lm.mdp.transitions import Banded, Dense, Kernel, Sparse, as_lists
from jaxrl4lm.types import Array, ScalarLike

CACHE_BYTES, MAX_BLOCK = 512 * 1024, 16
"""How large a block may be: its kernels take about half of a core's second-level cache, and it has at most 16 MDPs,
because its quicker ones wait for the slowest."""


SWEEPS = 6
"""Evaluation sweeps after each improvement; a fixed number, because a test after each sweep costs more than the sweep."""


class _Point(NamedTuple):
    values: Array
    """v, `[N, S]`."""
    swept: Array
    """T v."""
    policy: Array
    """Greedy at v, `[N, S]`."""
    iterations: Array


def solve_batch(
    mdps: FiniteMDP,
    *,
    tolerance: ScalarLike = 1e-3,
    max_iterations: ScalarLike = 100_000,
    block: int | None = None,
) -> Solution:
    """Solves N MDPs of one shape at once. Every leaf of `mdps` and of the solution is `[N, ...]`.

    Finds what `vmap(value_iteration)` finds, faster. A sweep over a whole large batch reads it from memory, and all
    MDPs wait for the slowest. Here a block of MDPs stays in the cache and stops when the slowest of its own has
    converged; `iterations` counts the sweeps of the block. The method depends on the kernel:

    - sparse and banded: modified policy iteration on one MDP that holds the whole block, so that sweeps are long vectors;
    - dense: value iteration, because picking the rows of a policy costs as much as a sweep;
    - a block in which some γ is 1: `value_iteration`.

    Args:
      mdps: N MDPs stacked (`jax.tree.map(lambda *x: jnp.stack(x), *worlds)`); each may have its own γ.
      tolerance, max_iterations: as in `value_iteration`.
      block: MDPs a block (static); by default as many as fit `CACHE_BYTES`, up to `MAX_BLOCK`.
    Raises:
      ValueError: if there is no MDP, or they are not stacked, or `block` is below 1.
    """
    if mdps.rewards.ndim != 3 or not mdps.rewards.size:
        raise ValueError(f"rewards have shape {mdps.rewards.shape}: stack at least one MDP, [N, S, A]")
    if block is not None and block < 1:
        raise ValueError(f"block must be at least 1, not {block}")
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
    def solve_any() -> Solution:
        limits = {"tolerance": tolerance, "max_iterations": max_iterations}
        return jax.vmap(lambda mdp: value_iteration(mdp, **limits))(mdps)

    return jax.lax.cond(
        (mdps.discount < 1).all(), lambda: _solve_discounted(mdps, tolerance, max_iterations), solve_any
    )


def _solve_discounted(mdps: FiniteMDP, tolerance: Array, max_iterations: ScalarLike) -> Solution:
    ends = mdps.terminal.any(axis=-1)
    horizon = mdps.discount / (1 - mdps.discount)  # V* lies between T v + horizon·low and T v + horizon·high
    share = jnp.where(ends, 1, 2) / jnp.maximum(horizon, 1)
    rounding = jax.vmap(bounds.bound_rounding)(mdps)
    relative = 4 * jnp.finfo(mdps.rewards.dtype).eps

    def is_unfinished(point: _Point) -> Array:
        low, high = _range(point.swept - point.values, ends)
        common = jnp.where(ends, 0, horizon * (low + high) / 2)
        noise = jax.vmap(bounds.Rounding.at)(rounding, point.swept, common)
        wanted = (share * (tolerance - (horizon + 1) * noise)).astype(noise.dtype)
        # The two reductions are those of the rounding: one pass for both.
        stalled = relative * jnp.maximum(-point.swept.min(axis=-1), point.swept.max(axis=-1))
        return (high - low > jnp.maximum(wanted, stalled)).any() & (point.iterations < max_iterations)

    sweep, evaluate = (
        _make_separate_sweeps(mdps) if isinstance(mdps.transitions, Dense) else _make_joined_sweeps(mdps)
    )

    def improve(point: _Point) -> _Point:
        values = evaluate(point)
        return _Point(values, *sweep(values), point.iterations + 1)

    rewards = mdps.rewards
    first = _Point(
        jnp.zeros_like(rewards[..., 0]),
        rewards.max(axis=-1),
        jnp.argmax(rewards, axis=-1).astype(jnp.int32),
        jnp.int32(0),
    )
    point = jax.lax.while_loop(is_unfinished, improve, first)
    shift, error = jax.vmap(functools.partial(certify, within=bounds.span))(
        mdps, rounding, point.swept, *_range(point.swept - point.values, ends), horizon
    )
    # Where episodes end the shift would move the terminal states, too.
    shift, error = jnp.where(ends, 0, shift), error + jnp.where(ends, jnp.abs(shift), 0)
    values = jax.vmap(lambda mdp, v: fixed_point(lambda x: operators.backup(mdp, x), v))(
        mdps, point.swept + shift[:, None]
    )
    q = jax.vmap(operators.action_values)(mdps, values)
    policy = jnp.argmax(q, axis=-1).astype(jnp.int32)
    iterations = jnp.broadcast_to(point.iterations, error.shape)
    return Solution(values, q, policy, iterations, error, error <= tolerance)


_Sweep = Callable[[Array], tuple[Array, Array]]
_Evaluate = Callable[[_Point], Array]


def _make_separate_sweeps(mdps: FiniteMDP) -> tuple[_Sweep, _Evaluate]:
    """(sweep, evaluate) for each MDP by itself: v ↦ (T v, no policy); evaluation is the sweep already made."""

    def sweep(values: Array) -> tuple[Array, Array]:
        return jax.vmap(operators.backup)(mdps, values), jnp.zeros(values.shape, jnp.int32)

    return sweep, lambda point: point.swept


def _make_joined_sweeps(mdps: FiniteMDP) -> tuple[_Sweep, _Evaluate]:
    """(sweep, evaluate) on one MDP of N·S states: v ↦ (T v, greedy policy); evaluation is `SWEEPS` sweeps of the policy."""
    shape = mdps.rewards.shape[:2]
    kernel = _join_kernels(mdps.transitions)
    rewards = jnp.moveaxis(mdps.rewards, -1, 0).reshape(-1, kernel.shape[0])
    discount = jnp.repeat(mdps.discount, shape[1])

    def sweep(values: Array) -> tuple[Array, Array]:
        q = rewards + discount[None] * kernel.expect_by_action(values.reshape(-1))
        return q.max(axis=0).reshape(shape), jnp.argmax(q, axis=0).astype(jnp.int32).reshape(shape)

    def evaluate(point: _Point) -> Array:
        chain = kernel.under(point.policy.reshape(-1))

        def step(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
            change, values = state
            change = discount * chain.expect_by_action(change)[0]
            return change, values + change

        start = (point.swept - point.values).reshape(-1), point.swept.reshape(-1)
        return jax.lax.fori_loop(0, SWEEPS, step, start)[1].reshape(shape)

    return sweep, evaluate


def _join_kernels(kernels: Kernel) -> Kernel:
    """N kernels of S states as one kernel of N·S states; no transition leads from one MDP to another."""

    def join(x: Array) -> Array:
        return jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1)

    assert not isinstance(kernels, Dense)
    if isinstance(kernels, Banded) and kernels.hub is not None:  # a state of its own in each of them
        kernels = Sparse(*jax.vmap(as_lists)(kernels))
    if isinstance(kernels, Banded):
        return Banded(join(kernels.probabilities), kernels.offsets)
    num_mdps, *_, num_states = kernels.successors.shape
    first = jnp.arange(num_mdps, dtype=jnp.int32) * num_states
    return Sparse(join(kernels.successors + first[:, None, None, None]), join(kernels.probabilities))


def _range(change: Array, ends: Array) -> tuple[Array, Array]:
    """Least and greatest element, `[N]` each; 0 lies between them where episodes end."""
    low, high = change.min(axis=-1), change.max(axis=-1)
    return jnp.where(ends, jnp.minimum(low, 0), low), jnp.where(ends, jnp.maximum(high, 0), high)
