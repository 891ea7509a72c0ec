"""Each algorithm of the shop window against its formula, on a frozen rollout; dynamic sampling; curricula."""

import pathlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import advantages, losses, reduce, tasks
from jaxrl4lm.arguments import last_token
from jaxrl4lm.lm import algorithms, curriculum, reinforcement
from jaxrl4lm.lm.algorithms import ALGORITHMS
from jaxrl4lm.lm.pool import begin_pool, keep_informative
from tests.lm.frozen import (
    ENTROPY,
    LENGTHS,
    MASK,
    NEW,
    OLD,
    REF,
    REWARDS,
    ROLLOUT,
    SIZES,
    VALUES,
    B,
    G,
    N,
    T,
    Table,
    learn,
)
from tests.lm.test_reinforcement import CONFIG, INIT, POLICY, TASK, start
from tests.selection import slow_but

GROUPS = REWARDS.reshape(G, N)
COSTS = np.where(MASK, 0.1 * (OLD - REF), 0)


def configure(name, **changes):
    return ALGORITHMS[name].configure(truncation="terminal", kl_coef=0.1, value_coef=0.0, **SIZES | changes)


def assign(name, rewards=REWARDS, costs=COSTS, **changes):
    return give_credit(name, np.asarray(rewards), np.asarray(costs), configure(name, **changes))


@partial(jax.jit, static_argnums=0)
def give_credit(name, rewards, costs, config):
    spread = jnp.where(last_token(MASK), rewards[:, None], 0.0)
    return ALGORITHMS[name].credit(spread, costs, ROLLOUT, config)


# ── credit ───────────────────────────────────────────────────────────────────────────────────────────────


def go(x):
    return np.cumsum((x * MASK)[:, ::-1], 1)[:, ::-1] * MASK


def whiten(x):
    return (x - x[MASK].mean()) / x[MASK].std() * MASK


def each(relative):
    """One value a completion on each of its tokens, less what its KL costs beside the rest of its group."""
    totals = COSTS.sum(1).reshape(G, N)
    others = (totals.sum(1, keepdims=True) - totals) / (N - 1)
    return (relative - (totals - others)).reshape(B, 1) * MASK


LAST = np.arange(T) == LENGTHS[:, None] - 1
NET = np.where(LAST, REWARDS[:, None], 0) - COSTS
LONG = GROUPS - np.maximum(LENGTHS - (T - 2), 0).reshape(G, N) / 2
BY_HAND = {
    "a2c": go(NET) - VALUES * MASK,
    "a2c_one_step": (NET + np.pad(VALUES[:, 1:], ((0, 0), (0, 1))) * ~LAST - VALUES) * MASK,
    "reinforce++": whiten(go(NET)),
    "reinforce++_baseline": whiten((GROUPS - GROUPS.mean(1, keepdims=True)).reshape(B, 1) * MASK)
    + each(np.zeros((G, N))),
    "remax": ((GROUPS - np.array([[0.3], [0.6]])).reshape(B, 1) - go(COSTS)) * MASK,
    "rloo": each(GROUPS - (GROUPS.sum(1, keepdims=True) - GROUPS) / (N - 1)),
    "opo": each(GROUPS - ((GROUPS * LENGTHS.reshape(G, N)).sum(1) / LENGTHS.reshape(G, N).sum(1))[:, None]),
    "gpg": each(GROUPS - GROUPS.mean(1, keepdims=True)),
    "maxrl": each(GROUPS / GROUPS.mean(1, keepdims=True) - 1),
    "pass_at_k": each(np.asarray(advantages.pass_at_k(GROUPS, k=2))),
    "dapo": each((LONG - LONG.mean(1, keepdims=True)) / (LONG.std(1, ddof=1, keepdims=True) + 1e-4)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_credit(name):
    found = assign(name, overlong_buffer=2.0).advantages
    np.testing.assert_allclose(found, BY_HAND[name], rtol=1e-4, atol=1e-5)


def test_groups_without_information_do_not_count_in_gpg():
    rewards = np.concatenate([REWARDS[:N], np.full(N, 0.7)])
    found = assign("gpg", rewards, 0 * COSTS).advantages
    expected = 2 * (rewards[:N] - rewards[:N].mean())[:, None] * MASK[:N]  # one group of two says anything
    np.testing.assert_allclose(found, np.concatenate([expected, 0 * expected]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - {"a2c", "a2c_one_step", "remax"}))
def test_what_the_task_does_not_tell_apart_teaches_nothing_whatever_the_price(name):
    """The critic's errors and the rounding of a KL are not blown up; a true KL stays, in its own unit."""
    equal, noise = np.full(B, 0.7), 1e-7 * COSTS
    assert (np.asarray(assign(name, equal, 0 * COSTS).advantages) == 0).all()
    assert np.abs(assign(name, equal, noise).advantages).max() < 1e-6
    left = np.abs(assign(name, equal).advantages).max()
    assert 1e-3 < left < 2 * np.abs(go(COSTS)).max()


def test_binary_divergences_are_those_of_two_outcomes():
    p, q = np.exp(OLD), np.exp(NEW)
    np.testing.assert_allclose(losses.binary_tv(NEW, OLD), np.abs(p - q), rtol=1e-5, atol=1e-6)
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    np.testing.assert_allclose(losses.binary_kl(NEW, OLD), kl, rtol=1e-3, atol=1e-6)


# ── surrogate, level, weights, reduction ─────────────────────────────────────────────────────────────────

SMALL = {"clip_eps": 3e-4, "clip_eps_high": 4e-4}
FORMULAS = {
    "ppo": lambda lp, a: reduce.token_mean(losses.ppo_clip(lp, OLD, a, mask=MASK), MASK),
    "ppo_penalty": lambda lp, a: reduce.token_mean(
        losses.ppo_kl_penalty(lp, OLD, a, beta=0.1, mask=MASK), MASK
    ),
    "a2c": lambda lp, a: reduce.token_mean(losses.reinforce(lp, a) - 0.01 * ENTROPY, MASK),
    "trpo": lambda lp, a: reduce.token_mean(losses.trpo.surrogate(lp, OLD, a), MASK),
    "reinforce": lambda lp, a: reduce.sequence_sum(losses.reinforce(lp, a), MASK),
    "reinforce++_baseline": lambda lp, a: reduce.token_mean(
        losses.ppo_clip(lp, OLD, a) + 0.1 * losses.kl.k2(lp, REF), MASK
    ),
    "gpg": lambda lp, a: reduce.token_mean(losses.reinforce(lp, a), MASK),
    "maxrl": lambda lp, a: reduce.sequence_mean(losses.reinforce(lp, a), MASK),
    "gspo": lambda lp, a: reduce.sequence_mean(losses.gspo(lp, OLD, a, **SMALL, mask=MASK), MASK),
    "gspo_token": lambda lp, a: reduce.sequence_mean(losses.gspo_token(lp, OLD, a, **SMALL, mask=MASK), MASK),
    "gmpo": lambda lp, a: reduce.sequence_mean(losses.gmpo(lp, OLD, a, clip_eps=0.4, mask=MASK), MASK),
    "dppo": lambda lp, a: reduce.token_mean(losses.dppo(lp, OLD, a, threshold=0.2, mask=MASK), MASK),
}


@pytest.mark.parametrize("name", slow_but(FORMULAS, ["ppo_penalty", "gspo_token"]))
def test_loss_and_gradient_are_those_of_the_formula(name):
    costs = COSTS if ALGORITHMS[name].kl.reward else 0 * COSTS
    weights = assign(name, costs=costs).advantages
    loss, gradient, _, _ = learn(ALGORITHMS[name], configure(name))
    expected = jax.jit(jax.value_and_grad(FORMULAS[name]))(NEW, weights)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-4, atol=1e-6)
    assert np.abs(gradient).max() > 1e-4


def test_trust_region_takes_the_natural_gradient():
    """Of free log-probabilities the Fisher matrix is diagonal: 1 over the number of tokens."""
    config = configure("trpo")
    learner = reinforcement.Learner(Table(), algorithms.TRPO._replace(kl=algorithms.KL()))  # pyright: ignore[reportArgumentType]
    params = {k: jnp.asarray(x) for k, x in (("log_probs", OLD), ("entropies", ENTROPY), ("values", VALUES))}
    state = reinforcement.init(jax.random.key(0), config, learner, params)
    update = jax.jit(lambda s: reinforcement.learn(s, ROLLOUT, jnp.asarray(REWARDS), config, learner))
    after, metrics = update(state)
    tokens = MASK.sum()
    gradient = -np.asarray(assign("trpo", costs=0 * COSTS).advantages) / tokens
    natural = gradient / (1 / tokens + 0.1)
    length = np.sqrt(2 * 0.01 / (gradient * natural).sum()) * metrics["step/fraction"]
    np.testing.assert_allclose(after.params["log_probs"], OLD - length * natural, rtol=1e-4, atol=1e-5)
    assert 0 < metrics["step/kl"] <= 0.01


@pytest.mark.slow  # fifteen updates; one of another policy is above
def test_trust_region_steps_through_the_transformer():
    """Fisher-vector products pass its layers; every step lowers the loss within the region, and the reward rises."""
    config = CONFIG.replace(epochs=1, minibatches=1, trust_region=0.05, prompts_per_update=16)
    learner = reinforcement.Learner(POLICY, algorithms.TRPO)
    state = start(config, algorithms.TRPO)
    _, metrics = jax.jit(lambda s: reinforcement.run(s, config, learner, TASK, 15))(state)
    assert (metrics["step/kl"] <= 0.05).all()
    assert (metrics["step/fraction"] > 0).mean() > 0.8
    assert metrics["reward/mean"][-3:].mean() > metrics["reward/mean"][:3].mean() + 0.1


def test_the_older_policy_chooses_the_vocabulary_while_drawing_and_while_learning():
    config = CONFIG.replace(mask_top_p=0.3, mask_interval=2, learning_rate=1e-1, epochs=1, minibatches=1)
    learner = reinforcement.Learner(POLICY, algorithms.NLPO)
    params = jax.tree.map(lambda x: 3 * np.asarray(x), INIT(jax.random.key(7)))
    state = jax.jit(lambda p: reinforcement.init(jax.random.key(0), config, learner, p))(params)
    prompts = jax.jit(lambda key: TASK.sample(key, config.prompts_per_update))(jax.random.key(3))
    apply = jax.jit(POLICY.apply)
    draw = jax.jit(lambda s: reinforcement.sample(s, prompts.tokens, prompts.mask, config, learner))
    step = jax.jit(lambda s, t: reinforcement.learn(s, t, t.completions[:, 0] % 2, config, learner))
    for update in range(2):
        drawn = draw(state)
        text = np.concatenate([np.repeat(prompts.tokens, config.completions, 0), drawn.completions], 1)
        mask = np.concatenate([np.repeat(prompts.mask, config.completions, 0), drawn.mask], 1)
        logits = np.asarray(apply(params, text, mask)[0])[:, prompts.tokens.shape[1] - 1 : -1]
        log_probs = np.asarray(jax.nn.log_softmax(logits))
        chances = np.sort(np.exp(log_probs), -1)[..., ::-1]
        least = np.take_along_axis(chances, (chances.cumsum(-1) < 0.3).sum(-1)[..., None], -1)[..., 0]
        chosen = np.take_along_axis(np.exp(log_probs), np.asarray(drawn.completions)[..., None], -1)[..., 0]
        assert (chosen >= least - 1e-5)[np.asarray(drawn.mask)].all()
        state, metrics = step(state, drawn)
        np.testing.assert_allclose(metrics["policy/ratio_max"], 1, atol=1e-4)
        same = [
            np.array_equal(a, b)
            for a, b in zip(*map(jax.tree.leaves, (state.mask_params, params)), strict=True)
        ]
        assert all(same) == (update == 0)  # after two updates it is the policy again


@pytest.mark.slow
def test_prices_move_as_their_controllers_say():
    """The penalty doubles where the policy moved too far; the price of entropy falls where there is more than wanted."""
    algorithm = ALGORITHMS["ppo_penalty"]._replace(entropy_price=algorithms.adapt_entropy_price)
    config = configure("ppo_penalty", entropy_coef=0.1, entropy_target=ENTROPY[MASK].mean() - 0.1)
    _, _, state, metrics = learn(algorithm, config)
    np.testing.assert_allclose(state.entropy_coef, 0.1 - 0.005, rtol=1e-5)
    assert state.kl_coef == metrics["kl/coef"] == 0.2
    assert metrics["kl/old"] > 1.5 * config.kl_target


# ── dynamic sampling ─────────────────────────────────────────────────────────────────────────────────────


def test_groups_that_say_something_fill_the_pool_in_the_order_they_came():
    def draw(scores):
        marked = ROLLOUT._replace(completions=jnp.asarray(scores)[:, None] * jnp.ones((1, T)))
        return begin_pool(marked, jnp.asarray(scores))

    equal, differing = np.full(N, 0.7), np.array([0.0, 1.0, 0.0, 0.0])
    first = draw(np.concatenate([equal, differing]).astype(np.float32))
    second = draw(np.concatenate([2 * differing, 3 * differing]).astype(np.float32))
    pool = jax.jit(keep_informative)(first, second)
    assert pool.informative.all()
    np.testing.assert_array_equal(pool.rewards, np.concatenate([differing, 2 * differing]))
    np.testing.assert_array_equal(pool.rollout.completions[:, 0], pool.rewards)
    assert pool.rounds == 2
    np.testing.assert_allclose(pool.reward_sum, first.reward_sum + second.reward_sum)
    short = keep_informative(first, first._replace(informative=jnp.zeros(G, bool)))
    np.testing.assert_array_equal(short.informative, [True, False])


def test_rounds_are_one_program_and_no_group_of_equal_scores_is_learned_from():
    def reward(prompts, completions, mask):
        """Every third problem is answered however one likes: its group says nothing."""
        easy = prompts.tokens.sum(-1) % 3 == 0
        return jnp.where(easy, 1.0, (completions[:, 0] % 2).astype(jnp.float32))

    traces = []
    task = tasks.Task(**{**TASK._asdict(), "reward": reward})
    learner = reinforcement.Learner(POLICY, ALGORITHMS["dapo"])
    config = CONFIG.replace(sampling_rounds=5, epochs=1, minibatches=1, completions=6)
    state = start(config, learner.algorithm)

    @jax.jit
    def run(state, hopeless):
        traces.append(1)
        chosen = task._replace(reward=lambda *data: jnp.where(hopeless, 1.0, reward(*data)))
        return reinforcement.run(state, config, learner, chosen, 4)

    after, metrics = run(state, False)
    _, without_hope = run(after, True)
    assert len(traces) == 1
    assert (metrics["group/learned"] == 1).all()
    assert metrics["group/rounds"].max() > 1
    assert (metrics["group/frac_zero_std"] == 0).all()
    # All that was drawn, not only what is learned from: the mean of the latter is near a half.
    assert metrics["reward/mean"].mean() > 0.55
    assert (without_hope["group/rounds"] == 5).all()
    assert (without_hope["group/learned"] == 0).all()
    assert (without_hope["policy/grad_norm"] == 0).all()


# ── curricula ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_record_remembers_what_each_prompt_proved():
    record = curriculum.empty_record(4)
    scores = jnp.array([[0.0, 1.0], [0.5, 0.5]])
    record = curriculum.remember(record, jnp.array([1, 3]), scores)
    record = curriculum.remember(record, jnp.array([1, 2]), jnp.array([[1.0, 1.0], [0.0, 0.0]]))
    np.testing.assert_allclose(record.seen, [0, 2, 1, 1])
    np.testing.assert_allclose(record.score, [0, 0.75, 0, 0.5])
    np.testing.assert_allclose(record.spread, [0, 0.25, 0, 0])
    least = curriculum.LEAST
    np.testing.assert_allclose(curriculum.prefer_informative(record), [1, 1, least, least], rtol=1e-6)
    hard = curriculum.prefer_hard(record)
    np.testing.assert_allclose(hard, [1, least, 1, least + (1 - least) / 3], rtol=1e-6)


def test_rows_are_drawn_without_return_and_by_weight():
    weights = jnp.array([1.0, 2.0, 0.0, 5.0])
    draw = jax.vmap(lambda key: curriculum.draw_rows(key, weights, 2))
    rows = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    assert (rows[:, 0] != rows[:, 1]).all()
    assert not (rows == 2).any()
    shares = np.bincount(rows[:, 0], minlength=4) / 4000
    np.testing.assert_allclose(shares, weights / 8, atol=0.03)


def test_the_page_has_a_row_for_each_algorithm_with_the_numbers_it_sets():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "algorithms.md").read_text()
    rows = dict(re.findall(r"(?m)^\| `([a-z0-9_+]+)` \|(.*)$", page))
    assert list(rows) == list(ALGORITHMS)
    for name, algorithm in ALGORITHMS.items():
        kl = rows[name].split("|")[3].strip()
        assert (kl == "none") == (not algorithm.kl.priced), name
        assert ("reward" in kl) == (algorithm.kl.reward is not None), name
