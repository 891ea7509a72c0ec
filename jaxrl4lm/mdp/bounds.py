"""Bounds on the distance of an iterate from the fixed point, from one sweep of the operator.

For a monotone operator with T(v + c) = T v + γc (all of `operators`), δ = T v − v and N = γ/(1−γ):
T v + N·min δ ≤ V* ≤ T v + N·max δ. At γ = 1, N is the expected time to termination instead.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.mdp.finite_mdp import FiniteMDP
from jaxrl4lm.mdp.operators import action_values, greedy
from jaxrl4lm.types import Array, ScalarLike


def span(low: Array, high: Array) -> tuple[Array, Array]:
    """(centre, radius) of [min δ, max δ]: adding the centre to all states leaves an error of the radius alone.

    Reference: MacQueen 1966; Puterman 1994, section 6.6.3.
    """
    return (low + high) / 2, (high - low) / 2


def supremum(low: Array, high: Array) -> tuple[Array, Array]:
    """(0, max |δ|): the stopping rule of textbooks; values are not shifted."""
    return jnp.zeros_like(low), jnp.maximum(jnp.abs(low), jnp.abs(high))


class Rounding(NamedTuple):
    """Bound on the rounding error of one sweep: u (K + 3) (|r| + γ max |v|), u the unit roundoff, K successors.

    - K counts as 64 at most: compiled code sums longer rows in blocks.
    - |r| is that of actions that can be best. One whose reward lies more than γ (max v − min v) below the state's
      largest is not, so that a penalty nobody pays has no part in the bound, however large.
    """

    unit: Array
    """u (K + 3)."""
    largest: Array
    """max |r| of the feasible actions."""
    best: Array
    """max_s |max_a r|."""
    discount: Array
    """γ."""
    mixing: Array
    """How far a policy's value may lie below that of its best action; 0 where only the best counts."""

    def at(self, values: Array, shift: ScalarLike = 0.0) -> Array:
        """The bound where v is `values`, to which `shift` is still to be added."""
        low, high = values.min(), values.max()
        met = jnp.minimum(self.largest, self.best + self.discount * (high - low) + self.mixing)
        return self.unit * (met + self.discount * (jnp.maximum(-low, high) + jnp.abs(shift)))


def bound_rounding(mdp: FiniteMDP, mixing: ScalarLike = 0.0) -> Rounding:
    """The rounding bound of an MDP. Compute it once a solve: max |r| takes longer than an evaluation sweep.

    Args:
      mdp: any kernel.
      mixing: as in `Rounding`.
    """
    dtype = mdp.rewards.dtype
    unit = jnp.finfo(dtype).eps / 2 * (min(mdp.transitions.shape[2], 64) + 3)
    largest = jnp.abs(jnp.where(mdp.feasible, mdp.rewards, 0)).max()
    best = jnp.abs(mdp.rewards.max(axis=-1)).max()
    return Rounding(jnp.asarray(unit, dtype), largest, best, mdp.discount, jnp.asarray(mixing, dtype))


class Ending(NamedTuple):
    """How fast episodes end."""

    horizon: Array
    """N, which multiplies a sweep's residual in the error bound; inf if some state never terminates."""
    policy: Array
    """`[S]`: a greedy policy; at γ = 1 the optimal actions that terminate soonest."""


def find_ending(
    mdp: FiniteMDP, values: Array, max_iterations: ScalarLike, tolerance: ScalarLike = 0.0
) -> Ending:
    """The horizon N and a greedy policy. Below γ = 1, N is γ/(1−γ); at γ = 1 it bounds the time to termination.

    At γ = 1 a plain argmax among equal actions can walk in circles, so the policy takes the quickest. Why N is a bound:

    1. Iterate n ← 1 + min_a E[n] over the actions that are optimal up to rounding, and let π be their choice.
    2. Once a sweep raises n by at most c < 1, (I − P_π) n ≥ 1 − c. So π terminates within max n / (1 − c) steps on average.
    3. If no policy terminates, c never falls below 1, and N is inf.
    4. Another optimal policy may be slower. If every policy that keeps to actions within the tolerance of the best
       terminates, and not much later, N is the longest time of any of them: n ← 1 + max_a E[n] over those actions.
    5. Take that n and a c ≥ max (T v − v) with c N at most the tolerance. Then T (v + c n) ≤ v + c n: for an action of
       step 4, c E[n] ≤ c n − c; any other is worse by more than c N. So v + c n is nowhere below V*.

    Args:
      mdp: any kernel.
      values: v, `[S]`, whose greedy policy is asked for.
      max_iterations: sweeps of n at most; N is inf if they do not suffice.
      tolerance: how far from the best the actions of step 4 may be.
    """
    discount = mdp.discount

    def end_discounted() -> Ending:
        return Ending(discount / jnp.where(discount < 1, 1 - discount, 1), greedy(mdp, values))

    def end_episodic() -> Ending:
        q = action_values(mdp, values)
        gap = q.max(axis=-1, keepdims=True) - q
        noise = 4 * bound_rounding(mdp).at(values)
        fast, steps, count = _bound_time_to_end(mdp, gap <= noise, jnp.min, max_iterations)
        # If some are far slower, they nearly always never terminate: give up on them early.
        patience = jnp.minimum(max_iterations, 4 * count + 100)
        slow, *_ = _bound_time_to_end(mdp, gap <= tolerance + noise, jnp.max, patience)
        horizon = jnp.where(jnp.isfinite(slow), jnp.maximum(fast, slow), fast)
        ahead = jnp.where(gap <= noise, mdp.transitions.expect(steps), jnp.inf)
        return Ending(horizon, jnp.argmin(ahead, axis=-1).astype(jnp.int32))

    return jax.lax.cond(discount < 1, end_discounted, end_episodic)


def find_endless(mdp: FiniteMDP) -> Array:
    """`[S]` bool: the states at γ = 1 from which no action ever leads towards an end; none below γ = 1."""

    def spread(state: tuple[Array, Array]) -> tuple[Array, Array]:
        ending, _ = state
        new = ending | (mdp.transitions.expect(ending.astype(mdp.rewards.dtype)) > 0).any(axis=-1)
        return new, (new != ending).any()

    start = mdp.terminal | (mdp.discount < 1), jnp.asarray(True)
    return ~jax.lax.while_loop(lambda state: state[1], spread, start)[0]


def find_soonest_policy(mdp: FiniteMDP, ends: Array | None = None) -> Array:
    """A policy `[S]` for γ = 1 that terminates for certain, if any does: the one of least expected time to the end.

    `ends` `[S]` bool are the states that count as an end; the terminal ones by default.

    Expected times are iterated for S + 1 sweeps. By then every state that can reach an end has done so with some
    probability, so that an action that walks in a circle is not the quickest.
    """
    closed = mdp if ends is None else mdp._replace(terminal=ends)
    _, steps, _ = _bound_time_to_end(closed, mdp.feasible, jnp.min, mdp.num_states + 1)
    ahead = jnp.where(mdp.feasible, mdp.transitions.expect(steps), jnp.inf)
    return jnp.argmin(ahead, axis=-1).astype(jnp.int32)


def _bound_time_to_end(
    mdp: FiniteMDP, allowed: Array, choose: Callable[..., Array], max_iterations: ScalarLike
) -> tuple[Array, Array, Array]:
    """Bound the expected steps to termination of policies that take `allowed` actions `[S, A]` only.

    Args:
      choose: jnp.min for the policy that ends soonest, jnp.max for the one that ends latest.
    Returns:
      bound: on the longest expected time of any state; inf if it is not proven within `max_iterations`.
      steps: `[S]`, the expected steps found.
      count: sweeps made.
    """
    # Under vmap both branches of the caller run: with γ < 1 in this one there is nothing to iterate.
    episodic = mdp.discount >= 1
    never = jnp.inf if choose is jnp.min else -jnp.inf

    def is_unproven(state: tuple[Array, Array, Array]) -> Array:
        _, growth, iterations = state
        return episodic & (growth > 0.5) & (iterations < max_iterations)

    def sweep(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        steps, _, iterations = state
        ahead = jnp.where(allowed, mdp.transitions.expect(steps), never)
        new = jnp.where(mdp.terminal, 0, 1 + choose(ahead, axis=-1))
        return new, (new - steps).max(), iterations + 1

    start = (jnp.zeros_like(mdp.rewards[:, 0]), jnp.ones((), mdp.rewards.dtype), jnp.int32(0))
    steps, growth, count = jax.lax.while_loop(is_unproven, sweep, start)
    proven = steps.max() / (1 - jnp.minimum(growth, 0.5))
    return jnp.where(growth > 0.5, jnp.inf, proven), steps, count
