"""Derivatives of a fixed point against those of a linear solve in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm.mdp.implicit import attach_derivative, fixed_point


def chain(seed, discount, size):
    return discount * np.random.default_rng(seed).dirichlet(np.full(size, 0.3), size)


def slopes(matrix, solution, weights):
    """Of w·v in b and in A, where v = A v + b; forward along b = w as well."""

    def total(shift, matrix):
        return weights @ fixed_point(lambda values: matrix @ values + shift, solution)

    shift = jnp.zeros_like(solution)
    by_shift, by_matrix = jax.grad(total, (0, 1))(shift, matrix)
    along = jax.jvp(lambda shift: total(shift, matrix), (shift,), (weights,))[1]
    return by_shift, by_matrix, along


@pytest.mark.slow
def test_derivatives_of_a_fixed_point_are_those_of_the_linear_solve(x64):
    matrix, (solution, weights) = chain(0, 0.9, 8), np.random.default_rng(1).normal(size=(2, 8))
    by_shift, by_matrix, along = jax.jit(slopes)(matrix, solution, weights)
    expected = np.linalg.solve(np.eye(8) - matrix.T, weights)
    np.testing.assert_allclose(by_shift, expected, rtol=1e-11)
    np.testing.assert_allclose(by_matrix, np.outer(expected, solution), rtol=1e-11)
    np.testing.assert_allclose(along, expected @ weights, rtol=1e-11)


def test_derivatives_leave_nothing_but_rounding_in_single_precision():
    """One run of BiCGStab, whose residual drifts, leaves 15 times as much in one of 20 chains."""
    matrices = jnp.asarray([chain(seed, 0.99, 20) for seed in range(100)], jnp.float32)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(100, 20)), jnp.float32)
    by_shift = np.asarray(jax.jit(jax.vmap(slopes))(matrices, weights, weights)[0], float)
    left = weights - by_shift + np.einsum("nst,ns->nt", np.asarray(matrices, float), by_shift)
    assert (np.abs(left).max(axis=1) <= 8 * 2**-23 * np.abs(by_shift).max(axis=1)).all()


def test_what_is_found_keeps_its_value_and_takes_the_derivative_of_the_function(x64):
    calls = []

    def square(x, scale):
        calls.append(None)
        return scale * x**2

    x, near = jnp.array([1.0, 3.0]), jnp.array([2.1, 17.9])
    np.testing.assert_array_equal(jax.jit(lambda x: attach_derivative(square, near, x, 2.0))(x), near)
    assert not calls
    value, slope = jax.jvp(lambda x: attach_derivative(square, near * x, x, 2.0), (x,), (jnp.ones(2),))
    np.testing.assert_array_equal(value, near * x)
    np.testing.assert_array_equal(slope, [4, 12])
    np.testing.assert_array_equal(
        jax.grad(lambda scale: attach_derivative(square, near, x, scale).sum())(2.0), 10
    )
