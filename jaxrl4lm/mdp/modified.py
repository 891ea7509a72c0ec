"""Modified policy iteration for large MDPs: improve the policy, evaluate it roughly, repeat."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.mdp import bounds, operators
from jaxrl4lm.mdp.finite_mdp import FiniteMDP
from jaxrl4lm.mdp.krylov import bicgstab
from jaxrl4lm.mdp.solvers import Solution, certify, conclude
from jaxrl4lm.types import Array, ScalarLike


class _Progress(NamedTuple):
    values: Array
    """Where the next improvement starts."""
    swept: Array
    """T of the previous `values`: what the bound is about."""
    policy: Array
    low: Array
    high: Array
    iterations: Array
    stalled: Array
    """Improvements in a row that did not shrink the residual."""
    best: Array
    horizon: Array


def modified_policy_iteration(
    mdp: FiniteMDP,
    *,
    tolerance: ScalarLike = 1e-3,
    max_iterations: ScalarLike = 10_000,
    forcing: ScalarLike = 0.1,
    sweeps: ScalarLike = 50,
    krylov: ScalarLike = 50,
    start: Array | None = None,
) -> Solution:
    """The solver for large MDPs, stopped by MacQueen's bounds.

    Each improvement costs a sweep over all actions; evaluation sweeps only over the chosen ones. It goes on until
    the residual's span has shrunk by `forcing`: first by sweeps, then, if the chain mixes slowly, by BiCGStab on
    (I − γP_π) v = r_π, whose answer is taken only if its residual is smaller than that of the sweeps.
    In float32 the residual may stop shrinking just above the tolerance: that ends the iteration, and `converged`
    says False beside the bound that was reached.

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

    def error(progress: _Progress) -> tuple[Array, Array]:
        return certify(mdp, progress.swept, progress.low, progress.high, progress.horizon, bounds.span)

    def unfinished(progress: _Progress) -> Array:
        return (
            (error(progress)[1] > tolerance)
            & (progress.stalled < patience)
            & (progress.iterations < max_iterations)
        )

    def improve(progress: _Progress) -> _Progress:
        policy = operators.greedy(mdp, progress.values)
        chain = operators.policy_chain(mdp, policy)
        swept = operators.backup(chain, progress.values)
        change = swept - progress.values
        low, high = change.min(), change.max()
        # A residual of the size of the rounding error that no longer shrinks never will.
        size = jnp.maximum(-low, high)
        stuck = (size <= 4 * bounds.rounding(mdp, swept)) & (size > 0.5 * progress.best)
        progress = progress._replace(
            swept=swept,
            policy=policy,
            low=low,
            high=high,
            iterations=progress.iterations + 1,
            stalled=jnp.where(stuck, progress.stalled + 1, 0),
            best=jnp.minimum(progress.best, size),
        )
        target = jnp.maximum(forcing * (high - low), tolerance / jnp.maximum(progress.horizon, 1) / 4)
        go_on = unfinished(progress)
        return progress._replace(
            values=_evaluate(
                chain, swept, high - low, target, jnp.where(go_on, sweeps, 0), jnp.where(go_on, krylov, 0)
            )
        )

    infinite = jnp.asarray(jnp.inf, dtype)
    zero = jnp.int32(0)
    policy = jnp.zeros(mdp.num_states, jnp.int32)
    state = _Progress(first, first, policy, -infinite, infinite, zero, zero, infinite, hint)
    state = jax.lax.while_loop(unfinished, improve, state)
    ending = bounds.ending(mdp, state.swept, max_iterations)
    state = state._replace(
        horizon=ending.horizon, stalled=jnp.where(discount < 1, patience, zero), best=infinite
    )
    state = jax.lax.while_loop(unfinished, improve, state)  # at γ = 1 only, when the horizon is known
    ending = bounds.ending(mdp, state.swept, jnp.where(discount < 1, 0, max_iterations))
    shift, bound = error(state._replace(horizon=ending.horizon))
    values = jnp.where(mdp.terminal, state.swept, state.swept + shift)
    policy = jnp.where(discount < 1, state.policy, ending.policy)
    return conclude(mdp, operators.backup, values, policy, state.iterations, bound, tolerance)


def _evaluate(
    chain: FiniteMDP, values: Array, width: Array, target: Array, sweeps: Array, krylov: Array
) -> Array:
    """Values whose residual under the chain spans at most `target`, if the limits allow."""

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        return (state[1] > target) & (state[2] < sweeps)

    def sweep(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        new = operators.backup(chain, state[0])
        change = new - state[0]
        return new, change.max() - change.min(), state[2] + 1

    values, width, _ = jax.lax.while_loop(unfinished, sweep, (values, width, jnp.int32(0)))
    slow = (width > target) & jnp.isfinite(width)
    solved, _ = bicgstab(
        lambda x: x - chain.discount * chain.transitions.expect(x)[:, 0],
        chain.rewards[:, 0],
        values,
        tolerance=target / 2,
        max_iterations=jnp.where(slow, krylov, 0),
    )
    change = operators.backup(chain, solved) - solved
    return jnp.where(slow & (change.max() - change.min() < width), solved, values)
