"""Actions that a state does not have: never taken, by no solver, environment or agent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import mdp as M
from jaxrl4lm.agents import tabular
from jaxrl4lm.envs.finite_mdp import as_environment
from tests.selection import slow_but

STATES, ACTIONS = 6, 3
SOLVERS = [
    M.value_iteration,
    M.action_value_iteration,
    M.policy_iteration,
    M.modified_policy_iteration,
    M.soft_value_iteration,
]


def twins(layout=M.as_dense, discount=0.9):
    """A world with infeasible actions, the same with repetitions of a feasible one instead, and the mask."""
    rng = np.random.default_rng(0)
    kernel = 0.8 * rng.dirichlet(np.ones(STATES), (STATES, ACTIONS)) + 0.2 * np.eye(STATES)[-1]
    rewards, ends = rng.normal(size=(STATES, ACTIONS)), np.arange(STATES) == STATES - 1
    rewards[-1] = 0
    mask = rng.random((STATES, ACTIONS)) < 0.5
    mask[np.arange(STATES), rng.integers(0, ACTIONS, STATES)] = True
    stands_in = np.where(mask, np.arange(ACTIONS), mask.argmax(axis=1)[:, None])
    states = np.arange(STATES)[:, None]
    by_mask = M.from_arrays(
        np.where(mask[..., None], kernel, np.nan), rewards, discount, terminal=ends, feasible=mask
    )
    repeated = M.from_arrays(kernel[states, stands_in], rewards[states, stands_in], discount, terminal=ends)
    return layout(by_mask), layout(repeated), mask | ends[:, None]


@pytest.mark.parametrize("solver", slow_but(SOLVERS, [M.policy_iteration, M.soft_value_iteration]))
@pytest.mark.parametrize("layout, discount", slow_but([(M.as_dense, 1.0), (M.as_sparse, 0.9)], 1))
def test_solvers_never_take_an_infeasible_action(solver, layout, discount, x64):
    world, twin, mask = twins(layout, discount)
    np.testing.assert_array_equal(world.feasible, mask)
    options = {"tolerance": 1e-9}
    solution = jax.jit(functools.partial(solver, **options))(world)
    assert solution.converged
    if solver is M.soft_value_iteration:
        assert not solution.policy[~mask].any()
        prior = mask / mask.sum(axis=1, keepdims=True)
        expected = M.operators.soft_backup(world, solution.values, reference=jnp.asarray(prior))
        np.testing.assert_allclose(solution.values, expected, atol=1e-8)
    else:
        np.testing.assert_allclose(solution.values, jax.jit(M.policy_iteration)(twin).values, atol=1e-8)
        assert mask[np.arange(STATES), solution.policy].all()


@pytest.mark.parametrize("solver", [M.value_iteration, M.soft_value_iteration])
def test_gradients_are_finite_and_0_at_infeasible_actions(solver, x64):
    world, _, mask = twins()
    slopes = jax.jit(jax.grad(lambda r: solver(world._replace(rewards=r)).values.sum()))(world.rewards)
    assert np.isfinite(slopes).all()
    assert not slopes[~mask].any()
    assert slopes[mask].any()


def test_a_batch_a_plan_and_gradients_obey_as_well(x64):
    world, twin, mask = twins()
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), world)
    batch, truth = jax.jit(M.solve_batch)(stacked, tolerance=1e-9), jax.jit(M.policy_iteration)(twin).values
    np.testing.assert_allclose(batch.values, [truth, truth], atol=1e-8)
    np.testing.assert_allclose(
        M.backward_induction(world, 4).values, M.backward_induction(twin, 4).values, atol=1e-12
    )
    logits = jnp.asarray(np.random.default_rng(1).normal(size=mask.shape))
    gradient = jax.jit(M.policy_gradient)(world, logits)
    np.testing.assert_allclose(gradient, jax.jit(jax.grad(M.objective, argnums=1))(world, logits), atol=1e-9)
    assert not gradient[~mask].any()
    assert gradient[mask].any()


def test_rewards_of_minus_infinity_are_a_mask():
    by_mask, _, mask = twins()
    kernel = np.where(mask[..., None], by_mask.transitions.probabilities, np.nan)
    rewards = np.where(mask, by_mask.rewards, -np.inf)
    same = M.from_arrays(kernel, rewards, 0.9, terminal=by_mask.terminal)
    jax.tree.map(np.testing.assert_array_equal, same, by_mask)
    outcomes = np.where(mask[..., None], np.ones(kernel.shape), -np.inf)
    by_outcome = M.from_arrays(np.nan_to_num(kernel, nan=0.5), outcomes, 0.9, terminal=by_mask.terminal)
    np.testing.assert_array_equal(by_outcome.feasible, mask)


def test_what_is_infeasible_is_named():
    world, _, mask = twins()
    state, action = np.argwhere(~mask)[0]
    policy = jnp.argmax(world.feasible, axis=1).at[state].set(action)
    message = f"policy of state {state} takes action {action}, which is infeasible"
    with pytest.raises(M.MDPError, match=message):
        M.evaluate_policy(world, policy)
    for exact in (M.policy_values, M.policy_action_values, M.visitation):
        with pytest.raises(M.MDPError, match=message):
            exact(world, policy)
        with pytest.raises(M.MDPError, match="policy of state"):
            exact(world, jnp.full(mask.shape, 1 / ACTIONS))
        assert np.isfinite(
            exact(world, jnp.argmax(world.feasible, axis=1))[np.asarray(world.terminal) == 0].max()
        )
    with pytest.raises(M.MDPError, match="reference of state"):
        M.soft_value_iteration(world, reference=jnp.full(mask.shape, 1 / ACTIONS))
    assert not jax.jit(M.evaluate_policy)(world, policy).converged
    kernel, none = np.full((2, 1, 2), 0.5), np.array([[True], [False]])
    with pytest.raises(M.MDPError, match="state 1 has no feasible action"):
        M.from_arrays(kernel, [0, 0], 0.9, feasible=none)
    with pytest.raises(M.MDPError, match="state 0 has no feasible action"):
        M.from_arrays(kernel, [-np.inf, 0], 0.9)
    with pytest.raises(M.MDPError, match=r"feasible has shape \(2,\)"):
        M.from_arrays(kernel, [0, 0], 0.9, feasible=np.array([True, True]))


@pytest.mark.parametrize(
    "algorithm",
    slow_but(
        [tabular.q_learning(), tabular.expected_sarsa(), tabular.double_q_learning(), tabular.sarsa()], 2
    ),
)
def test_tabular_agents_and_their_environment_never_take_an_infeasible_action(algorithm, key):
    world, twin, mask = twins()
    environment, params = as_environment(world)
    rates = tabular.Hyperparameters(epsilon=0.3, decay=0.6, learning_rate=1.0)
    learn = jax.jit(lambda k: tabular.train(k, environment, params, algorithm, rates, 4000)[0])
    state = learn(key)
    assert not state.counts[:, ~mask].any()
    assert np.isneginf(state.tables[:, ~mask]).all()
    assert np.isfinite(state.tables[:, mask]).all()
    if algorithm.num_tables == 1 and algorithm.bootstrap is not tabular.sarsa().bootstrap:
        truth = np.asarray(jax.jit(M.policy_iteration)(twin).values)
        np.testing.assert_allclose(state.tables[0].max(axis=-1)[:-1], truth[:-1], atol=0.6)
    s, a = np.argwhere(~mask)[0]
    start = environment.reset_env(key, params)[1]._replace(position=jnp.int32(s))
    by_twin, paid = as_environment(twin)
    outcomes = [
        e.step_env(key, start, jnp.int32(a), p)[1:3] for e, p in ((environment, params), (by_twin, paid))
    ]
    jax.tree.map(np.testing.assert_array_equal, *outcomes)
