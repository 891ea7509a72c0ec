"""What lowers the loss of each token: the second part of an algorithm, and what may stand before and after it.

1. A level is a function (log_probs, old_log_probs, mask=) → log-probabilities, whose ratio the surrogate then takes for that
   of the token: `losses.sequence_log_probs`.
2. A surrogate is a function (log_probs, old_log_probs, advantages, mask, config) → loss `[B, T]`.
3. A weight is a function (scores, old_log_probs, advantages, mask, config) → `[B, T]`, a constant that multiplies it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl4lm import losses
from jaxrl4lm.lm.config import ReinforcementConfig
from jaxrl4lm.lm.rollouts import Scores
from jaxrl4lm.types import Array

Level = Callable[..., Array]
Surrogate = Callable[[Array, Array, Array, Array, ReinforcementConfig], Array]
Weight = Callable[[Scores, Array, Array, Array, ReinforcementConfig], Array]


def clip_ratio(log_probs, old_log_probs, advantages, mask, config):
    """PPO's clip, of `clip_eps`, `clip_eps_high` and `dual_clip`."""
    return losses.ppo_clip(
        log_probs,
        old_log_probs,
        advantages,
        clip_eps=config.clip_eps,
        clip_eps_high=config.clip_eps_high,
        dual_clip=config.dual_clip,
        mask=mask,
    )


def score_function(log_probs, old_log_probs, advantages, mask, config):
    """−log π·A, without a ratio: right for the policy that drew the completions."""
    return losses.reinforce(log_probs, advantages, mask=mask)


def free_ratio(log_probs, old_log_probs, advantages, mask, config):
    """−ρA without a clip: something else holds the policy near the old one."""
    return losses.trpo.surrogate(log_probs, old_log_probs, advantages, mask=mask)


def clip_weight(log_probs, old_log_probs, advantages, mask, config):
    """CISPO, its weights between 1 − `clip_eps` and 1 + `clip_eps_high`."""
    high = config.clip_eps if config.clip_eps_high is None else config.clip_eps_high
    return losses.cispo(
        log_probs, old_log_probs, advantages, clip_eps=config.clip_eps, clip_eps_high=high, mask=mask
    )


def clip_geometric_mean(log_probs, old_log_probs, advantages, mask, config):
    """GMPO, of `clip_eps` and `clip_eps_high`."""
    return losses.gmpo(
        log_probs,
        old_log_probs,
        advantages,
        clip_eps=config.clip_eps,
        clip_eps_high=config.clip_eps_high,
        mask=mask,
    )


def gate_ratio(log_probs, old_log_probs, advantages, mask, config):
    """SAPO."""
    return losses.sapo(log_probs, old_log_probs, advantages, mask=mask)


def gate_sequence(log_probs, old_log_probs, advantages, mask, config):
    """VESPO."""
    return losses.vespo(log_probs, old_log_probs, advantages, mask=mask)


def mask_divergence(log_probs, old_log_probs, advantages, mask, config):
    """DPPO by the binary total variation, its threshold `clip_eps`."""
    return losses.dppo(log_probs, old_log_probs, advantages, threshold=config.clip_eps, mask=mask)


def token_sequence_log_probs(log_probs, old_log_probs, *, mask=None):
    """The level of GSPO-token: the value of the sequence's ratio, the gradient of the token's."""
    mean = jax.lax.stop_gradient(losses.sequence_log_probs(log_probs, old_log_probs, mask=mask))
    return mean + (log_probs - jax.lax.stop_gradient(log_probs))


def select_top_entropy(scores, old_log_probs, advantages, mask, config):
    """1 for the share `top_entropy_share` of the tokens that has the highest entropy (Wang et al. 2025, arXiv:2506.01939)."""
    entropy = jax.lax.stop_gradient(scores.entropy)
    least = jnp.nanquantile(jnp.where(mask, entropy, jnp.nan), 1 - config.top_entropy_share)
    return (mask & (entropy >= least)).astype(entropy.dtype)


def truncate_weights(scores, old_log_probs, advantages, mask, config):
    """min(ρ, `ratio_cap`): for surrogates without a ratio, in epochs after the first."""
    return losses.truncated_importance_weights(
        scores.log_probs, old_log_probs, cap=config.ratio_cap, mask=mask
    )


def mask_ratios(scores, old_log_probs, advantages, mask, config):
    """1 where `ratio_floor` ≤ ρ ≤ `ratio_cap`: tokens that moved too far are dropped (IcePop, arXiv:2510.18855)."""
    kept = losses.masked_importance_weights(
        scores.log_probs, old_log_probs, low=config.ratio_floor, high=config.ratio_cap, mask=mask
    )
    return (kept > 0).astype(kept.dtype)


def reject_sequences(scores, old_log_probs, advantages, mask, config):
    """0 for bad completions that the policy has left behind, by `rejection_divergence` (arXiv:2512.02556)."""
    return losses.near_policy_sequences(
        scores.log_probs, old_log_probs, advantages, threshold=config.rejection_divergence, mask=mask
    )
