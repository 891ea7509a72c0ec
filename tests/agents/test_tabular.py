"""Each learner on tables reaches the exact answer of the world it samples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import mdp as M
from jaxrl4lm.agents import tabular
from jaxrl4lm.checkpoint import Checkpoints
from jaxrl4lm.envs.finite_mdp import as_environment
from tests.agents.probes import PROBES, all_probes
from tests.selection import slow_but

WORLD = M.grid_world(".  .  +1\n.  #  -1\n.  .  .", discount=0.8, slip=0.1, living_reward=-0.04).mdp
EPSILON = 0.3
SEEDS = 4
OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
"""For programs that take longer to run than to compile."""


def explored(world, epsilon):
    """The world in which ε of all actions are random: its optimum is the best ε-greedy policy."""
    kernel = M.as_dense(world).transitions.probabilities
    mixed = (1 - epsilon) * kernel + epsilon * kernel.mean(axis=1, keepdims=True)
    return M.from_arrays(
        mixed, np.asarray(world.rewards), world.discount, terminal=np.asarray(world.terminal)
    )


def off_policy():
    return M.value_iteration(WORLD, tolerance=1e-5).action_values


def on_policy():
    """Q of the best ε-greedy policy: one step freely, then exploring."""
    return M.action_values(WORLD, M.value_iteration(explored(WORLD, EPSILON), tolerance=1e-5).values)


def prediction():
    uniform = jnp.full((WORLD.num_states, 4), 0.25)
    return M.policy_values(WORLD, uniform)[:, None]


CASES = {
    "q-learning": (tabular.q_learning(), off_policy, 0.05),
    "double q-learning": (tabular.double_q_learning(), off_policy, 0.08),
    "sarsa": (tabular.sarsa(), on_policy, 0.07),
    "expected sarsa": (tabular.expected_sarsa(), on_policy, 0.05),
    "3-step sarsa": (tabular.n_step_sarsa(3), on_policy, 0.1),
    "monte-carlo": (tabular.monte_carlo(40), on_policy, 0.12),
    "monte-carlo prediction": (tabular.monte_carlo_prediction(40), prediction, 0.05),
    "td(0)": (tabular.td(), prediction, 0.05),
    "4-step td": (tabular.n_step_td(4), prediction, 0.05),
}


@functools.cache
def trained(name, num_steps=60_000):
    algorithm = CASES[name][0]
    averaging = name.startswith("monte")
    hyperparameters = tabular.Hyperparameters(
        learning_rate=1.0, decay=1.0 if averaging else 0.7, epsilon=EPSILON, discount=0.8
    )
    environment, params = as_environment(WORLD, max_steps=40)
    policy = jnp.full((WORLD.num_states, 4), 0.25)
    run = jax.jit(
        jax.vmap(
            lambda key: tabular.train(
                key, environment, params, algorithm, hyperparameters, num_steps, policy=policy
            )
        ),
        compiler_options=OPTIMIZED,
    )
    return run(jax.random.split(jax.random.key(1), SEEDS))


@pytest.mark.parametrize("name", slow_but(CASES, ["q-learning"]))
def test_reaches_the_exact_answer(name):
    _, answer, tolerance = CASES[name]
    state, metrics = trained(name)
    table = np.asarray(state.tables.mean(axis=(0, 1)))
    alive = ~np.asarray(WORLD.terminal)
    error = np.abs(table - np.asarray(answer()))[alive].max()
    assert error < tolerance
    assert metrics["done"].sum() > 100


@pytest.mark.parametrize("name", slow_but(CASES, ["q-learning"]))
def test_solves_the_probes(name):
    """The worlds that every agent solves, as one program: exact values, where all is certain and rates fall."""
    environment, worlds = all_probes(one_hot=False)
    algorithm = CASES[name][0]
    hyperparameters = tabular.Hyperparameters(1.0, 1.0 if name == "monte-carlo" else 0.8, EPSILON, 0.5)
    policy = jnp.full((3, 2), 0.5)

    @jax.jit
    @jax.vmap
    def learn(params):
        args = jax.random.key(0), environment, params, algorithm, hyperparameters, 4000
        return tabular.train(*args, policy=policy)[0].tables.mean(0)

    tables = np.asarray(learn(worlds))
    for table, world in zip(tables, PROBES.values(), strict=True):
        behaviour = explored(world, 0.0 if "q-learning" in name else EPSILON)
        exact = M.action_values(world, M.value_iteration(behaviour, tolerance=1e-6).values)
        if not algorithm.learns_actions:
            exact = M.policy_values(world, policy)[:, None]
        visited = np.asarray(M.visitation(world, policy)) > 0
        np.testing.assert_allclose(table[visited][:-1], np.asarray(exact)[visited][:-1], atol=0.1)


def test_it_goes_on_from_a_checkpoint_with_the_same_bits(key, tmp_path):
    environment, params = as_environment(WORLD, max_steps=40)
    algorithm, hyperparameters = tabular.n_step_sarsa(3), tabular.Hyperparameters(learning_rate=0.3)
    start = tabular.init(key, environment, params, algorithm, hyperparameters)

    @jax.jit
    def go_on(state):
        step = lambda state, _: tabular.update(state, environment, params, algorithm, hyperparameters)  # noqa: E731
        return jax.lax.scan(step, state, length=50)[0]

    middle = go_on(start)
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(1, middle, {})
    checkpoints.close()
    restored = Checkpoints(tmp_path / "run").restore(jax.eval_shape(lambda: start))
    whole, parts = go_on(middle), go_on(restored)
    np.testing.assert_array_equal(*(jax.random.key_data(state.key) for state in (whole, parts)))
    jax.tree.map(np.testing.assert_array_equal, whole._replace(key=()), parts._replace(key=()))
    assert (whole.tables != middle.tables).any()


def test_one_q_learning_step_by_hand(key):
    environment, params = as_environment(M.grid_world("S +1").mdp)
    hyper = tabular.Hyperparameters(learning_rate=0.5, epsilon=0.0, discount=0.9)
    algorithm = tabular.q_learning()
    state = tabular.init(key, environment, params, algorithm, hyper)._replace(action=jnp.int32(1))
    state, metrics = jax.jit(lambda state: tabular.update(state, environment, params, algorithm, hyper))(
        state
    )
    np.testing.assert_allclose(state.tables[0, 0], [0, 0.45, 0, 0])
    assert bool(metrics["done"])
    assert state.counts.sum() == 1


def test_returns_of_an_episode_reach_back_n_steps(key):
    """On a corridor walked right to the end, n-step SARSA with α = 1 writes the discounted returns."""
    environment, params = as_environment(M.grid_world("S . . +1", living_reward=-1.0, discount=0.5).mdp)
    hyper = tabular.Hyperparameters(learning_rate=1.0, epsilon=0.0, discount=0.5)
    returns = [-1 + 0.5 * (-1 + 0.5 * (-1 + 0.5)), -1 + 0.5 * (-1 + 0.5), -1 + 0.5]
    for steps, expected in ((1, [-1, -1, returns[2]]), (2, [-1.5, *returns[1:]]), (5, returns)):
        algorithm = tabular.n_step_sarsa(steps)
        state = tabular.init(key, environment, params, algorithm, hyper)
        step = jax.jit(
            lambda s, algorithm=algorithm: tabular.update(s, environment, params, algorithm, hyper)[0]
        )
        for _ in range(3):
            state = step(state._replace(action=jnp.int32(1)))
        np.testing.assert_allclose(state.tables[0, :3, 1], expected)


def test_a_time_limit_is_not_a_death(key):
    """A truncated return bootstraps from the last state, and the next episode begins with an action of its own."""
    environment, params = as_environment(M.grid_world("S . +1", living_reward=-1.0).mdp, max_steps=1)
    hyper = tabular.Hyperparameters(learning_rate=1.0, epsilon=0.0, discount=0.5)
    algorithm = tabular.q_learning()
    state = tabular.init(key, environment, params, algorithm, hyper, initial_value=10.0)
    tables = state.tables.at[0, 0, 2].set(20.0).at[0, 1, 3].set(12.0)
    state, metrics = tabular.update(
        state._replace(action=jnp.int32(1), tables=tables), environment, params, algorithm, hyper
    )
    assert bool(metrics["done"])
    assert state.tables[0, 0, 1] == -1 + 0.5 * 12
    assert state.observation == 0
    assert state.action == 2


def test_first_visit_only(key):
    """Bumping twice at the start and then leaving: the return counts from the first visit, once."""
    environment, params = as_environment(M.grid_world("S +1", living_reward=-1.0, discount=1.0).mdp)
    hyper = tabular.Hyperparameters(learning_rate=1.0, decay=1.0, epsilon=0.0, discount=1.0)
    algorithm = tabular.monte_carlo_prediction(4)
    policy = jnp.full((2, 4), 0.25)
    state = tabular.init(key, environment, params, algorithm, hyper, policy=policy)
    for action in (0, 0, 1):
        state, _ = tabular.update(
            state._replace(action=jnp.int32(action)), environment, params, algorithm, hyper, policy=policy
        )
    assert state.tables[0, 0, 0] == -2
    assert state.counts[0, 0, 0] == 1


@pytest.mark.slow
def test_hyperparameters_and_seeds_are_one_vmap(key):
    environment, params = as_environment(WORLD, max_steps=40)

    def run(key, rate):
        hyperparameters = tabular.Hyperparameters(learning_rate=rate)
        return tabular.train(key, environment, params, tabular.q_learning(), hyperparameters, 200)[0].tables

    keys, rates = jax.random.split(key, 2), jnp.array([0.1, 0.5])
    together = jax.jit(jax.vmap(run))(keys, rates)
    alone = jax.jit(run)
    for i in range(2):
        np.testing.assert_allclose(together[i], alone(keys[i], rates[i]), rtol=1e-5, atol=1e-6)


def test_a_prediction_without_policy_is_refused(key):
    environment, params = as_environment(WORLD)
    with pytest.raises(ValueError, match="policy is None"):
        tabular.init(key, environment, params, tabular.td(), tabular.Hyperparameters())


def test_a_policy_of_another_shape_is_refused(key):
    environment, params = as_environment(WORLD)
    arguments = environment, params, tabular.td(), tabular.Hyperparameters()
    actions = jnp.zeros(WORLD.num_states, jnp.int32)
    with pytest.raises(ValueError, match=r"policy has shape \(8,\): .* probabilities \[S, A\], \(8, 4\)"):
        tabular.init(key, *arguments, policy=actions)
    policy = jnp.full((8, 4), 0.25)
    state = tabular.init(key, *arguments, policy=policy)
    with pytest.raises(AssertionError, match="8"):
        tabular.update(state, *arguments, policy=policy[:5])
