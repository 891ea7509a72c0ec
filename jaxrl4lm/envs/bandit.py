"""A bandit as a gymnax 1.0 environment: an episode is played in one world until the time limit."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from gymnax.environments import environment, spaces

from jaxrl4lm.bandits import Problem
from jaxrl4lm.types import Array, Key


class BanditState(NamedTuple):
    """One episode."""

    world: Any
    """One world (R = 1) of the problem."""
    observation: Array
    """What the learner sees."""
    time: Array
    """Choices made."""


class BanditParams(NamedTuple):
    """The length of an episode. (The problem is a part of the environment.)"""

    max_steps_in_episode: int | Array = 1000

    def replace(self, **changes: Any) -> "BanditParams":
        """With other fields, as gymnax's own parameters have it."""
        return self._replace(**changes)


class BanditEnvironment(environment.Environment):
    """Any bandit problem. Episodes never terminate; they are truncated.

    The observation is the context `[d]`. Without contexts it is the last choice, one-hot, and its reward, `[K + 1]`
    (zeros at first), from which an agent with a memory can learn to explore. `info["regret"]` is the expected reward
    that was lost against the best arm.
    """

    def __init__(self, problem: Problem):
        super().__init__()
        self._problem = problem
        context = problem.context(jax.random.key(0), 1)
        self._has_context = context is not None
        self._size = problem.num_arms + 1 if context is None else context.shape[0]

    @property
    def default_params(self) -> Any:
        """A thousand steps."""
        return BanditParams()

    @property
    def num_actions(self) -> int:
        """K."""
        return self._problem.num_arms

    def reset_env(self, key: Key, params: BanditParams) -> tuple[Array, BanditState]:
        """Draw a world."""
        key_world, key_context = jax.random.split(key)
        observation = self._context(key_context, jnp.zeros(self._size))
        state = BanditState(self._problem.init(key_world, 1), observation, jnp.int32(0))
        return observation, state

    def step_env(
        self, key: Key, state: BanditState, action: Any, params: BanditParams
    ) -> tuple[Array, BanditState, Array, Array, dict[Any, Any]]:
        """Pull an arm. The expected reward is that of the context observed before."""
        key_noise, key_evolve, key_context = jax.random.split(key, 3)
        seen = state.observation[:, None] if self._has_context else None
        means = self._problem.means(state.world, seen)[:, 0]
        reward = self._problem.pull(means[action][None], self._problem.noise(key_noise, 1, 1)[0])[0]
        world = self._problem.evolve(state.world, key_evolve)
        brought = jnp.append(jax.nn.one_hot(action, self.num_actions), reward)
        observation = self._context(key_context, brought)
        info = {"regret": means.max() - means[action]}
        state = BanditState(world, observation, state.time + 1)
        return observation, state, reward, jnp.asarray(False), info

    def is_terminated(self, state: BanditState, params: BanditParams) -> Array:
        """Never."""
        return jnp.asarray(False)

    def action_space(self, params: Any = None) -> spaces.Discrete:
        """K arms."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> spaces.Box:
        """Real vectors."""
        return spaces.Box(-jnp.inf, jnp.inf, (self._size,), jnp.float32)

    def state_space(self, params: Any = None) -> spaces.Dict:
        """What the learner sees, and the time; the world is hidden."""
        return spaces.Dict(
            {"observation": self.observation_space(params), "time": spaces.Discrete(2**31 - 1)}
        )

    def _context(self, key: Key, otherwise: Array) -> Array:
        context = self._problem.context(key, 1)
        return otherwise if context is None else context[:, 0]
