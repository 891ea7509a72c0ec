"""Distributions of returns: the projection against a loop, its mean, and what minimises the quantile loss."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import losses

RNG = np.random.default_rng(0)
SUPPORTS = {"even": np.linspace(-1, 2, 7), "uneven": np.array([-1.0, -0.8, 0.1, 0.2, 2.0])}


def project_one(atoms, probs, support):
    """Algorithm 1 of Bellemare et al. 2017, one atom after the other."""
    target = np.zeros(len(support))
    for x, p in zip(np.clip(atoms, support[0], support[-1]), probs, strict=True):
        upper = int(np.searchsorted(support, x))
        if support[upper] == x:
            target[upper] += p
            continue
        lower, gap = upper - 1, support[upper] - support[upper - 1]
        target[lower] += p * (support[upper] - x) / gap
        target[upper] += p * (x - support[lower]) / gap
    return target


@pytest.mark.parametrize("name", SUPPORTS)
def test_a_projection_is_that_of_a_loop(name):
    """Also of atoms beyond the ends, on the support, and all at one place, as after a termination."""
    support = SUPPORTS[name]
    atoms = RNG.uniform(-2, 3, (4, 3, 6))
    atoms[0, 0], atoms[0, 1, :5] = 0.5, support[:5]
    probs = RNG.dirichlet(np.ones(6), (4, 3))
    found = losses.project_categorical(jnp.asarray(atoms), jnp.asarray(probs), support=jnp.asarray(support))
    expected = [
        [project_one(*pair, support) for pair in zip(*rows, strict=True)]
        for rows in zip(atoms, probs, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)
    means = (np.clip(atoms, support[0], support[-1]) * probs).sum(-1)
    np.testing.assert_allclose(np.asarray(found) @ support, means, atol=1e-5)


def test_a_projection_reads_no_masked_row_and_is_a_constant():
    support = jnp.linspace(0.0, 1.0, 3)
    atoms, probs = jnp.array([[0.2, 0.7], [jnp.nan, jnp.inf]]), jnp.array([[0.5, 0.5], [jnp.nan, 1.0]])
    mask = jnp.array([True, False])

    def weigh(atoms, probs, support):
        found = losses.project_categorical(atoms, probs, support=support, mask=mask)
        return (found * jnp.arange(1.0, 4.0)[None]).sum(), found

    grads, found = jax.grad(weigh, argnums=(0, 1, 2), has_aux=True)(atoms, probs, support)
    np.testing.assert_allclose(found, [[0.3, 0.5, 0.2], [0, 0, 0]], atol=1e-6)
    for grad in grads:
        np.testing.assert_array_equal(grad, 0)
    with pytest.raises(ValueError, match="support has shape"):
        losses.project_categorical(atoms, probs, support=support[:1])
    with pytest.raises(ValueError, match="probs has shape"):
        losses.project_categorical(atoms, probs[:, :1], support=support)


def test_the_least_quantile_loss_is_at_the_quantiles():
    """κ = 0: in the order of the samples, four quantiles of eight samples lie between two of them each."""
    samples = jnp.asarray(np.sort(RNG.normal(size=8)), jnp.float32)
    middle = (samples[0::2] + samples[1::2]) / 2
    slope = jax.grad(lambda q: losses.quantile_huber(q, samples, kappa=0.0))
    np.testing.assert_allclose(slope(middle), 0, atol=1e-6)
    assert (slope(middle + 1) > 0).all()
    assert (slope(middle - 1) < 0).all()


def test_they_are_those_of_rlax():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rlax = pytest.importorskip("rlax")
    support = jnp.asarray(SUPPORTS["even"], jnp.float32)
    atoms, quantiles, targets = (jnp.asarray(RNG.normal(size=(5, 7)), jnp.float32) for _ in range(3))
    probs = jnp.asarray(RNG.dirichlet(np.ones(7), 5), jnp.float32)
    theirs = jax.vmap(rlax.categorical_l2_project, (0, 0, None))(atoms, probs, support)
    np.testing.assert_allclose(losses.project_categorical(atoms, probs, support=support), theirs, atol=1e-6)
    tau = (jnp.arange(7) + 0.5) / 7
    for kappa in (0.0, 1.0):
        theirs = jax.vmap(lambda q, t: rlax.quantile_regression_loss(q, tau, t, kappa))(quantiles, targets)  # noqa: B023
        np.testing.assert_allclose(losses.quantile_huber(quantiles, targets, kappa=kappa), theirs, rtol=1e-5)
