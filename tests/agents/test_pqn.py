"""The targets of PQN are λ-returns, at every step and across ends and cuts, and a table learns Q* of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm.agents import agent as A
from jaxrl4lm.agents import pqn, value_based
from jaxrl4lm.agents.environment import Transition
from jaxrl4lm.envs.finite_mdp import as_environment
from tests.agents.probes import Table
from tests.agents.test_dqn import OPTIMAL, WORLD

TIME, COPIES, DISCOUNT = 7, 4, 0.9


def forward_view(rewards, following, terminated, truncated, t, lambda_):
    """(1 − λ) Σ_n λ^{n−1} G^(n), and λ^{N−1} G^(N) of the last one, before an end, a cut or the end of the rollout."""
    total, sum_of_rewards, weight = 0.0, 0.0, 1.0
    for n in range(1, TIME - t + 1):
        k = t + n - 1
        sum_of_rewards += DISCOUNT ** (n - 1) * rewards[k]
        target = sum_of_rewards + (0 if terminated[k] else DISCOUNT**n * following[k])
        if terminated[k] or truncated[k] or k == TIME - 1:
            return total + weight * target
        total += weight * (1 - lambda_) * target
        weight *= lambda_
    raise AssertionError


@pytest.mark.parametrize("lambda_", [0.0, 0.65, 1.0])
def test_targets_are_lambda_returns_at_every_step(lambda_):
    rng = np.random.default_rng(0)
    environment, params = as_environment(WORLD, one_hot=True)
    table = rng.normal(size=(4, 2)).astype(np.float32)
    after = rng.integers(0, 3, (TIME, COPIES))
    terminated = rng.random((TIME, COPIES)) < 0.2
    truncated = (rng.random((TIME, COPIES)) < 0.2) & ~terminated
    assert terminated.any() and truncated[:-1].any()  # noqa: PT018
    rewards = rng.normal(size=(TIME, COPIES)).astype(np.float32)
    spec = value_based.describe(environment, params)
    learner = pqn.Learner(spec, Table(2), lambda params, seen: seen @ params["table"])
    steps = Transition(
        observation=jnp.zeros((TIME, COPIES, 4)),
        action=jnp.zeros((TIME, COPIES), jnp.int32),
        reward=jnp.asarray(rewards),
        terminated=jnp.asarray(terminated),
        truncated=jnp.asarray(truncated),
        final_observation=jax.nn.one_hot(after, 4),
        extra=(),
    )
    config = pqn.PQNConfig(discount=DISCOUNT, return_lambda=lambda_)
    found = pqn.find_targets(steps, {"table": jnp.asarray(table)}, config, learner)
    following = table.max(-1)[after]
    for n in range(COPIES):
        columns = rewards[:, n], following[:, n], terminated[:, n], truncated[:, n]
        expected = [forward_view(*columns, t, lambda_) for t in range(TIME)]
        np.testing.assert_allclose(found[:, n], expected, rtol=1e-5, atol=1e-6)


def test_targets_are_those_of_the_algorithm():
    """Numbers by hand, where bootstrapping one step too late gives 24.9, 33.1, 39, 40."""
    environment, params = as_environment(WORLD, one_hot=True)
    learner = pqn.Learner(value_based.describe(environment, params), Table(2), lambda params, seen: seen)
    column = jnp.arange(1.0, 5.0)[:, None]
    steps = Transition(
        observation=10 * column[..., None] - 10,
        action=jnp.zeros((4, 1), jnp.int32),
        reward=column,
        terminated=jnp.zeros((4, 1), bool),
        truncated=jnp.zeros((4, 1), bool),
        final_observation=10 * column[..., None],
        extra=(),
    )
    found = pqn.find_targets(steps, {}, pqn.PQNConfig(discount=0.9, return_lambda=0.5), learner)
    np.testing.assert_allclose(found[:, 0], [17.43625, 26.525, 34.5, 40], rtol=1e-6)


def test_a_table_reaches_the_optimal_values():
    """λ = 0, as what follows random actions is not what follows the best ones. Episodes are cut after two steps."""
    environment, params = as_environment(WORLD, one_hot=True, max_steps=2)
    agent = pqn.make(environment, params, network=Table(2))
    config = pqn.PQNConfig(
        steps=150 * 64,
        environments=16,
        rollout=4,
        minibatches=4,
        learning_rate=0.02,
        final_learning_rate_share=0.0,
        discount=0.9,
        epsilon=1.0,
        return_lambda=0.0,
    )
    config.check()
    state, _ = jax.jit(lambda key: A.train(agent, key, config, params, episodes=1))(jax.random.key(0))
    np.testing.assert_allclose(state.params["table"][:3], OPTIMAL[:3], atol=1e-2)
