"""What agents see of a gymnax 1.0 environment: its shapes, its actions, and rollouts that keep termination and truncation apart.

Shapes: `T` time, `N` copies of the environment side by side.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnax
import jax
import jax.numpy as jnp

from jaxrl4lm.agents.actions import Actions, choose_actions
from jaxrl4lm.types import Array, InputError, Key

MINATAR = "gymnax.environments.minatar"
"""The module of games whose observations are floats but of zeros and ones only; their declared space does not say so."""


class Spec(NamedTuple):
    """An environment, and what its spaces say; static."""

    environment: Any
    actions: Actions
    shape: tuple[int, ...]
    """Of an observation as networks see it: numbers of states are one-hot vectors."""
    categories: int | None
    """How many numbers an observation can be; None where it is an array."""
    binary: bool
    """An observation has only zeros and ones: it is kept as booleans, a quarter of the bytes."""
    horizon: int
    """Steps of the longest episode."""

    def encode(self, observations: Array) -> Array:
        """Observations as float32 `[..., *shape]`."""
        if self.categories is not None:
            return jax.nn.one_hot(observations, self.categories)
        return observations.astype(jnp.float32)

    def keep(self, observations: Array) -> Array:
        """Observations as they are kept until networks see them."""
        return observations.astype(bool) if self.binary else observations


class Transition(NamedTuple):
    """A step, `[T, N, ...]` of a rollout."""

    observation: Array
    action: Array
    """As it was drawn, not as the environment was given it."""
    reward: Array
    terminated: Array
    """The episode has ended: nothing follows."""
    truncated: Array
    """A time limit has cut the episode, and it has not ended: what would follow has a value."""
    final_observation: Array
    """The observation after the step, before any reset."""
    extra: Any
    """What else the policy keeps of the moment."""


class Episodes(NamedTuple):
    """What is known of episodes under way, `[N]` each."""

    running: Array
    """Sum of the rewards so far."""
    last: Array
    """That of the last complete episode; nan before it."""


class Place(NamedTuple):
    """Where the copies of the environment are, `[N]`."""

    state: Any
    observation: Array
    episodes: Episodes


def make_environment(name: str) -> tuple[Any, Any]:
    """A gymnax environment and its default parameters.

    Raises:
      InputError: if there is none of that name.
    """
    try:
        return gymnax.make(name)
    except ValueError:
        names = ", ".join(gymnax.registered_envs)
        raise InputError(f"{name} is no environment: name one of {names}") from None


def describe(environment: Any, params: Any) -> Spec:
    """The spec of an environment. Only shapes, the action space and the time limit are read from `params`."""
    observation, _ = jax.eval_shape(environment.reset, jax.random.key(0), params)
    is_number = observation.shape == () and jnp.issubdtype(observation.dtype, jnp.integer)
    categories = environment.observation_space(params).n if is_number else None
    return Spec(
        environment=environment,
        actions=choose_actions(environment, params),
        shape=observation.shape if categories is None else (categories,),
        categories=categories,
        binary=type(environment).__module__.startswith(MINATAR),
        horizon=int(params.max_steps_in_episode),
    )


def begin(key: Key, spec: Spec, params: Any, count: int) -> Place:
    """`count` copies at the beginning of an episode."""
    observation, state = jax.vmap(spec.environment.reset, (0, None))(jax.random.split(key, count), params)
    return Place(state, spec.keep(observation), Episodes(jnp.zeros(count), jnp.full(count, jnp.nan)))


def step(
    key: Key, spec: Spec, params: Any, place: Place, action: Array, extra: Any = ()
) -> tuple[Place, Transition]:
    """One step of every copy; where an episode ends the next one has begun."""
    count = place.episodes.running.shape[0]
    observation, state, reward, terminated, truncated, info = jax.vmap(
        spec.environment.step, (0, 0, 0, None)
    )(jax.random.split(key, count), place.state, spec.actions.to_environment(action), params)
    reward, terminated = reward.astype(jnp.float32), terminated.astype(bool)
    truncated = truncated.astype(bool) & ~terminated  # gymnax may set both, and an end is an end
    running, done = place.episodes.running + reward, terminated | truncated
    episodes = Episodes(jnp.where(done, 0, running), jnp.where(done, running, place.episodes.last))
    transition = Transition(
        place.observation,
        action,
        reward,
        terminated,
        truncated,
        spec.keep(info["final_observation"]),
        extra,
    )
    return Place(state, spec.keep(observation), episodes), transition


def roll_out(
    key: Key,
    spec: Spec,
    params: Any,
    place: Place,
    choose: Callable[[Key, Array], tuple[Array, Any]],
    length: int,
) -> tuple[Place, Transition]:
    """`length` steps of every copy.

    Args:
      choose: (key, observations `[N, ...]`) → (actions `[N, ...]`, what else to keep).
    """

    def once(place: Place, key: Key) -> tuple[Place, Transition]:
        key_choose, key_step = jax.random.split(key)
        return step(key_step, spec, params, place, *choose(key_choose, place.observation))

    return jax.lax.scan(once, place, jax.random.split(key, length))


def measure_returns(
    key: Key,
    spec: Spec,
    params: Any,
    choose: Callable[[Any, Key, Array], tuple[Array, Any]],
    memory: Any,
    episodes: int,
) -> Array:
    """Undiscounted returns `[episodes]` of so many episodes, one of each copy; a policy is judged by their mean.

    A scan over the horizon, with what comes after an end masked: its program has no branches, however it is mapped.

    Args:
      choose: (memory, key, observations `[N, ...]`) → (actions `[N, ...]`, the memory after them).
      memory: before the first step; () of policies without one.
    """
    key_begin, key_play = jax.random.split(key)

    def once(
        carry: tuple[Place, Any, Array, Array], key: Key
    ) -> tuple[tuple[Place, Any, Array, Array], None]:
        place, memory, alive, total = carry
        key_choose, key_step = jax.random.split(key)
        actions, memory = choose(memory, key_choose, place.observation)
        place, transition = step(key_step, spec, params, place, actions)
        total += jnp.where(alive, transition.reward, 0)
        return (place, memory, alive & ~(transition.terminated | transition.truncated), total), None

    place = begin(key_begin, spec, params, episodes)
    start = place, memory, jnp.ones(episodes, bool), jnp.zeros(episodes)
    return jax.lax.scan(once, start, jax.random.split(key_play, spec.horizon))[0][3]
