"""Distributional agents with a table as network reach Q*, and quantiles and probabilities are those of the returns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import mdp as M
from jaxrl4lm.agents import agent as A
from jaxrl4lm.agents import c51, qr_dqn
from jaxrl4lm.envs.finite_mdp import as_environment
from jaxrl4lm.types import InputError
from tests.agents.probes import Table
from tests.agents.test_dqn import OPTIMAL, TABLE, WORLD
from tests.selection import slow_but

SHARED = {name: getattr(TABLE, name) for name in TABLE.__dataclass_fields__}
QR = qr_dqn.QRDQNConfig(**SHARED)
C51 = c51.C51Config(**SHARED, least_return=-0.5, largest_return=1.5).replace(
    learning_rate=0.3, steps=64 + 600 * 32
)
CASES = {
    "quantiles": (qr_dqn, QR, {"network": Table(2 * 3)}),
    "quantiles, plain, κ = 0": (qr_dqn, QR.replace(double=False, kappa=0.0), {"network": Table(2 * 3)}),
    "categories": (c51, C51, {"network": Table(2 * 5), "atoms": 5}),
    "categories, plain, prioritized": (
        c51,
        C51.replace(double=False, prioritized=True),
        {"network": Table(2 * 5), "atoms": 5},
    ),
}


@pytest.mark.parametrize("name", slow_but(CASES, ["quantiles"]))
def test_a_table_reaches_the_optimal_values(name):
    """Episodes are cut after two steps, and every action is drawn alike."""
    module, config, settings = CASES[name]
    environment, params = as_environment(WORLD, one_hot=True, max_steps=2)
    agent = module.make(environment, params, **settings)
    config.check()
    state, _ = jax.jit(lambda key: A.train(agent, key, config, params, episodes=1))(jax.random.key(0))
    table = state.params["network"]["table"] if module is c51 else state.params["table"]
    outputs = table.reshape(4, 2, -1)[:3]
    support = state.params["support"] if module is c51 else None
    values = outputs.mean(-1) if support is None else (jax.nn.softmax(outputs) * support[None, None]).sum(-1)
    print(values, OPTIMAL)
    np.testing.assert_allclose(values, OPTIMAL[:3], atol=1e-2)
    if support is not None:
        np.testing.assert_array_equal(support, np.linspace(-0.5, 1.5, 5, dtype=np.float32))
