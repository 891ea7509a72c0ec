"""Every environment of gymnax that downloads nothing: what agents see of it, and two updates of every agent that fits; and a
world in which nothing changes, from which nothing can be learnt and nothing may break."""

import functools
from typing import NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm.agents import (
    a2c,
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
)
from jaxrl4lm.agents import environment as env
from jaxrl4lm.agents.on_policy import choose_network
from jaxrl4lm.models import Convolution, Perceptron, RecurrentPolicy
from tests.selection import slow_but

DOWNLOADS = "MNISTBandit-bsuite"
CONTINUOUS = [
    "Pendulum-v1",
    "MountainCarContinuous-v0",
    "PointRobot-misc",
    "Reacher-misc",
    "Swimmer-misc",
]
NAMES = [name for name in gymnax.registered_envs if name != DOWNLOADS]
LIMIT = 3
"""Steps of an episode, so that a few show the next one."""


@pytest.fixture(autouse=True)
def ranks(request):
    """Swimmer itself adds arrays of different ranks, which these tests forbid elsewhere."""
    names = getattr(request.node, "callspec", None)
    promotes = names is not None and names.params.get("name") == "Swimmer-misc"
    with jax.numpy_rank_promotion("allow" if promotes else "raise"):
        yield


@functools.cache
def make(name):
    environment, params = gymnax.make(name)
    return environment, params.replace(max_steps_in_episode=LIMIT)


def any_action(spec, key, copies):
    if spec.actions.discrete:
        return jax.random.randint(key, (copies,), 0, spec.actions.outputs)
    return jax.random.normal(key, (copies, spec.actions.outputs))


def test_they_are_all_of_gymnax():
    assert len(NAMES) == 25
    assert {agent for _, agent in PAIRS} == set(ALL)
    assert {name for name in NAMES if not env.describe(*make(name)).actions.discrete} == set(CONTINUOUS)


@pytest.mark.parametrize(
    "name", slow_but(NAMES, ["FrozenLake-misc", "BernoulliBandit-misc", "FourRooms-misc"])
)
def test_what_agents_see_of_it(name):
    """Arrays of the shape that networks are made for, rewards that are floats, one flag at most, and what follows a step unless
    an episode begins; the declared spaces of some environments say otherwise."""
    environment, params = make(name)
    spec = env.describe(environment, params)

    @jax.jit
    def play(key):
        place = env.begin(key, spec, params, 2)
        return env.roll_out(key, spec, params, place, lambda key, _: (any_action(spec, key, 2), ()), 8)[1]

    steps = play(jax.random.key(0))
    for seen in (spec.encode(steps.observation), spec.encode(steps.final_observation)):
        assert (seen.shape, seen.dtype) == ((8, 2, *spec.shape), jnp.float32)
        assert np.isfinite(seen).all()
    if spec.categories is not None:
        np.testing.assert_array_equal(seen.sum(-1), 1)
    assert (steps.reward.dtype, steps.terminated.dtype, steps.truncated.dtype) == (jnp.float32, bool, bool)
    assert np.isfinite(steps.reward).all()
    assert not (steps.terminated & steps.truncated).any()
    done = np.asarray(steps.terminated | steps.truncated)
    assert done[:LIMIT].any(0).all()
    np.testing.assert_array_equal(
        np.asarray(steps.observation)[1:][~done[:-1]], np.asarray(steps.final_observation)[:-1][~done[:-1]]
    )
    network = choose_network(spec, 5)
    read = jax.eval_shape(lambda key, x: network.init_with_output(key, x)[0], jax.random.key(0), seen)
    assert read.shape == (8, 2, 5)


def small(spec, outputs, **settings):
    """A network of four hidden units."""
    if isinstance(choose_network(spec, outputs), Convolution):
        return Convolution(outputs, channels=2, width=4, **settings)
    return Perceptron(outputs, axes=len(spec.shape), widths=(4,), **settings)


def with_actor_and_critic(module):
    def build(environment, params):
        spec = env.describe(environment, params)
        actor = small(spec, spec.actions.outputs, constants=spec.actions.constants)
        return module.make(environment, params, actor=actor, critic=small(spec, 1))

    return build


def with_memory(environment, params):
    spec = env.describe(environment, params)
    actor, critic = (
        RecurrentPolicy(outputs, spec.shape, width=4, constants=constants)
        for outputs, constants in ((spec.actions.outputs, spec.actions.constants), (1, 0))
    )
    return recurrent_ppo.make(environment, params, actor=actor, critic=critic)


def with_values(module, each=1, **settings):
    def build(environment, params):
        spec = env.describe(environment, params)
        return module.make(environment, params, network=small(spec, each * spec.actions.outputs), **settings)

    return build


def with_critics(module, each):
    def build(environment, params):
        spec = env.describe(environment, params)
        networks = small(spec, each * spec.actions.outputs), Perceptron(1, widths=(4,))
        return module.make(environment, params, actor=networks[0], critic=networks[1])

    return build


PLAY = {"environments": 2, "rollout": 4, "steps": 16}
NORMALIZE = {"normalize_observations": True, "normalize_rewards": True}
EPOCHS = PLAY | NORMALIZE | {"epochs": 1, "minibatches": 2}
REPLAY = PLAY | {"steps": 24, "warmup": 8, "buffer": 16, "gradient_steps": 2, "batch": 4}
AGENTS = {
    "ppo": (with_actor_and_critic(ppo), ppo.PPOConfig(**EPOCHS)),
    "ppo-kl": (with_actor_and_critic(ppo_kl), ppo_kl.PPOKLConfig(**EPOCHS)),
    "trpo": (with_actor_and_critic(trpo), trpo.TRPOConfig(**EPOCHS, cg_iterations=2)),
    "recurrent-ppo": (with_memory, recurrent_ppo.RecurrentPPOConfig(**EPOCHS)),
    "a2c": (with_actor_and_critic(a2c), a2c.A2CConfig(**PLAY, **NORMALIZE)),
    "reinforce": (with_actor_and_critic(reinforce), reinforce.ReinforceConfig(**PLAY, **NORMALIZE)),
}
VALUES = {
    "dqn": (with_values(dqn), dqn.DQNConfig(**REPLAY, prioritized=True, n_step=2)),
    "qr-dqn": (with_values(qr_dqn, 2, quantiles=2), qr_dqn.QRDQNConfig(**REPLAY)),
    "c51": (with_values(c51, 3, atoms=3), c51.C51Config(**REPLAY)),
    "pqn": (with_values(pqn), pqn.PQNConfig(**PLAY, epochs=1, minibatches=2)),
}
VECTORS = {
    "sac": (with_critics(sac, 2), sac.SACConfig(**REPLAY)),
    "td3": (with_critics(td3, 1), td3.TD3Config(**REPLAY)),
    "ddpg": (with_critics(ddpg, 1), ddpg.DDPGConfig(**REPLAY)),
}
ALL = AGENTS | VALUES | VECTORS


def fit(environment, params, build, config):
    """(parameters before, those after two updates, metrics of these)."""
    config.check()
    assert config.count_updates() == 2
    agent = build(environment, params)

    @jax.jit
    def run(key):
        start = agent.init(key, config, params)
        state, told = jax.lax.scan(lambda state, _: agent.update(state, config, params), start, length=2)
        return start.params, state.params, told

    return run(jax.random.key(0))


def assert_finite(*trees):
    for x in jax.tree.leaves(trees):
        assert np.isfinite(x).all()


def list_pairs(names, others):
    """Two agents of each environment, in turn: one with an actor and a critic, one of the others that fit. All agents ask
    the same of an environment, through `environment.step`."""
    for i, name in enumerate(names):
        yield name, list(AGENTS)[i % len(AGENTS)]
        yield name, list(others)[i % len(others)]


PAIRS = [
    ("FrozenLake-misc", "dqn"),  # whole numbers in a ring
    *list_pairs([name for name in NAMES if name not in CONTINUOUS], VALUES),
    *list_pairs(CONTINUOUS, VECTORS),
]


@pytest.mark.parametrize(
    "name, agent", slow_but(PAIRS, [("FrozenLake-misc", "dqn"), ("PointRobot-misc", "trpo")])
)
def test_two_updates(name, agent):
    """Numbers stay finite and something is learnt; every episode has ended by then."""
    start, after, told = fit(*make(name), *ALL[agent])
    assert_finite(after, told)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), start, after)
    assert any(jax.tree.leaves(moved))


def assert_near(a, b, distance):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=distance), a, b)


STAYS = {"ppo": 0.0, "trpo": 0.0, "recurrent-ppo": 0.0, "ppo-kl": 1e-4}
"""How far a policy goes that is taught nothing. The price of a divergence that is 0 has a gradient of the size of rounding."""


class Time(NamedTuple):
    """Parameters of the world in which nothing changes."""

    max_steps_in_episode: int = 4


class Still:
    """Every observation is the same, and every reward; no episode ends."""

    name = "Still"

    def __init__(self, vectors):
        self.vectors = vectors

    def reset(self, key, params):
        return jnp.full(2, 3.0), jnp.int32(0)

    def step(self, key, time, action, params):
        truncated = time + 1 >= params.max_steps_in_episode
        observation, info = jnp.full(2, 3.0), {"final_observation": jnp.full(2, 3.0)}
        after = jnp.where(truncated, 0, time + 1)
        return observation, after, jnp.float32(1), jnp.bool_(False), truncated, info

    def action_space(self, params):
        spaces = gymnax.environments.spaces
        return spaces.Box(-1, 1, (1,)) if self.vectors else spaces.Discrete(2)


@pytest.mark.parametrize("agent", slow_but(ALL, ["ppo", "trpo"]))
def test_where_nothing_changes_nothing_breaks(agent):
    """Equal rewards, observations and advantages, all normalised: finite, and a policy that whitens advantages stays as it is."""
    build, config = ALL[agent]
    if agent in AGENTS and agent != "reinforce":
        config = config.replace(gae_lambda=0.0)  # r + γV − V: the same at every step
    start, after, told = fit(Still(agent in VECTORS), Time(), build, config)
    assert_finite(after, told)
    if agent in STAYS and agent != "recurrent-ppo":  # whose memory changes while nothing else does
        assert_near(after["actor"], start["actor"], STAYS[agent])


ALONE = {
    "ppo": {"minibatches": 4},
    "ppo-kl": {"minibatches": 4},
    "trpo": {"minibatches": 4},
    "recurrent-ppo": {"rollout": 1, "minibatches": 1, "steps": 2},
    "pqn": {"minibatches": 4},
    "dqn": {"batch": 1, "steps": 16},
    "td3": {"batch": 1, "steps": 16},
}
"""Minibatches of one, of agents that whiten, weigh or average over them."""


@pytest.mark.parametrize("agent", slow_but(ALONE, ["ppo-kl"]))
def test_minibatches_of_one(agent):
    """Numbers stay finite; a whitened advantage that stands alone is 0, and teaches the policy nothing."""
    build, config = ALL[agent]
    config = config.replace(environments=1, **{"steps": 8, **ALONE[agent]})
    start, after, told = fit(*make("Pendulum-v1" if agent in VECTORS else "CartPole-v1"), build, config)
    told.pop("return")  # nan before an episode has ended
    assert_finite(after, told)
    if agent in STAYS and agent != "trpo":  # which takes the whole rollout at once
        assert_near(after["actor"], start["actor"], STAYS[agent])


class Scalar(Still):
    """A number that is no state: its space does not say how many there are."""

    def reset(self, key, params):
        return jnp.int32(7), jnp.int32(0)

    def observation_space(self, params):
        return gymnax.environments.spaces.Box(0, 1000, (), jnp.int32)


def test_a_number_without_a_count_is_a_number():
    spec = env.describe(Scalar(False), Time())
    assert (spec.shape, spec.categories) == ((), None)
    np.testing.assert_array_equal(spec.encode(jnp.array([7, 8])), [7.0, 8.0])
    assert small(spec, 3).init_with_output(jax.random.key(0), jnp.ones(5))[0].shape == (5, 3)
