"""What agents see of a gymnax 1.0 environment: its shapes, its actions, and rollouts that keep termination and truncation apart.

Shapes: `T` time, `N` copies of the environment side by side.
"""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnax
import jax
import jax.numpy as jnp

from jaxrl4lm.agents.actions import Actions, choose_actions
from jaxrl4lm.envs import gymnasium_bridge
from jaxrl4lm.envs.time_aware import TimeAware
from jaxrl4lm.types import Array, InputError, Key
from jaxrl4lm.user_file import describe_error, load_function

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


def make_environment(name: str, *, time_aware: bool = False) -> tuple[Any, Any]:
    """An environment and its default parameters.

    Args:
      name: of a gymnax environment; gym:ID of one of Gymnasium (`envs.gymnasium_bridge`); or FILE.py:function, which gives an
        environment of the gymnax 1.0 interface and its parameters.
      time_aware: whether observations tell the time that is left (`envs.time_aware`).
    Raises:
      InputError: if there is none of that name.
    """
    path, _, function = name.rpartition(":")
    if path.endswith(".py"):
        environment, params = _make_own(pathlib.Path(path), function)
    elif name.startswith(gymnasium_bridge.PREFIX):
        environment, params = gymnasium_bridge.make(name)
    else:
        try:
            environment, params = gymnax.make(name)
        except ValueError:
            names = ", ".join(gymnax.registered_envs)
            raise InputError(
                f"{name} is no environment: name gym:ID, FILE.py:function or one of {names}"
            ) from None
        except OSError as error:  # MNISTBandit downloads
            raise InputError(f"{name} cannot be made: {describe_error(error)}") from None
    return (TimeAware(environment, params), params) if time_aware else (environment, params)


def _make_own(path: pathlib.Path, function: str) -> tuple[Any, Any]:
    """What a user's function gives, if it is an environment with its parameters."""
    name = f"{path}:{function}"
    try:
        made = load_function(path, function, name)()
    except InputError:
        raise
    except Exception as error:  # whatever the user's function does wrong
        raise InputError(f"{name} raised {describe_error(error)}: mend the function") from error
    if not isinstance(made, tuple) or len(made) != 2 or not hasattr(made[0], "step"):
        raise InputError(
            f"{name} gave {type(made).__name__}: return an environment and its parameters, two values"
        )
    if not hasattr(made[1], "max_steps_in_episode"):
        raise InputError(
            f"{name}: its parameters have no max_steps_in_episode: say after how many steps an episode is cut"
        )
    return made


def describe(environment: Any, params: Any) -> Spec:
    """The spec of an environment. Only shapes, the action space and the time limit are read from `params`."""
    observation, _ = jax.eval_shape(environment.reset, jax.random.key(0), params)
    is_number = observation.shape == () and jnp.issubdtype(observation.dtype, jnp.integer)
    # Shapes are those of real observations: what spaces declare is wrong in some environments of gymnax.
    categories = getattr(environment.observation_space(params), "n", None) if is_number else None
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
    keys: Key, spec: Spec, params: Any, place: Place, action: Array, extra: Any = ()
) -> tuple[Place, Transition]:
    """One step of every copy, with a key each `[N]`; where an episode ends the next one has begun."""
    observation, state, reward, terminated, truncated, info = jax.vmap(
        spec.environment.step, (0, 0, 0, None)
    )(keys, place.state, spec.actions.to_environment(action), params)
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


Choose = Callable[[Key, Place], tuple[Array, Any]]
"""(key, where the copies are) → actions `[N, ...]`, and what else to keep."""


def play(
    key: Key, spec: Spec, params: Any, place: Place, choose: Choose, length: int
) -> tuple[Place, Transition]:
    """`length` steps of every copy, by a choice that may look at more than observations."""

    def once(place: Place, keys: tuple[Key, Key]) -> tuple[Place, Transition]:
        key_choose, keys_step = keys
        return step(keys_step, spec, params, place, *choose(key_choose, place))

    return jax.lax.scan(once, place, split_keys(key, length, place.episodes.running.shape[0]))


def split_keys(key: Key, length: int, count: int) -> tuple[Key, Key]:
    """Keys to choose by `[length]`, and to step `count` copies by `[length, count]`.

    All at once: to split a key in each step would cost more than the step of a small world.
    """
    keys = jax.vmap(jax.random.split)(jax.random.split(key, length))
    return keys[:, 0], jax.vmap(lambda key: jax.random.split(key, count))(keys[:, 1])


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
    return play(key, spec, params, place, lambda key, place: choose(key, place.observation), length)


Recall = Callable[[Any, Key, Array], tuple[Array, Any]]
"""(memory, key, observations `[N, ...]`) → (actions `[N, ...]`, the memory after them)."""


def measure_returns(key: Key, spec: Spec, params: Any, choose: Recall, memory: Any, episodes: int) -> Array:
    """Undiscounted returns `[episodes]` of so many episodes, one of each copy; a policy is judged by their mean.

    A scan over the horizon, with what comes after an end masked: its program has no branches, however it is mapped.

    Args:
      memory: before the first step; () of policies without one.
    """
    start, go_on, keys = _begin_episodes(key, spec, params, choose, memory, episodes)

    def once(carry: tuple[Any, Array], keys: tuple[Key, Key]) -> tuple[tuple[Any, Array], None]:
        playing, total = carry
        playing, transition, alive = go_on(playing, keys)
        return (playing, total + jnp.where(alive, transition.reward, 0)), None

    return jax.lax.scan(once, (start, jnp.zeros(episodes)), keys)[0][1]


class Film(NamedTuple):
    """An episode as it was played, `[T, ...]`."""

    begun: Any
    """The state of the environment before the first step."""
    observation: Array
    """Before each step."""
    action: Array
    """As the environment was given it."""
    reward: Array
    final_observation: Array
    """After each step, before any reset."""
    alive: Array
    """bool: the step is of the episode; False after its end, in another one."""


def film_episode(
    key: Key, spec: Spec, params: Any, choose: Recall, memory: Any, episodes: int, *, length: int
) -> Film:
    """The first of the episodes that `measure_returns` plays with the same arguments; of a longer one `length` steps."""
    start, go_on, keys = _begin_episodes(key, spec, params, choose, memory, episodes)

    def once(playing: Any, keys: tuple[Key, Key]) -> tuple[Any, Film]:
        playing, transition, alive = go_on(playing, keys)
        action = spec.actions.to_environment(transition.action)
        shown = transition.observation, action, transition.reward, transition.final_observation, alive
        return playing, Film((), *(x[0] for x in shown))

    _, shot = jax.lax.scan(once, start, jax.tree.map(lambda x: x[:length], keys))
    return shot._replace(begun=jax.tree.map(lambda x: x[0], start[0].state))


def _begin_episodes(
    key: Key, spec: Spec, params: Any, choose: Recall, memory: Any, episodes: int
) -> tuple[Any, Callable[[Any, tuple[Key, Key]], tuple[Any, Transition, Array]], tuple[Key, Key]]:
    """(where they begin, how they go on, the keys of each step).

    They go on by (where they are, keys) → (where they are then, the step, whether it is of the first episode of each copy).
    """
    key_begin, key_play = jax.random.split(key)

    def go_on(playing: tuple[Place, Any, Array], keys: tuple[Key, Key]) -> tuple[Any, Transition, Array]:
        place, memory, alive = playing
        key_choose, keys_step = keys
        actions, memory = choose(memory, key_choose, place.observation)
        place, transition = step(keys_step, spec, params, place, actions)
        going_on = alive & ~(transition.terminated | transition.truncated)
        return (place, memory, going_on), transition, alive

    start = begin(key_begin, spec, params, episodes), memory, jnp.ones(episodes, bool)
    return start, go_on, split_keys(key_play, spec.horizon, episodes)
