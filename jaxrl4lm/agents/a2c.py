"""Advantage actor-critic.

    play a rollout → advantages → one step along −log π · A + value loss − entropy

What an advantage is is passed in: `on_policy.monte_carlo`, `on_policy.n_step(1)` (one step), `on_policy.n_step(n)`, or GAE.

Reference: Mnih et al. 2016, arXiv:1602.01783, without its asynchrony.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from jaxrl4lm import losses
from jaxrl4lm.agents import on_policy
from jaxrl4lm.agents.agent import Agent
from jaxrl4lm.agents.config import descend
from jaxrl4lm.agents.on_policy import AdvantageConfig, Batch, Estimator, Learner, LossConfig, State
from jaxrl4lm.models import Network
from jaxrl4lm.types import Array, InputError, Metrics, Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class A2CConfig(AdvantageConfig, LossConfig):
    """Of A2C."""


def make(
    environment: Any,
    params: Any,
    *,
    estimate: Estimator = on_policy.generalized,
    actor: Network | None = None,
    critic: Network | None = None,
) -> Agent:
    """A2C on an environment.

    Args:
      estimate: what an advantage is.
      The others: as of `on_policy.make_agent`.
    Raises:
      InputError: if the estimate is no function.
    """
    if not callable(estimate):
        raise InputError(f"estimate is {estimate!r}: give a function, as agents.on_policy.n_step(1)")
    return on_policy.make_agent(
        "a2c", partial(update, estimate=estimate), environment, params, (actor, critic)
    )


def update(
    state: State,
    config: A2CConfig,
    learner: Learner,
    params: Any,
    estimate: Estimator = on_policy.generalized,
) -> tuple[State, Metrics]:
    """A rollout, and one step of the optimizer."""
    now = state.step
    state, batch, metrics = on_policy.collect(state, config, learner, params, estimate)
    grads, told = jax.grad(loss, has_aux=True)(state.params, batch, config, learner)
    networks, opt_state = descend(config, now, grads, state.opt_state, state.params)
    return state._replace(params=networks, opt_state=opt_state), {**metrics, **told}


def loss(networks: Params, batch: Batch, config: A2CConfig, learner: Learner) -> tuple[Array, Metrics]:
    """The mean of `losses.a2c` over a rollout, and metrics."""
    actions = learner.spec.actions
    outputs = on_policy.act(learner, networks, batch.observation)
    entropies = actions.entropy(outputs)
    each = losses.a2c(
        actions.log_prob(outputs, batch.action),
        batch.advantage,
        on_policy.value(learner, networks, batch.observation),
        batch.target,
        entropies,
        value_coef=config.value_coef,
        entropy_coef=config.entropy_coef,
    )
    return each.mean(), {"loss": each.mean(), "entropy": entropies.mean()}
