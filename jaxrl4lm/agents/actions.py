"""What a policy network's outputs say of actions: a distribution, as pure functions of the outputs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrl4lm import distributions
from jaxrl4lm.types import Array, InputError, Key


class Actions(NamedTuple):
    """The actions of an environment and a family of distributions over them; static.

    An action is kept as it was drawn. Only what the environment is given is clipped, so that the log-prob of a kept action is
    always that of the distribution.
    """

    outputs: int
    """Outputs of the network that depend on the observation."""
    constants: int
    """Outputs that do not."""
    sample: Callable[[Key, Array], Array]
    log_prob: Callable[[Array, Array], Array]
    """(outputs, actions) → `[...]`, in nats."""
    entropy: Callable[[Array], Array]
    kl: Callable[[Array, Array], Array]
    """(outputs, other outputs) → KL(first‖second) `[...]`, in nats."""
    mode: Callable[[Array], Array]
    """The likeliest action."""
    to_environment: Callable[[Array], Array]
    """What the environment is given."""
    discrete: bool


def categorical(count: int) -> Actions:
    """One of `count` actions; the outputs are logits."""
    return Actions(
        outputs=count,
        constants=0,
        sample=distributions.categorical_sample,
        log_prob=distributions.categorical_log_prob,
        entropy=distributions.categorical_entropy,
        kl=distributions.categorical_kl,
        mode=lambda logits: jnp.argmax(logits, axis=-1).astype(jnp.int32),
        to_environment=lambda actions: actions,
        discrete=True,
    )


def gaussian(low: Array, high: Array) -> Actions:
    """Vectors `[D]`, each of independent normal coordinates; the outputs are means and, constant, log standard deviations.

    Where the bounds are finite, −1 and 1 stand for them, and an action beyond is clipped on its way to the environment.
    """
    low, high = jnp.asarray(low, jnp.float32), jnp.asarray(high, jnp.float32)
    size = low.shape[0]
    bounded = np.isfinite(low).all() and np.isfinite(high).all()

    def split(outputs: Array) -> tuple[Array, Array]:
        return outputs[..., :size], outputs[..., size:]

    def to_environment(actions: Array) -> Array:
        if not bounded:
            return actions
        shape = (1,) * (actions.ndim - 1) + (size,)
        middle, half = ((high + low) / 2).reshape(shape), ((high - low) / 2).reshape(shape)
        return middle + half * jnp.clip(actions, -1, 1)

    return Actions(
        outputs=size,
        constants=size,
        sample=lambda key, outputs: distributions.gaussian_sample(key, *split(outputs)),
        log_prob=lambda outputs, actions: distributions.gaussian_log_prob(*split(outputs), actions),
        entropy=lambda outputs: distributions.gaussian_entropy(split(outputs)[1]),
        kl=lambda outputs, other: distributions.gaussian_kl(*split(outputs), *split(other)),
        mode=lambda outputs: split(outputs)[0],
        to_environment=to_environment,
        discrete=False,
    )


def choose_actions(environment: Any, params: Any) -> Actions:
    """The family that fits an environment: categorical for numbers of actions, Gaussian for vectors.

    Raises:
      InputError: for any other space.
    """
    space = environment.action_space(params)
    if hasattr(space, "n"):
        return categorical(space.n)
    if hasattr(space, "low") and len(space.shape) == 1:
        return gaussian(jnp.broadcast_to(space.low, space.shape), jnp.broadcast_to(space.high, space.shape))
    if hasattr(space, "low") and space.shape == ():
        return gaussian(jnp.reshape(space.low, 1), jnp.reshape(space.high, 1))
    raise InputError(f"actions of {environment.name} are {space}: agents need numbers or vectors")
