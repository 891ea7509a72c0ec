"""What agents that learn the values of actions share: exploration, memories, and steps of the optimizer on some of them.

    play ε-greedily → remember → steps on random memories, towards an older network → now and then it becomes the network

Reference: Mnih et al. 2015, "Human-level control through deep reinforcement learning"; n steps and priorities together: Hessel et
al. 2018, arXiv:1710.02298.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl4lm.agents import environment as env
from jaxrl4lm.agents import replay, sum_tree
from jaxrl4lm.agents.agent import Agent
from jaxrl4lm.agents.config import AgentConfig, ReplayConfig, adam, descend
from jaxrl4lm.agents.normalization import Statistics, begin_statistics
from jaxrl4lm.agents.on_policy import choose_network
from jaxrl4lm.agents.replay import Replay, Sample
from jaxrl4lm.fields import number, size
from jaxrl4lm.models import Network
from jaxrl4lm.types import Array, InputError, Key, Metrics, Params, ScalarLike


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ExploringConfig(AgentConfig):
    """Of agents that take the best action, and now and then any."""

    epsilon: ScalarLike = number(0.05, least=0, most=1)
    """Probability of a random action, once it has fallen from 1 to it."""
    exploration_share: ScalarLike = number(0.2, above=0, most=1)
    """Share of the updates over which it falls."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ValueConfig(ExploringConfig, ReplayConfig):
    """Of agents that learn values from memories."""

    double: bool = size(True)
    """The network chooses the action that the older one values."""
    target_interval: int = size(1)
    """Updates after which the older network becomes the network."""
    n_step: int = size(1)
    """Rewards that are added up before a value stands for the rest."""
    prioritized: bool = size(False)
    """Memories of large errors are drawn more often, and weigh less each."""
    priority_exponent: ScalarLike = number(0.6, least=0, most=1)
    """How much more often: 0 not at all, 1 in proportion to the error."""
    importance_exponent: ScalarLike = number(0.4, least=0, most=1)
    """How much of that their weights make up for at first; it rises to 1, all of it, at the end."""

    def check(self) -> None:
        """Raises InputError, naming the field, its value and the fix, where a number does not fit."""
        super().check()
        if self.n_step > (rows := self.buffer // self.environments):
            raise InputError(
                f"n_step {self.n_step} is more than the buffer holds of a copy: give at most {rows}"
            )


class Priorities(NamedTuple):
    """How often each step of the ring is drawn."""

    tree: sum_tree.Tree
    """Over the ring."""
    largest: Array
    """That of any step so far; a new step has it, so that it is soon looked at."""


class State(NamedTuple):
    """Everything that a run is at one moment; arrays only."""

    params: Params
    target: Params
    """The older network."""
    opt_state: optax.OptState
    place: env.Place
    memory: Replay
    priorities: Any
    """`Priorities`; () where all memories are drawn alike."""
    statistics: Statistics
    """Not used: values are learnt of observations as they are."""
    step: Array
    """int32: updates done."""
    key: Key


class Learner(NamedTuple):
    """An environment, and what is known of the values of its actions; static."""

    spec: env.Spec
    begin: Callable[[Key, Any], Params]
    """(key, config) → what learns."""
    values: Callable[[Params, Array], Array]
    """(what learns, observations as networks see them) → expected returns of all actions `[..., A]`."""
    loss: Callable[[Params, Params, Sample, Any], tuple[Array, Array]]
    """(what learns, an older one, memories, config) → losses and sizes of the errors, `[B]` each."""


def describe(environment: Any, params: Any) -> env.Spec:
    """The spec of an environment with numbered actions.

    Raises:
      InputError: if the actions are vectors.
    """
    spec = env.describe(environment, params)
    if not spec.actions.discrete:
        raise InputError(f"the actions of {environment.name} are vectors: Q-learning needs numbers")
    return spec


def make_agent(name: str, learner: Learner) -> Agent:
    """An agent that learns from memories, judged by the actions of the largest values."""
    return Agent(
        name=name,
        spec=learner.spec,
        init=lambda key, config, params: init(key, config, learner, params),
        update=lambda state, config, params: update(state, config, learner, params),
        act=lambda known, key, observations: learner.spec.actions.mode(look(learner, known, observations)),
        value=lambda known, observations: look(learner, known, observations).max(-1),
    )


def choose_value_network(spec: env.Spec, outputs: int, given: Network | None = None) -> Network:
    """The network that is given; if None a small one with layer norm, without which bootstrapped values may run away.

    Raises:
      InputError: if the given one has another number of outputs.
    Reference: Gallici et al. 2024, arXiv:2407.04811.
    """
    return choose_network(spec, outputs, given, layer_norm=True)


def begin(spec: env.Spec, network: Network, key: Key) -> Params:
    """The parameters of a network at first."""
    return network.init(key, jnp.zeros((1, *spec.shape)))["params"]


def look(learner: Learner, known: Any, observations: Array) -> Array:
    """Values of all actions `[..., A]`, by what is known of a state."""
    return learner.values(known["params"], learner.spec.encode(observations))


def init(key: Key, config: ValueConfig, learner: Learner, params: Any) -> State:
    """The state before the first update: random actions are remembered."""
    key_network, key_place, key_play, key = jax.random.split(key, 4)
    spec = learner.spec
    network = learner.begin(key_network, config)
    place = env.begin(key_place, spec, params, config.environments)
    choose = partial(_choose_any, spec)
    place, steps = env.roll_out(key_play, spec, params, place, choose, config.warmup // config.environments)
    memory = replay.init(steps, config.buffer, spec.horizon)
    priorities = ()
    if config.prioritized:
        start = Priorities(sum_tree.init(config.buffer), jnp.float32(1))
        priorities = rank_new(start, memory.seen, config.warmup, config)
    return State(
        params=network,
        target=jax.tree.map(jnp.copy, network),
        opt_state=adam(config).init(network),
        place=place,
        memory=replay.add(memory, steps),
        priorities=priorities,
        statistics=begin_statistics(()),
        step=jnp.int32(0),
        key=key,
    )


def update(state: State, config: ValueConfig, learner: Learner, params: Any) -> tuple[State, Metrics]:
    """Some steps of play, and steps of the optimizer on what is remembered."""
    key, key_play, key_learn = jax.random.split(state.key, 3)
    epsilon = epsilon_at(state.step, config)
    choose = partial(explore, learner.spec, partial(learner.values, state.params), epsilon)
    place, steps = env.roll_out(key_play, learner.spec, params, state.place, choose, config.rollout)
    memory = replay.add(state.memory, steps)
    priorities = state.priorities
    if config.prioritized:
        priorities = rank_new(priorities, state.memory.seen, config.steps_per_update(), config)

    def learn(carry: tuple[Params, Any, Any], key: Key) -> tuple[tuple[Params, Any, Any], Array]:
        network, opt_state, priorities = carry
        part = recall(key, memory, priorities, place.observation, state.step, config)

        def loss(network: Params) -> tuple[Array, Array]:
            each, sizes = learner.loss(network, state.target, part, config)
            return (part.weight * each).mean(), sizes

        (loss_now, sizes), grads = jax.value_and_grad(loss, has_aux=True)(network)
        network, opt_state = descend(config, state.step, grads, opt_state, network)
        if config.prioritized:
            priorities = rank(priorities, part.index, sizes, config)
        return (network, opt_state, priorities), loss_now

    start = state.params, state.opt_state, priorities
    keys = jax.random.split(key_learn, config.gradient_steps)
    (network, opt_state, priorities), told = jax.lax.scan(learn, start, keys)
    renew = (state.step + 1) % config.target_interval == 0
    state = state._replace(
        params=network,
        target=jax.tree.map(lambda new, old: jnp.where(renew, new, old), network, state.target),
        opt_state=opt_state,
        place=place,
        memory=memory,
        priorities=priorities,
        step=state.step + 1,
        key=key,
    )
    metrics = {"return": jnp.nanmean(place.episodes.last), "reward": steps.reward.mean()}
    return state, {**metrics, "loss": told.mean(), "epsilon": epsilon}


def epsilon_at(update: Array, config: ExploringConfig) -> Array:
    """The probability of a random action in an update, from 0: it falls along a line."""
    done = jnp.minimum(update / (config.exploration_share * config.count_updates()), 1.0)
    return 1 - (1 - config.epsilon) * done


def explore(
    spec: env.Spec, values: Callable[[Array], Array], epsilon: Array, key: Key, observations: Array
) -> tuple[Array, tuple]:
    """The best action, or with probability ε any; as `environment.roll_out` asks for them."""
    key_coin, key_any = jax.random.split(key)
    best = spec.actions.mode(values(spec.encode(observations)))
    explores = jax.random.bernoulli(key_coin, epsilon, best.shape)
    return jnp.where(explores, _choose_any(spec, key_any, observations)[0], best), ()


def _choose_any(spec: env.Spec, key: Key, observations: Array) -> tuple[Array, tuple]:
    """Any action, each as likely."""
    return jax.random.randint(key, observations.shape[:1], 0, spec.actions.outputs), ()


def recall(
    key: Key, memory: Replay, priorities: Any, latest: Array, update: Array, config: ValueConfig
) -> Sample:
    """A batch of memories, with weights that make up for how often each is drawn.

    The weights, (1 / probability)^β, are divided by the largest of the batch, so that they only ever shorten a step.

    Reference: Schaul et al. 2016, arXiv:1511.05952, sec. 3.4.
    """
    kind = {"discount": config.discount, "n": config.n_step}
    if not config.prioritized:
        return replay.sample(key, memory, latest, config.batch, **kind)
    index, probabilities = sum_tree.draw(key, priorities.tree, config.batch)
    part = replay.look_up(memory, latest, index, **kind)
    done = jnp.minimum(update / config.count_updates(), 1.0)
    beta = config.importance_exponent + (1 - config.importance_exponent) * done
    return part._replace(weight=part.weight * (probabilities / probabilities.min()) ** -beta)


SMALLEST = 1e-3
"""Added to the size of an error, so that no memory is lost for ever."""


def rank(priorities: Priorities, index: Array, sizes: Array, config: ValueConfig) -> Priorities:
    """The priorities after steps were looked at, whose errors have these sizes; one that is no number is of size 1."""
    sizes = jnp.where(jnp.isfinite(sizes), sizes, 1) + SMALLEST
    weights = sizes**config.priority_exponent
    return Priorities(
        sum_tree.write(priorities.tree, index, weights), jnp.maximum(priorities.largest, weights.max())
    )


def rank_new(priorities: Priorities, seen: Array, count: int, config: ValueConfig) -> Priorities:
    """The priorities after `count` steps were added to a ring that had seen so many: the largest so far."""
    index = (seen + jnp.arange(count)) % config.buffer
    weights = jnp.broadcast_to(priorities.largest, (count,))
    return priorities._replace(tree=sum_tree.write(priorities.tree, index, weights))
