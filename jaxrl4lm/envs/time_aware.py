"""An environment whose observation tells the time that is left: the limit is part of the task, and an end like others."""

from typing import Any

import jax
import jax.numpy as jnp
from gymnax.environments import environment, spaces

from jaxrl4lm.types import Array, InputError, Key


class TimeAware(environment.Environment):
    """A gymnax environment whose limit of time is known.

    The last number of an observation, a flat float vector, is the share of the time that is left, from 1 to 0. The step at which
    none is left terminates: values need no bootstrap there, and what an agent learns is right for episodes of that length alone.

    Reference: Pardo et al. 2018, arXiv:1712.00378, sec. 3.
    """

    def __init__(self, inner: Any, params: Any):
        """Wraps an environment.

        Raises:
          InputError: if its observations are no arrays of numbers, or its parameters have no limit.
        """
        super().__init__()
        self.inner, self._default = inner, params
        if not hasattr(params, "max_steps_in_episode"):
            raise InputError(f"{inner.name} has no max_steps_in_episode: there is no time to be aware of")
        observation = jax.eval_shape(inner.reset, jax.random.key(0), params)[0]
        if not hasattr(observation, "dtype") or observation.shape == ():
            raise InputError(
                f"the observation of {inner.name} is no array: the time cannot be one more number of it"
            )
        self._shape, self._size = observation.shape, observation.size + 1

    @property
    def default_params(self) -> Any:
        """Those that it was made with."""
        return self._default

    @property
    def name(self) -> str:
        """Of the environment within."""
        return self.inner.name

    @property
    def num_actions(self) -> int:
        """Of the environment within."""
        return self.inner.num_actions

    def action_space(self, params: Any) -> Any:
        """Of the environment within."""
        return self.inner.action_space(params)

    def observation_space(self, params: Any) -> Any:
        """Any vector."""
        del params
        return spaces.Box(-jnp.inf, jnp.inf, (self._size,))

    def reset_env(self, key: Key, params: Any) -> tuple[Array, Any]:
        """The beginning of an episode."""
        observation, state = self.inner.reset_env(key, params)
        return self._tell(observation, state, params), state

    def step_env(
        self, key: Key, state: Any, action: Array, params: Any
    ) -> tuple[Array, Any, Array, Array, dict]:
        """A step; the last one that the limit allows terminates."""
        observation, state, reward, terminated, info = self.inner.step_env(key, state, action, params)
        terminated = jnp.logical_or(terminated, self.inner.is_truncated(state, params))
        return self._tell(observation, state, params), state, reward, terminated, info

    def is_truncated(self, state: Any, params: Any) -> Array:
        """Never: an end by time is an end."""
        del params
        return jnp.zeros_like(state.time, bool)

    def without_time(self, observations: Array) -> Array:
        """Observations `[..., size]` as those of the environment within, `[..., *shape]`, in float32."""
        return observations[..., :-1].reshape(*observations.shape[:-1], *self._shape)

    def _tell(self, observation: Array, state: Any, params: Any) -> Array:
        left = 1 - state.time / params.max_steps_in_episode
        return jnp.append(observation.astype(jnp.float32).reshape(-1), left.astype(jnp.float32))
