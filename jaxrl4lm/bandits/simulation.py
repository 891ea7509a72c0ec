"""Playing a bandit: one loop for one run or thousands."""

from typing import Any, NamedTuple

import jax

from jaxrl4lm.bandits.algorithms import BanditAlgorithm
from jaxrl4lm.bandits.arms import take_arm
from jaxrl4lm.bandits.problems import Problem
from jaxrl4lm.types import Array, Key

BLOCK = 100


class History(NamedTuple):
    """What happened, `[T, R]` each."""

    arms: Array
    rewards: Array
    regrets: Array
    """max_a q*(a) − q*(arm), in expected rewards; the sum over time is the regret."""
    optimal: Array
    """Whether the arm was a best one."""


def compiler_options() -> dict[str, int]:
    """Options for `jax.jit(..., compiler_options=...)` around `run`: vectors of 512 bits on CPUs that have them.

    By default the compiler uses half of each register there. Empty on other devices, which have no such option.
    """
    return {"xla_cpu_prefer_vector_width": 512} if jax.default_backend() == "cpu" else {}


def run(key: Key, problem: Problem, algorithm: BanditAlgorithm, num_steps: int, num_runs: int = 1) -> History:
    """Run `num_runs` learners, each on a world of its own, for `num_steps` steps (both static).

    Pure: `vmap` over hyper-parameters gives a parameter study. Random numbers are drawn for a block of steps at once,
    which costs a third of drawing them step by step; a block still fits the cache.
    """
    if num_steps < 1 or num_runs < 1:
        raise ValueError(f"num_steps and num_runs must be at least 1, not {num_steps} and {num_runs}")
    if algorithm.unit_rewards and not problem.unit_rewards:
        raise ValueError(
            "the algorithm is for rewards in [0, 1], and the problem's may lie outside: take another one, such as"
            " thompson_gaussian or ucb, or a problem with unit_rewards=True."
        )
    key_init, key_blocks = jax.random.split(key)
    num_blocks = -(-num_steps // BLOCK)
    length = -(-num_steps // num_blocks)

    def step(carry: tuple[Any, Any], drawn: tuple[Key, Key, Any, Array]) -> tuple[tuple[Any, Any], History]:
        worlds, state = carry
        for_context, for_evolve, for_select, for_pull = drawn
        context = problem.context(for_context, num_runs)
        arms = algorithm.select(state, for_select, context)
        means = problem.means(worlds, context)
        expected = take_arm(means, arms)
        rewards = problem.pull(expected, for_pull)
        state = algorithm.update(state, arms, rewards, context)
        regrets = means.max(axis=0) - expected
        return (problem.evolve(worlds, for_evolve), state), History(arms, rewards, regrets, regrets <= 0)

    def block(carry: tuple[Any, Any], key: Key) -> tuple[tuple[Any, Any], History]:
        key_context, key_evolve, key_select, key_pull = jax.random.split(key, 4)
        drawn = (
            jax.random.split(key_context, length),
            jax.random.split(key_evolve, length),
            algorithm.noise(key_select, length, problem.num_arms, num_runs),
            problem.noise(key_pull, length, num_runs),
        )
        return jax.lax.scan(step, carry, drawn)

    start = problem.init(key_init, num_runs), algorithm.init(problem.num_arms, num_runs)
    _, history = jax.lax.scan(block, start, jax.random.split(key_blocks, num_blocks))
    return jax.tree.map(lambda x: x.reshape(-1, num_runs)[:num_steps], history)
