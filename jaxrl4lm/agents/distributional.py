"""What agents share that learn the distribution of the return of each action, as K numbers of it.

Shapes: `A` actions, `K` numbers of each, `B` memories.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from jaxrl4lm.agents import environment as env
from jaxrl4lm.agents.replay import Sample
from jaxrl4lm.agents.value_based import ValueConfig
from jaxrl4lm.models import Network
from jaxrl4lm.types import Array, Params


class Returns(NamedTuple):
    """How the returns of all actions are told; static."""

    spec: env.Spec
    look: Callable[[Params, Array], Array]
    """(what learns, observations as networks see them) → numbers of the distributions `[..., A, K]`."""
    mean: Callable[[Array, Params], Array]
    """(these numbers, what learns) → the means of the distributions `[..., A]`."""

    def values(self, params: Params, seen: Array) -> Array:
        """Expected returns of all actions `[..., A]`."""
        return self.mean(self.look(params, seen), params)


def divide(network: Network, spec: env.Spec, params: Params, seen: Array) -> Array:
    """The outputs of a network, those of the first action first, as `[..., A, K]`."""
    outputs = jnp.asarray(network.apply({"params": params}, seen))
    return outputs.reshape(*outputs.shape[:-1], spec.actions.outputs, -1)


def look_now(returns: Returns, network: Params, part: Sample) -> Array:
    """What the network says of the actions that were taken `[B, K]`."""
    return pick(returns.look(network, returns.spec.encode(part.observation)), part.action)


def look_ahead(
    returns: Returns, network: Params, target: Params, part: Sample, config: ValueConfig
) -> tuple[Array, Array]:
    """What a target is made of.

    Args:
      network: what learns.
      target: an older one.
    Returns:
      What the older one says of the best next actions `[B, K]`; what a return from there is worth now `[B, 1]`, 0 after an end.
    """
    after = returns.spec.encode(part.next_observation)
    older = returns.look(target, after)
    best = select(returns.mean(older, target), returns.values(network, after), config)
    return pick(older, best), jnp.where(part.terminated, 0, part.discount)[:, None]


def select(values: Array, others: Array, config: ValueConfig) -> Array:
    """The next actions `[...]` by which a target is computed, of values `[..., A]`.

    Args:
      values: by the older network, which values the chosen action.
      others: by the network that learns, which chooses where `double`.
    Reference: van Hasselt et al. 2016, arXiv:1509.06461, eq. 4.
    """
    return jnp.argmax(others if config.double else values, axis=-1)


def pick(array: Array, actions: Array) -> Array:
    """What an array `[..., A, K]` says of actions `[...]`: `[..., K]`."""
    return jnp.take_along_axis(array, actions[..., None, None], axis=-2)[..., 0, :]
