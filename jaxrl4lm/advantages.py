"""Sequence-level advantages: what a completion was worth beside its peers.

Rewards come as [groups, n], n completions of the same prompt in a row (leading axes are free; the group is
the last axis). Results have the same shape, are constants to every loss, and are float32 or wider.
Estimators per token are in `returns`; masked whitening is `whiten`.
"""

import jax.numpy as jnp

from jaxrl4lm.reduce import as_float, masked_mean, masked_variance, spread, whiten
from jaxrl4lm.types import Array, ScalarLike

__all__ = [
    "centered",
    "group_normalized",
    "leave_one_out",
    "whiten",
]


def _check_group(rewards: Array, least: int = 2) -> Array:
    rewards = as_float(rewards)
    if rewards.ndim == 0 or rewards.shape[-1] < least:
        raise ValueError(
            f"rewards has shape {rewards.shape}: the last axis is the group; it needs {least} or more "
            "completions."
        )
    return rewards


def group_normalized(rewards: Array, *, eps: ScalarLike = 1e-4) -> Array:
    """GRPO: A_i = (R_i − mean_g) / (std_g + ε), with the sample standard deviation (n − 1).

    A group whose rewards are equal up to rounding carries no information and gets exactly 0; ε alone does not
    see to that (eight float32 rewards of 0.7 have a computed deviation of 6e-8).

    Args:
      rewards: [..., groups, n].
      eps: ε.
    Raises:
      ValueError: if a group has fewer than two completions.
    Reference: Shao et al. 2024, arXiv:2402.03300, sec. 4.1.2.

    >>> group_normalized(jnp.array([[0.0, 1.0, 2.0], [0.7, 0.7, 0.7]]), eps=0.0)
    Array([[-1.,  0.,  1.],
           [ 0.,  0.,  0.]], dtype=float32)
    """
    rewards = _check_group(rewards)
    informative = spread(rewards, axis=-1)
    std = jnp.sqrt(masked_variance(rewards, axis=-1, ddof=1)[..., None])
    scale = jnp.where(informative, std + eps, 1)
    return jnp.where(informative, centered(rewards) / scale, 0)


def centered(rewards: Array) -> Array:
    """Dr.GRPO: A_i = R_i − mean_g, and exactly 0 for a group of equal rewards.

    Its own reward in the mean scales the expected gradient by (n−1)/n; `leave_one_out` does not.

    Args:
      rewards: [..., groups, n].
    Raises:
      ValueError: if a group has fewer than two completions.
    Reference: Liu et al. 2025, arXiv:2503.20783, sec. 3.2.
    """
    rewards = _check_group(rewards)
    return jnp.where(spread(rewards, axis=-1), rewards - masked_mean(rewards, axis=-1)[..., None], 0)


def leave_one_out(rewards: Array) -> Array:
    """RLOO: A_i = R_i − mean of the others = n/(n−1) · (R_i − mean_g). Unbiased.

    Args:
      rewards: [..., groups, n].
    Raises:
      ValueError: if a group has fewer than two completions.
    Reference: Ahmadian et al. 2024, arXiv:2402.14740, eq. 8.

    >>> leave_one_out(jnp.array([0.0, 1.0, 2.0]))
    Array([-1.5,  0. ,  1.5], dtype=float32)
    """
    advantages = centered(rewards)
    n = advantages.shape[-1]
    return advantages * (n / (n - 1))
