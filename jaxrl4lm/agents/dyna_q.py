"""Dyna-Q: Q-learning that, after each step, also learns from steps that it remembers.

    a step of Q-learning → remember what followed
    → `planning` times: any state that was left, any action that was taken there, Q-learning from what followed

The model is a table of what followed last. It is exact where nothing is left to chance. Where chance decides, each pair learns
from one outcome until it is played again, and values are biased towards outcomes after which that takes long.

With a `bonus` it is Dyna-Q+, for worlds that change: an imagined step pays more the longer nobody has really tried it, and
actions that nobody ever tried are imagined as well, to lead nowhere.

As in `tabular`, the action of a state is drawn when the state is reached, before the step that led there is learnt from.

Reference: Sutton & Barto 2018, sec. 8.2; Dyna-Q+: sec. 8.3.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.agents import tabular
from jaxrl4lm.agents.tabular import Experience, Hyperparameters, Successor, TabularState
from jaxrl4lm.fields import check_count
from jaxrl4lm.types import Array, InputError, Key, Metrics, ScalarLike

ALGORITHM = tabular.q_learning()
"""What learns, from real and from imagined steps alike."""
PLANNING = 2**32 - 4
"""What the key after a step is folded with to draw imagined steps: real ones never see it."""


class Model(NamedTuple):
    """What is known of the world."""

    rewards: Array
    """`[S, A]`: what the last step of each pair paid, 0 if there was none."""
    following: Array
    """int32 `[S, A]`: where it led; to where it began if there was none."""
    terminated: Array
    """bool `[S, A]`: whether it ended the episode."""
    tried: Array
    """int32 `[S, A]`: which step it was, from 1; 0 if there was none."""
    states: Array
    """int32 `[S]`: the states that were left, in the order of the first time."""
    num_states: Array
    """int32: how many they are."""


class DynaState(NamedTuple):
    """Everything that learning carries; arrays only."""

    learner: TabularState
    """That of Q-learning; its tables are the values."""
    model: Model
    step: Array
    """int32: real steps so far."""


def init(
    key: Key,
    environment: Any,
    params: Any,
    hyperparameters: Hyperparameters,
    *,
    initial_value: ScalarLike = 0.0,
) -> DynaState:
    """The state before the first step. Arguments as of `tabular.init`."""
    learner = tabular.init(key, environment, params, ALGORITHM, hyperparameters, initial_value=initial_value)
    shape = num_states, _ = learner.tables.shape[1:]
    model = Model(
        rewards=jnp.zeros(shape, dtype=float),
        following=jnp.broadcast_to(jnp.arange(num_states, dtype=jnp.int32)[:, None], shape),
        terminated=jnp.zeros(shape, bool),
        tried=jnp.zeros(shape, jnp.int32),
        states=jnp.zeros(num_states, jnp.int32),
        num_states=jnp.int32(0),
    )
    return DynaState(learner, model, jnp.int32(0))


def update(
    state: DynaState,
    environment: Any,
    params: Any,
    hyperparameters: Hyperparameters,
    *,
    planning: int,
    bonus: ScalarLike | None = None,
) -> tuple[DynaState, Metrics]:
    """One step in the environment, and `planning` imagined ones. With planning = 0 it is Q-learning, bit for bit.

    A time limit is not a death, neither in real nor in imagined steps.

    Args:
      hyperparameters: as of `tabular.init`; updates by imagined steps count towards the decay as well.
      planning: imagined steps, static.
      bonus: κ of Dyna-Q+, whose imagined steps pay κ√τ more, τ steps after the pair was really tried; None: Dyna-Q.
    Raises:
      InputError: if planning is no whole number from 0, or the bonus is negative or no finite number.
    """
    check_count("planning", planning)
    if isinstance(bonus, int | float) and not 0 <= bonus < math.inf:
        raise InputError(f"bonus must be a finite number, 0 or more, not {bonus}")
    learner, metrics, experience = tabular.advance(
        state.learner, environment, params, ALGORITHM, hyperparameters
    )
    step = state.step + 1
    model = remember(state.model, experience, step)

    def plan(learner: TabularState, key: Key) -> tuple[TabularState, None]:
        imagined = imagine(key, model, learner.tables[0], step, bonus)
        return learn_from(imagined, learner, hyperparameters), None

    keys = jax.random.split(jax.random.fold_in(learner.key, PLANNING), planning)
    learner, _ = jax.lax.scan(plan, learner, keys)
    return DynaState(learner, model, step), metrics


def train(
    key: Key,
    environment: Any,
    params: Any,
    hyperparameters: Hyperparameters,
    num_steps: int,
    *,
    planning: int,
    bonus: ScalarLike | None = None,
    initial_value: ScalarLike = 0.0,
) -> tuple[DynaState, Metrics]:
    """`num_steps` updates in one scan; metrics are `[num_steps]`. Arguments as of `init` and `update`.

    `vmap` it over keys, params, hyper-parameters or the bonus.
    """
    check_count("num_steps", num_steps)
    start = init(key, environment, params, hyperparameters, initial_value=initial_value)

    def step(state: DynaState, _: None) -> tuple[DynaState, Metrics]:
        return update(state, environment, params, hyperparameters, planning=planning, bonus=bonus)

    return jax.lax.scan(step, start, length=num_steps)


def remember(model: Model, experience: Experience, step: Array) -> Model:
    """The model after a step, of that number."""
    place = experience.state, experience.action
    is_new = ~(model.tried[experience.state] > 0).any()
    # Of a state that is known, a slot is written that does not count yet; of all states known, none.
    states = model.states.at[model.num_states].set(experience.state, mode="drop")
    return Model(
        rewards=model.rewards.at[place].set(experience.reward),
        following=model.following.at[place].set(experience.following),
        terminated=model.terminated.at[place].set(experience.terminated),
        tried=model.tried.at[place].set(step),
        states=states,
        num_states=model.num_states + is_new,
    )


def imagine(key: Key, model: Model, table: Array, step: Array, bonus: ScalarLike | None) -> Experience:
    """A step by the model: any state that was left, and any action that was taken there; with a bonus, any feasible one.

    Args:
      table: `[S, A]`, −inf where an action is infeasible.
      step: real steps so far.
      bonus: as of `update`.
    """
    key_state, key_action = jax.random.split(key)
    state = model.states[jax.random.randint(key_state, (), 0, model.num_states)]
    possible = model.tried[state] > 0 if bonus is None else table[state] > -jnp.inf
    action = jax.random.categorical(key_action, jnp.where(possible, 0.0, -jnp.inf)).astype(jnp.int32)
    place = state, action
    reward = model.rewards[place]
    if bonus is not None:
        reward += bonus * jnp.sqrt((step - model.tried[place]).astype(reward.dtype))
    return Experience(state, action, reward, model.following[place], model.terminated[place])


def learn_from(
    experience: Experience, learner: TabularState, hyperparameters: Hyperparameters
) -> TabularState:
    """The learner after Q-learning from one more step, which is not the one that it plays."""
    tables, following = learner.tables, experience.following
    probabilities = tabular.action_probabilities(ALGORITHM, tables, following, hyperparameters, None)
    successor = Successor(tables[:, following], jnp.argmax(probabilities), probabilities)
    bootstrap = jnp.where(experience.terminated, 0, ALGORITHM.bootstrap(successor))
    alone = learner._replace(
        states=experience.state[None], actions=experience.action[None], rewards=experience.reward[None]
    )
    tables, counts = tabular.learn(
        alone, ALGORITHM, hyperparameters, jnp.int32(0), bootstrap, jnp.bool_(True)
    )
    return learner._replace(tables=tables, counts=counts)
