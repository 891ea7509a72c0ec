"""Gain and bias against a linear system, over all policies."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm import mdp as M

solve = jax.jit(M.relative_value_iteration)


def gain_and_bias(kernel, rewards):
    """Of one chain, by the equations h + g = r + P h, h(0) = 0."""
    size = len(rewards)
    system = np.block([[np.eye(size) - kernel, np.ones((size, 1))], [np.eye(size)[:1], np.zeros((1, 1))]])
    answer = np.linalg.solve(system, np.append(rewards, 0))
    return answer[-1], answer[:-1]


def test_gain_and_bias_are_those_of_the_best_policy(x64):
    rng = np.random.default_rng(0)
    kernel, rewards = rng.dirichlet(np.ones(4), (4, 2)), rng.normal(size=(4, 2))
    states = np.arange(4)
    found = [
        gain_and_bias(kernel[states, list(plan)], rewards[states, list(plan)])
        for plan in itertools.product(range(2), repeat=4)
    ]
    gain, bias = max(found, key=lambda answer: answer[0])
    solution = solve(M.from_arrays(kernel, rewards, 0.5), tolerance=1e-10)
    assert solution.converged
    assert abs(solution.gain - gain) <= solution.error_bound
    np.testing.assert_allclose(solution.bias, bias, atol=1e-8)
    # The discounted value is g / (1 − γ) + h, nearly.
    near = M.policy_iteration(M.from_arrays(kernel, rewards, 1 - 1e-7)).values
    np.testing.assert_allclose(near - near[0], bias, atol=1e-5)


def test_a_periodic_chain_has_a_gain():
    solution = solve(M.from_arrays([[[0, 1]], [[1, 0]]], [0.0, 3.0], 0.9))
    assert solution.converged
    np.testing.assert_allclose(solution.gain, 1.5, atol=1e-3)
    np.testing.assert_allclose(solution.bias, [0, 1.5], atol=4e-3)


def test_a_world_that_ends_has_none():
    solution = solve(M.lecture().mdp)
    assert not solution.converged
    assert jnp.isinf(solution.error_bound)
    assert solution.iterations == 0


def test_near_discount_1_only_a_common_shift_is_left():
    world = M.forest(3, discount=0.9999)
    solution, quick = jax.jit(M.value_iteration)(world), jax.jit(M.modified_policy_iteration)(world)
    assert solution.iterations < 300
    assert solution.error_bound <= 1.1 * quick.error_bound
    np.testing.assert_allclose(solution.values, quick.values, rtol=1e-4)
