"""Dynamic sampling: groups are drawn until enough of them say something, in arrays of one size.

Shapes: `G` groups, `B` completions, `T` tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm import reduce
from jaxrl4lm.lm.rollouts import Rollout
from jaxrl4lm.tasks import token_rewards
from jaxrl4lm.types import Array


class Pool(NamedTuple):
    """Groups of completions that were drawn, those that say something first."""

    rollout: Rollout
    rewards: Array
    """`[B]` or `[B, T]`."""
    informative: Array
    """bool `[G]`: the group's scores differ."""
    reward_sum: Array
    """float32: the mean rewards of all rounds, added up."""
    rounds: Array
    """int32: how many there were."""


def begin_pool(trajectories: Rollout, rewards: Array) -> Pool:
    """The pool after the first round of an update."""
    scores = token_rewards(rewards, trajectories.mask).sum(-1).reshape(trajectories.prompts.shape[0], -1)
    scored = None if trajectories.scored is None else trajectories.scored.reshape(scores.shape)
    informative = reduce.differ(scores, scored, axis=-1)[:, 0]
    return Pool(trajectories, rewards, informative, reduce.masked_mean(scores, scored), jnp.int32(1))


def keep_informative(pool: Pool, fresh: Pool) -> Pool:
    """A pool of the same size from two: the groups that say something, the older ones first, then others.

    Shapes are fixed, so an update of several rounds is one program, and on the host always the same few.
    """
    groups = pool.informative.shape[0]
    informative = jnp.concatenate([pool.informative, fresh.informative])
    order = jnp.argsort(~informative, stable=True)[:groups]

    def choose(a: Array, b: Array) -> Array:
        both = jnp.concatenate([a.reshape(groups, -1, *a.shape[1:]), b.reshape(groups, -1, *b.shape[1:])])
        return both[order].reshape(a.shape)

    return Pool(
        rollout=jax.tree.map(choose, pool.rollout, fresh.rollout),
        rewards=choose(pool.rewards, fresh.rewards),
        informative=informative[order],
        reward_sum=pool.reward_sum + fresh.reward_sum,
        rounds=pool.rounds + fresh.rounds,
    )
