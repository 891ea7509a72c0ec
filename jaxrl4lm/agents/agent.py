"""An agent as pure functions, a whole training run as one of them, and its evaluation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxrl4lm.agents.config import AgentConfig
from jaxrl4lm.agents.environment import Film, Recall, Spec, film_episode, measure_returns
from jaxrl4lm.fields import check_count
from jaxrl4lm.types import Array, InputError, Key, Metrics

EVALUATION = 2**32 - 3
"""What a run's key is folded with to draw the episodes of its evaluations: training never sees it."""


class Agent(NamedTuple):
    """An algorithm, its networks and an environment; static. `config` and `params` (of the environment) may be traced.

    A state is a NamedTuple of arrays with at least `params`, and `statistics` of observations.
    """

    name: str
    spec: Spec
    init: Callable[[Key, Any, Any], Any]
    """(key, config, params of the environment) → the state before the first update."""
    update: Callable[[Any, Any, Any], tuple[Any, Metrics]]
    """(state, config, params of the environment) → (state, metrics); the state may be donated."""
    act: Callable[[Any, Key, Array], Array]
    """(what `view` gives, key, observations) → the actions by which the agent is judged."""
    value: Callable[[Any, Array], Array]
    """(what `view` gives, observations) → what the agent expects to earn."""
    start: Callable[[int], Any] = lambda copies: ()
    """(how many) → what the agent remembers before so many episodes."""
    recall: Callable[[Any, Any, Key, Array], tuple[Array, Any]] | None = None
    """(what `view` gives, memory, key, observations) → actions and the memory after them. None: `act` needs no memory; of an
    agent that has one, `act` is how it begins an episode."""


def view(state: Any) -> dict[str, Any]:
    """What acting needs of a state."""
    return {"params": state.params, "statistics": state.statistics}


def evaluate(agent: Agent, seen: Any, key: Key, params: Any, episodes: int) -> Array:
    """Undiscounted returns `[episodes]`. It reads of a state what `view` gives, and changes nothing.

    Args:
      seen: as `view` gives it.
      params: of the environment.
    """

    return measure_returns(key, agent.spec, params, _choose(agent, seen), agent.start(episodes), episodes)


def film(agent: Agent, seen: Any, key: Key, params: Any, episodes: int, length: int) -> Film:
    """The first of the episodes by which `evaluate` judges the agent, or its first `length` steps. Arguments as of it."""
    choose, start = _choose(agent, seen), agent.start(episodes)
    return film_episode(key, agent.spec, params, choose, start, episodes, length=length)


def _choose(agent: Agent, seen: Any) -> Recall:
    """How the agent acts where it is judged."""

    def choose(memory: Any, key: Key, observations: Array) -> tuple[Array, Any]:
        if agent.recall is None:
            return agent.act(seen, key, observations), memory
        return agent.recall(seen, memory, key, observations)

    return choose


def train(
    agent: Agent, key: Key, config: AgentConfig, params: Any, *, evaluations: int = 1, episodes: int = 16
) -> tuple[Any, Metrics]:
    """A whole run: exactly `config.steps` steps of the environment. `vmap` it over keys, leaves of the configuration and of
    `params`.

    Args:
      params: of the environment.
      evaluations: how often the agent is judged, at equal distances, last at the end; 0: never.
      episodes: of an evaluation.
    Returns:
      The last state; metrics `[updates]`, and `evaluation` `[evaluations]`, mean returns.
    Raises:
      InputError: if the steps or the evaluations do not divide, or there are less than 0, or less than an episode.
    """
    updates = config.count_updates()
    check_count("evaluations", evaluations)
    check_count("episodes", episodes, least=1)
    parts = max(evaluations, 1)
    if updates % parts:
        raise InputError(f"evaluations is {evaluations}: {updates} updates do not divide by it")
    key_evaluate = jax.random.fold_in(key, EVALUATION)

    def some(state: Any, _: None) -> tuple[Any, tuple[Metrics, Any]]:
        state, metrics = jax.lax.scan(
            lambda state, _: agent.update(state, config, params), state, length=updates // parts
        )
        score = evaluate(agent, view(state), key_evaluate, params, episodes).mean() if evaluations else ()
        return state, (metrics, score)

    state, (metrics, scores) = jax.lax.scan(some, agent.init(key, config, params), length=parts)
    history = {name: x.reshape(updates, *x.shape[2:]) for name, x in metrics.items()}
    return state, {**history, "evaluation": scores} if evaluations else history
