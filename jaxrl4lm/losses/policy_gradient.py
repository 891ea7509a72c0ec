"""Policy-gradient losses per element. Gradients flow through `log_probs` (and `entropies`, `values`) only."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.arguments import as_float, as_mask, coefficients, mask_inputs
from jaxrl4lm.distributions import categorical_entropy
from jaxrl4lm.losses.importance import probability_ratio
from jaxrl4lm.losses.value import squared_value
from jaxrl4lm.types import Array, ScalarLike


def reinforce(log_probs: Array, returns: Array, *, mask: Array | None = None) -> Array:
    """REINFORCE: −log π(a_t|s_t) · G_t, per element.

    Args:
      log_probs: log π_θ(a_t|s_t), any shape, in nats. Gradients flow through this argument only.
      returns: G, returns or advantages, of the same shape, or with axes of 1 (one value per sequence is
        [B, 1]).
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


def entropy(logits: Array, *, mask: Array | None = None) -> Array:
    """Exact entropy of each row of logits, H = logsumexp(z) − Σ softmax(z)·z: [..., A] → [...], in nats.

    Subtract it from a loss, times a coefficient, to keep a policy exploring. The mean of −log π over sampled
    actions estimates its value, but the gradient of that mean is not the gradient of the entropy.

    Args:
      logits: [..., A]. Gradients flow through this argument.
      mask: the rows that count [...].
    Returns:
      [...]; exactly 0, with exactly 0 gradient, where masked.
    Reference: Shannon 1948; as a bonus, Williams & Peng 1991.
    """
    keep = as_mask(mask, np.shape(logits)[:-1])
    logits = jnp.where(keep[..., None], as_float(logits), 0)
    return jnp.where(keep, categorical_entropy(logits), 0)


def a2c(
    log_probs: Array,
    advantages: Array,
    values: Array,
    returns: Array,
    entropies: Array,
    *,
    value_coef: ScalarLike = 0.5,
    entropy_coef: ScalarLike = 0.01,
    mask: Array | None = None,
) -> Array:
    """Advantage actor-critic: −log π·A + c_v·½(V − R)² − c_H·H, per element.

    Args:
      log_probs: log π_θ(a_t|s_t), any shape, in nats. Gradients flow.
      advantages: A, a constant.
      values: V_θ(s_t). Gradients flow.
      returns: R, the targets of the values; constants.
      entropies: exact entropies of π_θ(·|s_t) (`entropy`). Gradients flow.
      value_coef: c_v.
      entropy_coef: c_H.
      mask: the elements that count.
    Returns:
      Loss of the shape of `log_probs`; exactly 0, with exactly 0 gradient, where masked.
    Raises:
      ValueError: if an argument does not broadcast to the shape of `log_probs`.
    Reference: Mnih et al. 2016, arXiv:1602.01783, sec. 4 and alg. S3.
    """
    keep, log_probs, advantages, values, returns, entropies = mask_inputs(
        mask,
        log_probs=log_probs,
        advantages=advantages,
        values=values,
        returns=returns,
        entropies=entropies,
    )
    value_coef, entropy_coef = coefficients(log_probs, value_coef=value_coef, entropy_coef=entropy_coef)
    actor, critic = reinforce(log_probs, advantages), squared_value(values, returns)
    return jnp.where(keep, actor + value_coef * critic - entropy_coef * entropies, 0)


def cispo(
    log_probs: Array,
    old_log_probs: Array,
    advantages: Array,
    *,
    clip_eps_high: ScalarLike = 4.0,
    clip_eps: ScalarLike = 1.0,
    mask: Array | None = None,
) -> Array:
    """CISPO: −sg(clip(ρ, 1−ε, 1+ε_high))·A·log π: clips the weight of a token, never its gradient.

    sg is `stop_gradient`. Both bounds are relative to 1. (TRL's `epsilon_high` is the cap itself: its 5.0 is
    `clip_eps_high=4.0` here.)

    Args:
      log_probs: log π_θ(a_t|s_t), any shape, in nats. Gradients flow through this argument only.
      old_log_probs: those of the behaviour policy.
      advantages: A.
      clip_eps_high: ε_high.
      clip_eps: ε; 1 sets no lower bound, as the paper does.
      mask: the elements that count.
    Returns:
      Loss of the shape of `log_probs`; exactly 0, with exactly 0 gradient, where masked.
    Reference: MiniMax 2025, arXiv:2506.13585, eq. 4 and 5.
    """
    keep, log_probs, old_log_probs, advantages = mask_inputs(
        mask, log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages
    )
    ratios = probability_ratio(log_probs - old_log_probs)
    low, high = coefficients(log_probs, clip_eps=clip_eps, clip_eps_high=clip_eps_high)
    weights = jnp.clip(ratios, 1 - low, 1 + high) * advantages
    return jnp.where(keep, -jax.lax.stop_gradient(weights) * log_probs, 0)


def gpg(
    log_probs: Array, advantages: Array, *, informative_fraction: ScalarLike = 1.0, mask: Array | None = None
) -> Array:
    """GPG: −log π·A / f, f the share of groups that carry information: neither ratio, clip nor KL.

    Args:
      log_probs: log π_θ(a_t|s_t), any shape, in nats. Gradients flow through this argument only.
      advantages: group-centred rewards (`advantages.centered`).
      informative_fraction: f = (N − M)/N of N groups of which M have equal rewards
        (`advantages.informative_fraction`). If it is 0 the advantages are 0, and so is the loss.
      mask: the elements that count.
    Returns:
      Loss of the shape of `log_probs`; exactly 0, with exactly 0 gradient, where masked.
    Reference: Chu et al. 2025, arXiv:2504.02546 (with F_norm = 1).
    """
    keep, log_probs, advantages = mask_inputs(mask, log_probs=log_probs, advantages=advantages)
    (fraction,) = coefficients(log_probs, informative_fraction=jax.lax.stop_gradient(informative_fraction))
    return reinforce(log_probs, advantages, mask=keep) / jnp.where(fraction > 0, fraction, 1)
