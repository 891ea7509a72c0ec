"""REINFORCE, with a value as baseline or without one.

    start anew → play → returns of the whole episodes → one step along −log π · (G − b)

Only episodes count that began early enough to end within the rollout whatever happens: leaving out those that happened not to
end would favour short ones.

Reference: Williams 1992; Sutton & Barto 2018, sec. 13.3 and 13.4.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl4lm import losses, reduce
from jaxrl4lm.agents import environment as env
from jaxrl4lm.agents import on_policy
from jaxrl4lm.agents.agent import Agent
from jaxrl4lm.agents.config import descend
from jaxrl4lm.agents.on_policy import Batch, Learner, LossConfig, State
from jaxrl4lm.fields import size
from jaxrl4lm.models import Network
from jaxrl4lm.types import Array, InputError, Metrics, Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ReinforceConfig(LossConfig):
    """Of REINFORCE. A rollout must be at least as long as the longest episode."""

    rollout: int = size(500)
    """Steps of each copy before an update."""
    baseline: bool = size(True)
    """Subtract the value that the critic expects, and teach it; without, returns are taken as they are."""


def make(
    environment: Any, params: Any, *, actor: Network | None = None, critic: Network | None = None
) -> Agent:
    """REINFORCE on an environment. Arguments as of `on_policy.make_agent`."""
    return on_policy.make_agent("reinforce", update, environment, params, (actor, critic))


def update(state: State, config: ReinforceConfig, learner: Learner, params: Any) -> tuple[State, Metrics]:
    """New episodes, and one step of the optimizer.

    Raises:
      InputError: if a rollout is shorter than the longest episode.
    """
    if config.rollout < learner.spec.horizon:
        raise InputError(
            f"rollout is {config.rollout}, an episode has up to {learner.spec.horizon} steps: give at least as many"
        )
    now = state.step
    key, key_place = jax.random.split(state.key)
    state = state._replace(
        place=env.begin(key_place, learner.spec, params, config.environments),
        discounted=jnp.zeros(config.environments),
        key=key,
    )
    state, batch, metrics = on_policy.collect(state, config, learner, params, on_policy.monte_carlo)
    whole = choose_whole_episodes(batch.done, learner.spec.horizon)
    grads, told = jax.grad(loss, has_aux=True)(state.params, batch, whole, config, learner)
    networks, opt_state = descend(config, now, grads, state.opt_state, state.params)
    return state._replace(params=networks, opt_state=opt_state), {**metrics, **told}


def choose_whole_episodes(done: Array, horizon: int) -> Array:
    """The steps `[T, N]` of episodes that began at least `horizon` steps before the end of the rollout."""
    time = jnp.arange(done.shape[0])[:, None]
    ended = jnp.where(done, time + 1, 0)
    begin = jnp.concatenate([jnp.zeros_like(ended[:1]), jax.lax.cummax(ended, axis=0)[:-1]])
    return begin <= done.shape[0] - horizon


def loss(
    networks: Params, batch: Batch, whole: Array, config: ReinforceConfig, learner: Learner
) -> tuple[Array, Metrics]:
    """−log π · (G − b) + c_v · value loss − c_H · entropy, the mean over the steps that count, and metrics."""
    actions = learner.spec.actions
    outputs = on_policy.act(learner, networks, batch.observation)
    earned = batch.advantage if config.baseline else batch.target
    policy = reduce.masked_mean(losses.reinforce(actions.log_prob(outputs, batch.action), earned), whole)
    expected = on_policy.value(learner, networks, batch.observation)
    critic = reduce.masked_mean(losses.squared_value(expected, batch.target), whole)
    entropy = reduce.masked_mean(actions.entropy(outputs), whole)
    total = policy - config.entropy_coef * entropy
    total += config.value_coef * critic if config.baseline else 0
    return total, {"loss/policy": policy, "loss/value": critic, "entropy": entropy}
