"""Dyna-Q is Q-learning where it does not plan, the textbook's loop where it does, and needs few real steps to the optimum."""

import math

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import mdp as M
from jaxrl4lm.agents import dyna_q, tabular
from jaxrl4lm.envs.finite_mdp import as_environment
from jaxrl4lm.types import InputError

WORLD = M.grid_world(". . +1\n. # .\n. . .", discount=0.9, living_reward=-0.1).mdp
"""Episodes begin anywhere."""
MAZE = M.grid_world(
    """
    . . . . . . . # +1
    . . # . . . . # .
    S . # . . . . # .
    . . # . . . . . .
    . . . . . # . . .
    . . . . . . . . .
    """,
    discount=0.95,
).mdp
"""Sutton & Barto 2018, fig. 8.2; its shortest path has 14 steps."""


def test_without_planning_it_is_q_learning_bit_for_bit(key):
    environment, params = as_environment(WORLD, max_steps=7)
    hyper = tabular.Hyperparameters(learning_rate=0.5, decay=0.3, epsilon=0.4, discount=0.9)
    state, metrics = jax.jit(lambda key: dyna_q.train(key, environment, params, hyper, 300, planning=0))(key)
    alone, own = jax.jit(
        lambda key: tabular.train(key, environment, params, tabular.q_learning(), hyper, 300)
    )(key)
    learner = state.learner._replace(key=jax.random.key_data(state.learner.key))
    alone = alone._replace(key=jax.random.key_data(alone.key))
    jax.tree.map(np.testing.assert_array_equal, (learner, metrics), (alone, own))
    assert (np.asarray(alone.tables) != 0).sum() > 20


def test_reaches_the_optimal_values(key):
    """Each step size falls; episodes are cut after 12 steps, which is not the end."""
    environment, params = as_environment(WORLD, max_steps=12)
    hyper = tabular.Hyperparameters(learning_rate=1.0, decay=0.6, epsilon=1.0, discount=0.9)
    run = jax.jit(lambda key: dyna_q.train(key, environment, params, hyper, 3000, planning=10)[0])
    optimal = M.value_iteration(WORLD, tolerance=1e-6).action_values
    alive = ~np.asarray(WORLD.terminal)
    np.testing.assert_allclose(run(key).learner.tables[0][alive], optimal[alive], atol=1e-2)


class Textbook:
    """The loop of Sutton & Barto 2018, p. 164 in NumPy, and of its footnotes where there is a bonus; all draws are given."""

    def __init__(self, world, hyper, bonus):
        self.table = np.zeros((world.num_states, world.num_actions))
        self.counts = np.zeros_like(self.table, int)
        self.hyper, self.bonus, self.time = hyper, bonus, 0
        self.model, self.last, self.seen = {}, {}, []

    def learn(self, state, action, reward, following, terminated):
        self.counts[state, action] += 1
        rate = self.hyper.learning_rate / self.counts[state, action] ** self.hyper.decay
        target = reward + (0 if terminated else self.hyper.discount * self.table[following].max())
        self.table[state, action] += rate * (target - self.table[state, action])

    def step(self, state, action, *outcome):
        self.time += 1
        self.learn(state, action, *outcome)
        self.model[state, action], self.last[state, action] = outcome, self.time
        if state not in self.seen:
            self.seen.append(state)

    def plan(self, key):
        key_state, key_action = jax.random.split(key)
        state = self.seen[int(jax.random.randint(key_state, (), 0, len(self.seen)))]
        allowed = [self.bonus is not None or (state, a) in self.model for a in range(self.table.shape[1])]
        action = int(jax.random.categorical(key_action, jnp.where(jnp.array(allowed), 0.0, -jnp.inf)))
        reward, following, terminated = self.model.get((state, action), (0.0, state, False))
        if self.bonus is not None:
            reward += self.bonus * np.sqrt(self.time - self.last.get((state, action), 0))
        self.learn(state, action, reward, following, terminated)


@pytest.mark.parametrize("bonus", [None, 0.05])
def test_it_is_the_loop_of_the_textbook(bonus, key):
    """Every value after every step, with the transitions that were played and the same draws of imagined ones."""
    environment, params = as_environment(WORLD, max_steps=7)
    hyper = tabular.Hyperparameters(learning_rate=0.5, decay=0.2, epsilon=0.9, discount=0.9)
    kernel = np.asarray(M.as_dense(WORLD).transitions.probabilities)
    textbook = Textbook(WORLD, hyper, bonus)
    update = jax.jit(lambda state: dyna_q.update(state, environment, params, hyper, planning=3, bonus=bonus))
    state = dyna_q.init(key, environment, params, hyper)
    ends = cuts = 0
    for _ in range(60):
        place = int(state.learner.observation), int(state.learner.action)
        state, metrics = update(state)
        following = int(kernel[place].argmax())
        terminated = bool(WORLD.terminal[following])
        ends, cuts = ends + terminated, cuts + (bool(metrics["done"]) and not terminated)
        textbook.step(*place, float(metrics["reward"]), following, terminated)
        for each in jax.random.split(jax.random.fold_in(state.learner.key, dyna_q.PLANNING), 3):
            textbook.plan(each)
        np.testing.assert_allclose(state.learner.tables[0], textbook.table, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(state.learner.counts[0], textbook.counts)
    assert ends > 1
    assert cuts > 1


def test_an_imagined_end_has_no_value_and_an_imagined_cut_has(key):
    """A quarter of the difference is left after two halvings, the second of them imagined. All values were 10."""
    world = M.grid_world("S . +1", living_reward=-1.0, discount=0.5).mdp
    environment, params = as_environment(world, max_steps=1)
    hyper = tabular.Hyperparameters(learning_rate=0.5, epsilon=0.0, discount=0.5)
    start = dyna_q.init(key, environment, params, hyper, initial_value=10.0)
    update = jax.jit(lambda state: dyna_q.update(state, environment, params, hyper, planning=1))

    def walk_right(position):
        learner = start.learner._replace(
            observation=jnp.int32(position),
            environment=start.learner.environment._replace(position=jnp.int32(position)),
            action=jnp.int32(1),
        )
        state, metrics = update(start._replace(learner=learner))
        assert bool(metrics["done"])
        assert state.learner.counts.sum() == 2
        return state.learner.tables[0, position, 1]

    end, cut = -1 + 0.5, -1 + 0.5 * 10
    assert walk_right(1) == end + (10 - end) / 4
    assert walk_right(0) == cut + (10 - cut) / 4


def test_an_action_that_is_infeasible_is_not_imagined(key):
    """With a bonus all other actions of a state are, whether they were tried or not."""
    feasible = np.ones((3, 4), bool)
    feasible[:, 2] = False
    world = M.grid_world("S . +1")
    mdp = M.from_arrays(
        np.asarray(M.as_dense(world.mdp).transitions.probabilities),
        np.asarray(world.mdp.rewards),
        0.9,
        terminal=np.asarray(world.mdp.terminal),
        initial=np.asarray(world.mdp.initial),
        feasible=feasible,
    )
    environment, params = as_environment(mdp)
    hyper = tabular.Hyperparameters(epsilon=0.0)
    run = jax.jit(lambda key: dyna_q.train(key, environment, params, hyper, 3, planning=60, bonus=0.1)[0])
    counts, tables = run(key).learner.counts[0], run(key).learner.tables[0]
    assert (np.asarray(counts[0]) > 0).tolist() == [True, True, False, True]
    assert np.isneginf(tables[:2, 2]).all()
    assert np.isfinite(np.delete(tables, 2, axis=1)).all()


def test_one_episode_is_enough_where_the_model_is_planned_with(key):
    """Q-learning with values of 0 learns one step of the way back from the goal an episode: it needs as many as there are."""
    world = M.grid_world("S . . .\n. # # .\n. . . +1", discount=0.9).mdp
    hyper = tabular.Hyperparameters(learning_rate=1.0, epsilon=1.0, discount=0.9)
    environment, params = as_environment(world)

    def step(state, _):
        state, metrics = dyna_q.update(state, environment, params, hyper, planning=40)
        return state, (state.learner.tables[0], metrics["done"])

    run = jax.jit(lambda key: jax.lax.scan(step, dyna_q.init(key, environment, params, hyper), length=150)[1])
    tables, done = run(key)
    first = int(np.asarray(done).argmax())
    assert done[first]
    assert not tables[first - 1].any()
    assert (np.asarray(tables[first + 1]) > 0).any(1).sum() >= 5
    optimal = M.value_iteration(world, tolerance=1e-6).values[0]
    assert tables[first + 1, 0].max() == pytest.approx(float(optimal), rel=1e-5)


@pytest.mark.slow
def test_planning_needs_several_times_fewer_real_steps():
    """A count, in the maze, of three seeds: the first step after which the greedy way is a shortest one.

    Values begin too high, so that both try whatever they have not tried.
    """
    environment, params = as_environment(MAZE)
    hyper = tabular.Hyperparameters(learning_rate=0.5, epsilon=0.3, discount=0.95)
    kernel = jnp.asarray(M.as_dense(MAZE).transitions.probabilities.argmax(-1))
    begin, goal = int(MAZE.initial.argmax()), int(np.asarray(MAZE.terminal).argmax())
    value = M.value_iteration(MAZE, tolerance=1e-6).values[begin]
    assert value == pytest.approx(0.95**14)

    def is_shortest(table):
        return jax.lax.fori_loop(0, 14, lambda _, s: kernel[s, jnp.argmax(table[s])], begin) == goal

    def count(planning, most):
        def step(state, _):
            state, _ = dyna_q.update(state, environment, params, hyper, planning=planning)
            return state, is_shortest(state.learner.tables[0])

        def run(key):
            start = dyna_q.init(key, environment, params, hyper, initial_value=1.0)
            return jax.lax.scan(step, start, length=most)[1]

        reached = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(5), 3)))
        assert reached.any(1).all()
        return np.median(reached.argmax(1))

    assert 4 * count(20, 1200) < count(0, 5000)


def test_seeds_and_numbers_are_one_vmap(key):
    """Each column is the run alone, to rounding: what it played and remembers is the same."""
    environment, params = as_environment(WORLD, max_steps=7)

    def run(key, rate, discount, bonus):
        hyper = tabular.Hyperparameters(learning_rate=rate, discount=discount, epsilon=0.3)
        return dyna_q.train(key, environment, params, hyper, 100, planning=4, bonus=bonus)[0]

    columns = jax.random.split(key, 2), jnp.array([0.1, 0.5]), jnp.array([0.9, 0.7]), jnp.array([0.0, 0.1])
    assert " cond[" not in str(jax.make_jaxpr(jax.vmap(run))(*columns))
    together, alone = jax.jit(jax.vmap(run))(*columns), jax.jit(run)
    for i in range(2):
        one = alone(*(x[i] for x in columns))
        np.testing.assert_allclose(together.learner.tables[i], one.learner.tables, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(together.learner.counts[i], one.learner.counts)
        for found, expected in zip(together.model, one.model, strict=True):
            np.testing.assert_array_equal(found[i], expected)


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"planning": -1}, "planning must be a whole number, 0 or more, not -1"),
        ({"planning": 1.5}, r"planning must be a whole number, 0 or more, not 1\.5"),
        ({"num_steps": -1}, "num_steps must be a whole number, 0 or more, not -1"),
        ({"bonus": math.nan}, "bonus must be a finite number, 0 or more, not nan"),
        ({"bonus": -0.1}, "bonus must be a finite number"),
        ({"learning_rate": 0.0}, r"learning_rate must be positive, not 0\.0"),
        ({"epsilon": 1.1}, r"epsilon must lie in 0\.\.1, not 1\.1"),
    ],
)
def test_what_makes_no_sense_is_refused(key, changed, words):
    environment, params = as_environment(WORLD)
    options: dict = {"num_steps": 1, "planning": 2, "bonus": None}
    numbers = {name: value for name, value in changed.items() if name not in options}
    hyper = tabular.Hyperparameters(**numbers)
    with pytest.raises(InputError, match=words):
        dyna_q.train(
            key, environment, params, hyper, **options | {k: v for k, v in changed.items() if k in options}
        )


@pytest.mark.parametrize("what", ["observations", "actions"])
def test_worlds_without_numbered_states_are_refused(key, what):
    environment, params = gymnax.make("Pendulum-v1")
    if what == "actions":
        environment.observation_space = lambda params: gymnax.environments.spaces.Discrete(3)
    with pytest.raises(
        InputError, match=f"tables need numbered {what}, not Box: use an agent with a network"
    ):
        dyna_q.init(key, environment, params, tabular.Hyperparameters())
