"""Agents as a stage: stopped and resumed they end with the same bits, and a sweep is its settings."""

import os
import signal

import gymnax
import jax
import numpy as np
import pytest

from jaxrl4lm import training
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
)
from jaxrl4lm.agents.agent import evaluate
from jaxrl4lm.agents.environment import make_environment
from jaxrl4lm.agents.scores import bootstrap_interval, interquartile_mean
from jaxrl4lm.plots.episode import _draw_pendulum
from jaxrl4lm.training import episode
from jaxrl4lm.training.agent_stage import name_settings
from jaxrl4lm.types import InputError
from tests.selection import slow_but

SIZES = {"environments": 2, "rollout": 20, "steps": 160}
ALGORITHMS = {
    "a2c": (a2c.make, a2c.A2CConfig(**SIZES)),
    "ppo": (ppo.make, ppo.PPOConfig(epochs=2, **SIZES)),
    "ppo-kl": (ppo_kl.make, ppo_kl.PPOKLConfig(epochs=2, **SIZES)),
    "trpo": (trpo.make, trpo.TRPOConfig(epochs=2, **SIZES)),
    "reinforce": (reinforce.make, reinforce.ReinforceConfig(**SIZES)),
}
REPLAY = {**SIZES, "steps": 200, "buffer": 80, "warmup": 40, "gradient_steps": 2}
ALGORITHMS |= {
    "dqn": (dqn.make, dqn.DQNConfig(**REPLAY)),
    "dqn, prioritized": (dqn.make, dqn.DQNConfig(**REPLAY, prioritized=True, n_step=2)),
    "qr-dqn": (qr_dqn.make, qr_dqn.QRDQNConfig(**REPLAY)),
    "c51": (c51.make, c51.C51Config(**REPLAY, least_return=0.0, largest_return=20.0)),
    "pqn": (pqn.make, pqn.PQNConfig(epochs=2, minibatches=2, **SIZES)),
    "recurrent-ppo": (recurrent_ppo.make, recurrent_ppo.RecurrentPPOConfig(epochs=2, minibatches=2, **SIZES)),
}
ALGORITHMS["alphazero"] = (
    alphazero.make,
    alphazero.AlphaZeroConfig(epochs=2, simulations=4, **SIZES),
)
OFF_POLICY = SIZES | {"steps": 200, "buffer": 80, "warmup": 40, "gradient_steps": 2, "batch": 8}
CONTINUOUS = {
    "sac": (sac.make, sac.SACConfig(**OFF_POLICY)),
    "td3": (td3.make, td3.TD3Config(**OFF_POLICY)),
    "ddpg": (ddpg.make, ddpg.DDPGConfig(**OFF_POLICY)),
}
ALGORITHMS |= CONTINUOUS
SWEEP = {"learning_rate": (1e-3, 1e-2), "discount": (0.9,)}


def begin(name):
    """(stage, parameters) of two seeds and two settings on a short CartPole, or Pendulum where actions are vectors."""
    make, config = ALGORITHMS[name]
    environment, params = gymnax.make("Pendulum-v1" if name in CONTINUOUS else "CartPole-v1")
    params = params.replace(max_steps_in_episode=20)
    algorithm = make(environment, params)
    members = {"seed": 3, "seeds": 2, "sweep": SWEEP}
    stage = training.agent(algorithm, config, params, **members, evaluate_every=2, episodes=2)
    return stage, training.start_agents(algorithm, config, params, **members)


def fit(path, stage, params, **settings):
    return training.fit(stage, params, out=path, save_interval=0, **settings)


@pytest.mark.parametrize("name", slow_but(ALGORITHMS, ["a2c"]))
def test_stopped_and_resumed_it_ends_with_the_same_bits(name, tmp_path):
    """A swept learning rate as well."""
    stage, params = begin(name)
    whole = fit(tmp_path / "whole", stage, params)

    def stop(report):
        if report.progress.done == 2 and report.headline is not None:
            os.kill(os.getpid(), signal.SIGTERM)

    first = fit(tmp_path / "parts", stage, params, on_progress=stop)
    assert (first.interrupted, first.progress.done) == (signal.SIGTERM, 2)
    second = fit(tmp_path / "parts", stage, params, resume=True)
    jax.tree.map(np.testing.assert_array_equal, whole.params, second.params)
    assert whole.progress.scores == second.progress.scores
    moved = jax.tree.map(lambda x, y: bool((x != y).any()), params["params"], second.params["params"])
    moved.pop("support", None)  # that of C51 stays where it is
    assert all(jax.tree.leaves(moved))


def test_a_setting_has_the_seeds_of_the_others_and_its_own_numbers():
    """Its scores are a quarter of all; members of one seed begin alike, and a larger learning rate moves further."""
    stage, params = begin("a2c")
    for x in jax.tree.leaves(params["params"]):
        np.testing.assert_array_equal(x[:2], x[2:])
    seeds = [x[0] != x[1] for path, x in jax.tree.leaves_with_path(params["params"]) if "kernel" in str(path)]
    assert seeds
    assert all(differ.any() for differ in seeds)
    run = training.fit(stage, params)
    scores = run.progress.scores["a2c"]
    assert scores["held_out"][:2] == scores["held_out/learning_rate=0.001, discount=0.9"]
    assert scores["held_out"][2:] == scores["held_out/learning_rate=0.01, discount=0.9"]
    distance = [
        sum(
            np.abs(a[i] - b[i]).sum()
            for a, b in zip(*map(jax.tree.leaves, (run.params, params)), strict=True)
        )
        for i in (0, 2)
    ]
    assert distance[1] > 5 * distance[0]


def test_what_does_not_fit_is_refused():
    make, config = ALGORITHMS["a2c"]
    environment, params = gymnax.make("CartPole-v1")
    algorithm = make(environment, params)
    with pytest.raises(InputError, match=r"discount must be at most 1|discount must lie in 0..1, not 2"):
        training.agent(algorithm, config, params, sweep={"discount": (0.9, 2.0)})
    with pytest.raises(InputError, match="steps 161 is no whole number of updates of 40 steps: give 160"):
        training.agent(algorithm, config.replace(steps=161), params)
    make, config = ALGORITHMS["reinforce"]
    algorithm = make(environment, params)
    with pytest.raises(InputError, match="rollout is 20, an episode has up to 500"):
        algorithm.update(algorithm.init(jax.random.key(0), config, params), config, params)


def test_scores_over_seeds():
    scores = np.array([100.0, 4, 5, 6, 7, 0, 5, 6])
    assert interquartile_mean(scores) == np.mean([5, 5, 6, 6])
    low, high = bootstrap_interval(scores)
    assert 3 < low < 5.5 < high < 60
    assert bootstrap_interval(scores) == (low, high)
    assert bootstrap_interval(np.ones(3)) == (1, 1)


@pytest.mark.parametrize("aware", [False, True])
def test_the_episode_that_is_drawn_is_the_one_evaluated(aware, tmp_path, monkeypatch):
    """Each reward of Pendulum is a function of what is seen and done: summed over the picture's states, they are the return of
    the first episode. It is the first agent's."""
    environment, params = make_environment("Pendulum-v1", time_aware=aware)
    params = params.replace(max_steps_in_episode=20)
    algorithm = a2c.make(environment, params)
    given = algorithm, a2c.A2CConfig(**SIZES), params
    stage = training.agent(*given, seed=5, seeds=2, episodes=3)
    drawn = []
    monkeypatch.setattr(episode, "draw_episode", lambda *shown: drawn.append(shown))
    state = jax.jit(stage.init)(training.start_agents(*given, seed=5, seeds=2))
    stage.exports["episode"](tmp_path, state, {})
    ((draw, shown, title, path),) = drawn
    assert (draw, title, path) == (_draw_pendulum, "Pendulum-v1, a2c", tmp_path)
    first = jax.tree.map(lambda x: x[0], stage.params_of(state))
    returns = jax.jit(lambda seen: evaluate(algorithm, seen, jax.random.key(5), params, 3))(first)
    left = 1 - np.arange(20)[:, None] / 20
    known = np.concatenate([shown.observations[:-1], left], 1) if aware else shown.observations[:-1]
    actions = np.asarray(jax.jit(algorithm.act)(first, jax.random.key(0), known))[:, 0]
    cos, sin, speed = shown.observations.T
    angle, torque = np.arctan2(sin, cos), 2 * actions.clip(-1, 1)
    rewards = -(angle[:-1] ** 2 + 0.1 * speed[:-1] ** 2 + 0.001 * torque**2)
    np.testing.assert_allclose(shown.rewards, rewards, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(rewards.sum(), returns[0], rtol=1e-4)
    np.testing.assert_allclose(np.diff(np.unwrap(angle)), 0.05 * speed[1:], atol=1e-5)


def test_what_cannot_be_drawn_leaves_no_picture():
    environment, params = gymnax.make("Reacher-misc")
    algorithm = a2c.make(environment, params.replace(max_steps_in_episode=20))
    stage = training.agent(algorithm, a2c.A2CConfig(**SIZES), params)
    assert dict(stage.exports) == {}


def test_of_an_endless_episode_the_beginning_is_drawn(tmp_path, monkeypatch):
    environment, params = gymnax.make("Pendulum-v1")
    monkeypatch.setattr(episode, "LONGEST", 7)
    algorithm = a2c.make(environment, params)
    drawn = []
    monkeypatch.setattr(episode, "draw_episode", lambda *shown: drawn.append(shown))
    seen = training.start_agents(algorithm, a2c.A2CConfig(**SIZES), params)
    episode.make_picture(algorithm, params, seed=0, episodes=1)(tmp_path, seen)
    ((_, shown, title, _),) = drawn
    assert title == "Pendulum-v1, a2c, the beginning"
    assert (shown.observations.shape, shown.rewards.shape) == ((8, 3), (7,))


def test_a_run_that_is_judged_once_can_be_stopped_before():
    """Calls are a twentieth of the run, however rarely it is judged: between them signals are seen, and it is saved."""
    environment, params = gymnax.make("CartPole-v1")
    config = ppo.PPOConfig(**SIZES | {"steps": 40 * 40})
    stage = training.agent(ppo.make(environment, params), config, params, evaluate_every=40)
    assert (stage.steps, stage.chunk, stage.stride) == (40, 40, 2)


def test_settings_that_are_nearly_equal_have_names_of_their_own():
    values = [1e-3, 0.0010000001, 0.9999999, 1.0, 3e-4, 1e-7]
    names = name_settings({"learning_rate": values})
    assert names[0] == "learning_rate=0.001"
    assert names[-2:] == ["learning_rate=0.0003", "learning_rate=1e-07"]
    assert [np.float32(name.split("=")[1]) for name in names] == [np.float32(value) for value in values]
