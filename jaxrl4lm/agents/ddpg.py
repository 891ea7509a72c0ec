"""Deep deterministic policy gradient: Q-learning where the best action is what a network says.

    play with noise → remember → on random memories:
        critic:  Q(s, a) towards r + γ Q′(s′, π′(s′))
        policy:  up Q(s, π(s))
        Q′ and π′ a little towards Q and π

Reference: Lillicrap et al. 2016, arXiv:1509.02971, with noise that is independent from step to step.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl4lm import losses
from jaxrl4lm.agents import off_policy
from jaxrl4lm.agents.agent import Agent
from jaxrl4lm.agents.off_policy import Draw, Known, Learner, OffPolicyConfig, State
from jaxrl4lm.agents.replay import Sample
from jaxrl4lm.fields import number
from jaxrl4lm.models import Network
from jaxrl4lm.types import Array, Key, Metrics, Params, ScalarLike


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DDPGConfig(OffPolicyConfig):
    """Of DDPG."""

    exploration_noise: ScalarLike = number(0.1, least=0)
    """Deviation of the noise of played actions, which span −1..1."""


def make(
    environment: Any, params: Any, *, actor: Network | None = None, critic: Network | None = None
) -> Agent:
    """DDPG on an environment whose actions are vectors between bounds.

    Args:
      params: the environment's; only shapes, the action space and the time limit are read here.
      actor: observations → `[..., D]`, which tanh then holds in −1..1.
      critic: flat observations and actions side by side → `[..., 1]`.
    Raises:
      InputError: for other actions.
    """
    learner = off_policy.make_learner(
        "ddpg", environment, params, outputs=1, critics=1, networks=(actor, critic)
    )
    return off_policy.make_agent("ddpg", learner, init, update, act)


def init(key: Key, config: DDPGConfig, learner: Learner, params: Any) -> State:
    """The state before the first update: random actions are remembered."""
    return off_policy.init(key, config, learner, params, followed=("actor", "critic"))


def update(state: State, config: DDPGConfig, learner: Learner, params: Any) -> tuple[State, Metrics]:
    """Some steps of play, and as many optimizer steps on what is remembered."""
    state, key, metrics = off_policy.play(
        state, config, learner, params, partial(explore, learner, config.exploration_noise)
    )
    once = partial(learn, config=config, learner=learner, update=state.step)
    state, told = off_policy.learn(state, config, learner, key, config.gradient_steps, once)
    return state, {**metrics, **told}


def learn(
    known: Known, key: Key, memories: Draw, *, config: DDPGConfig, learner: Learner, update: Array
) -> tuple[Known, Metrics]:
    """An optimizer step of the critic, and one of the policy."""
    part = memories(key)
    next_actions = act(learner, known.target["actor"], part.next_observation)
    next_values = off_policy.rate(learner, known.target["critic"], part.next_observation, next_actions)

    def error(values: Array) -> Array:
        return losses.td_error(
            values,
            part.reward[None],
            next_values,
            part.terminated[None],
            discount=part.discount[None],
            mask=part.weight[None],
        )

    known, told = off_policy.improve_critics(known, part, config, learner, update, error)
    known = improve_policy(known, part, config, learner, update)
    return off_policy.follow(known, config.target_rate), told


def act(learner: Learner, actor: Params, seen: Array) -> Array:
    """π(s) in −1..1, `[..., D]`."""
    return jnp.tanh(jnp.asarray(learner.actor.apply({"params": actor}, seen)))


def explore(learner: Learner, noise: ScalarLike, actor: Params, key: Key, seen: Array) -> Array:
    """π(s) and normal noise of that deviation, within −1..1: what is remembered is what was played."""
    actions = act(learner, actor, seen)
    return jnp.clip(actions + noise * jax.random.normal(key, actions.shape), -1, 1)


def improve_policy(
    known: Known, part: Sample, config: OffPolicyConfig, learner: Learner, update: Array
) -> Known:
    """An optimizer step of the policy up the first critic's Q(s, π(s)).

    Reference: Silver et al. 2014, "Deterministic policy gradient algorithms", eq. 9.
    """

    def loss(actor: Params) -> Array:
        actions = act(learner, actor, part.observation)
        return -off_policy.rate(learner, known.params["critic"], part.observation, actions)[0].mean()

    grads = jax.grad(loss)(known.params["actor"])
    return off_policy.descend_part("actor", known, grads, config, update)
