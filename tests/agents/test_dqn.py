"""Q-learning with a table as network reaches Q*, also where every episode is cut short, and its memory is a ring."""

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import mdp as M
from jaxrl4lm.agents import agent as A
from jaxrl4lm.agents import dqn
from jaxrl4lm.envs.finite_mdp import as_environment
from jaxrl4lm.types import InputError
from tests.agents.probes import Table

WORLD = M.from_arrays(
    np.eye(4)[np.array([[1, 0], [2, 0], [3, 1], [3, 3]])],
    np.array([[0.0, 0.1], [0.0, 0.2], [1.0, -0.1], [0.0, 0.0]]),
    0.9,
    terminal=np.array([False, False, False, True]),
    initial=np.array([1, 1, 1, 0]) / 3,
)


@pytest.mark.parametrize("double", [True, False])
def test_a_table_reaches_the_optimal_values(double):
    """Episodes are cut after two steps: were that death, no state would be worth more than two rewards."""
    environment, params = as_environment(WORLD, one_hot=True, max_steps=2)
    agent = dqn.make(environment, params, network=Table(2))
    config = dqn.DQNConfig(
        steps=64 + 150 * 32,
        environments=8,
        rollout=4,
        buffer=640,
        warmup=64,
        gradient_steps=16,
        learning_rate=0.02,
        final_learning_rate_share=0.0,
        discount=0.9,
        epsilon=1.0,
        double=double,
    )
    config.check()
    state, _ = jax.jit(lambda key: A.train(agent, key, config, params, episodes=1))(jax.random.key(0))
    optimal = M.action_values(WORLD, M.value_iteration(WORLD, tolerance=1e-6).values)
    np.testing.assert_allclose(state.params["table"][:3], optimal[:3], atol=1e-2)


def test_the_memory_is_a_ring_of_what_was_played():
    """After 4 updates a ring of 3 holds the steps of the last 3; the next observation is that before a reset."""
    environment, params = as_environment(WORLD, one_hot=True, max_steps=2)
    agent = dqn.make(environment, params)
    config = dqn.DQNConfig(steps=8 * 5, environments=2, rollout=4, buffer=24, warmup=8, gradient_steps=1)
    config.check()
    update = jax.jit(lambda state: agent.update(state, config, params)[0])
    states = [jax.jit(lambda key: agent.init(key, config, params))(jax.random.key(0))]
    for _ in range(4):
        states.append(update(states[-1]))
    old, new = (state.memory.observation for state in (states[1], states[4]))
    np.testing.assert_array_equal(new[8:16], states[4].memory.observation[8:16])
    np.testing.assert_array_equal(new[:8], states[3].memory.observation[:8])
    np.testing.assert_array_equal(states[2].memory.observation[:16], old[:16])
    memory = jax.tree.map(np.asarray, states[4].memory)
    here, action = memory.observation.argmax(-1), memory.action
    following = np.array([[1, 0], [2, 0], [3, 1]])[here, action]
    np.testing.assert_array_equal(memory.next_observation.argmax(-1), following)
    np.testing.assert_array_equal(memory.terminated, following == 3)


def test_dueling_values_average_to_the_value_of_the_state():
    environment, params = as_environment(WORLD, one_hot=True, max_steps=2)
    learner = dqn.Learner(dqn.env.describe(environment, params), Table(3), True)
    table = jnp.array([[2.0, 5.0, 1.0]] * 4)
    values = dqn.look(learner, {"table": table}, jnp.eye(4)[:1])
    np.testing.assert_allclose(values, [[4.0, 0.0]])


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        InputError, match="buffer 1000 is no multiple of the 80 steps of an update: give 1040"
    ):
        dqn.DQNConfig(buffer=1000).check()
    with pytest.raises(InputError, match="warmup 2000 is more than the buffer holds"):
        dqn.DQNConfig(buffer=1040, warmup=2000, steps=2080).check()
    environment, params = gymnax.make("Pendulum-v1")
    with pytest.raises(InputError, match="Pendulum-v1 are vectors"):
        dqn.make(environment, params)
