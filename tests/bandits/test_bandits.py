"""Bandit algorithms: steps by hand, NumPy loops, and the published curves within sampling error."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import bandits as B
from jaxrl4lm.bandits import arms
from tests.selection import slow_but

RUNS, STEPS = 2000, 1000


@functools.cache
def curves(name):
    """Means over runs, and the standard error of the last 100 steps' mean."""
    problem, algorithm = TESTBED[name][:2]
    history = jax.jit(lambda key: B.run(key, problem, algorithm, STEPS, RUNS))(jax.random.key(7))
    late = np.asarray(history.rewards[-100:].mean(axis=0)), np.asarray(history.optimal[-100:].mean(axis=0))
    return [(x.mean(), x.std() / np.sqrt(RUNS)) for x in late], float(history.regrets.sum(axis=0).mean())


NORMAL, RAISED, COINS, LINEAR = B.gaussian(), B.gaussian(mean=4.0), B.bernoulli(), B.linear()
# Problem, algorithm, average reward and share of optimal actions near step 1000, and how exactly they are
# known: the first six are read from figures 2.2 to 2.5 of Sutton & Barto 2018.
TESTBED = {
    "greedy": (NORMAL, B.epsilon_greedy(0.0), 1.03, 0.36, 0.03),
    "ε = 0.01": (NORMAL, B.epsilon_greedy(0.01), 1.30, 0.58, 0.05),
    "ε = 0.1": (NORMAL, B.epsilon_greedy(0.1), 1.36, 0.80, 0.03),
    "optimistic": (NORMAL, B.epsilon_greedy(0.0, step_size=0.1, initial_value=5.0), 1.48, 0.85, 0.03),
    "UCB, c = 2": (NORMAL, B.ucb(2.0), 1.48, 0.85, 0.04),
    "gradient, α = 0.1": (RAISED, B.gradient(0.1), 5.48, 0.85, 0.04),
    "gradient, no baseline": (RAISED, B.gradient(0.1, baseline=False), 5.15, 0.46, 0.08),
    "gradient, α = 0.4, no baseline": (RAISED, B.gradient(0.4, baseline=False), 4.9, 0.34, 0.1),
}


@pytest.mark.parametrize("name", slow_but(TESTBED, 1))
def test_the_testbed_of_sutton_and_barto(name):
    *_, reward, optimal, known = TESTBED[name]
    ((mean, error), (share, share_error)), _ = curves(name)
    assert abs(mean - reward) < known + 3 * error
    assert abs(share - optimal) < known + 3 * share_error


BETTER = {
    "Thompson, Gaussian": (NORMAL, B.thompson_gaussian(), 75),
    "softmax": (NORMAL, B.softmax(0.2), 180),
    "UCB1": (COINS, B.ucb(2**0.5), 140),
    "KL-UCB": (COINS, B.kl_ucb(), 45),
    "Thompson, Beta": (COINS, B.thompson_beta(), 35),
    "EXP3": (COINS, B.exp3(0.1), 220),
    "LinUCB": (LINEAR, B.lin_ucb(5, 1.0), 110),
}


@pytest.mark.parametrize("name", slow_but(BETTER, 1))
def test_regret_is_far_below_that_of_choosing_at_random(name):
    problem, algorithm, bound = BETTER[name]
    run = jax.jit(lambda key: B.run(key, problem, algorithm, STEPS, 200).regrets.sum(axis=0).mean())
    assert 0 < run(jax.random.key(0)) < bound
    wandering = B.epsilon_greedy(1.0)
    lost = jax.jit(lambda key: B.run(key, problem, wandering, STEPS, 200).regrets.sum(axis=0).mean())
    assert lost(jax.random.key(0)) > 1.8 * bound


ESTIMATES = B.algorithms.Estimates(jnp.array([[0.2], [0.9], [0.5]]), jnp.array([[4], [2], [0]]))


def test_sample_average_and_constant_step_by_hand():
    arms, rewards = jnp.array([1]), jnp.array([0.3])
    average = B.epsilon_greedy(0.1).update(ESTIMATES, arms, rewards, None)
    np.testing.assert_allclose(average.values[:, 0], [0.2, (2 * 0.9 + 0.3) / 3, 0.5])
    np.testing.assert_array_equal(average.counts[:, 0], [4, 3, 0])
    constant = B.epsilon_greedy(0.1, step_size=0.5).update(ESTIMATES, arms, rewards, None)
    np.testing.assert_allclose(constant.values[:, 0], [0.2, 0.6, 0.5])


def test_epsilon_greedy_explores_every_arm_equally():
    uniform = jnp.linspace(0, 1, 30_000, endpoint=False)
    many = jax.tree.map(lambda x: jnp.tile(x, (1, 30_000)), ESTIMATES)
    arms = B.epsilon_greedy(0.3).select(many, uniform, None)
    np.testing.assert_allclose(np.bincount(arms) / 30_000, [0.1, 0.8, 0.1], atol=1e-3)


@pytest.mark.parametrize(
    "algorithm, state, expected",
    [
        (B.softmax(0.5), ESTIMATES, np.exp([0.4, 1.8, 1.0])),
        (
            B.gradient(),
            B.algorithms.Preferences(jnp.log(jnp.array([[1.0], [2.0], [5.0]])), jnp.zeros(1), jnp.int32(0)),
            [1, 2, 5],
        ),
        (
            B.exp3(0.3),
            B.algorithms.Weights(jnp.log(jnp.array([[1.0], [2.0], [5.0]]))),
            0.7 * np.array([1, 2, 5]) / 8 + 0.1,
        ),
    ],
    ids=["softmax", "gradient", "exp3"],
)
def test_sampling_algorithms_choose_with_their_probabilities(algorithm, state, expected):
    uniform = jnp.linspace(0, 1, 20_000, endpoint=False)
    many = jax.tree.map(lambda x: jnp.tile(x, (1, 20_000)) if x.ndim == 2 else x, state)
    arms = algorithm.select(many, uniform, None)
    np.testing.assert_allclose(np.bincount(arms) / 20_000, expected / np.sum(expected), atol=1e-3)


def played(algorithm, arms, rewards, num_arms):
    """The state of one run after these choices."""
    state, update = algorithm.init(num_arms, 1), jax.jit(algorithm.update)
    for arm, reward in zip(arms, rewards, strict=True):
        state = update(state, jnp.array([arm]), jnp.array([reward], jnp.float32), None)
    return state


def test_ucb_by_hand():
    arms, rewards = [0, 0, 0, 0, 1, 1, 2], [0.4, 0.0, 0.1, 0.3, 0.8, 1.0, 0.5]
    for c in (0.1, 1.0, 2.0, 5.0):
        state = played(B.ucb(c), arms, rewards, 3)
        index = np.array([0.2, 0.9, 0.5]) + c * np.sqrt(np.log(8) / np.array([4, 2, 1]))
        assert B.ucb(c).select(state, None, None)[0] == np.argmax(index)
        np.testing.assert_allclose(state.widths[:, 0], np.array([4, 2, 1]) ** -0.5, rtol=1e-6)
    # √(ln t) (1 − √⅓) is 0.498, 0.536 and 0.566 for t = 4, 5 and 6: the choice after four takes t = 5.
    for gap, chosen in ((0.52, 1), (0.55, 0)):
        state = played(B.ucb(1.0), [0, 0, 0, 1], [1.0, 1.0, 1.0, 1 - gap], 2)
        assert B.ucb(1.0).select(state, None, None)[0] == chosen
    untried = played(B.ucb(0.0), arms[:-1], rewards[:-1], 3)
    assert B.ucb(0.0).select(untried, None, None)[0] == 2
    assert B.ucb(2.0).select(B.ucb(2.0).init(3, 1), None, None)[0] == 0


def test_kl_ucb_follows_the_exact_bounds():
    """Along whole runs, of rewards of 0, 1 and between, against bisection in float64."""
    algorithm, num_steps = B.kl_ucb(1.5), 150
    rewards = np.random.default_rng(0).choice([0.0, 0.3, 1.0], (num_steps, 4, 20), p=[0.5, 0.2, 0.3])

    def step(state, rewards):
        arm = algorithm.select(state, None, None)
        state = algorithm.update(state, arm, arms.take_arm(rewards, arm), None)
        return state, (state.estimates, state.bounds)

    _, (estimates, u) = jax.jit(lambda x: jax.lax.scan(step, algorithm.init(4, 20), x))(
        jnp.asarray(rewards, jnp.float32)
    )
    mean, counts = (np.asarray(x, float) for x in estimates)
    log = np.log(np.arange(1, num_steps + 1) + 1)[:, None, None]
    level = (log + 1.5 * np.log(np.maximum(log, 1))) / np.maximum(counts, 1)
    assert (np.isinf(u) == (counts == 0)).all()
    exact = exact_kl_upper_bound(mean, level)
    found = np.where(counts > 0, 1 - np.exp(-np.asarray(u, float)), exact)
    # ln t grows fast in the first steps.
    np.testing.assert_allclose(found[:5], exact[:5], atol=2e-3)
    np.testing.assert_allclose(found[5:], exact[5:], atol=2e-5)


def test_kl_upper_bound_equals_bisection():
    p, level = np.meshgrid(np.linspace(0, 1, 41), np.geomspace(1e-4, 8, 40))
    found = np.asarray(B.kl_upper_bound(jnp.asarray(p, jnp.float32), jnp.asarray(level, jnp.float32)), float)

    np.testing.assert_allclose(found, exact_kl_upper_bound(p, level), atol=2e-4)


def exact_kl_upper_bound(p, level):
    """By bisection."""

    def kl(p, q):
        q = np.clip(q, 1e-15, 1 - 1e-15)
        return np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / q), 0) + np.where(
            p < 1, (1 - p) * np.log(np.where(p < 1, 1 - p, 1) / (1 - q)), 0
        )

    low, high = p.copy(), np.ones_like(p)
    for _ in range(60):
        middle = (low + high) / 2
        inside = kl(p, middle) <= level
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return low


def test_gradient_bandit_follows_the_gradient_of_expected_reward():
    """With rewards equal to their means and a zero baseline, the expected step is α ∂E[r]/∂H."""
    means, preferences = jnp.array([0.3, -1.0, 2.0]), jnp.array([0.1, 0.5, -0.2])
    policy = jax.nn.softmax(preferences)
    state = B.algorithms.Preferences(jnp.tile(preferences[:, None], (1, 3)), jnp.zeros(3), jnp.int32(0))
    after = B.gradient(1.0, baseline=False).update(state, jnp.arange(3), means, None)
    expected = ((after.preferences - state.preferences) * policy[None]).sum(axis=1)
    slope = jax.grad(lambda h: jax.nn.softmax(h) @ means)(preferences)
    np.testing.assert_allclose(expected, slope, rtol=1e-5)


def test_gradient_baseline_includes_the_present_reward():
    state = B.algorithms.Preferences(jnp.zeros((2, 1)), jnp.array([1.0]), jnp.int32(1))
    after = B.gradient(1.0).update(state, jnp.array([0]), jnp.array([3.0]), None)
    np.testing.assert_allclose(after.baseline, [2.0])
    np.testing.assert_allclose(after.preferences[:, 0], [0.5, -0.5])


def test_exp3_update_by_hand():
    state = B.algorithms.Weights(jnp.zeros((2, 1)))
    after = B.exp3(0.2).update(state, jnp.array([0]), jnp.array([1.0]), None)
    np.testing.assert_allclose(
        after.log_weights[0, 0] - after.log_weights[1, 0], 0.2 * (1 / 0.5) / 2, rtol=1e-6
    )


def test_lin_ucb_equals_ridge_regression():
    rng = np.random.default_rng(0)
    contexts, rewards = rng.normal(size=(20, 3)), rng.normal(size=20)
    algorithm = B.lin_ucb(3, 0.7, ridge=2.0)
    state = algorithm.init(2, 1)
    update = jax.jit(algorithm.update)
    for x, r in zip(contexts, rewards, strict=True):
        state = update(
            state, jnp.array([1]), jnp.array([r], jnp.float32), jnp.asarray(x[:, None], jnp.float32)
        )
    inverse = np.linalg.inv(2 * np.eye(3) + contexts.T @ contexts)
    np.testing.assert_allclose(state.inverse[1, :, :, 0], inverse, atol=1e-5)
    np.testing.assert_allclose(state.inverse[0, :, :, 0], np.eye(3) / 2)
    np.testing.assert_allclose(state.moment[1, :, 0], contexts.T @ rewards, atol=1e-4)
    # Contexts at every scale of which the two arms' scores are nearly equal: the bonus must be exact.
    many = jax.tree.map(lambda leaf: jnp.tile(leaf, (*[1] * (leaf.ndim - 1), 2000)), state)
    xs = rng.normal(size=(2000, 3)) * 10 ** rng.uniform(-2, 1, (2000, 1))
    width = np.sqrt(np.einsum("ni,ij,nj->n", xs, inverse, xs))
    scores = np.stack([0.7 * np.sqrt((xs**2).sum(1) / 2), xs @ inverse @ contexts.T @ rewards + 0.7 * width])
    chosen = np.asarray(algorithm.select(many, None, jnp.asarray(xs.T, jnp.float32)))
    clear = np.abs(scores[0] - scores[1]) > 1e-4 * np.abs(scores).max(axis=0)
    np.testing.assert_array_equal(chosen[clear], scores.argmax(axis=0)[clear])


def test_first_argmax_orders_all_floats_and_takes_the_first_of_equals(x64):
    rng = np.random.default_rng(0)
    values = rng.choice([-np.inf, -3e38, -2.5, -1.0, -1e-38, 0.0, 1e-38, 0.5, 2.0, np.inf], (7, 3000))
    values = np.where(rng.random(values.shape) < 0.5, -np.abs(values), values) + 0.0
    for dtype in (jnp.float32, jnp.float64):
        found = arms.first_argmax(jnp.asarray(values, dtype))
        np.testing.assert_array_equal(found, np.asarray(values, dtype).argmax(axis=0))


@pytest.mark.parametrize("kind", slow_but(["gaussian", "beta"], 1))
def test_thompson_draws_from_the_posterior(kind, key):
    algorithm = (
        B.thompson_gaussian(prior_mean=0.3, prior_scale=1.5, noise=2.0)
        if kind == "gaussian"
        else B.thompson_beta(successes=1.5, failures=0.5)
    )
    state = played(algorithm, [0, 0, 0, 1], [1.0, 0.0, 1.0, 1.0], 2)
    state = jax.tree.map(lambda x: jnp.tile(x, (1, 20_000)), state)
    noise = jax.tree.map(lambda x: x[0], algorithm.noise(key, 1, 2, 20_000))
    share = float((algorithm.select(state, noise, None) == 1).mean())
    rng = np.random.default_rng(0)
    if kind == "gaussian":
        precision = 1.5**-2 + np.array([3, 1]) / 4
        mean = (0.3 * 1.5**-2 + np.array([2, 1]) / 4) / precision
        np.testing.assert_allclose(state.means[:, 0], mean, rtol=1e-5)
        np.testing.assert_allclose(state.scales[:, 0], precision**-0.5, rtol=1e-5)
        draws = rng.normal(mean, precision**-0.5, (20_000, 2))
    else:
        draws = rng.beta([3.5, 2.5], [1.5, 0.5], (20_000, 2))
    assert abs(share - draws.argmax(axis=1).mean()) < 0.02


@pytest.mark.slow
def test_a_drifting_world_needs_a_constant_step():
    problem = B.gaussian(spread=0.0, drift=0.1)
    lost = [
        jax.jit(lambda key, a=algorithm: B.run(key, problem, a, 1000, 300).regrets[-300:].mean())(
            jax.random.key(0)
        )
        for algorithm in (B.epsilon_greedy(0.1), B.epsilon_greedy(0.1, step_size=0.1))
    ]
    assert lost[1] < 0.85 * lost[0]


def test_the_new_restaurant_is_found_by_those_who_explore():
    share = [
        float(
            jax.jit(lambda key, a=a: B.run(key, B.restaurants(), a, 300, 500).optimal[-50:].mean())(
                jax.random.key(0)
            )
        )
        for a in (B.epsilon_greedy(0.0), B.ucb(2.0))
    ]
    assert share[0] < 0.8 < 0.9 < share[1]


HYPERPARAMETERS = {
    "epsilon": (NORMAL, B.epsilon_greedy, [0.0, 0.2]),
    "epsilon: step_size": (NORMAL, lambda x: B.epsilon_greedy(0.1, step_size=x), [0.05, 0.5]),
    "epsilon: initial_value": (NORMAL, lambda x: B.epsilon_greedy(0.0, initial_value=x), [0.0, 5.0]),
    "softmax: temperature": (NORMAL, B.softmax, [0.05, 1.0]),
    "softmax: step_size": (NORMAL, lambda x: B.softmax(0.2, step_size=x), [0.05, 0.5]),
    "ucb: c": (NORMAL, B.ucb, [0.1, 3.0]),
    "ucb: step_size": (NORMAL, lambda x: B.ucb(2.0, step_size=x), [0.05, 0.5]),
    "kl_ucb: c": (COINS, B.kl_ucb, [0.0, 3.0]),
    "gradient: step_size": (NORMAL, B.gradient, [0.05, 0.5]),
    "thompson: prior_mean": (NORMAL, lambda x: B.thompson_gaussian(prior_mean=x), [-1.0, 3.0]),
    "thompson: prior_scale": (NORMAL, lambda x: B.thompson_gaussian(prior_scale=x), [0.1, 3.0]),
    "thompson: noise": (NORMAL, lambda x: B.thompson_gaussian(noise=x), [0.3, 3.0]),
    "thompson: successes": (COINS, lambda x: B.thompson_beta(successes=x), [0.5, 5.0]),
    "thompson: failures": (COINS, lambda x: B.thompson_beta(failures=x), [0.5, 5.0]),
    "exp3: gamma": (COINS, B.exp3, [0.05, 0.9]),
    "lin_ucb: alpha": (LINEAR, lambda x: B.lin_ucb(5, x), [0.0, 3.0]),
    "lin_ucb: ridge": (LINEAR, lambda x: B.lin_ucb(5, 1.0, ridge=x), [0.1, 10.0]),
    "gaussian: mean": (lambda x: B.gaussian(mean=x), B.gradient(0.1), [0.0, 4.0]),
    "gaussian: spread": (lambda x: B.gaussian(spread=x), B.ucb(), [0.5, 2.0]),
    "gaussian: noise": (lambda x: B.gaussian(noise=x), B.ucb(), [0.5, 2.0]),
    "gaussian: drift": (lambda x: B.gaussian(drift=x), B.ucb(), [0.0, 0.5]),
    "linear: noise": (lambda x: B.linear(noise=x), B.lin_ucb(5), [0.0, 2.0]),
    "restaurants: noise": (lambda x: B.restaurants(noise=x), B.ucb(), [0.5, 4.0]),
}


@pytest.mark.parametrize("name", slow_but(HYPERPARAMETERS, 3))
def test_every_hyperparameter_may_be_traced(name, key):
    """One `vmap` equals a loop over Python numbers, and the two values make different runs."""
    problem, algorithm, values = HYPERPARAMETERS[name]

    def rewards(value):
        world = problem if isinstance(problem, B.Problem) else problem(value)
        learner = algorithm if isinstance(algorithm, B.BanditAlgorithm) else algorithm(value)
        return B.run(key, world, learner, 60, 20).rewards

    together = jax.jit(jax.vmap(rewards))(jnp.array(values))
    for i, value in enumerate(values):
        alone = jax.jit(lambda value=value: rewards(value))()
        # Rounding may turn a choice here and there, and the rest of its run with it.
        same = np.isclose(together[i], alone, rtol=1e-4, atol=1e-4).all(axis=0)
        assert same.mean() >= 0.9
    assert not np.allclose(together[0], together[1])


def test_any_number_of_steps_runs(key):
    run = jax.jit(B.run, static_argnums=(1, 2, 3, 4))
    for num_steps in (1, 99, 130, 201):
        history = run(key, NORMAL, B.epsilon_greedy(0.1), num_steps, 3)
        assert all(leaf.shape == (num_steps, 3) for leaf in history)


@pytest.mark.parametrize("steps, runs", [(0, 1), (1, 0)])
def test_a_run_of_nothing_is_refused(steps, runs, key):
    with pytest.raises(ValueError, match=f"at least 1, not {steps} and {runs}"):
        B.run(key, B.gaussian(3), B.ucb(), steps, runs)


def test_what_an_algorithm_cannot_do_is_said(key):
    with pytest.raises(ValueError, match="lin_ucb needs contexts"):
        B.run(key, B.gaussian(3), B.lin_ucb(5), 2, 2)


@pytest.mark.parametrize(
    "make, wrong, message",
    [
        (
            B.softmax,
            [0, np.float32(0), -1.0, jnp.bfloat16(0), jnp.array([1.0, -1.0])],
            "temperature must be positive, not",
        ),
        (B.epsilon_greedy, [-0.1, 1.5, float("nan")], r"epsilon must be in \[0, 1\], not"),
        (B.exp3, [-0.1, 2], r"gamma must be in \[0, 1\], not"),
        (B.ucb, [-1.0], "c must be at least 0, not -1"),
        (B.kl_ucb, [-1.0], "c must be at least 0, not -1"),
        (lambda x: B.epsilon_greedy(0.1, step_size=x), [-0.5], "step_size must be at least 0"),
        (lambda x: B.softmax(0.1, step_size=x), [-0.5], "step_size must be at least 0"),
        (lambda x: B.ucb(2.0, step_size=x), [-0.5], "step_size must be at least 0"),
        (B.gradient, [-0.5], "step_size must be at least 0"),
        (lambda x: B.thompson_gaussian(prior_scale=x), [0], "prior_scale must be positive"),
        (lambda x: B.thompson_gaussian(noise=x), [0], "noise must be positive"),
        (lambda x: B.thompson_beta(successes=x), [0], "successes must be positive"),
        (lambda x: B.thompson_beta(failures=x), [0], "failures must be positive"),
        (B.lin_ucb, [0], "dimension must be positive"),
        (lambda x: B.lin_ucb(2, x), [-1], "alpha must be at least 0"),
        (lambda x: B.lin_ucb(2, ridge=x), [0.0], "ridge must be positive"),
    ],
)
def test_hyper_parameters_that_mean_nothing_are_named(make, wrong, message):
    for value in wrong:
        with pytest.raises(ValueError, match=message):
            make(value)


def test_equal_estimates_are_chosen_alike_if_asked_for():
    """Of ten arms the last pays; to stay with the first of equals misses it."""
    worlds = B.fixed_bernoulli(lambda key, runs: jnp.zeros((10, runs)).at[9].set(0.9), 10)

    def regret(algorithm):
        return float(B.run(jax.random.key(0), worlds, algorithm, 200, 200).regrets.sum(axis=0).mean())

    assert regret(B.epsilon_greedy(0.0)) == pytest.approx(180)
    assert regret(B.epsilon_greedy(0.0, random_ties=True)) < 15
    algorithm = B.epsilon_greedy(0.1, random_ties=True)
    state = B.algorithms.Estimates(
        jnp.tile(jnp.array([[0.5], [0.2], [0.5], [0.5]]), 4000), jnp.ones((4, 4000))
    )
    chosen = algorithm.select(state, jax.random.uniform(jax.random.key(1), (4000,)), None)
    shares = np.bincount(chosen, minlength=4) / 4000
    np.testing.assert_allclose(shares, [0.325, 0.025, 0.325, 0.325], atol=0.03)


@pytest.mark.parametrize("make", [B.thompson_beta, B.kl_ucb, B.exp3])
def test_what_is_for_rewards_in_the_unit_interval_refuses_others(make):
    with pytest.raises(ValueError, match=r"for rewards in \[0, 1\], and the problem's may lie outside"):
        B.run(jax.random.key(0), B.gaussian(3), make(), 2)


def test_the_least_regret_is_that_of_lai_and_robbins():
    means = np.array([[0.2, 1.0], [0.6, 0.3], [0.6, 0.0], [0.5, 0.4]])

    def kl(p, q):
        return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))

    first = 0.4 / kl(0.2, 0.6) + 0.1 / kl(0.5, 0.6)
    np.testing.assert_allclose(B.lai_robbins(means), [first, 0.0], rtol=1e-5)
    np.testing.assert_allclose(B.lai_robbins([1.0, 0.0, 3.0], gaussian=True), 2 / 2 + 2 / 3, rtol=1e-6)
