"""Algorithms as compositions: credit x surrogate x value loss x KL x reduction. A new one is one new function passed in.

Shapes: `G` prompts, `n` completions of each, `B` = G n, `T` tokens.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from jaxrl4lm import advantages, losses, reduce, returns
from jaxrl4lm.lm.config import ReinforcementConfig
from jaxrl4lm.lm.rollouts import Rollout
from jaxrl4lm.tasks.task import last_token
from jaxrl4lm.types import Array


class Credit(NamedTuple):
    """What each token was worth; constants to the losses."""

    advantages: Array
    """`[B, T]`."""
    targets: Array
    """`[B, T]`, what the value head should have said; 0 where there is none."""


def fixed(config: ReinforcementConfig) -> losses.kl.Controller:
    """β = `kl_coef`."""
    return losses.kl.fixed_controller(config.kl_coef)


def adaptive(config: ReinforcementConfig) -> losses.kl.Controller:
    """β starts at `kl_coef` and holds the divergence of a sequence at `kl_target`."""
    return losses.kl.adaptive_controller(config.kl_coef, target=config.kl_target)


class KL(NamedTuple):
    """Where the divergence from the reference enters, and how its price β is set.

    Only k1 in the reward and the sequence forms give the gradient of the sequence KL; token k2 and k3 as losses miss how a
    token changes later states, and k3's is moreover that of the forward KL (see the table in `losses.kl`).
    """

    reward: Callable[..., Array] | None = None
    """(log_probs, ref_log_probs, mask=) → `[B, T]`, subtracted from the rewards times β."""
    loss: Callable[..., Array] | None = None
    """The same signature; added to the loss times β."""
    of_sequence: bool = False
    """The loss has one value a sequence (on each of its tokens): it is averaged over sequences."""
    controller: Callable[[ReinforcementConfig], losses.kl.Controller] = fixed
    """The rule for β."""


class Algorithm(NamedTuple):
    """A policy-gradient algorithm for completions."""

    credit: Callable[[Array, Rollout, ReinforcementConfig], Credit]
    """(token rewards `[B, T]`, rollout, config) → credit."""
    surrogate: Callable[[Array, Array, Array, Array, ReinforcementConfig], Array]
    """(log_probs, old_log_probs, advantages, mask, config) → loss `[B, T]`."""
    value_loss: Callable[[Array, Array, Array, Array, ReinforcementConfig], Array] | None
    """(values, old_values, targets, mask, config) → loss `[B, T]`. None: there is no critic."""
    reduction: Callable[[Array, Array], reduce.Fraction]
    """(loss `[B, T]`, mask) → (sum, denominator)."""
    kl: KL = KL(reward=losses.kl.k1)


def actor_critic_credit(rewards: Array, rollout: Rollout, config: ReinforcementConfig) -> Credit:
    """Generalised advantage estimation with the value head; advantages whitened over all tokens of the update."""
    mask, last = rollout.mask, last_token(rollout.mask)
    terminated = last if config.truncation == "terminal" else last & ~rollout.truncated[:, None]
    following = jnp.pad(rollout.values[:, 1:], ((0, 0), (0, 1)))
    raw, targets = returns.generalized_advantage_estimation(
        rewards,
        rollout.values,
        jnp.where(last, rollout.final_values[:, None], following),
        terminated,
        last,
        discount=config.discount,
        gae_lambda=config.gae_lambda,
        mask=mask,
        axis=1,
    )
    return Credit(advantages.whiten(raw, mask), targets)


def return_to_go_credit(rewards: Array, rollout: Rollout, config: ReinforcementConfig) -> Credit:
    """Returns-to-go, whitened over all tokens of the update: their mean is the baseline."""
    going = returns.discounted_returns(rewards, discount=config.discount, mask=rollout.mask, axis=1)
    return Credit(advantages.whiten(going, rollout.mask), jnp.zeros_like(rewards))


def group_credit(
    estimator: Callable[[Array], Array],
) -> Callable[[Array, Rollout, ReinforcementConfig], Credit]:
    """Credit that compares the total reward of a completion with its group; every token of it gets the same."""

    def credit(rewards: Array, rollout: Rollout, config: ReinforcementConfig) -> Credit:
        scores = jnp.where(rollout.mask, rewards, 0.0).sum(-1)
        relative = estimator(scores.reshape(rollout.prompts.shape[0], -1)).reshape(-1, 1)
        return Credit(jnp.where(rollout.mask, relative, 0.0), jnp.zeros_like(rewards))

    return credit


def _clipped(log_probs, old_log_probs, advantages, mask, config):
    return losses.ppo_clip(log_probs, old_log_probs, advantages, clip_eps=config.clip_eps, mask=mask)


def _score_function(log_probs, old_log_probs, advantages, mask, config):
    return losses.reinforce(log_probs, advantages, mask=mask)


def _clipped_value(values, old_values, targets, mask, config):
    return losses.clipped_value(values, old_values, targets, clip_eps=config.value_clip, mask=mask)


PPO = Algorithm(actor_critic_credit, _clipped, _clipped_value, reduce.token_fraction)
"""Schulman et al. 2017, arXiv:1707.06347, on tokens as in Ziegler et al. 2019, arXiv:1909.08593."""

REINFORCE = Algorithm(return_to_go_credit, _score_function, None, reduce.sequence_sum_fraction)
"""Williams 1992, with the batch mean as baseline. On-policy: take one epoch of one minibatch."""

GRPO = Algorithm(group_credit(advantages.group_normalized), _clipped, None, reduce.sequence_mean_fraction)
"""Shao et al. 2024, arXiv:2402.03300; the paper's own KL is `KL(loss=losses.kl.k3)`."""

RLOO = Algorithm(group_credit(advantages.leave_one_out), _score_function, None, reduce.sequence_sum_fraction)
"""Ahmadian et al. 2024, arXiv:2402.14740. On-policy: take one epoch of one minibatch."""
