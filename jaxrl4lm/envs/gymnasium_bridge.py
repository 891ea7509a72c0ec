"""Environments of Gymnasium, played on the host, with the gymnax 1.0 interface. Slow: each step is a call of Python.

An environment of Gymnasium is an object that changes as it is played, and a JAX program may be run again, mapped, resumed or
stopped at any point. What the program holds is therefore no such object but what decides an episode: the seed that it began
with and the actions so far. That is a state like any other, and one step of it is a pure function:

1. the episode of a seed and of actions is always the same, as Gymnasium asks of its environments (`env.reset(seed=...)`);
2. so a step may be called by `jax.pure_callback`, in any order, as often as XLA likes, or not at all;
3. live environments on the host are a cache of it: one that has played just those actions is stepped, and where there is none
   another is reset and plays them again.

`jit`, `vmap` (a batch is one callback, its copies are stepped one after another), `scan`, donation, evaluations between updates
and checkpoints are right by that; a run that goes on in another process plays the episodes under way once more, and ends with the
same bits. An environment that its seed does not decide (a real machine, a clock) can be trained on, but not so resumed.
"""

import dataclasses
import os
import re
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from jaxrl4lm.types import Array, InputError, Key
from jaxrl4lm.user_file import describe_error

PREFIX = "gym:"
"""Of names on the command line."""


@struct.dataclass
class State(environment.EnvState):
    """An episode under way; `time` is how many steps it has."""

    seed: Array
    """uint32: what it began with."""
    actions: Array
    """`[limit, ...]`: the first `time` are those that were taken."""
    cut: Array
    """bool: Gymnasium says that it is truncated."""


class Bridge(environment.Environment[State, environment.EnvParams]):
    """An environment of Gymnasium as one of gymnax. `make` and `wrap` build it."""

    def __init__(self, name: str, limit: int, player: "_Player", create_drawn: Callable[[], Any]):
        super().__init__()
        self._name, self._limit, self._player, self._create_drawn = name, limit, player, create_drawn

    @property
    def name(self) -> str:
        """Its id."""
        return self._name

    @property
    def default_params(self) -> environment.EnvParams:
        """The limit of Gymnasium; a lower one may be given, and traced."""
        return environment.EnvParams(max_steps_in_episode=self._limit)

    @property
    def num_actions(self) -> int:
        """How many actions there are, or numbers in one."""
        space = self._player.actions.space
        return space.n if isinstance(space, spaces.Discrete) else space.shape[0]

    def find_camera(self) -> Callable[[State, np.ndarray, Sequence[int]], dict[int, np.ndarray]] | None:
        """How to photograph an episode, on the host; None where the environment does not draw itself as images, or what it draws
        with is not installed.

        It is a function of the state that the episode began with, the actions `[T, ...]`, and the times of the pictures: uint8
        `[H, W, 3]` each.
        """
        os.environ.setdefault("SDL_AUDIODRIVER", "dummy")  # or pygame complains where there is no sound
        try:
            drawn = self._create_drawn()
            drawn.reset(seed=0)
            shown = drawn.render() if drawn.render_mode == "rgb_array" else None
        except Exception:  # whatever an environment says instead of drawing itself
            return None
        if not isinstance(shown, np.ndarray) or shown.ndim != 3:
            return None
        return partial(self._photograph, drawn)

    def _photograph(
        self, drawn: Any, begun: State, actions: np.ndarray, times: Sequence[int]
    ) -> dict[int, np.ndarray]:
        player, pictures = self._player, {}
        player.guard(drawn.reset, seed=int(begun.seed))
        for time in range(max(times) + 1):
            if time:
                player.guard(drawn.step, player.actions.to_gymnasium(actions[time - 1]))
            if time in times:
                pictures[time] = np.asarray(player.guard(drawn.render))
        return pictures

    def action_space(self, params: Any = None) -> Any:
        """Numbers from 0, or flat vectors."""
        del params
        return self._player.actions.space

    def observation_space(self, params: Any = None) -> Any:
        """Numbers from 0, or arrays."""
        del params
        return self._player.observations.space

    def reset_env(self, key: Key, params: Any) -> tuple[Array, State]:
        """The beginning of an episode, whose seed is drawn from the key."""
        del params
        seed = jax.random.bits(key, (), jnp.uint32)
        kept = self._player.actions.kept
        state = State(
            time=jnp.int32(0),
            seed=seed,
            actions=jnp.zeros((self._limit, *kept.shape), kept.dtype),
            cut=jnp.bool_(False),
        )
        observation = jax.pure_callback(
            self._player.begin, self._player.observations.kept, seed, vmap_method="broadcast_all"
        )
        return observation, state

    def step_env(
        self, key: Key, state: State, action: Array, params: Any
    ) -> tuple[Array, State, Array, Array, dict]:
        """A step. Chance within the environment is decided by the seed of the episode, not by the key."""
        del key, params
        # The limit of `params` is the business of `is_truncated`, and nothing begins here.
        _, observation, reward, terminated, cut = self._play(
            state, action, state.seed, self._limit, anew=False
        )
        following = dataclasses.replace(self._append(state, action), cut=cut)
        return observation, following, reward, terminated, {}

    def step(
        self, key: Key, state: State, action: Array, params: Any = None
    ) -> tuple[Array, State, Array, Array, Array, dict]:
        """A step, and the beginning of the next episode where it ends; gymnax would begin one at every step."""
        limit = jnp.int32((params or self.default_params).max_steps_in_episode)
        _, key_reset = jax.random.split(key)
        fresh = jax.random.bits(key_reset, (), jnp.uint32)
        observation, final, reward, terminated, cut = self._play(state, action, fresh, limit, anew=True)
        state = self._append(state, action)
        truncated = cut | (state.time >= limit)
        done = terminated | truncated
        seed, time = jnp.where(done, fresh, state.seed), jnp.where(done, 0, state.time)
        state = dataclasses.replace(state, seed=seed, time=time)
        info = {"terminated": terminated, "truncated": truncated, "final_observation": final}
        return observation, state, reward, terminated, truncated, info

    def is_truncated(self, state: State, params: Any) -> Array:
        """Whether Gymnasium, or a lower limit of `params`, cuts the episode."""
        return state.cut | (state.time >= params.max_steps_in_episode)

    def _play(
        self, state: State, action: Array, fresh: Array, limit: Array | int, *, anew: bool
    ) -> tuple[Array, Array, Array, Array, Array]:
        """(observation, the same before any reset, reward, terminated, truncated); as of `_Player.play`."""
        kept, seen = self._player.actions.kept, self._player.observations.kept
        flag = jax.ShapeDtypeStruct((), bool)
        return jax.pure_callback(
            partial(self._player.play, anew=anew),
            (seen, seen, jax.ShapeDtypeStruct((), jnp.float32), flag, flag),
            *(state.seed, state.time, state.actions, jnp.asarray(action).astype(kept.dtype)),
            *(fresh, jnp.int32(limit)),
            vmap_method="broadcast_all",
        )

    def _append(self, state: State, action: Array) -> State:
        """The state with one action more."""
        taken = state.actions.at[state.time].set(jnp.asarray(action).astype(state.actions.dtype))
        return dataclasses.replace(state, actions=taken, time=state.time + 1)


def make(name: str) -> tuple[Bridge, environment.EnvParams]:
    """A registered environment by its name, `gym:ID` or `gym:ID:STEPS`, with so many steps as the limit of an episode.

    Raises:
      InputError: if Gymnasium is not installed, or has no such environment, or agents cannot play it.
    """
    gymnasium = _import_gymnasium(name)
    identity, limit = name.removeprefix(PREFIX), None
    head, _, last = identity.rpartition(":")
    if head and (last.isdecimal() or re.search(r"-v\d+$", head)):  # else it is a name after its module
        if not last.isdecimal() or not 0 < int(last) < 2**31:
            raise InputError(f"{name}: {last} is no number of steps: give one from 1 to {2**31 - 1:,}")
        identity, limit = head, int(last)
    settings = {} if limit is None else {"max_episode_steps": limit}

    def create(**options: Any) -> Any:
        try:
            return gymnasium.make(identity, disable_env_checker=True, **settings, **options)
        except gymnasium.error.UnregisteredEnv as error:
            raise InputError(f"{name} is no environment of Gymnasium ({error}): check the name") from None
        except gymnasium.error.DependencyNotInstalled as error:
            raise InputError(f"{name} needs more than Gymnasium: {error}") from None
        except gymnasium.error.Error as error:
            raise InputError(f"{name} cannot be made: {error}") from None
        except Exception as error:  # whatever the environment or its module does wrong
            raise InputError(f"{name} cannot be made: {describe_error(error)}") from error

    return wrap(create, name=name, create_drawn=partial(create, render_mode="rgb_array"))


def wrap(
    create: Callable[[], Any],
    *,
    name: str | None = None,
    limit: int | None = None,
    create_drawn: Callable[[], Any] | None = None,
) -> tuple[Bridge, environment.EnvParams]:
    """An environment of Gymnasium, perhaps in wrappers, as one of gymnax, and its parameters.

    Args:
      create: makes one such environment; it is called for each copy that is played at once.
      name: for messages. None: its id, or its class.
      limit: steps of the longest episode; one that goes on is truncated. None: that of its registration.
      create_drawn: makes the same with render_mode "rgb_array", for the picture of an episode. None: `create`.
    Raises:
      InputError: if it has no limit, or agents cannot play it: observations must be an array or a number, actions a number
        or an array of floats, and vectors of environments are refused, as copies are made here.
    """
    gymnasium = _import_gymnasium(name or "a Gymnasium environment")
    first = create()
    if not isinstance(first, gymnasium.Env):
        raise InputError(
            f"{name or create} gave {type(first).__name__}, not a single gymnasium.Env: give one that is not vectorised"
        )
    registered = getattr(first, "spec", None)
    short: str = registered.id if registered else type(first.unwrapped).__name__
    name = name or short
    limit = limit or (registered.max_episode_steps if registered else None)
    if any(kind.__name__ == "FunctionalJaxEnv" for kind in type(first.unwrapped).__mro__):
        raise InputError(
            f"{name} runs JAX itself, which waits for ever within a JAX program: choose one that does not"
        )
    player = _Player(name, create, first)
    if not limit:
        how = f"as {name}:1000" if name.startswith(PREFIX) else "by limit="
        raise InputError(f"{name} has no limit of steps, and an evaluation would never end: give one, {how}")
    bridge = Bridge(short, limit, player, create_drawn or create)
    return bridge, bridge.default_params


def _import_gymnasium(name: str) -> Any:
    try:
        import gymnasium
    except ImportError:
        raise InputError(f"{name} needs Gymnasium: pip install 'jaxrl4lm[gymnasium]'") from None
    return gymnasium


class _Space(NamedTuple):
    """A space of Gymnasium, as JAX sees it."""

    kept: jax.ShapeDtypeStruct
    """An element of it."""
    space: Any
    """That of gymnax."""
    to_gymnasium: Callable[[np.ndarray], Any]
    from_gymnasium: Callable[[Any], Any]


def _read_observations(space: Any, name: str) -> _Space:
    kind = type(space).__name__
    if kind == "Discrete":
        return _read_numbers(space)
    if kind not in ("Box", "MultiBinary", "MultiDiscrete"):
        raise InputError(
            f"the observations of {name} are {kind}, agents need an array or a number: put it in a wrapper, as "
            "gymnasium.wrappers.FlattenObservation, in a function of yours (--env FILE.py:function)"
        )
    low, high = getattr(space, "low", -np.inf), getattr(space, "high", np.inf)
    dtype = jax.dtypes.canonicalize_dtype(space.dtype)
    box = spaces.Box(low, high, space.shape, dtype)
    return _Space(jax.ShapeDtypeStruct(space.shape, dtype), box, lambda x: x, lambda x: x)


def _read_actions(space: Any, name: str) -> _Space:
    kind = type(space).__name__
    if kind == "Discrete":
        return _read_numbers(space)
    if kind != "Box" or not np.issubdtype(space.dtype, np.floating):
        raise InputError(
            f"the actions of {name} are {space}, agents need a number or an array of floats: put it in a wrapper, in a "
            "function of yours (--env FILE.py:function)"
        )
    low, high = (np.asarray(x, np.float32).reshape(-1) for x in (space.low, space.high))
    box = spaces.Box(jnp.asarray(low), jnp.asarray(high), low.shape, jnp.float32)

    def to_gymnasium(action: np.ndarray) -> np.ndarray:
        # A rounding of float32 may lie outside of the bounds, which some environments refuse.
        return np.clip(action, low, high).reshape(space.shape).astype(space.dtype)

    return _Space(jax.ShapeDtypeStruct(low.shape, jnp.float32), box, to_gymnasium, lambda x: x)


def _read_numbers(space: Any) -> _Space:
    start = int(space.start)
    return _Space(
        jax.ShapeDtypeStruct((), jnp.int32),
        spaces.Discrete(int(space.n)),
        lambda action: int(action) + start,
        lambda observation: int(observation) - start,
    )


class _Player:
    """Plays episodes on the host. What it gives is a function of what it is given alone; its live environments are a cache."""

    def __init__(self, name: str, create: Callable[[], Any], first: Any):
        self.observations = _read_observations(first.observation_space, name)
        self.actions = _read_actions(first.action_space, name)
        self._name, self._create = name, create
        self._most, self._made = 1, 1
        self._live: dict[int, tuple[Any, bytes]] = {id(first): (first, b"")}
        """Environments and the episodes that they are in, the one that was used last at the end."""
        self._by_episode: dict[bytes, list[int]] = {b"": [id(first)]}
        self._lock = threading.Lock()  # programs of several devices call at once

    def begin(self, seed: Any) -> np.ndarray:
        """The first observations `[..., *shape]` of the episodes of seeds `[...]`."""
        seeds = np.asarray(seed)
        observations = self._allocate(seeds.shape)
        with self._lock:
            self._make_room(seeds.size)
            for row, each in enumerate(seeds.reshape(-1)):
                observations[row] = self._begin(self._find_spare(), each)
        return observations.reshape((*seeds.shape, *observations.shape[1:]))

    def play(self, *given: Any, anew: bool) -> tuple[np.ndarray, ...]:
        """One step of episodes `[...]`.

        Args:
          given: seeds, steps so far, actions so far `[..., limit, ...]`, actions now, seeds of the next episodes, and steps
            after which an episode is cut.
          anew: whether an episode begins where one has ended.
        Returns:
          The observations to go on from, those before any reset, rewards, whether they have terminated, and whether
          Gymnasium has truncated them.
        """
        lead = np.shape(given[0])
        rows = [np.asarray(x).reshape((-1, *np.shape(x)[len(lead) :])) for x in given]
        count = len(rows[0])
        after, final = self._allocate(lead), self._allocate(lead)
        rewards, ends = np.zeros(count, np.float32), np.zeros((2, count), bool)
        with self._lock:
            self._make_room(count)
            for row, (seed, time, past, action, fresh, limit) in enumerate(zip(*rows, strict=True)):
                if time >= len(past):
                    raise InputError(
                        f"an episode of {self._name} is longer than {len(past)} steps: cut it there"
                    )
                live, episode = self._find(seed, past[:time])
                final[row], rewards[row], *ends[:, row] = self._step(live, action)
                if anew and (ends[:, row].any() or time + 1 >= limit):
                    after[row] = self._begin(live, fresh)
                else:
                    after[row] = final[row]
                    self._keep(live, episode + action.tobytes())
        return tuple(x.reshape((*lead, *x.shape[1:])) for x in (after, final, rewards, *ends))

    def _allocate(self, lead: tuple[int, ...]) -> np.ndarray:
        kept = self.observations.kept
        return np.zeros((int(np.prod(lead)), *kept.shape), kept.dtype)

    def _make_room(self, count: int) -> None:
        """Twice what is played at once: an evaluation between updates leaves their episodes alive."""
        self._most = max(self._most, 2 * count)

    def _find(self, seed: np.ndarray, past: np.ndarray) -> tuple[Any, bytes]:
        """An environment that is in the episode of that seed and of those actions, and the episode's name."""
        episode = seed.tobytes() + past.tobytes()
        if waiting := self._by_episode.get(episode):
            return self._take(waiting[-1]), episode
        live = self._find_spare()
        self.guard(live.reset, seed=int(seed))
        for action in past:
            self._step(live, action)
        return live, episode

    def _find_spare(self) -> Any:
        """An environment whose episode is given up: a new one, or the one that was not used for longest."""
        if self._made < self._most or not self._live:
            self._made += 1
            return self._create()
        return self._take(next(iter(self._live)))

    def _take(self, which: int) -> Any:
        live, episode = self._live.pop(which)
        waiting = self._by_episode[episode]
        waiting.remove(which)
        if not waiting:
            del self._by_episode[episode]
        return live

    def _keep(self, live: Any, episode: bytes) -> None:
        self._live[id(live)] = live, episode
        self._by_episode.setdefault(episode, []).append(id(live))

    def _begin(self, live: Any, seed: np.ndarray) -> Any:
        observation, _ = self.guard(live.reset, seed=int(seed))
        self._keep(live, seed.tobytes())
        return self.observations.from_gymnasium(observation)

    def _step(self, live: Any, action: np.ndarray) -> tuple[Any, float, bool, bool]:
        """(observation, reward, terminated, truncated)"""
        observation, reward, terminated, truncated, _ = self.guard(
            live.step, self.actions.to_gymnasium(action)
        )
        return (
            self.observations.from_gymnasium(observation),
            float(reward),
            bool(terminated),
            bool(truncated),
        )

    def guard(self, function: Callable[..., Any], *args: Any, **named: Any) -> Any:
        """What a call of the environment gives; what it raises is told as what its author is to mend."""
        try:
            return function(*args, **named)
        except Exception as error:
            raise InputError(
                f"{self._name}, as it was played, raised {describe_error(error)}: mend it"
            ) from error
