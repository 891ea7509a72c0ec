"""Population-based training: who goes on from whom, and that it finds the hyper-parameters that learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import lm
from jaxrl4lm.agents import agent as A
from jaxrl4lm.agents import population_based as P
from jaxrl4lm.agents import ppo
from jaxrl4lm.checkpoint import Checkpoints
from jaxrl4lm.types import InputError
from tests.agents.probes import all_probes, optimal_values

CONFIG = ppo.PPOConfig(steps=1280, environments=4, rollout=16, epochs=2, minibatches=2, discount=0.5)


def both_decide():
    environment, worlds = all_probes()
    params = jax.tree.map(lambda x: x[4], worlds)
    agent = ppo.make(environment, params)
    return agent._replace(spec=agent.spec._replace(horizon=2)), params


def test_the_worst_go_on_from_the_best_with_numbers_nearby():
    score = jnp.array([3.0, jnp.nan, 1.0, 9.0, 2.0, 7.0])
    values = {"learning_rate": jnp.arange(1.0, 7.0), "discount": jnp.full(6, 0.9)}
    breed = jax.jit(functools.partial(P.breed, config=CONFIG, share=0.4, factor=2.0))
    seen = []
    for seed in range(60):
        parent, bred = breed(jax.random.key(seed), score, values)
        assert parent[jnp.array([0, 3, 4, 5])].tolist() == [0, 3, 4, 5]
        np.testing.assert_array_equal(bred["learning_rate"][jnp.array([0, 3, 4, 5])], [1, 4, 5, 6])
        for loser in (1, 2):
            assert int(parent[loser]) in (3, 5)
            own = float(values["learning_rate"][parent[loser]])
            assert float(bred["learning_rate"][loser]) in (own / 2, own * 2)
            assert float(bred["discount"][loser]) in (np.float32(0.45), 1.0)  # in its range
            seen.append((int(parent[loser]), float(bred["learning_rate"][loser])))
    assert len(set(seen)) == 4
    assert all(20 <= seen.count(each) <= 40 for each in set(seen))


def test_a_number_that_must_be_above_stays_there():
    config = lm.ReinforcementConfig()
    values = {"dual_clip": jnp.array([1.1, 1.1])}
    for seed in range(8):
        _, bred = P.breed(jax.random.key(seed), jnp.array([0.0, 1.0]), values, config, share=0.5, factor=1.2)
        assert float(bred["dual_clip"][0]) in (np.float32(1.1), np.float32(1.1) * np.float32(1.2))


def test_without_selection_it_is_the_members_alone():
    """Each member is its own run, one program; its key is its own."""
    agent, params = both_decide()
    rates = jnp.array([1e-3, 2e-2])
    run = functools.partial(P.train, agent=agent, config=CONFIG, params=params, generations=2, episodes=4)
    population, _ = jax.jit(lambda key: run(key, values={"learning_rate": rates}, share=0.0))(
        jax.random.key(0)
    )
    keys = jax.random.split(jax.random.key(0), 3)[1:]
    alone = jax.jit(
        jax.vmap(
            lambda key, rate: A.train(agent, key, CONFIG.replace(learning_rate=rate), params, evaluations=0)[
                0
            ]
        )
    )(keys, rates)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
        population.states.params,
        alone.params,
    )
    np.testing.assert_array_equal(jax.random.key_data(population.states.key), jax.random.key_data(alone.key))


def test_it_finds_the_rates_that_learn():
    """Of eight members six cannot learn; in the end all have the numbers of those that can, and earn what they do."""
    agent, params = both_decide()
    values = {"learning_rate": jnp.array([1e-7] * 6 + [2e-2] * 2)}
    run = functools.partial(P.train, agent=agent, config=CONFIG, params=params, values=values, episodes=32)
    population, history = jax.jit(functools.partial(run, generations=10, share=0.25))(jax.random.key(0))
    assert history.score.shape == history.parent.shape == (10, 8)
    assert history.score[-1].mean() > history.score[0].mean() + 0.5
    assert (population.values["learning_rate"] > 1e-3).all()
    np.testing.assert_array_equal(history.values["learning_rate"][0], values["learning_rate"])
    for g in range(9):  # what is copied is the parent's, but for the copied number
        kept = history.parent[g] == jnp.arange(8)
        before, after = (history.values["learning_rate"][i] for i in (g, g + 1))
        np.testing.assert_array_equal(after[kept], before[kept])
        ratios = np.asarray(after / before[history.parent[g]])[~kept]
        assert np.isclose(ratios, 1.2, atol=1e-5).sum() + np.isclose(ratios, 1 / 1.2, atol=1e-5).sum() == 2
    data = jax.random.key_data(population.states.key)
    assert len(np.unique(data, axis=0)) == 8  # nobody goes on with the random numbers of another


@pytest.mark.slow
def test_a_population_solves_the_probes():
    """All five as one program: the member that could not learn has gone on from one that can, and all act as is best."""
    environment, worlds = all_probes()
    agent = ppo.make(environment, jax.tree.map(lambda x: x[0], worlds))
    agent = agent._replace(spec=agent.spec._replace(horizon=2))
    values = {"learning_rate": jnp.array([1e-7, 2e-2, 2e-2, 2e-2])}
    config = CONFIG.replace(steps=3200, environments=8, epochs=4)

    @jax.jit
    @jax.vmap
    def solve(params):
        run = functools.partial(P.train, agent=agent, config=config, params=params, values=values)
        population, _ = run(jax.random.key(0), generations=5, share=0.25, episodes=32)
        look = jax.vmap(lambda state: A.view(state))(population.states)
        act = jax.vmap(lambda seen: agent.act(seen, jax.random.key(0), jnp.eye(3)[:2]))(look)
        return act, jax.vmap(lambda seen: agent.value(seen, jnp.eye(3)[:2]))(look)

    actions, values = map(np.asarray, solve(worlds))
    assert (actions[3, :, 0] == 1).sum() >= 3
    assert (actions[4] == [0, 1]).all(-1).sum() >= 3
    reached = np.array([[True, False], [True, True], [True, True], [True, False], [True, True]])
    near = (np.abs(values - optimal_values()[:, None]) < 0.1) | ~reached[:, None]
    assert (near.all(-1).sum(-1) >= 3).all()


@pytest.mark.slow
def test_a_population_goes_on_from_a_checkpoint_with_the_same_bits(tmp_path):
    agent, params = both_decide()
    values = {"learning_rate": jnp.array([1e-3, 2e-2]), "discount": jnp.array([0.5, 0.6])}
    advance = jax.jit(
        functools.partial(P.advance, agent=agent, config=CONFIG, params=params, updates=2, share=0.5)
    )
    start = jax.jit(lambda key: P.init(key, agent, CONFIG, params, values))(jax.random.key(0))
    middle, _ = advance(start)
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(1, middle, {})
    checkpoints.close()
    restored = Checkpoints(tmp_path / "run").restore(jax.eval_shape(lambda: start))
    bits = lambda tree: jax.tree.map(  # noqa: E731
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, tree
    )
    whole, parts = bits(advance(middle)), bits(advance(restored))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert (whole[1].parent != jnp.arange(2)).any()


@pytest.mark.parametrize(
    "values, options, words",
    [
        ({"learning_rate": [1e-3]}, {}, r"two members or more, \[N\] each, not learning_rate \(1,\)"),
        ({"learning_rate": [1, 2], "discount": [0.9]}, {}, r"not learning_rate \(2,\), discount \(1,\)"),
        ({}, {}, "not none"),
        ({"steps": [1, 2]}, {}, "steps is no number that may differ between members: give some of"),
        (
            {"learning_rate": [1e-3, 1]},
            {"generations": 3},
            "generations is 3: 20 updates do not divide by it",
        ),
        ({"learning_rate": [1e-3, -1]}, {}, r"learning_rate must be positive, not -1\.0"),
        ({"learning_rate": [1e-3, 1]}, {"share": 0.7}, "share is 0.7: give a number from 0 to 0.5"),
        ({"learning_rate": [1e-3, 1]}, {"factor": 0.0}, "factor is 0.0: give a positive number"),
        ({"learning_rate": [1e-3, 1]}, {"factor": np.inf}, "factor is inf: give a positive number"),
        (
            {"learning_rate": [1e-3, 1]},
            {"generations": 2.0},
            r"generations must be a whole number, 1 or more, not 2\.0",
        ),
        ({"learning_rate": [1e-3, 1]}, {"episodes": 0}, "episodes must be a whole number, 1 or more, not 0"),
    ],
)
def test_what_makes_no_sense_is_refused(values, options, words):
    agent, params = both_decide()
    values = {name: jnp.array(x, float) for name, x in values.items()}
    with pytest.raises(InputError, match=words):
        jax.eval_shape(
            lambda key: P.train(key, agent, CONFIG, params, values, **{"generations": 2, **options}),
            jax.random.key(0),
        )


@pytest.mark.parametrize("share, replaced", [(0.0, 0), (1e-3, 1), (0.2, 1), (0.5, 2)])
def test_of_a_small_population_one_is_replaced_at_least(share, replaced):
    values = {"learning_rate": jnp.array([1e-3, 2e-3, 3e-3, 4e-3])}
    score = jnp.array([3.0, 1.0, 2.0, 4.0])
    parent, _ = P.breed(jax.random.key(0), score, values, CONFIG, share=share)
    assert (np.asarray(parent) != np.arange(4)).sum() == replaced


def test_scores_may_be_a_list_of_one_number_a_member():
    values = {"learning_rate": [1e-3, 2e-3, 3e-3]}
    parent, bred = P.breed(jax.random.key(0), [1, 3, 2], values, CONFIG, share=0.4)
    assert parent.tolist() == [1, 1, 2]
    np.testing.assert_array_equal(bred["learning_rate"][1:], np.float32([2e-3, 3e-3]))
    with pytest.raises(InputError, match=r"learning_rate has shape \(3,\), the scores \(2,\): give \[N\]"):
        P.breed(jax.random.key(0), [1, 3], values, CONFIG)


def test_a_generation_without_updates_is_refused():
    agent, params = both_decide()
    population = P.init(jax.random.key(0), agent, CONFIG, params, {"learning_rate": jnp.array([1e-3, 1e-2])})
    with pytest.raises(InputError, match="updates must be a whole number, 1 or more, not 0"):
        P.advance(population, agent, CONFIG, params, updates=0)
