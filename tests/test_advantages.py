"""Sequence-level advantages against NumPy over groups, and against brute force over subsets."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import advantages, reduce
from tests.selection import slow_but

rng = np.random.default_rng(0)
REWARDS = rng.normal(size=(3, 5)).astype(np.float32)
LENGTHS = rng.integers(1, 9, (3, 5))
GREEDY = rng.normal(size=3).astype(np.float32)


def by_group(function):
    return lambda rewards: np.stack([function(group) for group in rewards])


GROUPED = {
    "group_normalized": (
        advantages.group_normalized,
        by_group(lambda r: (r - r.mean()) / (r.std(ddof=1) + 1e-4)),
    ),
    "centered": (advantages.centered, by_group(lambda r: r - r.mean())),
    "leave_one_out": (
        advantages.leave_one_out,
        by_group(lambda r: [r[i] - np.delete(r, i).mean() for i in range(5)]),
    ),
    "remax": (lambda r: advantages.remax(r, GREEDY), lambda r: r - GREEDY[:, None]),
    "opo": (
        lambda r: advantages.opo(r, LENGTHS),
        lambda r: r - (LENGTHS * r).sum(1, keepdims=True) / LENGTHS.sum(1, keepdims=True),
    ),
}


@pytest.mark.parametrize("ours, expected", GROUPED.values(), ids=GROUPED)
def test_groups(ours, expected):
    np.testing.assert_allclose(ours(REWARDS), expected(REWARDS), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(ours)(REWARDS), expected(REWARDS), rtol=1e-5, atol=1e-6)


def subset_advantage(rewards, k, i):
    others = [j for j in range(len(rewards)) if j != i]
    with_i = [max(rewards[i], *rewards[list(s)], -np.inf) for s in itertools.combinations(others, k - 1)]
    without = [max(rewards[list(s)]) for s in itertools.combinations(others, k)]
    return k * (np.mean(with_i) - np.mean(without))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["distinct", "ties"])
def test_pass_at_k_by_brute_force(k, kind):
    rewards = REWARDS if kind == "distinct" else (REWARDS > 0.2).astype(np.float32)
    expected = [[subset_advantage(group, k, i) for i in range(5)] for group in rewards]
    np.testing.assert_allclose(advantages.pass_at_k(rewards, k=k), expected, rtol=1e-4, atol=1e-5)


def test_pass_at_1_is_leave_one_out():
    np.testing.assert_allclose(
        advantages.pass_at_k(REWARDS, k=1), advantages.leave_one_out(REWARDS), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("reward", [0.0, 0.7, -1.1, 1e6, 1e-6])
@pytest.mark.parametrize("n", slow_but([2, 8, 33], [8]))
def test_a_group_without_information_gets_exactly_zero(reward, n):
    """0.7 in float32 has a computed deviation that an eps of 1e-9 turns into an advantage of 0.9."""
    equal = np.full((1, n), reward, np.float32)
    for estimate in (
        lambda r: advantages.group_normalized(r, eps=1e-9),
        advantages.centered,
        advantages.leave_one_out,
        advantages.batch_normalized,
        advantages.mean_normalized,
        lambda r: advantages.opo(r, np.arange(1, n + 1)[None]),
        lambda r: advantages.pass_at_k(r, k=n - 1),
        lambda r: reduce.whiten(r, eps=1e-30),
        lambda r: advantages.normalize_then_sum(jnp.stack([r, r]), jnp.ones(2)),
        lambda r: advantages.reinforce_plus_plus_baseline(r, np.ones((1, n, 2))),
    ):
        assert (np.asarray(jax.jit(estimate)(equal)) == 0).all()
    assert advantages.informative_fraction(equal) == 0


@pytest.mark.parametrize(
    "estimate",
    slow_but(
        [
            advantages.group_normalized,
            advantages.centered,
            advantages.leave_one_out,
            lambda rewards: advantages.normalize_then_sum(rewards[None], np.ones(1)),
        ],
        2,
    ),
    ids=["group_normalized", "centered", "leave_one_out", "normalize_then_sum"],
)
def test_equal_rewards_have_a_gradient_of_zero(estimate):
    """Learned rewards are differentiated too: the root of a variance of 0 must not reach them as nan."""
    gradient = jax.grad(lambda rewards: estimate(rewards).sum())(jnp.full((2, 4), 0.7))
    assert (np.asarray(gradient) == 0).all()


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_not_finite_is_seen(broken):
    """Not taken for a group without information; the other groups are as they were."""
    rewards = np.array([[0.0, broken], [0.0, 1.0]], np.float32)
    for estimate in (advantages.group_normalized, advantages.centered, advantages.leave_one_out):
        result = np.asarray(estimate(rewards))
        assert not np.isfinite(result[0]).all()
        np.testing.assert_array_equal(result[1], estimate(rewards[1:])[0])
    assert not np.isfinite(reduce.whiten(rewards)).all()


@pytest.mark.slow
def test_leading_axes_are_free():
    objectives = np.stack([REWARDS, REWARDS[::-1]])
    weights, mask = np.array([0.3, 0.7]), np.array(rng.random((3, 5, 4)) < 0.7)
    np.testing.assert_allclose(
        advantages.normalize_then_sum(objectives[:, None], weights)[0],
        advantages.normalize_then_sum(objectives, weights),
        rtol=1e-5,
    )
    kl = rng.normal(size=(3, 5, 4))
    flat = advantages.reinforce_plus_plus(
        REWARDS.ravel(), kl.reshape(15, 4), mask.reshape(15, 4), kl_coef=0.1
    )
    np.testing.assert_allclose(
        advantages.reinforce_plus_plus(REWARDS, kl, mask, kl_coef=0.1).reshape(15, 4),
        flat,
        rtol=1e-4,
        atol=1e-6,
    )


TUNED = {
    "group_normalized": lambda x: advantages.group_normalized(REWARDS, eps=x),
    "normalize_then_sum": lambda x: advantages.normalize_then_sum(
        np.stack([REWARDS, 2 * REWARDS]), np.ones(2), eps=x
    ),
    "whiten": lambda x: reduce.whiten(REWARDS, eps=x),
    "reinforce_plus_plus kl_coef": lambda x: advantages.reinforce_plus_plus(
        REWARDS[:, 0], REWARDS, np.ones((3, 5)), kl_coef=x
    ),
    "reinforce_plus_plus discount": lambda x: advantages.reinforce_plus_plus(
        REWARDS[:, 0], REWARDS, np.ones((3, 5)), kl_coef=0.1, discount=x
    ),
    "overlong max_length": lambda x: advantages.overlong_penalty(LENGTHS, max_length=10 * x, buffer=3.0),
    "overlong buffer": lambda x: advantages.overlong_penalty(LENGTHS, max_length=8.0, buffer=4 * x),
}


@pytest.mark.parametrize("call", slow_but(TUNED.values(), 3), ids=TUNED)
def test_hyper_parameters_are_traced_mapped_and_of_one_shape(call):
    pair = jnp.array([0.5, 0.75])
    both = jax.jit(jax.vmap(call))(pair)
    for i in range(2):
        np.testing.assert_allclose(both[i], call(float(pair[i])), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"has shape \(4, 1, 1, 1\)"):
        call(np.full((4, 1, 1, 1), 0.5))


def test_rounding_is_no_information():
    """The same reward added up in two orders: one unit in the last place apart."""
    rewards = np.array([[np.float32(0.1) + np.float32(0.2) + np.float32(0.3), 0.6]], np.float32)
    rewards[0, 1] = np.nextafter(rewards[0, 0], np.float32(1))
    assert rewards[0, 0] != rewards[0, 1]
    assert (advantages.group_normalized(rewards, eps=0.0) == 0).all()


def test_small_differences_are_information():
    rewards = np.array([[1.0, 1.0 + 1e-5]], np.float32)
    np.testing.assert_allclose(
        advantages.group_normalized(rewards, eps=0.0), [[-(0.5**0.5), 0.5**0.5]], rtol=1e-3
    )


def test_informative_fraction():
    rewards = np.stack([REWARDS[0], np.full(5, 0.7, np.float32), REWARDS[1], REWARDS[2]])
    assert advantages.informative_fraction(rewards) == 0.75


def test_no_groups():
    assert advantages.informative_fraction(np.ones((0, 4))) == 0
    assert advantages.group_normalized(np.ones((0, 4))).shape == (0, 4)


def test_gdpo_gives_each_objective_its_weight():
    """An objective a thousand times larger counts no more."""
    objectives = np.stack([REWARDS, REWARDS[::-1]])
    weights = np.array([0.3, 0.7])
    small = advantages.normalize_then_sum(objectives, weights, eps=0.0)
    large = advantages.normalize_then_sum(
        objectives * np.array([1000.0, 1.0])[:, None, None], weights, eps=0.0
    )
    np.testing.assert_allclose(small, large, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose([np.mean(small), np.std(small, ddof=1)], [0, 1], atol=1e-5)
    normalized = [(o - o.mean(1, keepdims=True)) / o.std(1, ddof=1, keepdims=True) for o in objectives]
    total = 0.3 * normalized[0] + 0.7 * normalized[1]
    np.testing.assert_allclose(small, (total - total.mean()) / total.std(ddof=1), rtol=1e-4, atol=1e-5)


def test_normalize_then_sum_leaves_out_what_does_not_apply():
    """As TRL: a loop over groups, with nan for an objective that says nothing of a completion."""
    objectives = np.stack([REWARDS, REWARDS[::-1] ** 2])
    objectives[0, 1, 2] = objectives[1, 0, 0] = np.nan
    objectives[:, 2, 3] = np.nan
    total = np.zeros_like(REWARDS)
    for weight, objective in zip((0.3, 0.7), objectives, strict=True):
        for g, group in enumerate(objective):
            scaled = (group - np.nanmean(group)) / (np.nanstd(group, ddof=1) + 1e-4)
            total[g] += weight * np.nan_to_num(scaled)
    total[2, 3] = np.nan
    expected = np.nan_to_num((total - np.nanmean(total)) / (np.nanstd(total, ddof=1) + 1e-4))
    found = advantages.normalize_then_sum(objectives, np.array([0.3, 0.7]))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert found[2, 3] == 0


def test_the_batch_gives_the_scale():
    found = advantages.batch_normalized(REWARDS, eps=1e-4)
    expected = (REWARDS - REWARDS.mean(1, keepdims=True)) / (REWARDS.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_mean_normalized_is_the_gradient_of_the_truncated_log_likelihood():
    """By enumeration of all outcomes of n coins: d/dp of −Σ_{k<n} (1−p)^k / k, which tends to log p."""
    n, p = 4, 0.3
    outcomes = np.array(list(itertools.product([0.0, 1.0], repeat=n)))
    chances = np.prod(np.where(outcomes == 1, p, 1 - p), 1)
    scores = np.where(outcomes == 1, 1 / p, -1 / (1 - p))  # d/dp log π
    gradient = (chances[:, None] * np.asarray(advantages.mean_normalized(outcomes)) * scores).sum() / n
    np.testing.assert_allclose(gradient, sum((1 - p) ** (k - 1) for k in range(1, n)), rtol=1e-5)


MASK = np.array([[1, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)


def test_reinforce_plus_plus_by_a_loop():
    rewards, kl = rng.normal(size=3), rng.normal(size=(3, 4))
    expected = np.zeros((3, 4))
    for i in range(3):
        exist = np.flatnonzero(MASK[i])
        ahead = 0.0
        for t in exist[::-1]:
            ahead = -0.1 * kl[i, t] + (rewards[i] if t == exist[-1] else 0) + 0.9 * ahead
            expected[i, t] = ahead
    tokens = expected[MASK]
    expected = np.where(MASK, (expected - tokens.mean()) / tokens.std(), 0)
    planted = np.where(MASK, kl, np.nan)
    result = advantages.reinforce_plus_plus(rewards, planted, MASK, kl_coef=0.1, discount=0.9)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_reinforce_plus_plus_baseline():
    mask = rng.random((3, 5, 4)) < 0.7
    tokens = np.where(mask, (REWARDS - REWARDS.mean(1, keepdims=True))[..., None], np.nan)
    expected = (tokens - np.nanmean(tokens)) / np.nanstd(tokens)
    result = np.asarray(advantages.reinforce_plus_plus_baseline(REWARDS, mask))
    np.testing.assert_allclose(result[mask], expected[mask], rtol=1e-4, atol=1e-5)
    assert (result[~mask] == 0).all()


@pytest.mark.parametrize("length, penalty", [(10, 0), (80, 0), (90, -0.5), (100, -1), (150, -1)])
def test_overlong_penalty(length, penalty):
    result = advantages.overlong_penalty(jnp.asarray(length), max_length=100, buffer=20)
    np.testing.assert_allclose(result, penalty)
    hard = advantages.overlong_penalty(jnp.asarray(length), max_length=100, buffer=0)
    assert hard == (-1 if length > 100 else 0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: advantages.group_normalized(REWARDS[:, :1]), "two|2 or more"),
        (lambda: advantages.leave_one_out(np.float32(1)), "2 or more"),
        (lambda: advantages.pass_at_k(REWARDS, k=5), "k is 5 in groups of 5"),
        (lambda: advantages.pass_at_k(REWARDS, k=0), "k is 0"),
        (lambda: advantages.remax(np.ones((3, 4)), np.ones((3, 1))), "greedy_rewards has shape"),
        (lambda: advantages.opo(np.ones((3, 4)), np.ones(4)), "lengths has shape"),
        (lambda: advantages.normalize_then_sum(np.ones((2, 3, 4)), np.ones(1)), "weights has shape"),
        (
            lambda: advantages.reinforce_plus_plus(np.ones(1), np.ones((4, 5)), np.ones((4, 5)), kl_coef=0.1),
            "rewards has shape",
        ),
        (
            lambda: advantages.reinforce_plus_plus_baseline(np.ones((2, 4)), np.ones((2, 3, 5))),
            "rewards has shape",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "estimator",
    [
        advantages.group_normalized,
        advantages.centered,
        advantages.batch_normalized,
        advantages.mean_normalized,
        advantages.leave_one_out,
        lambda r, mask=None: advantages.opo(r, jnp.arange(1.0, 1 + r.size).reshape(r.shape), mask),
    ],
)
def test_a_masked_completion_is_as_if_it_were_not_there(estimator):
    rewards = jnp.array([[0.2, 0.9, 0.4, 7.0]])
    mask = jnp.array([[True, True, True, False]])
    ours = estimator(rewards.at[0, 3].set(jnp.nan), mask)
    np.testing.assert_allclose(ours[0, :3], estimator(rewards[:, :3])[0], rtol=1e-6)
    assert ours[0, 3] == 0
    np.testing.assert_array_equal(estimator(rewards, jnp.array([[True, False, False, False]])), 0)


def test_the_best_of_a_masked_group_is_unknown():
    rewards, mask = (
        jnp.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]),
        jnp.array([[True] * 3, [True, True, False]]),
    )
    ours = advantages.pass_at_k(rewards, mask, k=2)
    np.testing.assert_array_equal(ours[0], advantages.pass_at_k(rewards[0], k=2))
    np.testing.assert_array_equal(ours[1], 0)
