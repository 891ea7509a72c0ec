"""Solvers at discount 1, where episodes must end: bounds, policies that do not end, and slow ones."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import mdp as M
from tests.selection import slow_but

OPTIMAL = [M.value_iteration, M.action_value_iteration, M.policy_iteration, M.modified_policy_iteration]
OFTEN = slow_but(OPTIMAL, [M.modified_policy_iteration])
compiled = functools.cache(lambda solver, **fixed: jax.jit(functools.partial(solver, **fixed)))


def episodic(seed, leak, scale=1.0):
    """A random world at discount 1 that ends with some probability at every step, and its exact values."""
    rng = np.random.default_rng(seed)
    num_states = 5
    kernel = rng.dirichlet([0.5] * num_states, size=(num_states, 3))
    ends = leak * rng.random((num_states, 3, 1))
    kernel = kernel * (1 - ends)
    kernel[..., -1:] += ends
    rewards = rng.random((num_states, 3)) * scale
    rewards[-1] = rng.normal()
    terminal = np.arange(num_states) == num_states - 1
    plans = [
        np.linalg.solve(
            np.eye(num_states - 1) - kernel[np.arange(num_states - 1), plan][:, :-1],
            rewards[np.arange(num_states - 1), plan]
            + kernel[np.arange(num_states - 1), plan, -1] * rewards[-1, 0],
        )
        for plan in itertools.product(range(3), repeat=num_states - 1)
    ]
    return M.from_arrays(kernel, rewards, 1.0, terminal=terminal), np.append(
        np.max(plans, axis=0), rewards[-1, 0]
    )


@pytest.mark.parametrize("solver", OFTEN)
def test_the_bound_holds_in_episodes_whatever_the_tolerance(solver, x64):
    """The best policy may be slower than the one that was found; rewards of both signs."""
    for seed in range(24):
        world, truth = episodic(seed, 0.1 if seed % 2 else 0.5, 1.0 if seed % 3 else -1.0)
        for tolerance in (1.0, 1e-6):
            solution = compiled(solver)(world, tolerance=tolerance)
            assert solution.converged
            assert np.abs(solution.values - truth).max() <= solution.error_bound + 1e-12


def test_policy_iteration_starts_from_a_policy_that_ends(x64):
    """Greedy in the rewards alone, the first policy would walk in circles."""
    exit_or_stay = np.zeros((2, 2, 2))
    exit_or_stay[0] = [[0, 1], [1, 0]]
    world = M.from_arrays(exit_or_stay, [[-10, -0.1], [0, 0]], 1.0, terminal=[False, True])
    solution = compiled(M.policy_iteration)(world)
    assert solution.converged
    np.testing.assert_allclose(solution.values, [-10, 0])
    slow = M.from_arrays([[[0.99, 0.01]], [[0, 0]]], [[-1], [0]], 1.0, terminal=[False, True])
    assert compiled(M.policy_iteration)(slow).converged


@pytest.mark.parametrize("stay", [0.99, 0.999])
def test_the_soft_bound_of_an_episode_is_that_of_the_soft_policy(stay, x64):
    kernel = np.zeros((2, 2, 2))
    kernel[0] = [[0, 1], [1, 0]]
    world = M.from_arrays(kernel, [[1, 0], [0, 0]], 1.0, terminal=[False, True])
    solution = jax.jit(M.soft_value_iteration)(world, reference=jnp.array([[1 - stay, stay], [0.5, 0.5]]))
    # V = log((1 - p) e + p e^V) has the solution 1.
    assert solution.converged
    assert abs(solution.values[0] - 1) <= solution.error_bound


@pytest.mark.slow
@pytest.mark.parametrize("solver", OPTIMAL)
def test_an_improper_world_is_reported_not_endless(solver):
    kernel = np.zeros((3, 1, 3))
    kernel[0, 0, 0] = kernel[1, 0, 2] = 1
    world = M.from_arrays(kernel, [-1.0, -1.0, 0.0], 1.0, terminal=[False, False, True])
    solution = compiled(solver)(world, max_iterations=50)
    assert not bool(solution.converged)
    assert np.isinf(solution.error_bound)
    evaluation = M.evaluate_policy(world, jnp.zeros(3, jnp.int32), max_iterations=50)
    assert np.isinf(evaluation.error_bound)


@pytest.mark.parametrize("solver", OFTEN)
def test_a_world_that_never_ends_is_not_converged_because_nothing_is_paid(solver):
    world = M.grid_world(". # 0\n. # S", discount=1.0).mdp
    assert np.isinf(compiled(solver)(world, max_iterations=50).error_bound)
    assert np.isinf(M.evaluate_policy(world, jnp.zeros(4, jnp.int32), max_iterations=50).error_bound)


@pytest.mark.parametrize("solver", slow_but([M.modified_policy_iteration, M.policy_iteration], 1))
def test_an_answer_far_behind_a_free_place_is_found(solver, x64):
    """Staying costs nothing, walking a little, and only the end pays: the first sweeps see no reason to go."""
    kernel = np.zeros((6, 2, 6))
    kernel[np.arange(5), 0, np.arange(5)] = kernel[np.arange(5), 1, np.arange(1, 6)] = 1
    rewards = np.zeros((6, 2))
    rewards[:5, 1] = -1e-5
    rewards[4, 1] += 5e-4
    solution = compiled(solver)(M.from_arrays(kernel, rewards, 1.0, terminal=np.arange(6) == 5))
    assert solution.converged
    np.testing.assert_allclose(solution.values, [4.5e-4, 4.6e-4, 4.7e-4, 4.8e-4, 4.9e-4, 0], atol=1e-12)
    np.testing.assert_array_equal(solution.policy[:5], 1)


@pytest.mark.parametrize("pay", [-1.0, 0.0, 1.0])
def test_a_circle_without_an_end_leaves_the_other_values_right(pay, x64):
    """From state 2 to the end for −2, or into the circle of 0 and 1 for −1; state 3 has only the end."""
    kernel, rewards = np.zeros((5, 2, 5)), np.zeros((5, 2))
    kernel[0, :, 1] = kernel[1, :, 0] = kernel[2, 0, 4] = kernel[2, 1, 0] = kernel[3, :, 4] = 1
    rewards[:4] = [[pay, pay], [pay, pay], [-2, -1], [-5, -6]]
    world = M.from_arrays(kernel, rewards, 1.0, terminal=np.arange(5) == 4)
    solution = compiled(M.policy_iteration)(world)
    assert np.isinf(solution.error_bound)
    assert solution.values[3] == -5
    assert solution.values[2] == {-1: -2, 0: -1, 1: 9_999}[int(pay)]
    np.testing.assert_array_equal(solution.policy[2:4], [pay >= 0, 0])
    sweeps = compiled(M.value_iteration, max_iterations=10_000)(world)
    np.testing.assert_allclose(solution.values, sweeps.values, atol=1)


def test_what_no_horizon_or_start_can_be_is_named():
    world = M.lecture().mdp
    for wrong in (-1, 2.5, True):
        with pytest.raises(M.MDPError, match=f"horizon is {wrong}: give a whole number of steps from 0"):
            M.backward_induction(world, wrong)
    with pytest.raises(M.MDPError, match=r"final_values has shape \(1,\): give \(11,\)"):
        M.backward_induction(world, 2, final_values=jnp.zeros(1))
    for solver in (M.value_iteration, M.modified_policy_iteration):
        with pytest.raises(M.MDPError, match=r"start has shape \(3,\): give \(11,\)"):
            solver(world, start=jnp.zeros(3))
    with pytest.raises(M.MDPError, match=r"start has shape \(11,\): give \(11, 4\)"):
        M.action_value_iteration(world, start=jnp.zeros(11))
