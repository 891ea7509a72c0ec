"""Learning on tables without a model: Monte-Carlo, TD(0), n-step, SARSA, expected SARSA, (double) Q-learning.

They are one algorithm. Remember the last n steps. After each step, move the value of the oldest pair (s, a) towards its
n-step return G = r₁ + γ r₂ + … + γⁿ⁻¹ rₙ + γⁿ · bootstrap; at the end of an episode, move those of all remembered pairs.
Algorithms differ in the bootstrap, a function that is passed in, and in n: Monte-Carlo has n ≥ the length of an episode.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl4lm.fields import check_count, find_out_of_range, number
from jaxrl4lm.returns import discounted_returns
from jaxrl4lm.types import Array, InputError, Key, Metrics, ScalarLike


class Successor(NamedTuple):
    """What a bootstrap may read of the state that follows."""

    tables: Array
    """`[C, A]`: the state's row in each of C tables, first the table to be updated."""
    action: Array
    """The action taken there."""
    probabilities: Array
    """`[A]`: of all actions there, under the behaviour."""


class Experience(NamedTuple):
    """One step, as it was played."""

    state: Array
    action: Array
    reward: Array
    following: Array
    """The state after it, before any reset."""
    terminated: Array
    """The episode ended with it: `following` has no value."""


class TabularAlgorithm(NamedTuple):
    """A learner; all of it is static."""

    bootstrap: Callable[[Successor], Array]
    """The value of the state that follows, a scalar."""
    steps: int = 1
    """n; at least the longest episode for Monte-Carlo."""
    learns_actions: bool = True
    """True: learns Q(s, a) and acts ε-greedily by it. False: learns V(s) of a fixed policy."""
    first_visit: bool = False
    """Of equal remembered pairs only the first is updated."""
    num_tables: int = 1
    """C; 2 for double Q-learning."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hyperparameters:
    """Numbers that may be traced: a sweep over them is a `vmap`."""

    learning_rate: ScalarLike = number(0.1, above=0)
    decay: ScalarLike = number(0.0, least=0)
    """The N-th update of an entry has step size learning_rate / N^decay: 0 keeps it constant, 1 averages."""
    epsilon: ScalarLike = number(0.1, least=0, most=1)
    """ε, the probability of a random action."""
    discount: ScalarLike = number(0.9, least=0, most=1)
    """γ."""

    def check(self) -> None:
        """Raises InputError, naming the field and its value, where a number that is not traced is out of range."""
        if found := find_out_of_range(self):
            raise InputError(" ".join(found))


class TabularState(NamedTuple):
    """Everything that learning carries; arrays only."""

    tables: Array
    """`[C, S, A]`, −inf at infeasible actions; `[1, S, 1]` where V is learnt."""
    counts: Array
    """How often each entry was updated; same shape."""
    states: Array
    """`[n]`: the last states, newest last; −1 where there is none."""
    actions: Array
    """`[n]`: theirs."""
    rewards: Array
    """`[n]`: theirs."""
    environment: Any
    """The environment's own state."""
    observation: Array
    """The state to act in."""
    action: Array
    """The action already chosen in it."""
    key: Key


def monte_carlo(max_steps: int) -> TabularAlgorithm:
    """First-visit Monte-Carlo control, for episodes of at most `max_steps` steps.

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
    """SARSA: bootstraps from Q(s′, a′) of the action taken. Reference: Rummery & Niranjan 1994."""
    return n_step_sarsa(1)


def expected_sarsa() -> TabularAlgorithm:
    """Expected SARSA: bootstraps from Σ_a π(a|s′) Q(s′, a). Reference: van Seijen et al. 2009."""
    return TabularAlgorithm(
        bootstrap=lambda successor: jnp.vdot(
            successor.probabilities, jnp.where(successor.probabilities > 0, successor.tables[0], 0)
        )
    )


def q_learning() -> TabularAlgorithm:
    """Q-learning: bootstraps from max_a Q(s′, a). Reference: Watkins 1989."""
    return TabularAlgorithm(bootstrap=lambda successor: successor.tables[0].max())


def double_q_learning() -> TabularAlgorithm:
    """Double Q-learning: one table chooses the action, the other values it. Reference: van Hasselt 2010."""
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
    """Probabilities `[A]` of the actions at a state: ε-greedy by the mean of the tables, or the fixed policy's.

    An action of value −inf is infeasible, and never taken.
    """
    if not algorithm.learns_actions:
        assert policy is not None
        chex.assert_shape(policy, (tables.shape[1], None))
        return policy[observation]
    epsilon = jnp.asarray(hyperparameters.epsilon)
    q = tables[:, observation].mean(axis=0)
    greedy = jax.nn.one_hot(jnp.argmax(q), q.shape[0], dtype=q.dtype)
    feasible = q > -jnp.inf
    return (1 - epsilon) * greedy + epsilon * feasible / feasible.sum()


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
      key: the only source of randomness of the whole run.
      environment: gymnax, with `Discrete` observations and actions. One with `feasible_actions(params)` `[S, A]` has
        its infeasible actions never taken.
      params: its parameters.
      algorithm: one of this module's.
      hyperparameters: of which ε decides the first action.
      policy: `[S, A]`, what TD(0), n-step TD and Monte-Carlo prediction evaluate; unused by the others.
      initial_value: of all entries of the tables.
    Raises:
      InputError: if states or actions are not numbered, a hyper-parameter is out of range, or a fixed policy is needed and
        missing or of another shape.
    """
    hyperparameters.check()
    num_states = _count(environment.observation_space(params), "observations")
    _count(environment.action_space(params), "actions")
    if not algorithm.learns_actions:
        expected = (num_states, environment.num_actions)
        if policy is None or jnp.shape(policy) != expected:
            given = "is None" if policy is None else f"has shape {jnp.shape(policy)}"
            raise InputError(
                f"policy {given}: this algorithm evaluates a fixed policy, give probabilities [S, A], {expected}."
            )
    key, key_reset, key_action = jax.random.split(key, 3)
    observation, environment_state = environment.reset(key_reset, params)
    columns = environment.num_actions if algorithm.learns_actions else 1
    shape = (algorithm.num_tables, num_states, columns)
    tables = jnp.full(shape, initial_value, dtype=float)
    # Tables hold −inf where an action is infeasible: no maximum sees it, and nothing ever updates it.
    find_feasible = getattr(environment, "feasible_actions", None)
    if algorithm.learns_actions and find_feasible is not None:
        tables = jnp.where(find_feasible(params), tables, -jnp.inf)
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
    """One step in the environment, and the update that it allows. Arguments as of `init`.

    A time limit is not a death: after a truncation the return bootstraps from the last state. (Monte-Carlo never
    bootstraps, and treats it as the end.)
    """
    state, metrics, _ = advance(state, environment, params, algorithm, hyperparameters, policy=policy)
    return state, metrics


def advance(
    state: TabularState,
    environment: Any,
    params: Any,
    algorithm: TabularAlgorithm,
    hyperparameters: Hyperparameters,
    *,
    policy: Array | None = None,
) -> tuple[TabularState, Metrics, Experience]:
    """`update`, and the step that it took."""
    key, key_step, key_next, key_reset, key_coin = jax.random.split(state.key, 5)
    observation, environment_state, reward, terminated, truncated, info = environment.step(
        key_step, state.environment, state.action, params
    )
    done = terminated | truncated
    last = info["final_observation"]
    experience = Experience(state.observation, state.action, reward, last, terminated)
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
    tables, counts = learn(state, algorithm, hyperparameters, order[0], bootstrap, done)
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
    return state, {"reward": reward, "done": done}, experience


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
    """`num_steps` updates in one scan; metrics are `[num_steps]`. Arguments as of `init`.

    `vmap` it over keys, params or hyper-parameters.
    """
    check_count("num_steps", num_steps)
    start = init(
        key, environment, params, algorithm, hyperparameters, policy=policy, initial_value=initial_value
    )

    def step(state: TabularState, _: None) -> tuple[TabularState, Metrics]:
        return update(state, environment, params, algorithm, hyperparameters, policy=policy)

    return jax.lax.scan(step, start, length=num_steps)


def learn(
    state: TabularState,
    algorithm: TabularAlgorithm,
    hyperparameters: Hyperparameters,
    table: Array,
    bootstrap: Array,
    done: Array,
) -> tuple[Array, Array]:
    """(tables, counts) after the entries whose return is complete: the oldest, or all at the end of an episode.

    Args:
      state: with the steps to learn from.
      table: number of the one to update.
      bootstrap: the value of what follows the newest step, 0 if nothing does.
      done: whether the episode ended or was cut.
    """
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


def _count(space: Any, what: str) -> int:
    if not hasattr(space, "n"):
        raise InputError(
            f"tables need numbered {what}, not {type(space).__name__}: use an agent with a network, as agents.dqn"
        )
    return space.n


def _table_order(key: Key, num_tables: int) -> Array:
    """The table to be updated, then the others: `[C]`, in random order."""
    if num_tables == 1:
        return jnp.zeros(1, jnp.int32)
    return jax.random.permutation(key, num_tables)


def _draw(key: Key, probabilities: Array) -> Array:
    return jax.random.categorical(key, jnp.log(probabilities)).astype(jnp.int32)
