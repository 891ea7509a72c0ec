"""PPO's clip."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm import losses, mdp
from jaxrl4lm.cli.tour.chapter import Chapter, Findings, Table
from jaxrl4lm.cli.tour.trust_regions import roll_out
from jaxrl4lm.plots.panels import Line, Panel

TEXT = """
**PPO** holds a policy near the old one without a constraint and without a price. Its surrogate is min(ρA, clip(ρ, 1 −
ε, 1 + ε) A). A good action (A > 0) gains nothing more once its ratio ρ is above 1 + ε, and a bad one once it is below 1
− ε. There the gradient is 0, so that several epochs on the same rollout do little harm. In the other direction nothing
is cut: mistakes are always undone.
"""
DISCOUNT, EPS, STEPS, RATE = 0.9, 0.2, 100, 20.0


def _compute() -> Findings:
    ratios = jnp.linspace(0.01, 2, 200)
    panels = []
    for advantage in (1.0, -1.0):
        said = {"ρA": losses.trpo.surrogate, f"PPO, ε = {EPS:g}": partial(losses.ppo_clip, clip_eps=EPS)}
        lines = []
        for name, loss in said.items():
            drawn = -loss(jnp.log(ratios), jnp.zeros_like(ratios), jnp.full_like(ratios, advantage))
            lines.append(Line(ratios, np.asarray(drawn), name, "--" if name == "ρA" else "-"))
        edge = 1 + EPS * np.sign(advantage)
        panels.append(
            Panel(
                f"A = {advantage:+g}",
                "ratio ρ",
                "surrogate",
                lines=(*lines, Line([edge, edge], [-2, 2], f"ρ = {edge:g}", ":", "0.5")),
                y_limits=(min(advantage * 2, 0) - 0.1, max(advantage * 2, 0) + 0.1),
            )
        )
    world = mdp.russell_norvig(DISCOUNT).mdp
    epochs = {
        "without a clip": jax.jit(partial(reuse, world, losses.trpo.surrogate))(),
        f"clip, ε = {EPS:g}": jax.jit(partial(reuse, world, partial(losses.ppo_clip, clip_eps=EPS)))(),
    }
    steps = np.arange(1, STEPS + 1)
    panels.append(
        Panel(
            "one rollout, used again and again",
            "gradient steps",
            "KL(π_old‖π), nats",
            lines=[Line(steps, np.asarray(each[0]), name) for name, each in epochs.items()],
        )
    )
    shown = (1, 1 - EPS, 1 + EPS, 0.5, 1.5)
    rows = [
        [f"{ratio:g}", *(_slope(ratio, advantage) for advantage in (1.0, -1.0))] for ratio in sorted(shown)
    ]
    free, clipped = epochs.values()
    return Findings(
        panels=panels,
        tables=(Table(["ρ", "slope in ρ at A = +1", "slope at A = −1"], rows),),
        remarks=(
            f"After {STEPS} gradient steps on one exact rollout of the 4×3 world the free surrogate has moved the"
            f" policy by {free[0][-1]:.2f} nats, the clipped one by {clipped[0][-1]:.2f}; the largest ratios are"
            f" {free[1][-1]:.1f} and {clipped[1][-1]:.1f}. A clip is no bound: the last step across the edge is as"
            " long as any, and the actions of a state share its parameters."
        ),
    )


def _slope(ratio: float, advantage: float) -> str:
    """Of the clipped surrogate in the ratio, just beside it on the side away from 1."""
    beside = ratio + 1e-3 * np.sign(ratio - 1)

    def surrogate(ratio):
        return -losses.ppo_clip(jnp.log(ratio), jnp.float32(0), jnp.float32(advantage), clip_eps=EPS)

    return f"{float(jax.grad(surrogate)(jnp.float32(beside))) + 0.0:+.2f}"


def reuse(world: mdp.FiniteMDP, loss):
    """Gradient steps on one rollout of a policy that knows nothing: divergence and largest ratio `[steps]`."""
    start = jnp.zeros(world.rewards.shape)
    rollout = roll_out(world, start)

    def descend(logits, _):
        def mean_loss(logits):
            return rollout.mean(loss(jax.nn.log_softmax(logits), rollout.log_probs, rollout.advantages))

        logits = logits - RATE * jax.grad(mean_loss)(logits)
        ratios = jnp.where(rollout.weights > 0, jnp.exp(jax.nn.log_softmax(logits) - rollout.log_probs), 0)
        return logits, (rollout.divergence(logits), ratios.max())

    return jax.lax.scan(descend, start, length=STEPS)[1]


CHAPTER = Chapter(
    name="ppo",
    title="PPO's clip",
    text=TEXT,
    functions=("losses.ppo_clip", "losses.trpo.surrogate", "mdp.russell_norvig"),
    picture=(
        "The clipped surrogate against the ratio for a positive and a negative advantage; divergence over steps on"
        " one rollout"
    ),
    compute=_compute,
    commands=("jaxrl4lm agent --algorithm ppo",),
)
