"""Q-learning with a table as network reaches Q*, also where every episode is cut short."""

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import mdp as M
from jaxrl4lm.agents import agent as A
from jaxrl4lm.agents import dqn, replay, value_based
from jaxrl4lm.agents.distributional import Returns, look_ahead
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


@pytest.mark.parametrize("double", [True, False])
def test_the_network_chooses_what_the_older_one_values(double):
    """Errors by hand: r + γ Q′(s′, argmax Q(s′, ·)) − Q(s, a), or max Q′; an end is worth its reward; within δ squared."""
    rng = np.random.default_rng(0)
    network, target = rng.normal(size=(2, 4, 2)).astype(np.float32)
    assert (network.argmax(-1) != target.argmax(-1)).any()
    place, action, after = rng.integers(0, [[4], [2], [4]], (3, 30))
    reward, terminated = rng.normal(size=30).astype(np.float32), rng.random(30) < 0.3
    environment, params = as_environment(WORLD, one_hot=True)
    spec, look = value_based.describe(environment, params), lambda params, seen: seen @ params
    part = replay.Sample(
        *(jax.nn.one_hot(place, 4), jnp.asarray(action), jnp.asarray(reward), jnp.full(30, 0.9)),
        *(jnp.asarray(terminated), jax.nn.one_hot(after, 4), jnp.ones(30), jnp.arange(30)),
    )
    config = TABLE.replace(double=double, huber_delta=0.5)
    found, sizes = dqn.loss(spec, look, jnp.asarray(network), jnp.asarray(target), part, config)
    best = (network if double else target)[after].argmax(-1)
    errors = reward + 0.9 * ~terminated * target[after, best] - network[place, action]
    np.testing.assert_allclose(sizes, np.abs(errors), rtol=1e-5, atol=1e-6)
    huber = np.where(np.abs(errors) < 0.5, errors**2 / 2, 0.5 * (np.abs(errors) - 0.25))
    np.testing.assert_allclose(found, huber, rtol=1e-5, atol=1e-6)

    means = lambda numbers, params: numbers.mean(-1)  # noqa: E731
    returns = Returns(
        spec, lambda params, seen: (seen @ params)[..., None] + jnp.array([[[-1.0, 1.0]]]), means
    )
    said, worth = look_ahead(returns, jnp.asarray(network), jnp.asarray(target), part, config)
    np.testing.assert_allclose(said, target[after, best][:, None] + [[-1, 1]], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(worth[:, 0], 0.9 * ~terminated, rtol=1e-6)


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
