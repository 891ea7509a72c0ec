"""Policy-gradient losses per element. Gradients flow through `log_probs` (and `entropies`, `values`) only."""

import jax
import jax.numpy as jnp

from jaxrl4lm.reduce import mask_inputs
from jaxrl4lm.types import Array


def reinforce(log_probs: Array, returns: Array, *, mask: Array | None = None) -> Array:
    """REINFORCE: −log π(a_t|s_t) · G_t, per element.

    Args:
      log_probs: log π_θ(a_t|s_t), any shape, in nats. Gradients flow through this argument only.
      returns: returns or advantages, of the same shape, or with axes of 1 (one value per sequence is [B, 1]).
      mask: the elements that count.
    Returns:
      Loss of the shape of `log_probs`; exactly 0, with exactly 0 gradient, where masked.
    Raises:
      ValueError: if `returns` or `mask` does not broadcast to the shape of `log_probs`.
    Reference: Williams 1992; Sutton & Barto 2018, eq. 13.8.

    >>> reinforce(jnp.log(jnp.array([0.5])), jnp.array([2.0]))
    Array([1.3862944], dtype=float32)
    """
    keep, log_probs, returns = mask_inputs(mask, log_probs=log_probs, returns=returns)
    return jnp.where(keep, -log_probs * jax.lax.stop_gradient(returns), 0)
