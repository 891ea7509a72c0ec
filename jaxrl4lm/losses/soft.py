"""Losses of soft actor-critic, whose agent earns, besides rewards, α for each nat of its entropy."""

import jax
import jax.numpy as jnp

from jaxrl4lm.arguments import as_mask, coefficients, mask_inputs
from jaxrl4lm.losses.value import td_error
from jaxrl4lm.types import Array, ScalarLike


def soft_td_error(
    values: Array,
    rewards: Array,
    next_values: Array,
    next_log_probs: Array,
    terminated: Array,
    *,
    discount: ScalarLike,
    temperature: ScalarLike,
    mask: Array | None = None,
) -> Array:
    """Soft temporal-difference error: r + γ·(Q(s′, a′) − α·log π(a′|s′)) − Q(s, a), a′ ~ π; r − Q(s, a) after a termination.

    Args:
      values: Q_θ(s, a), any shape. Gradients flow through this argument only (semi-gradient).
      rewards: r.
      next_values: Q(s′, a′), before any reset: the smaller of two target critics in SAC; not read where terminated.
      next_log_probs: log π(a′|s′), in nats; not read where terminated.
      terminated: nothing follows.
      discount: γ.
      temperature: α ≥ 0, the price of a nat.
      mask: the elements that count.
    Returns:
      Errors of the shape of `values`; exactly 0, with exactly 0 gradient, where masked. Half their square is the loss.
    Reference: Haarnoja et al. 2018, arXiv:1812.05905, eq. 3 and 5.

    >>> soft_td_error(jnp.array(1.0), 0.5, 3.0, -2.0, False, discount=0.5, temperature=0.1)
    Array(1.0999999, dtype=float32)
    """
    keep, values, next_values, next_log_probs = mask_inputs(
        mask, values=values, next_values=next_values, next_log_probs=next_log_probs
    )
    (temperature,) = coefficients(values, temperature=temperature)
    # −inf · 0 would be nan: what follows an end is not read.
    next_log_probs = jnp.where(as_mask(terminated, values.shape, "terminated"), 0, next_log_probs)
    following = next_values - temperature * next_log_probs
    return td_error(values, rewards, following, terminated, discount=discount, mask=keep)


def soft_policy(
    log_probs: Array, q_values: Array, *, temperature: ScalarLike, mask: Array | None = None
) -> Array:
    """α·log π(a|s) − Q(s, a) of an action that the policy drew as a function of noise, per element.

    Args:
      log_probs: log π_θ(a|s), any shape, in nats. Gradients flow through it and through `q_values`.
      q_values: Q(s, a), the smaller of two critics in SAC; its gradient reaches θ through a.
      temperature: α ≥ 0, the price of a nat; a constant.
      mask: the elements that count.
    Returns:
      Loss of the shape of `log_probs`; exactly 0, with exactly 0 gradient, where masked.
    Reference: Haarnoja et al. 2018, arXiv:1812.05905, eq. 9.
    """
    keep, log_probs, q_values = mask_inputs(mask, log_probs=log_probs, q_values=q_values)
    (temperature,) = coefficients(log_probs, temperature=temperature)
    return jnp.where(keep, jax.lax.stop_gradient(temperature) * log_probs - q_values, 0)


def soft_temperature(
    log_probs: Array, log_temperature: ScalarLike, *, target_entropy: ScalarLike, mask: Array | None = None
) -> Array:
    """−α·(log π(a|s) + H̄), α = exp(log α), per element: α falls where the entropy −log π is above H̄, and rises below.

    Args:
      log_probs: log π(a|s), any shape, in nats.
      log_temperature: log α, one number or of that shape. Gradients flow through this argument only.
      target_entropy: H̄, in nats.
      mask: the elements that count.
    Returns:
      Loss of the shape of `log_probs`; exactly 0, with exactly 0 gradient, where masked.
    Reference: Haarnoja et al. 2018, arXiv:1812.05905, eq. 18.
    """
    keep, log_probs, log_temperature = mask_inputs(mask, log_probs=log_probs, log_temperature=log_temperature)
    (target_entropy,) = coefficients(log_probs, target_entropy=target_entropy)
    excess = jax.lax.stop_gradient(log_probs + target_entropy)
    return jnp.where(keep, -jnp.exp(log_temperature) * excess, 0)
