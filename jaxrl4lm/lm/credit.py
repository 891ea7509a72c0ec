"""What each token of a completion was worth: the first part of an algorithm.

A credit is a function (token rewards `[B, T]`, what the KL costs each token `[B, T]`, rollout, config) → `Credit`. What is
normalised is what the task says. Where it says nothing, because all rewards are equal, the advantages that come of it are
exactly 0, and what is left is the KL in its own unit: scaled with rewards that are all alike, its rounding would become
full-size steps.

Shapes: `G` prompts, `n` completions of each, `B` = G n, `T` tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp

from jaxrl4lm import advantages, reduce, returns
from jaxrl4lm.arguments import last_token
from jaxrl4lm.lm.config import ReinforcementConfig
from jaxrl4lm.lm.rollouts import Rollout
from jaxrl4lm.types import Array, ScalarLike


class Credit(NamedTuple):
    """What each token was worth; constants to the losses."""

    advantages: Array
    """`[B, T]`."""
    targets: Array
    """`[B, T]`, what the value head should have said; 0 where there is none."""


Assign = Callable[[Array, Array, Rollout, ReinforcementConfig], Credit]
"""(token rewards, KL costs, rollout, config) → credit."""


def whiten_informative(
    raw: Array, rewards: Array, kl_costs: Array, mask: Array, config: ReinforcementConfig
) -> Array:
    """Advantages whitened over all tokens of the update; if the task's returns are all equal, the KL's part, as it is.

    Args:
      raw: advantages `[B, T]` of rewards and KL together.
    """
    costs = _go(kl_costs, mask, config)
    alone = jnp.where(mask, reduce.masked_mean(costs, mask) - costs, 0.0)
    return jnp.where(reduce.differ(_go(rewards, mask, config), mask), reduce.whiten(raw, mask), alone)


def _go(values: Array, mask: Array, config: ReinforcementConfig) -> Array:
    """Returns-to-go."""
    return returns.discounted_returns(values, discount=config.discount, mask=mask, axis=1)


def shape_rewards(rewards: Array, rollout: Rollout, config: ReinforcementConfig) -> Array:
    """Rewards of tokens `[B, T]` as RLHF learns from them: clipped; without an end token another score, or a lower one."""
    last, cut = last_token(rollout.mask), rollout.truncated[:, None]
    if config.score_clip is not None:
        rewards = jnp.clip(rewards, -config.score_clip, config.score_clip)
    if config.missing_end_score is not None:
        rewards = jnp.where(cut, jnp.where(last, config.missing_end_score, 0.0), rewards)
    return rewards - jnp.where(cut & last, config.missing_end_penalty, 0.0)


def actor_critic_credit(
    rewards: Array,
    kl_costs: Array,
    rollout: Rollout,
    config: ReinforcementConfig,
    *,
    gae_lambda: ScalarLike | None = None,
    whiten: bool = True,
) -> Credit:
    """Generalised advantage estimation with the value head.

    Args:
      gae_lambda: λ in place of the configuration's: 1 for Monte-Carlo returns less the value, 0 for one step.
      whiten: advantages, over all tokens of the update, where the configuration does not say otherwise.
    """
    mask, last = rollout.mask, last_token(rollout.mask)
    terminated = last & ~rollout.truncated[:, None] if config.truncation == "bootstrap" else last
    following = jnp.pad(rollout.values[:, 1:], ((0, 0), (0, 1)))
    net = rewards - kl_costs
    if config.whiten_rewards:
        told_apart = reduce.differ(_go(rewards, mask, config), mask)
        net = jnp.where(told_apart, reduce.whiten(net, mask, shift_mean=False), net)
    raw, targets = returns.generalized_advantage_estimation(
        net,
        rollout.values,
        jnp.where(last, rollout.final_values[:, None], following),
        terminated,
        last,
        discount=config.discount,
        gae_lambda=config.gae_lambda if gae_lambda is None else gae_lambda,
        mask=mask,
        axis=1,
    )
    if not (whiten and config.whiten_advantages):
        return Credit(raw, targets)
    return Credit(whiten_informative(raw, rewards, kl_costs, mask, config), targets)


def return_to_go_credit(
    rewards: Array, kl_costs: Array, rollout: Rollout, config: ReinforcementConfig
) -> Credit:
    """Returns-to-go, whitened over all tokens of the update: their mean is the baseline."""
    going = _go(rewards - kl_costs, rollout.mask, config)
    return Credit(whiten_informative(going, rewards, kl_costs, rollout.mask, config), jnp.zeros_like(rewards))


def _sum_by_group(values: Array, rollout: Rollout) -> Array:
    """Totals of completions `[G, n]`."""
    return jnp.where(rollout.mask, values, 0.0).sum(-1).reshape(rollout.prompts.shape[0], -1)


def group_credit(
    rewards: Array,
    kl_costs: Array,
    rollout: Rollout,
    config: ReinforcementConfig,
    *,
    estimator: Callable[[Array, Array], Array],
) -> Credit:
    """Credit that compares the total reward of a completion with its group; every token of it gets the same.

    What the KL costs a completion is compared with the rest of its group and subtracted in its own unit.

    Args:
      estimator: (rewards `[G, n]`, mask of the completions that count) → advantages of the same shape, as `advantages` has
        them.
    """
    counts = rollout.mask.any(-1).reshape(rollout.prompts.shape[0], -1)
    costs = advantages.leave_one_out(_sum_by_group(kl_costs, rollout), counts)
    relative = (estimator(_sum_by_group(rewards, rollout), counts) - costs).reshape(-1, 1)
    return Credit(jnp.where(rollout.mask, relative, 0.0), jnp.zeros_like(rewards))


def _zeros(scores: Array, counts: Array) -> Array:
    return jnp.zeros_like(scores)


def length_weighted_credit(
    rewards: Array, kl_costs: Array, rollout: Rollout, config: ReinforcementConfig
) -> Credit:
    """`group_credit` whose baseline weighs completions by their length (OPO)."""
    lengths = _sum_by_group(jnp.ones_like(rewards), rollout)

    def estimator(scores: Array, counts: Array) -> Array:
        return advantages.opo(scores, lengths, counts)

    return group_credit(rewards, kl_costs, rollout, config, estimator=estimator)


def best_of_credit(rewards: Array, kl_costs: Array, rollout: Rollout, config: ReinforcementConfig) -> Credit:
    """`group_credit` of the best of k completions (pass@k), k = `best_of`."""
    estimator = partial(advantages.pass_at_k, k=config.best_of)
    return group_credit(rewards, kl_costs, rollout, config, estimator=estimator)


def success_credit(rewards: Array, kl_costs: Array, rollout: Rollout, config: ReinforcementConfig) -> Credit:
    """`group_credit` less the mean, divided by the share of groups that say anything (GPG)."""

    def estimator(scores: Array, counts: Array) -> Array:
        share = advantages.informative_fraction(scores, counts)
        return advantages.centered(scores, counts) / jnp.where(share > 0, share, 1.0)

    return group_credit(rewards, kl_costs, rollout, config, estimator=estimator)


def greedy_credit(rewards: Array, kl_costs: Array, rollout: Rollout, config: ReinforcementConfig) -> Credit:
    """Returns-to-go less what the most likely completion of the prompt earns (ReMax)."""
    assert rollout.baselines is not None, "the algorithm needs greedy_baseline=True"
    mask = rollout.mask
    relative = advantages.remax(_sum_by_group(rewards, rollout), rollout.baselines).reshape(-1, 1)
    costs = returns.discounted_returns(kl_costs, discount=1.0, mask=mask, axis=1)
    return Credit(jnp.where(mask, relative - costs, 0.0), jnp.zeros_like(rewards))


def token_whitened_group_credit(
    rewards: Array, kl_costs: Array, rollout: Rollout, config: ReinforcementConfig
) -> Credit:
    """Scores less the mean of their group, whitened over all tokens of the update (REINFORCE++ with baseline)."""
    plain = group_credit(
        rewards, jnp.zeros_like(kl_costs), rollout, config, estimator=advantages.centered
    ).advantages
    costs = group_credit(rewards, kl_costs, rollout, config, estimator=_zeros).advantages
    return Credit(reduce.whiten(plain, rollout.mask) + costs, jnp.zeros_like(rewards))


def penalize_length(
    rewards: Array, kl_costs: Array, rollout: Rollout, config: ReinforcementConfig, *, credit: Assign
) -> Credit:
    """Another credit, of rewards from which DAPO's penalty of long completions is taken (`overlong_buffer`)."""
    lengths, longest = rollout.mask.sum(-1, keepdims=True), rollout.mask.shape[1]
    penalty = advantages.overlong_penalty(lengths, max_length=longest, buffer=config.overlong_buffer)
    return credit(rewards + last_token(rollout.mask) * penalty, kl_costs, rollout, config)
