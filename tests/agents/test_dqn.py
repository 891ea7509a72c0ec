"""Q-learning with a table as network reaches Q*, also where every episode is cut short, and no update copies the memories."""

import re

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import mdp as M
from jaxrl4lm.agents import agent as A
from jaxrl4lm.agents import dqn, value_based
from jaxrl4lm.envs.finite_mdp import as_environment
from jaxrl4lm.types import InputError
from tests.agents.probes import Table
from tests.selection import slow_but

WORLD = M.from_arrays(
    np.eye(4)[np.array([[1, 0], [2, 0], [3, 1], [3, 3]])],
    np.array([[0.0, 0.1], [0.0, 0.2], [1.0, -0.1], [0.0, 0.0]]),
    0.9,
    terminal=np.array([False, False, False, True]),
    initial=np.array([1, 1, 1, 0]) / 3,
)
OPTIMAL = M.action_values(WORLD, M.value_iteration(WORLD, tolerance=1e-6).values)


TABLE = dqn.DQNConfig(
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
)
VARIANTS = {
    "double": {},
    "plain": {"double": False},
    "prioritized": {"prioritized": True},
}


@pytest.mark.parametrize("name", slow_but(VARIANTS, ["double", "prioritized"]))
def test_a_table_reaches_the_optimal_values(name):
    """Episodes are cut after two steps: were that death, no state would be worth more than two rewards."""
    environment, params = as_environment(WORLD, one_hot=True, max_steps=2)
    agent = dqn.make(environment, params, network=Table(2))
    config = TABLE.replace(**VARIANTS[name])
    config.check()
    state, _ = jax.jit(lambda key: A.train(agent, key, config, params, episodes=1))(jax.random.key(0))
    np.testing.assert_allclose(state.params["table"][:3], OPTIMAL[:3], atol=1e-2)


def test_three_steps_reach_the_optimal_values_where_later_actions_do_not_matter():
    """Elsewhere they are worth what the remembered actions are. Cut after two steps, three steps are one or two."""
    chain = np.eye(5)[np.array([[1, 2], [2, 2], [3, 3], [4, 4], [4, 4]])]
    rewards = np.array([[0.1, 0.6], [0.5, 0.5], [-0.3, -0.3], [1.0, 1.0], [0.0, 0.0]])
    ends = np.arange(5) == 4
    world = M.from_arrays(chain, rewards, 0.9, terminal=ends, initial=~ends / 4)
    environment, params = as_environment(world, one_hot=True, max_steps=2)
    agent = dqn.make(environment, params, network=Table(2))
    config = TABLE.replace(n_step=3)
    state, _ = jax.jit(lambda key: A.train(agent, key, config, params, episodes=1))(jax.random.key(0))
    optimal = M.action_values(world, M.value_iteration(world, tolerance=1e-6).values)
    np.testing.assert_allclose(state.params["table"][:4], optimal[:4], atol=1e-2)


@pytest.mark.parametrize("prioritized, seeds", [(False, 1), (True, 1), (False, 2), (True, 2)])
def test_an_update_copies_no_memories(prioritized, seeds):
    """In the compiled program of updates of donated states, nothing of the size of the ring is copied or chosen."""
    environment, params = as_environment(WORLD, one_hot=True, max_steps=2)
    agent = dqn.make(environment, params)
    config = TABLE.replace(buffer=11_104, prioritized=prioritized, n_step=2)
    config.check()
    keys = jax.random.split(jax.random.key(0), seeds)
    states = jax.eval_shape(jax.vmap(lambda key: agent.init(key, config, params)), keys)

    def chunk(states):
        update = jax.vmap(lambda state: agent.update(state, config, params)[0])
        return jax.lax.scan(lambda states, _: (update(states), None), states, length=3)[0]

    lines = jax.jit(chunk, donate_argnums=0).lower(states).compile().as_text().splitlines()
    made = re.compile(rf"= \w+\[(?:{seeds},)?11104[],][^ ]* ([\w-]+)\(")
    operations = {found.group(1) for line in lines if (found := made.search(line))}
    assert "get-tuple-element" in operations
    assert not {"copy", "select", "copy-start", "convert", "add"} & operations


@pytest.fixture(scope="module")
def ranked():
    """(sizes of errors, priorities after them, a large batch) of 64 memories of a ring of 640."""
    environment, params = as_environment(WORLD, one_hot=True, max_steps=2)
    config = TABLE.replace(prioritized=True, batch=20_000, importance_exponent=0.5)
    agent = dqn.make(environment, params)
    sizes = np.linspace(0, 1, 64) ** 2

    @jax.jit
    def run(key):
        state = agent.init(key, config, params)
        priorities = value_based.rank(state.priorities, jnp.arange(64), jnp.asarray(sizes), config)
        here = state.place.observation
        return priorities, value_based.recall(key, state.memory, priorities, here, jnp.int32(75), config)

    return sizes, *run(jax.random.key(0))


def test_a_larger_error_is_drawn_more_often_and_weighs_less(ranked):
    """By the exact probabilities p^α / Σ p^α, and the weights (1 / probability)^β over their maximum."""
    sizes, priorities, part = ranked
    exact = (sizes + 1e-3) ** 0.6
    exact /= exact.sum()
    counts = np.bincount(part.index, minlength=64)
    assert counts.shape == (64,)
    assert (abs(counts - 20_000 * exact) < 2).all()  # one from each of 20,000 equal parts of the sum
    weights = exact[np.asarray(part.index)] ** -0.75  # β is half-way from 0.5 to 1
    np.testing.assert_allclose(part.weight, weights / weights.max(), rtol=1e-3)
    np.testing.assert_allclose(priorities.largest, 1.001**0.6, rtol=1e-6)


def test_dueling_values_average_to_the_value_of_the_state():
    environment, params = as_environment(WORLD, one_hot=True, max_steps=2)
    agent = dqn.make(environment, params, network=Table(3), dueling=True)
    known = {"params": {"table": jnp.array([[2.0, 5.0, 1.0]] * 4)}}
    np.testing.assert_allclose(agent.value(known, jnp.eye(4)[:1]), [4.0])
    values = dqn.look(Table(3), True, known["params"], jnp.eye(4)[:1])
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
