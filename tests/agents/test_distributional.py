"""Distributional agents with a table as network reach Q*, and quantiles and probabilities are those of the returns."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxrl4lm import mdp as M
from jaxrl4lm.agents import agent as A
from jaxrl4lm.agents import c51, qr_dqn, value_based
from jaxrl4lm.envs.finite_mdp import as_environment
from jaxrl4lm.types import InputError
from tests.agents.probes import Table
from tests.agents.test_dqn import OPTIMAL, TABLE, WORLD
from tests.selection import slow_but

SHARED = {each.name: getattr(TABLE, each.name) for each in dataclasses.fields(value_based.ValueConfig)}
QR = qr_dqn.QRDQNConfig(**SHARED)
C51 = c51.C51Config(**SHARED, least_return=-0.5, largest_return=1.5).replace(
    learning_rate=0.3, steps=64 + 300 * 32
)
CASES = {
    "quantiles": (qr_dqn, QR, {"network": Table(2 * 3), "quantiles": 3}),
    "quantiles, plain, κ = 0": (
        qr_dqn,
        QR.replace(double=False, kappa=0.0),
        {"network": Table(2 * 3), "quantiles": 3},
    ),
    "categories": (c51, C51, {"network": Table(2 * 5), "atoms": 5}),
    "categories, plain, prioritized": (
        c51,
        C51.replace(double=False, prioritized=True),
        {"network": Table(2 * 5), "atoms": 5},
    ),
}


def learn(module, config, settings, world, max_steps):
    """(values, distributions) of the states but the last."""
    environment, params = as_environment(world, one_hot=True, max_steps=max_steps)
    agent = module.make(environment, params, **settings)
    config.check()
    state, _ = jax.jit(lambda key: A.train(agent, key, config, params, episodes=1))(jax.random.key(0))
    table = state.params["network"]["table"] if module is c51 else state.params["table"]
    outputs = np.asarray(table).reshape(world.num_states, world.num_actions, -1)[:-1]
    if module is qr_dqn:
        return outputs.mean(-1), outputs
    support = np.linspace(config.least_return, config.largest_return, settings["atoms"], dtype=np.float32)
    np.testing.assert_array_equal(state.params["support"], support)
    probs = np.asarray(jax.nn.softmax(outputs))
    return probs @ support, probs


@pytest.mark.parametrize("name", slow_but(CASES, ["quantiles", "categories"]))
def test_a_table_reaches_the_optimal_values(name):
    """Every action is drawn alike, and episodes are cut after two steps: that is no death."""
    values, _ = learn(*CASES[name], WORLD, 2)
    np.testing.assert_allclose(values, OPTIMAL[:3], atol=1e-2)


COIN = M.from_arrays(
    np.array([[[0, 0.5, 0.5, 0]], [[0, 0, 0, 1]], [[0, 0, 0, 1]], [[0, 0, 0, 1.0]]]),
    np.array([[0.0], [1.0], [-1.0], [0.0]]),
    0.5,
    terminal=np.arange(4) == 3,
    initial=np.array([1.0, 0, 0, 0]),
)
"""The first state is worth ½ or −½, each as likely."""


@pytest.mark.slow
def test_distributions_are_those_of_the_returns():
    """All returns are among the fixed ones, so that the projections lose nothing."""
    config = QR.replace(kappa=0.0, discount=0.5)
    quantiles = learn(qr_dqn, config, {"network": Table(2), "quantiles": 2}, COIN, 5)[1]
    np.testing.assert_allclose(quantiles[:, 0], [[-0.5, 0.5], [1, 1], [-1, -1]], atol=2e-2)
    config = C51.replace(least_return=-1.0, largest_return=1.0, discount=0.5)
    probs = learn(c51, config, {"network": Table(5), "atoms": 5}, COIN, 5)[1]
    expected = [[0, 0.5, 0, 0.5, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0]]
    np.testing.assert_allclose(probs[:, 0], expected, atol=5e-2)


def test_a_support_without_a_range_is_refused():
    with pytest.raises(
        InputError, match=r"least_return 3\.0 is not below largest_return -1\.0: give the range"
    ):
        c51.C51Config(least_return=3.0, largest_return=-1.0).check()
