"""Deep Q-learning with replay: plain, double, and dueling; with n steps and priorities, if wanted.

    Q(s, a) towards r + γ·max Q′(s′), Q′ an older network; how one plays and remembers is in `value_based`

Reference: Mnih et al. 2015, "Human-level control through deep reinforcement learning"; double: van Hasselt et al. 2016,
arXiv:1509.06461; dueling: Wang et al. 2016, arXiv:1511.06581; priorities: Schaul et al. 2016, arXiv:1511.05952.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl4lm import losses
from jaxrl4lm.agents import value_based
from jaxrl4lm.agents.agent import Agent
from jaxrl4lm.agents.environment import Spec
from jaxrl4lm.agents.replay import Sample
from jaxrl4lm.agents.value_based import Learner, ValueConfig
from jaxrl4lm.fields import number
from jaxrl4lm.models import Network
from jaxrl4lm.types import Array, Params, ScalarLike


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DQNConfig(ValueConfig):
    """Of deep Q-learning."""

    huber_delta: ScalarLike = number(1.0, above=0)
    """Errors beyond it count by their size, not its square: a rare one of 100 then weighs as little as one of 1."""


def make(environment: Any, params: Any, *, network: Network | None = None, dueling: bool = False) -> Agent:
    """Deep Q-learning on an environment with numbered actions.

    Args:
      params: the environment's; only shapes, the action space and the time limit are read here.
      network: with an output for each action; a small one is chosen if None.
      dueling: one output more, the first, is the value of the state; the others say how actions differ from their mean.
    Raises:
      InputError: if the actions are vectors.
    """
    spec = value_based.describe(environment, params)
    network = value_based.choose_value_network(spec, spec.actions.outputs + dueling, network)
    values = partial(look, network, dueling)
    learner = Learner(
        spec=spec,
        begin=lambda key, config: value_based.begin(spec, network, key),
        values=values,
        loss=partial(loss, spec, values),
    )
    return value_based.make_agent("dqn", learner)


def look(network: Network, dueling: bool, params: Params, seen: Array) -> Array:
    """Q of all actions `[..., A]`."""
    outputs = jnp.asarray(network.apply({"params": params}, seen))
    if not dueling:
        return outputs
    value, differences = outputs[..., :1], outputs[..., 1:]
    return value + differences - differences.mean(-1, keepdims=True)


def loss(
    spec: Spec,
    values: Callable[[Params, Array], Array],
    network: Params,
    target: Params,
    part: Sample,
    config: DQNConfig,
) -> tuple[Array, Array]:
    """Huber losses of the errors of (double) Q-learning `[B]`, and the sizes of these errors."""
    seen, after = map(spec.encode, (part.observation, part.next_observation))
    given = (values(network, seen), part.action, part.reward, values(target, after))
    if config.double:
        errors = losses.double_q_learning_error(
            *given, values(network, after), part.terminated, discount=part.discount
        )
    else:
        errors = losses.q_learning_error(*given, part.terminated, discount=part.discount)
    return losses.huber_value(errors, jnp.zeros_like(errors), delta=config.huber_delta), jnp.abs(errors)
