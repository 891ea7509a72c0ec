"""What an update learns from, and the minibatches of it.

Shapes: `G` prompts, `B` completions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.lm.rollouts import Rollout
from jaxrl4lm.types import Array, Key


class Experience(NamedTuple):
    """What a minibatch learns from; leading axes [G, ...] or [B, ...]."""

    rollout: Rollout
    ref_log_probs: Array | None
    """None where no divergence is priced."""
    advantages: Array
    targets: Array


def shuffle(key: Key, batch: Experience, minibatches: int) -> Experience:
    """The batch with its prompts in random order, whole groups kept together, and a leading axis of minibatches."""
    G = batch.rollout.prompts.shape[0]
    order = jax.random.permutation(key, G) if minibatches > 1 else jnp.arange(G)

    def arrange(x: Array) -> Array:
        grouped = x.reshape(G, -1, *x.shape[1:])[order]
        return grouped.reshape(minibatches, x.shape[0] // minibatches, *x.shape[1:])

    # One minibatch is the whole update: its order does not matter to the gradient, so spare the copy.
    return jax.tree.map(arrange if minibatches > 1 else lambda x: x[None], batch)
