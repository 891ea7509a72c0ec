"""REINFORCE, with and without a baseline."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm import mdp
from jaxrl4lm.cli.tour.chapter import Chapter, Findings, Table
from jaxrl4lm.cli.tour.episode_gradients import from_returns, measure, sample_gradients
from jaxrl4lm.cli.tour.learning import find_best
from jaxrl4lm.plots.panels import Bars, Line, Panel

TEXT = """
**REINFORCE** takes the theorem at its word: play whole episodes, and step along the mean of Σₜ γᵗ (Gₜ − b(Sₜ))
∇log π(Aₜ|Sₜ). As a loss that is −γᵗ log π(Aₜ|Sₜ) · (Gₜ − b(Sₜ)), where returns are constants. (Practice leaves γᵗ out,
and so does `jaxrl4lm agent`: what comes late in an episode is then learned from as much.) Without the baseline b every
action that was taken becomes likelier where all returns are positive, and less likely where all are negative. Which are
the better ones shows only over many episodes.

The usual baseline is the value V(s) of the policy itself. It is computed exactly here; a critic would learn it.
"""
EPISODES, STEPS, DISCOUNT = 8192, 100, 0.9
BATCH, UPDATES, SEEDS, RATE = 4, 200, 8, 4.0


def _no_baseline(values):
    return jnp.zeros_like(values)


def _mean_return(values, start):
    return jnp.full_like(values, start @ values)


def _value(values):
    return values


def _compute() -> Findings:
    world = mdp.russell_norvig(DISCOUNT).mdp
    baselines = {
        "none": _no_baseline,
        "the mean return": partial(_mean_return, start=world.initial),
        "V(s)": _value,
    }
    logits = jnp.zeros(world.rewards.shape)
    values = jax.jit(mdp.policy_values)(world, jax.nn.softmax(logits))
    exact = jax.jit(mdp.policy_gradient)(world, logits)
    found = {
        name: measure(
            sample_gradients(
                jax.random.key(0), world, logits, from_returns, choose(values), count=EPISODES, steps=STEPS
            ),
            exact,
        )
        for name, choose in baselines.items()
    }
    curves = {name: _learn(world, baselines[name]) for name in ("none", "V(s)")}
    updates = np.arange(1, UPDATES + 1)
    rows = [
        [
            name,
            f"{each.deviation:.1f}",
            f"{(each.deviation / found['V(s)'].deviation) ** 2:.1f}",
            f"{each.angle:.0f}°",
        ]
        for name, each in found.items()
    ]
    return Findings(
        panels=(
            Panel(
                "deviation of an episode's gradient",
                "baseline",
                "in units of the length of ∇J",
                bars=(Bars(list(found), [each.deviation for each in found.values()]),),
            ),
            Panel(
                f"learning from {BATCH} episodes an update",
                "updates",
                "value of the start",
                lines=[
                    Line(updates, curve.mean(0), f"baseline: {name}", low=curve.min(0), high=curve.max(0))
                    for name, curve in curves.items()
                ],
                levels=((find_best(world), "the best policy"),),
            ),
        ),
        tables=(
            Table(
                [
                    "baseline",
                    "deviation",
                    "episodes for the same error",
                    f"angle of the mean of {EPISODES:,}",
                ],
                rows,
            ),
        ),
        remarks=(
            f"All three estimate the same gradient. The curves are means of {SEEDS} seeds, over their range. The worst seed"
            f" without a baseline ends at {curves['none'][:, -1].min():.2f}, the worst with V(s) at"
            f" {curves['V(s)'][:, -1].min():.2f}: steps without one are noisier, and a seed may settle on a poor policy."
        ),
    )


def _learn(world: mdp.FiniteMDP, choose) -> np.ndarray:
    """Exact values of the policy `[seeds, updates]`, with the baseline that is chosen from its values."""

    def update(logits, key):
        baseline = choose(mdp.policy_values(world, jax.nn.softmax(logits)))
        gradients = sample_gradients(key, world, logits, from_returns, baseline, count=BATCH, steps=STEPS)
        logits = logits + RATE * gradients.mean(0)
        return logits, mdp.objective(world, logits)

    def run(key):
        return jax.lax.scan(update, jnp.zeros(world.rewards.shape), jax.random.split(key, UPDATES))[1]

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(1), SEEDS)))


CHAPTER = Chapter(
    name="reinforce",
    title="REINFORCE",
    text=TEXT,
    functions=("losses.reinforce", "returns.discounted_returns", "mdp.policy_gradient", "mdp.objective"),
    picture="Deviation of REINFORCE's gradient with three baselines, and learning curves with and without one",
    compute=_compute,
    commands=("jaxrl4lm agent --algorithm reinforce",),
)
