"""Categorical DQN: the distribution of the return of each action, as probabilities of fixed returns.

    p(s, a) towards the distribution of r + γ·z, z drawn from p′(s′, a*), moved to the fixed returns; a* has the largest mean

How one plays and remembers is in `value_based`. Reference: Bellemare et al. 2017, arXiv:1707.06887, alg. 1.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl4lm import losses
from jaxrl4lm.agents import value_based
from jaxrl4lm.agents.agent import Agent
from jaxrl4lm.agents.distributional import Returns, divide, look_ahead, look_now
from jaxrl4lm.agents.replay import Sample
from jaxrl4lm.agents.value_based import Learner, ValueConfig
from jaxrl4lm.fields import check_count, number
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
      InputError: if the actions are vectors, or there are less than two returns.
    """
    check_count("atoms", atoms, least=2)
    spec = value_based.describe(environment, params)
    network = value_based.choose_value_network(spec, spec.actions.outputs * atoms, network)
    returns = Returns(
        spec, look=lambda params, seen: divide(network, spec, params["network"], seen), mean=average
    )

    def begin(key: Key, config: C51Config) -> Params:
        support = jnp.linspace(config.least_return, config.largest_return, atoms)
        return {"network": value_based.begin(spec, network, key), "support": support}

    learner = Learner(spec=spec, begin=begin, values=returns.values, loss=partial(loss, returns))
    return value_based.make_agent("c51", learner)


def average(logits: Array, params: Params) -> Array:
    """Expected returns of all actions `[..., A]`, of logits of the fixed returns."""
    support = jax.lax.stop_gradient(params["support"])
    return jax.nn.softmax(logits, axis=-1) @ support


def loss(
    returns: Returns, network: Params, target: Params, part: Sample, config: C51Config
) -> tuple[Array, Array]:
    """Cross-entropies with the targets `[B]`, and what is left of them beyond the targets' own entropies."""
    following, worth = look_ahead(returns, network, target, part, config)
    support = target["support"]
    targets = losses.project_categorical(
        part.reward[:, None] + worth * support[None], jax.nn.softmax(following, axis=-1), support=support
    )
    each = losses.categorical_value(look_now(returns, network, part), targets)
    return each, each + jax.scipy.special.xlogy(targets, targets).sum(-1)
