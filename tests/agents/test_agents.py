"""What holds of every agent: it solves five probes, a run is a pure function of its key, and it maps over anything."""

import dataclasses
import functools

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxrl4lm.agents import (
    a2c,
    alphazero,
    c51,
    ddpg,
    dqn,
    ppo,
    ppo_kl,
    pqn,
    qr_dqn,
    recurrent_ppo,
    reinforce,
    sac,
    td3,
    trpo,
    value_based,
)
from jaxrl4lm.agents import agent as A
from jaxrl4lm.agents.config import adam, descend, learning_rate_at
from jaxrl4lm.agents.on_policy import monte_carlo, n_step
from jaxrl4lm.models import RecurrentPolicy
from jaxrl4lm.types import InputError
from tests.agents.probes import CONTINUOUS_PROBES, all_continuous_probes, all_probes, optimal_values
from tests.selection import slow_but

FAST = {"environments": 8, "learning_rate": 0.02, "discount": 0.5}
A2C = a2c.A2CConfig(steps=6400, rollout=8, **FAST)
# Constructor and configuration, which solves any probe.
AGENTS = {
    "ppo": (ppo.make, ppo.PPOConfig(steps=3200, rollout=16, epochs=4, **FAST)),
    "a2c": (a2c.make, A2C),
    "ppo-kl": (ppo_kl.make, ppo_kl.PPOKLConfig(steps=3200, rollout=16, epochs=4, **FAST)),
    "trpo": (trpo.make, trpo.TRPOConfig(steps=6400, rollout=16, epochs=4, trust_region=0.05, **FAST)),
    "reinforce": (reinforce.make, reinforce.ReinforceConfig(steps=32000, rollout=20, **FAST)),
    "a2c, Monte-Carlo": (functools.partial(a2c.make, estimate=monte_carlo), A2C),
    "a2c, one step": (functools.partial(a2c.make, estimate=n_step(1)), A2C),
}
REPLAY = {
    "steps": 64 + 3200,
    "rollout": 8,
    "buffer": 640,
    "warmup": 64,
    "gradient_steps": 8,
    "final_learning_rate_share": 0.0,
    "epsilon": 0.5,
    **FAST,
}
DQN = dqn.DQNConfig(**REPLAY)
AGENTS |= {
    "dqn": (dqn.make, DQN),
    "dqn, dueling": (functools.partial(dqn.make, dueling=True), DQN),
    "dqn, prioritized": (dqn.make, DQN.replace(prioritized=True, n_step=2)),
    "qr-dqn": (functools.partial(qr_dqn.make, quantiles=8), qr_dqn.QRDQNConfig(**REPLAY)),
    "c51": (
        functools.partial(c51.make, atoms=13),
        c51.C51Config(**REPLAY, least_return=-3.0, largest_return=3.0),
    ),
    "pqn": (
        pqn.make,
        pqn.PQNConfig(steps=6400, rollout=16, epsilon=0.5, final_learning_rate_share=0.0, **FAST),
    ),
}
AGENTS["recurrent-ppo"] = (
    recurrent_ppo.make,
    recurrent_ppo.RecurrentPPOConfig(steps=3200, rollout=16, epochs=4, **FAST),
)
AGENTS["alphazero"] = (
    alphazero.make,
    alphazero.AlphaZeroConfig(steps=3200, rollout=16, epochs=4, simulations=8, **FAST),
)
OFF_POLICY = {
    "steps": 64 + 3200,
    "rollout": 8,
    "buffer": 640,
    "warmup": 64,
    "gradient_steps": 16,
    "batch": 64,
    "target_rate": 0.05,
    "final_learning_rate_share": 0.0,
    **FAST,
    "learning_rate": 5e-3,
}
CONTINUOUS = {
    "sac": (sac.make, sac.SACConfig(target_entropy=-3.0, temperature=0.1, **OFF_POLICY)),
    "td3": (td3.make, td3.TD3Config(exploration_noise=0.3, **OFF_POLICY)),
    "ddpg": (ddpg.make, ddpg.DDPGConfig(exploration_noise=0.3, **OFF_POLICY)),
}
AGENTS |= CONTINUOUS
FAMILIES = [
    *("ppo", "a2c", "ppo-kl", "trpo", "reinforce", "recurrent-ppo"),
    *("dqn", "dqn, prioritized", "qr-dqn", "c51", "pqn", "sac", "td3", "ddpg", "alphazero"),
]
"""Agents with an update of their own."""


@pytest.mark.parametrize("name", slow_but([x for x in AGENTS if x not in CONTINUOUS], ["ppo", "dqn"]))
def test_solves_the_probes(name):
    """The exact values of the states under the best actions, and those actions; five worlds are one program."""
    make, config = AGENTS[name]
    environment, worlds = all_probes()
    agent = make(environment, jax.tree.map(lambda x: x[0], worlds))
    agent = agent._replace(spec=agent.spec._replace(horizon=2))
    config.check()
    train = jax.jit(jax.vmap(lambda params: A.train(agent, jax.random.key(0), config, params, episodes=8)))
    states, _ = train(worlds)
    observations, optimal = jnp.eye(3)[:2], optimal_values()
    reached = np.array([[True, True], [True, True], [True, True], [True, False], [True, True]])
    reached[0, 1] = False
    reached[2, 1] = name != "recurrent-ppo"  # no episode begins there, and its memory would be another
    values = jax.jit(jax.vmap(lambda state: agent.value(A.view(state), observations)))(states)
    np.testing.assert_allclose(np.where(reached, values, 0), np.where(reached, optimal, 0), atol=0.1)
    act = jax.jit(jax.vmap(lambda state: agent.act(A.view(state), jax.random.key(0), observations)))
    actions = np.asarray(act(states))
    assert actions[3, 0] == 1
    np.testing.assert_array_equal(actions[4], [0, 1])


@pytest.mark.parametrize("name", slow_but(CONTINUOUS, ["td3"]))
def test_solves_the_continuous_probes(name):
    """The values of the states under the best actions, and those actions; six worlds are one program."""
    make, config = CONTINUOUS[name]
    environment, worlds = all_continuous_probes()
    agent = make(environment, jax.tree.map(lambda x: x[0], worlds))
    config.check()
    train = jax.jit(jax.vmap(lambda params: A.train(agent, jax.random.key(0), config, params, episodes=8)))
    states, history = train(worlds)
    observations = jnp.eye(3)[:2]
    values = jax.jit(jax.vmap(lambda state: agent.value(A.view(state), observations)))(states)
    optimal = np.array([world.values for world in CONTINUOUS_PROBES.values()])
    reached = np.isfinite(optimal)
    np.testing.assert_allclose(np.where(reached, values, 0), np.where(reached, optimal, 0), atol=0.1)
    act = jax.jit(jax.vmap(lambda state: agent.act(A.view(state), jax.random.key(0), observations)))
    best = np.asarray(worlds.best)[3:, :2]
    decides = reached[3:]
    np.testing.assert_allclose(
        np.where(decides, act(states)[3:, :, 0], 0), np.where(decides, best, 0), atol=0.15
    )
    assert all(np.isfinite(x).all() for key, x in history.items() if key != "return")


@functools.cache
def short(name):
    """(agent, train(key, config, params), config, params): two updates on CartPole, or Pendulum where actions are vectors."""
    make, config = AGENTS[name]
    environment, params = gymnax.make("Pendulum-v1" if name in CONTINUOUS else "CartPole-v1")
    params = params.replace(max_steps_in_episode=20)
    agent = make(environment, params)
    remembers = isinstance(config, value_based.ValueConfig) or name in CONTINUOUS
    config = config.replace(environments=8 if remembers else 4)
    config = config.replace(steps=config.steps_before() + 2 * config.steps_per_update())
    return agent, functools.partial(A.train, agent), config, params


def assert_near(a, b, distance=2e-5):
    """To rounding: a batch of runs multiplies other shapes of matrices, whose sums have another order."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=10 * distance, atol=distance), a, b)


def take(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


OTHER = {
    "adam_eps": 1e-2,
    "clip_eps": 1e-3,
    "entropy_coef": 0.1,
    "exploration_share": 1.0,
    "final_learning_rate_share": 0.4,
    "huber_delta": 0.1,
    "kappa": 0.1,
    "kl_target": 1e-6,
    "max_grad_norm": 1e-2,
    "target_noise_limit": 1e-2,
}
"""Numbers that are felt within two updates; of all others, 0.7 times what they were."""


def list_numbers(config):
    """The numbers of a configuration that its agent reads."""
    numbers = [each.name for each in dataclasses.fields(config) if not each.metadata.get("static")]
    if isinstance(config, value_based.ValueConfig) and not config.prioritized:
        numbers = [name for name in numbers if name not in ("priority_exponent", "importance_exponent")]
    return numbers


@pytest.mark.parametrize("name", slow_but(FAMILIES, ["a2c"]))
def test_a_population_is_its_members(name):
    """Over every number of the configuration, and over seeds and the environment's parameters: one trace, each member is the run
    alone, and each number changes it."""
    _, train, config, params = short(name)
    numbers = list_numbers(config)
    rows = np.tile([float(getattr(config, number)) for number in numbers], (len(numbers) + 2, 1))
    for i, number in enumerate(numbers):
        rows[i + 1, i] = OTHER.get(number, 0.7 * rows[0, i])
    assert (rows[1:-1] != rows[0]).sum() == len(numbers)
    seeds = jnp.zeros(len(rows), int).at[-1].set(1)
    lengths = jnp.full(len(rows), 0.5).at[-1].set(0.6)
    changed = "l" if name in CONTINUOUS else "length"
    traces = []

    def member(seed, row, length):
        traces.append(0)
        own = config.replace(**dict(zip(numbers, row, strict=True)))
        return train(jax.random.key(seed), own, params.replace(**{changed: length}))

    together, alone = jax.jit(jax.vmap(member)), jax.jit(member)
    rows = jnp.asarray(rows, jnp.float32)
    together(seeds, rows[::-1], lengths)
    states, history = together(seeds, rows, lengths)
    assert len(traces) == 1
    for i in range(len(rows)):
        state, own = alone(seeds[i], rows[i], lengths[i])
        assert_near(take(states.params, i), state.params, 1e-4)
        np.testing.assert_allclose(history["evaluation"][i], own["evaluation"], rtol=1e-4)
    assert len(traces) == 2
    for i in range(1, len(rows)):
        differ = jax.tree.map(lambda x, i=i: bool((x[i] != x[0]).any()), states.params)
        assert any(jax.tree.leaves(differ)), f"{[*numbers, 'the seed'][i - 1]} changes nothing"


@pytest.mark.parametrize("name", slow_but(FAMILIES, ["ppo", "dqn"]))
def test_seeds_differ_in_parameters_and_in_exploration(name):
    agent, _, config, params = short(name)
    begin = jax.jit(jax.vmap(lambda key: agent.init(key, config, params)))
    starts = begin(jax.random.split(jax.random.key(0), 2))
    kernels = [x for path, x in jax.tree.leaves_with_path(starts.params) if "kernel" in str(path[-1])]
    assert kernels
    assert all((x[0] != x[1]).any() for x in kernels)
    same = starts._replace(params=jax.tree.map(lambda x: jnp.stack([x[0], x[0]]), starts.params))
    same = same._replace(place=jax.tree.map(lambda x: jnp.stack([x[0], x[0]]), starts.place))
    after, _ = jax.jit(jax.vmap(lambda state: agent.update(state, config, params)))(same)
    assert (after.place.observation[0] != after.place.observation[1]).any()


@pytest.mark.parametrize("name", slow_but(FAMILIES, ["a2c"]))
def test_evaluation_leaves_training_alone(name):
    """The keys are the same bits and the parameters the same numbers; two programs may round differently."""
    _, train, config, params = short(name)
    never, often = (
        jax.jit(functools.partial(train, evaluations=n))(jax.random.key(1), config, params)[0] for n in (0, 2)
    )
    np.testing.assert_array_equal(jax.random.key_data(never.key), jax.random.key_data(often.key))
    assert_near(never.params, often.params)


def walk(jaxpr, path=()):
    """(lengths of the scans around it, equation) of all equations of a program."""
    for equation in jaxpr.eqns:
        yield path, equation
        inner = (*path, equation.params["length"]) if equation.primitive.name == "scan" else path
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else [value]:
                if hasattr(part, "eqns"):
                    yield from walk(getattr(part, "jaxpr", part), inner)


@pytest.mark.parametrize("name", slow_but(FAMILIES, ["a2c", "dqn"]))
def test_a_mapped_run_has_no_branches(name):
    """A `cond` of a batched predicate would run both of its sides. Evaluations are in the outer scan, not at every update under a
    `select`: of six updates there are two."""
    agent, _, config, params = short(name)
    agent = agent._replace(spec=agent.spec._replace(horizon=23))
    config = config.replace(steps=config.steps_before() + 6 * config.steps_per_update())

    def run(key, rate):
        own = config.replace(learning_rate=rate)
        return A.train(agent, key, own, params, evaluations=2, episodes=2)

    keys = jax.random.split(jax.random.key(0), 2)
    program = list(walk(jax.make_jaxpr(jax.vmap(run))(keys, jnp.ones(2)).jaxpr))
    assert "cond" not in {equation.primitive.name for _, equation in program}
    judged = [
        path
        for path, equation in program
        if equation.primitive.name == "scan" and equation.params["length"] == 23
    ]
    assert judged == [(2,)]
    assert (2, 3) in {path for path, _ in program}


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_rates_fall_to_their_ends_and_stay(share):
    """Never below: neither a negative learning rate nor, by rounding, a negative probability."""
    config = A2C.replace(final_learning_rate_share=share)
    exploring = DQN.replace(epsilon=0.1, exploration_share=0.5)
    updates = config.count_updates()
    rates = jax.vmap(lambda i: learning_rate_at(i, config))(jnp.arange(2 * updates))
    line = 0.02 * (1 - (1 - share) * np.minimum(np.arange(2 * updates) / updates, 1))
    np.testing.assert_allclose(rates, line, rtol=1e-5, atol=1e-8)
    assert (rates[updates:] == np.float32(0.02) * np.float32(share)).all()
    assert rates.min() >= 0
    updates = exploring.count_updates()
    chances = jax.vmap(lambda i: value_based.epsilon_at(i, exploring))(jnp.arange(2 * updates))
    line = 1 - 0.9 * np.minimum(np.arange(2 * updates) / (updates / 2), 1)
    np.testing.assert_allclose(chances, line, rtol=1e-5)


def test_a_gradient_that_is_not_finite_moves_nothing():
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    start = adam(A2C).init(params)
    step = jax.jit(lambda grads: descend(A2C, jnp.int32(0), grads, start, params))
    for bad in (jnp.nan, jnp.inf):
        same, opt_state = step({"a": jnp.ones(3), "b": jnp.array([1.0, bad])})
        jax.tree.map(np.testing.assert_array_equal, (same, opt_state), (params, start))
    moved, _ = step(params)
    assert (moved["a"] < 1).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_steps_that_do_not_divide_are_refused(name):
    config = AGENTS[name][1]
    with pytest.raises(
        InputError, match=f"steps {config.steps + 1} is no whole number .* give {config.steps}"
    ):
        config.replace(steps=config.steps + 1).check()
    _, train, config, params = short(name)
    with pytest.raises(InputError, match="evaluations is 3: 2 updates"):
        train(jax.random.key(0), config, params, evaluations=3)
    with pytest.raises(InputError, match="evaluations must be a whole number, 0 or more, not -1"):
        train(jax.random.key(0), config, params, evaluations=-1)
    with pytest.raises(InputError, match="episodes must be a whole number, 1 or more, not 0"):
        train(jax.random.key(0), config, params, episodes=0)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda *world: ppo.make(*world, actor=nn.Dense(3)), "the actor has 3 outputs, here it needs 2"),
        (lambda *world: ppo.make(*world, critic=nn.Dense(2)), "the critic has 2 outputs, here it needs 1"),
        (lambda *world: dqn.make(*world, network=nn.Dense(3)), "the network has 3 outputs, here it needs 2"),
        (
            lambda *world: c51.make(*world, network=nn.Dense(2)),
            "the network has 2 outputs, here it needs 102",
        ),
        (
            lambda *world: recurrent_ppo.make(*world, actor=RecurrentPolicy(3, (4,))),
            "the actor has 3 outputs, here it needs 2",
        ),
        (
            lambda *world: recurrent_ppo.make(*world, critic=RecurrentPolicy(1, (3,))),
            r"the critic reads observations \(3,\), here they are \(4,\)",
        ),
        (
            lambda *world: recurrent_ppo.make(*world, actor=nn.Dense(2)),
            "the actor has no start: give a models.Mem",
        ),
        (
            lambda *world: qr_dqn.make(*world, quantiles=0),
            "quantiles must be a whole number, 1 or more, not 0",
        ),
        (lambda *world: c51.make(*world, atoms=1), "atoms must be a whole number, 2 or more, not 1"),
        (
            lambda *world: a2c.make(*world, estimate="td"),
            "estimate is 'td': give a function, as agents.on_policy",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, words):
    """An action too many would be played all the same: gymnax takes any number."""
    with pytest.raises(InputError, match=words):
        make(*gymnax.make("CartPole-v1"))


@pytest.mark.parametrize(
    "make, network, words",
    [
        (sac.make, {"actor": nn.Dense(1)}, "the actor has 1 outputs, here it needs 2"),
        (td3.make, {"critic": nn.Dense(2)}, "the critic has 2 outputs, here it needs 1"),
        (ddpg.make, {"actor": nn.Dense(2)}, "the actor has 2 outputs, here it needs 1"),
    ],
)
def test_networks_of_vectors_that_do_not_fit_are_refused(make, network, words):
    with pytest.raises(InputError, match=words):
        make(*gymnax.make("Pendulum-v1"), **network)
