"""The search is right about rewards, ends and time limits, finds the best actions, and what learns from it plays well."""

import functools
import importlib.util
import sys
import types

import gymnax
import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest

from jaxrl4lm import mdp as M
from jaxrl4lm.agents import agent as A
from jaxrl4lm.agents import alphazero, on_policy
from jaxrl4lm.envs.finite_mdp import FiniteMDPState, as_environment
from jaxrl4lm.types import InputError
from tests.agents.probes import Table

GRID = M.grid_world(".  .  +1\n.  #  -1\n.  .  .", discount=0.9, living_reward=-0.04).mdp
WAYS = np.asarray(M.as_dense(GRID).transitions.probabilities).argmax(-1)
"""Where each action leads, `[S, A]`."""
SURE = functools.partial(alphazero.puct, dirichlet_fraction=0.0)


def everywhere(key, root, expand, config):
    """A search that visits all actions alike, whatever they are worth."""
    return mctx.muzero_policy(
        (), key, root, expand, config.simulations, dirichlet_fraction=0.0, pb_c_init=1e3
    )


def search_from(world, positions, critic, config, search, **settings):
    """What a search by a uniform policy and a table of values `[S]` finds from each of some states."""
    environment, params = as_environment(world, one_hot=True, **settings)
    learner = on_policy.make_learner(environment, params, Table(world.num_actions), Table(1))
    config = config.replace(environments=len(positions))

    def run(key):
        state = on_policy.init(key, config, learner, params)
        networks = {**state.params, "critic": {"table": jnp.asarray(critic, jnp.float32)[:, None]}}
        there = FiniteMDPState(jnp.asarray(positions, jnp.int32), jnp.zeros(len(positions), jnp.int32))
        place = state.place._replace(
            state=there, observation=jax.nn.one_hot(there.position, world.num_states)
        )
        state = state._replace(params=networks)
        return alphazero.plan(jax.random.key(1), place, state, config, learner, params, search)

    return jax.jit(run)(jax.random.key(0))


@pytest.mark.parametrize("search, simulations", [(alphazero.gumbel, 4), (alphazero.gumbel, 40), (SURE, 40)])
def test_with_exact_values_the_best_action_is_found_in_every_state(search, simulations):
    """Values of what is over are wrong by 100, and are not read."""
    optimal = M.value_iteration(GRID, tolerance=1e-6)
    alive = np.flatnonzero(~np.asarray(GRID.terminal))
    critic = np.where(GRID.terminal, 100, optimal.values)
    config = alphazero.AlphaZeroConfig(discount=0.9, simulations=simulations, gumbel_scale=0.0)
    found = search_from(GRID, alive, critic, config, search)
    chosen = np.asarray(found.action_weights).argmax(1)
    q = np.asarray(optimal.action_values)[alive]
    np.testing.assert_allclose(q[np.arange(len(alive)), chosen], q.max(1), atol=1e-5)
    if search is alphazero.gumbel:
        np.testing.assert_array_equal(found.action, chosen)
    # The best action is not the first one of every state, nor the only good one.
    assert len(set(chosen.tolist())) > 2


def best(tree, node=0):
    """The value of a node of the first tree, if the best is done from there on: exact where all of it is in the tree."""
    children = np.asarray(tree.children_index[0, node])
    rewards, discounts = tree.children_rewards[0, node], tree.children_discounts[0, node]
    values = [rewards[a] + discounts[a] * best(tree, i) for a, i in enumerate(children) if i >= 0]
    return max(values) if values else float(tree.raw_values[0, node])


def layered(depth, discount):
    """A binary tree of states with random rewards, after whose last layer is the end; and its best return."""
    inner = 2**depth - 1
    following = np.minimum(2 * np.arange(inner)[:, None] + np.array([1, 2]), inner)
    rewards = np.random.default_rng(0).normal(size=(inner, 2)).round(2)
    world = M.from_arrays(
        np.eye(inner + 1)[np.concatenate([following, np.full((1, 2), inner)])],
        np.concatenate([rewards, np.zeros((1, 2))]),
        discount,
        terminal=np.arange(inner + 1) == inner,
        initial=np.eye(inner + 1)[0],
    )

    def expectimax(state):
        if state >= inner:
            return 0.0
        return max(rewards[state, a] + discount * expectimax(following[state, a]) for a in range(2))

    return world, expectimax(0)


def test_a_tree_of_everything_has_the_exact_value():
    """The critic knows nothing, and believes the end to be worth 50."""
    world, exact = layered(3, 0.5)
    critic = np.where(world.terminal, 50, 0)
    config = alphazero.AlphaZeroConfig(discount=0.5, simulations=60)
    tree = search_from(world, [0], critic, config, everywhere).search_tree
    state = np.asarray(tree.embeddings.place.state.position[0])
    reached = np.asarray(tree.children_index[0] >= 0).all(1) & ~np.asarray(tree.embeddings.over[0])
    assert set(state[reached].tolist()) == set(range(7))
    assert best(tree) == pytest.approx(exact, abs=1e-5)


def test_a_time_limit_is_worth_what_the_critic_says():
    """Two rewards of 1, then 10 by the critic: 1 + ½ + ¼ · 10, and nothing is searched beyond. Were it death: 1.5."""
    world = M.from_arrays(np.eye(2)[np.array([[1, 0], [0, 1]])], np.ones((2, 2)), 0.5)
    config = alphazero.AlphaZeroConfig(discount=0.5, simulations=60)
    tree = search_from(world, [0], [10, 10], config, SURE, max_steps=2).search_tree
    assert best(tree) == 4
    over = np.asarray(tree.embeddings.over[0])
    used = np.asarray(tree.node_visits[0]) > 0
    assert (over & used).sum() > 4
    np.testing.assert_array_equal(np.asarray(tree.raw_values[0])[over & used], 10)
    parents, actions = np.asarray(tree.parents[0]), np.asarray(tree.action_from_parent[0])
    beyond = [i for i in np.flatnonzero(used)[1:] if over[parents[i]]]
    assert beyond
    for i in beyond:
        assert tree.children_rewards[0, parents[i], actions[i]] == 0
        assert tree.children_discounts[0, parents[i], actions[i]] == 1


def learn(environment, params, networks=(None, None), search=alphazero.gumbel, **numbers):
    """The history of a run."""
    agent = alphazero.make(environment, params, actor=networks[0], critic=networks[1], search=search)
    config = alphazero.AlphaZeroConfig(environments=8, rollout=16, epochs=8, **numbers)
    config.check()
    return jax.jit(lambda key: A.train(agent, key, config, params, episodes=8)[1])(jax.random.key(0))


def test_the_policy_alone_reaches_the_optimum():
    """The best of eight ways through a tree."""
    world, exact = layered(3, 1.0)
    numbers = {"steps": 6 * 128, "discount": 1.0, "learning_rate": 0.05, "simulations": 14}
    history = learn(*as_environment(world, one_hot=True, max_steps=3), (Table(2), Table(1)), **numbers)
    assert history["evaluation"][-1] == pytest.approx(exact, abs=1e-5)
    assert history["loss/policy"][-1] < history["loss/policy"][0]


@pytest.mark.slow
@pytest.mark.parametrize("search", [alphazero.gumbel, alphazero.puct], ids=["gumbel", "puct"])
def test_it_reaches_the_treasure_of_the_deep_sea(search):
    """Each step towards it costs; of sixteen ways one leads there."""
    world = gymnax.make("DeepSea-bsuite", size=4)
    history = learn(*world, search=search, steps=10 * 128, discount=1.0, learning_rate=3e-3)
    assert history["evaluation"][-1] == pytest.approx(0.99)


@pytest.mark.slow
def test_it_catches_every_ball():
    history = learn(*gymnax.make("Catch-bsuite"), steps=60 * 128, learning_rate=3e-3)
    assert history["evaluation"][-1] == 1


def test_the_policy_learns_the_weights_of_the_search():
    """The loss is KL(search ‖ policy); a step of Adam raises what the search prefers, and lowers all else alike."""
    environment, params = as_environment(GRID, one_hot=True)
    learner = on_policy.make_learner(environment, params, Table(4), Table(1))
    sizes = {"environments": 1, "rollout": 1, "epochs": 1, "minibatches": 1}
    config = alphazero.AlphaZeroConfig(steps=100, learning_rate=0.1, value_coef=0.0, **sizes)
    state = on_policy.init(jax.random.key(0), config, learner, params)
    weights = np.array([[0.1, 0.0, 0.1, 0.8]], np.float32)
    position = int(state.place.observation[0].argmax())

    def search(key, root, expand, config):
        return types.SimpleNamespace(action=jnp.array([2]), action_weights=jnp.asarray(weights))

    after, metrics = alphazero.update(state, config, learner, params, search)
    entropy = -(0.8 * np.log(0.8) + 0.2 * np.log(0.1))
    assert metrics["loss/policy"] == pytest.approx(np.log(4) - entropy, rel=1e-5)
    logits = np.asarray(after.params["actor"]["table"][position])
    np.testing.assert_allclose(logits, 0.1 * np.sign(weights[0] - 0.25), rtol=1e-3)
    assert after.place.state.position[0] == WAYS[position, 2]


def test_scaled_rewards_are_scaled_in_the_search_as_well():
    world, exact = layered(3, 0.5)
    environment, params = as_environment(world, one_hot=True)
    learner = on_policy.make_learner(environment, params, Table(2), Table(1))
    config = alphazero.AlphaZeroConfig(discount=0.5, environments=1, simulations=60, normalize_rewards=True)
    state = jax.jit(lambda key: on_policy.init(key, config, learner, params))(jax.random.key(0))
    statistics = state.return_statistics._replace(variance=jnp.float32(4.0))
    state = state._replace(
        return_statistics=statistics,
        params={**state.params, "critic": {"table": jnp.zeros((8, 1))}},
    )
    found = jax.jit(
        lambda state: alphazero.plan(
            jax.random.key(0), state.place, state, config, learner, params, everywhere
        )
    )(state)
    assert best(found.search_tree) == pytest.approx(exact / 2, abs=1e-5)


def test_without_mctx_it_says_what_to_install(monkeypatch):
    """Nobody else needs it: the module itself is imported without."""
    monkeypatch.setitem(sys.modules, "mctx", None)
    spec = importlib.util.spec_from_file_location("fresh", alphazero.__file__)
    fresh = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fresh", fresh)
    spec.loader.exec_module(fresh)
    with pytest.raises(InputError, match=r"needs the package mctx: pip install 'jaxrl4lm\[planning\]'"):
        fresh.make(*gymnax.make("Catch-bsuite"))


def test_vectors_of_actions_are_refused():
    with pytest.raises(InputError, match="actions of Pendulum-v1 are vectors: the search needs numbers"):
        alphazero.make(*gymnax.make("Pendulum-v1"))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"simulations": 0}, "simulations must be positive, not 0"),
        ({"simulations": 2.5}, "simulations must be a whole number, not 2.5"),
        ({"gumbel_scale": -1.0}, "gumbel_scale must not be negative, not -1.0"),
    ],
)
def test_bad_numbers_are_refused(change, said):
    with pytest.raises(InputError, match=said):
        alphazero.AlphaZeroConfig(**change).check()
