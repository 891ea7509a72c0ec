"""Solvers against known answers, peers, brute force, each other, and their own stated bounds."""

import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import mdp as M
from jaxrl4lm.mdp import evaluation
from tests.selection import slow_but

OPTIMAL = [M.value_iteration, M.action_value_iteration, M.policy_iteration, M.modified_policy_iteration]
OFTEN = slow_but(OPTIMAL, [M.modified_policy_iteration])
compiled = functools.cache(lambda solver, **fixed: jax.jit(functools.partial(solver, **fixed)))
several = hypothesis.settings(max_examples=25, deadline=None, derandomize=True)


def random_mdp(seed, discount=0.9, states=6, actions=3, leak=0.0):
    """With leak > 0 the last state is terminal, and every action reaches it at least that probably."""
    rng = np.random.default_rng(seed)
    kernel = rng.dirichlet(np.full(states, 0.3), (states, actions))
    if leak:
        kernel = (1 - leak) * kernel + leak * np.eye(states)[-1]
    rewards = rng.normal(size=(states, actions)) * rng.choice([0.1, 1, 100])
    if not leak:
        return M.from_arrays(kernel, rewards, discount)
    rewards[-1] = rng.normal()
    return M.from_arrays(kernel, rewards, discount, terminal=np.arange(states) == states - 1)


def best_by_enumeration(world):
    """V* by solving every deterministic policy in NumPy."""
    kernel = np.asarray(M.transitions.to_dense(world.transitions).probabilities, np.float64)
    rewards, discount = np.asarray(world.rewards, np.float64), float(world.discount)
    states = np.arange(world.num_states)
    values = [
        np.linalg.solve(
            np.eye(len(states)) - discount * kernel[states, list(policy)], rewards[states, list(policy)]
        )
        for policy in itertools.product(range(world.num_actions), repeat=world.num_states)
    ]
    return np.max(values, axis=0)


def on_grid(world, values):
    return np.where(world.index >= 0, np.asarray(values)[world.index], np.nan)


@pytest.mark.parametrize("solver", OPTIMAL)
def test_russell_and_norvig_utilities(solver):
    world = M.russell_norvig()
    solution = compiled(solver, tolerance=1e-4)(world.mdp)
    expected = [[0.812, 0.868, 0.918, 1], [0.762, np.nan, 0.660, -1], [0.705, 0.655, 0.611, 0.388]]
    np.testing.assert_allclose(on_grid(world, solution.values), expected, atol=5.1e-4)
    assert bool(solution.converged)
    assert "".join(M.ARROWS[a] for a in solution.policy[jnp.array([4, 5, 7, 8, 9, 10])]) == "↑↑↑←←←"


@pytest.mark.parametrize("solver", OFTEN)
def test_the_lectures_two_worlds_exactly(solver):
    one, discounted = M.lecture(1.0), M.lecture(0.9)
    values = on_grid(one, compiled(solver, tolerance=1e-4)(one.mdp).values)
    np.testing.assert_allclose(values, [[1, 1, 1, 1], [1, np.nan, 1, -1], [1, 1, 1, 1]], rtol=1e-6)
    values = on_grid(discounted, compiled(solver, tolerance=1e-4)(discounted.mdp).values)
    powers = 0.9 ** np.array([[3, 2, 1, 0], [4, np.nan, 2, 0], [5, 4, 3, 4]])
    powers[1, 3] = -1
    np.testing.assert_allclose(values, powers, rtol=1e-6)


@pytest.mark.parametrize("solver", OFTEN)
def test_optimum_equals_the_best_of_all_policies(solver, x64):
    world = random_mdp(3, states=5)
    solution = compiled(solver, tolerance=1e-9)(world)
    np.testing.assert_allclose(solution.values, best_by_enumeration(world), atol=1e-8)
    np.testing.assert_allclose(M.policy_values(world, solution.policy), solution.values, atol=1e-8)
    np.testing.assert_allclose(solution.action_values.max(-1), solution.values, atol=1e-8)


@pytest.mark.parametrize(
    "solver, shape",
    slow_but([(M.modified_policy_iteration, (30, 2, 30)), (M.value_iteration, (40, 4, 3))], 1),
)
def test_peers_agree(solver, shape, x64):
    quantecon, mdpsolver = pytest.importorskip("quantecon"), pytest.importorskip("mdpsolver")
    world = M.garnet(jax.random.key(1), *shape, discount=0.95)
    kernel = np.asarray(M.transitions.to_dense(world.transitions).probabilities)
    values = np.asarray(compiled(solver, tolerance=1e-9)(world).values)
    peer = quantecon.markov.DiscreteDP(np.asarray(world.rewards), kernel, 0.95).solve("policy_iteration").v
    np.testing.assert_allclose(values, peer, atol=1e-8)
    model = mdpsolver.model()
    model.mdp(discount=0.95, rewards=world.rewards.tolist(), tranMatWithZeros=kernel.tolist())
    model.solve(algorithm="pi", tolerance=1e-10, parallel=False)
    np.testing.assert_allclose(values, model.getValueVector(), atol=1e-8)


@pytest.mark.parametrize(
    "precision, solver", slow_but(itertools.product([np.float32, np.float64], OPTIMAL), 3)
)
@several
@hypothesis.given(
    st.integers(0, 10_000), st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999]), st.sampled_from([1.0, 1e-3, 0.0])
)
def test_the_bound_holds_always(solver, precision, seed, discount, tolerance):
    with jax.enable_x64(precision == np.float64):
        leak = 0.2 if seed % 3 == 0 else 0.0
        discount = 1.0 if leak and seed % 2 else discount
        world = random_mdp(seed, discount, leak=leak)
        solution = compiled(solver)(world, tolerance=tolerance)
        truth = exact(world)
    error = np.abs(np.asarray(solution.values, np.float64) - truth).max()
    bound = float(solution.error_bound)
    assert error <= bound < np.inf
    assert bool(solution.converged) == (bound <= tolerance)


def exact(world):
    """V* by policy iteration in NumPy, float64."""
    kernel = np.asarray(world.transitions.probabilities, np.float64)
    rewards, discount = np.asarray(world.rewards, np.float64), float(world.discount)
    states, policy = np.arange(len(rewards)), np.zeros(len(rewards), int)
    while True:
        values = np.linalg.solve(
            np.eye(len(rewards)) - discount * kernel[states, policy], rewards[states, policy]
        )
        q = rewards + discount * kernel @ values
        better = q.max(-1) > q[states, policy] + 1e-11 * np.abs(values).max()
        if not better.any():
            return values
        policy = np.where(better, q.argmax(-1), policy)


@pytest.mark.parametrize("solver", slow_but([*OPTIMAL, M.soft_value_iteration], OPTIMAL[-2:]))
@pytest.mark.parametrize("discount", [0.99, 1.0])
def test_a_penalty_that_nobody_pays_changes_nothing_whatever_its_size(solver, discount):
    world = random_mdp(5, discount, leak=0.2)
    rewards = world.rewards.at[2, world.rewards[2].argmin()].add(-1e4)
    options = {"tolerance": 1e-2}
    if solver is M.soft_value_iteration:  # by default it is uniform over the feasible actions: without −∞
        options["reference"] = jnp.full(rewards.shape, 1 / rewards.shape[1])
    alone = compiled(solver)(world._replace(rewards=rewards), **options)
    for penalty in (1e6, 1e9, np.inf):
        heavy = world._replace(rewards=jnp.where(rewards < -9e3, -penalty, rewards))
        solution = compiled(solver)(heavy, **options)
        assert solution.converged
        np.testing.assert_array_equal(solution.values, alone.values)
        np.testing.assert_array_equal(solution.policy, alone.policy)
        assert solution.error_bound <= alone.error_bound


@several
@hypothesis.given(st.integers(0, 10_000), st.floats(0, 0.99))
def test_contraction_monotonicity_and_shift(seed, discount):
    with jax.enable_x64(True):
        world = random_mdp(seed, discount)
        u, v = np.random.default_rng(seed).normal(size=(2, 6))
        backup = compiled(M.backup)
        up, down = backup(world, jnp.maximum(u, v)), backup(world, jnp.asarray(v))
        gap = np.abs(np.asarray(backup(world, jnp.asarray(u)) - down)).max()
        assert gap <= discount * np.abs(u - v).max() + 1e-9
        assert (np.asarray(up) >= np.asarray(down) - 1e-9).all()
        np.testing.assert_allclose(backup(world, jnp.asarray(v) + 3), down + 3 * discount, atol=1e-9)


@pytest.mark.slow
@several
@hypothesis.given(st.integers(0, 10_000))
def test_relabelling_states_and_changing_the_layout_change_nothing(seed):
    with jax.enable_x64(True):
        world = random_mdp(seed)
        order = np.random.default_rng(seed).permutation(6)
        kernel = np.asarray(world.transitions.probabilities)[order][:, :, order]
        solve = compiled(M.modified_policy_iteration, tolerance=1e-10)
        values = np.asarray(solve(world).values)
        relabelled = solve(M.from_arrays(kernel, world.rewards[order], 0.9))
        np.testing.assert_allclose(relabelled.values, values[order], atol=1e-8)
        listed = M.from_successors(
            np.broadcast_to(np.arange(6), (6, 3, 6)), world.transitions.probabilities, world.rewards, 0.9
        )
        np.testing.assert_allclose(solve(listed).values, values, atol=1e-8)


def test_discount_limits(x64):
    world = random_mdp(5, 0.0)
    np.testing.assert_allclose(M.value_iteration(world).values, world.rewards.max(-1), atol=1e-12)
    episodic = random_mdp(5, 1.0, leak=0.3)
    near = M.value_iteration(episodic._replace(discount=jnp.asarray(1 - 1e-9)), tolerance=1e-7).values
    np.testing.assert_allclose(near, M.value_iteration(episodic, tolerance=1e-7).values, atol=1e-5)


@pytest.mark.parametrize(
    "solver", slow_but([*OPTIMAL, M.soft_value_iteration], [M.modified_policy_iteration])
)
def test_a_batch_of_mdps_and_discounts_equals_the_loop(solver, x64):
    worlds = [random_mdp(seed) for seed in range(3)]
    population = jax.tree.map(lambda *leaves: jnp.stack(leaves), *worlds)
    discounts = jnp.array([0.3, 0.9, 0.99])
    solve = compiled(solver, tolerance=1e-8)
    together = jax.jit(jax.vmap(jax.vmap(lambda m, g: solve(m._replace(discount=g)), (None, 0)), (0, None)))(
        population, discounts
    )
    for i, j in np.ndindex(3, 3):
        alone = solve(worlds[i]._replace(discount=discounts[j]))
        np.testing.assert_allclose(together.values[i, j], alone.values, atol=1e-9)
        assert together.iterations[i, j] == alone.iterations


@pytest.mark.slow
@pytest.mark.parametrize("precision, digits", [("float32", 6), ("float64", 10)])
@pytest.mark.parametrize("solver", OPTIMAL)
def test_rows_that_sum_to_nearly_1_are_made_to(precision, digits, solver):
    with jax.enable_x64(precision == "float64"):
        rows = np.full((3, 1, 3), round(1 / 3, digits), precision)
        successors = np.tile(np.arange(3), (3, 1, 1))
        rewards = np.array([[1.0], [2.0], [3.0]], precision)
        for world in (
            M.from_arrays(rows, rewards, 0.999),
            M.from_successors(successors, rows, rewards, 0.999),
        ):
            solution = compiled(solver)(world, tolerance=1e-6)
            exact = rewards[:, 0] + 0.999 * 2000
            assert np.abs(solution.values - exact).max() <= solution.error_bound


@pytest.mark.slow
def test_a_tolerance_of_0_ends_where_nothing_changes_any_more():
    world = M.russell_norvig(0.9).mdp
    solution = jax.jit(M.modified_policy_iteration)(world, tolerance=0.0)
    assert solution.iterations < 100


@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3, 1e6, 1e12])
def test_the_soft_bound_holds_at_any_temperature(temperature):
    """Of two states alike, V = (τ log mean exp(r / τ)) / (1 − γ)."""
    world = M.from_arrays(np.full((2, 2, 2), 0.5), [[1.0, 0.0], [1.0, 0.0]], 0.9)
    solution = jax.jit(M.soft_value_iteration)(world, temperature=temperature, tolerance=0.0)
    step = 1 + temperature * np.log1p(0.5 * np.expm1(-1 / temperature))
    assert np.abs(solution.values - 10 * step).max() <= solution.error_bound
    assert solution.error_bound < 1e-3


def test_a_soft_value_has_a_gradient_where_the_reference_is_0(x64):
    world = random_mdp(1, 0.8)
    reference = jnp.array(np.random.default_rng(1).dirichlet(np.ones(3), 6)).at[:, 0].set(0)
    gradient = jax.grad(lambda r: M.operators.soft_backup(world, jnp.arange(6.0), reference=r).sum())(
        reference
    )
    assert np.isfinite(gradient).all()


@pytest.mark.slow
@pytest.mark.parametrize("solver", OPTIMAL)
def test_float32_at_the_rounding_level_stops_and_says_so(solver):
    world = M.garnet(jax.random.key(0), 50, 3, 4, discount=0.999)
    solution = compiled(solver)(world, tolerance=1e-7)
    assert not bool(solution.converged)
    assert 1e-7 < solution.error_bound < 1.0  # values are about 700
    assert solution.iterations < 20_000


def test_span_and_supremum_stop_at_the_same_answer_and_span_stops_first(x64):
    world = random_mdp(8, 0.99)
    by_span = M.value_iteration(world, tolerance=1e-6)
    by_norm = M.value_iteration(world, tolerance=1e-6, within=M.supremum)
    np.testing.assert_allclose(by_span.values, by_norm.values, atol=2e-6)
    assert by_span.iterations < by_norm.iterations


@pytest.mark.slow
@pytest.mark.parametrize("rewards", [[-1.0, -2.0], [2.0, 1.0]])
def test_the_textbooks_bound_holds_whatever_the_sign_of_the_change(rewards, x64):
    world = M.from_arrays(np.eye(2)[:, None], rewards, 0.9)  # each stays where it is
    truth = M.policy_values(world, jnp.zeros(2, jnp.int32))
    for solver in (M.value_iteration, M.action_value_iteration):
        solution = solver(world, tolerance=0.1, within=M.supremum)
        assert 0.01 < np.abs(solution.values - truth).max() <= solution.error_bound <= 0.1


@pytest.mark.slow
@pytest.mark.parametrize("solver", OPTIMAL)
@pytest.mark.parametrize("leak", [0.0, 0.05])
def test_a_limit_on_iterations_is_kept_and_the_bound_holds_there(solver, leak, x64):
    world = random_mdp(7, 0.99, states=60, actions=9, leak=leak)
    for limit in (1, 2):
        solution = compiled(solver)(world, tolerance=1e-9, max_iterations=limit)
        assert solution.iterations == limit
        assert np.abs(solution.values - exact(world)).max() <= solution.error_bound
    policy = jnp.zeros(60, jnp.int32)
    evaluation = compiled(M.evaluate_policy)(world, policy, tolerance=1e-9, max_iterations=3)
    assert evaluation.iterations == 3
    assert not bool(evaluation.converged)
    assert np.abs(evaluation.values - M.policy_values(world, policy)).max() <= evaluation.error_bound


@pytest.mark.slow
@pytest.mark.parametrize("solver", [M.modified_policy_iteration, M.action_value_iteration, M.value_iteration])
def test_who_starts_at_the_answer_is_there_at_once(solver, x64):
    world = random_mdp(7, 0.99, leak=0.05)
    cold = compiled(solver, tolerance=1e-7)(world)
    start = cold.action_values if solver is M.action_value_iteration else cold.values
    warm = compiled(solver, tolerance=1e-6)(world, start=start)
    assert warm.iterations <= 1 < cold.iterations
    np.testing.assert_allclose(warm.values, cold.values, atol=2e-6)


def test_evaluation_equals_the_linear_solve(x64):
    world = random_mdp(4)
    policy = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(3), 6))
    solution = M.evaluate_policy(world, policy, tolerance=1e-9)
    np.testing.assert_allclose(solution.values, M.policy_values(world, policy), atol=1e-8)
    np.testing.assert_allclose(solution.action_values, M.policy_action_values(world, policy), atol=1e-8)
    walk = M.chain(7)
    np.testing.assert_allclose(
        M.evaluate_policy(walk, jnp.zeros(7, jnp.int32), tolerance=1e-9).values, np.arange(7) / 6
    )


def test_backward_induction_equals_a_numpy_loop(x64):
    world, horizon = random_mdp(2, 0.8), 5
    plan = M.backward_induction(world, horizon)
    kernel, rewards = np.asarray(world.transitions.probabilities), np.asarray(world.rewards)
    values = np.zeros(6)
    for t in reversed(range(horizon)):
        q = rewards + 0.8 * kernel @ values
        values = q.max(-1)
        np.testing.assert_allclose(plan.values[t], values, atol=1e-12)
        np.testing.assert_array_equal(plan.policy[t], q.argmax(-1))
        np.testing.assert_allclose(plan.action_values[t], q, atol=1e-12)
    assert plan.values.shape == (6, 6)
    final = np.arange(6.0)
    one_left = M.backward_induction(world, 1, final_values=jnp.asarray(final)).values
    np.testing.assert_allclose(one_left, [(rewards + 0.8 * kernel @ final).max(-1), final], atol=1e-12)
    held = M.backward_induction(M.lecture().mdp, 1).values
    np.testing.assert_allclose(held[1], np.where(M.lecture().mdp.terminal, M.lecture().mdp.rewards[:, 0], 0))
    np.testing.assert_allclose(held[0].max(), 1)


def test_soft_value_iteration_limits_and_policy(x64):
    world = random_mdp(1, 0.8)
    hard = M.value_iteration(world, tolerance=1e-9)
    cold = M.soft_value_iteration(world, temperature=1e-6, tolerance=1e-9)
    np.testing.assert_allclose(cold.values, hard.values, atol=1e-4)
    reference = jnp.asarray(np.random.default_rng(1).dirichlet(np.ones(3), 6))
    hot = M.soft_value_iteration(world, temperature=1e6, reference=reference, tolerance=1e-9)
    np.testing.assert_allclose(hot.policy, reference, atol=1e-3)
    np.testing.assert_allclose(hot.values, M.policy_values(world, reference), atol=1e-2)
    # Its policy attains its value: E_π[r − τ KL] accumulated.
    soft = M.soft_value_iteration(world, temperature=0.5, reference=reference, tolerance=1e-10)
    price = 0.5 * jnp.sum(soft.policy * jnp.log(soft.policy / reference), axis=-1, keepdims=True)
    attained = M.policy_values(world._replace(rewards=world.rewards - price), soft.policy)
    np.testing.assert_allclose(attained, soft.values, atol=1e-8)


def test_the_bandit_optimum_under_a_price_for_kl_is_the_tilted_reference(x64):
    rewards, reference = np.array([[1.0, 0.0, 2.0], [0, 0, 0]]), np.array([[0.5, 0.3, 0.2], [1, 0, 0]])
    kernel = np.zeros((2, 3, 2))
    kernel[0, :, 1] = 1
    world = M.from_arrays(kernel, rewards, 1.0, terminal=[False, True])
    policy = M.soft_value_iteration(
        world, temperature=0.7, reference=jnp.asarray(reference), tolerance=1e-9
    ).policy
    tilted = reference[0] * np.exp(rewards[0] / 0.7)
    np.testing.assert_allclose(policy[0], tilted / tilted.sum(), atol=1e-9)


@pytest.mark.parametrize(
    "solver", slow_but([M.modified_policy_iteration, M.policy_iteration, M.soft_value_iteration], 1)
)
def test_values_are_differentiable_through_the_fixed_point(solver, x64):
    world = random_mdp(9, 0.9)

    def total(rewards, discount):
        return solver(world._replace(rewards=rewards, discount=discount), tolerance=1e-11).values[:3].sum()

    by_reward, by_discount = jax.jit(jax.grad(total, argnums=(0, 1)))(world.rewards, world.discount)
    evaluate = jax.jit(total)
    step = 1e-5 * float(jnp.abs(world.rewards).max())
    for s, a in [(0, 0), (0, 1), (0, 2), (4, 1)]:
        nudge = jnp.zeros_like(world.rewards).at[s, a].set(step)
        slope = (
            evaluate(world.rewards + nudge, world.discount) - evaluate(world.rewards - nudge, world.discount)
        ) / (2 * step)
        np.testing.assert_allclose(by_reward[s, a], slope, rtol=1e-4, atol=1e-5)
    slope = (
        evaluate(world.rewards, world.discount + 1e-6) - evaluate(world.rewards, world.discount - 1e-6)
    ) / 2e-6
    np.testing.assert_allclose(by_discount, slope, rtol=1e-4)
    along = jnp.ones_like(world.rewards)
    tangent = jax.jit(lambda r: jax.jvp(lambda r: total(r, world.discount), (r,), (along,))[1])(world.rewards)
    np.testing.assert_allclose(tangent, by_reward.sum(), rtol=1e-8)


def test_objective_gradient_and_visits(x64):
    world = random_mdp(6)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)))
    theorem, by_grad = (
        jax.jit(f)(world, logits) for f in (M.policy_gradient, jax.grad(M.objective, argnums=1))
    )
    np.testing.assert_allclose(theorem, by_grad, atol=1e-9)
    step = 1e-6
    nudge = jnp.zeros_like(logits).at[2, 1].set(step)
    slope = (M.objective(world, logits + nudge) - M.objective(world, logits - nudge)) / (2 * step)
    np.testing.assert_allclose(theorem[2, 1], slope, rtol=1e-5, atol=1e-7)
    policy = jax.nn.softmax(logits)
    matrix, visits, flow = np.asarray(M.policy_matrix(world, policy)), 0.0, np.asarray(world.initial)
    for _ in range(400):
        visits, flow = visits + flow, 0.9 * flow @ matrix
    np.testing.assert_allclose(M.visitation(world, policy), visits, atol=1e-9)
    chain = M.policy_chain(M.as_sparse(world), policy)
    np.testing.assert_allclose(
        M.operators.backward_visits(chain, world.initial), world.initial @ matrix, atol=1e-12
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "world",
    [M.queue(300, discount=0.999), M.garnet(jax.random.key(2), 300, 3, 4, discount=0.99), M.forest(60)],
)
def test_krylov_evaluation_gives_what_plain_sweeps_give(world, x64):
    world = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, world)
    scale = world.transitions.probabilities.sum(axis=1, keepdims=True)
    world = world._replace(
        transitions=jax.tree.map(lambda x: x / scale if x.dtype == jnp.float64 else x, world.transitions)
    )
    krylov = compiled(M.modified_policy_iteration, sweeps=3)(world, tolerance=1e-7)
    plain = compiled(M.value_iteration)(world, tolerance=1e-7)
    np.testing.assert_allclose(krylov.values, plain.values, atol=2e-7)
    assert bool(krylov.converged)


@pytest.mark.slow
@pytest.mark.parametrize("make", [M.queue, M.forest])
def test_a_birth_death_chain_is_evaluated_directly(make, x64):
    world = make(60, discount=0.999)
    assert isinstance(world.transitions, M.Banded)
    assert (world.transitions.hub is None) == (make is M.queue)
    solution = compiled(M.modified_policy_iteration)(world, tolerance=1e-8)
    np.testing.assert_allclose(solution.values, M.policy_iteration(world).values, atol=1e-8)
    assert solution.iterations <= 20
    policy = jnp.arange(60, dtype=jnp.int32) % world.num_actions
    values, change = M.policy_values(world, policy), jnp.arange(60.0) ** 2
    start = values - change
    swept = M.policy_backup(world, policy, start)
    rest = evaluation.find_correction(
        world.transitions.under(policy), world.discount, swept - start, jnp.asarray(0.0), sweeps=0, krylov=1
    )
    assert not bool(rest.tried | rest.solved)
    np.testing.assert_allclose(swept + rest.total, values, rtol=1e-9)


@pytest.mark.slow
def test_action_values_are_differentiable_and_their_maximum_is_the_value(x64):
    world = random_mdp(9, 0.9)

    @jax.jit
    def one(rewards):
        world_ = world._replace(rewards=rewards)
        return M.modified_policy_iteration(world_, tolerance=1e-11).action_values[2, 1]

    slopes = jax.jit(jax.grad(one))(world.rewards)
    step = 1e-5 * float(jnp.abs(world.rewards).max())
    for s, a in [(2, 1), (0, 0), (4, 2)]:
        nudge = jnp.zeros_like(world.rewards).at[s, a].set(step)
        slope = (one(world.rewards + nudge) - one(world.rewards - nudge)) / (2 * step)
        np.testing.assert_allclose(slopes[s, a], slope, rtol=1e-4, atol=1e-5)
    solution = M.modified_policy_iteration(world, tolerance=1e-3)
    np.testing.assert_array_equal(solution.action_values.max(-1), solution.values)


@pytest.mark.parametrize(
    "policy, message",
    [
        ([0, -1, 0], "policy of state 1 is -1: give an action in"),
        ([0, 5, 0], "policy of state 1 is 5"),
        ([[0.5, 0.0]] * 3, "policy of state 0 is .0.5 0. .: give probabilities that sum to 1"),
        ([[1.5, -0.5]] * 3, "give probabilities"),
        ([0, 0], "policy has shape"),
    ],
)
def test_policies_that_are_none_are_refused(policy, message):
    world = M.garnet(jax.random.key(0), 3, 2, 2)
    with pytest.raises(M.MDPError, match=message):
        M.evaluate_policy(world, jnp.array(policy))
    if jnp.ndim(policy) == 2:
        with pytest.raises(M.MDPError, match=message.replace("policy", "reference")):
            M.soft_value_iteration(world, reference=jnp.array(policy))
    with pytest.raises(M.MDPError, match=r"reference has shape \(3,\): give \(3, 2\)"):
        M.soft_value_iteration(world, reference=jnp.array([0, 1, 0]))
    with pytest.raises(M.MDPError, match=r"reference has shape \(2,\)"):  # it would broadcast
        jax.eval_shape(lambda x: M.soft_value_iteration(world, reference=x), jnp.array([0.5, 0.5]))
    for wrong in (0, np.float32(-1), jnp.float32(-1)):
        with pytest.raises(M.MDPError, match="temperature is "):
            M.soft_value_iteration(world, temperature=wrong)


def test_what_a_policy_says_of_terminal_states_is_not_read():
    kernel = np.zeros((3, 2, 3))
    kernel[0, :, 1] = kernel[1:, :, 2] = 1
    world = M.from_arrays(kernel, [[1, 2], [3, 4], [0, 0]], 1.0, terminal=[False, False, True])
    evaluate, soft = jax.jit(M.evaluate_policy), jax.jit(M.soft_value_iteration)
    for action in (0, 9, -1):
        np.testing.assert_allclose(evaluate(world, jnp.array([0, 1, action])).values, [5, 4, 0])
    expected = soft(world, reference=jnp.array([[0.5, 0.5], [0.2, 0.8], [0.5, 0.5]])).values
    for row in ([0, 0], [np.nan, 0], [-1, 2]):
        policy = jnp.array([[0.5, 0.5], [0.2, 0.8], row])
        np.testing.assert_allclose(evaluate(world, policy).values, [5.3, 3.8, 0], rtol=1e-6)
        np.testing.assert_allclose(soft(world, reference=policy).values, expected)


@pytest.mark.parametrize("solver", OFTEN)
def test_a_circle_that_pays_counts_although_an_end_is_nearer(solver, x64):
    """Every third step pays more than the two before it cost; to end at once looks best until then."""
    kernel, rewards = np.zeros((6, 2, 6)), np.zeros((6, 2))
    kernel[:5, :, 5] = 1
    kernel[0, 1], kernel[1, 1] = np.eye(6)[1:3]
    kernel[2, 1] = [0.9, 0, 0, 0, 0, 0.1]
    rewards[:3, 1] = [-1e-5, -1e-5, 1e-4]
    world = M.from_arrays(kernel, rewards, 1.0, terminal=np.arange(6) == 5)
    solution = compiled(solver)(world)
    assert np.abs(solution.values - exact(world)).max() <= solution.error_bound
    assert solution.converged
