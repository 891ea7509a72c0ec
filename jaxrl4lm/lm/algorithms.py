"""Algorithms as compositions: credit x surrogate x value loss x KL x reduction. A new one is one new function passed in.

Shapes: `G` prompts, `n` completions of each, `B` = G n, `T` tokens.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp

from jaxrl4lm import advantages, losses, reduce, returns
from jaxrl4lm.arguments import last_token
from jaxrl4lm.lm.config import ReinforcementConfig
from jaxrl4lm.lm.rollouts import Rollout
from jaxrl4lm.types import Array


class Credit(NamedTuple):
    """What each token was worth; constants to the losses."""

    advantages: Array
    """`[B, T]`."""
    targets: Array
    """`[B, T]`, what the value head should have said; 0 where there is none."""


def keep_price(config: ReinforcementConfig) -> losses.kl.Controller:
    """β = `kl_coef`."""
    return losses.kl.fixed_controller(config.kl_coef)


def adapt_price(config: ReinforcementConfig) -> losses.kl.Controller:
    """β starts at `kl_coef` and holds the divergence of a sequence at `kl_target`."""
    return losses.kl.adaptive_controller(config.kl_coef, target=config.kl_target)


class KL(NamedTuple):
    """Where the divergence from the reference enters, and how its price β is set. `KL()`: it enters nowhere, and no
    reference is kept.

    Only k1 in the reward and the sequence forms give the gradient of the sequence KL; token k2 and k3 as losses miss how a
    token changes later states, and k3's is moreover that of the forward KL (see the table in `losses.kl`).
    """

    reward: Callable[..., Array] | None = None
    """(log_probs, ref_log_probs, mask=) → `[B, T]`, subtracted from the rewards times β."""
    loss: Callable[..., Array] | None = None
    """The same signature; added to the loss times β."""
    of_sequence: bool = False
    """The loss has one value a sequence (on each of its tokens): it is averaged over sequences."""
    controller: Callable[[ReinforcementConfig], losses.kl.Controller] = keep_price
    """The rule for β."""

    @property
    def priced(self) -> bool:
        """Whether a reference is needed at all."""
        return self.reward is not None or self.loss is not None


class Algorithm(NamedTuple):
    """A policy-gradient algorithm for completions."""

    credit: Callable[[Array, Array, Rollout, ReinforcementConfig], Credit]
    """(token rewards `[B, T]`, what the KL costs each token `[B, T]`, rollout, config) → credit."""
    surrogate: Callable[[Array, Array, Array, Array, ReinforcementConfig], Array]
    """(log_probs, old_log_probs, advantages, mask, config) → loss `[B, T]`."""
    reduction: Callable[[Array, Array], reduce.Fraction]
    """(loss `[B, T]`, mask) → (sum, denominator)."""
    value_loss: Callable[[Array, Array, Array, Array, ReinforcementConfig], Array] | None = None
    """(values, old_values, targets, mask, config) → loss `[B, T]`. None: there is no critic."""
    kl: KL = KL(reward=losses.kl.k1)
    compares_group: bool = False
    """Whether completions of one prompt are compared, so that each prompt needs several."""


def actor_critic_credit(
    rewards: Array, kl_costs: Array, rollout: Rollout, config: ReinforcementConfig
) -> Credit:
    """Generalised advantage estimation with the value head; advantages whitened over all tokens of the update."""
    mask, last = rollout.mask, last_token(rollout.mask)
    terminated = last if config.truncation == "terminal" else last & ~rollout.truncated[:, None]
    following = jnp.pad(rollout.values[:, 1:], ((0, 0), (0, 1)))
    raw, targets = returns.generalized_advantage_estimation(
        rewards - kl_costs,
        rollout.values,
        jnp.where(last, rollout.final_values[:, None], following),
        terminated,
        last,
        discount=config.discount,
        gae_lambda=config.gae_lambda,
        mask=mask,
        axis=1,
    )
    return Credit(reduce.whiten(raw, mask), targets)


def return_to_go_credit(
    rewards: Array, kl_costs: Array, rollout: Rollout, config: ReinforcementConfig
) -> Credit:
    """Returns-to-go, whitened over all tokens of the update: their mean is the baseline."""
    net = rewards - kl_costs
    going = returns.discounted_returns(net, discount=config.discount, mask=rollout.mask, axis=1)
    return Credit(reduce.whiten(going, rollout.mask), jnp.zeros_like(rewards))


def group_credit(
    rewards: Array,
    kl_costs: Array,
    rollout: Rollout,
    config: ReinforcementConfig,
    *,
    estimator: Callable[[Array], Array],
) -> Credit:
    """Credit that compares the total reward of a completion with its group; every token of it gets the same.

    The estimator sees the task's rewards alone. What the KL costs a completion is compared with the rest of its group and
    subtracted in its own unit: scaled together with rewards that are all alike, its rounding would become full-size
    advantages.

    Args:
      estimator: rewards `[G, n]` → advantages of the same shape, as `advantages` has them.
    """

    def sum_by_group(values: Array) -> Array:
        return jnp.where(rollout.mask, values, 0.0).sum(-1).reshape(rollout.prompts.shape[0], -1)

    costs = advantages.leave_one_out(sum_by_group(kl_costs))
    relative = (estimator(sum_by_group(rewards)) - costs).reshape(-1, 1)
    return Credit(jnp.where(rollout.mask, relative, 0.0), jnp.zeros_like(rewards))


def _clip_ratio(log_probs, old_log_probs, advantages, mask, config):
    return losses.ppo_clip(log_probs, old_log_probs, advantages, clip_eps=config.clip_eps, mask=mask)


def _score_function(log_probs, old_log_probs, advantages, mask, config):
    return losses.reinforce(log_probs, advantages, mask=mask)


def _clip_value(values, old_values, targets, mask, config):
    return losses.clipped_value(values, old_values, targets, clip_eps=config.value_clip, mask=mask)


PPO = Algorithm(
    credit=actor_critic_credit,
    surrogate=_clip_ratio,
    value_loss=_clip_value,
    reduction=reduce.token_fraction,
)
"""Schulman et al. 2017, arXiv:1707.06347, on tokens as in Ziegler et al. 2019, arXiv:1909.08593."""

REINFORCE = Algorithm(
    credit=return_to_go_credit, surrogate=_score_function, reduction=reduce.sequence_sum_fraction
)
"""Williams 1992, with the batch mean as baseline. On-policy: take one epoch of one minibatch."""

GRPO = Algorithm(
    credit=partial(group_credit, estimator=advantages.group_normalized),
    surrogate=_clip_ratio,
    reduction=reduce.sequence_mean_fraction,
    kl=KL(loss=losses.kl.k3),
    compares_group=True,
)
"""Shao et al. 2024, arXiv:2402.03300; its KL is the paper's, a loss."""

RLOO = Algorithm(
    credit=partial(group_credit, estimator=advantages.leave_one_out),
    surrogate=_score_function,
    reduction=reduce.sequence_sum_fraction,
    compares_group=True,
)
"""Ahmadian et al. 2024, arXiv:2402.14740. On-policy: take one epoch of one minibatch."""

ALGORITHMS: Mapping[str, Algorithm] = {"ppo": PPO, "reinforce": REINFORCE, "grpo": GRPO, "rloo": RLOO}
"""The command line's words."""

KL_PLACEMENTS: Mapping[str, KL] = {
    "reward": KL(reward=losses.kl.k1),
    "k2": KL(loss=losses.kl.k2),
    "k3": KL(loss=losses.kl.k3),
    "sequence_k2": KL(loss=losses.kl.sequence_k2, of_sequence=True),
    "sequence_ratio": KL(loss=losses.kl.sequence_ratio_k1, of_sequence=True),
    "none": KL(),
}
"""The command line's words."""
