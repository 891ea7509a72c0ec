"""Proximal policy optimisation and its relatives: surrogates of the ratio ρ = exp(log π − log π_old).

The policy that sampled the actions is π_old. Gradients flow through `log_probs` only. The logarithm of a
ratio is held within ±20 (`losses.importance`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl4lm.arguments import as_log_ratios, coefficients, mask_inputs
from jaxrl4lm.losses.importance import MAX_LOG_RATIO, probability_ratio
from jaxrl4lm.types import Array, ScalarLike


def clip_range(like: Array, clip_eps: ScalarLike, clip_eps_high: ScalarLike | None) -> tuple[Array, Array]:
    """(ε, ε_high) for a loss of the shape and dtype of `like`; ε_high is ε if None.

    Args:
      like: an array of the loss.
      clip_eps: ε, a number or an array that broadcasts to `like`.
      clip_eps_high: ε_high, likewise.
    Returns:
      Both, in the dtype of `like`. Gradients flow.
    Raises:
      ValueError: if one does not broadcast to the shape of `like`.
    Reference: Schulman et al. 2017, arXiv:1707.06347, eq. 7; asymmetric: Yu et al. 2025, arXiv:2503.14476,
      eq. 10.
    """
    like = jnp.asarray(like)
    if clip_eps_high is None:
        (clip_eps,) = coefficients(like, clip_eps=clip_eps)
        return clip_eps, clip_eps
    low, high = coefficients(like, clip_eps=clip_eps, clip_eps_high=clip_eps_high)
    return low, high


def clipped_surrogate(
    ratios: Array, advantages: Array, clip_eps: ScalarLike, clip_eps_high: ScalarLike | None
) -> Array:
    """max(−ρA, −clip(ρ, 1−ε, 1+ε_high)·A): what `ppo_clip` and `gspo` do with their ratios.

    Args:
      ratios: ρ, any shape. Gradients flow through every argument.
      advantages: A, of the same shape, or with axes of 1.
      clip_eps: ε.
      clip_eps_high: ε_high; ε if None.
    Returns:
      The shape of `ratios`; nothing is masked.
    Raises:
      ValueError: if an argument does not broadcast to the shape of `ratios`.
    Reference: Schulman et al. 2017, arXiv:1707.06347, eq. 7.
    """
    _, ratios, advantages = mask_inputs(None, ratios=ratios, advantages=advantages)
    low, high = clip_range(ratios, clip_eps, clip_eps_high)
    clipped = jnp.clip(ratios, 1 - low, 1 + high)
    return jnp.maximum(-ratios * advantages, -clipped * advantages)


def ppo_clip(
    log_probs: Array,
    old_log_probs: Array,
    advantages: Array,
    *,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
    dual_clip: ScalarLike | None = None,
    mask: Array | None = None,
) -> Array:
    """Clipped surrogate, per element: −min(ρA, clip(ρ, 1−ε, 1+ε_high)·A), ρ = exp(log π − log π_old).

    Unreduced: average with `reduce.token_mean` or a sibling.

    Args:
      log_probs: log π_θ(a_t|s_t), any shape, in nats. Gradients flow through this argument only.
      old_log_probs: those of the behaviour policy, captured while sampling.
      advantages: A, of the same shape, or with axes of 1 (one value per sequence is [B, 1]).
      clip_eps: ε, how far the ratio may fall.
      clip_eps_high: how far it may rise; ε if None (DAPO: 0.28).
      dual_clip: c > 1 bounds the loss of negative advantages by −c·A, however large the ratio.
      mask: the elements that count.
    Returns:
      Loss of the shape of `log_probs`; exactly 0, with exactly 0 gradient, where masked.
    Raises:
      ValueError: if an argument does not broadcast to the shape of `log_probs`.
    Reference: Schulman et al. 2017, arXiv:1707.06347, eq. 7; asymmetric: Yu et al. 2025, arXiv:2503.14476,
      eq. 10; dual: Ye et al. 2020, arXiv:1912.09729, dual-clip PPO.

    >>> ppo_clip(jnp.array([-1.0, -0.5]), jnp.array([-1.0, -1.0]), jnp.array([2.0, 1.0]))
    Array([-2. , -1.2], dtype=float32)
    """
    keep, log_ratios, advantages = as_log_ratios(log_probs, old_log_probs, advantages, mask)
    ratios = probability_ratio(log_ratios)
    loss = clipped_surrogate(ratios, advantages, clip_eps, clip_eps_high)
    if dual_clip is not None:
        (dual_clip,) = coefficients(loss, dual_clip=dual_clip)
        loss = jnp.where(advantages < 0, jnp.minimum(loss, -dual_clip * advantages), loss)
    return jnp.where(keep, loss, 0)


def ppo_kl_penalty(
    log_probs: Array,
    old_log_probs: Array,
    advantages: Array,
    *,
    beta: ScalarLike,
    kl: Array | None = None,
    mask: Array | None = None,
) -> Array:
    """Penalised surrogate, per element: −ρA + β·KL(π_old‖π). `kl.doubling_controller` adapts β.

    Args:
      log_probs: log π_θ(a_t|s_t), any shape, in nats. Gradients flow through this argument (and `kl`) only.
      old_log_probs: those of the behaviour policy.
      advantages: A.
      beta: β.
      kl: KL(π_old‖π_θ) of each state, exact (`distributions.categorical_kl(old_logits, logits)`). None
        estimates it from the sampled action by (ρ − 1) − log ρ, which is unbiased in value and in gradient,
        since the actions are samples of π_old.
      mask: the elements that count.
    Returns:
      Loss of the shape of `log_probs`; exactly 0, with exactly 0 gradient, where masked.
    Reference: Schulman et al. 2017, arXiv:1707.06347, eq. 8.
    """
    keep, log_ratios, advantages = as_log_ratios(log_probs, old_log_probs, advantages, mask)
    (beta,) = coefficients(log_ratios, beta=beta)
    if kl is None:
        bounded = jnp.clip(log_ratios, -MAX_LOG_RATIO, MAX_LOG_RATIO)
        divergence = jnp.expm1(bounded) - log_ratios
    else:
        divergence = mask_inputs(keep, log_probs=log_ratios, kl=kl)[2]
    surrogate = -probability_ratio(log_ratios) * advantages
    return jnp.where(keep, surrogate + beta * divergence, 0)


def sapo(
    log_probs: Array,
    old_log_probs: Array,
    advantages: Array,
    *,
    temperature: ScalarLike = 1.0,
    negative_temperature: ScalarLike = 1.05,
    mask: Array | None = None,
) -> Array:
    """SAPO: −A·(4/τ)·σ(τ(ρ − 1)): a soft gate in place of the clip, of slope 1 at ρ = 1.

    Args:
      log_probs: log π_θ(a_t|s_t), any shape, in nats. Gradients flow through this argument only.
      old_log_probs: those of the behaviour policy.
      advantages: A.
      temperature: τ where A > 0.
      negative_temperature: τ elsewhere.
      mask: the elements that count.
    Returns:
      Loss of the shape of `log_probs`; exactly 0, with exactly 0 gradient, where masked.
    Reference: Gao et al. 2025, arXiv:2511.20347, eq. 5 and 6.
    """
    keep, log_ratios, advantages = as_log_ratios(log_probs, old_log_probs, advantages, mask)
    ratios = probability_ratio(log_ratios)
    above, below = coefficients(ratios, temperature=temperature, negative_temperature=negative_temperature)
    tau = jnp.where(advantages > 0, above, below)
    return jnp.where(keep, -advantages * (4 / tau) * jax.nn.sigmoid(tau * (ratios - 1)), 0)


def binary_tv(log_probs: Array, old_log_probs: Array) -> Array:
    """The total variation of "this token or another": |π(a) − π_old(a)|.

    Args:
      log_probs: log π_θ(a_t|s_t), any shape, in nats, at most 0.
      old_log_probs: those of the behaviour policy, of the same shape.
    Returns:
      The same shape, in 0..1; a constant.
    Reference: Qi et al. 2026, arXiv:2602.04879, the binary approximation.
    """
    return jnp.abs(jnp.exp(log_probs) - jnp.exp(old_log_probs))


def binary_kl(log_probs: Array, old_log_probs: Array) -> Array:
    """KL(π_old‖π) of "this token or another".

    Args:
      log_probs: log π_θ(a_t|s_t), any shape, in nats, at most 0.
      old_log_probs: those of the behaviour policy, of the same shape.
    Returns:
      The same shape, in nats; a constant.
    Reference: Qi et al. 2026, arXiv:2602.04879, the binary approximation.
    """
    least = jnp.finfo(jnp.result_type(log_probs)).tiny
    rest, old_rest = (jnp.maximum(-jnp.expm1(x), least) for x in (log_probs, old_log_probs))
    return jnp.exp(old_log_probs) * (old_log_probs - log_probs) + old_rest * jnp.log(old_rest / rest)


def dppo(
    log_probs: Array,
    old_log_probs: Array,
    advantages: Array,
    *,
    threshold: ScalarLike = 0.2,
    divergence: Callable[[Array, Array], Array] = binary_tv,
    mask: Array | None = None,
) -> Array:
    """DPPO: −ρA, and no gradient where the probability has moved by more than δ in the direction that A asks for.

    The ratio of a rare token moves far while its probability hardly does; that of a likely one is never clipped though much
    mass moves. Here the divergence decides.

    Args:
      log_probs: log π_θ(a_t|s_t), any shape, in nats. Gradients flow through this argument only.
      old_log_probs: those of the behaviour policy.
      advantages: A.
      threshold: δ.
      divergence: how far a token moved, from both log-probabilities: `binary_tv`, or `binary_kl`, of which .05 is usual.
      mask: the tokens that count.
    Returns:
      Loss of the shape of `log_probs`; exactly 0, with exactly 0 gradient, where masked, and where the token moved too far.
    Reference: Qi et al. 2026, arXiv:2602.04879, "Rethinking the trust region in LLM reinforcement learning".
    """
    keep, log_ratios, advantages = as_log_ratios(log_probs, old_log_probs, advantages, mask)
    _, log_probs, old_log_probs = mask_inputs(keep, log_probs=log_probs, old_log_probs=old_log_probs)
    (threshold,) = coefficients(log_ratios, threshold=threshold)
    moved = divergence(*jax.lax.stop_gradient((log_probs, old_log_probs)))
    away = jnp.where(advantages > 0, log_ratios > 0, (log_ratios < 0) & (advantages < 0))
    kept = keep & ~(away & (moved > threshold))
    return jnp.where(kept, -probability_ratio(jnp.where(kept, log_ratios, 0)) * advantages, 0)
