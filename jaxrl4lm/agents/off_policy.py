"""What agents with vectors of actions and a memory share: an actor, critics of state and action, a ring of what was played,
and older networks that follow them.

Shapes: `K` critics, `N` copies of the environment, `B` steps of a minibatch, `D` coordinates of an action.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl4lm.agents import environment as env
from jaxrl4lm.agents import replay
from jaxrl4lm.agents.agent import Agent
from jaxrl4lm.agents.config import ReplayConfig, adam, descend
from jaxrl4lm.agents.normalization import Statistics, begin_statistics
from jaxrl4lm.agents.on_policy import check_network
from jaxrl4lm.fields import number, size
from jaxrl4lm.models import Network, Perceptron
from jaxrl4lm.types import Array, InputError, Key, Metrics, Params, ScalarLike


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OffPolicyConfig(ReplayConfig):
    """Of agents whose actions are vectors."""

    learning_rate: ScalarLike = number(1e-3, above=0)
    """Of Adam, at its highest."""
    max_grad_norm: ScalarLike = number(10.0, above=0)
    """Longer gradients of a network, by their global norm, are shortened to it."""
    rollout: int = size(1)
    """Steps of each copy before an update."""
    gradient_steps: int = size(8)
    """Optimizer steps of an update."""
    batch: int = size(128)
    """Memories of an optimizer step."""
    buffer: int = size(100_000)
    """Steps that are remembered; the oldest are overwritten. A multiple of the steps of an update."""
    target_rate: ScalarLike = number(0.005, above=0, most=1)
    """τ: the share of the way that the older networks go towards the networks, each time they do."""


class Learner(NamedTuple):
    """An environment and the networks that learn to play it; static. Actions lie in −1..1, which stands for the bounds."""

    spec: env.Spec
    actor: Network
    """Observations → what an action is made of."""
    critic: Network
    """Flat observations and actions, side by side → `[..., 1]`."""
    critics: int
    """K."""


class Known(NamedTuple):
    """What learns."""

    params: Params
    """`actor`; `critic`, with K as first axis; and what an algorithm learns besides."""
    target: Params
    """The older networks of some of them."""
    opt_state: dict[str, optax.OptState]
    """Of each of `params`."""


class State(NamedTuple):
    """Everything that a run is at one moment; arrays only."""

    params: Params
    """As of `Known`, and the two that follow."""
    target: Params
    opt_state: dict[str, optax.OptState]
    place: env.Place
    memory: replay.Replay
    statistics: Statistics
    """Not used: observations are seen as they are."""
    step: Array
    """int32: updates done."""
    key: Key


Choose = Callable[[Params, Key, Array], Array]
"""(parameters of the actor, key, observations as networks see them) → actions in −1..1."""
Draw = Callable[[Key], replay.Sample]
"""A random minibatch, whose observations are as networks see them."""
Learn = Callable[[Known, Key, Draw], tuple[Known, Metrics]]
"""(what has learnt, key, where minibatches come from) → (what has learnt, metrics)."""


def make_learner(
    name: str,
    environment: Any,
    params: Any,
    *,
    outputs: int,
    critics: int,
    networks: tuple[Network | None, Network | None],
) -> Learner:
    """The networks that are given, and perceptrons of two layers of 64 in place of the others.

    Args:
      name: of the algorithm, for the message.
      outputs: of the actor, for each coordinate of an action.
      networks: actor and critic.
    Raises:
      InputError: unless actions are vectors between finite bounds, and a given network has the outputs that it needs.
    """
    spec = env.describe(environment, params)
    if spec.actions.discrete:
        raise InputError(
            f"the actions of {environment.name} are numbers, {name} needs vectors between bounds: use dqn or ppo"
        )
    space = environment.action_space(params)
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise InputError(f"the actions of {environment.name} have no bounds, which {name} needs: use ppo")
    actor, critic = networks
    width = outputs * spec.actions.outputs
    observation, action = jnp.zeros((1, *spec.shape)), jnp.zeros((1, spec.actions.outputs))
    if actor is not None:
        check_network(actor, observation, width, "actor")
    if critic is not None:
        check_network(critic, _join(observation, action), 1, "critic")
    return Learner(
        spec,
        actor or Perceptron(width, axes=len(spec.shape), activation="relu", gain=0.01),
        critic or Perceptron(1, activation="relu"),
        critics,
    )


def make_agent(name: str, learner: Learner, init: Any, update: Any, mode: Callable[..., Array]) -> Agent:
    """An agent of this kind.

    Args:
      init: (key, config, learner, params of the environment) → the state before the first update.
      update: (state, config, learner, params of the environment) → (state, metrics).
      mode: (learner, parameters of the actor, observations as networks see them) → the actions that it is judged by.
    """

    def act(known: Any, observations: Array) -> Array:
        return mode(learner, known["params"]["actor"], learner.spec.encode(observations))

    return Agent(
        name=name,
        spec=learner.spec,
        init=lambda key, config, params: init(key, config, learner, params),
        update=lambda state, config, params: update(state, config, learner, params),
        act=lambda known, key, observations: act(known, observations),
        value=lambda known, observations: rate(
            learner,
            known["params"]["critic"],
            learner.spec.encode(observations),
            act(known, observations),
        ).min(0),
    )


def init(
    key: Key,
    config: OffPolicyConfig,
    learner: Learner,
    params: Any,
    *,
    followed: tuple[str, ...],
    besides: Params | None = None,
) -> State:
    """The state before the first update: random actions are remembered.

    Args:
      followed: which of the networks have an older one.
      besides: what learns besides the networks.
    """
    key_actor, key_critic, key_place, key_play, key = jax.random.split(key, 5)
    spec = learner.spec
    observation, action = jnp.zeros((1, *spec.shape)), jnp.zeros((1, spec.actions.outputs))
    both = _join(observation, action)
    networks: Params = {
        "actor": learner.actor.init(key_actor, observation)["params"],
        "critic": jax.vmap(lambda key: learner.critic.init(key, both)["params"])(
            jax.random.split(key_critic, learner.critics)
        ),
        **(besides or {}),
    }
    place = env.begin(key_place, spec, params, config.environments)

    def choose(key: Key, observations: Array) -> tuple[Array, tuple]:
        shape = (observations.shape[0], spec.actions.outputs)
        return jax.random.uniform(key, shape, minval=-1, maxval=1), ()

    place, steps = env.roll_out(key_play, spec, params, place, choose, config.warmup // config.environments)
    return State(
        params=networks,
        target={name: jax.tree.map(jnp.copy, networks[name]) for name in followed},
        opt_state={name: adam(config).init(part) for name, part in networks.items()},
        place=place,
        memory=replay.add(replay.init(steps, config.buffer, spec.horizon), steps),
        statistics=begin_statistics(()),
        step=jnp.int32(0),
        key=key,
    )


def play(
    state: State, config: OffPolicyConfig, learner: Learner, params: Any, choose: Choose
) -> tuple[State, Key, Metrics]:
    """Some steps of play, which are remembered; a key to learn with."""
    key, key_play, key_learn = jax.random.split(state.key, 3)

    def act(key: Key, observations: Array) -> tuple[Array, tuple]:
        return choose(state.params["actor"], key, learner.spec.encode(observations)), ()

    place, steps = env.roll_out(key_play, learner.spec, params, state.place, act, config.rollout)
    memory = replay.add(state.memory, steps)
    metrics = {"return": jnp.nanmean(place.episodes.last), "reward": steps.reward.mean()}
    return state._replace(place=place, memory=memory, key=key), key_learn, metrics


def learn(
    state: State, config: OffPolicyConfig, learner: Learner, key: Key, rounds: int, once: Learn
) -> tuple[State, Metrics]:
    """`rounds` times from random parts of what is remembered. The update is then done.

    Args:
      once: (what has learnt, key, draw) → (what has learnt, metrics), where draw(key) is a minibatch.
    Returns:
      The state; mean metrics.
    """

    def draw(key: Key) -> replay.Sample:
        part = replay.sample(
            key, state.memory, state.place.observation, config.batch, discount=config.discount
        )
        seen, after = map(learner.spec.encode, (part.observation, part.next_observation))
        return part._replace(observation=seen, next_observation=after)

    known = Known(state.params, state.target, state.opt_state)
    known, told = jax.lax.scan(
        lambda known, key: once(known, key, draw), known, jax.random.split(key, rounds)
    )
    metrics = {name: x.mean() for name, x in told.items()}
    return state._replace(step=state.step + 1, **known._asdict()), metrics


def rate(learner: Learner, critics: Params, seen: Array, actions: Array) -> Array:
    """What each critic expects of actions `[B, D]`, `[K, B]`."""
    both = _join(seen, actions)
    return jax.vmap(lambda critic: jnp.asarray(learner.critic.apply({"params": critic}, both))[..., 0])(
        critics
    )


def improve_critics(
    known: Known,
    part: replay.Sample,
    config: OffPolicyConfig,
    learner: Learner,
    update: Array,
    error: Callable[[Array], Array],
) -> tuple[Known, Metrics]:
    """An optimizer step of the critics, down half the mean square of their errors.

    Args:
      update: number of the update, which decides the learning rate.
      error: (values `[K, B]`) → errors of the same shape.
    """

    def loss(critics: Params) -> tuple[Array, Array]:
        values = rate(learner, critics, part.observation, part.action)
        return 0.5 * jnp.square(error(values)).mean(1).sum(), values.mean()

    (told, value), grads = jax.value_and_grad(loss, has_aux=True)(known.params["critic"])
    known = descend_part("critic", known, grads, config, update)
    return known, {"loss/critic": told, "value": value}


def descend_part(name: str, known: Known, grads: Params, config: OffPolicyConfig, update: Array) -> Known:
    """An optimizer step of one of the parameters."""
    new, opt_state = descend(config, update, grads, known.opt_state[name], known.params[name])
    return known._replace(params={**known.params, name: new}, opt_state={**known.opt_state, name: opt_state})


def follow(known: Known, rate: ScalarLike) -> Known:
    """The older networks after τ of their way towards the networks: θ′ + τ(θ − θ′).

    Reference: Lillicrap et al. 2016, arXiv:1509.02971, sec. 3.
    """
    networks = {name: known.params[name] for name in known.target}
    target = jax.tree.map(lambda old, new: old + rate * (new - old), known.target, networks)
    return known._replace(target=target)


def _join(seen: Array, actions: Array) -> Array:
    """What critics see: flat observations and actions side by side."""
    return jnp.concatenate([seen.reshape(*actions.shape[:-1], -1), actions], axis=-1)
