"""Environments of Gymnasium with the gymnax interface: what they do is what Gymnasium does, and a state decides what follows."""

import dataclasses
import functools
import os
import signal
import sys

import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl4lm import training
from jaxrl4lm.agents import a2c, dqn, ppo, sac
from jaxrl4lm.agents import agent as A
from jaxrl4lm.agents.environment import make_environment
from jaxrl4lm.cli.machine_errors import explain_error
from jaxrl4lm.envs import gymnasium_bridge
from jaxrl4lm.envs.time_aware import TimeAware
from jaxrl4lm.plots.episode import draw_image
from jaxrl4lm.training import episode
from jaxrl4lm.types import InputError
from tests.selection import slow_but


class Counter(gymnasium.Env):
    """Sees (draw of the seed, steps, sum of the actions), terminates after five steps, and is truncated after `cut`."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = spaces.Discrete(3, start=-1)

    def __init__(self, cut=99):
        self.cut = cut

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seen = np.array([self.np_random.random(), 0, 0])
        return self.seen.copy(), {}

    def step(self, action):
        self.seen += [0, 1, action]
        steps = self.seen[1]
        return self.seen.copy(), 0.5 * action, steps >= 5, steps >= self.cut, {}


def count(cut=99, limit=20):
    return gymnasium_bridge.wrap(functools.partial(Counter, cut), limit=limit)


def play(environment, params, key, steps, copies=3):
    """(first observations, seeds of each step, what the steps gave), stepped by one program with random actions."""
    space = environment.action_space(params)

    def once(carry, key):
        observation, state = carry
        actions = jax.vmap(space.sample)(jax.random.split(key, copies))
        observation, after, *rest, info = jax.vmap(environment.step, (0, 0, 0, None))(
            jax.random.split(key, copies), state, actions, params
        )
        return (observation, after), (state.seed, actions, observation, *rest, info["final_observation"])

    start = jax.vmap(environment.reset, (0, None))(jax.random.split(key, copies), params)
    return start[0], jax.lax.scan(once, start, jax.random.split(key, steps))[1]


def test_it_is_gymnasium_step_by_step_across_episodes():
    """In a scan over mapped copies, beside objects that are reset and stepped one by one; each step is also one of gymnax, to
    rounding."""
    environment, params = gymnasium_bridge.make("gym:CartPole-v1")
    first, played = jax.jit(lambda key: play(environment, params, key, 60))(jax.random.key(0))
    seeds, actions, after, rewards, terminated, truncated, final = map(np.asarray, played)
    assert terminated.any(0).all()
    twin, twin_params = gymnax.make("CartPole-v1")
    dynamics = jax.jit(lambda state, action: twin.step_env(jax.random.key(0), state, action, twin_params))
    for copy in range(3):
        own = gymnasium.make("CartPole-v1")
        seen, _ = own.reset(seed=int(seeds[0, copy]))
        np.testing.assert_array_equal(first[copy], seen)
        for t in range(60):
            before = seen
            seen, reward, ended, cut, _ = own.step(actions[t, copy])
            np.testing.assert_array_equal(final[t, copy], seen)
            assert (rewards[t, copy], terminated[t, copy], truncated[t, copy]) == (reward, ended, cut)
            _, state = twin.reset_env(jax.random.key(0), twin_params)
            names = ("x", "x_dot", "theta", "theta_dot")
            state = dataclasses.replace(state, time=0, **dict(zip(names, before, strict=True)))
            observation, _, reward, ended, _ = dynamics(state, actions[t, copy])
            np.testing.assert_allclose(seen, observation, atol=1e-5)
            assert (reward, ended) == (rewards[t, copy], terminated[t, copy])
            if ended:
                seen, _ = own.reset(seed=int(seeds[t + 1, copy]))
            np.testing.assert_array_equal(after[t, copy], seen)
    assert len(np.unique(seeds)) == 3 + terminated[:-1].sum()


@pytest.mark.parametrize(
    "cut, limit, ends", [(99, 20, (5, True, False)), (3, 20, (3, False, True)), (5, 20, (5, True, True)),
                         (99, 2, (2, False, True)), (99, 5, (5, True, True)), (3, 2, (2, False, True))]
)  # fmt: skip
def test_ends_and_limits_are_told_apart(cut, limit, ends):
    """What Gymnasium says, or a lower limit of the parameters; the observation before the reset is told, after it another."""
    environment, params = count(cut)
    params = params.replace(max_steps_in_episode=limit)
    observation, state = environment.reset(jax.random.key(1), params)
    step = jax.jit(environment.step)
    for t in range(1, ends[0] + 1):
        last = observation
        observation, state, _, terminated, truncated, info = step(
            jax.random.fold_in(jax.random.key(1), t), state, 2, params
        )
        np.testing.assert_array_equal(info["final_observation"], [last[0], t, t])
        assert (bool(terminated), bool(truncated)) == (ends[1:] if t == ends[0] else (False, False))
    np.testing.assert_array_equal(observation[1:], 0)
    assert (observation[0] != last[0], int(state.time)) == (True, 0)


def test_a_state_decides_what_follows():
    """Twice, out of order, after others were played, in another process that has played nothing: always the same bits."""
    environment, params = count()
    keys = jax.random.split(jax.random.key(2), 4)
    begin, step = (
        jax.jit(jax.vmap(f, axes))
        for f, axes in ((environment.reset, (0, None)), (environment.step, (0, 0, 0, None)))
    )
    _, start = begin(keys, params)
    states, given = [start], []
    for t in range(7):
        observation, state, *rest, info = step(keys, states[-1], jnp.array([0, 1, 2, t % 3]), params)
        states.append(state)
        given.append((observation, *rest, info["final_observation"]))
    player = environment._player
    assert player._made <= 8
    elsewhere, _ = count()
    afresh = jax.jit(jax.vmap(elsewhere.step, (0, 0, 0, None)))
    for again in (step, afresh):
        for t in (6, 2, 2, 5, 0):
            observation, state, *rest, info = again(keys, states[t], jnp.array([0, 1, 2, t % 3]), params)
            jax.tree.map(np.testing.assert_array_equal, state, states[t + 1])
            now = observation, *rest, info["final_observation"]
            jax.tree.map(np.testing.assert_array_equal, now, given[t])
    assert len(player._live) <= player._made <= 8
    assert sum(map(len, player._by_episode.values())) == len(player._live)


def test_live_environments_are_stepped_and_not_played_anew(monkeypatch):
    """Also where two copies are in the same episode, and where an evaluation was played in between."""
    calls = {"reset": 0, "step": 0}
    for name, method in (("reset", Counter.reset), ("step", Counter.step)):

        def counted(self, *args, name=name, method=method, **named):
            calls[name] += 1
            return method(self, *args, **named)

        monkeypatch.setattr(Counter, name, counted)
    environment, params = count()
    begin = jax.jit(jax.vmap(environment.reset, (0, None)))
    step = jax.jit(jax.vmap(environment.step, (0, 0, 0, None)))
    keys = jnp.tile(jax.random.key(0), 3)
    _, state = begin(keys, params)
    for _ in range(2):
        _, state, *_ = step(keys, state, jnp.array([1, 1, 2]), params)
    _, other = begin(jax.random.split(jax.random.key(1), 3), params)
    for _ in range(3):
        _, other, *_ = step(keys, other, jnp.array([1, 1, 2]), params)
    _, state, *_ = step(keys, state, jnp.array([1, 1, 2]), params)
    assert calls == {"reset": 6, "step": 18}


def test_maps_of_maps_are_single_runs():
    environment, params = count()

    def run(key, limit):
        return play(environment, params.replace(max_steps_in_episode=limit), key, 9, copies=2)[1]

    keys, limits = jax.random.split(jax.random.key(3), 2), jnp.array([3, 7])
    together = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(keys, limits)
    alone = jax.jit(run)
    for i in range(2):
        for j in range(2):
            mine = jax.tree.map(lambda x, i=i, j=j: x[i, j], together)
            jax.tree.map(np.testing.assert_array_equal, mine, alone(keys[i], limits[j]))


class Echo(gymnasium.Env):
    """Tells in its rewards and observations what action it was given."""

    def __init__(self, actions, observations, tell):
        self.action_space, self.observation_space, self.tell = actions, observations, tell

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        return self.tell(action), float(np.sum(action)), False, False, {}


def step_once(actions, observations, tell, action):
    environment, params = gymnasium_bridge.wrap(lambda: Echo(actions, observations, tell), limit=9)
    _, state = environment.reset(jax.random.key(0), params)
    return environment, environment.step(jax.random.key(0), state, action, params)


def test_spaces_are_those_of_gymnax():
    high = np.array([[1, 2], [3, np.pi]], np.float32)
    square = spaces.Box(-high, high)
    environment, (seen, _, reward, *_) = step_once(
        square, square, lambda a: a, jnp.array([1.0, -2.0, 4.0, 9.0])
    )
    assert environment.action_space().shape == (4,)
    np.testing.assert_array_equal(environment.action_space().high, high.reshape(-1))
    np.testing.assert_array_equal(seen, [[1, -2], [3, np.float32(np.pi)]])  # between the bounds
    assert reward == seen.sum()
    numbers = spaces.Discrete(4, start=3)
    environment, (seen, _, reward, *_) = step_once(numbers, numbers, lambda a: a, 1)
    assert (environment.observation_space().n, int(seen), float(reward)) == (4, 1, 4)
    assert (environment.num_actions, seen.dtype) == (4, jnp.int32)
    bits = spaces.MultiBinary(3)
    _, (seen, *_) = step_once(numbers, bits, lambda a: np.array([0, 1, 1], np.int8), 1)
    np.testing.assert_array_equal(seen, [0, 1, 1])
    pixels = spaces.Box(0, 255, (2, 2), np.uint8)
    _, (seen, *_) = step_once(numbers, pixels, lambda a: np.full((2, 2), 200, np.uint8), 1)
    assert (seen.dtype, int(seen[0, 0])) == (jnp.uint8, 200)


def test_the_time_may_be_told():
    environment, params = count()
    params = params.replace(max_steps_in_episode=3)
    aware = TimeAware(environment, params)
    observation, state = aware.reset(jax.random.key(0), params)
    for t in range(1, 4):
        seed = observation[0]
        observation, state, _, terminated, truncated, info = aware.step(
            jax.random.key(t), state, jnp.int32(2), params
        )
        np.testing.assert_allclose(info["final_observation"], [seed, t, t, 1 - t / 3], atol=1e-6)
        assert (bool(terminated), bool(truncated)) == (t == 3, False)


SMALL = {"environments": 2, "rollout": 8, "learning_rate": 1e-2}
REPLAY = SMALL | {"steps": 48, "warmup": 16, "buffer": 32, "gradient_steps": 2, "batch": 4}
AGENTS = {
    "ppo": ("gym:CartPole-v1:20", ppo.make, ppo.PPOConfig(steps=32, epochs=2, **SMALL)),
    "dqn": ("gym:CartPole-v1:20", dqn.make, dqn.DQNConfig(**REPLAY)),
    "sac": ("gym:Pendulum-v1:20", sac.make, sac.SACConfig(**REPLAY)),
}


def learn(name, evaluations):
    """A function of keys: whole runs of two updates, as one program."""
    world, make, config = AGENTS[name]
    environment, params = make_environment(world)
    agent = make(environment, params)
    config.check()
    return jax.jit(
        jax.vmap(lambda key: A.train(agent, key, config, params, evaluations=evaluations, episodes=2))
    )


@pytest.mark.parametrize("name", slow_but(AGENTS, ["ppo"]))
def test_agents_learn_on_it(name):
    """Mapped over seeds: finite, the same numbers again, and other seeds are other runs."""
    run, keys = learn(name, 0), jax.random.split(jax.random.key(7), 2)
    state, told = run(keys)
    assert all(np.isfinite(x).all() for metric, x in told.items() if metric != "return")
    jax.tree.map(np.testing.assert_array_equal, state.params, run(keys)[0].params)
    assert (state.place.state.seed[0] != state.place.state.seed[1]).all()
    differ = jax.tree.map(lambda x: bool((x[0] != x[1]).any()), state.params)
    assert any(jax.tree.leaves(differ))


@pytest.mark.slow
def test_evaluation_leaves_training_alone():
    """The same episodes; two programs may round the parameters differently."""
    keys = jax.random.split(jax.random.key(7), 2)
    judged, alone = (learn("ppo", evaluations)(keys)[0] for evaluations in (2, 0))
    np.testing.assert_array_equal(judged.place.state.seed, alone.place.state.seed)
    near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(near, judged.params, alone.params)


@pytest.mark.slow
def test_a_run_goes_on_in_another_process_with_the_same_bits(tmp_path):
    """Episodes that were under way are played once more: the environment is made anew, and its cache is empty."""

    def fit(path, **settings):
        environment, params = make_environment("gym:CartPole-v1:50")
        algorithm, config = a2c.make(environment, params), a2c.A2CConfig(steps=96, **SMALL)
        given = {"seed": 1, "seeds": 2}
        stage = training.agent(algorithm, config, params, **given, evaluate_every=2, episodes=2)
        params = training.start_agents(algorithm, config, params, **given)
        return training.fit(stage, params, out=path, save_interval=0, **settings)

    def stop(report):
        if report.progress.done == 2 and report.headline is not None:
            os.kill(os.getpid(), signal.SIGTERM)

    whole = fit(tmp_path / "whole")
    assert fit(tmp_path / "parts", on_progress=stop).progress.done == 2
    second = fit(tmp_path / "parts", resume=True)
    jax.tree.map(np.testing.assert_array_equal, whole.params, second.params)
    assert whole.progress.scores == second.progress.scores


class JaxEnvironment(Counter):
    pass


JaxEnvironment.__name__ = "FunctionalJaxEnv"
gymnasium.register("Endless-v0", Counter)
NUMBER, BOX = spaces.Discrete(2), spaces.Box(0, 1, (2,))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: gymnasium_bridge.make("gym:None-v0"), "gym:None-v0 is no environment of Gymnasium .*: check the name"),
        (lambda: gymnasium_bridge.make("gym:nowhere:None-v0"), "gym:nowhere:None-v0 cannot be made: .*nowhere"),
        (lambda: gymnasium_bridge.make("gym:CartPole-v1:abc"), "abc is no number of steps: give one from 1 to 2,147"),
        (lambda: gymnasium_bridge.make("gym:CartPole-v1:" + 12 * "9"), "9 is no number of steps: give one from 1"),
        (lambda: gymnasium_bridge.make("gym:Endless-v0"), "has no limit of steps, .* as gym:Endless-v0:1000"),
        (lambda: gymnasium_bridge.make("gym:Taxi-v3"), "Taxi-v3 cannot be made: Environment version v3 for `Taxi` is deprecated"),
        (
            lambda: gymnasium_bridge.make("gym:Blackjack-v1"),
            "the observations of gym:Blackjack-v1 are Tuple, agents need an array or a number.*FlattenObservation",
        ),
        (lambda: gymnasium_bridge.wrap(Counter), "Counter has no limit of steps, .* give one, by limit="),
        (lambda: gymnasium_bridge.wrap(JaxEnvironment, limit=3), "runs JAX itself, .* choose one that does not"),
        (
            lambda: gymnasium_bridge.wrap(lambda: Echo(spaces.MultiDiscrete([2, 2]), BOX, None), limit=3),
            r"the actions of Echo are MultiDiscrete\(\[2 2\]\), agents need a number or an array of floats",
        ),
        (
            lambda: gymnasium_bridge.wrap(lambda: Echo(NUMBER, spaces.Dict({"a": BOX}), None), limit=3),
            "the observations of Echo are Dict",
        ),
        (
            lambda: gymnasium_bridge.wrap(lambda: gymnasium.make_vec("CartPole-v1", 2)),
            "not a single gymnasium.Env: give one that is not vectorised",
        ),
    ],
)  # fmt: skip
def test_what_agents_cannot_play_is_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_without_gymnasium_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(
        InputError, match=r"gym:CartPole-v1 needs Gymnasium: pip install 'jaxrl4lm\[gymnasium\]'"
    ):
        make_environment("gym:CartPole-v1")


def test_what_goes_wrong_while_it_is_played_is_a_sentence():
    """Of the first call of a program, and of a later one."""
    environment, params = count(limit=2)
    longer = params.replace(max_steps_in_episode=9)
    _, state = environment.reset(jax.random.key(0), params)
    cut = dataclasses.replace(state, time=jnp.int32(2))
    for calls in range(2):
        step = jax.jit(environment.step)
        for _ in range(calls):
            step(jax.random.key(0), state, 1, longer)
        with pytest.raises((jax.errors.JaxRuntimeError, ValueError)) as caught:
            jax.block_until_ready(step(jax.random.key(0), cut, 1, longer))
        assert (
            str(explain_error(caught.value)) == "an episode of Counter is longer than 2 steps: cut it there"
        )


class Painter(Counter):
    """Draws what it has seen, in bytes."""

    render_mode = "rgb_array"

    def render(self):
        if self.render_mode == "broken":
            raise gymnasium.error.DependencyNotInstalled("pygame")
        return np.broadcast_to((255 * self.seen / 9).astype(np.uint8), (2, 4, 3))


@pytest.mark.parametrize("aware", [False, True])
def test_what_draws_itself_is_photographed(aware, tmp_path, monkeypatch):
    """Of the episode that is judged, at the times that a picture shows."""
    environment, params = gymnasium_bridge.wrap(Painter, limit=20)
    algorithm = a2c.make(TimeAware(environment, params) if aware else environment, params)
    config = a2c.A2CConfig(environments=2, rollout=20, steps=160)
    stage = training.agent(algorithm, config, params, seed=3, episodes=2)
    shown = []
    monkeypatch.setattr(episode, "draw_episode", lambda *given: shown.append(given))
    monkeypatch.setattr(episode, "list_moments", lambda steps: [0, 2, steps])
    state = stage.init(training.start_agents(algorithm, config, params, seed=3))
    stage.exports["episode"](tmp_path, state, {})
    ((draw, filmed, title, _),) = shown
    assert (draw, title) == (draw_image, "Painter, a2c")
    assert list(filmed.observations) == [0, 2, 5]
    first = jax.tree.map(lambda x: x[0], stage.params_of(state))
    film = jax.jit(lambda seen: A.film(algorithm, seen, jax.random.key(3), params, 2, 20))(first)
    seen = np.concatenate([film.observation[:5], film.final_observation[4:5]])[:, :3]
    for time, picture in filmed.observations.items():
        np.testing.assert_array_equal(picture[0, 0], (255 * seen[time] / 9).astype(np.uint8))


def test_what_cannot_draw_itself_is_not_photographed(monkeypatch):
    assert count()[0].find_camera() is None
    monkeypatch.setattr(Painter, "render_mode", "broken")
    assert gymnasium_bridge.wrap(Painter, limit=20)[0].find_camera() is None
    assert gymnasium_bridge.wrap(Counter, limit=20, create_drawn=Painter)[0].find_camera() is None
    monkeypatch.setattr(Painter, "render_mode", "rgb_array")
    assert gymnasium_bridge.wrap(Counter, limit=20, create_drawn=Painter)[0].find_camera() is not None
