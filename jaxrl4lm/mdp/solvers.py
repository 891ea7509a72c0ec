"""Solvers of finite MDPs: iterations of an operator, and exact ones. Each is one pure call: `jit` or `vmap` it.

Every solver stops at a *verified* error: `Solution.error_bound` holds however the iteration went, and includes rounding.
Large MDPs have a solver of their own, `modified.modified_policy_iteration`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.mdp import bounds, operators
from jaxrl4lm.mdp.exact import policy_values
from jaxrl4lm.mdp.finite_mdp import FiniteMDP, MDPError
from jaxrl4lm.mdp.implicit import attach_derivative, fixed_point
from jaxrl4lm.types import Array, ScalarLike

Bounds = Callable[[Array, Array], tuple[Array, Array]]
Operator = Callable[[FiniteMDP, Array], Array]


class Solution(NamedTuple):
    """What every solver returns."""

    values: Array
    """`[S]`; differentiable in the MDP's arrays through the fixed point."""
    action_values: Array
    """`[S, A]`: Q*, as closely as `values` are V*."""
    policy: Array
    """`[S]` actions (soft solver: `[S, A]` probabilities). It is within 2·error_bound of optimal."""
    iterations: Array
    """Sweeps of value iteration, improvements of policy iteration."""
    error_bound: Array
    """max_s |values − V*| is at most this, rounding included. At γ = 1:

    - It is inf if the returned policy never terminates.
    - If policies within the tolerance of it never terminate, or take many times as long, V* is the value of the best
      policy whose expected time to the end is at most that of the returned policy from its slowest state.
    """
    converged: Array
    """error_bound ≤ tolerance."""


class _Progress(NamedTuple):
    iterate: Array
    previous: Array
    iterations: Array
    horizon: Array
    finished: Array


def iterate_operator(
    mdp: FiniteMDP,
    operator: Operator,
    start: Array,
    horizon_of: Callable[[Array], Array],
    *,
    tolerance: ScalarLike,
    max_iterations: ScalarLike,
    within: Bounds,
    mixing: ScalarLike = 0.0,
) -> tuple[Array, Array, Array]:
    """Iterate v ← T v until the error bound is at most `tolerance`; returns (v, error bound, iterations).

    Stops also at `max_iterations`, and when the residual, but for what is common to all states, is as small as the
    rounding error. `horizon_of` maps v to the horizon that multiplies a residual, as `bounds.find_ending` gives it;
    `mixing` is that of `bounds.Rounding`.
    """
    tolerance = jnp.asarray(tolerance, start.dtype)
    discount = mdp.discount
    hint = jnp.where(discount < 1, discount / jnp.where(discount < 1, 1 - discount, 1), 1)
    rounding = bounds.bound_rounding(mdp, mixing)

    def is_unfinished(progress: _Progress) -> Array:
        # The change is measured here, where the sweep's result is in memory. Measured beside the sweep, it would make
        # the compiler sweep three times: for the result, for the minimum and for the maximum.
        low, high = _range(progress)
        _, error = certify(mdp, rounding, progress.iterate, low, high, progress.horizon, within)
        noise = 4 * jnp.finfo(start.dtype).eps * jnp.abs(progress.iterate).max()
        # Where nothing ends, a change common to all states is no error: it becomes the shift.
        left = jnp.where(mdp.terminal.any(), jnp.maximum(-low, high), _spread(mdp, low, high, within)[1])
        stalled = left <= noise
        return (error > tolerance) & ~stalled & (progress.iterations < max_iterations)

    def sweep(progress: _Progress) -> _Progress:
        new = operator(mdp, progress.iterate)
        return progress._replace(iterate=new, previous=progress.iterate, iterations=progress.iterations + 1)

    def stage(progress: _Progress) -> _Progress:
        before = progress.iterations
        progress = jax.lax.while_loop(is_unfinished, sweep, progress)
        # At γ = 1 the horizon is only known near the end; a second stage may have to go on with it.
        horizon = horizon_of(progress.iterate)
        done = (discount < 1) | ~jnp.isfinite(horizon) | (progress.iterations == before)
        return progress._replace(horizon=horizon, finished=done)

    first = _Progress(start, start, jnp.int32(0), hint.astype(start.dtype), jnp.asarray(False))
    final = jax.lax.while_loop(lambda progress: ~progress.finished, stage, first)
    shift, error = certify(mdp, rounding, final.iterate, *_range(final), final.horizon, within)
    return jnp.where(mdp.terminal, final.iterate, final.iterate + shift), error, final.iterations


def _range(progress: _Progress) -> tuple[Array, Array]:
    """Least and greatest change of the last sweep; before the first sweep, (−inf, inf)."""
    change = progress.iterate - progress.previous
    none = progress.iterations == 0
    return jnp.where(none, -jnp.inf, change.min()), jnp.where(none, jnp.inf, change.max())


def certify(
    mdp: FiniteMDP,
    rounding: bounds.Rounding,
    new: Array,
    low: Array,
    high: Array,
    horizon: Array,
    within: Bounds,
) -> tuple[Array, Array]:
    """(shift, error): |new + shift − V*| ≤ error, if new = T v up to rounding and low ≤ T v − v ≤ high."""
    centre, radius = _spread(mdp, low, high, within)
    shift = jnp.where(jnp.isfinite(centre), jnp.where(mdp.discount >= 1, 0, horizon) * centre, 0)
    noise = rounding.at(new, shift)
    error = horizon * (radius + noise) + noise
    # inf · 0 is nan: where some state never ends, a residual of 0 proves nothing.
    return shift, jnp.where(jnp.isfinite(radius) & jnp.isfinite(error), error, jnp.inf)


def _spread(mdp: FiniteMDP, low: Array, high: Array, within: Bounds) -> tuple[Array, Array]:
    """(centre, radius) of the changes in [low, high], of which the centre is common to all states."""
    # Where episodes end, the sweeps left are some number from 0 to N: the interval must contain 0 as well.
    ends, episodic = mdp.terminal.any(), mdp.discount >= 1
    low, high = jnp.where(ends, jnp.minimum(low, 0), low), jnp.where(ends, jnp.maximum(high, 0), high)
    centre, radius = within(low, high)
    # At γ = 1 that number differs from state to state, so a common shift gains nothing.
    return jnp.where(episodic, 0, centre), jnp.where(episodic, jnp.maximum(-low, high), radius)


def value_iteration(
    mdp: FiniteMDP,
    *,
    tolerance: ScalarLike = 1e-3,
    max_iterations: ScalarLike = 100_000,
    within: Bounds = bounds.span,
    start: Array | None = None,
) -> Solution:
    """Value iteration, v ← max_a (r + γ E v), until max |v − V*| ≤ tolerance is certain.

    Args:
      mdp: any kernel; γ may be 1 if episodes terminate.
      tolerance: absolute, in units of value; 0 iterates until only rounding errors are left. May be traced.
      max_iterations: the most sweeps; may be traced.
      within: how to bound the error: `bounds.span` (MacQueen) or `bounds.supremum` (textbook).
      start: first v, `[S]`; 0 by default.
    Reference: Puterman 1994, sections 6.3 and 6.6.
    """
    check_start(start, "start", mdp.rewards.shape[:1])
    first = operators.held_values(mdp) if start is None else start
    limits = {"tolerance": tolerance, "max_iterations": max_iterations, "within": within}

    def horizon_of(values: Array) -> Array:
        return bounds.find_ending(mdp, values, max_iterations, tolerance).horizon

    values, error, iterations = iterate_operator(mdp, operators.backup, first, horizon_of, **limits)
    policy = bounds.find_ending(mdp, values, max_iterations).policy
    return conclude(mdp, operators.backup, values, policy, iterations, error, tolerance)


def action_value_iteration(
    mdp: FiniteMDP,
    *,
    tolerance: ScalarLike = 1e-3,
    max_iterations: ScalarLike = 100_000,
    within: Bounds = bounds.span,
    start: Array | None = None,
) -> Solution:
    """Value iteration on action values, q ← r + γ E max_a q, which Q-learning samples; `start` is `[S, A]`.

    Its error is measured where it counts, at the maximum over actions. So it is `value_iteration` from max_a q.
    """
    check_start(start, "start", mdp.rewards.shape)
    first = None if start is None else start.max(axis=-1)
    return value_iteration(
        mdp, tolerance=tolerance, max_iterations=max_iterations, within=within, start=first
    )


def soft_value_iteration(
    mdp: FiniteMDP,
    *,
    temperature: ScalarLike = 1.0,
    reference: Array | None = None,
    tolerance: ScalarLike = 1e-3,
    max_iterations: ScalarLike = 100_000,
    within: Bounds = bounds.span,
) -> Solution:
    """The optimum where a nat of KL(π‖π_ref) costs τ: V = τ log Σ π_ref exp(Q/τ), π ∝ π_ref exp(Q/τ).

    Args:
      mdp: any kernel; γ may be 1 if the soft policy terminates.
      temperature: τ > 0.
      reference: `[S, A]`, uniform over the feasible actions by default; probabilities below the smallest normal
        number count as 0.
      tolerance, max_iterations, within: as in `value_iteration`.
    Reference: Todorov 2006; Haarnoja et al. 2017, arXiv:1702.08165.
    """
    if not isinstance(temperature, jax.core.Tracer) and not np.all(np.asarray(temperature) > 0):
        raise MDPError(f"temperature is {temperature}: give a positive number.")
    if reference is not None:
        reference = _check_policy(reference, mdp, "reference", [mdp.rewards.shape])

    def operator(mdp: FiniteMDP, values: Array) -> Array:
        return operators.soft_backup(mdp, values, temperature=temperature, reference=reference)

    def policy_at(values: Array) -> Array:
        logits = operators.soft_logits(mdp, values, temperature=temperature, reference=reference)
        return jax.nn.softmax(logits, axis=-1)

    def horizon_of(values: Array) -> Array:
        # The derivative of the backup is the soft policy's chain: its time to the end is what counts.
        chain = operators.policy_chain(mdp, policy_at(values))
        return bounds.find_ending(chain, values, max_iterations).horizon

    # A policy's value lies below that of its best action by at most τ log 1/π_ref of that action.
    prior = operators.prior_of(mdp, reference)
    mixing = -temperature * jnp.log(jnp.where(prior > 0, prior, 1).min())
    limits = {"tolerance": tolerance, "max_iterations": max_iterations, "within": within, "mixing": mixing}
    values, error, iterations = iterate_operator(
        mdp, operator, operators.held_values(mdp), horizon_of, **limits
    )
    policy = policy_at(values)
    return conclude(mdp, operator, values, policy, iterations, error, tolerance)


def evaluate_policy(
    mdp: FiniteMDP,
    policy: Array,
    *,
    tolerance: ScalarLike = 1e-3,
    max_iterations: ScalarLike = 100_000,
    within: Bounds = bounds.span,
) -> Solution:
    """V^π by sweeps v ← r_π + γ P_π v: `value_iteration` on the policy's chain. Q^π has all actions.

    A policy that does not terminate at γ = 1 gets error_bound inf, converged False.

    Args:
      mdp: any kernel.
      policy: `[S]` actions or `[S, A]` probabilities; not read at terminal states.
      tolerance, max_iterations, within: as in `value_iteration`.
    Raises:
      MDPError: if the shape is another, or (unless they are traced) probabilities do not sum to 1 or actions do not exist.
    """
    chosen = _check_policy(policy, mdp, "policy", [mdp.rewards.shape[:1], mdp.rewards.shape])
    chain = operators.policy_chain(mdp, chosen)
    solution = value_iteration(chain, tolerance=tolerance, max_iterations=max_iterations, within=within)
    return solution._replace(policy=policy, action_values=operators.action_values(mdp, solution.values))


def check_start(given: Array | None, name: str, shape: tuple[int, ...]) -> None:
    """Refuses values of another shape, which would broadcast or fail in the compiler."""
    if given is not None and jnp.shape(given) != shape:
        raise MDPError(f"{name} has shape {jnp.shape(given)}: give {shape}.")


def _check_policy(policy: Array, mdp: FiniteMDP, name: str, shapes: list[tuple[int, ...]]) -> Array:
    """The policy with a valid choice at terminal states, where a caller's may hold anything.

    Refuses other shapes, actions `[S]` that do not exist and rows `[S, A]` that are no distributions.
    """
    policy = jnp.asarray(policy)
    if policy.shape not in shapes:
        raise MDPError(f"{name} has shape {policy.shape}: give {' or '.join(map(str, shapes))}.")
    ends, harmless = (mdp.terminal, 0) if policy.ndim == 1 else (mdp.terminal[:, None], 1 / mdp.num_actions)
    held = jnp.where(ends, harmless, policy)
    if isinstance(policy, jax.core.Tracer) or isinstance(mdp.terminal, jax.core.Tracer):
        return held
    given = np.asarray(policy)
    if given.ndim == 1:
        right, what = (given >= 0) & (given < mdp.num_actions), f"an action in [0, {mdp.num_actions})"
    else:
        right = (given >= 0).all(axis=-1) & (np.abs(given.astype(float).sum(axis=-1) - 1) < 1e-4)
        what = "probabilities that sum to 1"
    wrong = np.flatnonzero(~right & ~np.asarray(mdp.terminal))
    if wrong.size:
        raise MDPError(f"{name} of state {wrong[0]} is {given[wrong[0]]}: give {what}.")
    operators.check_feasible(mdp, policy, name)
    return held


def policy_iteration(
    mdp: FiniteMDP, *, tolerance: ScalarLike = 1e-3, max_iterations: ScalarLike = 1_000
) -> Solution:
    """Policy iteration: exact evaluation (a dense solve, S² memory) and greedy improvement, until no action improves.

    Ends in finitely many steps at an optimal policy; `tolerance` only decides `converged`. At γ = 1 it starts from a
    policy that terminates, if any does. States from which no policy can end are held at what as many sweeps of value
    iteration give them, which is without limit where they pay; the error bound is inf, and the others' values are right.
    Reference: Howard 1960; Puterman 1994, section 6.4.
    """
    start, sweeps = operators.held_values(mdp), max(10 * mdp.num_states, 10_000)
    endless = bounds.find_endless(mdp)
    count = jnp.where(endless.any(), sweeps, 0)
    held = jax.lax.fori_loop(0, count, lambda _, v: operators.backup(mdp, v), start)
    first = jax.lax.cond(
        mdp.discount < 1,
        lambda: operators.greedy(mdp, start),
        lambda: bounds.find_soonest_policy(mdp, mdp.terminal | endless),
    )
    rounding = bounds.bound_rounding(mdp)

    def improve(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        policy, _, _, iterations = state
        values = policy_values(mdp, policy, jnp.where(endless, held, jnp.nan))
        q = operators.action_values(mdp, values)
        # Keep the present action unless another is better beyond rounding: no cycling among equals.
        gain = q.max(axis=-1) - operators.select_actions(q, policy)
        better = (gain > 4 * rounding.at(values)) & ~endless
        new = jnp.where(better, jnp.argmax(q, axis=-1), policy).astype(jnp.int32)
        return new, values, better.any() & jnp.isfinite(values).all(), iterations + 1

    state = (first, start, jnp.asarray(True), jnp.int32(0))
    policy, values, _, iterations = jax.lax.while_loop(
        lambda state: state[2] & (state[3] < max_iterations), improve, state
    )
    change = operators.backup(mdp, values) - values
    horizon = bounds.find_ending(mdp, values, sweeps, tolerance).horizon
    low, high = change.min(), change.max()
    _, error = certify(mdp, rounding, values, low, high, horizon, bounds.supremum)
    error += jnp.maximum(jnp.abs(low), jnp.abs(high))  # from T v back to v
    error = jnp.where(jnp.isfinite(values).all(), error, jnp.inf)
    return conclude(mdp, operators.backup, values, policy, iterations, error, tolerance)


class Plan(NamedTuple):
    """The optimum of a finite horizon H; row h is for h steps already taken."""

    values: Array
    """`[H + 1, S]`; the last row is the value of having no step left."""
    action_values: Array
    """`[H, S, A]`."""
    policy: Array
    """`[H, S]`."""


def backward_induction(mdp: FiniteMDP, horizon: int, *, final_values: Array | None = None) -> Plan:
    """The optimum over exactly `horizon` steps, computed from the last one backwards; exact for any γ.

    Args:
      mdp: any kernel. Its own `horizon` is not read: the sizes of arrays depend on H, which must be static.
      horizon: H ≥ 0, static.
      final_values: `[S]`, what a state is worth when no step is left; 0 by default, at a terminal state its value.
    Raises:
      MDPError: if the horizon is no whole number from 0, or `final_values` has another shape.
    """
    if not isinstance(horizon, int | np.integer) or isinstance(horizon, bool) or horizon < 0:
        raise MDPError(f"horizon is {horizon}: give a whole number of steps from 0.")
    check_start(final_values, "final_values", mdp.rewards.shape[:1])
    last = operators.held_values(mdp) if final_values is None else final_values

    def step(values: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        q = operators.action_values(mdp, values)
        return q.max(axis=-1), (values, q)

    first, (values, q) = jax.lax.scan(step, last, length=horizon)
    return Plan(
        jnp.concatenate([first[None], values[::-1]]), q[::-1], jnp.argmax(q[::-1], axis=-1).astype(jnp.int32)
    )


def conclude(
    mdp: FiniteMDP,
    operator: Operator,
    values: Array,
    policy: Array,
    iterations: Array,
    error: Array,
    tolerance: ScalarLike,
    q: Array | None = None,
) -> Solution:
    """A `Solution` whose values have the derivative of the fixed point. `q`, where it is known, saves a sweep."""
    values = fixed_point(lambda v: operator(mdp, v), values)
    if q is None:
        q = operators.action_values(mdp, values)
    else:
        q = attach_derivative(operators.action_values, q, mdp, values)
    return Solution(values, q, policy, iterations, error, error <= tolerance)
