"""Surrogates on a small world, exactly: expectations over the states and actions of the policy that played."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm import distributions, mdp
from jaxrl4lm.types import Array


class Rollout(NamedTuple):
    """All that an endless rollout of a policy would say."""

    logits: Array
    """Of the policy that played, `[S, A]`."""
    log_probs: Array
    """`[S, A]`."""
    advantages: Array
    """Q(s, a) − V(s), `[S, A]`."""
    weights: Array
    """Share of the state and action in all discounted steps, `[S, A]`."""
    length: Array
    """Discounted steps of an episode."""

    def mean(self, losses: Array) -> Array:
        """The mean of losses `[S, A]` over the rollout."""
        return (self.weights * losses).sum()

    def divergence(self, logits: Array) -> Array:
        """KL(π_old‖π) in nats, the mean over the states."""
        return (self.weights.sum(-1) * distributions.categorical_kl(self.logits, logits)).sum()


def roll_out(world: mdp.FiniteMDP, logits: Array) -> Rollout:
    """The endless rollout of a softmax policy."""
    policy = jax.nn.softmax(logits)
    visits = jnp.where(world.terminal, 0.0, mdp.visitation(world, policy))
    q = mdp.policy_action_values(world, policy)
    return Rollout(
        logits,
        jax.nn.log_softmax(logits),
        q - (policy * q).sum(-1, keepdims=True),
        visits[:, None] * policy / visits.sum(),
        visits.sum(),
    )
