"""Learning curves of agents on a small world, measured exactly."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm import mdp
from jaxrl4lm.agents.agent import Agent
from jaxrl4lm.agents.config import AgentConfig
from jaxrl4lm.cli.tour.small_worlds import find_start
from jaxrl4lm.envs.finite_mdp import as_environment
from jaxrl4lm.models import Perceptron
from jaxrl4lm.plots.panels import Line, Panel

STEPS, POINTS, SEEDS, LIMIT = 20_000, 20, 8, 50
"""Steps in the world, points of a curve, runs, and the longest episode."""


def judge_scores(world: mdp.FiniteMDP, scores: jax.Array) -> jax.Array:
    """The exact value of the start, of the policy that takes the action with the highest score `[S, A]`."""
    return world.initial @ mdp.policy_values(world, jnp.argmax(scores, axis=-1))


def learn_exactly(
    world: mdp.FiniteMDP,
    make: Callable[..., Agent],
    config: AgentConfig,
    judge: Callable[[mdp.FiniteMDP, jax.Array], jax.Array] = mdp.objective,
    *,
    actor: str | None = "actor",
) -> np.ndarray:
    """Values of the start `[seeds, points]` while an agent learns whose networks have no hidden layer: tables.

    Args:
      make: of the agent: (environment, its parameters, networks) → agent.
      judge: (world, outputs of the network in every state) → a value; by default that of the softmax policy.
      actor: the part of the parameters that decides; None where they have no parts.
    """
    config = config.replace(steps=STEPS)
    config.check()
    environment, params = as_environment(world, one_hot=True, max_steps=LIMIT)
    table, critic = Perceptron(world.num_actions, widths=()), Perceptron(1, widths=())
    networks = {"actor": table, "critic": critic} if actor else {"network": table}
    agent = make(environment, params, **networks)

    def some(state: Any, _: None) -> tuple[Any, jax.Array]:
        def update(state: Any, _: None) -> tuple[Any, tuple[()]]:
            return agent.update(state, config, params)[0], ()

        state = jax.lax.scan(update, state, length=config.count_updates() // POINTS)[0]
        weights = state.params[actor] if actor else state.params
        return state, judge(world, jnp.asarray(table.apply({"params": weights}, jnp.eye(world.num_states))))

    def run(key: jax.Array) -> jax.Array:
        return jax.lax.scan(some, agent.init(key, config, params), length=POINTS)[1]

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), SEEDS)))


def draw_curves(
    title: str, curves: Mapping[str, np.ndarray], world: mdp.FiniteMDP, y_limits: tuple | None = None
) -> Panel:
    """Means over the seeds, within their range, below what the best policy earns."""
    steps = np.linspace(0, STEPS, POINTS + 1)[1:]
    return Panel(
        title,
        "steps in the world",
        "value of the start",
        lines=[
            Line(steps, curve.mean(0), name, low=curve.min(0), high=curve.max(0))
            for name, curve in curves.items()
        ],
        levels=((find_best(world), "the best policy, by value iteration"),),
        y_limits=y_limits,
    )


def find_best(world: mdp.FiniteMDP) -> float:
    """What the best policy earns from the start."""
    return float(jax.jit(mdp.value_iteration)(world, tolerance=1e-5).values[find_start(world)])
