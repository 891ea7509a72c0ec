"""Constructors: three layouts are one MDP, and bad arrays are refused with a sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import mdp as M
from jaxrl4lm.envs.finite_mdp import as_environment
from tests.selection import slow_but

STATES, ACTIONS, WIDTH = 7, 3, 2


def lists(seed=0):
    rng = np.random.default_rng(seed)
    successors = rng.permuted(np.tile(np.arange(STATES), (STATES, ACTIONS, 1)), axis=-1)[..., :WIDTH]
    return (
        successors,
        rng.dirichlet(np.ones(WIDTH), (STATES, ACTIONS)),
        rng.normal(size=(STATES, ACTIONS, WIDTH)),
    )


def as_dense(successors, probabilities):
    full = np.zeros((STATES, ACTIONS, STATES))
    np.put_along_axis(full, successors, probabilities, axis=-1)
    return full


def test_dense_sparse_and_banded_give_the_same_expectations(x64):
    successors, probabilities, _ = lists()
    values = np.random.default_rng(1).normal(size=STATES)
    policy = np.random.default_rng(2).dirichlet(np.ones(ACTIONS), STATES)
    full = as_dense(successors, probabilities)
    lazy = M.from_successors(successors, probabilities, np.zeros(STATES), 0.9).transitions
    banded = M.as_sparse(M.from_arrays(full, np.zeros(STATES), 0.9)).transitions
    banded = M.transitions.to_banded(banded, max_diagonals=2 * STATES)
    assert isinstance(lazy, M.Sparse | M.Banded)
    assert isinstance(banded, M.Banded)
    dense = M.Dense(jnp.asarray(full))
    for kernel in (dense, banded):
        assert M.transitions.to_banded(kernel) is kernel
    for kernel in (dense, lazy, banded):
        expectations_agree(kernel, full, values, policy)


def test_a_hub_is_found_and_gives_the_same_expectations(x64):
    """Up or stay, and from everywhere to state 7, which also has itself and its neighbours as successors."""
    rng, states = np.random.default_rng(0), 16
    full = np.zeros((states, ACTIONS, states))
    for offset in (0, 1):
        here = np.arange(states - offset)
        full[here, :, here + offset] = rng.random((len(here), ACTIONS))
    full[:, :, 7] += rng.random((states, ACTIONS))
    full /= full.sum(axis=-1, keepdims=True)
    kernel = M.transitions.to_banded(M.as_sparse(M.from_arrays(full, np.zeros(states), 0.9)).transitions)
    assert isinstance(kernel, M.Banded)
    assert kernel.hub == 7
    assert kernel.offsets == (0, 1)
    expectations_agree(kernel, full, rng.normal(size=states), rng.dirichlet(np.ones(ACTIONS), states))


@pytest.mark.parametrize(
    "offsets, hub_from, layout",
    slow_but(
        [
            (range(-4, 5), None, "diagonals"),
            (range(-3, 1), None, "diagonals"),
            (range(-4, 6), None, "lists"),
            (range(-1, 2), 0, "a hub"),
            (range(-1, 2), 13, "lists"),
            (range(-1, 3), 0, "lists"),
        ],
        3,
    ),
)
def test_few_diagonals_or_three_and_a_hub_are_stored_as_such(offsets, hub_from, layout):
    """The hub, state 7, follows from `hub_from` on: from fewer than all states it is none."""
    states = np.arange(24)
    successors = np.clip(states[:, None] + np.array(offsets), 0, 23)
    if hub_from is not None:
        hub = np.where(states < hub_from, states, 7)
        successors = np.concatenate([successors, hub[:, None]], axis=1)
    chances = np.full(successors.shape, 1 / successors.shape[1])
    kernel = M.from_successors(successors[:, None], chances[:, None], np.zeros(24), 0.9).transitions
    full = np.zeros((24, 24))
    np.add.at(full, (states[:, None], successors), chances)
    np.testing.assert_allclose(M.transitions.to_dense(kernel).probabilities[:, 0], full, atol=1e-6)
    values = np.arange(24.0) ** 2
    np.testing.assert_allclose(kernel.expect(jnp.asarray(values))[:, 0], full @ values, rtol=1e-5)
    if layout == "lists":
        assert isinstance(kernel, M.Sparse)
        return
    assert isinstance(kernel, M.Banded)
    assert (kernel.offsets, kernel.hub) == (tuple(offsets), 7 if layout == "a hub" else None)
    following = np.asarray(kernel.successors(jnp.arange(24)))
    np.testing.assert_array_equal(following.T, successors)


@pytest.mark.parametrize("layout", slow_but([M.as_dense, M.as_sparse], 1))
def test_where_every_state_is_terminal_nothing_follows(layout):
    world = M.from_successors(
        np.zeros((2, 1, 1), int), np.ones((2, 1, 1)), [3.0, -1.0], 0.9, terminal=[True, True]
    )
    np.testing.assert_array_equal(layout(M.as_dense(world)).transitions.expect(jnp.array([5.0, 7])), 0)
    np.testing.assert_array_equal(world.transitions.expect(jnp.array([5.0, 7])), 0)
    np.testing.assert_array_equal(M.value_iteration(world).values, [3, -1])


def expectations_agree(kernel, full, values, policy):
    np.testing.assert_allclose(kernel.expect(jnp.asarray(values)), full @ values, atol=1e-12)
    np.testing.assert_allclose(M.transitions.to_dense(kernel).probabilities, full, atol=1e-12)
    chain = kernel.under(jnp.asarray(policy)).expect(jnp.asarray(values))[:, 0]
    np.testing.assert_allclose(chain, np.einsum("sat,sa,t->s", full, policy, values), atol=1e-12)
    actions = jnp.arange(len(full), dtype=jnp.int32) % ACTIONS
    chosen = kernel.under(actions).expect(jnp.asarray(values))[:, 0]
    np.testing.assert_allclose(chosen, full[np.arange(len(full)), actions] @ values, atol=1e-12)


@pytest.mark.parametrize("layout", slow_but(["sparse", "banded"], 1))
def test_many_actions_take_the_other_program_and_give_the_same(layout, monkeypatch, x64):
    world = M.garnet(jax.random.key(0), STATES, ACTIONS, WIDTH) if layout == "sparse" else M.queue(STATES)
    values = jnp.arange(STATES, dtype=float) ** 2
    policy = jnp.arange(STATES, dtype=jnp.int32) % ACTIONS
    answers = []
    for limit in (128, 0):
        monkeypatch.setattr(M.transitions, "MAX_UNROLLED", limit)
        monkeypatch.setattr(M.operators, "MAX_COMPARED", limit)
        chain = M.policy_chain(world, policy)
        answers.append(
            [
                M.backup(world, values),
                M.greedy(world, values),
                M.backup(chain, values),
                world.transitions.expect(values),
            ]
        )
    for one, other in zip(*answers, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_rewards_by_outcome_become_expected_ones(x64):
    successors, probabilities, rewards = lists()
    expected = (probabilities * rewards).sum(-1)
    np.testing.assert_allclose(M.from_successors(successors, probabilities, rewards, 0.9).rewards, expected)
    full = as_dense(successors, rewards)
    world = M.from_arrays(as_dense(successors, probabilities), full, 0.9)
    np.testing.assert_allclose(world.rewards, expected)
    np.testing.assert_allclose(world.outcome_rewards, full)


def test_a_terminal_state_is_held_at_its_reward():
    world = M.from_arrays(np.full((2, 1, 2), np.nan_to_num(0.5)), [1.0, 7.0], 0.5, terminal=[False, True])
    np.testing.assert_allclose(
        M.value_iteration(world, tolerance=1e-5).values, [(1 + 0.25 * 7) / 0.75, 7], rtol=1e-5
    )
    np.testing.assert_allclose(world.initial, [1, 0])


@pytest.mark.parametrize("layout", ["dense", "lists"])
def test_rows_of_a_terminal_state_are_ignored_and_its_rewards_by_outcome_are_its_value(layout):
    rewards = np.array([[[1.0, 3.0]], [[7.0, 7.0]]])
    ends = {"terminal": [False, True]}
    if layout == "dense":
        world = M.from_arrays(np.full((2, 1, 2), 0.5), rewards, 0.5, **ends)
    else:
        successors = np.broadcast_to([0, 1], (2, 1, 2))
        world = M.from_successors(successors, np.full((2, 1, 2), 0.5), rewards, 0.5, **ends)
    np.testing.assert_array_equal(world.rewards, [[2], [7]])
    np.testing.assert_array_equal(M.transitions.to_dense(world.transitions).probabilities[1], 0)
    np.testing.assert_allclose(M.policy_values(world, jnp.zeros(2, jnp.int32)), [(2 + 0.25 * 7) / 0.75, 7])


GOOD = {"transitions": np.full((2, 2, 2), 0.5), "rewards": np.zeros(2), "discount": 0.9}


def spoilt(index, value):
    array = GOOD["transitions"].copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    "change, message",
    [
        ({"transitions": spoilt((1, 0, 0), 0.7)}, r"state 1, action 0 sum to 1\.2"),
        ({"transitions": spoilt((0, 1, 1), -0.5)}, r"state 0, action 1 hold -0\.5"),
        ({"transitions": spoilt((1, 1, 0), np.nan)}, "state 1, action 1 hold nan"),
        ({"transitions": np.ones((2, 2))}, r"transitions has shape \(2, 2\)"),
        ({"rewards": np.zeros(3)}, r"rewards has shape \(3,\)"),
        ({"rewards": np.array([[0, np.inf], [0, 0]])}, "rewards of state 0, action 1 is inf"),
        (
            {"rewards": np.array([[0, 0], [0, 1]]), "terminal": [False, True]},
            "rewards of terminal state 1 differ",
        ),
        ({"discount": 1.5}, r"discount is 1\.5"),
        ({"discount": -0.1}, r"discount is -0\.1"),
        ({"discount": 1.0}, "no state is terminal"),
        ({"terminal": [True]}, r"terminal has shape \(1,\)"),
        ({"terminal": [np.nan, 0]}, "dtype float64: give one bool"),
        ({"rewards": np.zeros(2, complex)}, "rewards has dtype complex128: give real numbers"),
        ({"transitions": spoilt((0, 0, 0), 0.5).astype(complex)}, "transitions has dtype complex128"),
        ({"discount": 1 - 1e-9}, r"discount is 0\.999999999, which is 1 in float32"),
        ({"discount": 0.9 + 0j}, r"discount is \(0\.9\+0j\): give a number"),
        ({"discount": ".9"}, r"discount is \.9: give a number"),
        ({"horizon": 2**31}, "horizon is 2147483648: give"),
        ({"horizon": True}, "horizon is True: give"),
        ({"horizon": 0}, "horizon is 0: give a whole number"),
        ({"horizon": 2.5}, r"horizon is 2\.5: give"),
        ({"initial": [1.5, -0.5]}, r"initial has shape \(2,\) and sum 1: give a distribution"),
        ({"initial": [0.5, 0.6]}, r"initial has shape \(2,\) and sum 1\.1"),
    ],
)
def test_bad_arrays_are_refused_with_a_sentence(change, message):
    with pytest.raises(M.MDPError, match=message):
        M.from_arrays(**{**GOOD, **change})


@pytest.mark.parametrize(
    "successors, message",
    [
        (np.full((2, 1, 1), 5), r"successors\[0, 0, 0\] is 5"),
        (np.zeros((2, 1, 1)), "dtype float64"),
        (np.zeros((2, 1, 2), int), "give .S, A, K. twice"),
    ],
)
def test_bad_successors_are_refused_with_a_sentence(successors, message):
    with pytest.raises(M.MDPError, match=message):
        M.from_successors(successors, np.ones((2, 1, 1)), np.zeros(2), 0.9)


@pytest.mark.parametrize(
    "text, message",
    [
        (". . +1\n. x .", r"Line 2, column 3: 'x'"),
        ("\n. . +1\n. . . .", "Line 3, column 7: the line has 4 cells, line 2 has 3"),
        (". inf", "Line 1, column 3: 'inf'"),
        ("  \n ", "empty"),
        ("# #", "only walls"),
    ],
)
def test_a_malformed_map_names_line_and_column(text, message):
    with pytest.raises(M.MapError, match=message):
        M.grid_world(text)


@pytest.mark.parametrize("states, successors", [(9, 9), (70, 70), (70, 3), (2000, 3)])
def test_a_garnet_is_random_and_of_the_size_asked_for(states, successors):
    worlds = [M.garnet(jax.random.key(seed), states, 2, successors) for seed in range(2)]
    for world in worlds:
        assert world.transitions.shape == (states, 2, successors)
        assert isinstance(world.transitions, M.Dense) == (states == successors)
        assert 0 <= world.rewards.min() < 0.3
        assert 0.7 < world.rewards.max() < 1
    assert not np.array_equal(worlds[0].rewards, worlds[1].rewards)


def test_a_slip_beyond_one_half_is_refused():
    with pytest.raises(M.MapError, match=r"slip is 0\.6"):
        M.grid_world(". +1", slip=0.6)
    with pytest.raises(M.MapError, match="living_reward is nan"):
        M.grid_world(". +1", living_reward=np.nan)


def test_grid_moves_slip_and_bump():
    world = M.grid_world(". .\nS #", slip=0.1, discount=0.5)
    assert world.index.tolist() == [[0, 1], [2, -1]]
    kernel = M.transitions.to_dense(world.mdp.transitions).probabilities
    np.testing.assert_allclose(
        kernel[0, 0], [0.9, 0.1, 0], atol=1e-6
    )  # up: bumps, slips left (bumps) or right
    np.testing.assert_allclose(kernel[0, 1], [0.1, 0.8, 0.1], atol=1e-6)
    np.testing.assert_allclose(kernel[1, 2], [0.1, 0.9, 0], atol=1e-6)  # down: into the wall
    np.testing.assert_allclose(world.mdp.initial, [0, 0, 1])


def test_a_walk_a_queue_and_a_forest_are_what_their_sources_say():
    walk = M.chain(5, right=0.8)
    kernel = np.asarray(M.transitions.to_dense(walk.transitions).probabilities)[:, 0]
    np.testing.assert_allclose(kernel[1], [0.2, 0, 0.8, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(kernel[[0, 4]], 0)
    np.testing.assert_array_equal(walk.initial, [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(walk.rewards[:, 0], [0, 0, 0, 0, 1])
    queue = M.queue(4, arrival=0.4, service=(0.2, 0.5), cost=(0.1, 0.3))
    kernel = np.asarray(M.transitions.to_dense(queue.transitions).probabilities)
    np.testing.assert_allclose(kernel[1, 0], [0.6 * 0.2, 1 - 0.12 - 0.32, 0.4 * 0.8, 0], rtol=1e-6)
    np.testing.assert_allclose(kernel[0, 1], [0.8, 0.2, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(kernel[3, 1], [0, 0, 0.3, 0.7], rtol=1e-6)
    np.testing.assert_allclose(queue.rewards[2], [-0.6, -0.8], rtol=1e-6)
    forest = M.forest(3, fire=0.1)
    kernel = np.asarray(M.transitions.to_dense(forest.transitions).probabilities)
    np.testing.assert_allclose(kernel[:, 0], [[0.1, 0.9, 0], [0.1, 0, 0.9], [0.1, 0, 0.9]], rtol=1e-6)
    np.testing.assert_array_equal(kernel[:, 1], [[1, 0, 0]] * 3)
    np.testing.assert_array_equal(forest.rewards, [[0, 0], [0, 1], [4, 2]])


def test_the_cliff_is_walked_around_in_thirteen_steps():
    world = M.cliff()
    values = M.policy_iteration(world.mdp).values
    np.testing.assert_allclose(values @ world.mdp.initial, -13, rtol=1e-5)
    np.testing.assert_allclose(values[world.index[3, 1:]], [-100] * 10 + [0], rtol=1e-5)


class Counter:
    """Counts 0, 1, 2 and ends; its second action moves with probability ½. Rewards tell the state."""

    num_actions = 2

    def reset_env(self, key, params):
        return jnp.zeros(()), {"count": jnp.int32(0), "time": jnp.int32(0)}

    def step_env(self, key, state, action, params):
        moves = (action == 0) | jax.random.bernoulli(key)
        count = state["count"] + moves
        new = {"count": count.astype(jnp.int32), "time": state["time"] + 1}
        return jnp.zeros(()), new, 1.0 * state["count"], count == 3, {}


def test_enumeration_recovers_a_known_environment():
    world = M.from_environment(Counter(), None, discount=0.5, samples=400)
    assert world.num_states == 4
    kernel = np.asarray(M.transitions.to_dense(world.transitions).probabilities)
    np.testing.assert_array_equal(kernel[:3, 0], np.eye(4)[1:])
    np.testing.assert_allclose(kernel[:3, 1], (np.eye(4)[1:] + np.eye(4)[:3]) / 2, atol=0.1)
    np.testing.assert_array_equal(world.rewards[:3, 0], [0, 1, 2])
    assert world.terminal.tolist() == [False, False, False, True]
    assert world.initial.tolist() == [1, 0, 0, 0]


@pytest.mark.slow
def test_enumeration_of_an_mdp_as_an_environment_gives_it_back(x64):
    """99 states, which is more than are expanded at once; a start drawn from 98."""
    world = M.grid_world("\n".join([". . . . . . . . ." for _ in range(10)] + [". . . . . . . . +1"]))
    environment, params = as_environment(world.mdp)
    found = M.from_environment(environment, params, discount=0.9)
    assert found.num_states == 99
    np.testing.assert_allclose(found.initial.max(), 1 / 98, atol=7 * np.sqrt(1 / 98 / 256))
    ours, theirs = (np.sort(M.policy_iteration(w).values) for w in (world.mdp, found))
    # Held at 1, the goal pays 0.9 on the way in; enumerated, it is a terminal state worth 0.
    np.testing.assert_allclose(theirs[1:], ours[:-1], atol=1e-9)


@pytest.mark.slow
def test_enumeration_averages_rewards_over_draws_of_the_key_it_is_given():
    class Noisy(Counter):
        def step_env(self, key, state, action, params):
            obs, state, reward, ended, info = super().step_env(key, state, action, params)
            return obs, state, reward + jax.random.normal(jax.random.fold_in(key, 1)), ended, info

    seeds = [None, 0, 1]
    worlds = [
        M.from_environment(
            Noisy(), None, discount=0.5, samples=400, key=None if seed is None else jax.random.key(seed)
        )
        for seed in seeds
    ]
    for world in worlds:
        np.testing.assert_allclose(world.rewards[:3, 0], [0, 1, 2], atol=0.25)
        assert np.ptp(world.rewards[:3, 0] - np.arange(3)) > 1e-3  # no draw is used twice
    np.testing.assert_array_equal(worlds[0].rewards, worlds[1].rewards)
    assert not np.array_equal(worlds[1].rewards, worlds[2].rewards)


def test_enumeration_refuses_what_one_draw_or_one_time_does_not_show():
    class Chancy(Counter):
        def step_env(self, key, state, action, params):
            obs, state, reward, ended, info = super().step_env(key, state, action, params)
            return obs, state, reward + jax.random.bernoulli(key, 0.1), ended, info

    with pytest.raises(M.MDPError, match="chance decides what follows, and samples is 1"):
        M.from_environment(Chancy(), None, discount=0.5)
    with pytest.raises(M.MDPError, match="samples is 0"):
        M.from_environment(Counter(), None, discount=0.5, samples=0)

    class Late(Counter):
        """Pays at time 20."""

        def reset_env(self, key, params):
            return jnp.zeros(()), {"count": jnp.int32(0), "time": jnp.int32(0)}

        def step_env(self, key, state, action, params):
            time = state["time"] + 1
            after = {"count": jnp.int32(0), "time": time}
            return jnp.zeros(()), after, jnp.where(time == 20, 1.0, 0.0), time == 20, {}

    with pytest.raises(M.MDPError, match="the time decides what follows: give clock=True"):
        M.from_environment(Late(), None, discount=0.5)
    world = M.from_environment(Late(), None, discount=0.5, clock=True)
    assert world.num_states == 21
    np.testing.assert_allclose(M.value_iteration(world).values[0], 0.5**19, atol=1e-3)


def test_with_a_clock_the_time_limit_is_an_end():
    environment, params = as_environment(M.grid_world("S . .", living_reward=1.0).mdp, max_steps=3)
    world = M.from_environment(environment, params, discount=1.0, clock=True)
    assert world.num_states == 1 + 2 + 3 + 1
    np.testing.assert_array_equal(M.value_iteration(world).values[0], 3)


def test_enumeration_names_the_action_that_pays_no_number():
    class Broken(Counter):
        def step_env(self, key, state, action, params):
            obs, after, reward, ended, info = super().step_env(key, state, jnp.int32(0), params)
            return obs, after, jnp.where((state["count"] == 1) & (action == 1), jnp.nan, reward), ended, info

    with pytest.raises(M.MDPError, match="action 1 pays nan in state 1: mend the environment"):
        M.from_environment(Broken(), None, discount=0.5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_a_part_of_the_state_that_is_no_number_is_not_called_chance(dtype):
    class Odd:
        num_actions = 1

        def reset_env(self, key, params):
            return jnp.zeros(()), {"unused": jnp.asarray(jnp.nan, dtype), "place": jnp.int32(0)}

        def step_env(self, key, state, action, params):
            after = state | {"place": state["place"] + 1}
            return jnp.zeros(()), after, 1.0, after["place"] == 2, {}

    assert M.from_environment(Odd(), None, discount=0.5).num_states == 3


def test_enumeration_gives_up_beyond_max_states():
    options = {"discount": 0.5, "samples": 30}
    assert M.from_environment(Counter(), None, max_states=3, **options).num_states == 4
    with pytest.raises(M.MDPError, match="more than max_states = 2"):
        M.from_environment(Counter(), None, max_states=2, **options)

    class Endless(Counter):
        def step_env(self, key, state, action, params):
            obs, state, reward, _, info = super().step_env(key, state, action, params)
            return obs, state, reward, jnp.asarray(False), info

    with pytest.raises(M.MDPError, match="more than max_states = 5"):
        M.from_environment(Endless(), None, max_states=5, **options)


def test_sparse_matrices_of_scipy_are_transitions():
    sparse = pytest.importorskip("scipy.sparse")
    successors, probabilities, _ = lists()
    kernel, rewards = (
        as_dense(successors, probabilities),
        np.arange(STATES * ACTIONS).reshape(STATES, ACTIONS),
    )
    matrices = [
        sparse.csr_matrix(kernel[:, 0]),
        sparse.coo_array(kernel[:, 1]),
        sparse.csc_array(kernel[:, 2]),
    ]
    world = M.from_arrays(matrices, rewards, 0.9)
    np.testing.assert_allclose(M.as_dense(world).transitions.probabilities, kernel, rtol=1e-6)
    np.testing.assert_array_equal(world.rewards, rewards)
    with pytest.raises(M.MDPError, match=r"a matrix of shape \(2, 2\): give \(7, 7\) each"):
        M.from_arrays([matrices[0], sparse.csr_matrix(np.eye(2))], rewards, 0.9)
    with pytest.raises(M.MDPError, match="give expected rewards"):
        M.from_arrays(matrices, np.ones((STATES, ACTIONS, STATES)), 0.9)


def test_probabilities_below_0_by_rounding_are_0(x64):
    assert 1 - 0.9 - 0.1 < 0
    world = M.from_arrays([[[1 - 0.9 - 0.1, 1.0]], [[0.9, 0.1]]], [0, 1], 0.9)
    np.testing.assert_array_equal(world.transitions.probabilities[0, 0], [0, 1])


def test_discount_1_needs_no_end_where_the_horizon_is_finite():
    world = M.from_arrays([[[0, 1]], [[1, 0]]], [0, 1], 1.0, horizon=3)
    np.testing.assert_array_equal(M.backward_induction(world, 3).values[0], [1, 2])


def test_at_discount_1_a_state_that_nothing_leaves_for_no_pay_is_an_end():
    kernel, rewards = [[[0.5, 0.5], [1, 0]], [[0, 1], [0, 1]]], [[-1, -3], [0, 0]]
    world = M.from_arrays(kernel, rewards, 1.0)
    np.testing.assert_array_equal(world.terminal, [False, True])
    np.testing.assert_array_equal(world.initial, [1, 0])
    solution = M.policy_iteration(world)
    assert solution.converged
    np.testing.assert_allclose(solution.values, [-2, 0])
    np.testing.assert_array_equal(M.from_arrays(kernel, rewards, 0.9).terminal, [False, False])
