"""Any `FiniteMDP` as a gymnax 1.0 environment. The MDP is its parameters: `vmap` over them for many MDPs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from gymnax.environments import environment, spaces

from jaxrl4lm.mdp import Banded, Dense, FiniteMDP
from jaxrl4lm.types import Array, Key

NO_LIMIT = 2**31 - 1


class FiniteMDPState(NamedTuple):
    """One episode."""

    position: Array
    """The MDP's state, int32."""
    time: Array
    """Steps taken, int32."""


class FiniteMDPParams(NamedTuple):
    """The world."""

    mdp: FiniteMDP
    max_steps_in_episode: int | Array = NO_LIMIT
    """Episodes are truncated after so many steps."""

    def replace(self, **changes: Any) -> "FiniteMDPParams":
        """With other fields, as gymnax's own parameters have it."""
        return self._replace(**changes)


class FiniteMDPEnvironment(environment.Environment):
    """A finite MDP to sample from.

    A step pays r(s, a, s′). A step into a terminal state pays γ times that state's value in addition, and terminates.
    So the expected return, discounted by the MDP's own γ, is the exact value of the MDP. The observation is the number
    of the state, or with `one_hot` a float vector `[S]`. An infeasible action is never taken: the first feasible one of
    the state stands in for it.
    """

    def __init__(
        self,
        num_states: int,
        num_actions: int,
        *,
        one_hot: bool = False,
        default: FiniteMDPParams | None = None,
    ):
        super().__init__()
        self._num_states, self._num_actions, self._one_hot = num_states, num_actions, one_hot
        self._default = default

    @property
    def num_states(self) -> int:
        """S."""
        return self._num_states

    @property
    def num_actions(self) -> int:
        """A."""
        return self._num_actions

    @property
    def default_params(self) -> Any:
        """The world that `as_environment` was given.

        Raises:
          ValueError: if the environment was made without one.
        """
        if self._default is None:
            raise ValueError("params is None: pass the parameters that as_environment(mdp) returns.")
        return self._default

    def feasible_actions(self, params: FiniteMDPParams) -> Array:
        """`[S, A]` bool: the actions that each state has."""
        return params.mdp.feasible

    def reset_env(self, key: Key, params: FiniteMDPParams) -> tuple[Array, FiniteMDPState]:
        """Draw the first state from the MDP's initial distribution."""
        position = jax.random.categorical(key, jnp.log(params.mdp.initial)).astype(jnp.int32)
        state = FiniteMDPState(position, jnp.int32(0))
        return self.observe(key, state, None, params), state

    def step_env(
        self, key: Key, state: FiniteMDPState, action: Any, params: FiniteMDPParams
    ) -> tuple[Array, FiniteMDPState, Array, Array, dict[Any, Any]]:
        """Draw the next state; the reward is that of the outcome where the MDP knows it."""
        mdp = params.mdp
        allowed = mdp.feasible[state.position]
        action = jnp.where(allowed[action], action, jnp.argmax(allowed))
        successors, probabilities = _list_outcomes(mdp, state.position, action)
        drawn = jax.random.categorical(key, jnp.log(probabilities))
        position = successors[drawn].astype(jnp.int32)
        reward = mdp.rewards[state.position, action]
        if mdp.outcome_rewards is not None:
            dense = isinstance(mdp.transitions, Dense)
            place = (state.position, action, drawn) if dense else (action, drawn, state.position)
            reward = mdp.outcome_rewards[place]
        terminated = mdp.terminal[position]
        reward = reward + jnp.where(terminated, mdp.discount * mdp.rewards[position].max(), 0)
        state = FiniteMDPState(position, state.time + 1)
        return self.observe(key, state, action, params), state, reward, terminated, {}

    def observe(self, key: Key, state: FiniteMDPState, action: Any, params: FiniteMDPParams) -> Array:
        """The state's number, or its one-hot vector."""
        if self._one_hot:
            return jax.nn.one_hot(state.position, self._num_states)
        return state.position

    def is_terminated(self, state: FiniteMDPState, params: FiniteMDPParams) -> Array:
        """Whether the state is terminal."""
        return params.mdp.terminal[state.position]

    def is_truncated(self, state: FiniteMDPState, params: FiniteMDPParams) -> Array:
        """Whether the limit cuts an episode that has not ended with this very step."""
        return super().is_truncated(state, params) & ~self.is_terminated(state, params)

    def action_space(self, params: Any = None) -> spaces.Discrete:
        """A actions."""
        return spaces.Discrete(self._num_actions)

    def observation_space(self, params: Any = None) -> spaces.Discrete | spaces.Box:
        """S numbers, or vectors `[S]`."""
        if self._one_hot:
            return spaces.Box(0, 1, (self._num_states,), jnp.float32)
        return spaces.Discrete(self._num_states)

    def state_space(self, params: Any = None) -> spaces.Dict:
        """The number of the state, and the time."""
        return spaces.Dict({"position": spaces.Discrete(self._num_states), "time": spaces.Discrete(NO_LIMIT)})


def as_environment(
    mdp: FiniteMDP, *, one_hot: bool = False, max_steps: int | Array | None = None
) -> tuple[FiniteMDPEnvironment, FiniteMDPParams]:
    """The environment and the parameters of an MDP, as `gymnax.make` returns them.

    Args:
      mdp: one MDP (of a population: any member; `vmap` over the parameters).
      one_hot: observations are vectors `[S]` (for networks); otherwise numbers (for tables).
      max_steps: truncate episodes after so many steps; by default the MDP's own horizon.
    """
    limit = max_steps if max_steps is not None else mdp.horizon
    params = FiniteMDPParams(mdp, jnp.asarray(NO_LIMIT if limit is None else limit, jnp.int32))
    size = mdp.num_states, mdp.num_actions
    return FiniteMDPEnvironment(*size, one_hot=one_hot, default=params), params


def _list_outcomes(mdp: FiniteMDP, position: Array, action: Array) -> tuple[Array, Array]:
    """The states that can follow, and their probabilities, `[K]` each."""
    kernel = mdp.transitions
    if isinstance(kernel, Dense):
        return jnp.arange(mdp.num_states), kernel.probabilities[position, action]
    if isinstance(kernel, Banded):
        return kernel.successors(position[None])[:, 0], kernel.probabilities[action, :, position]
    return kernel.successors[action, :, position], kernel.probabilities[action, :, position]
