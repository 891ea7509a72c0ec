"""What several chapters need of the 4×3 worlds: their cells' names, episodes, and gradients of episodes."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.envs import finite_mdp
from jaxrl4lm.mdp import FiniteMDP, GridWorld
from jaxrl4lm.types import Array, Key


class Episodes(NamedTuple):
    """`[N, T]` each."""

    states: Array
    actions: Array
    rewards: Array
    following: Array
    """The states after the actions."""
    mask: Array
    """True up to the step that ends an episode."""
    terminated: Array


def name_cells(world: GridWorld) -> dict[int, str]:
    """State → (column,row), counted from 1 at the lower left, as Russell & Norvig do."""
    rows = world.index.shape[0]
    return {
        int(world.index[row, column]): f"({column + 1},{rows - row})"
        for row, column in np.argwhere(world.index >= 0)
    }


def find_start(mdp: FiniteMDP) -> int:
    """The state in which episodes begin."""
    return int(np.argmax(np.asarray(mdp.initial)))


@partial(jax.jit, static_argnames=("count", "steps"))
def play(key: Key, mdp: FiniteMDP, policy: Array, *, count: int, steps: int) -> Episodes:
    """`count` episodes of at most `steps` steps, of a policy `[S, A]`: agent and environment in turn."""
    environment, params = finite_mdp.as_environment(mdp, max_steps=steps)

    def play_one(key: Key) -> Episodes:
        key_start, key_steps = jax.random.split(key)
        observation, state = environment.reset(key_start, params)

        def step(carry, key: Key):
            observation, state, going = carry
            key_action, key_step = jax.random.split(key)
            action = jax.random.categorical(key_action, jnp.log(policy[observation]))  # the agent
            after, state, reward, terminated, truncated, info = environment.step(  # the environment
                key_step, state, action, params
            )
            told = Episodes(observation, action, reward, info["final_observation"], going, terminated)
            return (after, state, going & ~(terminated | truncated)), told

        start = observation, state, jnp.bool_(True)
        return jax.lax.scan(step, start, jax.random.split(key_steps, steps))[1]

    return jax.vmap(play_one)(jax.random.split(key, count))
