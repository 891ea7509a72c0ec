"""Policy gradients are the exact ones, time limits are no deaths, and a first minibatch is on-policy."""

import functools
import itertools

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.environment import EnvParams

from jaxrl4lm import mdp as M
from jaxrl4lm.agents import a2c, on_policy, ppo, ppo_kl, reinforce, trpo
from jaxrl4lm.agents import environment as env
from jaxrl4lm.agents.normalization import add_batch, begin_statistics, standardize
from jaxrl4lm.envs.finite_mdp import as_environment
from tests.agents.probes import Table
from tests.selection import slow_but

WORLD = M.from_arrays(
    np.array([[[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]], [[0.7, 0.1, 0.2], [0.2, 0.6, 0.2]], [[0, 0, 1.0]] * 2]),
    np.array([[1.0, 0.0], [-0.5, 2.0], [0.0, 0.0]]),
    1.0,
    terminal=np.array([False, False, True]),
    initial=np.array([0.5, 0.5, 0]),
)
"""Discount 1, so that each step of an episode counts as much in a rollout as in the objective."""
UNIFORM = np.full((3, 2), 0.5)


def a2c_gradients(max_steps, estimate, *, death=False, rollouts=400):
    """Gradients of the logits `[rollouts, 3, 2]`, a whole episode's worth each, with the exact critic of the uniform policy."""
    environment, params = as_environment(WORLD, one_hot=True, max_steps=max_steps)
    learner = on_policy.Learner(env.describe(environment, params), Table(2), Table(1))
    values = jnp.asarray(M.policy_values(WORLD, jnp.asarray(UNIFORM)))[:, None]
    config = a2c.A2CConfig(discount=1.0, value_coef=0.0, rollout=24, environments=64, gae_lambda=0.9)

    def once(key):
        state = on_policy.init(key, config, learner, params)
        networks = {"actor": {"table": jnp.zeros((3, 2))}, "critic": {"table": values.at[2].set(0)}}
        _, batch, _ = on_policy.collect(
            state._replace(params=networks), config, learner, params, _die(estimate) if death else estimate
        )
        grads, _ = jax.grad(a2c.loss, has_aux=True)(networks, batch, config, learner)
        starts = (
            batch.observation
        )  # the number of visits of a state that an episode makes on average is known
        return -grads["actor"]["table"] / starts.mean((0, 1))[:, None].clip(1e-9)

    gradients = jax.jit(jax.vmap(once))(jax.random.split(jax.random.key(0), rollouts))
    return np.asarray(gradients) * np.asarray(M.visitation(WORLD, jnp.asarray(UNIFORM)))[:, None]


def _die(estimate):
    """What truncation would be if it were death."""

    def wrong(rewards, values, next_values, terminated, truncated, config):
        return estimate(rewards, values, next_values, terminated | truncated, truncated & False, config)

    return wrong


def deviations(gradients):
    """How many standard errors each mean is from the exact gradient."""
    exact = np.asarray(M.policy_gradient(WORLD, jnp.zeros((3, 2))))[:2]
    gradients = gradients[:, :2]
    error = gradients.std(0, ddof=1) / np.sqrt(len(gradients))
    return np.abs(gradients.mean(0) - exact) / error


@pytest.mark.parametrize(
    "estimate, max_steps",
    slow_but(
        itertools.product(
            [on_policy.generalized, on_policy.monte_carlo, *map(on_policy.n_step, (1, 3))], (100, 2)
        ),
        2,
    ),
)
def test_mean_gradient_is_the_exact_policy_gradient(estimate, max_steps):
    """Also where every episode is cut after two steps. With the exact critic no estimate is biased."""
    assert deviations(a2c_gradients(max_steps, estimate)).max() < 4


def test_truncation_as_death_would_be_found():
    assert deviations(a2c_gradients(2, on_policy.n_step(1), death=True)).max() > 8


class Corridor:
    """Walks 0, 1, 2, ... and starts again at 10: ends after the third step; the limit is traced."""

    name = "Corridor"

    def __init__(self, end):
        self.end = end

    def reset(self, key, params):
        return jnp.full(1, 10.0), jnp.float32(0)

    def step(self, key, state, action, params):
        time = state + 1
        terminated, truncated = time >= self.end, time >= params.max_steps_in_episode
        done = terminated | truncated
        observation = time[None]
        info = {"final_observation": observation}
        after = jnp.where(done, 10.0, observation)
        return after, jnp.where(done, 0.0, time), time, terminated, truncated, info

    def action_space(self, params):
        return gymnax.environments.spaces.Discrete(2)


class Identity(Table):
    """The value of an observation is its own number."""

    def __call__(self, observations):
        return observations


@pytest.mark.parametrize(
    "end, limit, one_step",
    [
        # r + γ V(s') − V(s) from observations 10, 1, 2 with rewards 1, 2, 3 and final observations 1, 2, 3.
        (9, 3, [1 + 0.5 * 1 - 10, 2 + 0.5 * 2 - 1, 3 + 0.5 * 3 - 2]),  # a limit: V(3) stands for the rest
        (3, 9, [1 + 0.5 * 1 - 10, 2 + 0.5 * 2 - 1, 3 - 2]),  # an end: nothing follows
        (3, 3, [1 + 0.5 * 1 - 10, 2 + 0.5 * 2 - 1, 3 - 2]),  # both: an end
    ],
)
def test_advantages_across_resets_are_those_by_hand(end, limit, one_step):
    """GAE of each episode alone; the observation after a reset, 10, is in no target."""
    params = EnvParams(max_steps_in_episode=limit)
    learner = on_policy.Learner(env.describe(Corridor(end), params), Table(2), Identity(1))
    config = a2c.A2CConfig(rollout=7, environments=1, discount=0.5, gae_lambda=0.4)
    state = on_policy.init(jax.random.key(0), config, learner, params)
    _, batch, metrics = on_policy.collect(state, config, learner, params)
    a, b, c = one_step
    episode = [a + 0.2 * (b + 0.2 * c), b + 0.2 * c, c]
    np.testing.assert_allclose(batch.advantage[:, 0], [*episode, *episode, a], rtol=1e-6)
    np.testing.assert_allclose(batch.target, batch.advantage + batch.value, rtol=1e-6)
    assert metrics["return"] == 6


def played(name, config, seed=0):
    """(learner, state, state after a rollout, batch, metrics) of a gymnax environment."""
    environment, params = gymnax.make(name)
    learner = on_policy.make_learner(environment, params)
    state = jax.jit(lambda key: on_policy.init(key, config, learner, params))(jax.random.key(seed))
    return learner, state, *jax.jit(lambda state: on_policy.collect(state, config, learner, params))(state)


def differentiate(loss, params, batch, config, learner):
    """(gradient, metrics) of a loss, as one program."""
    return jax.jit(lambda *data: jax.grad(loss, has_aux=True)(*data, config, learner))(params, batch)


def test_the_first_minibatch_of_ppo_is_a2c():
    """The ratio is 1, so that the gradient is that of A2C on the same, whitened, advantages."""
    config = ppo.PPOConfig(rollout=16, environments=4, entropy_coef=0.01)
    learner, state, _, batch, _ = played("CartPole-v1", config)
    part = jax.tree.map(lambda x: x[0], on_policy.shuffle(jax.random.key(1), batch, 2))

    @jax.jit
    def measure_ratios(params, part):
        outputs = on_policy.act(learner, params, part.observation)
        return jnp.exp(learner.spec.actions.log_prob(outputs, part.action) - part.log_prob)

    np.testing.assert_array_equal(measure_ratios(state.params, part), 1)
    grads, told = differentiate(ppo.loss, state.params, part, config, learner)
    whitened = part._replace(advantage=(part.advantage - part.advantage.mean()) / part.advantage.std())
    of_a2c, _ = differentiate(a2c.loss, state.params, whitened, config, learner)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), grads, of_a2c)
    assert told["kl"] == 0


def test_equal_advantages_and_single_steps_are_finite():
    """A minibatch of one, and of equal advantages, teaches the policy nothing and is no nan."""
    config = ppo.PPOConfig(rollout=4, environments=1, minibatches=4)
    learner, state, _, batch, _ = played("CartPole-v1", config)
    one = jax.tree.map(lambda x: np.asarray(x)[0, :1], batch)
    equal = jax.tree.map(lambda x: np.asarray(x)[:, 0], batch)._replace(advantage=jnp.full(4, 3.0))
    for part in (one, equal):
        grads, _ = differentiate(ppo.loss, state.params, part, config, learner)
        assert not any(x.any() for x in jax.tree.leaves(grads["actor"]))
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_statistics_are_of_elements_and_hold_from_the_first_observation():
    """They do not depend on how elements are batched, are of one element's shape, and the first observation is normalised."""
    data = np.random.default_rng(0).normal([3.0, -1.0], [2.0, 0.1], (6, 5, 2)).astype(np.float32)
    whole = add_batch(begin_statistics((2,)), jnp.asarray(data))
    parts = begin_statistics((2,))
    for part in data:
        parts = add_batch(parts, jnp.asarray(part))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), whole, parts)
    every = np.concatenate([data.reshape(-1, 2), np.zeros((1, 2))])
    np.testing.assert_allclose(whole.mean, every.mean(0), rtol=1e-4)

    config = ppo.PPOConfig(environments=4, rollout=4, normalize_observations=True)
    _, state, after, batch, _ = played("CartPole-v1", config)
    assert state.statistics.mean.shape == (4,)
    first = standardize(state.statistics, state.place.observation)
    np.testing.assert_allclose(batch.observation[0], first, rtol=1e-6)
    assert after.statistics.count == 1 + 4 + 16


def test_rewards_are_divided_by_the_deviation_of_returns():
    """Seen in targets of one step, r + γV(s′): what scaling takes from them is (1 − 1/σ) r."""
    config = ppo.PPOConfig(environments=2, rollout=8, normalize_rewards=True, gae_lambda=0.0)
    _, _, after, scaled, _ = played("Pendulum-v1", config)
    *_, plain, metrics = played("Pendulum-v1", config.replace(normalize_rewards=False))
    deviation = np.sqrt(after.return_statistics.variance)
    assert deviation > 2
    taken = (plain.target - scaled.target).mean()
    np.testing.assert_allclose(taken, (1 - 1 / deviation) * metrics["reward"], rtol=1e-4)


def test_a_clipped_action_keeps_the_log_prob_of_the_drawn_one():
    """The environment is given −2..2; the action that is learnt from lies where it was drawn."""
    environment, params = gymnax.make("Pendulum-v1")
    actions = env.describe(environment, params).actions
    outputs = jnp.array([[0.0, 1.0]])
    drawn = jnp.array([[3.0]])
    np.testing.assert_array_equal(actions.to_environment(drawn), [[2.0]])
    expected = -0.5 * (3 / np.e) ** 2 - 1 - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(actions.log_prob(outputs, drawn), [expected], rtol=1e-6)


@pytest.mark.parametrize("baseline", slow_but([True, False], 1))
def test_mean_gradient_of_reinforce_is_the_exact_policy_gradient(baseline):
    """Of whole episodes, an episode's worth a time: no bias by their lengths, whatever the baseline is."""
    environment, params = as_environment(WORLD, one_hot=True, max_steps=60)
    learner = on_policy.Learner(env.describe(environment, params), Table(2), Table(1, start=2.0))
    config = reinforce.ReinforceConfig(
        discount=1.0, value_coef=0.0, rollout=90, environments=64, baseline=baseline
    )

    def once(key):
        state = on_policy.init(key, config, learner, params)
        _, batch, _ = on_policy.collect(state, config, learner, params, on_policy.monte_carlo)
        whole = reinforce.choose_whole_episodes(batch.done, 60)
        grads, _ = jax.grad(reinforce.loss, has_aux=True)(state.params, batch, whole, config, learner)
        return -grads["actor"]["table"] * whole.sum() / (batch.done & whole).sum()

    gradients = np.asarray(jax.jit(jax.vmap(once))(jax.random.split(jax.random.key(0), 400)))
    assert deviations(gradients).max() < 4


def test_whole_episodes_are_those_that_began_early_enough():
    done = jnp.array([0, 1, 0, 0, 1, 0], bool)[:, None]
    np.testing.assert_array_equal(reinforce.choose_whole_episodes(done, 4)[:, 0], [1, 1, 1, 1, 1, 0])
    np.testing.assert_array_equal(reinforce.choose_whole_episodes(done, 5)[:, 0], [1, 1, 0, 0, 0, 0])


def test_trpo_stays_within_its_region_and_a_refused_step_leaves_the_bits():
    config = trpo.TRPOConfig(rollout=32, environments=4, trust_region=0.02)
    learner, state, _, batch, _ = played("CartPole-v1", config)
    actor = state.params["actor"]
    improve = jax.jit(lambda batch: trpo.improve(actor, batch, config, learner))
    new, info = improve(batch)

    @jax.jit
    def measure_kl(actor, batch):
        outputs = on_policy.act(learner, {"actor": actor}, batch.observation)
        return learner.spec.actions.kl(batch.outputs, outputs).mean()

    kl = measure_kl(new, batch)
    assert info.accepted
    assert 0.002 < kl <= 0.02 * (1 + 1e-4)
    same, refused = improve(batch._replace(advantage=jnp.ones_like(batch.advantage)))
    assert not refused.accepted
    jax.tree.map(np.testing.assert_array_equal, same, actor)


def test_the_price_of_divergence_follows_its_rule():
    environment, params = gymnax.make("CartPole-v1")
    agent = ppo_kl.make(environment, params)
    fixed = ppo_kl.PPOKLConfig(rollout=8, environments=4, epochs=2, kl_coef=0.5)

    @jax.jit
    def twice(key, target):
        config = fixed.replace(kl_target=target)
        state, _ = agent.update(agent.init(key, config, params), config, params)
        return agent.update(state, config, params)

    for target, factor in ((1e-9, 2), (1e9, 0.5), (0.0, 1)):
        state, told = twice(jax.random.key(0), target)
        assert told["kl_coef"] == 0.5 * factor
        assert state.extra == 0.5 * factor**2
