"""TRPO's parts against dense linear algebra, and its step against the trust region."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import distributions, losses
from tests.selection import slow_but

rng = np.random.default_rng(0)
OBSERVATIONS = jnp.asarray(rng.normal(size=(40, 3)), jnp.float32)
PARAMS = {
    "w": jnp.asarray(rng.normal(size=(3, 4)) * 0.5, jnp.float32),
    "b": jnp.asarray(rng.normal(size=4), jnp.float32),
}
ACTIONS = jnp.asarray(rng.integers(0, 4, 40))
ADVANTAGES = jnp.asarray(rng.normal(size=40), jnp.float32)


def logits(params):
    return OBSERVATIONS @ params["w"] + params["b"][None]


OLD = logits(PARAMS)


def loss(params):
    new, old = (distributions.categorical_log_prob(z, ACTIONS) for z in (logits(params), OLD))
    return losses.trpo.surrogate(new, old, ADVANTAGES).mean()


def kl(params):
    return distributions.categorical_kl(OLD, logits(params)).mean()


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def dense_fisher():
    """E[∇log π ∇log πᵀ] with the expectation over the actions taken exactly."""

    def scores(action):
        def row(i):
            return jax.grad(lambda p: distributions.categorical_log_prob(logits(p)[i], action))(PARAMS)

        return jax.vmap(row)(jnp.arange(40))

    fisher, p = 0, np.asarray(jax.nn.softmax(OLD))
    for action in range(4):
        s = scores(jnp.asarray(action))
        s = np.concatenate([np.reshape(x, (40, -1)) for x in jax.tree.leaves(s)], 1)
        fisher = fisher + (p[:, action, None, None] * s[:, :, None] * s[:, None]).mean(0)
    return fisher


def test_fisher_vector_product_is_the_dense_one():
    vector = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), PARAMS)
    product = losses.trpo.fisher_vector_product(kl, PARAMS, vector, damping=0.3)
    np.testing.assert_allclose(flat(product), dense_fisher() @ flat(vector) + 0.3 * flat(vector), atol=1e-5)


def test_conjugate_gradient_is_a_dense_solve(x64):
    square = rng.normal(size=(12, 12))
    matrix, b = square @ square.T + 0.5 * np.eye(12), rng.normal(size=12)
    tree = {"a": jnp.asarray(b[:5]), "b": jnp.asarray(b[5:]).reshape(7, 1)}

    def matvec(v):
        product = jnp.asarray(matrix) @ jnp.concatenate([v["a"], v["b"][:, 0]])
        return {"a": product[:5], "b": product[5:, None]}

    solution = losses.trpo.conjugate_gradient(matvec, tree, iterations=40, tolerance=1e-24)
    np.testing.assert_allclose(flat(solution), np.linalg.solve(matrix, b), rtol=1e-8)
    early = losses.trpo.conjugate_gradient(matvec, tree, iterations=3)
    residual = np.linalg.norm(matrix @ flat(early) - b)
    assert 1e-6 < residual < np.linalg.norm(b)
    zero = losses.trpo.conjugate_gradient(matvec, jax.tree.map(jnp.zeros_like, tree))
    assert (flat(zero) == 0).all()


@pytest.mark.parametrize("max_kl", slow_but([1e-4, 0.01, 0.5], 1))
def test_step_stays_inside_the_trust_region_and_improves(max_kl):
    params, info = jax.jit(lambda p, d: losses.trpo.step(loss, kl, p, max_kl=d, damping=1e-3))(PARAMS, max_kl)
    assert info.accepted
    assert 0 < kl(params) <= max_kl
    np.testing.assert_allclose(info.kl, kl(params), rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(info.improvement, loss(PARAMS) - loss(params), rtol=1e-3, atol=1e-6)
    assert info.improvement > 0
    # Near the old policy the divergence of the full step is δ by construction.
    if max_kl == 1e-4:
        np.testing.assert_allclose(info.kl / info.fraction**2, max_kl, rtol=0.1)
        natural = np.linalg.solve(dense_fisher() + 1e-3 * np.eye(16), -flat(jax.grad(loss)(PARAMS)))
        moved = flat(params) - flat(PARAMS)
        assert moved @ natural > 0.99 * np.linalg.norm(moved) * np.linalg.norm(natural)


def test_line_search_refuses_what_does_not_improve():
    uphill = jax.grad(loss)(PARAMS)
    params, info = losses.trpo.line_search(loss, kl, PARAMS, uphill, max_kl=10.0)
    assert not info.accepted
    np.testing.assert_array_equal(flat(params), flat(PARAMS))
    assert info.fraction == 0


def test_line_search_refuses_nan():
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), PARAMS)
    params, info = losses.trpo.line_search(loss, kl, PARAMS, broken)
    assert not info.accepted
    np.testing.assert_array_equal(flat(params), flat(PARAMS))


def test_line_search_takes_the_longest_step_that_fits():
    downhill = jax.tree.map(lambda g: -3 * g, jax.grad(loss)(PARAMS))
    _, free = losses.trpo.line_search(loss, kl, PARAMS, downhill, max_kl=10.0)
    assert free.fraction == 1
    _, tight = losses.trpo.line_search(loss, kl, PARAMS, downhill, max_kl=float(free.kl) * 0.9, backtrack=0.5)
    assert tight.fraction == 0.5


@pytest.mark.parametrize("damping", [0.0, 2.0])
@pytest.mark.parametrize("max_backtracks", [1, 2])
def test_step_shortens_its_direction_so_often_and_no_more(damping, max_backtracks):
    """F = 2 and g = −1 by hand; the fourth power lets only a quarter of the direction fit."""
    params, info = losses.trpo.step(
        lambda x: -x, lambda x: x**2 + 100 * x**4, jnp.zeros(()),
        max_kl=1.0, damping=damping, backtrack=0.5, max_backtracks=max_backtracks,
    )  # fmt: skip
    assert info.accepted == (max_backtracks == 2)
    np.testing.assert_allclose(params, 0.25 * np.sqrt(2 / (2 + damping)) * info.accepted, rtol=1e-6)


def test_one_iteration_of_conjugate_gradients_is_steepest_descent():
    params, _ = losses.trpo.step(loss, kl, PARAMS, max_kl=1e-4, cg_iterations=1)
    moved, downhill = flat(params) - flat(PARAMS), -flat(jax.grad(loss)(PARAMS))
    np.testing.assert_allclose(moved / np.linalg.norm(moved), downhill / np.linalg.norm(downhill), atol=1e-3)


def test_no_advantage_no_step():
    params, info = losses.trpo.step(lambda p: 0 * loss(p), kl, PARAMS)
    assert not info.accepted
    np.testing.assert_array_equal(flat(params), flat(PARAMS))


@pytest.mark.slow
def test_steps_map_over_hyper_parameters():
    deltas = jnp.array([1e-3, 1e-2])
    mapped, info = jax.vmap(lambda d: losses.trpo.step(loss, kl, PARAMS, max_kl=d))(deltas)
    assert (np.asarray(info.kl) <= deltas).all()
    for i in range(2):
        single, _ = losses.trpo.step(loss, kl, PARAMS, max_kl=deltas[i])
        np.testing.assert_allclose(flat(single), flat(jax.tree.map(lambda x, i=i: x[i], mapped)), atol=1e-4)


def test_loss_and_divergence_may_differ_in_precision():
    _, info = losses.trpo.step(lambda p: loss(p).astype(jnp.bfloat16), kl, PARAMS)
    assert info.kl.dtype == info.improvement.dtype == jnp.bfloat16
