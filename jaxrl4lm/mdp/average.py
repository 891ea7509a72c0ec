"""The average reward of a world without discount and without an end: gain and bias."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.mdp import bounds, operators
from jaxrl4lm.mdp.finite_mdp import FiniteMDP
from jaxrl4lm.types import Array, ScalarLike


class AverageSolution(NamedTuple):
    """The optimum of the average reward per step."""

    gain: Array
    """g*, the largest average reward per step, the same from every state."""
    bias: Array
    """`[S]`: h with h(s) + g = max_a r(s, a) + E h(s′), and h(0) = 0: how much a start in s is worth more than in 0."""
    policy: Array
    """`[S]`: greedy at the bias; its average reward is within 2·error_bound of g*."""
    iterations: Array
    """Sweeps."""
    error_bound: Array
    """At least |gain − g*|, rounding included."""
    converged: Array
    """error_bound ≤ tolerance."""


def relative_value_iteration(
    mdp: FiniteMDP, *, tolerance: ScalarLike = 1e-3, max_iterations: ScalarLike = 100_000
) -> AverageSolution:
    """Relative value iteration, h ← T h − (T h)(0): the largest average reward, with no discount (γ is not read).

    It converges where every optimal policy reaches one set of states from everywhere (unichain). A sweep is half a
    step: (h + T h) / 2, so that periodic chains converge, too. g* lies between the least and the greatest change.

    Args:
      mdp: any kernel, no terminal states: an episode that ends has no average. Elsewhere `converged` is False.
      tolerance: absolute, in rewards per step; 0 goes to the rounding level.
      max_iterations: the most sweeps.
    Reference: White 1963; Puterman 1994, sections 8.5.3 (bounds), 8.5.4 (periodic chains) and 8.5.5.
    """
    endless = mdp._replace(discount=jnp.ones_like(mdp.discount))
    rounding = bounds.bound_rounding(endless)

    def bound(bias: Array, change: Array) -> Array:
        low, high = change.min(), change.max()
        return jnp.where(mdp.terminal.any(), jnp.inf, (high - low) / 2 + rounding.at(bias))

    def is_unfinished(state: tuple[Array, Array, Array, Array]) -> Array:
        bias, change, iterations, stalled = state
        return (bound(bias, change) > tolerance) & ~stalled & (iterations < max_iterations)

    def sweep(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        bias, change, iterations, _ = state
        new = bias + change / 2
        new = new - new[0]
        left = operators.backup(endless, new) - new
        size = jnp.maximum(jnp.abs(new).max(), jnp.abs(left).max())
        stalled = left.max() - left.min() <= 4 * jnp.finfo(new.dtype).eps * size
        return new, left, iterations + 1, stalled

    start = jnp.zeros_like(mdp.rewards[:, 0])
    first = start, operators.backup(endless, start), jnp.int32(0), mdp.terminal.any()
    bias, change, iterations, _ = jax.lax.while_loop(is_unfinished, sweep, first)
    error = bound(bias, change)
    gain = (change.min() + change.max()) / 2
    policy = operators.greedy(endless, bias)
    return AverageSolution(gain, bias, policy, iterations, error, error <= tolerance)
