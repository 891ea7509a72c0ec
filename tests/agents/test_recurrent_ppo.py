"""PPO with a memory solves a world that no policy of the present can, and learns from sequences as they were played."""

import functools

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.environment import EnvParams

from jaxrl4lm.agents import agent as A
from jaxrl4lm.agents import environment as env
from jaxrl4lm.agents import ppo, recurrent_ppo
from jaxrl4lm.agents.recurrent_ppo import Learner, RecurrentPPOConfig
from jaxrl4lm.models import RecurrentPolicy, TransformerPolicy
from jaxrl4lm.types import InputError
from tests.agents.probes import Recall, RecallParams
from tests.agents.test_on_policy import Corridor

SIZES = {"steps": 6400, "environments": 16, "rollout": 20, "epochs": 4, "minibatches": 4}
SIZES |= {"learning_rate": 2e-3, "final_learning_rate_share": 0.0, "gae_lambda": 1.0}


TRANSFORMER = {"shape": (6,), "span": 4, "layers": 1, "width": 16, "heads": 2}
play_by_transformer = functools.partial(
    recurrent_ppo.make, actor=TransformerPolicy(2, **TRANSFORMER), critic=TransformerPolicy(1, **TRANSFORMER)
)


def score(make, config):
    """What agents of four seeds earn on average in 64 episodes of the world of memory, `[4]`."""
    config.check()
    params = RecallParams()
    train = functools.partial(A.train, make(Recall(), params), config=config, params=params, episodes=64)
    keys = jax.random.split(jax.random.key(0), 4)
    return np.asarray(jax.jit(jax.vmap(lambda key: train(key)[1]["evaluation"][-1]))(keys))


@pytest.mark.slow
def test_memory_decides():
    """The cue of the first step decides the last action: with a memory every episode earns 1, without one 0 on average."""
    np.testing.assert_array_equal(score(recurrent_ppo.make, RecurrentPPOConfig(**SIZES)), 1)
    assert np.abs(score(ppo.make, ppo.PPOConfig(**SIZES)).mean()) < 0.3


@pytest.mark.slow
def test_a_transformer_decides_by_its_cache():
    """The policy of the language models plays the same world, and earns all; where its cache holds too little, nothing."""
    config = RecurrentPPOConfig(**SIZES)
    np.testing.assert_array_equal(score(play_by_transformer, config), 1)
    short = {**TRANSFORMER, "span": 2}
    forgets = functools.partial(
        recurrent_ppo.make, actor=TransformerPolicy(2, **short), critic=TransformerPolicy(1, **short)
    )
    assert np.abs(score(forgets, config).mean()) < 0.3


def test_a_transformer_is_trained():
    """Two updates: all of it moves, and the first minibatch is on-policy, also where an episode began before the rollout."""
    config = RecurrentPPOConfig(steps=56, environments=4, rollout=7, epochs=1, minibatches=1)
    params = RecallParams()
    agent = play_by_transformer(Recall(), params)

    @jax.jit
    def run(key):
        start = agent.init(key, config, params)
        return start, jax.lax.scan(lambda state, _: agent.update(state, config, params), start, length=2)

    start, (state, told) = run(jax.random.key(0))
    np.testing.assert_array_equal(state.extra.actor.time, 14 % 4)  # moments of the fourth episode
    assert (told["kl"] < 1e-9).all()
    still = {
        jax.tree_util.keystr(path[-1:], simple=True)
        for path, x in jax.tree.leaves_with_path(
            jax.tree.map(lambda x, y: x == y, start.params, state.params)
        )
        if x.all()
    }
    assert still == {"constants", "value_head"}  # there are none, and the critic is a network of its own


CONFIG = RecurrentPPOConfig(environments=4, rollout=7, gae_lambda=0.0, discount=0.5, minibatches=2)


def played(environment, params):
    """(learner, state after a rollout, after two, sequences of the second)."""
    spec = env.describe(environment, params)
    actor = RecurrentPolicy(spec.actions.outputs, spec.shape, width=8, constants=spec.actions.constants)
    learner = Learner(spec, actor, RecurrentPolicy(1, spec.shape, width=8))
    state = jax.jit(lambda key: recurrent_ppo.init(key, CONFIG, learner, params))(jax.random.key(0))
    collect = jax.jit(lambda state: recurrent_ppo.collect(state, CONFIG, learner, params))
    middle, *_ = collect(state)
    after, sequences, _ = collect(middle)
    return learner, middle, after, sequences


def cart_pole():
    environment, params = gymnax.make("CartPole-v1")
    return played(environment, params.replace(max_steps_in_episode=5))


@pytest.mark.parametrize("end, limit", [(9, 3), (3, 9)])
def test_a_rollout_goes_on_from_the_memory_of_the_last(end, limit):
    """Step by step: a world that pays 1, 2, 3 and shows 10, 1, 2, then (before a reset) 3. An end is worth its reward alone;
    what a limit cut off is valued by what the critic remembers of that episode."""
    learner, state, after, (batch, begins, memory) = played(
        Corridor(end), EnvParams(max_steps_in_episode=limit)
    )
    jax.tree.map(np.testing.assert_array_equal, memory, state.extra)
    networks, going_on = state.params, jnp.zeros(4, bool)
    act, judge = (
        functools.partial(jax.jit(getattr(learner, name).step), networks[name])
        for name in ("actor", "critic")
    )
    actor, critic = memory.actor, memory.critic
    for t in range(7):
        time = (7 + t) % 3  # of the episode
        np.testing.assert_array_equal(begins[t], time == 0)
        np.testing.assert_array_equal(batch.observation[t, :, 0], [10, 1, 2][time])
        outputs, actor = act(actor, batch.observation[t], begins[t])
        np.testing.assert_allclose(batch.outputs[t], outputs, rtol=1e-4, atol=1e-5)
        value, critic = judge(critic, batch.observation[t], begins[t])
        np.testing.assert_allclose(batch.value[t], value[:, 0], rtol=1e-4, atol=1e-5)
        following, _ = judge(critic, jnp.full((4, 1), time + 1.0), going_on)
        ended = time == 2 and end == 3
        target = time + 1 + (0 if ended else 0.5 * following[:, 0])
        np.testing.assert_allclose(batch.target[t], target, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after.extra.actor, actor, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after.extra.critic, critic, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(after.extra.begins, batch.done[-1])


def test_minibatches_are_whole_sequences():
    """Each copy is in one minibatch, with its memory; time is in order."""
    *_, sequences = cart_pole()
    parts = recurrent_ppo.shuffle_sequences(jax.random.key(1), sequences, 2)
    order = np.asarray(jax.random.permutation(jax.random.key(1), 4)).reshape(2, 2)
    for part, copies in zip(range(2), order, strict=True):
        np.testing.assert_array_equal(parts.batch.observation[part], sequences.batch.observation[:, copies])
        np.testing.assert_array_equal(parts.begins[part], sequences.begins[:, copies])
        np.testing.assert_array_equal(parts.memory.actor[part], sequences.memory.actor[copies])


def test_the_first_minibatch_is_on_policy():
    learner, state, _, sequences = cart_pole()
    _, told = jax.jit(lambda params: recurrent_ppo.loss(params, sequences, CONFIG, learner))(state.params)
    assert told["kl"] < 1e-9
    forgetful = sequences._replace(memory=jax.tree.map(jnp.zeros_like, sequences.memory))
    loss = jax.jit(lambda part: recurrent_ppo.loss(state.params, part, CONFIG, learner)[1]["kl"])
    assert loss(forgetful) > 1e-7


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match=r"environments 6 is no multiple of the 4 minibatches.* give 8"):
        RecurrentPPOConfig(environments=6, rollout=10, steps=600).check()
