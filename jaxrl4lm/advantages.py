"""Advantages of whole completions: how much better each was than the others of its prompt.

Rewards come as [groups, n], n completions of the same prompt in a row (leading axes are free; the group is
the last axis). Results have the same shape, are constants to every loss, and are float32 or wider.
A `mask` of the same shape says which completions count: others, as those that no reward applies to, are left out of means and
deviations and get exactly 0. Estimators per token are in `returns`; masked whitening is `reduce.whiten`.
"""

from math import comb

import jax.numpy as jnp
import numpy as np

from jaxrl4lm.arguments import as_float, coefficients, last_token, mask_inputs
from jaxrl4lm.reduce import differ, masked_mean, masked_variance, whiten
from jaxrl4lm.returns import discounted_returns
from jaxrl4lm.types import Array, ScalarLike

__all__ = [
    "batch_normalized",
    "centered",
    "group_normalized",
    "informative_fraction",
    "leave_one_out",
    "mean_normalized",
    "normalize_then_sum",
    "opo",
    "overlong_penalty",
    "pass_at_k",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "remax",
]


def _check_group(rewards: Array, least: int = 2) -> Array:
    rewards = as_float(rewards)
    if rewards.ndim == 0 or rewards.shape[-1] < least:
        raise ValueError(
            f"rewards has shape {rewards.shape}: the last axis is the group; it needs {least} or more "
            "completions."
        )
    return rewards


def _keep(rewards: Array, mask: Array | None) -> tuple[Array, Array]:
    """(which count, the rewards with 0 in place of others)."""
    keep, kept = mask_inputs(mask, rewards=_check_group(rewards))
    return keep, kept


def _check_shape(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if np.shape(array) != shape:
        raise ValueError(f"{name} has shape {np.shape(array)}; the other arguments ask for {shape}.")


def group_normalized(rewards: Array, mask: Array | None = None, *, eps: ScalarLike = 1e-4) -> Array:
    """GRPO: A_i = (R_i − mean_g) / (std_g + ε), with the sample standard deviation (n − 1).

    A group whose rewards are equal up to rounding carries no information and gets exactly 0. ε alone would not do
    that: the computed deviation of eight float32 rewards of 0.7 is 6e-8, not 0.

    Args:
      rewards: [..., groups, n].
      mask: the completions that count, of the same shape.
      eps: ε.
    Returns:
      Advantages of the same shape, constants to every loss.
    Raises:
      ValueError: if a group has fewer than two completions.
    Reference: Shao et al. 2024, arXiv:2402.03300, sec. 4.1.2.

    >>> group_normalized(jnp.array([[0.0, 1.0, 2.0], [0.7, 0.7, 0.7]]), eps=0.0)
    Array([[-1.,  0.,  1.],
           [ 0.,  0.,  0.]], dtype=float32)
    """
    keep, kept = _keep(rewards, mask)
    informative = differ(kept, keep, axis=-1)
    variance = masked_variance(kept, keep, axis=-1, ddof=1)[..., None]
    std = jnp.sqrt(jnp.where(informative, variance, 1))  # the root has no derivative at 0
    (eps,) = coefficients(std, eps=eps)
    scale = jnp.where(informative, std + eps, 1)
    return jnp.where(informative, centered(kept, keep) / scale, 0)


def centered(rewards: Array, mask: Array | None = None) -> Array:
    """Dr.GRPO: A_i = R_i − mean_g, and exactly 0 for a group of equal rewards.

    The mean contains the completion's own reward, which scales the expected gradient by (n−1)/n; `leave_one_out`
    has no such factor.

    Args:
      rewards: [..., groups, n].
      mask: the completions that count, of the same shape.
    Returns:
      Advantages of the same shape, constants to every loss.
    Raises:
      ValueError: if a group has fewer than two completions.
    Reference: Liu et al. 2025, arXiv:2503.20783, sec. 3.2.
    """
    keep, kept = _keep(rewards, mask)
    informative = differ(kept, keep, axis=-1) & keep
    return jnp.where(informative, kept - masked_mean(kept, keep, axis=-1)[..., None], 0)


def batch_normalized(rewards: Array, mask: Array | None = None, *, eps: ScalarLike = 1e-4) -> Array:
    """A_i = (R_i − mean_g) / (std + ε), with the standard deviation of all rewards: a group is weighed by its spread.

    Dividing by each group's own deviation gives nearly solved and nearly hopeless prompts the largest gradients. Groups and
    batches of equal rewards get exactly 0.

    Args:
      rewards: [groups, n]; leading axes count as further groups of the same batch.
      mask: the completions that count, of the same shape.
      eps: ε.
    Returns:
      Advantages of the same shape, constants to every loss.
    Raises:
      ValueError: if a group has fewer than two completions.
    Reference: Liu et al. 2025, arXiv:2508.08221, sec. 4; TRL calls it `scale_rewards="batch"`.

    >>> batch_normalized(jnp.array([[0.0, 2.0], [1.0, 1.0]]), eps=0.0).round(3)
    Array([[-1.225,  1.225],
           [ 0.   ,  0.   ]], dtype=float32)
    """
    keep, kept = _keep(rewards, mask)
    informative = differ(kept, keep)
    std = jnp.sqrt(jnp.where(informative, masked_variance(kept, keep, ddof=1), 1))
    (eps,) = coefficients(std, eps=eps)
    return jnp.where(informative, centered(kept, keep) / jnp.where(informative, std + eps, 1), 0)


def mean_normalized(rewards: Array, mask: Array | None = None) -> Array:
    """MaxRL: A_i = (R_i − mean_g) / mean_g for rewards ≥ 0, and 0 where no completion has one: the likelihood of success.

    With rewards 0 and 1, success probability p and n completions its expected gradient is that of
    −Σ_{k=1}^{n−1} (1−p)^k / k, which tends to log p; that of the mean reward is the gradient of p.

    Args:
      rewards: [..., groups, n], none negative.
      mask: the completions that count, of the same shape.
    Returns:
      Advantages of the same shape, constants to every loss.
    Raises:
      ValueError: if a group has fewer than two completions.
    Reference: Tajwar et al. 2026, "Maximum likelihood reinforcement learning".

    >>> mean_normalized(jnp.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    Array([[ 3., -1., -1., -1.],
           [ 0.,  0.,  0.,  0.]], dtype=float32)
    """
    keep, kept = _keep(rewards, mask)
    mean = masked_mean(kept, keep, axis=-1)[..., None]
    return jnp.where(mean > 0, centered(kept, keep) / jnp.where(mean > 0, mean, 1), 0)


def leave_one_out(rewards: Array, mask: Array | None = None) -> Array:
    """RLOO: A_i = R_i − mean of the others = n/(n−1) · (R_i − mean_g). Unbiased.

    Args:
      rewards: [..., groups, n].
      mask: the completions that count, of the same shape.
    Returns:
      Advantages of the same shape, constants to every loss.
    Raises:
      ValueError: if a group has fewer than two completions.
    Reference: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al. 2024,
      arXiv:2402.14740.

    >>> leave_one_out(jnp.array([0.0, 1.0, 2.0]))
    Array([-1.5,  0. ,  1.5], dtype=float32)
    """
    advantages = centered(rewards, mask)
    if mask is None:
        n = advantages.shape[-1]
        return advantages * (n / (n - 1))
    n = jnp.asarray(mask).sum(-1, keepdims=True, dtype=advantages.dtype)
    return advantages * (n / jnp.maximum(n - 1, 1))


def informative_fraction(rewards: Array, mask: Array | None = None) -> Array:
    """(N − M)/N, the share of groups whose rewards are not all equal: what `losses.gpg` divides its loss by.

    Args:
      rewards: [..., groups, n].
      mask: the completions that count, of the same shape.
    Returns:
      A scalar in [0, 1]; 0 without groups.
    Reference: Chu et al. 2025, arXiv:2504.02546, the gradient correction for groups without information.
    """
    keep, kept = _keep(rewards, mask)
    return masked_mean(differ(kept, keep, axis=-1))


def remax(rewards: Array, greedy_rewards: Array) -> Array:
    """ReMax: A = R − R(greedy completion of the same prompt).

    Args:
      rewards: [..., groups, n].
      greedy_rewards: [..., groups], one greedy completion per prompt.
    Returns:
      Advantages of the same shape, constants to every loss.
    Raises:
      ValueError: if the shapes do not fit.
    Reference: Li et al. 2023, arXiv:2310.10505, alg. 1.
    """
    _check_shape("greedy_rewards", greedy_rewards, np.shape(rewards)[:-1])
    return as_float(rewards) - as_float(greedy_rewards)[..., None]


def opo(rewards: Array, lengths: Array, mask: Array | None = None) -> Array:
    """OPO: A_i = R_i − Σ_j len_j·R_j / Σ_j len_j: of least variance if |∇log π|² grows with length.

    Args:
      rewards: [..., groups, n].
      lengths: tokens of each completion, same shape.
      mask: the completions that count, of the same shape.
    Returns:
      Advantages of the same shape, constants to every loss.
    Raises:
      ValueError: if a group has fewer than two completions.
    Reference: Hao et al. 2025, arXiv:2505.23585, the length-weighted baseline.
    """
    keep, rewards = _keep(rewards, mask)
    _check_shape("lengths", lengths, rewards.shape)
    lengths = jnp.where(keep, as_float(lengths), 0)
    baseline = (lengths * rewards).sum(-1, keepdims=True) / jnp.maximum(lengths.sum(-1, keepdims=True), 1)
    return jnp.where(differ(rewards, keep, axis=-1) & keep, rewards - baseline, 0)


def pass_at_k(rewards: Array, mask: Array | None = None, *, k: int) -> Array:
    """Advantages whose policy gradient is that of E[best of k], unbiased: pass@k for rewards 0 and 1.

    A_i = k·(mean of max R over the k-subsets with i − mean of max R over the k-subsets without i). k=1 is
    `leave_one_out`. With mean_i A_i·∇log π(y_i) the group estimates ∇E[max_k R].

    Args:
      rewards: [..., groups, n], any real rewards.
      mask: the completions that count; a group in which one does not gets 0 throughout.
      k: size of the subsets, static.
    Returns:
      Advantages of the same shape, constants to every loss.
    Raises:
      ValueError: unless 1 <= k < n (a baseline needs a subset without i).
    Reference: Walder & Karkhanis 2025, arXiv:2505.15201, sec. 3 (their leave-one-out baseline).

    >>> pass_at_k(jnp.array([0.0, 1.0, 2.0]), k=1)
    Array([-1.5,  0. ,  1.5], dtype=float32)
    """
    keep, rewards = _keep(rewards, mask)
    n = rewards.shape[-1]
    if not 1 <= k < n:
        raise ValueError(f"k is {k} in groups of {n} completions: choose 1 <= k <= {n - 1}.")
    order = jnp.argsort(rewards, axis=-1)
    # Centred first: groups of equal rewards then give exactly 0 (every row of weights sums to 0).
    ascending = jnp.take_along_axis(centered(rewards), order, axis=-1)
    weights = jnp.asarray(_subset_maximum_weights(n, k), rewards.dtype)
    advantages = jnp.einsum("ij,...j->...i", weights, ascending, precision="highest")
    advantages = jnp.take_along_axis(advantages, jnp.argsort(order, axis=-1), axis=-1)
    return jnp.where(keep.all(-1, keepdims=True), advantages, 0)


def _subset_maximum_weights(n: int, k: int) -> np.ndarray:
    """W [n, n] with (W·R)_i = A_i of `pass_at_k`, for R in ascending order.

    Count the k-subsets of which R_j, with j smaller elements, is the maximum:

    1. i = j: C(j, k−1) contain i;
    2. i < j: C(j−1, k−2) contain i, and C(j−1, k−1) do not;
    3. i > j: none contains i, and C(j, k−1) do not.

    Of all k-subsets C(n−1, k−1) contain i, and C(n−1, k) do not.
    """
    weights = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if j == i:
                weights[i, j] = comb(j, k - 1) / comb(n - 1, k - 1)
            elif j > i:
                with_i = comb(j - 1, k - 2) if k > 1 else 0
                weights[i, j] = with_i / comb(n - 1, k - 1) - comb(j - 1, k - 1) / comb(n - 1, k)
            else:
                weights[i, j] = -comb(j, k - 1) / comb(n - 1, k)
    return k * weights


def normalize_then_sum(rewards: Array, weights: Array, *, eps: ScalarLike = 1e-4) -> Array:
    """GDPO: each objective k normalised in its group on its own, weighed, summed, and the sum normalised over the batch.

    Summing the objectives first lets the one with the largest spread drown the others. nan in `rewards` says that an
    objective does not apply to a completion: it is left out of the mean, the deviation and the sum. A completion to which
    none applies gets exactly 0, and so does everything where there is nothing to tell apart.

    Args:
      rewards: [objectives, ..., groups, n].
      weights: [objectives].
      eps: ε, added to each standard deviation.
    Returns:
      Advantages [..., groups, n], constants to every loss.
    Raises:
      ValueError: if the shapes do not fit.
    Reference: Liu et al. 2026, arXiv:2601.05242; TRL's `multi_objective_aggregation="normalize_then_sum"`.
    """
    _check_shape("weights", weights, np.shape(rewards)[:1])
    rewards = _check_group(rewards)
    applies = ~jnp.isnan(rewards)
    columns = as_float(weights).reshape(-1, *[1] * (rewards.ndim - 1))
    each = _normalize(rewards, applies, eps, axis=-1)
    total = (columns * each).sum(0)
    return _normalize(total, applies.any(0), eps, axis=None)


def _normalize(values: Array, keep: Array, eps: ScalarLike, *, axis: int | None) -> Array:
    """(x − mean) / (std + ε) of the counted ones along an axis; 0 elsewhere, and where they do not differ."""
    informative, values = differ(values, keep, axis=axis), jnp.where(keep, values, 0)
    mean = jnp.expand_dims(masked_mean(values, keep, axis=axis), () if axis is None else axis)
    variance = jnp.expand_dims(masked_variance(values, keep, axis=axis, ddof=1), () if axis is None else axis)
    std = jnp.sqrt(jnp.where(informative, variance, 1))
    (eps,) = coefficients(std, eps=eps)
    return jnp.where(informative & keep, (values - mean) / (std + eps), 0)


def reinforce_plus_plus(
    rewards: Array, kl: Array, mask: Array, *, kl_coef: ScalarLike, discount: ScalarLike = 1.0
) -> Array:
    """REINFORCE++: returns-to-go of −β·k1 per token plus the reward on the last token, whitened.

    Args:
      rewards: of the completions [...].
      kl: log π − log π_ref of each token [..., T]; a constant here.
      mask: the tokens of the completions [..., T].
      kl_coef: β.
      discount: γ.
    Returns:
      Advantages [..., T], 0 where masked, constants to every loss.
    Raises:
      ValueError: if the shapes do not fit.
    Reference: Hu 2025, arXiv:2501.03262, first version: KL per token in the reward.
    """
    keep, kl = mask_inputs(mask, kl=kl)
    _check_shape("rewards", rewards, kl.shape[:-1])
    (kl_coef,) = coefficients(kl, kl_coef=kl_coef)
    token_rewards = jnp.where(last_token(keep), as_float(rewards)[..., None], 0) - kl_coef * kl
    return whiten(discounted_returns(token_rewards, discount=discount, mask=keep, axis=-1), keep)


def reinforce_plus_plus_baseline(rewards: Array, mask: Array) -> Array:
    """REINFORCE++ with baseline: R − mean_g on every token, whitened over the tokens of the batch.

    Args:
      rewards: [groups, n].
      mask: the tokens of the completions [groups, n, T].
    Returns:
      Advantages [groups, n, T], 0 where masked, constants to every loss.
    Raises:
      ValueError: if the shapes do not fit.
    Reference: Hu et al. 2025, arXiv:2501.03262, from its third version: REINFORCE++-baseline.
    """
    keep = jnp.asarray(mask).astype(bool)
    _check_shape("rewards", rewards, keep.shape[:-1])
    return whiten(jnp.broadcast_to(centered(rewards)[..., None], keep.shape), keep)


def overlong_penalty(lengths: Array, *, max_length: ScalarLike, buffer: ScalarLike) -> Array:
    """DAPO's soft length penalty, a reward: 0 up to L_max − L_c, then linear down to −1 at L_max, −1 beyond.

    Args:
      lengths: tokens of each completion, any shape.
      max_length: L_max.
      buffer: L_c, in tokens; 0 for a step at L_max.
    Returns:
      A reward of the same shape, in [−1, 0]; a constant to every loss.
    Reference: Yu et al. 2025, arXiv:2503.14476, eq. 13.

    >>> overlong_penalty(jnp.array([80, 95, 120]), max_length=100, buffer=10)
    Array([ 0. , -0.5, -1. ], dtype=float32)
    """
    lengths = as_float(lengths)
    max_length, buffer = coefficients(lengths, max_length=max_length, buffer=buffer)
    excess = lengths - (max_length - buffer)
    ramp = jnp.where(buffer > 0, excess / jnp.where(buffer > 0, buffer, 1), 1)  # no buffer, no ramp
    return jnp.where(excess > 0, -jnp.minimum(ramp, 1), 0)
