"""Observations that tell the time, and limits that are ends."""

import types

import gymnax
import jax
import numpy as np
import pytest

from jaxrl4lm.agents.environment import make_environment
from jaxrl4lm.envs.finite_mdp import as_environment
from jaxrl4lm.envs.time_aware import TimeAware
from jaxrl4lm.mdp import from_arrays
from jaxrl4lm.types import InputError


@pytest.mark.parametrize("name", ["Pendulum-v1", "Breakout-MinAtar"])
def test_it_is_the_environment_with_one_more_number(name):
    """Step by step, across an end by time, which terminates; what follows an end is another episode with all its time."""
    inner, params = gymnax.make(name)
    params = params.replace(max_steps_in_episode=3)
    aware = TimeAware(inner, params)

    def play(environment):
        key = jax.random.key(0)
        observation, state = environment.reset(key, params)
        rows = [(observation, observation, 0.0, False, False)]
        for i in range(4):
            action = environment.action_space(params).sample(jax.random.fold_in(key, i))
            observation, state, reward, terminated, truncated, info = environment.step(
                jax.random.fold_in(key, i), state, action, params
            )
            rows.append((observation, info["final_observation"], reward, terminated, truncated))
        return rows

    for i, (plain, told) in enumerate(zip(play(inner), play(aware), strict=True)):
        for a, b in zip(plain[:2], told[:2], strict=True):
            np.testing.assert_array_equal(np.asarray(a, np.float32).reshape(-1), b[:-1])
            np.testing.assert_array_equal(aware.without_time(b), a)
        assert told[2] == plain[2]
        ended = i == 3
        assert (bool(told[3]), bool(told[4])) == (ended, False)
        np.testing.assert_allclose(told[0][-1], 1 - (i % 3) / 3 if i else 1, atol=1e-6)
        np.testing.assert_allclose(told[1][-1], 0 if ended else told[0][-1], atol=1e-6)
    assert aware.observation_space(params).shape == told[0].shape


def test_what_cannot_tell_the_time_is_refused():
    world = from_arrays(np.eye(2)[[[1, 0], [0, 1]]], np.zeros((2, 2)), 0.9)
    numbers, params = as_environment(world)
    with pytest.raises(InputError, match="the time cannot be one more number of it"):
        TimeAware(numbers, params)
    with pytest.raises(InputError, match="has no max_steps_in_episode"):
        TimeAware(numbers, types.SimpleNamespace())


OWN = """
import gymnax

def make():
    environment, params = gymnax.make("CartPole-v1")
    return environment, params.replace(max_steps_in_episode=7)

def alone():
    return make()[0]

def raises():
    raise ValueError("no world today")
"""


def test_an_environment_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    environment, params = make_environment(f"{tmp_path}/mine.py:make")
    assert (environment.name, params.max_steps_in_episode) == ("CartPole-v1", 7)
    aware, params = make_environment(f"{tmp_path}/mine.py:make", time_aware=True)
    assert jax.eval_shape(aware.reset, jax.random.key(0), params)[0].shape == (5,)


@pytest.mark.parametrize(
    "name, words",
    [
        ("mine.py:alone", "gave CartPole: return an environment and its parameters, two values"),
        ("mine.py:raises", "raised ValueError at mine.py:.*: no world today: mend the function"),
        ("mine.py:nothing", "has no function 'nothing': name one that it defines"),
        ("none.py:make", "does not exist: check the path"),
        ("CartPole-v9", "is no environment: name gym:ID, FILE.py:function or one of"),
    ],
)
def test_what_is_no_environment_is_refused(tmp_path, name, words):
    (tmp_path / "mine.py").write_text(OWN)
    with pytest.raises(InputError, match=words):
        make_environment(f"{tmp_path}/{name}" if ".py" in name else name)
