"""A control agent as a stage: many seeds, and many settings of its hyper-parameters, as one program."""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.agents.agent import Agent, evaluate, view
from jaxrl4lm.agents.config import AgentConfig
from jaxrl4lm.training.episode import make_exports
from jaxrl4lm.training.stage import Numbers, Stage
from jaxrl4lm.types import Array, InputError, Key, Metrics, Params

EPISODES = 16
"""Of an evaluation."""


def name_settings(sweep: Mapping[str, Sequence[float]]) -> list[str]:
    """The settings of a sweep in their order, as text, each another: one, without a name, if nothing is swept."""
    return [
        ", ".join(f"{name}={_say(value)}" for name, value in zip(sweep, values, strict=True))
        for values in itertools.product(*sweep.values())
    ]


def _say(value: float) -> str:
    """The shortest text of a number of 32 bits."""
    short = f"{value:g}"
    return short if np.float32(short) == np.float32(value) else str(np.float32(value))


def check_sweep(config: AgentConfig, sweep: Mapping[str, Sequence[float]]) -> None:
    """Raises InputError where a number is out of range, or a swept one has no value, or one twice."""
    config.check()
    for name, values in sweep.items():
        config.check_each(name, values)
        if not len(values):
            raise InputError(f"sweep has no value of {name}: give one")
        rounded = np.asarray(values, np.float32)
        for i, value in enumerate(values):
            if (rounded[:i] == rounded[i]).any():
                raise InputError(f"{name} has {value} twice, as numbers of 32 bits: leave one out")


def list_members(seed: int, seeds: int, sweep: Mapping[str, Sequence[float]]) -> tuple[Key, dict[str, Array]]:
    """Keys and swept hyper-parameters of each member `[settings * seeds]`; each setting has the same seeds."""
    settings = list(itertools.product(*sweep.values()))
    keys = jax.vmap(jax.random.key)(jnp.tile(jnp.arange(seed, seed + seeds), len(settings)))
    columns = np.repeat(np.array(settings, np.float32).reshape(len(settings), len(sweep)), seeds, axis=0)
    return keys, {name: jnp.asarray(columns[:, i]) for i, name in enumerate(sweep)}


def start_agents(
    algorithm: Agent,
    config: AgentConfig,
    params: Any,
    *,
    seed: int = 0,
    seeds: int = 1,
    sweep: Mapping[str, Sequence[float]] | None = None,
) -> Params:
    """Where the runs begin: what `agents.agent.view` gives of each, with the members as first axis. Arguments as of `agent`."""
    members = list_members(seed, seeds, sweep or {})
    return jax.jit(lambda keys, values: view(_begin(algorithm, config, params, keys, values)))(*members)


def _begin(algorithm: Agent, config: AgentConfig, params: Any, keys: Key, values: dict[str, Array]) -> Any:
    """The states of all members before the first update."""
    return jax.vmap(lambda key, own: algorithm.init(key, config.replace(**own), params))(keys, values)


def agent(
    algorithm: Agent,
    config: AgentConfig,
    params: Any,
    *,
    seed: int = 0,
    seeds: int = 1,
    sweep: Mapping[str, Sequence[float]] | None = None,
    evaluate_every: int | None = None,
    episodes: int = EPISODES,
) -> Stage:
    """Trains an agent of each setting and seed. It begins with what `start_agents` gives.

    Where the environment can be drawn, its run leaves pictures of the first agent's first episode of an evaluation.

    Args:
      algorithm: as `agents.ppo.make` and its siblings give it.
      config: the hyper-parameters that are not swept.
      params: of the environment.
      seed: the first seed.
      seeds: agents of each setting.
      sweep: values of hyper-parameters; each combination is a setting.
      evaluate_every: updates between evaluations; a twentieth of the run if None.
      episodes: of an evaluation, always the same ones.
    Raises:
      InputError: where a number is out of range, or the steps do not divide into updates.
    """
    sweep = dict(sweep or {})
    check_sweep(config, sweep)
    updates, labels = config.count_updates(), name_settings(sweep)
    keys, values = list_members(seed, seeds, sweep)

    def init(started: Params) -> Any:
        states = _begin(algorithm, config, params, keys, values)
        return states._replace(**jax.tree.map(jnp.copy, started))

    @partial(jax.jit, static_argnums=1, donate_argnums=0)
    def chunk(states: Any, count: int) -> tuple[Any, Metrics]:
        def once(state: Any, values: dict[str, Array]) -> tuple[Any, Metrics]:
            own = config.replace(**values)
            return jax.lax.scan(lambda state, _: algorithm.update(state, own, params), state, length=count)

        states, metrics = jax.vmap(once)(states, values)
        return states, {name: x.T for name, x in metrics.items()}

    @jax.jit
    def score(seen: Params) -> Array:
        key = jax.random.key(seed)
        return jax.vmap(lambda one: evaluate(algorithm, one, key, params, episodes).mean())(seen)

    def judge(seen: Params) -> Numbers:
        returns = np.asarray(score(seen))
        numbers = {"held_out": returns}
        if len(labels) > 1:
            parts = returns.reshape(len(labels), seeds)
            numbers |= {f"held_out/{label}": part for label, part in zip(labels, parts, strict=True)}
        return numbers

    part = max(updates // 20, 1)
    several = {f"held_out/{label}": label for label in labels} if len(labels) > 1 else {}
    return Stage(
        name=algorithm.name,
        steps=updates,
        chunk=min(evaluate_every or part, updates),
        stride=part,  # however rarely it is judged, it can be stopped and saved
        init=init,
        advance=lambda states, done, count: chunk(states, count),
        evaluate=judge,
        headline=lambda metrics: f"mean return {float(np.mean(metrics['held_out'])):.1f}",
        params_of=view,
        exports=make_exports(algorithm, params, seed=seed, episodes=episodes),
        panels=several or {"held_out": f"return of {episodes} episodes", "return": "return while learning"},
        axis=("environment step", lambda done: config.steps_before() + done * config.steps_per_update()),
        config={"algorithm": algorithm.name, "seeds": seeds, "seed": seed, "sweep": sweep},
    )
