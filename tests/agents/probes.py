"""Worlds whose values are known, each of which proves one more part of an agent; and tables as networks."""

from typing import NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxrl4lm import mdp as M
from jaxrl4lm.envs.finite_mdp import as_environment


def build(kernel, rewards, initial):
    """Two states and a terminal one, two actions; `kernel[s, a]` is the state that follows."""
    transitions = np.eye(3)[np.array([*kernel, [2, 2]])]
    return M.from_arrays(
        transitions,
        np.array([*rewards, [0, 0]], float),
        0.5,
        terminal=np.array([False, False, True]),
        initial=np.array([*initial, 0], float),
    )


END = [[2, 2], [2, 2]]
PROBES = {
    "constant value": build(END, [[1, 1], [1, 1]], [1, 0]),
    "the observation decides": build(END, [[1, 1], [-1, -1]], [0.5, 0.5]),
    "a second step pays": build([[1, 1], [2, 2]], [[0, 0], [1, 1]], [1, 0]),
    "the action decides": build(END, [[-1, 1], [-1, 1]], [1, 0]),
    "both decide": build(END, [[1, -1], [-1, 1]], [0.5, 0.5]),
}
"""World by name: critic; input of the critic; discounting; actor; both together."""


def all_probes(*, one_hot=True):
    """(environment, params with a leading axis of probes): one program solves them all."""
    pairs = [as_environment(world, one_hot=one_hot, max_steps=20) for world in PROBES.values()]
    return pairs[0][0], jax.tree.map(lambda *x: jnp.stack(x), *(params for _, params in pairs))


class Table(nn.Module):
    """One number for each state and output; observations are one-hot."""

    outputs: int
    start: float = 0.0

    @nn.compact
    def __call__(self, observations):
        shape = (observations.shape[-1], self.outputs)
        table = self.param("table", lambda key: jnp.full(shape, self.start))
        return observations @ table


def optimal_values():
    """V* of the two states of each probe, `[5, 2]`."""
    return np.stack([M.value_iteration(world, tolerance=1e-6).values[:2] for world in PROBES.values()])


class Pull(NamedTuple):
    """A continuous probe: in state s an action a in −1..1 pays reward[s] − price · (a − best[s])²."""

    reward: list
    best: list
    price: float
    following: list
    """State 2 is the end."""
    initial: list
    values: list
    """V* at γ = ½."""
    max_steps_in_episode: int = 2


CONTINUOUS_PROBES = {
    "constant value": Pull([1, 0, 0], [0, 0, 0], 0, [2, 2, 2], [1, 0], [1, np.nan]),
    "the observation decides": Pull([1, -1, 0], [0, 0, 0], 0, [2, 2, 2], [0.5, 0.5], [1, -1]),
    "a second step pays": Pull([0, 1, 0], [0, 0, 0], 0, [1, 2, 2], [1, 0], [0.5, 1]),
    "the action decides": Pull([1, 0, 0], [0.5, 0, 0], 1, [2, 2, 2], [1, 0], [1, np.nan]),
    "both decide": Pull([1, 1, 0], [0.5, -0.5, 0], 1, [2, 2, 2], [0.5, 0.5], [1, 1]),
    "a limit is no end": Pull([1, 1, 0], [0.5, 0, 0], 1, [0, 0, 0], [1, 0], [2, np.nan]),
}
"""The last one never ends: each episode is cut after two steps, and were that death, its value would be at most 1.5."""


class PullEnvironment:
    """Those worlds, which are its parameters; observations are one-hot vectors of the three states."""

    name = "Pull"

    def reset(self, key, params):
        place = jax.random.bernoulli(key, params.initial[1]).astype(jnp.int32)
        return jax.nn.one_hot(place, 3), (place, jnp.int32(0))

    def step(self, key, state, action, params):
        place, time = state
        reward = params.reward[place] - params.price * (action[0] - params.best[place]) ** 2
        following = params.following[place].astype(jnp.int32)
        terminated, truncated = following == 2, time + 1 >= params.max_steps_in_episode
        observation, done = jax.nn.one_hot(following, 3), terminated | truncated
        again, begun = self.reset(key, params)
        state = jax.tree.map(lambda a, b: jnp.where(done, a, b), begun, (following, time + 1))
        info = {"final_observation": observation}
        return jnp.where(done, again, observation), state, reward, terminated, truncated, info

    def action_space(self, params):
        return gymnax.environments.spaces.Box(-1, 1, (1,))


def all_continuous_probes():
    """(environment, params with a leading axis of probes)."""
    worlds = [Pull(*(jnp.asarray(x, jnp.float32) for x in world)) for world in CONTINUOUS_PROBES.values()]
    return PullEnvironment(), jax.tree.map(lambda *x: jnp.stack(x), *worlds)


class RecallParams(NamedTuple):
    """Of a world of memory."""

    max_steps_in_episode: int = 4


class Recall:
    """The first observation shows one of two cues, the others show none; the last action pays 1 if it names the cue, else −1.

    Whoever sees only the present earns 0 on average, and at most 1 with a memory.
    """

    name = "Recall"

    def reset(self, key, params):
        cue = jax.random.bernoulli(key).astype(jnp.int32)
        return self._show(cue, jnp.int32(0)), (cue, jnp.int32(0))

    def _show(self, cue, time):
        cues = jnp.where(time == 0, jax.nn.one_hot(cue, 2), 0)
        return jnp.concatenate([cues, jax.nn.one_hot(time, 4)])

    def step(self, key, state, action, params):
        cue, time = state
        terminated = time + 1 >= 4
        reward = jnp.where(terminated, jnp.where(action == cue, 1.0, -1.0), 0.0)
        observation = self._show(cue, time + 1)
        again, begun = self.reset(key, params)
        state = jax.tree.map(lambda a, b: jnp.where(terminated, a, b), begun, (cue, time + 1))
        info = {"final_observation": observation}
        return jnp.where(terminated, again, observation), state, reward, terminated, terminated, info

    def action_space(self, params):
        return gymnax.environments.spaces.Discrete(2)
