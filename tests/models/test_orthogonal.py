"""Orthogonal initialisation: flax's own numbers, and no call of LAPACK where many are made at once."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from jaxrl4lm.models.control import Convolution, Perceptron
from jaxrl4lm.models.orthogonal import orthogonal, orthonormalize


@pytest.mark.parametrize("shape", [(64, 64), (4, 64), (64, 2), (3, 3, 4, 16), (1, 1)])
def test_it_is_the_initializer_of_flax(shape):
    key = jax.random.key(0)
    ours, theirs = (make(1.5)(key, shape) for make in (orthogonal, nn.initializers.orthogonal))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    flat = np.asarray(ours, np.float64).reshape(-1, shape[-1]) / 1.5
    product = flat.T @ flat if len(flat) >= shape[-1] else flat @ flat.T
    np.testing.assert_allclose(product, np.eye(len(product)), atol=2e-6)


def test_nearly_parallel_columns_become_orthogonal():
    columns = 1 + 1e-3 * jax.random.normal(jax.random.key(1), (32, 8))
    basis = np.asarray(jax.jit(orthonormalize)(columns), np.float64)
    np.testing.assert_allclose(basis.T @ basis, np.eye(8), atol=2e-6)


@pytest.mark.parametrize(
    "network, shape", [(Perceptron(2), (4,)), (Convolution(2), (10, 10, 4))], ids=["dense", "convolution"]
)
def test_a_population_begins_without_lapack(network, shape):
    """JAX before 0.11 hangs in batched calls of it, now and then, where there are two cores."""
    begin = jax.jit(jax.vmap(lambda key: network.init(key, np.zeros(shape, np.float32))))
    assert "lapack" not in begin.lower(jax.random.split(jax.random.key(0), 2)).as_text()
