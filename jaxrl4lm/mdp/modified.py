"""Modified policy iteration for large MDPs: improve the policy, evaluate it roughly, repeat."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.mdp import bounds, operators
from jaxrl4lm.mdp.finite_mdp import FiniteMDP
from jaxrl4lm.mdp.krylov import bicgstab
from jaxrl4lm.mdp.solvers import Solution, certify, conclude
from jaxrl4lm.types import Array, ScalarLike


class _Point(NamedTuple):
    values: Array
    swept: Array
    """T v."""
    policy: Array
    """Greedy with respect to v."""


class _Progress(NamedTuple):
    point: _Point
    accepted: _Point
    """The last point from which an improvement was made."""
    bold: Array
    """Whether `point` came out of a Krylov evaluation, which may have to be taken back."""
    wait: Array
    """Improvements to go without Krylov evaluation."""
    penalty: Array
    """How long to wait after the next failure: four times as long each time."""
    iterations: Array
    stalled: Array
    """Improvements in a row that left a residual of the size of the rounding error as large as it was."""
    best: Array
    horizon: Array


def modified_policy_iteration(
    mdp: FiniteMDP,
    *,
    tolerance: ScalarLike = 1e-3,
    max_iterations: ScalarLike = 10_000,
    forcing: ScalarLike = 0.1,
    sweeps: ScalarLike = 20,
    krylov: ScalarLike = 1000,
    start: Array | None = None,
) -> Solution:
    """The solver for large MDPs, stopped by MacQueen's bounds.

    Each improvement costs a sweep over all actions; evaluation sweeps only over the chosen ones. It goes on
    until the residual's span has shrunk by `forcing`: first by sweeps, then, if the chain mixes slowly, by
    BiCGStab on (I − γP_π) v = r_π, whose answer is taken only if its residual is smaller than that of the
    sweeps.
    In float32 the residual may stop shrinking just above the tolerance: that ends the iteration, and
    `converged` says False beside the bound that was reached.

    Args:
      mdp: any kernel.
      tolerance: absolute; 0 goes to the rounding level.
      max_iterations: improvements at most.
      forcing: η in (0, 1), how far one evaluation goes.
      sweeps, krylov: at most so many evaluation sweeps, and BiCGStab iterations, per improvement; 0 for none.
      start: first v, `[S]`; 0 by default.
    Reference: Puterman & Shin 1978; Gargiani et al. 2023, arXiv:2211.04299 (inexact policy iteration).
    """
    dtype = mdp.rewards.dtype
    first = operators.held_values(mdp) if start is None else start
    discount = mdp.discount
    hint = jnp.where(discount < 1, discount / jnp.where(discount < 1, 1 - discount, 1), 1).astype(dtype)
    patience = 3

    def point_at(values: Array) -> _Point:
        return _Point(values, operators.backup(mdp, values), operators.greedy(mdp, values))

    def error(progress: _Progress) -> tuple[Array, Array]:
        change = progress.point.swept - progress.point.values
        return certify(mdp, progress.point.swept, change.min(), change.max(), progress.horizon, bounds.span)

    def ending(progress: _Progress) -> bounds.Ending:
        return jax.lax.cond(
            discount < 1,
            lambda: bounds.Ending(hint, progress.point.policy),
            lambda: bounds.ending(mdp, progress.point.swept, max_iterations),
        )

    def unfinished(progress: _Progress) -> Array:
        going = (progress.stalled < patience) & (progress.iterations < max_iterations)
        return (error(progress)[1] > tolerance) & going

    def improve(progress: _Progress) -> _Progress:
        # Policies may alternate for ever if each is evaluated beyond what it is good for: a Krylov
        # evaluation that left a wider residual than it found is taken back, and sweeps alone go on from
        # there.
        point, accepted = progress.point, progress.accepted
        widened = ~(extent(point.swept - point.values) <= extent(accepted.swept - accepted.values))
        rejected = progress.bold & widened
        point = jax.lax.cond(rejected, lambda: accepted, lambda: point)
        # Sweep and policy enter as loop state: so each is stored once, where a body that went on to use
        # them would have them recomputed in every consumer (measured: 3 times slower on gathers).
        change = point.swept - point.values
        size = jnp.abs(change).max()
        stuck = (size <= 4 * bounds.rounding(mdp, point.values)) & (size > 0.5 * progress.best)
        enough = tolerance / jnp.maximum(progress.horizon, 1) / 4
        target = jnp.maximum(forcing * extent(change), enough)
        # A change common to all states goes on as γ/(1−γ) times itself: exactly, so not through single
        # precision.
        common = jnp.where(mdp.terminal.any(), 0, (change.max() + change.min()) / 2)
        chain = jax.tree.map(_halved, operators.policy_chain(mdp, point.policy))
        allowed = jnp.where(rejected | (progress.wait > 0), 0, krylov)
        rest, tried, bold = _correction(chain, _halved(change - common), _halved(target), sweeps, allowed)
        failed = rejected | (tried & ~bold)
        return progress._replace(
            point=point_at(point.swept + hint * common + rest),
            accepted=point,
            bold=bold,
            wait=jnp.where(failed, progress.penalty, jnp.maximum(progress.wait - 1, 0)),
            penalty=jnp.where(failed, 4 * progress.penalty, progress.penalty),
            iterations=progress.iterations + 1,
            stalled=jnp.where(stuck, progress.stalled + 1, 0),
            best=jnp.minimum(progress.best, size),
        )

    infinite, zero = jnp.asarray(jnp.inf, dtype), jnp.int32(0)
    opening = point_at(first)
    state = _Progress(opening, opening, jnp.asarray(False), zero, jnp.int32(4), zero, zero, infinite, hint)
    state = jax.lax.while_loop(unfinished, improve, state)
    # At γ = 1 the horizon is only known near the end: go on with it. Below, nothing is left to do.
    state = state._replace(
        horizon=ending(state).horizon, stalled=jnp.where(discount < 1, patience, zero), best=infinite
    )
    state = jax.lax.while_loop(unfinished, improve, state)
    final = ending(state)
    shift, bound = error(state._replace(horizon=final.horizon))
    values = jnp.where(mdp.terminal, state.point.swept, state.point.swept + shift)
    return conclude(mdp, operators.backup, values, final.policy, state.iterations, bound, tolerance)


def _correction(
    chain: FiniteMDP, change: Array, target: Array, sweeps: ScalarLike, krylov: ScalarLike
) -> tuple[Array, Array, Array]:
    """c = Σ_{k≥1} (γP)^k δ, roughly: what T_π v still lacks of V^π, given δ = T_π v − v, in single precision;
    whether BiCGStab was tried (where `sweeps` were not enough), and whether c comes from it.

    A correction needs few digits, because the next improvement measures what it left in full precision; and
    a sweep of half the bytes takes half the time.
    """

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        # Measured here, when the sweep's result is in memory: beside the sweep, the compiler would compute
        # the sweep once for the result and once each for minimum and maximum.
        return (extent(state[0]) > target) & (state[2] < sweeps)

    def product(x: Array) -> Array:
        return chain.discount * chain.transitions.expect(x)[:, 0]

    def sweep(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        increment, total, count = state
        new = product(increment)
        return new, total + new, count + 1

    increment, total, _ = jax.lax.while_loop(
        unfinished, sweep, (change, jnp.zeros_like(change), jnp.int32(0))
    )

    def by_krylov() -> tuple[Array, Array]:
        solved, _ = bicgstab(
            lambda x: x - product(x), product(change), total, tolerance=target / 2, max_iterations=krylov
        )
        left = product(change + solved) - solved
        # Spans do not see a shift common to all states, of which BiCGStab can pick up any amount.
        better = (extent(left) < extent(increment)) & (jnp.abs(left).max() <= jnp.abs(change).max())
        better &= jnp.isfinite(left).all()
        return jnp.where(better, solved, total), better

    slow = (extent(increment) > target) & (jnp.asarray(krylov) > 0)
    total, better = jax.lax.cond(slow, by_krylov, lambda: (total, jnp.asarray(False)))
    return total, slow, better


def _halved(x: Array) -> Array:
    return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x


def extent(change: Array) -> Array:
    """max − min."""
    return change.max() - change.min()
