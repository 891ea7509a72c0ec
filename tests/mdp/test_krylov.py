"""BiCGStab against a dense solve, at its limits, and where it breaks down."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm.mdp.krylov import bicgstab


def system(seed=0, size=40):
    rng = np.random.default_rng(seed)
    matrix = np.eye(size) - 0.95 * rng.dirichlet(np.full(size, 0.2), size)
    return jnp.asarray(matrix), jnp.asarray(rng.normal(size=size)), jnp.asarray(rng.normal(size=size))


@functools.partial(jax.jit, static_argnames="tolerance")
def solve(matrix, target, start, tolerance=1e-9, max_iterations=200):
    product = functools.partial(jnp.matmul, matrix)
    return bicgstab(product, target, start, tolerance=tolerance, max_iterations=max_iterations)


def test_it_solves_what_a_dense_solve_solves_and_stops_there(x64):
    matrix, target, start = system()
    x, iterations = solve(matrix, target, start)
    assert jnp.abs(target - matrix @ x).max() <= 2e-9
    np.testing.assert_allclose(x, np.linalg.solve(matrix, target), atol=1e-7)
    rough, fewer = solve(matrix, target, start, tolerance=1e-2)
    assert 1e-9 < jnp.abs(target - matrix @ rough).max() <= 1e-2
    assert 0 < fewer < iterations < 80


def test_it_ends_at_its_limit_never_worse_than_it_started(x64):
    matrix, target, start = system(1)
    before = jnp.abs(target - matrix @ start).max()
    for limit in (0, 1, 2, 5):
        x, iterations = solve(matrix, target, start, max_iterations=limit)
        assert iterations == limit
        after = jnp.abs(target - matrix @ x).max()
        assert after <= before * (1 + 1e-12)
        before = after
    np.testing.assert_array_equal(solve(matrix, target, start, max_iterations=0)[0], start)


@pytest.mark.parametrize("kind", ["rotation", "zero", "singular"])
def test_a_breakdown_ends_it_with_the_best_so_far(kind, x64):
    """A rotation's first step has r̂·Ar = 0; 0 changes nothing; a singular matrix has no solution."""
    matrix = {"rotation": [[0.0, 1], [-1, 0]], "zero": [[0.0, 0], [0, 0]], "singular": [[1.0, 1], [1, 1]]}[
        kind
    ]
    matrix, target, start = jnp.asarray(matrix), jnp.asarray([1.0, 0.0]), jnp.zeros(2)
    x, iterations = solve(matrix, target, start)
    assert jnp.isfinite(x).all()
    assert jnp.abs(target - matrix @ x).max() <= 1
    assert iterations < 200


def test_it_takes_as_many_steps_as_there_are_unknowns(x64):
    """That is what the directions are for: without them it needs many more."""
    for seed in range(5):
        matrix, target, start = system(seed, size=6)
        x, iterations = solve(matrix, target, start)
        assert jnp.abs(target - matrix @ x).max() <= 2e-9
        assert iterations <= 7
    # Half of the first step is the solution already.
    x, iterations = solve(2 * jnp.eye(3), jnp.array([1.0, 2, 4]), jnp.zeros(3))
    np.testing.assert_allclose(x, [0.5, 1, 2])
    assert iterations == 1


def test_the_best_is_kept_while_the_residual_jumps(x64):
    matrix, target = jnp.array([[1.0, 2, 2], [-1, 1, -1], [-1, 1, -1]]), jnp.array([1.0, -1, 2])
    before = 2.0
    for limit in range(1, 9):
        x, _ = solve(matrix, target, jnp.zeros(3), max_iterations=limit)
        after = jnp.abs(target - matrix @ x).max()
        assert after <= before + 1e-9
        before = after
