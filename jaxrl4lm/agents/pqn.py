"""PQN: Q-learning without memories or an older network; many copies and layer norm keep it steady.

    play a rollout ε-greedily → λ-returns of max Q → epochs × minibatches of Q(s, a) towards them

Reference: Gallici et al. 2024, arXiv:2407.04811, alg. 1 with λ-returns, sec. 4.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl4lm import losses, returns
from jaxrl4lm.agents import environment as env
from jaxrl4lm.agents import value_based
from jaxrl4lm.agents.agent import Agent
from jaxrl4lm.agents.config import adam, check_minibatches
from jaxrl4lm.agents.normalization import Statistics, begin_statistics
from jaxrl4lm.agents.on_policy import learn_in_epochs
from jaxrl4lm.agents.value_based import ExploringConfig, epsilon_at, explore
from jaxrl4lm.fields import number, size
from jaxrl4lm.models import Network
from jaxrl4lm.types import Array, Key, Metrics, Params, ScalarLike


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PQNConfig(ExploringConfig):
    """Of PQN."""

    environments: int = size(32)
    """Copies of the environment that are played side by side; they stand for memories."""
    rollout: int = size(25)
    """Steps of each copy before an update."""
    epochs: int = size(4)
    """Times that a rollout is learned from."""
    minibatches: int = size(8)
    """Parts of a rollout, an optimizer step each."""
    return_lambda: ScalarLike = number(0.65, least=0, most=1)
    """λ of the returns: from one-step targets (0) to Monte-Carlo (1)."""

    def steps_per_update(self) -> int:
        """Environment steps of an update, of all copies together."""
        return self.environments * self.rollout

    def check(self) -> None:
        """Raises InputError, naming the field, its value and the fix, where a number does not fit."""
        super().check()
        check_minibatches(self.steps_per_update(), self.minibatches)


class State(NamedTuple):
    """Everything that a run is at one moment; arrays only."""

    params: Params
    opt_state: optax.OptState
    place: env.Place
    statistics: Statistics
    """Not used: values are learnt of observations as they are."""
    step: Array
    """int32: updates done."""
    key: Key


class Learner(NamedTuple):
    """An environment, and the values of its actions; static."""

    spec: env.Spec
    network: Network
    values: Callable[[Params, Array], Array]
    """(parameters, observations as networks see them) → Q of all actions `[..., A]`."""


class Batch(NamedTuple):
    """What is learnt from; leaves `[T, N, ...]`, or `[B, ...]` of a minibatch."""

    observation: Array
    action: Array
    target: Array


def make(environment: Any, params: Any, *, network: Network | None = None) -> Agent:
    """PQN on an environment with numbered actions.

    Args:
      params: the environment's; only shapes, the action space and the time limit are read here.
      network: with an output for each action, and a normalisation in each layer; a small one is chosen if None.
    Raises:
      InputError: if the actions are vectors.
    """
    spec = value_based.describe(environment, params)
    network = value_based.choose_value_network(spec, spec.actions.outputs, network)

    learner = Learner(
        spec, network, values=lambda params, seen: jnp.asarray(network.apply({"params": params}, seen))
    )

    def look(known: Any, observations: Array) -> Array:
        return learner.values(known["params"], spec.encode(observations))

    return Agent(
        name="pqn",
        spec=spec,
        init=lambda key, config, params: init(key, config, learner, params),
        update=lambda state, config, params: update(state, config, learner, params),
        act=lambda known, key, observations: spec.actions.mode(look(known, observations)),
        value=lambda known, observations: look(known, observations).max(-1),
    )


def init(key: Key, config: PQNConfig, learner: Learner, params: Any) -> State:
    """The state before the first update."""
    key_network, key_place, key = jax.random.split(key, 3)
    network = value_based.begin(learner.spec, learner.network, key_network)
    return State(
        params=network,
        opt_state=adam(config).init(network),
        place=env.begin(key_place, learner.spec, params, config.environments),
        statistics=begin_statistics(()),
        step=jnp.int32(0),
        key=key,
    )


def update(state: State, config: PQNConfig, learner: Learner, params: Any) -> tuple[State, Metrics]:
    """A rollout, and some epochs of learning from it."""
    key, key_play, key_learn = jax.random.split(state.key, 3)
    epsilon = epsilon_at(state.step, config)
    choose = partial(explore, learner.spec, partial(learner.values, state.params), epsilon)
    place, steps = env.roll_out(key_play, learner.spec, params, state.place, choose, config.rollout)
    batch = Batch(steps.observation, steps.action, find_targets(steps, state.params, config, learner))
    network, opt_state, told = learn_in_epochs(
        key_learn,
        (state.params, state.opt_state),
        batch,
        partial(loss, learner=learner),
        config,
        state.step,
    )
    state = state._replace(params=network, opt_state=opt_state, place=place, step=state.step + 1, key=key)
    metrics = {"return": jnp.nanmean(place.episodes.last), "reward": steps.reward.mean()}
    return state, {**metrics, **told, "epsilon": epsilon}


def find_targets(steps: env.Transition, network: Params, config: PQNConfig, learner: Learner) -> Array:
    """λ-returns of a rollout `[T, N]`, in which max Q stands for what follows; also after an action that was not the best.

    The network is asked once, for all observations that follow a step: a time limit bootstraps from what it cut off.
    """
    following = learner.values(network, learner.spec.encode(steps.final_observation)).max(-1)
    return returns.lambda_returns(
        steps.reward,
        0.0,
        following,
        steps.terminated,
        steps.truncated,
        discount=config.discount,
        lambda_=config.return_lambda,
    )


def loss(network: Params, part: Batch, learner: Learner) -> tuple[Array, Metrics]:
    """The mean of ½(Q(s, a) − G)², and metrics."""
    values = learner.values(network, learner.spec.encode(part.observation))
    chosen = jnp.take_along_axis(values, part.action[..., None], axis=-1)[..., 0]
    total = losses.squared_value(chosen, part.target).mean()
    return total, {"loss": total, "value": chosen.mean()}
