"""Returns and their recursion."""

import jax.numpy as jnp
import numpy as np

from jaxrl4lm import returns
from jaxrl4lm.cli.tour.chapter import Chapter, Findings, Table
from jaxrl4lm.plots.panels import Bars, Line, Panel

TEXT = """
The **return** Gₜ = Rₜ₊₁ + γ Rₜ₊₂ + γ² Rₜ₊₃ + … is what a step is followed by. The discount γ says how much a reward is
worth one step later. Returns need no sum over all that follows. From the last step backwards each is one line:

**Gₜ = Rₜ₊₁ + γ Gₜ₊₁**, and nothing follows the end.

Values, temporal differences, GAE and the returns of tokens of a language model are all made of this line.
"""
REWARDS = (1.0, 0.0, -2.0, 0.0, 0.0, 10.0)
DISCOUNTS = (0.0, 0.5, 0.9, 1.0)
SHOWN = 0.9


def _compute() -> Findings:
    rewards = jnp.array(REWARDS)
    gains = {g: np.asarray(returns.discounted_returns(rewards, discount=g)) for g in DISCOUNTS}
    following = np.append(gains[SHOWN][1:], 0.0)
    rows = [
        [str(t), f"{reward:g}", f"{after:.4f}", f"{reward:g} + {SHOWN:g} · {after:.4f}", f"{gain:.4f}"]
        for t, (reward, after, gain) in enumerate(zip(REWARDS, following, gains[SHOWN], strict=True))
    ]
    steps = np.arange(len(REWARDS))
    return Findings(
        panels=(
            Panel("rewards", "t", "Rₜ₊₁", bars=(Bars([str(t) for t in steps], REWARDS),)),
            Panel(
                "returns",
                "t",
                "Gₜ",
                lines=tuple(Line(steps, gain, f"γ = {g:g}") for g, gain in gains.items()),
            ),
        ),
        tables=(Table(["t", "Rₜ₊₁", "Gₜ₊₁", f"Rₜ₊₁ + γ Gₜ₊₁, γ = {SHOWN:g}", "Gₜ"], rows),),
        remarks=(
            f"At γ = 0 a return is the next reward alone. At γ = 1 it is the sum of all of them, {gains[1.0][0]:g} at"
            f" the first step. At γ = {SHOWN:g} the {REWARDS[-1]:g} at the end is worth"
            f" {SHOWN ** (len(REWARDS) - 1) * REWARDS[-1]:.2f} there."
        ),
    )


CHAPTER = Chapter(
    name="returns",
    title="Returns and their recursion",
    text=TEXT,
    functions=("returns.discounted_returns",),
    picture="Rewards of six steps, and the returns that follow from them at four discounts",
    compute=_compute,
)
