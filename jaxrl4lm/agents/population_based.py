"""Population-based training: now and then the worst members go on from the best ones, with other hyper-parameters.

    advance every member → judge it → the worst copy some of the best and change what they copied → ...

Shapes: `N` members, the leading axis of every leaf; `G` generations.
Reference: Jaderberg et al. 2017, arXiv:1711.09846: truncation selection, and perturbation as in appendix A.1.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp

from jaxrl4lm.agents.agent import EVALUATION, Agent, evaluate, view
from jaxrl4lm.agents.config import AgentConfig
from jaxrl4lm.fields import check_count, find_range
from jaxrl4lm.types import Array, InputError, Key


class Population(NamedTuple):
    """Everything that a population is at one moment."""

    states: Any
    """Of the agents."""
    values: Mapping[str, Array]
    """Their hyper-parameters, `[N]` each; the fields of the configuration of these names."""
    key: Key
    generation: Array
    """int32: how many have been."""


class Generation(NamedTuple):
    """What became of a generation."""

    score: Array
    """`[N]`: mean returns of the episodes that judged it."""
    values: Mapping[str, Array]
    """`[N]` each: the hyper-parameters that it was trained with."""
    parent: Array
    """int32 `[N]`: from whom each member goes on; itself, but for the worst."""


def init(key: Key, agent: Agent, config: AgentConfig, params: Any, values: Mapping[str, Array]) -> Population:
    """The population before its first generation.

    Args:
      params: of the environment.
      values: hyper-parameters of each member, by fields of `config`: `[N]` each, N ≥ 2.
    Raises:
      InputError: where no field can have them; values that are traced are not looked at.
    """
    values = {name: jnp.asarray(x, jnp.float32) for name, x in values.items()}
    sizes = {x.shape for x in values.values()}
    if len(sizes) != 1 or len(shape := sizes.pop()) != 1 or shape[0] < 2:
        shapes = ", ".join(f"{name} {x.shape}" for name, x in values.items()) or "none"
        raise InputError(f"values must be hyper-parameters of two members or more, [N] each, not {shapes}")
    for name, x in values.items():
        find_range(config, name)
        if not isinstance(x, jax.core.Tracer):
            config.check_each(name, x.tolist())
    keys = jax.random.split(key, shape[0] + 1)
    states = jax.vmap(lambda key, own: agent.init(key, config.replace(**own), params))(keys[1:], values)
    return Population(states, values, keys[0], jnp.int32(0))


def advance(
    population: Population,
    agent: Agent,
    config: AgentConfig,
    params: Any,
    *,
    updates: int,
    episodes: int = 16,
    share: float = 0.2,
    factor: float = 1.2,
) -> tuple[Population, Generation]:
    """A generation: so many updates of every member, then the worst go on from the best.

    Args:
      updates: of each member; static.
      episodes: that judge a member, the same for all.
      share, factor: as of `breed`.
    Raises:
      InputError: where one is out of range.
    """
    check_count("updates", updates, least=1)
    check_count("episodes", episodes, least=1)
    key = jax.random.fold_in(population.key, population.generation)

    def train(state: Any, own: Mapping[str, Array]) -> tuple[Any, Array]:
        hyper = config.replace(**own)
        state, _ = jax.lax.scan(
            lambda state, _: (agent.update(state, hyper, params)[0], None), state, length=updates
        )
        judging = jax.random.fold_in(key, EVALUATION)
        return state, evaluate(agent, view(state), judging, params, episodes).mean()

    states, score = jax.vmap(train)(population.states, population.values)
    parent, values = breed(key, score, population.values, config, share=share, factor=factor)
    copied = jax.tree.map(lambda x: x[parent], states)
    # Its own key: or both would go on with the same random numbers.
    after = Population(copied._replace(key=states.key), values, population.key, population.generation + 1)
    return after, Generation(score, population.values, parent)


def train(
    key: Key,
    agent: Agent,
    config: AgentConfig,
    params: Any,
    values: Mapping[str, Array],
    *,
    generations: int,
    episodes: int = 16,
    share: float = 0.2,
    factor: float = 1.2,
) -> tuple[Population, Generation]:
    """A whole run of exactly `config.steps` steps a member, as one program.

    Arguments as of `init` and `advance`.

    Args:
      generations: equal parts of the run, static.
    Returns:
      The population after the last generation, and what became of each, leaves `[G, N]`.
    Raises:
      InputError: if the updates do not divide into generations; as `init` and `advance`.
    """
    updates = config.count_updates()
    check_count("generations", generations, least=1)
    if updates % generations:
        raise InputError(f"generations is {generations}: {updates} updates do not divide by it")
    options: dict[str, Any] = {"episodes": episodes, "share": share, "factor": factor}

    def generation(population: Population, _: None) -> tuple[Population, Generation]:
        return advance(population, agent, config, params, updates=updates // generations, **options)

    return jax.lax.scan(generation, init(key, agent, config, params, values), length=generations)


def breed(
    key: Key,
    score: Array,
    values: Mapping[str, Array],
    config: Any,
    *,
    share: float = 0.2,
    factor: float = 1.2,
) -> tuple[Array, dict[str, Array]]:
    """(parents int32 `[N]`, hyper-parameters): each of the worst takes those of one of the best, and changes them.

    Args:
      score: `[N]`; what is no number is worst.
      values: hyper-parameters of the members, `[N]` each.
      config: the record of which they are fields; they stay in their ranges.
      share: of members that are replaced, at most half, rounded down, but one at least unless it is 0; as many best ones are
        copied, each as likely.
      factor: by which a copied number is multiplied or divided, each as likely; near an end of a range, as of
        a discount, take one near 1, and begin with none at 0, which stays 0.
    Raises:
      InputError: where these are out of range.
    """
    if not 0 <= share <= 0.5:
        raise InputError(f"share is {share}: give a number from 0 to 0.5")
    if not 0 < factor < math.inf:
        raise InputError(f"factor is {factor}: give a positive number")
    score, values = jnp.asarray(score, float), {name: jnp.asarray(x) for name, x in values.items()}
    for name, own in values.items():
        if score.ndim != 1 or own.shape != score.shape:
            raise InputError(
                f"{name} has shape {own.shape}, the scores {score.shape}: give [N], one of each member"
            )
    members = len(score)
    count = max(int(share * members), 1) if share else 0
    order = jnp.argsort(jnp.where(jnp.isnan(score), -jnp.inf, score))
    worst, best = order[:count], order[members - count :]
    key_parent, key_change = jax.random.split(key)
    chosen = best[jax.random.randint(key_parent, (count,), 0, max(count, 1))] if count else best
    parent = jnp.arange(members).at[worst].set(chosen)
    replaced = jnp.zeros(members, bool).at[worst].set(True)
    bred = {}
    for number, (name, own) in enumerate(sorted(values.items())):
        above, least, most = find_range(config, name)
        up = jax.random.bernoulli(jax.random.fold_in(key_change, number), shape=(members,))
        copied = own[parent]
        changed = jnp.clip(copied * jnp.where(up, factor, 1 / factor), least, most)
        if above is not None:
            changed = jnp.where(changed > above, changed, copied)
        bred[name] = jnp.where(replaced, changed, own)
    return parent, bred
