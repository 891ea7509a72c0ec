"""Losses of value functions, and temporal-difference errors. Gradients flow through the prediction only."""

import jax
import jax.numpy as jnp

from jaxrl4lm.reduce import mask_inputs
from jaxrl4lm.types import Array, ScalarLike


def squared_value(values: Array, targets: Array, *, mask: Array | None = None) -> Array:
    """½(V − R)², per element.

    Args:
      values: V_θ(s_t), any shape. Gradients flow through this argument only.
      targets: R, returns or bootstrapped targets.
      mask: the elements that count.
    Returns:
      Loss of the shape of `values`; exactly 0, with exactly 0 gradient, where masked.
    """
    keep, values, targets = mask_inputs(mask, values=values, targets=targets)
    return jnp.where(keep, 0.5 * (values - jax.lax.stop_gradient(targets)) ** 2, 0)


def clipped_value(
    values: Array, old_values: Array, targets: Array, *, clip_eps: ScalarLike = 0.2, mask: Array | None = None
) -> Array:
    """½·max((V − R)², (V_old + clip(V − V_old, ±ε) − R)²), per element.

    Args:
      values: V_θ(s_t), any shape. Gradients flow through this argument only.
      old_values: V at sampling time.
      targets: R, returns or bootstrapped targets.
      clip_eps: ε, in units of value.
      mask: the elements that count.
    Returns:
      Loss of the shape of `values`; exactly 0, with exactly 0 gradient, where masked.
    Reference: the PPO reference implementation; Huang et al. 2022, "The 37 implementation details", no. 9.
    """
    keep, values, old_values, targets = mask_inputs(
        mask, values=values, old_values=old_values, targets=targets
    )
    old_values, targets = jax.lax.stop_gradient((old_values, targets))
    clip_eps = jnp.asarray(clip_eps)
    near = old_values + jnp.clip(values - old_values, -clip_eps, clip_eps)
    return jnp.where(keep, 0.5 * jnp.maximum((values - targets) ** 2, (near - targets) ** 2), 0)
