"""Times to termination and rounding errors against what they are by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import mdp as M
from jaxrl4lm.mdp import bounds

find_ending = jax.jit(bounds.find_ending)


def corridor(slow_reward=0.0, stay_reward=-1.0):
    """Four states before the end: go on; go on or stay, by a coin; stay."""
    on, stay = np.eye(5)[[1, 2, 3, 4, 4]], np.eye(5)
    rewards = np.zeros((5, 3))
    rewards[:4, 1], rewards[:4, 2] = slow_reward, stay_reward
    kernel = np.stack([on, (on + stay) / 2, stay], axis=1)
    return M.from_arrays(kernel, rewards, 1.0, terminal=np.arange(5) == 4)


@pytest.mark.parametrize(
    "slow, stay, tolerance, least, most",
    [
        (-1.0, -1.0, 0.0, 4, 4),
        (0.0, -1.0, 0.0, 8, 16),
        (-0.01, -1.0, 0.0, 4, 4),
        (-0.01, -1.0, 0.02, 8, 16),
        (-1.0, 0.0, 0.0, 4, 4),
    ],
)
def test_the_horizon_is_that_of_the_slowest_of_the_best_that_end(slow, stay, tolerance, least, most, x64):
    """Who stays never ends, and so counts for nothing; the soonest goes on."""
    found = find_ending(corridor(slow, stay), jnp.zeros(5), 1000, tolerance)
    assert least <= found.horizon <= most
    np.testing.assert_array_equal(found.policy[:4], 0)


def test_below_1_the_horizon_is_that_of_the_discount(x64):
    found = find_ending(corridor()._replace(discount=jnp.asarray(0.9)), jnp.arange(5.0), 1000, 0.0)
    np.testing.assert_allclose(found.horizon, 0.9 / (1 - 0.9))
    np.testing.assert_array_equal(found.policy[:4], 0)


def test_a_time_that_is_not_proven_within_the_sweeps_is_infinite(x64):
    world = corridor()
    assert np.isinf(find_ending(world, jnp.zeros(5), 3, 0.0).horizon)
    assert np.isfinite(find_ending(world, jnp.zeros(5), 5, 0.0).horizon)


def test_of_the_best_actions_alone_is_the_horizon(x64):
    """The coin and staying are paid for; to go on ends sooner, but is not among the best."""
    found = find_ending(corridor(1.0, 1.0), jnp.zeros(5), 1000, 0.0)
    assert 8 <= found.horizon <= 16
    np.testing.assert_array_equal(found.policy[:4], 1)


def test_the_soonest_policy_goes_on_from_the_farthest_state():
    world = corridor()
    stay_first = M.Dense(world.transitions.probabilities[:, ::-1])
    np.testing.assert_array_equal(bounds.find_soonest_policy(world._replace(transitions=stay_first))[:4], 2)


def test_of_actions_alike_up_to_rounding_the_soonest_is_taken(x64):
    """0.1 + 0.2 > 0.3."""
    kernel, rewards = np.zeros((5, 3, 5)), np.zeros((5, 3))
    kernel[..., 4] = 1
    kernel[0, 0] = np.eye(5)[1]
    rewards[:2] = [[0.1, 0.3, 0], [0.2, 0.2, 0.2]]
    world = M.from_arrays(kernel, rewards, 1.0, terminal=np.arange(5) == 4)
    values = jnp.array([0.1 + 0.2, 0.2, 0, 0, 0])
    assert M.action_values(world, values)[0].argmax() == 0
    found = find_ending(world, values, 1000, 0.0)
    assert found.policy[0] == 1
    assert found.horizon == 2


@pytest.mark.parametrize("width, terms", [(5, 8), (80, 67)])
def test_the_rounding_error_of_a_sweep_is_of_its_terms(width, terms):
    world = M.garnet(jax.random.key(0), width, 2, width, discount=0.9)
    rounding = bounds.bound_rounding(world._replace(rewards=world.rewards.at[0, 0].set(-7)))
    values = jnp.linspace(0, 90, width)
    np.testing.assert_allclose(rounding.at(values, -10.0), 2**-24 * terms * (7 + 0.9 * 100), rtol=1e-5)
    # Of a penalty more than γ (max v − min v) below the state's best, nothing is met.
    best = world.rewards.max()
    penalised = bounds.bound_rounding(world._replace(rewards=world.rewards.at[0, 0].set(-1e9)))
    np.testing.assert_allclose(penalised.at(values), 2**-24 * terms * (best + 2 * 0.9 * 90), rtol=0.01)
