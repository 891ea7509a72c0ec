"""Probability ratios, and weights that correct for sampling from another policy.

The logarithm of a ratio is held within ±20: exp(100) would give an infinite ratio, and a nan gradient even
where a clip is active.
"""

import jax
import jax.numpy as jnp

from jaxrl4lm.arguments import as_float, coefficients, mask_inputs
from jaxrl4lm.types import Array, ScalarLike

MAX_LOG_RATIO = 20.0


def probability_ratio(log_ratios: Array) -> Array:
    """ρ = exp(log π − log π_old), the logarithm held within ±20, beyond which there is no gradient.

    Args:
      log_ratios: log π − log π_old, any shape, in nats. Gradients flow.
    Returns:
      The same shape, in float32 or wider. The bound is what verl uses; rlax and TRL have none.
    Reference: Schulman et al. 2017, arXiv:1707.06347, sec. 3, r_t(θ).

    >>> probability_ratio(jnp.log(jnp.array([0.5, 2.0])))
    Array([0.5, 2. ], dtype=float32)
    """
    return jnp.exp(jnp.clip(as_float(log_ratios), -MAX_LOG_RATIO, MAX_LOG_RATIO))


def _mismatch(
    log_probs: Array, sampler_log_probs: Array, mask: Array | None, per_sequence: bool
) -> tuple[Array, Array]:
    """(mask, π_train/π_sampler) of each token, or of its sequence."""
    keep, log_probs, sampler_log_probs = mask_inputs(
        mask, log_probs=log_probs, sampler_log_probs=sampler_log_probs
    )
    log_ratios = jax.lax.stop_gradient(log_probs - sampler_log_probs)
    if per_sequence:
        log_ratios = jnp.broadcast_to(log_ratios.sum(-1, keepdims=True), log_ratios.shape)
    return keep, probability_ratio(log_ratios)


def truncated_importance_weights(
    log_probs: Array,
    sampler_log_probs: Array,
    *,
    cap: ScalarLike = 2.0,
    per_sequence: bool = False,
    mask: Array | None = None,
) -> Array:
    """min(π_train/π_sampler, C): weights of tokens that one engine has sampled and another one learns from.

    Args:
      log_probs: of the sampled tokens by the training engine at sampling time [..., T], in nats.
      sampler_log_probs: of the same tokens by the engine that sampled them.
      cap: C, a ratio.
      per_sequence: the ratio of whole sequences (time last), on each of their tokens, instead of one per
        token.
      mask: the tokens that count.
    Returns:
      Weights of the shape of `log_probs`, 0 where masked. Constants: no gradient flows through either
      argument.
    Reference: Ionides 2008, truncated importance sampling; Yao et al. 2025, "Your efficient RL framework
      secretly brings you off-policy RL training".

    >>> truncated_importance_weights(jnp.array([-1.0, -1.0]), jnp.array([-1.0, -4.0]))
    Array([1., 2.], dtype=float32)
    """
    keep, ratios = _mismatch(log_probs, sampler_log_probs, mask, per_sequence)
    (cap,) = coefficients(ratios, cap=cap)
    return jnp.where(keep, jnp.minimum(ratios, cap), 0)


def masked_importance_weights(
    log_probs: Array,
    sampler_log_probs: Array,
    *,
    low: ScalarLike = 0.5,
    high: ScalarLike = 2.0,
    per_sequence: bool = False,
    mask: Array | None = None,
) -> Array:
    """ρ = π_train/π_sampler where low ≤ ρ ≤ high, else 0: tokens on which the engines disagree are dropped.

    Other arguments and result as of `truncated_importance_weights`.

    Args:
      low: the smallest ratio kept.
      high: the largest.

    Reference: Ling Team 2025, arXiv:2510.18855 (IcePop); Liu et al. 2025, "When speed kills stability".
    """
    keep, ratios = _mismatch(log_probs, sampler_log_probs, mask, per_sequence)
    low, high = coefficients(ratios, low=low, high=high)
    return jnp.where(keep & (ratios >= low) & (ratios <= high), ratios, 0)


def near_policy_sequences(
    log_probs: Array,
    sampler_log_probs: Array,
    advantages: Array,
    *,
    threshold: ScalarLike = 0.5,
    mask: Array | None = None,
) -> Array:
    """1, or 0 for every token of a sequence with A < 0 whose mean divergence, mean_t (log π_sampler − log π), exceeds δ.

    A bad completion that the policy would hardly write any more teaches nothing but noise.

    Args:
      log_probs: log π_θ(a_t|s_t) [..., T], in nats; a constant here.
      sampler_log_probs: those of the policy that drew them.
      advantages: A of each token, or of each sequence [..., 1].
      threshold: δ, in nats a token.
      mask: the tokens that count.
    Returns:
      Weights of the shape of `log_probs`, 0 where masked. Constants.
    Reference: DeepSeek-AI 2025, arXiv:2512.02556, eq. 9; TRL calls δ `off_policy_mask_threshold`.
    """
    keep, log_probs, sampler, advantages = jax.lax.stop_gradient(
        mask_inputs(mask, log_probs=log_probs, sampler_log_probs=sampler_log_probs, advantages=advantages)
    )
    (threshold,) = coefficients(log_probs, threshold=threshold)
    length = jnp.maximum(keep.sum(-1, keepdims=True, dtype=log_probs.dtype), 1)
    divergence = (sampler - log_probs).sum(-1, keepdims=True) / length
    return jnp.where(keep & ((advantages >= 0) | (divergence <= threshold)), 1.0, 0.0).astype(log_probs.dtype)
