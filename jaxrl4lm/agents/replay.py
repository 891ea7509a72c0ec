"""A ring of what was played, as pure functions: `init`, `add`, `sample`.

An observation is stored once, in its own dtype: what follows a step is the observation of the next step of the same copy of
the environment. Two kinds of steps have none there:

1. the newest ones; what follows them is where the copies now are;
2. those that a time limit cut off, since a new episode follows; their last observations are in a small ring of their own.

Shapes: `S` steps of the ring, in rows of `N` copies of the environment, so that step i + N follows step i; `T` time, `B` batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.agents.environment import Transition
from jaxrl4lm.types import Array, Key, ScalarLike


class Replay(NamedTuple):
    """What is remembered, leaves `[S, ...]` but for the last three."""

    observation: Array
    action: Array
    reward: Array
    terminated: Array
    cut: Array
    """int32: which cut of its copy ended the episode after this step, from 0; −1: none did."""
    cut_observation: Array
    """`[K * N, ...]`: the last observation of cut k of copy n, before the reset, in row (k mod K)·N + n."""
    cuts: Array
    """int32 `[N]`: cuts so far."""
    seen: Array
    """int32: steps so far, of all copies together."""


class Sample(NamedTuple):
    """Steps to learn from, leaves `[B, ...]`; of n steps in a row where so many are asked for."""

    observation: Array
    action: Array
    reward: Array
    """The discounted sum of the rewards of these steps."""
    discount: Array
    """γ to the number of these steps: what the value of `next_observation` is worth."""
    terminated: Array
    """The episode ended with the last of these steps: nothing follows."""
    next_observation: Array
    """After the last of these steps, before any reset."""
    weight: Array
    """1; 0 where what followed a cut has been forgotten, which no limit of at least the horizon of `init` brings about."""
    index: Array
    """int32: where the first of these steps is in the ring."""


def init(steps: Transition, size: int, horizon: int) -> Replay:
    """A ring without steps.

    Args:
      steps: a rollout `[T, N, ...]`, of which only shapes and dtypes are read.
      size: steps to remember; a multiple of N, and of the steps that are added at a time.
      horizon: steps after which a time limit cuts an episode.
    """
    copies = steps.reward.shape[1]
    rows = size // copies
    kept = min(rows, rows // horizon + 1)

    def empty(like: Array, count: int = size) -> Array:
        return jnp.zeros((count, *like.shape[2:]), like.dtype)

    return Replay(
        observation=empty(steps.observation),
        action=empty(steps.action),
        reward=empty(steps.reward),
        terminated=empty(steps.terminated),
        cut=jnp.full(size, -1, jnp.int32),
        cut_observation=empty(steps.final_observation, kept * copies),
        cuts=jnp.zeros(copies, jnp.int32),
        seen=jnp.int32(0),
    )


def add(replay: Replay, steps: Transition) -> Replay:
    """The ring after a rollout `[T, N, ...]`, which overwrites the oldest steps."""
    size, (time, copies) = replay.reward.shape[0], steps.reward.shape
    begin = replay.seen % size
    number = replay.cuts[None] + jnp.cumsum(steps.truncated, axis=0, dtype=jnp.int32) - 1
    cuts = replay.cuts + steps.truncated.sum(0, dtype=jnp.int32)

    def write(old: Array, new: Array) -> Array:
        flat = new.reshape(time * copies, *new.shape[2:])
        return jax.lax.dynamic_update_slice_in_dim(old, flat, begin, axis=0)

    # Of more cuts than there is room for, the last ones. Rows beyond the end are not written.
    kept = replay.cut_observation.shape[0] // copies
    writes = steps.truncated & (number >= cuts[None] - kept)
    row = jnp.where(writes, number % kept * copies + jnp.arange(copies)[None], kept * copies)
    final = steps.final_observation.reshape(time * copies, *steps.final_observation.shape[2:])
    return Replay(
        observation=write(replay.observation, steps.observation),
        action=write(replay.action, steps.action),
        reward=write(replay.reward, steps.reward),
        terminated=write(replay.terminated, steps.terminated),
        cut=write(replay.cut, jnp.where(steps.truncated, number, -1)),
        cut_observation=replay.cut_observation.at[row.reshape(-1)].set(final, mode="drop"),
        cuts=cuts,
        seen=replay.seen + time * copies,
    )


def sample(
    key: Key, replay: Replay, latest: Array, batch: int, *, discount: ScalarLike, n: int = 1
) -> Sample:
    """Steps of the ring, each as likely, with replacement. Arguments as of `look_up`.

    Args:
      batch: how many.
    """
    known = jnp.minimum(replay.seen, replay.reward.shape[0])
    index = jax.random.randint(key, (batch,), 0, known)
    return look_up(replay, latest, index, discount=discount, n=n)


def look_up(replay: Replay, latest: Array, index: Array, *, discount: ScalarLike, n: int = 1) -> Sample:
    """The steps at `index` `[B]` and what followed them.

    Up to n steps in a row are one: fewer where the episode ended or was cut, or where no more have been played.

    Args:
      latest: the observations in which the copies now are `[N, ...]`.
      discount: γ.
      n: steps in a row, static.
    Reference: Sutton & Barto 2018, eq. 7.1, without correction for what the policy of now would do, as in Hessel et al. 2018,
      arXiv:1710.02298.
    """
    size, copies = replay.reward.shape[0], replay.cuts.shape[0]
    path = (index[:, None] + copies * jnp.arange(n)[None]) % size
    newest = path // copies == (replay.seen - 1) % size // copies
    stops = replay.terminated[path] | (replay.cut[path] >= 0) | newest
    taken = jnp.cumsum(stops, axis=1) - stops == 0  # no step before it stops
    length = taken.sum(1)
    powers = jnp.asarray(discount, jnp.float32) ** jnp.arange(n + 1)
    last = index if n == 1 else (index + copies * (length - 1)) % size

    at_end = jnp.take_along_axis(newest, length[:, None] - 1, axis=1)[:, 0]
    cut, copy = replay.cut[last], last % copies
    kept = replay.cut_observation.shape[0] // copies
    final = replay.cut_observation[cut % kept * copies + copy]

    def choose(condition: Array, x: Array, y: Array) -> Array:
        return jnp.where(condition.reshape(-1, *[1] * (x.ndim - 1)), x, y)

    following = choose(at_end, latest[copy], replay.observation[(last + copies) % size])
    return Sample(
        observation=replay.observation[index],
        action=replay.action[index],
        reward=jnp.where(taken, powers[None, :n] * replay.reward[path], 0).sum(1),
        discount=powers[length],
        terminated=replay.terminated[last],
        next_observation=choose(cut >= 0, final, following),
        weight=((cut < 0) | (cut >= replay.cuts[copy] - kept)).astype(jnp.float32),
        index=index,
    )
