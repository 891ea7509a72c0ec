"""Deep Q-learning with replay: plain, double, and dueling.

    play ε-greedily → remember → steps on random memories: Q(s, a) towards r + γ·max Q′(s′) → now and then Q′ becomes Q

Reference: Mnih et al. 2015, "Human-level control through deep reinforcement learning"; double: van Hasselt et al. 2016,
arXiv:1509.06461; dueling: Wang et al. 2016, arXiv:1511.06581.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl4lm import losses
from jaxrl4lm.agents import environment as env
from jaxrl4lm.agents.agent import Agent
from jaxrl4lm.agents.config import AgentConfig, adam, descend
from jaxrl4lm.agents.normalization import Statistics, begin_statistics
from jaxrl4lm.agents.on_policy import choose_network
from jaxrl4lm.lm.config import number, size
from jaxrl4lm.models import Network
from jaxrl4lm.types import Array, InputError, Key, Metrics, Params, ScalarLike


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DQNConfig(AgentConfig):
    """Of deep Q-learning."""

    rollout: int = size(10)
    """Steps of each copy before an update."""
    gradient_steps: int = size(40)
    """Optimizer steps of an update."""
    batch: int = size(64)
    """Memories of an optimizer step."""
    buffer: int = size(20_000)
    """Steps that are remembered; the oldest are overwritten. A multiple of the steps of an update."""
    warmup: int = size(800)
    """Steps of random actions before the first update; a multiple of the steps of an update."""
    double: bool = size(True)
    """The network chooses the action that the older one values."""
    target_interval: int = size(1)
    """Updates after which the older network becomes the network."""
    epsilon: ScalarLike = number(0.05, least=0, most=1)
    """Probability of a random action, once it has fallen from 1 to it."""
    exploration_share: ScalarLike = number(0.2, above=0, most=1)
    """Share of the updates over which it falls."""

    def steps_per_update(self) -> int:
        """Environment steps of an update, of all copies together."""
        return self.environments * self.rollout

    def steps_before(self) -> int:
        """Those of the warm-up."""
        return self.warmup

    def check(self) -> None:
        """Raises InputError, naming the field, its value and the fix, where a number does not fit."""
        super().check()
        per_update = self.steps_per_update()
        for name in ("buffer", "warmup"):
            if (value := getattr(self, name)) % per_update:
                more = -(-value // per_update) * per_update
                raise InputError(
                    f"{name} {value} is no multiple of the {per_update} steps of an update: give {more}"
                )
        if self.warmup > self.buffer:
            raise InputError(
                f"warmup {self.warmup} is more than the buffer holds: give at most {self.buffer}"
            )


class Memory(NamedTuple):
    """Steps, `[buffer, ...]`."""

    observation: Array
    action: Array
    reward: Array
    terminated: Array
    next_observation: Array
    """Before any reset, so that a step that a time limit cut off is like any other."""


class State(NamedTuple):
    """Everything that a run is at one moment; arrays only."""

    params: Params
    target: Params
    """The older network."""
    opt_state: optax.OptState
    place: env.Place
    memory: Memory
    statistics: Statistics
    """Not used: Q-learning sees observations as they are."""
    step: Array
    """int32: updates done."""
    key: Key


class Learner(NamedTuple):
    """An environment and a network that values its actions; static."""

    spec: env.Spec
    network: Network
    dueling: bool


def make(environment: Any, params: Any, *, network: Network | None = None, dueling: bool = False) -> Agent:
    """Deep Q-learning on an environment with numbered actions.

    Args:
      params: the environment's; only shapes, the action space and the time limit are read here.
      network: with an output for each action; a small one is chosen if None.
      dueling: one output more, the first, is the value of the state; the others say how actions differ from their mean.
    Raises:
      InputError: if the actions are vectors.
    """
    spec = env.describe(environment, params)
    if not spec.actions.discrete:
        raise InputError(f"the actions of {environment.name} are vectors: Q-learning needs numbers")
    outputs = spec.actions.outputs + dueling
    learner = Learner(spec, network or choose_network(spec, outputs), dueling)

    def values(known: Any, observations: Array) -> Array:
        return look(learner, known["params"], spec.encode(observations))

    return Agent(
        name="dqn",
        spec=spec,
        init=lambda key, config, params: init(key, config, learner, params),
        update=lambda state, config, params: update(state, config, learner, params),
        act=lambda known, key, observations: spec.actions.mode(values(known, observations)),
        value=lambda known, observations: values(known, observations).max(-1),
    )


def look(learner: Learner, params: Params, seen: Array) -> Array:
    """Q of all actions `[..., A]`."""
    outputs = jnp.asarray(learner.network.apply({"params": params}, seen))
    if not learner.dueling:
        return outputs
    value, differences = outputs[..., :1], outputs[..., 1:]
    return value + differences - differences.mean(-1, keepdims=True)


def init(key: Key, config: DQNConfig, learner: Learner, params: Any) -> State:
    """The state before the first update: random actions are remembered."""
    key_network, key_place, key_play, key = jax.random.split(key, 4)
    spec = learner.spec
    network = learner.network.init(key_network, jnp.zeros((1, *spec.shape)))["params"]
    place = env.begin(key_place, spec, params, config.environments)
    place, steps = env.roll_out(
        key_play, spec, params, place, partial(_choose_any, learner), config.warmup // config.environments
    )
    first = _as_memory(steps)
    memory = jax.tree.map(lambda x: jnp.zeros((config.buffer, *x.shape[1:]), x.dtype), first)
    return State(
        params=network,
        target=jax.tree.map(jnp.copy, network),
        opt_state=adam(config).init(network),
        place=place,
        memory=_remember(memory, first, jnp.int32(0)),
        statistics=begin_statistics(()),
        step=jnp.int32(0),
        key=key,
    )


def update(state: State, config: DQNConfig, learner: Learner, params: Any) -> tuple[State, Metrics]:
    """Some steps of play, and as many optimizer steps on what is remembered."""
    key, key_play, key_learn = jax.random.split(state.key, 3)
    done = jnp.minimum(state.step / (config.exploration_share * config.count_updates()), 1.0)
    epsilon = 1 - (1 - config.epsilon) * done

    def choose(key: Key, observations: Array) -> tuple[Array, tuple]:
        key_coin, key_any = jax.random.split(key)
        best = learner.spec.actions.mode(look(learner, state.params, learner.spec.encode(observations)))
        explore = jax.random.bernoulli(key_coin, epsilon, best.shape)
        return jnp.where(explore, _choose_any(learner, key_any, observations)[0], best), ()

    place, steps = env.roll_out(key_play, learner.spec, params, state.place, choose, config.rollout)
    seen = config.warmup + state.step * config.steps_per_update()
    memory = _remember(state.memory, _as_memory(steps), seen % config.buffer)
    known = jnp.minimum(seen + config.steps_per_update(), config.buffer)

    def learn(carry: tuple[Params, Any], key: Key) -> tuple[tuple[Params, Any], Array]:
        network, opt_state = carry
        chosen = jax.random.randint(key, (config.batch,), 0, known)
        part = jax.tree.map(lambda x: x[chosen], memory)
        loss_now, grads = jax.value_and_grad(loss)(network, state.target, part, config, learner)
        return descend(config, state.step, grads, opt_state, network), loss_now

    keys = jax.random.split(key_learn, config.gradient_steps)
    (network, opt_state), told = jax.lax.scan(learn, (state.params, state.opt_state), keys)
    renew = (state.step + 1) % config.target_interval == 0
    state = state._replace(
        params=network,
        target=jax.tree.map(lambda new, old: jnp.where(renew, new, old), network, state.target),
        opt_state=opt_state,
        place=place,
        memory=memory,
        step=state.step + 1,
        key=key,
    )
    metrics = {"return": jnp.nanmean(place.episodes.last), "reward": steps.reward.mean()}
    return state, {**metrics, "loss": told.mean(), "epsilon": epsilon}


def loss(network: Params, target: Params, part: Memory, config: DQNConfig, learner: Learner) -> Array:
    """The mean Huber loss of the errors of (double) Q-learning."""
    seen, after = map(learner.spec.encode, (part.observation, part.next_observation))
    values, older = look(learner, network, seen), look(learner, target, after)
    given = (values, part.action, part.reward, older)
    if config.double:
        errors = losses.double_q_learning_error(
            *given, look(learner, network, after), part.terminated, discount=config.discount
        )
    else:
        errors = losses.q_learning_error(*given, part.terminated, discount=config.discount)
    return losses.huber_value(errors, jnp.zeros_like(errors)).mean()


def _choose_any(learner: Learner, key: Key, observations: Array) -> tuple[Array, tuple]:
    """Any action, each as likely."""
    return jax.random.randint(key, observations.shape[:1], 0, learner.spec.actions.outputs), ()


def _as_memory(steps: env.Transition) -> Memory:
    """A rollout `[T, N, ...]` as memories `[T * N, ...]`."""
    kept = Memory(steps.observation, steps.action, steps.reward, steps.terminated, steps.final_observation)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), kept)


def _remember(memory: Memory, new: Memory, begin: Array) -> Memory:
    """The memory with new steps written from row `begin` on; its size is a multiple of theirs."""
    return jax.tree.map(
        lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, begin, axis=0), memory, new
    )
