"""Bandits as gymnax environments: rewards are the arms', episodes only truncate."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm import bandits as B
from jaxrl4lm.envs.bandit import BanditEnvironment, BanditParams


def test_rewards_have_the_arms_means(key):
    environment = BanditEnvironment(B.restaurants(noise=2.0))
    _, state = environment.reset(key, BanditParams())
    step = jax.jit(jax.vmap(lambda k, a: environment.step_env(k, state, a, BanditParams())[2], (0, None)))
    for arm, mean in enumerate(B.RESTAURANTS.values()):
        rewards = np.asarray(step(jax.random.split(key, 4000), arm))
        assert abs(rewards.mean() - mean) < 4 * 2 / np.sqrt(4000)
        np.testing.assert_allclose(rewards.std(), 2, rtol=0.1)


def test_an_episode_only_truncates_and_tells_what_the_choice_brought(key):
    environment, params = BanditEnvironment(B.gaussian(3)), BanditParams(2)
    observation, state = environment.reset(key, params)
    np.testing.assert_array_equal(observation, np.zeros(4))
    for expected in (False, True):
        _, state, reward, terminated, truncated, info = environment.step(key, state, 1, params)
        assert (bool(terminated), bool(truncated)) == (False, expected)
        np.testing.assert_allclose(info["final_observation"], [0, 1, 0, reward])
        assert info["regret"] >= 0


def test_a_contextual_problem_pays_for_the_observed_context(key):
    environment = BanditEnvironment(B.linear(4, 3, noise=0.0))
    observation, state = environment.reset(key, BanditParams())
    new, _, reward, _, _, info = environment.step(key, state, 2, BanditParams())
    means = state.world[:, :, 0] @ observation
    np.testing.assert_allclose(reward, means[2], rtol=1e-5)
    np.testing.assert_allclose(info["regret"], jnp.max(means) - means[2], rtol=1e-5)
    assert environment.observation_space().shape == new.shape == (3,)
