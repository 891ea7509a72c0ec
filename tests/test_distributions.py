"""Distributions against SciPy, and their entropies and divergences against the definition by many samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxrl4lm import distributions

rng = np.random.default_rng(0)
LOGITS, OTHER = rng.normal(size=(2, 3, 5)).astype(np.float32)
MEAN, OTHER_MEAN, ACTIONS = rng.normal(size=(3, 4, 2)).astype(np.float32)
LOG_STD, OTHER_LOG_STD = (0.3 * rng.normal(size=(2, 4, 2))).astype(np.float32)
P, Q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (LOGITS, OTHER))


def test_categorical():
    actions = np.array([4, 0, 2])
    np.testing.assert_allclose(
        distributions.categorical_log_prob(LOGITS, actions), np.log(P[np.arange(3), actions]), rtol=1e-5
    )
    np.testing.assert_allclose(
        distributions.categorical_entropy(LOGITS), scipy.stats.entropy(P, axis=-1), rtol=1e-5
    )
    np.testing.assert_allclose(
        distributions.categorical_kl(LOGITS, OTHER), scipy.stats.entropy(P, Q, axis=-1), rtol=1e-5
    )


@pytest.mark.parametrize("action", [-100, -1, 5])
def test_an_action_outside_has_no_log_prob(action):
    """JAX would count from the end."""
    assert np.isnan(distributions.categorical_log_prob(LOGITS[0], jnp.asarray(action)))


def test_forbidden_actions():
    forbidden = np.array([0.0, -np.inf, 1.0], np.float32)
    assert distributions.categorical_log_prob(forbidden, jnp.asarray(1)) == -np.inf
    np.testing.assert_allclose(distributions.categorical_kl(forbidden, forbidden), 0, atol=1e-7)
    assert distributions.categorical_kl(np.zeros(3, np.float32), forbidden) == np.inf


def test_one_category_does_not_stand_for_all():
    with pytest.raises(ValueError, match="last axes must be equal"):
        distributions.categorical_kl(LOGITS, OTHER[:, :1])


def test_gaussian():
    std, other_std = np.exp(LOG_STD), np.exp(OTHER_LOG_STD)
    density = scipy.stats.norm(MEAN, std)
    np.testing.assert_allclose(
        distributions.gaussian_log_prob(MEAN, LOG_STD, ACTIONS), density.logpdf(ACTIONS).sum(-1), rtol=1e-5
    )
    np.testing.assert_allclose(distributions.gaussian_entropy(LOG_STD), density.entropy().sum(-1), rtol=1e-5)
    # The divergence by Gauss–Hermite quadrature of E_p[log p − log q], exact for a parabola.
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    x = MEAN[..., None] + std[..., None] * nodes
    other = scipy.stats.norm(OTHER_MEAN[..., None], other_std[..., None])
    difference = scipy.stats.norm(MEAN[..., None], std[..., None]).logpdf(x) - other.logpdf(x)
    expected = (difference * weights).sum(-1).sum(-1) / weights.sum()
    result = distributions.gaussian_kl(MEAN, LOG_STD, OTHER_MEAN, OTHER_LOG_STD)
    np.testing.assert_allclose(result, expected, rtol=1e-4)


@pytest.mark.parametrize("mean, log_std", [(0.0, 0.0), (1.5, -1.0), (-0.7, -2.0)])
def test_the_squashed_density_sums_to_one(mean, log_std, x64):
    """Over −1..1, and its mean is that of tanh(u): by the midpoint rule in a, which does not know how u was squashed."""
    count = 200_000
    actions = (np.arange(count) + 0.5) / count * 2 - 1
    one = np.ones((count, 1))
    density = np.exp(
        distributions.squashed_gaussian_log_prob(mean * one, log_std * one, np.arctanh(actions)[:, None])
    )
    np.testing.assert_allclose(density.sum() * 2 / count, 1, atol=1e-6)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    expected = (weights * np.tanh(mean + np.exp(log_std) * nodes)).sum() / weights.sum()
    np.testing.assert_allclose((density * actions).sum() * 2 / count, expected, atol=1e-5)


def test_the_squashed_density_is_finite_where_tanh_is_one():
    """In float32 1 − tanh²(30) is 0; coordinates add up, and gradients are finite."""
    far = jnp.array([[30.0, -30.0]])
    mean, log_std = jnp.array([[29.0, -31.0]]), jnp.zeros((1, 2))
    value, grads = jax.value_and_grad(
        lambda *given: distributions.squashed_gaussian_log_prob(*given).sum(), (0, 1, 2)
    )(mean, log_std, far)
    np.testing.assert_allclose(value, 2 * (-0.5 - 0.5 * np.log(2 * np.pi) - np.log(4) + 60), rtol=1e-6)
    assert all(np.isfinite(grad).all() for grad in grads)
    with pytest.raises(ValueError, match="actions has shape"):
        distributions.squashed_gaussian_log_prob(mean, log_std, far[:, :1])


def test_samples_follow_the_distribution(key):
    actions = distributions.categorical_sample(key, jnp.broadcast_to(LOGITS[0], (20_000, 5)))
    np.testing.assert_allclose(np.bincount(actions, minlength=5) / 20_000, P[0], atol=0.015)
    drawn = distributions.gaussian_sample(
        key, jnp.broadcast_to(MEAN[0], (20_000, 2)), jnp.asarray(LOG_STD[:1])
    )
    np.testing.assert_allclose(drawn.mean(0), MEAN[0], atol=0.04)
    np.testing.assert_allclose(drawn.std(0), np.exp(LOG_STD[0]), rtol=0.03)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_statistics_are_in_float32(dtype):
    z, action = jnp.asarray(LOGITS, dtype), jnp.array([0, 1, 2])
    for result in (
        distributions.categorical_log_prob(z, action),
        distributions.categorical_entropy(z),
        distributions.categorical_kl(z, z),
        distributions.gaussian_log_prob(z, z, z),
        distributions.squashed_gaussian_log_prob(z, z, z),
        distributions.gaussian_entropy(z),
        distributions.gaussian_kl(z, z, z, z),
    ):
        assert result.dtype == jnp.float32
    # A gradient has the dtype of its argument.
    assert jax.grad(lambda z: distributions.categorical_entropy(z).sum())(z).dtype == dtype


@pytest.mark.parametrize("shape", [(1,), (3, 1), (5, 3, 2), (2,)])
def test_one_coordinate_does_not_stand_for_all(shape):
    mean, log_std, wrong = jnp.zeros((3, 2)), jnp.zeros((3, 2)), jnp.zeros(shape)
    with pytest.raises(ValueError, match="actions has shape"):
        distributions.gaussian_log_prob(mean, log_std, wrong)
    with pytest.raises(ValueError, match="other_mean has shape"):
        distributions.gaussian_kl(mean, log_std, wrong, log_std)
