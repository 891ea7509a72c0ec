"""Learning on tables without a model: Monte-Carlo, TD(0), n-step, SARSA, expected SARSA, (double) Q-learning.

They are one algorithm: remember the last n steps, and move the oldest pair towards its n-step return
G = r₁ + γ r₂ + … + γⁿ⁻¹ rₙ + γⁿ · bootstrap; when the episode ends, all remembered pairs at once. What
differs is the bootstrap (a function, passed in) and n: Monte-Carlo is n no shorter than the episode.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl4lm.returns import discounted_returns
from jaxrl4lm.types import Array, Key, Metrics, ScalarLike


class Successor(NamedTuple):
    """What a bootstrap may look at."""

    tables: Array
    """`[C, A]`: the row of the state that follows, in the table to be updated first."""
    action: Array
    """The action taken next."""
    probabilities: Array
    """`[A]`: of the behaviour there."""


class TabularAlgorithm(NamedTuple):
    """Static description of a learner."""

    bootstrap: Callable[[Successor], Array]
    steps: int = 1
    """n; at least the longest episode for Monte-Carlo."""
    learns_actions: bool = True
    """Q(s, a) and acts ε-greedily by it; else V(s) of a fixed policy."""
    first_visit: bool = False
    """Of the remembered pairs only the first occurrence learns."""
    num_tables: int = 1


class Hyperparameters(NamedTuple):
    """Leaves may be traced: a sweep is a `vmap`."""

    learning_rate: ScalarLike = 0.1
    decay: ScalarLike = 0.0
    """The step size is learning_rate / N^decay at the N-th update of an entry; 1 averages, 0 is constant."""
    epsilon: ScalarLike = 0.1
    discount: ScalarLike = 0.9


class TabularState(NamedTuple):
    """Everything that learning carries; arrays only."""

    tables: Array
    """`[C, S, A]`, or `[1, S, 1]` where V is learnt."""
    counts: Array
    """Updates of every entry, same shape."""
    states: Array
    """`[n]`: the last states, newest last; −1 where none is waiting."""
    actions: Array
    rewards: Array
    """`[n]` each."""
    environment: Any
    observation: Array
    action: Array
    """Already chosen for `observation`."""
    key: Key


def monte_carlo(max_steps: int) -> TabularAlgorithm:
    """First-visit Monte-Carlo control; episodes may last `max_steps`.

    Reference: Sutton & Barto 2018, p. 101.
    """
    return TabularAlgorithm(bootstrap=lambda successor: jnp.zeros(()), steps=max_steps, first_visit=True)


def monte_carlo_prediction(max_steps: int) -> TabularAlgorithm:
    """First-visit Monte-Carlo evaluation of a fixed policy. Reference: Sutton & Barto 2018, p. 92."""
    return monte_carlo(max_steps)._replace(learns_actions=False)


def n_step_td(steps: int) -> TabularAlgorithm:
    """n-step evaluation of a fixed policy; TD(0) for n = 1. Reference: Sutton & Barto 2018, p. 144."""
    return TabularAlgorithm(
        bootstrap=lambda successor: successor.tables[0, 0], steps=steps, learns_actions=False
    )


def td() -> TabularAlgorithm:
    """TD(0): V(s) ← V(s) + α (r + γ V(s′) − V(s)). Reference: Sutton 1988."""
    return n_step_td(1)


def n_step_sarsa(steps: int) -> TabularAlgorithm:
    """n-step SARSA: bootstraps from Q(s′, a′) of the action taken. Reference: Sutton & Barto 2018, p. 147."""
    return TabularAlgorithm(bootstrap=lambda successor: successor.tables[0, successor.action], steps=steps)


def sarsa() -> TabularAlgorithm:
    """SARSA. Reference: Rummery & Niranjan 1994."""
    return n_step_sarsa(1)


def expected_sarsa() -> TabularAlgorithm:
    """Bootstraps from Σ_a π(a|s′) Q(s′, a). Reference: van Seijen et al. 2009."""
    return TabularAlgorithm(bootstrap=lambda successor: successor.probabilities @ successor.tables[0])


def q_learning() -> TabularAlgorithm:
    """Bootstraps from max_a Q(s′, a). Reference: Watkins 1989."""
    return TabularAlgorithm(bootstrap=lambda successor: successor.tables[0].max())


def double_q_learning() -> TabularAlgorithm:
    """One table chooses the action, the other one values it. Reference: van Hasselt 2010."""
    return TabularAlgorithm(
        bootstrap=lambda successor: successor.tables[1, jnp.argmax(successor.tables[0])], num_tables=2
    )


def action_probabilities(
    algorithm: TabularAlgorithm,
    tables: Array,
    observation: Array,
    hyperparameters: Hyperparameters,
    policy: Array | None,
) -> Array:
    """The behaviour at a state, `[A]`: ε-greedy in the mean of the tables, or the fixed policy."""
    if not algorithm.learns_actions:
        assert policy is not None
        chex.assert_shape(policy, (tables.shape[1], None))
        return policy[observation]
    epsilon = jnp.asarray(hyperparameters.epsilon)
    q = tables[:, observation].mean(axis=0)
    greedy = jax.nn.one_hot(jnp.argmax(q), q.shape[0], dtype=q.dtype)
    return (1 - epsilon) * greedy + epsilon / q.shape[0]


def init(
    key: Key,
    environment: Any,
    params: Any,
    algorithm: TabularAlgorithm,
    hyperparameters: Hyperparameters,
    *,
    policy: Array | None = None,
    initial_value: ScalarLike = 0.0,
) -> TabularState:
    """The state before the first step.

    Args:
      key: decides everything that follows.
      environment: gymnax, with `Discrete` observations and actions.
      params: its parameters.
      algorithm: one of this module's.
      hyperparameters: for the first action.
      policy: `[S, A]`, what TD(0), n-step TD and Monte-Carlo prediction evaluate; unused by the others.
      initial_value: of all entries.
    Raises:
      ValueError: if a fixed policy is needed, and missing or of another shape.
    """
    num_states = environment.observation_space(params).n
    if not algorithm.learns_actions:
        expected = (num_states, environment.num_actions)
        if policy is None or jnp.shape(policy) != expected:
            given = "is None" if policy is None else f"has shape {jnp.shape(policy)}"
            raise ValueError(
                f"policy {given}: this algorithm evaluates a fixed policy, give probabilities [S, A], {expected}."
            )
    key, key_reset, key_action = jax.random.split(key, 3)
    observation, environment_state = environment.reset(key_reset, params)
    columns = environment.num_actions if algorithm.learns_actions else 1
    shape = (algorithm.num_tables, num_states, columns)
    tables = jnp.full(shape, initial_value, dtype=float)
    probabilities = action_probabilities(algorithm, tables, observation, hyperparameters, policy)
    return TabularState(
        tables=tables,
        counts=jnp.zeros(shape, jnp.int32),
        states=jnp.full(algorithm.steps, -1, jnp.int32),
        actions=jnp.zeros(algorithm.steps, jnp.int32),
        rewards=jnp.zeros(algorithm.steps, dtype=float),
        environment=environment_state,
        observation=observation,
        action=_draw(key_action, probabilities),
        key=key,
    )


def update(
    state: TabularState,
    environment: Any,
    params: Any,
    algorithm: TabularAlgorithm,
    hyperparameters: Hyperparameters,
    *,
    policy: Array | None = None,
) -> tuple[TabularState, Metrics]:
    """One step in the environment, and the update that it allows.

    A time limit is not a death: after a truncation the return bootstraps from the last state (Monte-Carlo,
    which never bootstraps, treats it as the end).
    """
    key, key_step, key_next, key_reset, key_coin = jax.random.split(state.key, 5)
    observation, environment_state, reward, terminated, truncated, info = environment.step(
        key_step, state.environment, state.action, params
    )
    done = terminated | truncated
    last = info["final_observation"]
    probabilities = action_probabilities(algorithm, state.tables, last, hyperparameters, policy)
    following = _draw(key_next, probabilities)
    order = _table_order(key_coin, algorithm.num_tables)
    successor = Successor(state.tables[order, last], following, probabilities)
    bootstrap = jnp.where(terminated, 0, algorithm.bootstrap(successor))

    state = state._replace(
        states=jnp.append(state.states[1:], state.observation),
        actions=jnp.append(state.actions[1:], state.action if algorithm.learns_actions else 0),
        rewards=jnp.append(state.rewards[1:], reward),
    )
    tables, counts = _learn(state, algorithm, hyperparameters, order[0], bootstrap, done)
    again = action_probabilities(algorithm, tables, observation, hyperparameters, policy)
    state = state._replace(
        tables=tables,
        counts=counts,
        states=jnp.where(done, -1, state.states),
        environment=environment_state,
        observation=observation,
        action=jnp.where(done, _draw(key_reset, again), following),
        key=key,
    )
    return state, {"reward": reward, "done": done}


def train(
    key: Key,
    environment: Any,
    params: Any,
    algorithm: TabularAlgorithm,
    hyperparameters: Hyperparameters,
    num_steps: int,
    *,
    policy: Array | None = None,
    initial_value: ScalarLike = 0.0,
) -> tuple[TabularState, Metrics]:
    """`num_steps` updates in one scan; metrics are `[num_steps]`. `vmap` over keys, params or
    hyper-parameters."""
    start = init(
        key, environment, params, algorithm, hyperparameters, policy=policy, initial_value=initial_value
    )

    def step(state: TabularState, _: None) -> tuple[TabularState, Metrics]:
        return update(state, environment, params, algorithm, hyperparameters, policy=policy)

    return jax.lax.scan(step, start, length=num_steps)


def _learn(
    state: TabularState,
    algorithm: TabularAlgorithm,
    hyperparameters: Hyperparameters,
    table: Array,
    bootstrap: Array,
    done: Array,
) -> tuple[Array, Array]:
    """Move the entries whose return is complete: the oldest one, or all at the end of an episode."""
    returns = discounted_returns(state.rewards, next_values=bootstrap, discount=hyperparameters.discount)
    waiting = state.states >= 0
    ready = waiting & (done | (jnp.arange(algorithm.steps) == 0))
    if algorithm.first_visit:
        pair = state.states * state.tables.shape[-1] + state.actions
        earlier = jnp.tril(jnp.ones((algorithm.steps,) * 2, bool), k=-1) & waiting[None, :]
        ready &= ~jnp.any((pair[:, None] == pair[None, :]) & earlier, axis=1)
    place = (table, state.states, state.actions)
    counts = state.counts.at[place].add(ready)
    rate = hyperparameters.learning_rate / jnp.maximum(counts[place], 1) ** hyperparameters.decay
    error = jnp.where(ready, returns - state.tables[place], 0)
    return state.tables.at[place].add(rate * error), counts


def _table_order(key: Key, num_tables: int) -> Array:
    """Which table is updated, then the others; a coin for two."""
    if num_tables == 1:
        return jnp.zeros(1, jnp.int32)
    return jax.random.permutation(key, num_tables)


def _draw(key: Key, probabilities: Array) -> Array:
    return jax.random.categorical(key, jnp.log(probabilities)).astype(jnp.int32)
