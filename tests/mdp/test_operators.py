"""Bellman operators against NumPy, among equals and where a reference forbids the best action."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import mdp as M


@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
def test_a_soft_backup_is_the_log_of_a_mean_over_what_the_reference_allows(temperature, x64):
    rng = np.random.default_rng(0)
    kernel, rewards = rng.dirichlet(np.ones(5), (5, 3)), rng.normal(size=(5, 3))
    reference = rng.dirichlet(np.ones(3), 5)
    reference[:, 0], rewards[:, 0] = 0, 10
    reference /= reference.sum(axis=1, keepdims=True)
    world, values = M.from_arrays(kernel, rewards, 0.9), rng.normal(size=5)
    q = rewards + 0.9 * kernel @ values
    best = q[:, 1:].max(axis=1, keepdims=True)
    weights = reference * np.exp(np.minimum(q - best, 0) / temperature)
    options = {"temperature": temperature, "reference": jnp.asarray(reference)}

    def backup(rewards):
        return M.operators.soft_backup(world._replace(rewards=rewards), jnp.asarray(values), **options)

    expected = best[:, 0] + temperature * np.log(weights.sum(axis=1))
    np.testing.assert_allclose(backup(world.rewards), expected, rtol=1e-12)
    policy = weights / weights.sum(axis=1, keepdims=True)
    logits = M.operators.soft_logits(world, jnp.asarray(values), **options)
    np.testing.assert_allclose(jax.nn.softmax(logits), policy, atol=1e-12)
    slope = jax.grad(lambda rewards: backup(rewards).sum())(world.rewards)
    np.testing.assert_allclose(slope, policy, atol=1e-12)


def test_a_soft_value_of_what_is_hardly_ever_done_has_a_value_and_a_gradient(x64):
    """The reference leaves the best action a chance below the rounding error of 1."""
    world = M.from_arrays(np.ones((1, 2, 1)), [[10.0, 0.0]], 0.0)
    reference = jnp.array([[1e-20, 1.0]])

    def value(rewards):
        options = {"temperature": 0.1, "reference": reference}
        return M.operators.soft_backup(world._replace(rewards=rewards), jnp.zeros(1), **options)[0]

    np.testing.assert_allclose(value(world.rewards), 10 + 0.1 * np.log(1e-20), rtol=1e-12)
    np.testing.assert_allclose(jax.grad(value)(world.rewards), [[1, 0]], atol=1e-12)


@pytest.mark.parametrize("compared", [16, 0])
def test_the_greedy_action_is_the_first_of_equals(compared, monkeypatch):
    monkeypatch.setattr(M.operators, "MAX_COMPARED", compared)
    rewards = np.array([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 2], [2, 1, 0, 1]])
    world = M.from_arrays(np.full((4, 4, 4), 0.25), rewards, 0.9)
    np.testing.assert_array_equal(M.greedy(world, jnp.zeros(4)), [0, 1, 3, 0])
    np.testing.assert_array_equal(M.backup(world, jnp.zeros(4)), [1, 1, 2, 2])


def test_the_chain_of_a_policy_pays_what_it_expects_and_nothing_by_outcome(x64):
    rng = np.random.default_rng(0)
    kernel, rewards = rng.dirichlet(np.ones(4), (4, 2)), rng.normal(size=(4, 2, 4))
    world = M.from_arrays(kernel, rewards, 0.9)
    expected, policy = (kernel * rewards).sum(axis=-1), rng.dirichlet(np.ones(2), 4)
    for given, mixed in ((policy, policy), (np.array([0, 1, 1, 0]), np.eye(2)[[0, 1, 1, 0]])):
        chain = M.policy_chain(world, jnp.asarray(given))
        np.testing.assert_allclose(chain.rewards[:, 0], (expected * mixed).sum(axis=1), atol=1e-12)
        assert chain.outcome_rewards is None
        swept = M.operators.policy_backup(world, jnp.asarray(given), jnp.arange(4.0))
        q = expected + 0.9 * kernel @ np.arange(4.0)
        np.testing.assert_allclose(swept, (mixed * q).sum(axis=1), atol=1e-12)
