"""Parts of SAC, TD3 and DDPG against loops by hand."""

import functools

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm.agents import agent as A
from jaxrl4lm.agents import ddpg, off_policy, replay, sac, td3
from jaxrl4lm.envs.finite_mdp import as_environment
from jaxrl4lm.types import InputError
from tests.agents.probes import PROBES, PullEnvironment, all_continuous_probes

SIZES = {"environments": 2, "rollout": 2, "buffer": 40, "warmup": 8, "batch": 16, "steps": 8 + 8}
WORLD = jax.tree.map(lambda x: x[4], all_continuous_probes()[1])


@functools.cache
def begun(module, config):
    """(learner, state before the first update, draw of minibatches) in the probe where both decide."""
    outputs, critics = {sac: (2, 2), td3: (1, 2), ddpg: (1, 1)}[module]
    learner = off_policy.make_learner(
        "it", PullEnvironment(), WORLD, outputs=outputs, critics=critics, networks=(None, None)
    )
    state = jax.jit(lambda key: module.init(key, config, learner, WORLD))(jax.random.key(0))
    return learner, state, functools.partial(draw, state, config)


def draw(state, config, key):
    return replay.sample(key, state.memory, state.place.observation, config.batch, discount=config.discount)


def known_of(state):
    return off_policy.Known(state.params, state.target, state.opt_state)


def assert_near(a, b):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), a, b)


def test_the_temperature_follows_its_rule():
    """Adam in NumPy on log α, whose gradient is α (entropy − target), of batches above and below the target."""
    config = sac.SACConfig(target_entropy=0.5, temperature=0.2, temperature_rate=3.0, **SIZES)
    learner, state, _ = begun(sac, config)
    adjust = jax.jit(
        lambda known, log_probs, rate: sac.adjust_temperature(
            known, log_probs, config.replace(temperature_rate=rate), learner, jnp.int32(0)
        )
    )
    known, log_alpha = known_of(state), np.log(0.2)
    first = second = 0.0
    for t, entropy in enumerate([1.5, 0.7, 0.5, -0.5, -2.0], 1):
        log_probs = -entropy + jnp.array([0.3, -0.3, 0.1, -0.1])
        same = adjust(known, log_probs, 0.0)
        assert same.params["log_temperature"] == known.params["log_temperature"]
        known = adjust(known, log_probs, 3.0)
        gradient = np.exp(log_alpha) * (entropy - 0.5)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        move = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-5)
        log_alpha -= 3 * 1e-3 * move
        np.testing.assert_allclose(known.params["log_temperature"], log_alpha, rtol=1e-5)
    assert known.params["log_temperature"] < np.log(0.2)


def test_critics_of_sac_learn_soft_values():
    """The loss by hand: ½ (Q − r − γ (1 − d) (min Q′ − α log π))², summed over both critics."""
    config = sac.SACConfig(temperature=0.3, discount=0.9, **SIZES)
    learner, state, memories = begun(sac, config)
    key = jax.random.key(1)
    learn = jax.jit(
        lambda known: sac.learn(known, key, memories, config=config, learner=learner, update=jnp.int32(0))
    )
    known, told = learn(known_of(state))
    key_memory, key_next, _ = jax.random.split(key, 3)
    part = memories(key_memory)
    actions, log_probs = sac.draw(key_next, learner, state.params["actor"], part.next_observation)
    older = off_policy.rate(learner, state.target["critic"], part.next_observation, actions)
    following = np.minimum(*np.asarray(older)) - 0.3 * np.asarray(log_probs)
    target = np.asarray(part.reward) + 0.9 * ~np.asarray(part.terminated) * following
    values = np.asarray(off_policy.rate(learner, state.params["critic"], part.observation, part.action))
    np.testing.assert_allclose(told["loss/critic"], ((values - target) ** 2 / 2).mean(1).sum(), rtol=1e-4)
    moved = jax.tree.map(
        lambda new, old: old + 0.005 * (new - old), known.params["critic"], state.target["critic"]
    )
    assert_near(known.target["critic"], moved)


def test_td3_holds_its_policy_still_between_delayed_steps():
    """Four steps of the critics under one policy and one target, by a loop; then one of the policy, and one of the targets."""
    config = td3.TD3Config(policy_delay=4, gradient_steps=4, target_noise=0.0, **SIZES)
    learner, state, memories = begun(td3, config)
    start, key, now = known_of(state), jax.random.key(1), jnp.int32(0)
    once = functools.partial(td3.learn, config=config, learner=learner, update=now)
    known, _ = jax.jit(lambda known: once(known, key, memories))(start)

    @jax.jit
    def improve(known, key):
        part = memories(key)
        following = ddpg.act(learner, start.target["actor"], part.next_observation)
        values = off_policy.rate(learner, start.target["critic"], part.next_observation, following).min(0)
        target = part.reward + part.discount * jnp.where(part.terminated, 0, values)
        return off_policy.improve_critics(known, part, config, learner, now, lambda v: target[None] - v)[0]

    by_hand = start
    for key_memory in jax.random.split(key, (4, 2))[:, 0]:
        by_hand = improve(by_hand, key_memory)
    assert_near(known.params["critic"], by_hand.params["critic"])
    jax.tree.map(np.testing.assert_array_equal, by_hand.params["actor"], start.params["actor"])

    steps = {name: opt_state[1].count for name, opt_state in known.opt_state.items()}
    assert steps == {"actor": 1, "critic": 4}
    moved = [
        (a != b).any()
        for a, b in zip(*map(jax.tree.leaves, (known.params["actor"], start.params["actor"])), strict=True)
    ]
    assert all(moved)
    nearer = jax.tree.map(lambda new, old: old + 0.005 * (new - old), known.params, start.target)
    assert_near(known.target, nearer)


@pytest.mark.parametrize(
    "module, kind", [(sac, sac.SACConfig), (td3, td3.TD3Config), (ddpg, ddpg.DDPGConfig)]
)
def test_what_is_remembered_is_what_was_played(module, kind):
    """Rewards of remembered actions, by the world's own formula; actions lie in −1..1, those of the warm-up anywhere there."""
    settings = SIZES | {"buffer": 240, "warmup": 200, "steps": 240}
    config = kind(**settings) if module is sac else kind(exploration_noise=2.0, **settings)
    learner, state, _ = begun(module, config)
    update = jax.jit(lambda state: module.update(state, config, learner, WORLD)[0])
    for _ in range(10):
        state = update(state)
    memory = jax.tree.map(np.asarray, state.memory)
    assert (memory.seen, state.step) == (240, 10)
    place = memory.observation.argmax(-1)
    reward = 1 - (memory.action[:, 0] - np.array([0.5, -0.5, 0])[place]) ** 2
    np.testing.assert_allclose(memory.reward, reward, rtol=1e-5, atol=1e-6)
    assert np.abs(memory.action).max() <= 1
    assert np.histogram(memory.action[:200], 4, (-1, 1))[0].min() > 30


def test_the_judged_action_is_no_draw():
    for module in (sac, td3, ddpg):
        agent = module.make(PullEnvironment(), WORLD)
        config = {sac: sac.SACConfig, td3: td3.TD3Config, ddpg: ddpg.DDPGConfig}[module](**SIZES)
        _, state, _ = begun(module, config)
        act = jax.jit(lambda key, agent=agent, state=state: agent.act(A.view(state), key, jnp.eye(3)))
        np.testing.assert_array_equal(*map(act, jax.random.split(jax.random.key(0), 2)))


@pytest.mark.parametrize("module", [sac, td3, ddpg])
def test_actions_that_do_not_fit_are_refused(module):
    environment, params = as_environment(next(iter(PROBES.values())), one_hot=True, max_steps=2)
    with pytest.raises(InputError, match=r"are numbers, .* needs vectors between bounds: use dqn or ppo"):
        module.make(environment, params)

    class Unbounded(PullEnvironment):
        def action_space(self, params):
            return gymnax.environments.spaces.Box(-jnp.inf, jnp.inf, (1,))

    with pytest.raises(InputError, match="the actions of Pull have no bounds"):
        module.make(Unbounded(), WORLD)


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="gradient_steps 3 is no multiple of the policy_delay 2: give 4"):
        td3.TD3Config(gradient_steps=3).check()
    with pytest.raises(InputError, match="buffer 1001 is no multiple of the 8 steps of an update: give 1008"):
        sac.SACConfig(buffer=1001).check()
    with pytest.raises(InputError, match="warmup 800 is more than the buffer holds: give at most 80"):
        ddpg.DDPGConfig(buffer=80).check()
