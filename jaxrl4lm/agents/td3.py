"""Twin delayed deep deterministic policy gradient.

    play with noise → remember → on random memories, `policy_delay` times:
        critics:  Q(s, a) towards r + γ min Q′(s′, π′(s′) + clipped noise)
    then once:
        policy:   up the first Q(s, π(s))
        Q′ and π′ a little towards Q and π

Reference: Fujimoto et al. 2018, arXiv:1802.09477.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl4lm import losses
from jaxrl4lm.agents import off_policy
from jaxrl4lm.agents.agent import Agent
from jaxrl4lm.agents.ddpg import act, explore, improve_policy
from jaxrl4lm.agents.off_policy import Draw, Known, Learner, OffPolicyConfig, State
from jaxrl4lm.fields import number, size
from jaxrl4lm.models import Network
from jaxrl4lm.types import Array, InputError, Key, Metrics, ScalarLike


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TD3Config(OffPolicyConfig):
    """Of TD3."""

    exploration_noise: ScalarLike = number(0.1, least=0)
    """Deviation of the noise of played actions, which span −1..1."""
    target_noise: ScalarLike = number(0.2, least=0)
    """Deviation of the noise of the actions that targets are of."""
    target_noise_limit: ScalarLike = number(0.5, least=0)
    """That noise is held within ± this."""
    policy_delay: int = size(2)
    """Optimizer steps of the critics for each of the policy; the steps of an update are a multiple."""

    def check(self) -> None:
        """Raises InputError, naming the field, its value and the fix, where a number does not fit."""
        super().check()
        if self.gradient_steps % self.policy_delay:
            more = -(-self.gradient_steps // self.policy_delay) * self.policy_delay
            raise InputError(
                f"gradient_steps {self.gradient_steps} is no multiple of the policy_delay {self.policy_delay}: give {more}"
            )


def make(
    environment: Any, params: Any, *, actor: Network | None = None, critic: Network | None = None
) -> Agent:
    """TD3 on an environment whose actions are vectors between bounds.

    Args:
      params: the environment's; only shapes, the action space and the time limit are read here.
      actor: observations → `[..., D]`, which tanh then holds in −1..1.
      critic: flat observations and actions side by side → `[..., 1]`; two of it learn.
    Raises:
      InputError: for other actions.
    """
    learner = off_policy.make_learner(
        "td3", environment, params, outputs=1, critics=2, networks=(actor, critic)
    )
    return off_policy.make_agent("td3", learner, init, update, act)


def init(key: Key, config: TD3Config, learner: Learner, params: Any) -> State:
    """The state before the first update: random actions are remembered."""
    return off_policy.init(key, config, learner, params, followed=("actor", "critic"))


def update(state: State, config: TD3Config, learner: Learner, params: Any) -> tuple[State, Metrics]:
    """Some steps of play, and as many optimizer steps on what is remembered."""
    state, key, metrics = off_policy.play(
        state, config, learner, params, partial(explore, learner, config.exploration_noise)
    )
    once = partial(learn, config=config, learner=learner, update=state.step)
    rounds = config.gradient_steps // config.policy_delay
    state, told = off_policy.learn(state, config, learner, key, rounds, once)
    return state, {**metrics, **told}


def learn(
    known: Known, key: Key, memories: Draw, *, config: TD3Config, learner: Learner, update: Array
) -> tuple[Known, Metrics]:
    """`policy_delay` optimizer steps of the critics, then one of the policy, on the last minibatch of them."""

    def improve_critics(known: Known, keys: tuple[Key, Key]) -> tuple[Known, Metrics]:
        key_memory, key_noise = keys
        part = memories(key_memory)
        noise = config.target_noise * jax.random.normal(key_noise, part.action.shape)
        noise = jnp.clip(noise, -config.target_noise_limit, config.target_noise_limit)
        next_actions = jnp.clip(act(learner, known.target["actor"], part.next_observation) + noise, -1, 1)
        next_values = off_policy.rate(
            learner, known.target["critic"], part.next_observation, next_actions
        ).min(0)

        def error(values: Array) -> Array:
            return losses.td_error(
                values,
                part.reward[None],
                next_values[None],
                part.terminated[None],
                discount=part.discount[None],
                mask=part.weight[None],
            )

        return off_policy.improve_critics(known, part, config, learner, update, error)

    keys = jax.random.split(key, (config.policy_delay, 2))
    known, told = jax.lax.scan(improve_critics, known, (keys[:, 0], keys[:, 1]))
    known = improve_policy(known, memories(keys[-1, 0]), config, learner, update)
    return off_policy.follow(known, config.target_rate), {name: x.mean() for name, x in told.items()}
