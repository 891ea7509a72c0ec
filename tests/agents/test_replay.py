"""A ring against a list: what is drawn is what was played, also across its end, at ends, at cuts and at the newest steps; and no
update of an agent copies it."""

import re

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm.agents import c51, ddpg, dqn, qr_dqn, sac, td3
from jaxrl4lm.agents import environment as env
from jaxrl4lm.agents import replay as R
from jaxrl4lm.agents.environment import Transition
from tests.agents.probes import all_continuous_probes, all_probes
from tests.selection import slow_but

COPIES, TIME, SIZE, DISCOUNT = 3, 4, 36, 0.5


def play(blocks, limit):
    """Steps `[blocks, T, N]` of made-up episodes: an observation is its own number, and the next one's at a reset differs."""
    rng = np.random.default_rng(0)
    observation = np.zeros(COPIES, int) + np.arange(COPIES) * 1000
    age, fresh, blocks_of_steps = np.zeros(COPIES, int), 10_000, []
    for _ in range(blocks):
        rows = []
        for _ in range(TIME):
            final = observation + 1
            age += 1
            terminated = rng.random(COPIES) < 0.15
            truncated = (age >= limit) & ~terminated
            rows.append(
                (
                    observation,
                    rng.integers(0, 5, COPIES),
                    rng.normal(size=COPIES),
                    terminated,
                    truncated,
                    final,
                )
            )
            done = terminated | truncated
            fresh += 100 * done.sum()
            observation = np.where(done, fresh + 10 * np.arange(COPIES), final)
            age = np.where(done, 0, age)
        blocks_of_steps.append([np.stack(x) for x in zip(*rows, strict=True)])
    return [np.stack(x) for x in zip(*blocks_of_steps, strict=True)], observation


def as_transition(steps, block):
    observation, action, reward, terminated, truncated, final = (jnp.asarray(x[block]) for x in steps)
    as_vector = lambda x: jnp.stack([x, -x], -1).astype(jnp.float32)  # noqa: E731
    return Transition(
        as_vector(observation),
        action,
        reward.astype(jnp.float32),
        terminated,
        truncated,
        as_vector(final),
        (),
    )


def brute_force(steps, latest, time, copy, n):
    """(reward, discount, terminated, next observation) of n steps, one after the other."""
    observation, _, reward, terminated, truncated, final = (x.reshape(-1, COPIES)[:, copy] for x in steps)
    total, factor = 0.0, 1.0
    for t in range(time, min(time + n, len(reward))):
        total += factor * reward[t]
        factor *= DISCOUNT
        following = final[t]
        if terminated[t] or truncated[t]:
            break
        assert following == (observation[t + 1] if t + 1 < len(reward) else latest[copy])
    return total, factor, terminated[t], following


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("blocks", [2, 3, 7])
def test_what_is_looked_up_is_what_was_played(blocks, n):
    """Of a ring of three blocks, partly filled, full, and overwritten."""
    steps, latest = play(blocks, limit=5)
    ring = R.init(as_transition(steps, 0), SIZE, horizon=5)
    for block in range(blocks):
        ring = jax.jit(R.add)(ring, as_transition(steps, block))
    here = jnp.stack([jnp.asarray(latest), -jnp.asarray(latest)], -1).astype(jnp.float32)
    held = min(blocks * TIME, SIZE // COPIES)
    found = R.look_up(ring, here, jnp.arange(held * COPIES), discount=DISCOUNT, n=n)
    cut = 0
    for i in range(held * COPIES):
        row, copy = divmod(i, COPIES)
        rows, total = SIZE // COPIES, blocks * TIME
        time = row + (total - 1 - row) // rows * rows
        reward, factor, terminated, following = brute_force(steps, latest, time, copy, n)
        np.testing.assert_allclose(found.reward[i], reward, rtol=1e-5)
        assert found.discount[i] == factor
        assert found.terminated[i] == terminated
        if not terminated:
            assert found.next_observation[i, 0] == following
            assert found.next_observation[i, 1] == -following
        assert found.observation[i, 0] == steps[0].reshape(-1, COPIES)[time, copy]
        assert found.action[i] == steps[1].reshape(-1, COPIES)[time, copy]
        cut += steps[4].reshape(-1, COPIES)[time, copy]
    assert cut > 0
    np.testing.assert_array_equal(found.weight, 1)


def test_only_what_was_added_is_drawn_and_each_step_as_often():
    steps, _ = play(2, limit=5)
    ring = R.init(as_transition(steps, 0), SIZE, horizon=5)
    for block in range(2):
        ring = R.add(ring, as_transition(steps, block))
    here = jnp.zeros((COPIES, 2))
    index = np.asarray(R.sample(jax.random.key(0), ring, here, 24_000, discount=0.9).index)
    counts = np.bincount(index, minlength=SIZE)
    assert (counts[24:] == 0).all()
    assert (abs(counts[:24] - 1000) < 5 * np.sqrt(1000)).all()


def test_a_limit_below_the_horizon_forgets_the_oldest_cuts_and_says_so():
    """Every step is cut, and there is room for one cut of each copy."""
    steps, _ = play(3, limit=1)
    steps[3] = np.zeros_like(steps[3])
    steps[4] = np.ones_like(steps[4])
    ring = R.init(as_transition(steps, 0), SIZE, horizon=100)
    for block in range(3):
        ring = R.add(ring, as_transition(steps, block))
    found = R.look_up(ring, jnp.zeros((COPIES, 2)), jnp.arange(SIZE), discount=0.9)
    np.testing.assert_array_equal(found.weight, [0] * (SIZE - COPIES) + [1] * COPIES)
    np.testing.assert_array_equal(found.next_observation[-COPIES:, 0], steps[5][-1, -1])


@pytest.mark.parametrize("name", slow_but(["Breakout", "Asterix", "SpaceInvaders", "Freeway", "Seaquest"], 1))
def test_games_of_zeros_and_ones_are_remembered_as_booleans(name):
    """Nothing is lost by it, and each observation is there once."""
    environment, params = gymnax.make(f"{name}-MinAtar")
    spec = env.describe(environment, params)

    def play(spec):
        place = env.begin(jax.random.key(0), spec, params, 2)
        any_action = lambda key, _: (jax.random.randint(key, (2,), 0, spec.actions.outputs), ())  # noqa: E731
        return env.roll_out(jax.random.key(1), spec, params, place, any_action, 100)[1]

    kept, raw = play(spec), play(spec._replace(binary=False))
    for before, after in (
        (raw.observation, kept.observation),
        (raw.final_observation, kept.final_observation),
    ):
        assert after.dtype == bool
        np.testing.assert_array_equal(spec.encode(after), before)
    ring = jax.eval_shape(lambda steps: R.init(steps, 100_000, spec.horizon), kept)
    cells = np.prod(spec.shape)
    assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(ring)) < 100_000 * (cells * 1.01 + 13)


RING = {"environments": 8, "rollout": 4, "buffer": 11_104, "warmup": 64, "gradient_steps": 2, "batch": 16}
RING |= {"steps": 64 + 320}
REMEMBERING = {
    "dqn": (dqn, dqn.DQNConfig(**RING, n_step=2)),
    "dqn, prioritized": (dqn, dqn.DQNConfig(**RING, n_step=2, prioritized=True)),
    "qr-dqn": (qr_dqn, qr_dqn.QRDQNConfig(**RING)),
    "c51": (c51, c51.C51Config(**RING)),
    "sac": (sac, sac.SACConfig(**RING)),
    "td3": (td3, td3.TD3Config(**RING)),
    "ddpg": (ddpg, ddpg.DDPGConfig(**RING)),
}
CASES = [("dqn", 1), *((name, 2) for name in REMEMBERING)]


@pytest.mark.parametrize("name, seeds", slow_but(CASES, [("dqn", 2), ("dqn, prioritized", 2)]))
def test_an_update_copies_no_memories(name, seeds):
    """In the compiled program of updates of donated states, nothing of the size of the ring is copied or chosen."""
    module, config = REMEMBERING[name]
    config.check()
    environment, worlds = all_continuous_probes() if module in (sac, td3, ddpg) else all_probes()
    params = jax.tree.map(lambda x: x[4], worlds)
    agent = module.make(environment, params)
    keys = jax.random.split(jax.random.key(0), seeds)
    states = jax.eval_shape(jax.vmap(lambda key: agent.init(key, config, params)), keys)

    def chunk(states):
        update = jax.vmap(lambda state: agent.update(state, config, params)[0])
        return jax.lax.scan(lambda states, _: (update(states), None), states, length=3)[0]

    lines = jax.jit(chunk, donate_argnums=0).lower(states).compile().as_text().splitlines()
    made = re.compile(rf"= \w+\[(?:{seeds},)?11104[],][^ ]* ([\w-]+)\(")
    operations = {found.group(1) for line in lines if (found := made.search(line))}
    assert "get-tuple-element" in operations
    assert not {"copy", "select", "copy-start", "convert", "add"} & operations
