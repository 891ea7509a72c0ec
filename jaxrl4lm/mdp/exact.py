"""Exact answers by dense linear algebra: values, visits, the objective of a policy and its gradient."""

import jax
import jax.numpy as jnp

from jaxrl4lm.mdp.finite_mdp import FiniteMDP
from jaxrl4lm.mdp.operators import action_values, check_feasible, policy_chain
from jaxrl4lm.mdp.transitions import to_dense
from jaxrl4lm.types import Array


def policy_matrix(mdp: FiniteMDP, policy: Array) -> Array:
    """P_π, `[S, S′]`; rows of terminal states are 0."""
    return to_dense(policy_chain(mdp, policy).transitions).probabilities[:, 0]


def policy_values(mdp: FiniteMDP, policy: Array, held: Array | None = None) -> Array:
    """V^π = (I − γ P_π)⁻¹ r_π, `[S]`, by one dense solve (S² memory). Differentiable in all arguments.

    Where `held` `[S]` is given and not nan, a state is worth that instead. At γ = 1 the policy must reach a terminal
    state from everywhere. Otherwise the matrix is singular and the result is meaningless or not finite;
    `evaluate_policy` reports that case.

    Raises:
      MDPError: if the policy takes an infeasible action; under `jit` the result is not finite then.
    """
    check_feasible(mdp, policy)
    follows, rewards = policy_matrix(mdp, policy), policy_chain(mdp, policy).rewards[:, 0]
    if held is not None:
        free = jnp.isnan(held)
        follows, rewards = jnp.where(free[:, None], follows, 0), jnp.where(free, rewards, held)
    return jnp.linalg.solve(jnp.eye(mdp.num_states, dtype=rewards.dtype) - mdp.discount * follows, rewards)


def policy_action_values(mdp: FiniteMDP, policy: Array) -> Array:
    """Q^π(s, a) = r(s, a) + γ E V^π(s′), `[S, A]`, exactly."""
    return action_values(mdp, policy_values(mdp, policy))


def visitation(mdp: FiniteMDP, policy: Array) -> Array:
    """Discounted visits η(s) = Σ_t γ^t P(s_t = s), `[S]`: they sum to 1/(1−γ) if nothing is terminal.

    Reference: Sutton & Barto 2018, section 9.2 and box on p. 325.
    """
    check_feasible(mdp, policy)
    system = jnp.eye(mdp.num_states, dtype=mdp.rewards.dtype) - mdp.discount * policy_matrix(mdp, policy)
    return jnp.linalg.solve(system.T, mdp.initial)


def objective(mdp: FiniteMDP, logits: Array) -> Array:
    """J(θ) = E[Σ γ^t r_t], scalar, of the softmax policy with logits θ `[S, A]`. `jax.grad` of it is exact.

    The softmax is over the feasible actions.
    """
    return mdp.initial @ policy_values(mdp, _softmax(mdp, logits))


def policy_gradient(mdp: FiniteMDP, logits: Array) -> Array:
    """∂J/∂θ(s, a) = η(s) π(a|s) (Q^π(s, a) − V^π(s)), `[S, A]`: the policy-gradient theorem, exactly.

    Reference: Sutton et al. 1999.
    """
    policy = _softmax(mdp, logits)
    q = jnp.where(mdp.feasible, policy_action_values(mdp, policy), 0)
    advantage = q - jnp.sum(policy * q, axis=-1, keepdims=True)
    return visitation(mdp, policy)[:, None] * policy * advantage


def _softmax(mdp: FiniteMDP, logits: Array) -> Array:
    return jax.nn.softmax(logits, axis=-1, where=mdp.feasible)
