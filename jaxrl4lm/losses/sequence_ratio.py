"""Policy losses whose ratio belongs to the whole sequence: GSPO, GSPO-token, GMPO, VESPO. Time is the last axis.

Every token carries the loss of its sequence, so that the shape is that of the log-probs and
`reduce.sequence_mean` is the mean over sequences. Gradients flow through `log_probs` only. sg is `stop_gradient`.
"""

import jax
import jax.numpy as jnp

from jaxrl4lm.arguments import as_log_ratios, coefficients, mask_inputs
from jaxrl4lm.losses.importance import MAX_LOG_RATIO, probability_ratio
from jaxrl4lm.losses.ppo import clip_range, clipped_surrogate
from jaxrl4lm.reduce import masked_mean
from jaxrl4lm.types import Array, ScalarLike


def _sequence_mean(values: Array, keep: Array) -> Array:
    return jnp.broadcast_to(masked_mean(values, keep, axis=-1)[..., None], values.shape)


def gspo(
    log_probs: Array,
    old_log_probs: Array,
    advantages: Array,
    *,
    clip_eps: ScalarLike = 3e-4,
    clip_eps_high: ScalarLike | None = 4e-4,
    mask: Array | None = None,
) -> Array:
    """GSPO: −min(sA, clip(s, 1−ε, 1+ε_high)·A), s = exp(mean_t log ρ_t), one ratio a sequence.

    Args:
      log_probs: log π_θ(a_t|s_t) [..., T], in nats. Gradients flow through this argument only.
      old_log_probs: those of the behaviour policy.
      advantages: A of each sequence [..., 1].
      clip_eps: ε.
      clip_eps_high: ε_high; ε if None.
      mask: the tokens that count.
    Returns:
      Loss of the shape of `log_probs`, equal on all tokens of a sequence; exactly 0, with exactly 0 gradient,
      where masked.
    Reference: Zheng et al. 2025, arXiv:2507.18071, eq. 5 and 7.
    """
    keep, log_ratios, advantages = as_log_ratios(log_probs, old_log_probs, advantages, mask)
    ratios = probability_ratio(_sequence_mean(log_ratios, keep))
    return jnp.where(keep, clipped_surrogate(ratios, advantages, clip_eps, clip_eps_high), 0)


def gspo_token(
    log_probs: Array,
    old_log_probs: Array,
    advantages: Array,
    *,
    clip_eps: ScalarLike = 3e-4,
    clip_eps_high: ScalarLike | None = 4e-4,
    mask: Array | None = None,
) -> Array:
    """GSPO-token: sg(s)·π/sg(π) in place of the ratio s of `gspo`, so that advantages may differ by token.

    With one advantage a sequence, value and gradient of its `reduce.sequence_mean` are those of `gspo`.
    Arguments as of `gspo`, with `advantages` of any shape that broadcasts. (verl's `gspo` is this one.)

    Reference: Zheng et al. 2025, arXiv:2507.18071, sec. 4.3, eq. 13.
    """
    keep, log_ratios, advantages = as_log_ratios(log_probs, old_log_probs, advantages, mask)
    mean = jax.lax.stop_gradient(_sequence_mean(log_ratios, keep))
    ratios = probability_ratio(mean + (log_ratios - jax.lax.stop_gradient(log_ratios)))
    return jnp.where(keep, clipped_surrogate(ratios, advantages, clip_eps, clip_eps_high), 0)


def gmpo(
    log_probs: Array,
    old_log_probs: Array,
    advantages: Array,
    *,
    clip_eps: ScalarLike = 0.4,
    clip_eps_high: ScalarLike | None = None,
    mask: Array | None = None,
) -> Array:
    """GMPO: −A·exp(mean_t log ρ̃_t), log ρ̃ = min(log ρ, ε_high) where A ≥ 0, max(log ρ, −ε) where A < 0.

    The geometric mean of ratios, each clipped only on the side on which its token would gain.

    Args:
      log_probs: log π_θ(a_t|s_t) [..., T], in nats. Gradients flow through this argument only.
      old_log_probs: those of the behaviour policy.
      advantages: A of each sequence [..., 1].
      clip_eps: ε, of the logarithm of the ratio.
      clip_eps_high: ε_high; ε if None.
      mask: the tokens that count.
    Returns:
      Loss of the shape of `log_probs`, equal on all tokens of a sequence; exactly 0, with exactly 0 gradient,
      where masked.
    Reference: Zhao et al. 2025, arXiv:2507.20673, the GMPO objective with its clip per token.
    """
    keep, log_ratios, advantages = as_log_ratios(log_probs, old_log_probs, advantages, mask)
    low, high = clip_range(log_ratios, clip_eps, clip_eps_high)
    clipped = jnp.where(advantages < 0, jnp.maximum(log_ratios, -low), jnp.minimum(log_ratios, high))
    return jnp.where(keep, -advantages * probability_ratio(_sequence_mean(clipped, keep)), 0)


def sequence_log_probs(log_probs: Array, old_log_probs: Array, *, mask: Array | None = None) -> Array:
    """log π_old + mean_t log ρ_t: under any surrogate of a token's ratio, that ratio is then GSPO's of the sequence.

    `ppo_clip` of these is `gspo`. With one advantage a sequence, `cispo` of these is CISPO with the weight of the sequence,
    in value and gradient of every average within a sequence.

    Args:
      log_probs: log π_θ(a_t|s_t) [..., T], in nats. Gradients flow through this argument only.
      old_log_probs: those of the behaviour policy.
      mask: the tokens that count.
    Returns:
      The shape of `log_probs`; exactly 0, with exactly 0 gradient, where masked.
    Reference: Zheng et al. 2025, arXiv:2507.18071, eq. 7; TRL calls it `importance_sampling_level="sequence"`.
    """
    keep, log_probs, old_log_probs = mask_inputs(mask, log_probs=log_probs, old_log_probs=old_log_probs)
    old_log_probs = jax.lax.stop_gradient(old_log_probs)
    mean = _sequence_mean(log_probs - old_log_probs, keep)
    return jnp.where(keep, old_log_probs + mean, 0)


_LEAST_LOG_WEIGHT = -18.420680743952367
"""log 1e-8, below which VESPO holds the logarithm of a sequence's ratio."""


def vespo(
    log_probs: Array,
    old_log_probs: Array,
    advantages: Array,
    *,
    power: ScalarLike = 2.0,
    decay: ScalarLike = 3.0,
    negative_power: ScalarLike = 3.0,
    negative_decay: ScalarLike = 2.0,
    mask: Array | None = None,
) -> Array:
    """VESPO: −sg(φ(w))·A·log π, φ(w) = e^λ·w^k·e^{−λw}, w = Π_t ρ_t: a soft gate of the whole sequence, φ(1) = 1.

    Args:
      log_probs: log π_θ(a_t|s_t) [..., T], in nats. Gradients flow through this argument only.
      old_log_probs: those of the behaviour policy.
      advantages: A of each sequence [..., 1].
      power: k where A ≥ 0.
      decay: λ where A ≥ 0.
      negative_power: k elsewhere.
      negative_decay: λ elsewhere.
      mask: the tokens that count.
    Returns:
      Loss of the shape of `log_probs`; exactly 0, with exactly 0 gradient, where masked.
    Reference: Shen et al. 2026, arXiv:2602.10693; log w is held within log 1e-8 and 20, as in the authors' code.
    """
    keep, log_ratios, advantages = as_log_ratios(log_probs, old_log_probs, advantages, mask)
    k, lam, k_negative, lam_negative = coefficients(
        log_ratios,
        power=power,
        decay=decay,
        negative_power=negative_power,
        negative_decay=negative_decay,
    )
    bounded = jnp.clip(jax.lax.stop_gradient(log_ratios), -MAX_LOG_RATIO, MAX_LOG_RATIO)
    log_weight = jnp.clip(bounded.sum(-1, keepdims=True), _LEAST_LOG_WEIGHT, MAX_LOG_RATIO)
    k, lam = jnp.where(advantages >= 0, k, k_negative), jnp.where(advantages >= 0, lam, lam_negative)
    gate = jnp.exp(lam + k * log_weight - lam * jnp.exp(log_weight))
    _, log_probs = mask_inputs(keep, log_probs=log_probs)
    return jnp.where(keep, -gate * advantages * log_probs, 0)
