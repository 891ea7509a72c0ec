"""Quantile-regression DQN: the distribution of the return of each action, as quantiles of equal weights.

    θ_i(s, a) towards the quantile τ_i of r + γ·θ′_j(s′, a*), a* the action of the largest mean, θ′ an older network

How one plays and remembers is in `value_based`. Reference: Dabney et al. 2018, arXiv:1710.10044, alg. 1.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from jaxrl4lm import losses
from jaxrl4lm.agents import value_based
from jaxrl4lm.agents.agent import Agent
from jaxrl4lm.agents.distributional import Returns, divide, look_ahead, look_now
from jaxrl4lm.agents.replay import Sample
from jaxrl4lm.agents.value_based import Learner, ValueConfig
from jaxrl4lm.fields import check_count, number
from jaxrl4lm.models import Network
from jaxrl4lm.types import Array, Params, ScalarLike


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QRDQNConfig(ValueConfig):
    """Of quantile-regression DQN."""

    kappa: ScalarLike = number(1.0, least=0)
    """κ of the quantile Huber loss: up to it an error counts squared; 0: none does."""


def make(environment: Any, params: Any, *, network: Network | None = None, quantiles: int = 32) -> Agent:
    """Quantile-regression DQN on an environment with numbered actions.

    Args:
      params: the environment's; only shapes, the action space and the time limit are read here.
      network: with as many outputs for each action, those of the first one first; a small one is chosen if None.
      quantiles: of each action, of the network that is chosen.
    Raises:
      InputError: if the actions are vectors, or there is no quantile.
    """
    check_count("quantiles", quantiles, least=1)
    spec = value_based.describe(environment, params)
    network = value_based.choose_value_network(spec, spec.actions.outputs * quantiles, network)
    returns = Returns(
        spec, look=partial(divide, network, spec), mean=lambda quantiles, params: quantiles.mean(-1)
    )
    learner = Learner(
        spec=spec,
        begin=lambda key, config: value_based.begin(spec, network, key),
        values=returns.values,
        loss=partial(loss, returns),
    )
    return value_based.make_agent("qr-dqn", learner)


def loss(
    returns: Returns, network: Params, target: Params, part: Sample, config: QRDQNConfig
) -> tuple[Array, Array]:
    """Quantile Huber losses `[B]`, by which memories are ranked as well."""
    following, worth = look_ahead(returns, network, target, part, config)
    targets = part.reward[:, None] + worth * following
    each = losses.quantile_huber(look_now(returns, network, part), targets, kappa=config.kappa)
    return each, each
