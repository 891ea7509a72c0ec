"""The map of algorithms, each with its curve on one small world."""

from functools import partial
from typing import Any

import jax
import numpy as np

from jaxrl4lm import mdp
from jaxrl4lm.agents import a2c, dqn, ppo, ppo_kl, reinforce, tabular, trpo
from jaxrl4lm.agents.config import AgentConfig
from jaxrl4lm.cli.tour.chapter import Chapter, Findings, Table
from jaxrl4lm.cli.tour.learning import (
    LIMIT,
    POINTS,
    SEEDS,
    STEPS,
    draw_curves,
    find_best,
    judge_scores,
    learn_exactly,
)
from jaxrl4lm.envs.finite_mdp import as_environment

TEXT = """
Who knows the dynamics **plans** (value iteration). Who does not **learns** from episodes, in one of three ways:

- **values**: estimate Q(s, a), and act by its maximum. Monte-Carlo learns from whole returns; SARSA and Q-learning from
  one step and the estimate after it; DQN is Q-learning with a network, a memory and an older copy of itself;
- **policies**: raise the probability of what earned more than expected (REINFORCE);
- **both**: an actor that learns from a critic (A2C), and does not go far at once (TRPO, PPO).

All of them are let loose on Russell and Norvig's world at γ = .9. What is drawn is no estimate: after every so many
steps the greedy policy is read, and its value at the start computed exactly. Networks have no hidden layer, so that
they are tables, too.
"""
TABLES = {
    "Monte-Carlo": tabular.monte_carlo(LIMIT),
    "SARSA": tabular.sarsa(),
    "Q-learning": tabular.q_learning(),
    "double Q-learning": tabular.double_q_learning(),
}
SHARED = {"discount": 0.9, "environments": 8}
AGENTS: dict[str, tuple[Any, AgentConfig]] = {
    "DQN": (dqn, dqn.DQNConfig(**SHARED, learning_rate=1e-2, buffer=4000, warmup=800)),
    "REINFORCE": (reinforce, reinforce.ReinforceConfig(**SHARED, rollout=125, learning_rate=0.1)),
    "A2C": (a2c, a2c.A2CConfig(**SHARED, rollout=25, learning_rate=0.05)),
    "TRPO": (trpo, trpo.TRPOConfig(**SHARED, rollout=125, learning_rate=0.05, trust_region=0.03)),
    "PPO, penalty": (ppo_kl, ppo_kl.PPOKLConfig(**SHARED, rollout=125, learning_rate=0.05)),
    "PPO, clip": (ppo, ppo.PPOConfig(**SHARED, rollout=125, learning_rate=0.05)),
}


def _compute() -> Findings:
    world = mdp.russell_norvig(0.9).mdp
    curves = {name: learn_table(world, algorithm) for name, algorithm in TABLES.items()}
    for name, (module, config) in AGENTS.items():
        part = None if module is dqn else "actor"
        curves[name] = learn_exactly(world, module.make, config, judge_scores, actor=part)
    names = list(curves)
    parts = {
        "values in tables": names[: len(TABLES)],
        "values and policies in networks": names[len(TABLES) : -3],
        "not far at once": names[-3:],
    }
    panels = [
        draw_curves(title, {name: curves[name] for name in part}, world, (-0.45, 0.4))
        for title, part in parts.items()
    ]
    rows = [
        [
            name,
            f"{curve[:, POINTS // 4 - 1].mean():.3f}",
            f"{curve[:, -1].mean():.3f}",
            f"{curve[:, -1].min():.3f}",
        ]
        for name, curve in curves.items()
    ]
    return Findings(
        panels=panels,
        tables=(
            Table(["", f"after {STEPS // 4:,} steps", f"after {STEPS:,}", "the worst of the seeds"], rows),
        ),
        remarks=(
            f"The best policy is worth {find_best(world):.3f}. Means of {SEEDS} seeds, over the range of the seeds."
            " Curves do not rank algorithms: each has a learning rate that was chosen for it, on one world that is"
            " small."
        ),
    )


def learn_table(world: mdp.FiniteMDP, algorithm: tabular.TabularAlgorithm) -> np.ndarray:
    """Values of the start `[seeds, points]` while a table learns."""
    environment, params = as_environment(world, max_steps=LIMIT)
    settings = tabular.Hyperparameters(learning_rate=0.1, epsilon=0.2, discount=0.9)
    update = partial(
        tabular.update, environment=environment, params=params, algorithm=algorithm, hyperparameters=settings
    )

    def some(state, _):
        state, _ = jax.lax.scan(lambda state, _: (update(state)[0], ()), state, length=STEPS // POINTS)
        return state, judge_scores(world, state.tables.mean(0))

    def run(key):
        start = tabular.init(key, environment, params, algorithm, settings)
        return jax.lax.scan(some, start, length=POINTS)[1]

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), SEEDS)))


CHAPTER = Chapter(
    name="map",
    title="The map of algorithms",
    text=TEXT,
    functions=(
        "mdp.value_iteration",
        "agents.tabular.monte_carlo",
        "agents.tabular.sarsa",
        "agents.tabular.q_learning",
        "agents.tabular.double_q_learning",
        "agents.dqn.make",
        "agents.reinforce.make",
        "agents.a2c.make",
        "agents.trpo.make",
        "agents.ppo_kl.make",
        "agents.ppo.make",
        "mdp.policy_values",
    ),
    picture="Exact values of the start against steps, while ten algorithms learn Russell and Norvig's world",
    compute=_compute,
    commands=("jaxrl4lm agent --algorithm ppo --env CartPole-v1",),
)
