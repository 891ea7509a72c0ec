"""Modified policy iteration for large MDPs: improve the policy, evaluate it roughly, repeat."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.mdp import bounds, operators
from jaxrl4lm.mdp.evaluation import extent, find_correction
from jaxrl4lm.mdp.finite_mdp import FiniteMDP
from jaxrl4lm.mdp.solvers import Solution, certify, check_start, conclude
from jaxrl4lm.types import Array, ScalarLike


class _Point(NamedTuple):
    q: Array
    """`[A, S]`: r + γ E v."""
    swept: Array
    """T v, the maximum of q over actions."""
    policy: Array
    """Greedy at v."""
    change: Array
    """T v − v."""


class _Progress(NamedTuple):
    point: _Point
    before: Array
    """Span of the residual one improvement ago."""
    wait: Array
    """How many more improvements go without BiCGStab."""
    penalty: Array
    """The value of `wait` after the next failure; each failure makes it four times as large."""
    iterations: Array
    stalled: Array
    """How many improvements in a row did not halve a residual that is as small as the rounding error."""
    best: Array
    """The smallest residual so far."""
    horizon: Array
    """N of `bounds.Ending`."""


class _Limits(NamedTuple):
    tolerance: ScalarLike
    forcing: ScalarLike
    sweeps: ScalarLike
    krylov: ScalarLike


PATIENCE = 3
"""How many stalled improvements end the iteration."""


def modified_policy_iteration(
    mdp: FiniteMDP,
    *,
    tolerance: ScalarLike = 1e-3,
    max_iterations: ScalarLike = 10_000,
    forcing: ScalarLike = 0.2,
    sweeps: ScalarLike = 40,
    krylov: ScalarLike = 1000,
    start: Array | None = None,
) -> Solution:
    """Modified policy iteration, the solver for large MDPs; stopped by MacQueen's bounds.

    An improvement sweeps over all actions. Between two improvements the policy is evaluated, which sweeps over its own
    actions only:

    - How far: until the residual's span is η times what it was, η = min(forcing, 0.9 (span / span one improvement ago)²).
      That is far where the last improvement gained much, and not far while the policy still changes.
    - How: by sweeps. Where they are not enough, by BiCGStab on (I − γP_π) v = r_π, whose answer is taken only if its
      residual is smaller than that of the sweeps. A birth-death chain is solved directly.

    In float32 the residual may stop shrinking just above the tolerance. Then the iteration ends, `converged` is False
    and `error_bound` is what was reached.

    Args:
      mdp: any kernel.
      tolerance: absolute; 0 goes to the rounding level.
      max_iterations: the most improvements.
      forcing: the largest η, in (0, 1).
      sweeps, krylov: the most evaluation sweeps, and the most BiCGStab iterations, of one improvement; 0 for none.
      start: first v, `[S]`; 0 by default, which saves a sweep.
    Reference: Puterman & Shin 1978; Gargiani et al. 2023, arXiv:2211.04299 (inexact policy iteration);
    Eisenstat & Walker 1996 (η, choice 2).
    """
    check_start(start, "start", mdp.rewards.shape[:1])
    hint, limits = _guess_horizon(mdp), _Limits(tolerance, forcing, sweeps, krylov)
    rounding = bounds.bound_rounding(mdp)

    def is_unfinished(progress: _Progress) -> Array:
        going = (progress.stalled < PATIENCE) & (progress.iterations < max_iterations)
        return (_bound_error(mdp, rounding, progress)[1] > tolerance) & going

    def improve(progress: _Progress) -> _Progress:
        return _improve(mdp, rounding, limits, progress)

    zero, infinite = jnp.int32(0), jnp.asarray(jnp.inf, mdp.rewards.dtype)
    if start is None:
        first = _make_point(mdp.rewards.T, jnp.zeros_like(mdp.rewards[:, 0]))
    else:
        first = _sweep_from(mdp, start)
    state = _Progress(first, extent(first.change), zero, jnp.int32(4), zero, zero, infinite, hint)

    def stage(carry: tuple[_Progress, Array]) -> tuple[_Progress, Array]:
        state, before = carry[0], carry[0].iterations
        state = jax.lax.while_loop(is_unfinished, improve, state)
        # At γ = 1 the horizon is known only near the end: the next stage uses it. Below γ = 1 one stage is enough.
        horizon = _find_ending(mdp, state.point, hint, tolerance, max_iterations).horizon
        done = ~jnp.isfinite(horizon) | (state.iterations == before) | (state.stalled >= PATIENCE)
        return state._replace(horizon=horizon, stalled=zero, best=infinite), done

    state, _ = stage((state, jnp.asarray(False)))
    # Once more even where nothing has ended yet: the first stage may have stopped long before the answer.
    state, _ = jax.lax.while_loop(lambda carry: ~carry[1], stage, (state, mdp.discount < 1))
    final = _find_ending(mdp, state.point, hint, tolerance, max_iterations)
    shift, bound = _bound_error(mdp, rounding, state)
    shift = jnp.where(mdp.terminal, 0, shift)
    values, q = state.point.swept + shift, state.point.q.T + shift[:, None]
    return conclude(mdp, operators.backup, values, final.policy, state.iterations, bound, tolerance, q)


def _improve(mdp: FiniteMDP, rounding: bounds.Rounding, limits: _Limits, progress: _Progress) -> _Progress:
    """Evaluate the greedy policy roughly, and sweep over all actions from there."""
    point, span = progress.point, extent(progress.point.change)
    enough = limits.tolerance / jnp.maximum(progress.horizon, 1) / 4
    eta = jnp.clip(0.9 * (span / progress.before) ** 2, 1e-4, limits.forcing)
    # A change c common to all states adds c γ/(1−γ) in the end: added at once, without sweeps.
    low, high = point.change.min(), point.change.max()
    common = jnp.where(mdp.terminal.any(), 0, (low + high) / 2)
    rest = find_correction(
        mdp.transitions.under(point.policy),
        mdp.discount,
        point.change - common,
        jnp.maximum(eta * span, enough),
        sweeps=limits.sweeps,
        krylov=jnp.where(progress.wait > 0, 0, limits.krylov),
    )
    base = point.swept + _guess_horizon(mdp) * common
    new = _sweep_from(mdp, base + rest.total)
    # Two policies may alternate for ever if each is evaluated too far: an answer of BiCGStab that widened the
    # residual is taken back.
    widened = rest.solved & ~(extent(new.change) <= span)
    new = jax.lax.cond(widened, lambda: _sweep_from(mdp, base + rest.safe), lambda: new)
    failed = widened | (rest.tried & ~rest.solved)
    size = jnp.maximum(-low, high)
    stuck = (size <= 4 * rounding.at(point.swept)) & (size >= 0.5 * progress.best)
    return _Progress(
        new,
        before=span,
        wait=jnp.where(failed, progress.penalty, jnp.maximum(progress.wait - 1, 0)),
        penalty=jnp.where(failed, 4 * progress.penalty, progress.penalty),
        iterations=progress.iterations + 1,
        stalled=jnp.where(stuck, progress.stalled + 1, 0),
        best=jnp.minimum(progress.best, size),
        horizon=progress.horizon,
    )


def _bound_error(mdp: FiniteMDP, rounding: bounds.Rounding, progress: _Progress) -> tuple[Array, Array]:
    """(shift, error) of T v, as `certify` gives them."""
    low, high = progress.point.change.min(), progress.point.change.max()
    return certify(mdp, rounding, progress.point.swept, low, high, progress.horizon, bounds.span)


def _guess_horizon(mdp: FiniteMDP) -> Array:
    """γ/(1−γ); 1 at γ = 1, where the horizon is not known yet."""
    discount = mdp.discount
    return jnp.where(discount < 1, discount / jnp.where(discount < 1, 1 - discount, 1), 1).astype(
        mdp.rewards.dtype
    )


def _sweep_from(mdp: FiniteMDP, values: Array) -> _Point:
    return _make_point(mdp.rewards.T + mdp.discount * mdp.transitions.expect_by_action(values), values)


def _make_point(q: Array, values: Array) -> _Point:
    # Each is stored once; otherwise the compiler sweeps again for every consumer (measured: twice as long).
    q = jax.lax.optimization_barrier(q)
    swept = jax.lax.optimization_barrier(q.max(axis=0))
    return _Point(q, swept, jnp.argmax(q, axis=0).astype(jnp.int32), swept - values)


def _find_ending(
    mdp: FiniteMDP, point: _Point, hint: Array, tolerance: ScalarLike, max_iterations: ScalarLike
) -> bounds.Ending:
    return jax.lax.cond(
        mdp.discount < 1,
        lambda: bounds.Ending(hint, point.policy),
        lambda: bounds.find_ending(mdp, point.swept, max_iterations, tolerance),
    )
