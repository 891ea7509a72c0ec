"""Rough evaluation of a policy against the sum that it cuts short, and what the options of the solver do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import mdp as M
from jaxrl4lm.mdp import evaluation, modified

LAYOUTS = {
    "dense": lambda kernel: kernel,
    "sparse": M.transitions.to_sparse,
    "banded": lambda kernel: M.transitions.to_banded(M.transitions.to_sparse(kernel), max_diagonals=23),
}


def chain(discount=0.95, size=12):
    """γP `[S, S]`, of up to five successors; P as a kernel; and δ `[S]`."""
    rng = np.random.default_rng(0)
    rows = np.zeros((size, size))
    successors = rng.permuted(np.tile(np.arange(size), (size, 1)), axis=1)[:, :5]
    np.put_along_axis(rows, successors, rng.dirichlet(np.ones(5), size), axis=1)
    return discount * rows, M.Dense(jnp.asarray(rows[:, None])), rng.normal(size=size)


def later(matrix, change, count):
    """(γP)^k δ for k = 1 ... count, `[count, S]`."""
    terms = [change]
    for _ in range(count):
        terms.append(matrix @ terms[-1])
    return np.array(terms[1:])


@jax.jit
def correct(kernel, discount, change, target, sweeps, krylov):
    arrays = jnp.asarray(discount), jnp.asarray(change), jnp.asarray(target)
    return evaluation.find_correction(kernel, *arrays, sweeps=sweeps, krylov=krylov)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_correction_is_so_many_terms_of_the_sum_or_all_of_it(layout, x64):
    matrix, kernel, change = chain()
    terms, ask = later(matrix, change, 5), functools.partial(correct, LAYOUTS[layout](kernel), 0.95, change)
    for sweeps in (0, 1, 4):
        by_sweeps = ask(0.0, sweeps, 0)
        np.testing.assert_allclose(by_sweeps.total, terms[:sweeps].sum(axis=0), atol=1e-5)
        np.testing.assert_array_equal(by_sweeps.total, by_sweeps.safe)
        assert by_sweeps.total.dtype == jnp.float64
        assert not by_sweeps.tried
        assert not by_sweeps.solved
    # The third term is the first whose span is at most the target: then BiCGStab is not asked.
    early = ask(1.001 * np.ptp(terms[2]), 5, 100)
    np.testing.assert_allclose(early.total, terms[:3].sum(axis=0), atol=1e-5)
    assert not early.tried
    rest = ask(1e-4, 2, 100)
    assert rest.tried
    assert rest.solved
    np.testing.assert_allclose(rest.safe, terms[:2].sum(axis=0), atol=1e-5)
    np.testing.assert_allclose(
        rest.total, np.linalg.solve(np.eye(12) - matrix, matrix @ change), atol=1e-4 / 0.05
    )
    left = matrix @ (change + rest.total) - rest.total
    assert np.ptp(left) <= 1.1e-4  # target, and rounding in single precision


def test_an_answer_of_bicgstab_that_widens_the_residual_is_not_taken(x64):
    """In a circle of three its first step makes the largest element smaller, and the span wider."""
    circle = M.Dense(jnp.eye(3)[jnp.array([1, 2, 0])][:, None])
    rest = correct(circle, 0.9, np.array([-3.0, -2, -1]), 1e-3, 0, 1)
    assert rest.tried
    assert not rest.solved
    np.testing.assert_array_equal(rest.total, 0)
    done = correct(circle, 0.9, np.array([-3.0, -2, -1]), 1e-3, 0, 3)
    assert done.solved
    assert np.abs(done.total).max() > 1


solve = jax.jit(M.modified_policy_iteration)


def test_each_improvement_shrinks_the_span_as_far_as_the_last_one_earned(x64):
    """Of one policy: by η = forcing at first, then by 0.9 (span now / span before)², at most forcing."""
    matrix, kernel, change = chain()
    twice = M.Dense(jnp.repeat(kernel.probabilities, 2, axis=1))
    world = M.FiniteMDP(
        twice,
        jnp.repeat(jnp.asarray(change)[:, None], 2, axis=1),
        jnp.asarray(0.95),
        jnp.zeros(12, bool),
        jnp.full(12, 1 / 12),
    )
    for forcing in (0.5, 0.05):
        spans = [np.ptp(change)]
        current, eta = change, forcing
        for limit in (1, 2, 3):
            while np.ptp(current) > eta * spans[-1]:
                current = matrix @ current
            current = matrix @ current  # the sweep over all actions
            spans.append(np.ptp(current))
            eta = min(forcing, max(0.9 * (spans[-1] / spans[-2]) ** 2, 1e-4))
            options = {"forcing": forcing, "sweeps": 100, "krylov": 0, "max_iterations": limit}
            bound = solve(world, tolerance=1e-12, **options).error_bound
            np.testing.assert_allclose(bound, 19 * spans[-1] / 2, rtol=1e-2)


@pytest.mark.slow
def test_without_evaluation_it_is_value_iteration(x64):
    world = M.garnet(jax.random.key(0), 12, 2, 12, discount=0.95)
    for limit in (1, 4):
        ours = solve(world, tolerance=1e-12, forcing=0.5, sweeps=0, krylov=0, max_iterations=limit)
        plain = M.value_iteration(world, tolerance=1e-12, max_iterations=limit + 1)
        np.testing.assert_allclose(ours.values, plain.values, atol=1e-10)
        np.testing.assert_allclose(ours.error_bound, plain.error_bound, rtol=1e-6)
        np.testing.assert_array_equal(ours.action_values.max(axis=-1), ours.values)
        np.testing.assert_array_equal(ours.policy, ours.action_values.argmax(axis=-1))


@pytest.mark.parametrize("krylov", [0, 1000])
def test_a_tolerance_of_0_ends_at_the_rounding_level(krylov, x64):
    world = M.garnet(jax.random.key(0), 12, 2, 12, discount=0.95)
    options = {"forcing": 0.2, "sweeps": 3, "krylov": krylov, "max_iterations": 1000}
    solution = solve(world, tolerance=0.0, **options)
    assert solution.iterations < 40
    assert solution.error_bound < 1e-12


def test_where_every_step_costs_it_goes_on_to_the_end(x64):
    """No change is above 0, that of the end: the largest one is not what is left."""
    kernel = np.stack([np.eye(12, k=1), np.eye(12, k=1)], axis=1)
    rewards = np.where(np.arange(12) < 11, -1.0, 0.0)
    world = M.from_arrays(kernel, rewards, 1.0, terminal=np.arange(12) == 11)
    options = {"forcing": 0.2, "sweeps": 0, "krylov": 0, "max_iterations": 100}
    solution = solve(world, tolerance=1e-9, **options)
    assert solution.converged
    np.testing.assert_allclose(solution.values, np.arange(12) - 11)


def test_slow_progress_is_not_taken_for_none(x64):
    """A circle of which one state pays: without evaluation each improvement takes off a twentieth."""
    kernel = np.stack([np.roll(np.eye(12), 1, axis=1)] * 2, axis=1)
    world = M.from_arrays(kernel, np.eye(12)[0], 0.95)
    options = {"forcing": 0.2, "sweeps": 0, "krylov": 0, "max_iterations": 1000}
    solution = solve(world, tolerance=1e-10, **options)
    assert solution.converged
    steps = -np.arange(12) % 12
    np.testing.assert_allclose(solution.values, 0.95**steps / (1 - 0.95**12), atol=1e-10)


def test_an_evaluation_that_widens_the_residual_is_taken_back(monkeypatch, x64):
    """However sure of itself it is: policies could alternate for ever."""
    right = evaluation.find_correction

    def wrong(*arguments, sweeps, krylov):
        by_sweeps = right(*arguments, sweeps=sweeps, krylov=0)
        asked = jnp.asarray(krylov) > 0
        total = by_sweeps.total + jnp.where(asked, 1e6 * jnp.cos(jnp.arange(12.0)), 0)
        return by_sweeps._replace(total=total, tried=asked, solved=asked)

    monkeypatch.setattr(modified, "find_correction", wrong)
    world = M.garnet(jax.random.key(0), 12, 2, 12, discount=0.95)
    ours = jax.jit(M.modified_policy_iteration)(world, tolerance=1e-9, max_iterations=6)
    assert ours.converged
    np.testing.assert_allclose(ours.values, M.policy_iteration(world).values, atol=1e-9)
