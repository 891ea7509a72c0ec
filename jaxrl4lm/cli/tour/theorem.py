"""The policy-gradient theorem: sampled gradients, and the exact one."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm import mdp
from jaxrl4lm.cli.tour.chapter import Chapter, Findings, Table
from jaxrl4lm.cli.tour.episode_gradients import from_returns, measure, sample_gradients
from jaxrl4lm.plots.panels import Bars, Line, Panel

TEXT = """
A policy with parameters θ earns J(θ), and its gradient needs no derivative of the dynamics:

**∇J(θ) = E[ Σₜ γᵗ Gₜ ∇log π(Aₜ|Sₜ) ]** = Σₛ η(s) Σₐ π(a|s) Qπ(s, a) ∇log π(a|s),

where η(s) counts the discounted visits of s. The left side is a mean over episodes, so anybody who can play can
estimate it. The right side can be computed here, since the world is known. By the law of large numbers the mean of m
episodes comes as near as 1/√m: four times as many episodes halve the error.

A **baseline** b(s) taken from Gₜ changes nothing in the expectation, and much in the variance.
"""
EPISODES, STEPS, DISCOUNT = 16_384, 100, 0.9


def _compute() -> Findings:
    world = mdp.russell_norvig(DISCOUNT).mdp
    logits = jnp.zeros(world.rewards.shape)
    exact = jax.jit(mdp.policy_gradient)(world, logits)
    values = jax.jit(mdp.policy_values)(world, jax.nn.softmax(logits))
    key = jax.random.key(0)
    kinds = {"returns": jnp.zeros_like(values), "returns less V(s)": values}
    gradients = {
        name: sample_gradients(key, world, logits, from_returns, baseline, count=EPISODES, steps=STEPS)
        for name, baseline in kinds.items()
    }
    sizes = 4 ** np.arange(7)
    length = float(jnp.linalg.norm(exact))
    errors = {name: [_error(each, exact, int(m)) / length for m in sizes] for name, each in gradients.items()}
    first = errors["returns"][0]
    shown = np.asarray(exact)[0]
    means = {m: np.asarray(gradients["returns"][:m].mean(0))[0] for m in (16, EPISODES)}
    rows = [
        [f"{m:,}", *(f"{errors[name][i]:.3f}" for name in kinds), f"{first / np.sqrt(m):.3f}"]
        for i, m in enumerate(sizes)
    ]
    ratio = (errors["returns"][-1] / errors["returns less V(s)"][-1]) ** 2
    angle = measure(gradients["returns less V(s)"], exact).angle
    return Findings(
        panels=(
            Panel(
                "error of the mean of m episodes",
                "m",
                "length of the error, of that of ∇J",
                lines=(
                    *(Line(sizes, error, name) for name, error in errors.items()),
                    Line(sizes, first / np.sqrt(sizes), "falls as 1/√m", ":", "0.4"),
                ),
                log_x=True,
                log_y=True,
            ),
            Panel(
                "∂J/∂θ at one state, of each action",
                bars=(
                    Bars(mdp.ARROWS, means[16], "16 episodes"),
                    Bars(mdp.ARROWS, means[EPISODES], f"{EPISODES:,} episodes"),
                    Bars(mdp.ARROWS, shown, "exact"),
                ),
            ),
        ),
        tables=(Table(["m", *kinds, "the first, over √m"], rows),),
        remarks=(
            f"Errors are means over all groups of m among {EPISODES:,} episodes, in units of the length of ∇J. The"
            f" baseline is worth {ratio:.1f} times as many episodes. The mean of all of them lies at {angle:.1f}° to"
            " the exact gradient."
        ),
    )


def _error(gradients, exact, m: int) -> float:
    """Mean length of the error of means of m."""
    means = gradients.reshape(-1, m, *exact.shape).mean(1)
    return float(jnp.linalg.norm((means - exact[None]).reshape(len(means), -1), axis=1).mean())


CHAPTER = Chapter(
    name="theorem",
    title="The policy-gradient theorem",
    text=TEXT,
    functions=("mdp.policy_gradient", "mdp.policy_values", "returns.discounted_returns", "losses.reinforce"),
    picture="Error of sampled gradients against the number of episodes, beside 1/√m; sampled and exact components",
    compute=_compute,
)
