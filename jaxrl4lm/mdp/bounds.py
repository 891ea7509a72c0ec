"""How far an iterate can be from the fixed point, from one sweep of the operator.

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
    """(centre, radius) of [min δ, max δ]: a shift common to all states costs nothing.

    Reference: MacQueen 1966; Puterman 1994, section 6.6.3.
    """
    return (low + high) / 2, (high - low) / 2


def supremum(low: Array, high: Array) -> tuple[Array, Array]:
    """(0, max |δ|): the textbook's stopping rule; values are not shifted."""
    return jnp.zeros_like(low), jnp.maximum(jnp.abs(low), jnp.abs(high))


class Rounding(NamedTuple):
    """Bound on the rounding error of one sweep: u (K + 3) (max |r| + γ max |v|), u the unit roundoff.

    Sums of more than 64 terms are taken as sums in blocks, which compiled code makes of them.
    """

    constant: Array
    slope: Array

    def at(self, size: Array) -> Array:
        """For max |v| = `size`."""
        return self.constant + self.slope * size


def bound_rounding(mdp: FiniteMDP) -> Rounding:
    """Once a solve: max |r| takes longer than a sweep of evaluation."""
    unit = jnp.finfo(mdp.rewards.dtype).eps / 2 * (min(mdp.transitions.shape[2], 64) + 3)
    return Rounding(unit * jnp.abs(mdp.rewards).max(), unit * mdp.discount)


class Ending(NamedTuple):
    """How fast episodes end."""

    horizon: Array
    """N: what multiplies a sweep's residual in the error bound; inf if some state never terminates."""
    policy: Array
    """`[S]`: greedy; at γ = 1, of the optimal actions the one that terminates soonest."""


def find_ending(
    mdp: FiniteMDP, values: Array, max_iterations: ScalarLike, tolerance: ScalarLike = 0.0
) -> Ending:
    """N and a greedy policy: γ/(1−γ) below γ = 1; there, a bound on the expected time to termination.

    At γ = 1 a plain argmax among equals can walk in circles. So n ← 1 + min_a E[n] is iterated over the
    actions that are optimal up to rounding; once a sweep raises n by c < 1 at most, (I − P_π) n ≥ 1 − c
    proves that π terminates within max n / (1 − c) steps on average. An improper world never gets there: inf.

    That is for the policy itself; an optimal one may be slower. If all that keep to actions within the tolerance of the
    best terminate, and not much later, N is the longest time of any of them: with n of that kind, c ≥ T v − v and c N
    at most the tolerance, v + c n does not grow under T, whatever the other actions do, and so is nowhere below V*.
    """
    discount = mdp.discount

    def end_discounted() -> Ending:
        return Ending(discount / jnp.where(discount < 1, 1 - discount, 1), greedy(mdp, values))

    def end_episodic() -> Ending:
        q = action_values(mdp, values)
        gap = q.max(axis=-1, keepdims=True) - q
        noise = 4 * bound_rounding(mdp).at(jnp.abs(values).max())
        fast, steps, count = _bound_time_to_end(mdp, gap <= noise, jnp.min, max_iterations)
        # Far slower ones mean, nearly always, that some never terminate: waiting for them would take longest of all.
        patience = jnp.minimum(max_iterations, 4 * count + 100)
        slow, *_ = _bound_time_to_end(mdp, gap <= tolerance + noise, jnp.max, patience)
        horizon = jnp.where(jnp.isfinite(slow), jnp.maximum(fast, slow), fast)
        ahead = jnp.where(gap <= noise, mdp.transitions.expect(steps), jnp.inf)
        return Ending(horizon, jnp.argmin(ahead, axis=-1).astype(jnp.int32))

    return jax.lax.cond(discount < 1, end_discounted, end_episodic)


def find_soonest_policy(mdp: FiniteMDP) -> Array:
    """At γ = 1, a policy `[S]` that terminates for certain, if any does: that of the least expected time, cut at S + 1
    steps at most.

    By then every state that can reach an end has done so with some chance, and a circle would not be the least.
    """
    _, steps, _ = _bound_time_to_end(mdp, jnp.ones(mdp.rewards.shape, bool), jnp.min, mdp.num_states + 1)
    return jnp.argmin(mdp.transitions.expect(steps), axis=-1).astype(jnp.int32)


def _bound_time_to_end(
    mdp: FiniteMDP, allowed: Array, choose: Callable[..., Array], max_iterations: ScalarLike
) -> tuple[Array, Array, Array]:
    """Bound on the expected steps to termination under the actions allowed `[S, A]` of which `choose`, jnp.min or
    jnp.max, picks the soonest or the latest: inf if it is not proven; the steps `[S]`; sweeps."""
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
