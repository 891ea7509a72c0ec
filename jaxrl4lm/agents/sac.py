"""Soft actor-critic: a policy that earns, besides rewards, α for each nat of its entropy.

    play → remember → on random memories:
        critics:      Q(s, a) towards r + γ(min Q′(s′, a′) − α log π(a′|s′)), a′ ~ π
        policy:       down α log π(a|s) − min Q(s, a), a = tanh(μ + σε)
        temperature:  α down where the entropy is above its target, up where it is below
        Q′ a little towards Q

Reference: Haarnoja et al. 2018, arXiv:1812.05905.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl4lm import distributions, losses
from jaxrl4lm.agents import off_policy
from jaxrl4lm.agents.agent import Agent
from jaxrl4lm.agents.off_policy import Draw, Known, Learner, OffPolicyConfig, State
from jaxrl4lm.fields import number
from jaxrl4lm.models import Network
from jaxrl4lm.types import Array, Key, Metrics, Params, ScalarLike

LOG_STD_RANGE = (-10.0, 2.0)
"""Of the policy, before it is squashed; beyond, σ is as good as 0 or the action always at a bound."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SACConfig(OffPolicyConfig):
    """Of SAC."""

    temperature: ScalarLike = number(1.0, above=0)
    """α at first: the price of a nat of entropy."""
    temperature_rate: ScalarLike = number(1.0, least=0)
    """Learning rate of α, in units of the learning rate; 0: α stays as it is."""
    target_entropy: ScalarLike = number(-1.0)
    """Nats a coordinate of the action, which spans −1..1, that α aims at: a uniform one has log 2."""


def make(
    environment: Any, params: Any, *, actor: Network | None = None, critic: Network | None = None
) -> Agent:
    """SAC on an environment whose actions are vectors between bounds.

    Args:
      params: the environment's; only shapes, the action space and the time limit are read here.
      actor: observations → means and log standard deviations, `[..., 2D]`.
      critic: flat observations and actions side by side → `[..., 1]`; two of it learn.
    Raises:
      InputError: for other actions.
    """
    learner = off_policy.make_learner(
        "sac", environment, params, outputs=2, critics=2, networks=(actor, critic)
    )
    return off_policy.make_agent(
        "sac",
        learner,
        init,
        update,
        lambda learner, actor, seen: jnp.tanh(describe(learner, actor, seen)[0]),
    )


def init(key: Key, config: SACConfig, learner: Learner, params: Any) -> State:
    """The state before the first update: random actions are remembered."""
    log_temperature = jnp.log(jnp.asarray(config.temperature, jnp.float32))
    return off_policy.init(
        key, config, learner, params, followed=("critic",), besides={"log_temperature": log_temperature}
    )


def update(state: State, config: SACConfig, learner: Learner, params: Any) -> tuple[State, Metrics]:
    """Some steps of play, and as many optimizer steps on what is remembered."""
    state, key, metrics = off_policy.play(
        state, config, learner, params, lambda actor, key, seen: draw(key, learner, actor, seen)[0]
    )
    once = partial(learn, config=config, learner=learner, update=state.step)
    state, told = off_policy.learn(state, config, learner, key, config.gradient_steps, once)
    return state, {**metrics, **told}


def learn(
    known: Known, key: Key, memories: Draw, *, config: SACConfig, learner: Learner, update: Array
) -> tuple[Known, Metrics]:
    """An optimizer step of the critics, the policy and the temperature."""
    key_memory, key_next, key_now = jax.random.split(key, 3)
    part = memories(key_memory)
    temperature = jnp.exp(known.params["log_temperature"])

    next_actions, next_log_probs = draw(key_next, learner, known.params["actor"], part.next_observation)
    next_values = off_policy.rate(learner, known.target["critic"], part.next_observation, next_actions).min(0)

    def error(values: Array) -> Array:
        return losses.soft_td_error(
            values,
            part.reward[None],
            next_values[None],
            next_log_probs[None],
            part.terminated[None],
            discount=part.discount[None],
            temperature=temperature,
            mask=part.weight[None],
        )

    known, told = off_policy.improve_critics(known, part, config, learner, update, error)

    def policy_loss(actor: Params) -> tuple[Array, Array]:
        actions, log_probs = draw(key_now, learner, actor, part.observation)
        values = off_policy.rate(learner, known.params["critic"], part.observation, actions).min(0)
        return losses.soft_policy(log_probs, values, temperature=temperature).mean(), log_probs

    grads, log_probs = jax.grad(policy_loss, has_aux=True)(known.params["actor"])
    known = off_policy.descend_part("actor", known, grads, config, update)
    known = adjust_temperature(known, log_probs, config, learner, update)
    told = {**told, "temperature": temperature, "entropy": -log_probs.mean()}
    return off_policy.follow(known, config.target_rate), told


def adjust_temperature(
    known: Known, log_probs: Array, config: SACConfig, learner: Learner, update: Array
) -> Known:
    """An optimizer step of log α.

    Args:
      log_probs: of actions that the policy has just drawn, `[B]`.
    """
    target = config.target_entropy * learner.spec.actions.outputs

    def loss(log_temperature: Array) -> Array:
        return losses.soft_temperature(log_probs, log_temperature, target_entropy=target).mean()

    grads = jax.grad(loss)(known.params["log_temperature"])
    own = config.replace(learning_rate=config.learning_rate * config.temperature_rate)
    return off_policy.descend_part("log_temperature", known, grads, own, update)


def describe(learner: Learner, actor: Params, seen: Array) -> tuple[Array, Array]:
    """Mean and log standard deviation of what is then squashed, `[..., D]` each."""
    mean, log_std = jnp.split(jnp.asarray(learner.actor.apply({"params": actor}, seen)), 2, axis=-1)
    return mean, jnp.clip(log_std, *LOG_STD_RANGE)


def draw(key: Key, learner: Learner, actor: Params, seen: Array) -> tuple[Array, Array]:
    """Actions in −1..1 `[..., D]`, as functions of noise, and their log-probs `[...]`."""
    mean, log_std = describe(learner, actor, seen)
    unsquashed = distributions.gaussian_sample(key, mean, log_std)
    return jnp.tanh(unsquashed), distributions.squashed_gaussian_log_prob(mean, log_std, unsquashed)
