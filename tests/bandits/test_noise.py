"""Bulk random numbers are those of `jax.random`, bit for bit."""

import jax
import numpy as np
import pytest

from jaxrl4lm.bandits import noise


@pytest.mark.parametrize("name", ["bits", "uniform", "normal"])
@pytest.mark.parametrize("shape", [(1,), (7, 30), (2, 3, 101)])
def test_equals_jax_random(name, shape):
    for seed in (0, 12345):
        key = jax.random.fold_in(jax.random.key(seed), 7)
        ours = np.asarray(jax.jit(getattr(noise, name), static_argnums=1)(key, shape))
        theirs = np.asarray(getattr(jax.random, name)(key, shape))
        assert ours.dtype == theirs.dtype
        if name == "normal":  # fusion may round the last step otherwise
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
        else:
            np.testing.assert_array_equal(ours, theirs)
