"""A2C in its two forms."""

import jax
import jax.numpy as jnp

from jaxrl4lm import mdp
from jaxrl4lm.agents import a2c, on_policy
from jaxrl4lm.cli.tour.chapter import Chapter, Findings, Table
from jaxrl4lm.cli.tour.episode_gradients import from_one_step, from_returns, measure, sample_gradients
from jaxrl4lm.cli.tour.learning import SEEDS, draw_curves, learn_exactly
from jaxrl4lm.plots.panels import Bars, Panel

TEXT = """
An **actor-critic** learns a policy and V(s) together. What an action is given credit for is its **advantage** A(s, a) =
Q(s, a) − V(s), and there are two ways to estimate it:

- **Monte-Carlo**: Gₜ − V(Sₜ). The critic is a baseline. However wrong it is, the gradient is right on average;
- **one step**: Rₜ₊₁ + γ V(Sₜ₊₁) − V(Sₜ). The critic stands for all that follows. Little varies, and a wrong critic
  makes the gradient wrong.

n-step returns and GAE lie between the two. Below are both forms with a critic that is exact, and with one that knows
nothing, V = 0; step t weighs γᵗ, as in the theorem.
"""
EPISODES, STEPS, DISCOUNT = 8192, 100, 0.9
FORMS = {"Monte-Carlo": from_returns, "one step": from_one_step}
ESTIMATORS = {"Monte-Carlo": on_policy.monte_carlo, "one step": on_policy.n_step(1)}


def _compute() -> Findings:
    world = mdp.russell_norvig(DISCOUNT).mdp
    logits = jnp.zeros(world.rewards.shape)
    # What an end is worth is paid on the way into it, so that nothing is left of it there.
    values = jnp.where(world.terminal, 0.0, jax.jit(mdp.policy_values)(world, jax.nn.softmax(logits)))
    exact = jax.jit(mdp.policy_gradient)(world, logits)
    critics = {"an exact critic": values, "a critic that says 0": jnp.zeros_like(values)}
    found = {
        (form, critic): measure(
            sample_gradients(jax.random.key(0), world, logits, credit, said, count=EPISODES, steps=STEPS),
            exact,
        )
        for form, credit in FORMS.items()
        for critic, said in critics.items()
    }
    curves = {
        f"{form}, a learned critic": learn_exactly(
            world,
            lambda *where, form=form, **networks: a2c.make(*where, estimate=ESTIMATORS[form], **networks),
            a2c.A2CConfig(discount=DISCOUNT, environments=8, rollout=25, learning_rate=0.05),
        )
        for form in FORMS
    }
    rows = [
        [form, critic, f"{each.angle:.0f}°", f"{each.deviation:.1f}"]
        for (form, critic), each in found.items()
    ]
    wrong = found["one step", "a critic that says 0"]
    return Findings(
        panels=(
            Panel(
                "angle of the mean gradient to ∇J",
                y_label="degrees",
                bars=tuple(
                    Bars(list(FORMS), [found[form, critic].angle for form in FORMS], critic)
                    for critic in critics
                ),
            ),
            Panel(
                "deviation of an episode's gradient",
                y_label="in units of the length of ∇J",
                bars=tuple(
                    Bars(list(FORMS), [found[form, critic].deviation for form in FORMS], critic)
                    for critic in critics
                ),
            ),
            draw_curves("learning", curves, world),
        ),
        tables=(Table(["form", "critic", "angle", "deviation"], rows),),
        remarks=(
            f"Angles are of the mean of {EPISODES:,} episodes; a few degrees are chance. One step with a critic that"
            f" says 0 sees the next reward alone: {wrong.angle:.0f}° off. Curves are exact values of the policy,"
            f" means of {SEEDS} seeds; the one-step form waits for its critic."
        ),
    )


CHAPTER = Chapter(
    name="a2c",
    title="A2C in its two forms",
    text=TEXT,
    functions=(
        "losses.td_error",
        "returns.discounted_returns",
        "losses.a2c",
        "agents.a2c.make",
        "agents.on_policy.monte_carlo",
        "agents.on_policy.n_step",
    ),
    picture="Angle and deviation of the gradient of both forms with an exact and a wrong critic, and learning curves",
    compute=_compute,
    commands=("jaxrl4lm agent --algorithm a2c",),
)
