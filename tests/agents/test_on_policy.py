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
from jaxrl4lm.models import Perceptron
from tests.agents.probes import Table, all_continuous_probes
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


def sample_gradients(estimate, differentiate, config, max_steps, *, value=None):
    """Gradients of the logits `[rollouts, 3, 2]`, a whole episode's worth each.

    Args:
      differentiate: (networks, batch, config, learner) → that gradient of a rollout.
      value: of every state, by the critic; None: the exact one of the uniform policy.
    """
    environment, params = as_environment(WORLD, one_hot=True, max_steps=max_steps)
    learner = on_policy.Learner(env.describe(environment, params), Table(2), Table(1))
    values = jnp.asarray(M.policy_values(WORLD, jnp.asarray(UNIFORM)))[:, None].at[2].set(0)
    values = values if value is None else jnp.full((3, 1), value)

    def once(key):
        state = on_policy.init(key, config, learner, params)
        networks = {"actor": {"table": jnp.zeros((3, 2))}, "critic": {"table": values}}
        _, batch, _ = on_policy.collect(state._replace(params=networks), config, learner, params, estimate)
        return -differentiate(networks, batch, config, learner)["actor"]["table"]

    return np.asarray(jax.jit(jax.vmap(once))(jax.random.split(jax.random.key(0), 400)))


def weigh_states(grads, batch, counted):
    """A mean gradient of the steps that count, with each state as often as in a whole episode, wherever episodes are cut."""
    share = (batch.observation * counted[..., None]).sum((0, 1)) / counted.sum()
    visits = M.visitation(WORLD, jnp.asarray(UNIFORM))
    return jax.tree.map(lambda x: x * (visits / share.clip(1e-9))[:, None], grads)


def a2c_gradients(max_steps, estimate):
    """Those of A2C."""
    config = a2c.A2CConfig(discount=1.0, value_coef=0.0, rollout=24, environments=64, gae_lambda=0.9)

    def differentiate(networks, batch, config, learner):
        grads, _ = jax.grad(a2c.loss, has_aux=True)(networks, batch, config, learner)
        return weigh_states(grads, batch, jnp.ones_like(batch.done))

    return sample_gradients(estimate, differentiate, config, max_steps)


def reinforce_gradients(max_steps, estimate=on_policy.monte_carlo, *, baseline=True, value=None):
    """Those of REINFORCE. Where no episode is cut, by the number of whole ones: a choice of states would show."""
    sizes = {"rollout": max(24, max_steps * 3 // 2), "environments": 64, "baseline": baseline}
    config = reinforce.ReinforceConfig(discount=1.0, value_coef=0.0, **sizes)

    def differentiate(networks, batch, config, learner):
        whole = reinforce.choose_whole_episodes(batch.done, max_steps)
        grads, _ = jax.grad(reinforce.loss, has_aux=True)(networks, batch, whole, config, learner)
        if max_steps == 2:
            return weigh_states(grads, batch, whole)
        return jax.tree.map(lambda x: x * whole.sum() / (batch.done & whole).sum(), grads)

    return sample_gradients(estimate, differentiate, config, max_steps, value=value)


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


@pytest.mark.parametrize(
    "max_steps, settings",
    slow_but(
        [
            (60, {"value": 2.0}),
            (60, {"value": 2.0, "baseline": False}),
            (2, {}),
            (2, {"baseline": False}),
        ],
        1,
    ),
)
def test_mean_gradient_of_reinforce_is_the_exact_policy_gradient(max_steps, settings):
    """No bias by the lengths of episodes, whatever the baseline is; where they are cut, with the exact critic."""
    assert deviations(reinforce_gradients(max_steps, **settings)).max() < 4


DEATHS = [(a2c_gradients, on_policy.n_step(1)), (reinforce_gradients, on_policy.monte_carlo)]


@pytest.mark.parametrize("gradients, estimate", slow_but(DEATHS, 1))
def test_truncation_as_death_would_be_found(gradients, estimate):
    assert deviations(gradients(2, _die(estimate))).max() > 8


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
    place, third = env.begin(jax.random.key(0), learner.spec, params, 1), np.arange(1, 8) % 3 == 0
    stand = lambda key, seen: (jnp.zeros(1, jnp.int32), ())  # noqa: E731
    _, steps = env.roll_out(jax.random.key(0), learner.spec, params, place, stand, 7)
    np.testing.assert_array_equal(steps.terminated[:, 0], third & (end == 3))
    np.testing.assert_array_equal(steps.truncated[:, 0], third & (end != 3))  # an end wins over a limit
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
    learner, state, after, batch, _ = played("CartPole-v1", config)
    assert state.statistics.mean.shape == (4,)
    first = standardize(state.statistics, state.place.observation)
    np.testing.assert_allclose(batch.observation[0], first, rtol=1e-6)
    said = on_policy.act(
        learner, state.params, batch.observation
    )  # what was played by is what is learnt from
    np.testing.assert_allclose(batch.outputs, said, rtol=1e-4, atol=1e-6)
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
    """The environment is given −1..1, which its rewards show; the action that is learnt from lies where it was drawn, and its
    log-prob is that of the normal distribution there."""
    environment, worlds = all_continuous_probes()
    params = jax.tree.map(lambda x: x[4], worlds)
    config = a2c.A2CConfig(rollout=8, environments=4)
    learner = on_policy.make_learner(environment, params)
    state = on_policy.init(jax.random.key(0), config, learner, params)
    actor = jax.tree.map(jnp.zeros_like, state.params["actor"])
    actor["_Readout_0"]["constants"] += 1.0  # log σ: more than half of all actions are beyond the bounds
    state = state._replace(params=state.params | {"actor": actor})
    _, batch, metrics = jax.jit(lambda state: on_policy.collect(state, config, learner, params))(state)
    drawn = np.asarray(batch.action[..., 0])
    assert (np.abs(drawn) > 1).mean() > 0.5
    expected = -0.5 * (drawn / np.e) ** 2 - 1 - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(batch.log_prob, expected, rtol=1e-5)
    best = np.array([0.5, -0.5, 0])[batch.observation.argmax(-1)]
    earned = 1 - (np.clip(drawn, -1, 1) - best) ** 2
    np.testing.assert_allclose(metrics["reward"], earned.mean(), rtol=1e-5)


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


@pytest.mark.parametrize("name", slow_but(["CartPole-v1", "Pendulum-v1"], 1))
def test_the_direction_of_trpo_is_a_dense_solve(name):
    """(F + λI)⁻¹g by NumPy, F = E[Jᵀ M J], J the derivative of the outputs by all parameters, M the Fisher information of the
    distribution by its outputs; and the length √(2δ / xᵀ(F + λI)x), shortened by 0.8 so many times."""
    environment, params = gymnax.make(name)
    actions = env.describe(environment, params).actions
    actor = Perceptron(actions.outputs, widths=(3,), constants=actions.constants)
    learner = on_policy.make_learner(environment, params, actor, Perceptron(1, widths=(3,)))
    config = trpo.TRPOConfig(rollout=16, environments=4, cg_iterations=60, damping=0.1, trust_region=1e-3)
    state = on_policy.init(jax.random.key(0), config, learner, params)
    _, batch, _ = on_policy.collect(state, config, learner, params)
    old = state.params["actor"]
    new, info = jax.jit(lambda batch: trpo.improve(old, batch, config, learner))(batch)
    flat, unflatten = jax.flatten_util.ravel_pytree(old)

    def look(flat):
        outputs = on_policy.act(learner, {"actor": unflatten(flat)}, batch.observation)
        return outputs.reshape(-1, outputs.shape[-1]), actions.log_prob(outputs, batch.action).reshape(-1)

    outputs = np.asarray(batch.outputs, float).reshape(64, -1)
    slopes, scores = (np.asarray(x, float) for x in jax.jit(jax.jacobian(look))(flat))
    if actions.discrete:
        p = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
        metric = p[:, :, None] * np.eye(2) - p[:, :, None] * p[:, None]
    else:
        metric = np.stack([np.diag([np.exp(-2 * log_std), 2]) for _, log_std in outputs])
    fisher = np.einsum("bip,bij,bjq->pq", slopes, metric, slopes) / 64 + 0.1 * np.eye(len(flat))
    advantages = np.asarray(batch.advantage, float).reshape(-1)
    gradient = ((advantages - advantages.mean()) / advantages.std()) @ scores / 64
    natural = np.linalg.solve(fisher, gradient)
    moved = np.asarray(jax.flatten_util.ravel_pytree(new)[0] - flat)
    np.testing.assert_allclose(moved / np.linalg.norm(moved), natural / np.linalg.norm(natural), atol=1e-3)
    full = np.sqrt(2 * 1e-3 / (natural @ fisher @ natural)) * np.linalg.norm(natural)
    np.testing.assert_allclose(np.linalg.norm(moved), info.fraction * full, rtol=1e-3)
    steepest = gradient / np.linalg.norm(gradient)
    assert (
        np.abs(moved / np.linalg.norm(moved) - steepest).max() > 1e-2
    )  # another direction than the gradient's


@pytest.mark.slow
def test_every_update_of_trpo_stays_within_its_region():
    """By the KL of the distributions themselves, of twenty updates; where none is accepted the bits stay."""
    config = trpo.TRPOConfig(rollout=16, environments=2, trust_region=0.01, epochs=1)
    environment, params = gymnax.make("CartPole-v1")
    learner = on_policy.make_learner(environment, params)

    def once(state, _):
        _, batch, _ = on_policy.collect(
            state, config, learner, params
        )  # the same rollout as that of the update
        after, told = trpo.update(state, config, learner, params)
        outputs = on_policy.act(learner, after.params, batch.observation)
        kl = learner.spec.actions.kl(batch.outputs, outputs).mean()
        old, new = (jax.flatten_util.ravel_pytree(x.params["actor"])[0] for x in (state, after))
        return after, (told["accepted"], kl, (old == new).all())

    state = trpo.init(jax.random.key(0), config, learner, params)
    _, (accepted, kl, same) = jax.jit(lambda state: jax.lax.scan(once, state, length=20))(state)
    assert accepted.sum() > 10
    assert (kl <= 0.01 * (1 + 1e-4)).all()
    assert (kl[accepted > 0] > 1e-4).all()
    np.testing.assert_array_equal(same, accepted == 0)


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
