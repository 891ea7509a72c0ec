"""PPO with a price on the divergence from the policy that played, in place of a clip.

    play a rollout → advantages by GAE → epochs × minibatches of −ρA + β·KL + value loss − entropy → β doubles or halves

With `kl_target` 0 the price stays as it is.

Reference: Schulman et al. 2017, arXiv:1707.06347, sec. 4.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl4lm import losses, reduce
from jaxrl4lm.agents import on_policy
from jaxrl4lm.agents.agent import Agent
from jaxrl4lm.agents.on_policy import Batch, EpochConfig, Learner, LossConfig, State
from jaxrl4lm.fields import number
from jaxrl4lm.models import Network
from jaxrl4lm.types import Array, Key, Metrics, Params, ScalarLike


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PPOKLConfig(EpochConfig, LossConfig):
    """Of PPO with a price on the divergence."""

    kl_coef: ScalarLike = number(1.0, least=0)
    """β at first: price of a nat of divergence."""
    kl_target: ScalarLike = number(0.01, least=0)
    """Nats an update should move the policy: β doubles above 1.5 times as many, and halves below 1/1.5. 0: β stays."""


def make(
    environment: Any, params: Any, *, actor: Network | None = None, critic: Network | None = None
) -> Agent:
    """PPO-KL on an environment. Arguments as of `on_policy.make_agent`."""
    return on_policy.make_agent("ppo-kl", update, environment, params, (actor, critic), start=init)


def init(key: Key, config: PPOKLConfig, learner: Learner, params: Any) -> State:
    """The state before the first update; `extra` is β."""
    beta = losses.kl.doubling_controller(config.kl_coef).init()
    return on_policy.init(key, config, learner, params)._replace(extra=beta)


def update(state: State, config: PPOKLConfig, learner: Learner, params: Any) -> tuple[State, Metrics]:
    """A rollout, and what is learned from it; then β moves by the divergence that was measured."""
    now, beta = state.step, state.extra
    state, batch, metrics = on_policy.collect(state, config, learner, params)
    state, told = on_policy.improve(
        state, batch, partial(loss, beta=beta, config=config, learner=learner), config, now
    )
    outputs = on_policy.act(learner, state.params, batch.observation)
    kl = learner.spec.actions.kl(batch.outputs, outputs).mean()
    target = jnp.asarray(config.kl_target)
    moved = losses.kl.doubling_controller(target=jnp.where(target > 0, target, 1)).update(beta, kl, 1)
    state = state._replace(extra=jnp.where(target > 0, moved, beta))
    return state, {**metrics, **told, "kl": kl, "kl_coef": beta}


def loss(
    networks: Params, part: Batch, beta: Array, config: PPOKLConfig, learner: Learner
) -> tuple[Array, Metrics]:
    """−ρA + β·KL(old‖new), exact in each state, + c_v · value loss − c_H · entropy, and metrics."""
    actions = learner.spec.actions
    outputs = on_policy.act(learner, networks, part.observation)
    policy = losses.ppo_kl_penalty(
        actions.log_prob(outputs, part.action),
        part.log_prob,
        reduce.whiten(part.advantage),
        beta=beta,
        kl=actions.kl(part.outputs, outputs),
    ).mean()
    return on_policy.add_critic(policy, networks, part, outputs, config, learner)
