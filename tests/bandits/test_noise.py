"""Random numbers in bulk: Threefry's bits, the inverse of a distribution function, and statistics."""

import jax
import numpy as np
import pytest
import scipy.stats

from jaxrl4lm.bandits import noise


@pytest.mark.parametrize("shape", [(1,), (7, 30), (2, 3, 101)])
def test_twenty_rounds_are_the_bits_of_jax_random(shape):
    for seed in (0, 12345):
        key = jax.random.fold_in(jax.random.key(seed), 7)
        ours = np.asarray(jax.jit(noise.bits, static_argnums=(1, 2))(key, shape, 20))
        np.testing.assert_array_equal(ours, jax.random.bits(key, shape))


def test_every_bit_is_a_fair_coin_and_no_two_keys_agree(key):
    words = [np.asarray(noise.bits(k, (2**17,))) for k in jax.random.split(key, 2)]
    ones = np.unpackbits(words[0].view(np.uint8)).reshape(-1, 32).mean(axis=0)
    np.testing.assert_allclose(ones, 0.5, atol=5 * 0.5 / 2**8.5)
    differ = np.unpackbits((words[0] ^ words[1]).view(np.uint8)).mean()
    assert abs(differ - 0.5) < 5 * 0.5 / 2**11
    following = np.unpackbits((words[0][1:] ^ words[0][:-1]).view(np.uint8)).mean()
    assert abs(following - 0.5) < 5 * 0.5 / 2**11


def test_uniform_is_uniform(key):
    x = np.asarray(jax.jit(noise.uniform, static_argnums=1)(key, (2, 10**5)))
    assert x.dtype == np.float32
    assert x.shape == (2, 10**5)
    assert 0 <= x.min() < 1e-4
    assert 1 - 1e-4 < x.max() < 1
    assert scipy.stats.kstest(x.ravel(), "uniform").pvalue > 1e-3


def test_normal_is_the_quantile_of_the_uniform_number(key):
    shape = (10**6,)
    x = np.asarray(jax.jit(noise.normal, static_argnums=1)(key, shape))
    low = np.nextafter(np.float32(-1), np.float32(0))
    inside = np.maximum(np.asarray(noise.uniform(key, shape)) * (1 - low) + low, low).astype(float)
    exact = scipy.stats.norm.ppf((1 + inside) / 2)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, exact, rtol=1e-4, atol=1e-6)
    assert scipy.stats.kstest(x, "norm").pvalue > 1e-3
    assert abs(scipy.stats.kurtosis(x)) < 5 * np.sqrt(24 / len(x))


def test_normal_at_the_ends_of_its_range(monkeypatch, key):
    for bits, size in ((0, 5.42), (2**32 - 1, 5.3)):
        monkeypatch.setattr(noise, "bits", lambda key, shape, b=bits: np.full(shape, b, np.uint32))
        assert abs(abs(float(noise.normal(key, (1,))[0])) - size) < 0.2


@pytest.mark.parametrize("a, b", [(1.0, 1.0), (0.3, 0.6), (5.0, 1.5), (400.0, 30.0)])
def test_beta_is_beta(a, b, key):
    x = np.asarray(
        jax.jit(noise.beta)(key, np.full((2, 50_000), a, np.float32), np.full((2, 50_000), b, np.float32))
    )
    assert scipy.stats.kstest(x.ravel(), "beta", (a, b)).pvalue > 1e-3
