"""Preference losses without pairs: KTO, APO and BCO. One value per completion.

A log-prob is that of a whole completion, the sum over its tokens in nats. In the formulas d = log π − log π_ref.
"""

import jax
import jax.numpy as jnp

from jaxrl4lm.arguments import coefficients, mask_inputs
from jaxrl4lm.reduce import masked_mean
from jaxrl4lm.types import Array, ScalarLike


def kto_reference_kl(
    mismatched_log_probs: Array, ref_mismatched_log_probs: Array, *, mask: Array | None = None
) -> Array:
    """KTO's reference point z = max(0, mean d) over completions paired with the wrong prompt; a constant.

    Args:
      mismatched_log_probs: log π(y′|x) [B], y′ the completion of another prompt of the batch.
      ref_mismatched_log_probs: of the reference [B].
      mask: the pairs that count.
    Returns:
      A scalar, in nats; a constant.
    Reference: Ethayarajh et al. 2024, arXiv:2402.01306, sec. 4.1, z₀.
    """
    keep, policy, reference = mask_inputs(
        mask, mismatched_log_probs=mismatched_log_probs, ref_mismatched_log_probs=ref_mismatched_log_probs
    )
    return jax.lax.stop_gradient(jnp.maximum(masked_mean(policy - reference, keep), 0))


def kto(
    log_probs: Array,
    ref_log_probs: Array,
    desirable: Array,
    reference_kl: ScalarLike,
    *,
    beta: ScalarLike = 0.1,
    desirable_weight: ScalarLike = 1.0,
    undesirable_weight: ScalarLike = 1.0,
    mask: Array | None = None,
) -> Array:
    """KTO, unpaired: λ_D·(1 − σ(β(d − z))) where desirable, λ_U·(1 − σ(β(z − d))) elsewhere.

    Args:
      log_probs: log π(y|x) of each completion [B]. Gradients flow through this argument only.
      ref_log_probs: of the reference [B].
      desirable: booleans [B].
      reference_kl: z, from `kto_reference_kl`; a constant.
      beta: β.
      desirable_weight: λ_D.
      undesirable_weight: λ_U.
      mask: the completions that count.
    Returns:
      Loss [B]; exactly 0, with exactly 0 gradient, where masked.
    Reference: Ethayarajh et al. 2024, arXiv:2402.01306, sec. 4.1, L_KTO.
    """
    keep, log_probs, ref_log_probs, desirable, z = mask_inputs(
        mask, log_probs=log_probs, ref_log_probs=ref_log_probs, desirable=desirable, reference_kl=reference_kl
    )
    ref_log_probs, z = jax.lax.stop_gradient((ref_log_probs, z))
    beta, desirable_weight, undesirable_weight = coefficients(
        log_probs, beta=beta, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight
    )
    margin = beta * (log_probs - ref_log_probs - z)
    good, bad = desirable_weight * jax.nn.sigmoid(-margin), undesirable_weight * jax.nn.sigmoid(margin)
    return jnp.where(keep, jnp.where(desirable > 0, good, bad), 0)


def apo_zero_unpaired(
    log_probs: Array,
    ref_log_probs: Array,
    desirable: Array,
    *,
    beta: ScalarLike = 0.1,
    desirable_weight: ScalarLike = 1.0,
    undesirable_weight: ScalarLike = 1.0,
    mask: Array | None = None,
) -> Array:
    """APO-zero, unpaired: λ_D·(1 − σ(βd)) where desirable, λ_U·σ(βd) elsewhere: `kto` with z = 0.

    Arguments and result as of `kto`; gradients flow through `log_probs` only.

    Reference: D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7, its two terms by themselves.
    """
    weights = {"desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
    return kto(log_probs, ref_log_probs, desirable, 0.0, beta=beta, **weights, mask=mask)


def bco(
    log_probs: Array,
    ref_log_probs: Array,
    desirable: Array,
    reward_shift: ScalarLike,
    *,
    beta: ScalarLike = 0.1,
    desirable_weight: ScalarLike = 1.0,
    undesirable_weight: ScalarLike = 1.0,
    mask: Array | None = None,
) -> Array:
    """BCO, unpaired: −λ_D·log σ(βd − δ) where desirable, −λ_U·log σ(δ − βd) elsewhere.

    Other arguments and result as of `kto`.

    Args:
      reward_shift: δ, between the mean rewards βd of the desirable and of the others; a constant.

    Reference: Jung et al. 2024, arXiv:2404.04656, eq. 8.
    """
    keep, log_probs, ref_log_probs, desirable, shift = mask_inputs(
        mask, log_probs=log_probs, ref_log_probs=ref_log_probs, desirable=desirable, reward_shift=reward_shift
    )
    ref_log_probs, shift = jax.lax.stop_gradient((ref_log_probs, shift))
    beta, desirable_weight, undesirable_weight = coefficients(
        log_probs, beta=beta, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight
    )
    margin = beta * (log_probs - ref_log_probs) - shift
    good = -desirable_weight * jax.nn.log_sigmoid(margin)
    bad = -undesirable_weight * jax.nn.log_sigmoid(-margin)
    return jnp.where(keep, jnp.where(desirable > 0, good, bad), 0)
