"""Losses on preferences: reward models, DPO and its family. One value per pair (KTO: per completion).

A log-prob here is that of a whole completion, the *sum* over its tokens in nats, unless an argument says
`mean`. In the formulas c is the chosen and r the rejected completion of a pair, d = log π − log π_ref of one of
them, and Δ = d_c − d_r. The reference's log-probs are constants: gradients flow through the policy's only.
`mask` marks the pairs that count: exactly 0 value and gradient elsewhere.
"""

import math
from typing import TypeAlias

import jax
import jax.numpy as jnp

from jaxrl4lm.arguments import as_float, coefficients, mask_inputs
from jaxrl4lm.types import Array, ScalarLike

log_sigmoid = jax.nn.log_sigmoid
sigmoid = jax.nn.sigmoid


def bradley_terry(
    chosen_rewards: Array,
    rejected_rewards: Array,
    *,
    margin: ScalarLike = 0.0,
    center_coef: ScalarLike = 0.0,
    mask: Array | None = None,
) -> Array:
    """Reward model: −log σ(r_c − r_r − m) + c·(r_c + r_r)².

    Args:
      chosen_rewards: r_c [B]. Gradients flow.
      rejected_rewards: r_r [B]. Gradients flow.
      margin: m, a scalar or one per pair; a constant.
      center_coef: c, which keeps the rewards near 0 (0.01 is usual).
      mask: the pairs that count.
    Returns:
      Loss of the shape of `chosen_rewards`, in nats; exactly 0, with exactly 0 gradient, where masked.
    Raises:
      ValueError: if the shapes do not fit.
    Reference: Bradley & Terry 1952; margin: Touvron et al. 2023, arXiv:2307.09288, eq. 2; centring:
      Eisenstein et al. 2023, arXiv:2312.09244, eq. 2.

    >>> bradley_terry(jnp.array([1.0]), jnp.array([1.0]))  # log 2
    Array([0.6931472], dtype=float32)
    """
    keep, chosen_rewards, rejected_rewards = mask_inputs(
        mask, chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards
    )
    margin, center_coef = coefficients(chosen_rewards, margin=margin, center_coef=center_coef)
    margin = jax.lax.stop_gradient(jnp.where(keep, margin, 0))
    loss = -log_sigmoid(chosen_rewards - rejected_rewards - margin)
    return jnp.where(keep, loss + center_coef * (chosen_rewards + rejected_rewards) ** 2, 0)


_Pairs: TypeAlias = tuple[Array, Array, Array, Array]
"""Log-probs of the chosen and the rejected, then the reference's of both: the arguments of `dpo`, in its order."""


def _log_ratios(pairs: _Pairs, mask: Array | None, **hyper: ScalarLike) -> tuple[Array, ...]:
    """(mask, d_c, d_r, *hyper-parameters), the differences 0 where masked; the reference is a constant."""
    names = ("chosen_log_probs", "rejected_log_probs", "ref_chosen_log_probs", "ref_rejected_log_probs")
    keep, chosen, rejected, *reference = mask_inputs(mask, **dict(zip(names, pairs, strict=True)))
    ref_chosen, ref_rejected = jax.lax.stop_gradient(reference)
    return keep, chosen - ref_chosen, rejected - ref_rejected, *coefficients(chosen, **hyper)


def _smoothed(logits: Array, epsilon: Array) -> Array:
    """−log σ of a label that is wrong with probability ε."""
    return -(1 - epsilon) * log_sigmoid(logits) - epsilon * log_sigmoid(-logits)


def dpo(
    chosen_log_probs: Array,
    rejected_log_probs: Array,
    ref_chosen_log_probs: Array,
    ref_rejected_log_probs: Array,
    *,
    beta: ScalarLike = 0.1,
    label_smoothing: ScalarLike = 0.0,
    mask: Array | None = None,
) -> Array:
    """DPO: −(1−ε)·log σ(βΔ) − ε·log σ(−βΔ). ε > 0 is the conservative form, cDPO.

    Args:
      chosen_log_probs: log π(y_c|x) [B]. Gradients flow.
      rejected_log_probs: log π(y_r|x) [B]. Gradients flow.
      ref_chosen_log_probs: of the reference [B].
      ref_rejected_log_probs: of the reference [B].
      beta: β.
      label_smoothing: ε, the assumed share of labels that are wrong.
      mask: the pairs that count.
    Returns:
      Loss [B]; exactly 0, with exactly 0 gradient, where masked.
    Raises:
      ValueError: if the shapes do not fit.
    Reference: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; Mitchell 2023, "A note on DPO with noisy
      preferences".

    >>> dpo(jnp.array([-2.0]), jnp.array([-3.0]), jnp.array([-2.0]), jnp.array([-3.0]))  # no change: log 2
    Array([0.6931472], dtype=float32)
    """
    pairs = (chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    keep, d_c, d_r, beta, epsilon = _log_ratios(pairs, mask, beta=beta, label_smoothing=label_smoothing)
    return jnp.where(keep, _smoothed(beta * (d_c - d_r), epsilon), 0)


def robust_dpo(
    chosen_log_probs: Array,
    rejected_log_probs: Array,
    ref_chosen_log_probs: Array,
    ref_rejected_log_probs: Array,
    *,
    beta: ScalarLike = 0.1,
    label_smoothing: ScalarLike = 0.1,
    mask: Array | None = None,
) -> Array:
    """Robust DPO: [−(1−ε)·log σ(βΔ) + ε·log σ(−βΔ)]/(1−2ε): unbiased if a share ε < ½ of labels is flipped.

    Arguments as of `dpo`.

    Reference: Chowdhury et al. 2024, arXiv:2403.00409, the rDPO loss.
    """
    pairs = (chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    keep, d_c, d_r, beta, epsilon = _log_ratios(pairs, mask, beta=beta, label_smoothing=label_smoothing)
    # The same two terms as in `dpo`, with a smoothing below 0: their weights are (1−ε)/(1−2ε) and −ε/(1−2ε).
    return jnp.where(keep, _smoothed(beta * (d_c - d_r), -epsilon / (1 - 2 * epsilon)), 0)


def ipo(
    chosen_log_probs: Array,
    rejected_log_probs: Array,
    ref_chosen_log_probs: Array,
    ref_rejected_log_probs: Array,
    *,
    beta: ScalarLike = 0.1,
    chosen_lengths: Array | None = None,
    rejected_lengths: Array | None = None,
    mask: Array | None = None,
) -> Array:
    """IPO: (Δ − 1/2β)², Δ of sums, or of means per token where the lengths are given.

    The authors confirm the means per token (TRL does so); the formula as printed has sums. Arguments as of
    `dpo`.

    Args:
      chosen_lengths: tokens of each chosen completion [B]; give both lengths or neither.
      rejected_lengths: tokens of each rejected completion [B].
    Raises:
      ValueError: if only one of the lengths is given, or the shapes do not fit.
    Reference: Azar et al. 2023, arXiv:2310.12036, eq. 17 (β is their τ).
    """
    if (chosen_lengths is None) != (rejected_lengths is None):
        raise ValueError("give both chosen_lengths and rejected_lengths (means per token) or neither (sums).")
    pairs = (chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    keep, d_c, d_r, beta = _log_ratios(pairs, mask, beta=beta)
    if chosen_lengths is not None and rejected_lengths is not None:
        lengths = {"chosen_lengths": chosen_lengths, "rejected_lengths": rejected_lengths}
        _, _, *tokens = jax.lax.stop_gradient(mask_inputs(keep, chosen=d_c, **lengths))
        d_c, d_r = d_c / jnp.maximum(tokens[0], 1), d_r / jnp.maximum(tokens[1], 1)
    return jnp.where(keep, (d_c - d_r - 1 / (2 * beta)) ** 2, 0)


def hinge(
    chosen_log_probs: Array,
    rejected_log_probs: Array,
    ref_chosen_log_probs: Array,
    ref_rejected_log_probs: Array,
    *,
    beta: ScalarLike = 0.1,
    mask: Array | None = None,
) -> Array:
    """Hinge (SLiC, RSO): max(0, 1 − βΔ). Arguments as of `dpo`.

    Reference: Zhao et al. 2023, arXiv:2305.10425; Liu et al. 2023, arXiv:2309.06657.
    """
    pairs = (chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    keep, d_c, d_r, beta = _log_ratios(pairs, mask, beta=beta)
    return jnp.where(keep, jax.nn.relu(1 - beta * (d_c - d_r)), 0)


def exo(
    chosen_log_probs: Array,
    rejected_log_probs: Array,
    ref_chosen_log_probs: Array,
    ref_rejected_log_probs: Array,
    *,
    beta: ScalarLike = 0.1,
    label_smoothing: ScalarLike = 1e-3,
    mask: Array | None = None,
) -> Array:
    """EXO: KL(σ(βΔ) ‖ 1−ε), the reverse divergence of the preference from its smoothed label, 0 < ε < 1.

    Arguments as of `dpo`.

    Reference: Ji et al. 2024, arXiv:2402.00856, eq. 16.
    """
    pairs = (chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    keep, d_c, d_r, beta, epsilon = _log_ratios(pairs, mask, beta=beta, label_smoothing=label_smoothing)
    logits = beta * (d_c - d_r)
    right = sigmoid(logits) * (log_sigmoid(logits) - jnp.log1p(-epsilon))
    wrong = sigmoid(-logits) * (log_sigmoid(-logits) - jnp.log(epsilon))
    return jnp.where(keep, right + wrong, 0)


def nca(
    chosen_log_probs: Array,
    rejected_log_probs: Array,
    ref_chosen_log_probs: Array,
    ref_rejected_log_probs: Array,
    *,
    beta: ScalarLike = 0.1,
    mask: Array | None = None,
) -> Array:
    """NCA: −log σ(βd_c) − ½·log σ(−βd_c) − ½·log σ(−βd_r): keeps the chosen likelihood from falling.

    Arguments as of `dpo`.

    Reference: Chen et al. 2024, arXiv:2402.05369, the NCA loss for pairs.
    """
    pairs = (chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    keep, d_c, d_r, beta = _log_ratios(pairs, mask, beta=beta)
    pushed_down = 0.5 * log_sigmoid(-beta * d_c) + 0.5 * log_sigmoid(-beta * d_r)
    return jnp.where(keep, -log_sigmoid(beta * d_c) - pushed_down, 0)


def sppo(
    chosen_log_probs: Array,
    rejected_log_probs: Array,
    ref_chosen_log_probs: Array,
    ref_rejected_log_probs: Array,
    *,
    beta: ScalarLike = 0.1,
    chosen_win_prob: ScalarLike = 1.0,
    mask: Array | None = None,
) -> Array:
    """SPPO: (d_c − (P_c − ½)/β)² + (d_r − (½ − P_c)/β)², P_c the probability that the chosen one wins.

    Arguments as of `dpo`.

    Args:
      chosen_win_prob: P_c, a scalar or one per pair; a constant. 1 is the hard form.

    Reference: Wu et al. 2024, arXiv:2405.00675, eq. 4.7 (β is 1/η).
    """
    pairs = (chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    keep, d_c, d_r, beta, p_c = _log_ratios(pairs, mask, beta=beta, chosen_win_prob=chosen_win_prob)
    target = (jax.lax.stop_gradient(jnp.where(keep, p_c, 0.5)) - 0.5) / beta
    return jnp.where(keep, (d_c - target) ** 2 + (d_r + target) ** 2, 0)


def apo_zero(
    chosen_log_probs: Array,
    rejected_log_probs: Array,
    ref_chosen_log_probs: Array,
    ref_rejected_log_probs: Array,
    *,
    beta: ScalarLike = 0.1,
    mask: Array | None = None,
) -> Array:
    """APO-zero: 1 − σ(βd_c) + σ(βd_r): for chosen completions better than the model's own.

    Arguments as of `dpo`.

    Reference: D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7.
    """
    pairs = (chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    keep, d_c, d_r, beta = _log_ratios(pairs, mask, beta=beta)
    return jnp.where(keep, sigmoid(-beta * d_c) + sigmoid(beta * d_r), 0)


def apo_down(
    chosen_log_probs: Array,
    rejected_log_probs: Array,
    ref_chosen_log_probs: Array,
    ref_rejected_log_probs: Array,
    *,
    beta: ScalarLike = 0.1,
    mask: Array | None = None,
) -> Array:
    """APO-down: σ(βd_c) + 1 − σ(β(d_c − d_r)): for chosen completions worse than the model's own.

    Arguments as of `dpo`.

    Reference: D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 8.
    """
    pairs = (chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    keep, d_c, d_r, beta = _log_ratios(pairs, mask, beta=beta)
    return jnp.where(keep, sigmoid(beta * d_c) + sigmoid(-beta * (d_c - d_r)), 0)


def bco_pair(
    chosen_log_probs: Array,
    rejected_log_probs: Array,
    ref_chosen_log_probs: Array,
    ref_rejected_log_probs: Array,
    *,
    beta: ScalarLike = 0.1,
    mask: Array | None = None,
) -> Array:
    """BCO on pairs: −log σ(βd_c) − log σ(−βd_r), a classifier of each completion. Arguments as of `dpo`.

    Reference: Jung et al. 2024, arXiv:2404.04656, without its reward shift.
    """
    pairs = (chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    keep, d_c, d_r, beta = _log_ratios(pairs, mask, beta=beta)
    return jnp.where(keep, -log_sigmoid(beta * d_c) - log_sigmoid(-beta * d_r), 0)


def discopop(
    chosen_log_probs: Array,
    rejected_log_probs: Array,
    ref_chosen_log_probs: Array,
    ref_rejected_log_probs: Array,
    *,
    beta: ScalarLike = 0.1,
    temperature: ScalarLike = 0.05,
    mask: Array | None = None,
) -> Array:
    """DiscoPOP: (1 − w)·(−log σ(βΔ)) + w·exp(−βΔ), w = σ(βΔ/τ). Arguments as of `dpo`.

    Args:
      temperature: τ, how fast the loss goes from the logistic to the exponential one.

    Reference: Lu et al. 2024, arXiv:2406.08414, eq. 5.
    """
    pairs = (chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    keep, d_c, d_r, beta, temperature = _log_ratios(pairs, mask, beta=beta, temperature=temperature)
    logits = beta * (d_c - d_r)
    modulation = logits / temperature
    # One exponential: of far negative logits w is 0 and exp(−βΔ) infinite.
    exponential = jnp.exp(log_sigmoid(modulation) - logits)
    return jnp.where(keep, sigmoid(-modulation) * -log_sigmoid(logits) + exponential, 0)


def aot(
    chosen_log_probs: Array,
    rejected_log_probs: Array,
    ref_chosen_log_probs: Array,
    ref_rejected_log_probs: Array,
    *,
    beta: ScalarLike = 0.1,
    label_smoothing: ScalarLike = 0.0,
    mask: Array | None = None,
) -> Array:
    """AOT: as `dpo`, but log π(y_c)/π(y_r) is compared with the reference's ratio of the same rank.

    Ranks are among the pairs of the last axis: the distribution of the ratios is moved, not each of them. Arguments as
    of `dpo`.

    Reference: Melnyk et al. 2024, arXiv:2406.05882, the paired form.
    """
    pairs = (chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    names = ("chosen_log_probs", "rejected_log_probs", "ref_chosen_log_probs", "ref_rejected_log_probs")
    keep, chosen, rejected, *reference = mask_inputs(mask, **dict(zip(names, pairs, strict=True)))
    ref_chosen, ref_rejected = jax.lax.stop_gradient(reference)
    beta, epsilon = coefficients(chosen, beta=beta, label_smoothing=label_smoothing)
    ratio = chosen - rejected
    moved = ratio - _match_ranks(ratio, ref_chosen - ref_rejected, keep)
    return jnp.where(keep, _smoothed(beta * moved, epsilon), 0)


def aot_unpaired(
    chosen_log_probs: Array,
    rejected_log_probs: Array,
    ref_chosen_log_probs: Array,
    ref_rejected_log_probs: Array,
    *,
    beta: ScalarLike = 0.1,
    label_smoothing: ScalarLike = 0.0,
    mask: Array | None = None,
) -> Array:
    """AOT, unpaired: as `dpo`, but each d_c is compared with the d_r of the same rank among the last axis.

    Arguments as of `dpo`.

    Reference: Melnyk et al. 2024, arXiv:2406.05882, the unpaired form.
    """
    pairs = (chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    keep, d_c, d_r, beta, epsilon = _log_ratios(pairs, mask, beta=beta, label_smoothing=label_smoothing)
    return jnp.where(keep, _smoothed(beta * (d_c - _match_ranks(d_c, d_r, keep)), epsilon), 0)


def _match_ranks(values: Array, others: Array, keep: Array) -> Array:
    """For each of `values` that of `others` which has its rank, among the kept of the last axis; 0 elsewhere."""
    order = jnp.argsort(jnp.where(keep, values, jnp.inf), axis=-1)
    ranks = jnp.argsort(order, axis=-1)
    ascending = jnp.sort(jnp.where(keep, others, jnp.inf), axis=-1)
    return jnp.where(keep, jnp.take_along_axis(ascending, ranks, axis=-1), 0)


def cpo(
    chosen_log_probs: Array,
    rejected_log_probs: Array,
    *,
    beta: ScalarLike = 0.1,
    nll_coef: ScalarLike = 1.0,
    label_smoothing: ScalarLike = 0.0,
    chosen_lengths: ScalarLike = 1.0,
    mask: Array | None = None,
) -> Array:
    """CPO, without a reference: −log σ(β(log π_c − log π_r)) − α·log π_c.

    Other arguments and result as of `dpo`.

    Args:
      nll_coef: α.
      chosen_lengths: what the likelihood term is divided by [B]: 1 as in the paper, or the tokens of each
        chosen completion.

    Reference: Xu et al. 2024, arXiv:2401.08417, eq. 3.
    """
    keep, chosen, rejected, lengths = mask_inputs(
        mask,
        chosen_log_probs=chosen_log_probs,
        rejected_log_probs=rejected_log_probs,
        chosen_lengths=chosen_lengths,
    )
    beta, nll_coef, label_smoothing = coefficients(
        chosen, beta=beta, nll_coef=nll_coef, label_smoothing=label_smoothing
    )
    likelihood = chosen / jax.lax.stop_gradient(jnp.maximum(lengths, 1))
    return jnp.where(keep, _smoothed(beta * (chosen - rejected), label_smoothing) - nll_coef * likelihood, 0)


def simpo(
    chosen_mean_log_probs: Array,
    rejected_mean_log_probs: Array,
    *,
    beta: ScalarLike = 2.0,
    gamma: ScalarLike = 0.5,
    mask: Array | None = None,
) -> Array:
    """SimPO, without a reference: −log σ(β(l_c − l_r) − γ), l the mean log-prob per token.

    Args:
      chosen_mean_log_probs: l_c [B]. Gradients flow.
      rejected_mean_log_probs: l_r [B]. Gradients flow.
      beta: β.
      gamma: γ, the margin itself (some code takes the ratio γ/β).
      mask: the pairs that count.
    Returns:
      Loss [B]; exactly 0, with exactly 0 gradient, where masked.
    Reference: Meng et al. 2024, arXiv:2405.14734, eq. 6.
    """
    keep, chosen, rejected = mask_inputs(
        mask, chosen_mean_log_probs=chosen_mean_log_probs, rejected_mean_log_probs=rejected_mean_log_probs
    )
    beta, gamma = coefficients(chosen, beta=beta, gamma=gamma)
    return jnp.where(keep, -log_sigmoid(beta * (chosen - rejected) - gamma), 0)


def orpo(
    chosen_mean_log_probs: Array,
    rejected_mean_log_probs: Array,
    *,
    odds_coef: ScalarLike = 0.1,
    mask: Array | None = None,
) -> Array:
    """ORPO, without a reference: −l_c − λ·log σ(log odds(l_c) − log odds(l_r)), odds(l) = eˡ/(1 − eˡ).

    Other arguments and result as of `simpo`.

    Args:
      odds_coef: λ.

    Reference: Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7.
    """
    keep, chosen, rejected = mask_inputs(
        mask, chosen_mean_log_probs=chosen_mean_log_probs, rejected_mean_log_probs=rejected_mean_log_probs
    )
    (odds_coef,) = coefficients(chosen, odds_coef=odds_coef)
    log_odds_ratio = (chosen - log1mexp(chosen)) - (rejected - log1mexp(rejected))
    return jnp.where(keep, -chosen - odds_coef * log_sigmoid(log_odds_ratio), 0)


def log1mexp(x: Array) -> Array:
    """log(1 − eˣ) for x ≤ 0, accurate near 0 and far from it.

    Above −ε, ε the machine precision of the type, x is taken to be −ε: the result stays finite.

    Args:
      x: any shape. Gradients flow.
    Returns:
      The same shape, in float32 or wider.
    Reference: Mächler 2012, "Accurately computing log(1 − exp(−|a|))".
    """
    x = as_float(x)
    x = jnp.minimum(x, -jnp.finfo(x.dtype).eps)
    near_zero = x > -math.log(2)
    # Each branch sees only arguments at which its derivative is finite.
    near = jnp.log(-jnp.expm1(jnp.where(near_zero, x, -1.0)))
    far = jnp.log1p(-jnp.exp(jnp.where(near_zero, -1.0, x)))
    return jnp.where(near_zero, near, far)
