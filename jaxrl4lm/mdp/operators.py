"""Bellman operators, and the Markov chain of a policy. Policies are `[S]` actions or `[S, A]` probabilities."""

import functools

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.mdp.finite_mdp import FiniteMDP, MDPError
from jaxrl4lm.types import Array, ScalarLike

MAX_COMPARED = 16
"""Up to this many actions the maximum is a chain of comparisons, which fuses with the sweep that makes Q
(measured: 2 to 5 times faster than a reduction); beyond, it is a reduction."""


def action_values(mdp: FiniteMDP, values: Array) -> Array:
    """Q(s, a) = r(s, a) + γ Σ_s′ T(s′|s, a) v(s′): `[S]` → `[S, A]`. Differentiable in everything."""
    return mdp.rewards + mdp.discount * mdp.transitions.expect(values)


def backup(mdp: FiniteMDP, values: Array) -> Array:
    """The optimality operator, (T v)(s) = max_a Q(s, a): `[S]` → `[S]`. A γ-contraction in the sup-norm.

    Reference: Bellman 1957; Sutton & Barto 2018, eq. 4.10.
    """
    if mdp.num_actions > MAX_COMPARED:
        return action_values(mdp, values).max(axis=-1)
    return functools.reduce(jnp.maximum, _action_columns(mdp, values))


def action_backup(mdp: FiniteMDP, q: Array) -> Array:
    """Optimality operator on action values, (T q)(s, a) = r + γ E max_a′ q(s′, a′): `[S, A]` → `[S, A]`."""
    return action_values(mdp, q.max(axis=-1))


def policy_backup(mdp: FiniteMDP, policy: Array, values: Array) -> Array:
    """The operator of a policy, T_π v = r_π + γ P_π v: `[S]` → `[S]`."""
    return backup(policy_chain(mdp, policy), values)


def soft_backup(
    mdp: FiniteMDP, values: Array, *, temperature: ScalarLike = 1.0, reference: Array | None = None
) -> Array:
    """KL-regularised optimality operator: (T v)(s) = τ log Σ_a π_ref(a|s) exp(Q(s, a)/τ).

    It is max_π E_π[Q] − τ KL(π‖π_ref), and tends to `backup` as τ → 0 where π_ref > 0.

    Args:
      mdp: S states, A actions.
      values: `[S]`.
      temperature: τ > 0, the price of one nat; may be traced.
      reference: `[S, A]` probabilities; uniform over the feasible actions by default.
    Reference: Todorov 2006; Haarnoja et al. 2017, arXiv:1702.08165, eq. 5.
    """
    q, prior = action_values(mdp, values), prior_of(mdp, reference)
    possible = (prior > 0) & mdp.feasible
    best = jax.lax.stop_gradient(jnp.where(possible, q, -jnp.inf).max(axis=-1, keepdims=True))
    behind = jnp.where(mdp.feasible, (jnp.where(possible, q, best) - best) / temperature, -jnp.inf)
    # log Σ π exp(x) = log1p Σ π (exp(x) − 1). Near 0 the second form is exact; the first would round to eps, times τ.
    above_one = jnp.sum(prior * jnp.expm1(behind), axis=-1)
    near = above_one > -0.5
    log = jnp.log(jnp.where(near, 1, jnp.sum(prior * jnp.exp(behind), axis=-1)))
    log = jnp.where(near, jnp.log1p(jnp.where(near, above_one, 0)), log)
    return best[:, 0] + jnp.asarray(temperature) * log


def soft_logits(
    mdp: FiniteMDP, values: Array, *, temperature: ScalarLike = 1.0, reference: Array | None = None
) -> Array:
    """Q(s, a)/τ + log π_ref(a|s), `[S, A]`: their softmax is the soft-greedy policy."""
    return action_values(mdp, values) / temperature + jnp.log(prior_of(mdp, reference))


def prior_of(mdp: FiniteMDP, reference: Array | None) -> Array:
    """`reference`, or if it is None the policy that takes all feasible actions alike: `[S, A]`."""
    if reference is not None:
        return reference
    return mdp.feasible / mdp.feasible.sum(axis=-1, keepdims=True, dtype=mdp.rewards.dtype)


def greedy(mdp: FiniteMDP, values: Array) -> Array:
    """argmax_a Q(s, a), `[S]` int32; the first of equals."""
    if mdp.num_actions > MAX_COMPARED:
        return jnp.argmax(action_values(mdp, values), axis=-1).astype(jnp.int32)
    best, *others = _action_columns(mdp, values)
    policy = jnp.zeros(mdp.num_states, jnp.int32)
    for action, q in enumerate(others, start=1):
        policy = jnp.where(q > best, action, policy)
        best = jnp.maximum(best, q)
    return policy


def policy_chain(mdp: FiniteMDP, policy: Array) -> FiniteMDP:
    """The Markov reward process of a policy, as an MDP with one action: P_π and r_π, −inf where it takes an infeasible one."""
    if policy.ndim == 1:
        rewards = select_actions(mdp.rewards, policy)
    else:
        rewards = jnp.sum(jnp.where(mdp.feasible, mdp.rewards, 0) * policy, axis=-1)
        rewards = jnp.where((~mdp.feasible & (policy > 0)).any(axis=-1), -jnp.inf, rewards)
    return mdp._replace(
        transitions=mdp.transitions.under(policy), rewards=rewards[:, None], outcome_rewards=None
    )


def check_feasible(mdp: FiniteMDP, policy: Array, name: str = "policy") -> None:
    """Refuses a policy that takes an action which its state does not have; where terminal, it may hold anything.

    Traced values are not looked at: their rewards are −inf then.
    """
    if any(isinstance(x, jax.core.Tracer) for x in (policy, mdp.rewards, mdp.terminal)):
        return
    given, feasible = np.asarray(policy), np.asarray(mdp.feasible)
    taken = given > 0 if given.ndim == 2 else np.arange(feasible.shape[1]) == given[:, None]
    wrong = np.argwhere(taken & ~feasible & ~np.asarray(mdp.terminal)[:, None])
    if wrong.size:
        s, a = wrong[0]
        raise MDPError(f"{name} of state {s} takes action {a}, which is infeasible there: take another one.")


def select_actions(q: Array, policy: Array) -> Array:
    """Action values of a policy's actions, q(s, π(s)): `[S, A]`, `[S]` → `[S]`."""
    return jnp.take_along_axis(q, policy[:, None], axis=-1)[:, 0]


def held_values(mdp: FiniteMDP) -> Array:
    """What a state is worth with no step left, `[S]`: 0, or at a terminal state its value."""
    return jnp.where(mdp.terminal, mdp.rewards.max(axis=-1), 0)


def backward_visits(mdp: FiniteMDP, weights: Array) -> Array:
    """Weights of states after one step of a chain (an MDP with one action), P_πᵀ w: `[S]` → `[S]`."""
    push = jax.linear_transpose(lambda values: mdp.transitions.expect(values)[:, 0], weights)
    return push(weights)[0]


def _action_columns(mdp: FiniteMDP, values: Array) -> list[Array]:
    """Q(·, a) for each action, A arrays `[S]`."""
    ahead = mdp.transitions.expect_by_action(values)
    return [mdp.rewards[:, a] + mdp.discount * ahead[a] for a in range(mdp.num_actions)]
