"""Proximal policy optimisation with the clipped surrogate.

    play a rollout → advantages by GAE → epochs × minibatches of clipped surrogate + value loss − entropy

Reference: Schulman et al. 2017, arXiv:1707.06347.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from jaxrl4lm import losses, reduce
from jaxrl4lm.agents import on_policy
from jaxrl4lm.agents.agent import Agent
from jaxrl4lm.agents.environment import Spec
from jaxrl4lm.agents.on_policy import Batch, EpochConfig, Learner, LossConfig, State
from jaxrl4lm.fields import number, size
from jaxrl4lm.models import Network
from jaxrl4lm.types import Array, Metrics, Params, ScalarLike


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PPOConfig(EpochConfig, LossConfig):
    """Of PPO."""

    clip_eps: ScalarLike = number(0.2, above=0)
    """How far the ratio of new to old probability may move from 1 before its gradient is cut."""
    whiten_advantages: bool = size(True)
    """Zero mean and unit variance of the advantages of each minibatch."""


def make(
    environment: Any, params: Any, *, actor: Network | None = None, critic: Network | None = None
) -> Agent:
    """PPO on an environment. Arguments as of `on_policy.make_agent`."""
    return on_policy.make_agent("ppo", update, environment, params, (actor, critic))


def update(state: State, config: PPOConfig, learner: Learner, params: Any) -> tuple[State, Metrics]:
    """A rollout, and what is learned from it."""
    now = state.step
    state, batch, metrics = on_policy.collect(state, config, learner, params)
    state, told = on_policy.improve(state, batch, partial(loss, config=config, learner=learner), config, now)
    return state, {**metrics, **told}


def loss(networks: Params, part: Batch, config: PPOConfig, learner: Learner) -> tuple[Array, Metrics]:
    """Clipped surrogate + c_v · value loss − c_H · entropy, and metrics."""
    outputs = on_policy.act(learner, networks, part.observation)
    policy = surrogate(part, outputs, config, learner.spec)
    return on_policy.add_critic(policy, networks, part, outputs, config, learner)


def surrogate(part: Batch, outputs: Array, config: PPOConfig, spec: Spec) -> Array:
    """The mean clipped surrogate.

    Args:
      outputs: of the actor now.
    """
    log_probs = spec.actions.log_prob(outputs, part.action)
    advantages = reduce.whiten(part.advantage) if config.whiten_advantages else part.advantage
    return losses.ppo_clip(log_probs, part.log_prob, advantages, clip_eps=config.clip_eps).mean()
