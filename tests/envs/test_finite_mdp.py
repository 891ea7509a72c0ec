"""Any finite MDP as an environment: what is sampled converges to what is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.experimental import RolloutWrapper
from gymnax.wrappers import StickyActionWrapper

from jaxrl4lm import mdp as M
from jaxrl4lm.bandits import gaussian
from jaxrl4lm.envs.bandit import BanditEnvironment
from jaxrl4lm.envs.finite_mdp import FiniteMDPEnvironment, as_environment
from tests.selection import slow_but

LISTS = M.garnet(jax.random.key(3), 5, 2, 2, discount=0.7)
RNG = np.random.default_rng(0)
OUTCOMES = RNG.normal(size=(4, 2, 4))
DENSE = M.from_arrays(
    RNG.dirichlet(np.ones(4), (4, 2)), np.where(np.arange(4)[:, None, None] == 3, 2.0, OUTCOMES), 0.8,
    terminal=np.arange(4) == 3,
)  # fmt: skip
WORLDS = {
    "banded, terminals held at ±1": M.russell_norvig(0.9).mdp,
    "sparse": LISTS,
    "banded, with a hub": M.forest(12, discount=0.9),
    "dense, rewards by outcome": DENSE,
}


def sampled_return(environment, params, policy, steps, key):
    """Discounted return of one episode, cut after `steps`."""

    def step(carry, key):
        observation, state, weight, total = carry
        key_action, key_step = jax.random.split(key)
        action = jax.random.categorical(key_action, jnp.log(policy[observation]))
        observation, state, reward, terminated, _ = environment.step_env(key_step, state, action, params)
        total = total + weight * reward
        return (observation, state, weight * params.mdp.discount * ~terminated, total), None

    key_reset, key_steps = jax.random.split(key)
    observation, state = environment.reset_env(key_reset, params)
    start = (observation, state, jnp.ones(()), jnp.zeros(()))
    return jax.lax.scan(step, start, jax.random.split(key_steps, steps))[0][3]


@pytest.mark.parametrize("world", slow_but(WORLDS.values(), 1), ids=WORLDS)
def test_sampled_returns_converge_to_the_exact_objective(world, key):
    environment, params = as_environment(world)
    policy = jnp.asarray(RNG.dirichlet(np.ones(world.num_actions), world.num_states), jnp.float32)
    play = jax.jit(jax.vmap(lambda k: sampled_return(environment, params, policy, 60, k)))
    returns = np.asarray(play(jax.random.split(key, 4000)))
    exact = float(world.initial @ M.policy_values(world, policy))
    cut = 0.9**60 * float(jnp.abs(world.rewards).max()) / 0.1
    assert abs(returns.mean() - exact) < 4 * returns.std() / np.sqrt(4000) + cut


def test_step_resets_itself_and_tells_the_final_observation(key):
    environment, params = as_environment(M.grid_world("S +1").mdp)
    observation, state = environment.reset(key, params)
    assert observation == 0
    new, state, reward, terminated, truncated, info = environment.step(key, state, 1, params)
    assert (int(new), int(state.time), int(info["final_observation"])) == (0, 0, 1)
    assert bool(terminated)
    assert not bool(truncated)
    np.testing.assert_allclose(reward, 0.9)  # γ · (+1): the value of moving right


def test_an_episode_that_ends_with_the_limit_is_not_cut(key):
    environment, params = as_environment(M.grid_world("S +1").mdp, max_steps=1)
    _, state = environment.reset(key, params)
    for action, ended in ((1, True), (3, False)):  # right to the end, left against the wall
        _, _, _, terminated, truncated, _ = environment.step(key, state, action, params)
        assert (bool(terminated), bool(truncated)) == (ended, not ended)


def test_the_horizon_truncates(key):
    world = M.grid_world("S +1").mdp._replace(horizon=jnp.int32(2))
    environment, params = as_environment(world)
    _, state = environment.reset(key, params)
    for expected in (False, True):
        _, state, _, terminated, truncated, _ = environment.step(key, state, 3, params)
        assert (bool(terminated), bool(truncated)) == (False, expected)


def test_a_population_of_mdps_is_one_vmap(key):
    worlds = [M.grid_world("S . +1", living_reward=reward).mdp for reward in (-1.0, -2.0)]
    environment, params = as_environment(
        jax.tree.map(lambda *x: jnp.stack(x), *worlds)._replace(horizon=None)
    )
    params = params._replace(max_steps_in_episode=jnp.array([5, 6], jnp.int32))
    _, states = jax.vmap(environment.reset, (None, 0))(key, params)
    rewards = jax.vmap(environment.step, (None, 0, None, 0))(key, states, 1, params)[2]
    np.testing.assert_allclose(rewards, [-1, -2])


def test_one_hot_observations_and_spaces(key):
    environment, params = as_environment(LISTS, one_hot=True)
    observation, state = environment.reset(key, params)
    np.testing.assert_array_equal(observation, np.eye(5)[int(state.position)])
    assert environment.observation_space(params).shape == (5,)
    assert as_environment(LISTS)[0].observation_space(params).n == 5
    assert environment.action_space(params).n == 2


def test_missing_params_are_refused(key):
    environment = FiniteMDPEnvironment(5, 2)
    with pytest.raises(ValueError, match="params is None"):
        environment.reset(key)


@pytest.mark.slow
def test_enumerating_the_environment_gives_back_the_mdp():
    world = M.lecture(0.9).mdp
    environment, params = as_environment(world)
    again = M.from_environment(environment, params, discount=0.9)
    values, found = M.value_iteration(world).values, M.value_iteration(again).values
    np.testing.assert_allclose(np.sort(found[:-1]), np.sort(values[~world.terminal]), atol=1e-5)


@pytest.mark.parametrize("name, samples", slow_but([("Catch-bsuite", 1), ("FrozenLake-misc", 300)], 1))
def test_gymnax_worlds_enumerate(name, samples):
    gymnax = __import__("gymnax")
    environment, params = gymnax.make(name)
    world = M.from_environment(environment, params, discount=0.9, samples=samples)
    solution = M.value_iteration(world, tolerance=1e-4)
    assert bool(solution.converged)
    if name == "Catch-bsuite":  # The ball is always caught, after 9 steps.
        np.testing.assert_allclose(world.initial @ solution.values, 0.9**8, rtol=1e-4)
    else:
        assert world.num_states == 12  # 16 squares, less 4 holes and the goal, plus the end


def test_gymnaxs_conventions_and_wrappers_hold(key):
    environment, params = as_environment(M.grid_world("S . +1").mdp, max_steps=5)
    short = params.replace(max_steps_in_episode=2)
    assert (short.max_steps_in_episode, int(environment.default_params.max_steps_in_episode)) == (2, 5)
    assert environment.state_space(params).spaces["position"].n == 3
    sticky = StickyActionWrapper(environment, 1.0)
    _, state = sticky.reset(key)
    assert int(sticky.step(key, state, 1)[1].last_action) == 0
    rollout = RolloutWrapper(env=environment, env_params={"max_steps_in_episode": 2}, num_env_steps=4)
    assert rollout.single_rollout(key, None)[4][1]
    bandit = BanditEnvironment(gaussian(3))
    played = RolloutWrapper(env=bandit, env_params={"max_steps_in_episode": 2}, num_env_steps=2)
    np.testing.assert_array_equal(played.single_rollout(key, None)[4], [False, True])
    assert bandit.state_space().spaces["observation"].shape == (4,)
