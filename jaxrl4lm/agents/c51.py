"""Categorical DQN: the distribution of the return of each action, as probabilities of fixed returns.

    p(s, a) towards the distribution of r + γ·z, z drawn from p′(s′, a*), moved to the fixed returns; a* has the largest mean

How one plays and remembers is in `value_based`. Reference: Bellemare et al. 2017, arXiv:1707.06887, alg. 1.
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
from jaxrl4lm.agents.value_based import Learner, ValueConfig, pick, select
from jaxrl4lm.fields import number
from jaxrl4lm.models import Network
from jaxrl4lm.types import Array, InputError, Key, Params, ScalarLike


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class C51Config(ValueConfig):
    """Of categorical DQN."""

    least_return: ScalarLike = number(-100.0)
    """The first of the fixed returns; smaller ones count as it."""
    largest_return: ScalarLike = number(100.0)
    """The last of them. Rewards of at most 1 and γ = 0.99 add up to at most 100."""

    def check(self) -> None:
        """Raises InputError, naming the field, its value and the fix, where a number does not fit."""
        super().check()
        if self.least_return >= self.largest_return:
            raise InputError(
                f"least_return {self.least_return} is not below largest_return {self.largest_return}: "
                "give the range of discounted returns"
            )


def make(environment: Any, params: Any, *, network: Network | None = None, atoms: int = 51) -> Agent:
    """Categorical DQN on an environment with numbered actions.

    What learns is `network`, and the fixed returns, `support` `[atoms]`, go with it: their gradient is 0.

    Args:
      params: the environment's; only shapes, the action space and the time limit are read here.
      network: with `atoms` outputs for each action, those of the first one first; a small one is chosen if None.
      atoms: how many fixed returns there are.
    Raises:
      InputError: if the actions are vectors.
    """
    spec = value_based.describe(environment, params)
    network = network or value_based.choose_value_network(spec, spec.actions.outputs * atoms)
    look_at = partial(look, spec, network)

    def begin(key: Key, config: C51Config) -> Params:
        support = jnp.linspace(config.least_return, config.largest_return, atoms)
        return {"network": value_based.begin(spec, network, key), "support": support}

    learner = Learner(
        spec=spec,
        begin=begin,
        values=lambda params, seen: means(look_at(params, seen), params),
        loss=partial(loss, spec, look_at),
    )
    return value_based.make_agent("c51", learner)


def look(spec: Spec, network: Network, params: Params, seen: Array) -> Array:
    """Logits of the returns of all actions `[..., A, atoms]`."""
    outputs = jnp.asarray(network.apply({"params": params["network"]}, seen))
    return outputs.reshape(*outputs.shape[:-1], spec.actions.outputs, -1)


def means(logits: Array, params: Params) -> Array:
    """Expected returns of all actions `[..., A]`."""
    support = jax.lax.stop_gradient(params["support"])
    return jax.nn.softmax(logits, axis=-1) @ support


def loss(
    spec: Spec,
    look: Callable[[Params, Array], Array],
    network: Params,
    target: Params,
    part: Sample,
    config: C51Config,
) -> tuple[Array, Array]:
    """Cross-entropies with the targets `[B]`, and what is left of them beyond the targets' own entropies."""
    seen, after = map(spec.encode, (part.observation, part.next_observation))
    older, support = look(target, after), target["support"]
    best = select(means(older, target), means(look(network, after), network), config)
    going_on = jnp.where(part.terminated, 0, part.discount)[:, None]
    targets = losses.project_categorical(
        part.reward[:, None] + going_on * support[None],
        jax.nn.softmax(pick(older, best), axis=-1),
        support=support,
    )
    each = losses.categorical_value(pick(look(network, seen), part.action), targets)
    return each, each + jax.scipy.special.xlogy(targets, targets).sum(-1)
