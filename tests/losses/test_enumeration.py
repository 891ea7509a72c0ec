"""Expected gradients of estimators against exact ones, over all 40 completions of a language model.

Four tokens, at most three per completion, one of which ends it. The policy is a table of logits, a row per prefix.
Expectations over samples are sums over completions weighted by their probability, held constant.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import advantages, distributions, losses, reduce, returns, tasks
from jaxrl4lm.envs.token_tree import grow
from tests.selection import slow_but

TASK = tasks.lottery(4, 3)
TREE = grow(TASK, TASK.sample(jax.random.key(0), 1))
MASK, TOKENS, STATES = (np.asarray(x) for x in (TREE.mask, TREE.completions, TREE.states))
(N, T), (S, V) = TOKENS.shape, TREE.successors.shape

rng = np.random.default_rng(0)
THETA, REF = rng.normal(size=(2, S, V))
REWARDS = rng.normal(size=N)


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with jax.enable_x64(True):
        yield


def log_probs(theta):
    return jnp.where(MASK, distributions.categorical_log_prob(jnp.asarray(theta)[STATES], TOKENS), 0)


def probs(theta):
    return jnp.exp(log_probs(theta).sum(-1))


def theta():
    return jnp.asarray(THETA)


def ref():
    return log_probs(REF)


def expected_gradient(loss):
    """Σ_y π(y)·∇ loss(log-probs)[y]: what a stochastic gradient of the mean over sequences is on average."""

    def weighted(parameters):
        return (jax.lax.stop_gradient(probs(parameters)) * loss(parameters)).sum()

    return np.asarray(jax.jit(jax.grad(weighted))(theta()))


def exact_gradient(value):
    return np.asarray(jax.jit(jax.grad(lambda x: (probs(x) * value(x)).sum()))(theta()))


def sequence_kl(x):
    return (log_probs(x) - ref()).sum(-1)


def total(values):
    """The sum over the tokens of each sequence."""
    return (values * MASK).sum(-1)


def once(values):
    """The value of each sequence, where each of its tokens carries it."""
    return values[:, 0]


def with_reward(token_rewards):
    """REINFORCE with the returns-to-go of a reward per token."""

    def loss(x):
        rewards = jax.lax.stop_gradient(token_rewards(x))
        to_go = returns.discounted_returns(rewards, discount=1.0, mask=MASK, axis=-1)
        # A reward is maximised and a penalty minimised, hence the sign.
        return total(losses.reinforce(log_probs(x), -to_go, mask=MASK))

    return loss


def token_exact(x):
    return losses.kl.exact(x[STATES], jnp.asarray(REF)[STATES], mask=MASK)


def ratio_times_k3(x):
    lp = log_probs(x)
    return total(jnp.exp(lp - jax.lax.stop_gradient(lp)) * losses.kl.k3(lp, ref(), mask=MASK))


EXACT_FOR_SEQUENCES = {
    "k1 in the reward": with_reward(lambda x: losses.kl.k1(log_probs(x), ref(), mask=MASK)),
    "sequence_k2": lambda x: once(losses.kl.sequence_k2(log_probs(x), ref(), mask=MASK)),
    "sequence_ratio_k1": lambda x: once(losses.kl.sequence_ratio_k1(log_probs(x), ref(), mask=MASK)),
    "sequence_ratio_k3": lambda x: once(losses.kl.sequence_ratio_k3(log_probs(x), ref(), mask=MASK)),
    "exact, in the reward and as a loss": lambda x: with_reward(token_exact)(x) + total(token_exact(x)),
}
WRONG_FOR_SEQUENCES = {
    "token k2": lambda x: total(losses.kl.k2(log_probs(x), ref(), mask=MASK)),
    "token k3 with the gradient of k2": lambda x: total(
        losses.kl.k3_value_k2_gradient(log_probs(x), ref(), mask=MASK)
    ),
    "token exact, as a loss alone": lambda x: total(token_exact(x)),
    "token ratio times k3": ratio_times_k3,
    "token k3": lambda x: total(losses.kl.k3(log_probs(x), ref(), mask=MASK)),
    "token k1": lambda x: total(losses.kl.k1(log_probs(x), ref(), mask=MASK)),
}


def test_all_completions_are_there():
    assert N == 40
    np.testing.assert_allclose(probs(theta()).sum(), 1, rtol=1e-12)


@pytest.mark.parametrize("form", EXACT_FOR_SEQUENCES)
def test_kl_forms_with_the_gradient_of_the_sequence_kl(form):
    np.testing.assert_allclose(
        expected_gradient(EXACT_FOR_SEQUENCES[form]), exact_gradient(sequence_kl), atol=1e-10
    )


@pytest.mark.parametrize("form", slow_but(WRONG_FOR_SEQUENCES, 2))
def test_kl_forms_without_it(form):
    """A warning kept true: were one of these right, the table in the documentation would be wrong."""
    exact = exact_gradient(sequence_kl)
    error = np.linalg.norm(expected_gradient(WRONG_FOR_SEQUENCES[form]) - exact)
    assert error > 0.1 * np.linalg.norm(exact)


# One decision: the gradient of each form of a single draw from a categorical distribution.


def decision(loss):
    def weighted(z):
        lp = jax.nn.log_softmax(z)
        return (jax.lax.stop_gradient(jnp.exp(lp)) * loss(lp)).sum()

    return np.asarray(jax.grad(weighted)(theta()[0]))


def one_ref():
    return jax.nn.log_softmax(jnp.asarray(REF[0]))


def reverse(z):
    return distributions.categorical_kl(z, one_ref())


def forward(z):
    return distributions.categorical_kl(one_ref(), z)


def in_reward(estimator):
    return lambda lp: losses.reinforce(lp, -estimator(lp, one_ref()))


ONE_DECISION = {
    "k1 as a loss: nothing": (lambda lp: losses.kl.k1(lp, one_ref()), None),
    "k2 as a loss": (lambda lp: losses.kl.k2(lp, one_ref()), reverse),
    "k3 as a loss: the forward KL": (lambda lp: losses.kl.k3(lp, one_ref()), forward),
    "k3 value, k2 gradient": (lambda lp: losses.kl.k3_value_k2_gradient(lp, one_ref()), reverse),
    "k1 in the reward": (in_reward(losses.kl.k1), reverse),
}


@pytest.mark.parametrize("form", ONE_DECISION)
def test_kl_of_one_decision(form):
    loss, target = ONE_DECISION[form]
    expected = 0 if target is None else np.asarray(jax.grad(target)(theta()[0]))
    np.testing.assert_allclose(decision(loss), expected, atol=1e-10)


def test_k3_in_the_reward_is_biased():
    assert np.abs(decision(in_reward(losses.kl.k3)) - jax.grad(reverse)(theta()[0])).max() > 0.01


@pytest.mark.parametrize("estimator", [losses.kl.k1, losses.kl.k3, losses.kl.k3_value_k2_gradient])
def test_unbiased_values(estimator):
    lp = jax.nn.log_softmax(theta()[0])
    np.testing.assert_allclose(
        (jnp.exp(lp) * estimator(lp, one_ref())).sum(), reverse(theta()[0]), rtol=1e-12
    )


def test_exact_kl_of_one_decision():
    np.testing.assert_allclose(
        jax.grad(lambda z: losses.kl.exact(z, one_ref()))(theta()[0]),
        jax.grad(reverse)(theta()[0]),
        rtol=1e-10,
    )


# Policy gradients: J(θ) = Σ_y π(y)·R(y).


def minus_gradient_of_return():
    return -exact_gradient(lambda x: REWARDS)


def at_the_end():
    last = MASK.sum(-1) - 1
    return jnp.where(np.arange(T) == last[:, None], REWARDS[:, None], 0)


def prefix_values():
    """Any function of the state is a baseline: the worse, the better a test."""
    return jnp.asarray(np.random.default_rng(5).normal(size=S))[STATES]


def actor_critic(x, gae_lambda=1.0):
    values = prefix_values()
    following = jnp.concatenate([values[:, 1:], values[:, :1]], 1)
    a, targets = returns.generalized_advantage_estimation(
        at_the_end(), values, following, MASK & (np.arange(T) == MASK.sum(-1)[:, None] - 1),
        discount=1.0, gae_lambda=gae_lambda, mask=MASK, axis=-1,
    )  # fmt: skip
    return total(
        losses.a2c(log_probs(x), a, values, targets, jnp.zeros_like(values), entropy_coef=0.0, mask=MASK)
    )


ESTIMATORS = {
    "REINFORCE": lambda x: total(losses.reinforce(log_probs(x), REWARDS[:, None], mask=MASK)),
    "REINFORCE, returns-to-go": lambda x: total(
        losses.reinforce(
            log_probs(x),
            returns.discounted_returns(at_the_end(), discount=1.0, mask=MASK, axis=-1),
            mask=MASK,
        )
    ),
    "A2C": actor_critic,
    "PPO on its own samples": lambda x: total(
        losses.ppo_clip(log_probs(x), jax.lax.stop_gradient(log_probs(x)), REWARDS[:, None], mask=MASK)
    ),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_policy_gradient_estimators_are_exact(name):
    np.testing.assert_allclose(expected_gradient(ESTIMATORS[name]), minus_gradient_of_return(), atol=1e-10)


def group_gradient(advantage, n):
    """Expected gradient of the mean over a group of n independent completions."""
    index = np.array(list(itertools.product(range(N), repeat=n)))
    a = advantage(REWARDS[index])

    def weighted(x):
        lp, weight = log_probs(x).sum(-1)[index], jax.lax.stop_gradient(probs(x))[index].prod(-1)
        return (weight[:, None] * losses.reinforce(lp, a)).sum() / n

    return np.asarray(jax.jit(jax.grad(weighted))(theta()))


@pytest.mark.slow
def test_pass_at_k_has_the_gradient_of_the_best_of_k():
    pairs = np.array(list(itertools.product(range(N), repeat=2)))
    best = REWARDS[pairs].max(-1)
    exact = np.asarray(jax.grad(lambda x: -(probs(x)[pairs].prod(-1) * best).sum())(theta()))
    estimate = group_gradient(lambda rewards: advantages.pass_at_k(rewards, k=2), 3)
    np.testing.assert_allclose(estimate, exact, atol=1e-6)


def test_reductions_are_the_sequence_objectives():
    """`sequence_sum` of a token loss is the objective whose gradient the estimators above have."""
    x = log_probs(theta())
    loss = losses.reinforce(x, REWARDS[:, None], mask=MASK)
    np.testing.assert_allclose(reduce.sequence_sum(loss, MASK), total(loss).mean(), rtol=1e-6)
