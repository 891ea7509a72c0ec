"""Many small MDPs in blocks: the answers of the single solver, whatever the block, and bounds that hold."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import mdp as M
from tests.selection import slow_but

KINDS = {
    "dense": lambda seed: M.garnet(jax.random.key(seed), 9, 3, 9, discount=0.5 + 0.09 * (seed % 6)),
    "sparse": lambda seed: M.garnet(jax.random.key(seed), 12, 2, 3, discount=0.99 if seed % 2 else 0.3),
    "banded, terminals": lambda seed: (
        M.grid_world("S . +1\n. # -1\n. . .", slip=0.05 * seed, discount=0.95, living_reward=-0.04).mdp
    ),
    "a hub": lambda seed: M.forest(14, discount=0.9, fire=0.1 + 0.05 * seed),
    "γ = 1 in some": lambda seed: M.russell_norvig(1.0 if seed % 3 else 0.9).mdp,
}


def stacked(worlds):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *worlds)


@pytest.mark.parametrize("kind, block", slow_but(itertools.product(KINDS, [3, None, 1]), 1))
def test_each_answer_is_that_of_the_single_solver(kind, block, x64):
    worlds = [KINDS[kind](seed) for seed in range(7)]
    solution = jax.jit(functools.partial(M.solve_batch, tolerance=1e-7, block=block))(stacked(worlds))
    assert bool(solution.converged.all())
    exact = jax.jit(functools.partial(M.policy_iteration, tolerance=1e-9))
    action_values = jax.jit(M.action_values)
    for i, world in enumerate(worlds):
        truth = exact(world)
        error = np.abs(solution.values[i] - truth.values).max()
        assert error <= solution.error_bound[i] <= 1e-7
        q = action_values(world, solution.values[i])
        np.testing.assert_allclose(solution.action_values[i], q, atol=1e-12)
        chosen = np.asarray(truth.action_values)[np.arange(world.num_states), solution.policy[i]]
        np.testing.assert_allclose(chosen, truth.values, atol=2e-7)


@pytest.mark.parametrize("tolerance", [0.0, 0.05])
def test_the_bound_holds_in_single_precision(tolerance):
    worlds = [M.garnet(jax.random.key(seed), 9, 3, 9, discount=0.99) for seed in range(5)]
    solution = jax.jit(M.solve_batch)(stacked(worlds), tolerance=tolerance)
    exact = jax.jit(M.policy_iteration)
    with jax.enable_x64(True):
        for i, world in enumerate(worlds):
            precise = jax.tree.map(lambda x: x.astype(float) if x.dtype == jnp.float32 else x, world)
            truth = exact(precise).values
            assert (
                np.abs(np.asarray(solution.values[i], float) - truth).max() <= solution.error_bound[i] < 0.2
            )
    assert bool(solution.converged.all()) == (tolerance > 0)
    assert (solution.iterations < 100).all()


@pytest.mark.parametrize("layout", slow_but([M.as_dense, M.as_sparse], 1))
def test_worlds_that_end_are_swept_until_converged_in_single_precision(layout):
    """Their values are far below max |r| / (1 − γ)."""

    def ending(seed):
        rng = np.random.default_rng(seed)
        kernel = 0.8 * rng.dirichlet(np.full(8, 0.5), (8, 3)) + 0.2 * np.eye(8)[-1]
        rewards = np.where(np.arange(8)[:, None] < 7, rng.normal(size=(8, 3)), 0)
        return layout(M.from_arrays(kernel, rewards, 0.99, terminal=np.arange(8) == 7))

    worlds = stacked([ending(seed) for seed in range(4)])
    batch, single = jax.jit(M.solve_batch)(worlds), jax.jit(jax.vmap(M.value_iteration))(worlds)
    assert bool(batch.converged.all())
    assert bool(single.converged.all())
    np.testing.assert_allclose(batch.values, single.values, atol=2e-3)


@pytest.mark.slow
def test_a_limit_on_sweeps_is_reported():
    worlds = stacked([M.garnet(jax.random.key(seed), 9, 3, 2, discount=0.99) for seed in range(3)])
    solution = jax.jit(M.solve_batch)(worlds, max_iterations=3)
    assert not bool(solution.converged.any())
    assert (solution.iterations == 3).all()


def test_the_bound_holds_long_before_convergence(x64):
    """All changes have one sign, but the terminal state's: V* is at the end of what is possible."""
    kernel = np.zeros((2, 1, 2))
    kernel[0, 0, 0] = 1
    for reward, held in ((1.0, 0.0), (-1.0, 0.0), (1.0, 1.0)):
        world = M.from_arrays(kernel, np.array([reward, held]), 0.9, terminal=np.array([False, True]))
        for limit in (0, 1, 5, 1000):
            solution = jax.jit(M.solve_batch)(stacked([world, world]), tolerance=1e-3, max_iterations=limit)
            assert np.abs(solution.values[0, 0] - 10 * reward) <= solution.error_bound[0] < 10.01
            assert bool(solution.converged.all()) == (limit == 1000)
            np.testing.assert_array_equal(solution.values[:, 1], held)


@pytest.mark.slow
def test_values_are_differentiable(x64):
    worlds = stacked([M.garnet(jax.random.key(seed), 5, 2, 5, discount=0.9) for seed in range(3)])

    def total(solve, rewards):
        return solve(worlds._replace(rewards=rewards)).values[:, 0].sum()

    batch = functools.partial(M.solve_batch, tolerance=1e-10, block=2)
    single = jax.vmap(functools.partial(M.value_iteration, tolerance=1e-10))
    by_batch, by_single = (
        jax.jit(jax.grad(functools.partial(total, f)))(worlds.rewards) for f in (batch, single)
    )
    np.testing.assert_allclose(by_batch, by_single, atol=1e-8)
    assert np.abs(by_batch).max() > 0.5


def test_what_is_no_batch_is_refused():
    world = M.russell_norvig(0.9).mdp
    with pytest.raises(ValueError, match=r"rewards have shape \(11, 4\)"):
        M.solve_batch(world)
    with pytest.raises(ValueError, match="stack at least one MDP"):
        M.solve_batch(jax.tree.map(lambda x: x[None][:0], world))
    with pytest.raises(ValueError, match="block must be at least 1, not 0"):
        M.solve_batch(stacked([world]), block=0)


def test_an_mdp_beyond_the_cache_is_a_block_of_its_own(monkeypatch):
    monkeypatch.setattr("jaxrl4lm.mdp.batch.CACHE_BYTES", 1)
    worlds = stacked([M.garnet(jax.random.key(seed), 9, 3, 2) for seed in range(3)])
    assert jax.eval_shape(M.solve_batch, worlds).values.shape == (3, 9)
