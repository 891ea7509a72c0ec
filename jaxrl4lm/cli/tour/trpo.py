"""TRPO: a constraint on the divergence, and a penalty in its place."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm import distributions, losses, mdp
from jaxrl4lm.cli.tour.chapter import Chapter, Findings, Table
from jaxrl4lm.cli.tour.learning import find_best
from jaxrl4lm.cli.tour.trust_regions import Rollout, roll_out
from jaxrl4lm.plots.panels import Line, Panel

TEXT = """
An old policy has played. How much would another one earn? The **surrogate** E[ρ A], ρ = π(a|s)/π_old(a|s), says it to
first order, with the states and advantages of the old one. Far away it is wrong, to one side or the other. So a step
stays near, in KL(π_old‖π):

- **TRPO constrains**: the largest E[ρ A] with KL ≤ δ. The natural gradient F⁻¹g says the direction, a line search the
  length;
- **or a penalty** prices it: E[ρ A] − β KL, where β doubles when the policy moved too far, and halves when it hardly
  moved.

Everything below is exact: expectations are sums over the states and actions of the 4×3 world.
"""
DISCOUNT, DELTA = 0.9, 0.03
UPDATES, STEPS, RATE = 15, 20, 20.0


def _compute() -> Findings:
    world = mdp.russell_norvig(DISCOUNT).mdp
    start = jnp.zeros(world.rewards.shape)
    rollout = jax.jit(roll_out)(world, start)
    far, promised, earned = map(np.asarray, jax.jit(look_along)(world, rollout))
    deltas = (0.003, 0.01, 0.03, 0.1)
    runs = {f"constraint, δ = {DELTA:g}": jax.jit(partial(constrain, world))(start, DELTA)}
    runs["penalty, β adapts"] = jax.jit(partial(penalise, world))(start, DELTA)
    first = {d: jax.jit(partial(step_within, rollout))(start, d) for d in deltas}
    updates = np.arange(1, UPDATES + 1)
    rows = []
    for delta, (logits, info) in first.items():
        gain = rollout.length * info.improvement
        true = mdp.objective(world, logits) - mdp.objective(world, start)
        rows.append([f"{delta:g}", f"{info.kl:.4f}", f"{info.fraction:.2f}", f"{gain:+.3f}", f"{true:+.3f}"])
    beta = runs["penalty, β adapts"][2]
    return Findings(
        panels=(
            Panel(
                "along the natural gradient",
                "KL(π_old‖π), nats",
                "gain in the value of the start",
                lines=(Line(far, promised, "promised by the surrogate"), Line(far, earned, "earned")),
            ),
            Panel(
                "how far an update goes",
                "updates",
                "KL(π_old‖π), nats",
                lines=[Line(updates, np.asarray(run[1]), name) for name, run in runs.items()],
                levels=((DELTA, f"δ = {DELTA:g}"),),
                log_y=True,
                y_limits=(1e-4, 1),
            ),
            Panel(
                "what it earns",
                "updates",
                "value of the start",
                lines=[Line(updates, np.asarray(run[0]), name) for name, run in runs.items()],
                levels=((find_best(world), "the best policy"),),
            ),
        ),
        tables=(Table(["δ", "KL of the first step", "share of the full step", "promised", "earned"], rows),),
        remarks=(
            f"The penalty aims at the same {DELTA:g} nats. Its β began at {beta[0]:g} and was {beta[-1]:.2g} in the"
            f" last of {UPDATES} updates: the price that fits falls with what there is left to gain, so a fixed one"
            " is hard to choose. A δ is in nats, and keeps its meaning."
        ),
    )


def surrogate(rollout: Rollout, logits):
    """−E[ρ A]."""
    log_probs = jax.nn.log_softmax(logits)
    return rollout.mean(losses.trpo.surrogate(log_probs, rollout.log_probs, rollout.advantages))


def step_within(rollout: Rollout, logits, delta):
    """One step of TRPO."""
    return losses.trpo.step(
        partial(surrogate, rollout), rollout.divergence, logits, max_kl=delta, damping=1e-3, cg_iterations=20
    )


def look_along(world: mdp.FiniteMDP, rollout: Rollout):
    """KL, promised and true gain, at points along the natural gradient `[N]` each."""
    gradient = jax.grad(partial(surrogate, rollout))(rollout.logits)
    product = partial(losses.trpo.fisher_vector_product, rollout.divergence, rollout.logits, damping=1e-3)
    direction = losses.trpo.conjugate_gradient(product, -gradient, iterations=20)
    unit = direction / jnp.sqrt(jnp.vdot(direction, product(direction)) / 2)  # KL ≈ 1 nat, were it quadratic

    def look(distance):
        logits = rollout.logits + distance * unit
        gain = mdp.objective(world, logits) - mdp.objective(world, rollout.logits)
        return rollout.divergence(logits), -rollout.length * surrogate(rollout, logits), gain

    return jax.vmap(look)(jnp.linspace(0, 1.6, 40))


def constrain(world: mdp.FiniteMDP, start, delta):
    """Updates of TRPO: values and divergences `[updates]`."""

    def update(logits, _):
        rollout = roll_out(world, logits)
        logits, info = step_within(rollout, logits, delta)
        return logits, (mdp.objective(world, logits), info.kl)

    return jax.lax.scan(update, start, length=UPDATES)[1]


def penalise(world: mdp.FiniteMDP, start, target):
    """Updates with a price on the divergence, of several gradient steps each: values, divergences and prices `[updates]`."""
    controller = losses.kl.doubling_controller(1.0, target=target)

    def update(carry, _):
        logits, beta = carry
        rollout = roll_out(world, logits)

        def loss(logits):
            kl = distributions.categorical_kl(rollout.logits, logits)[:, None]
            log_probs = jax.nn.log_softmax(logits)
            each = losses.ppo_kl_penalty(log_probs, rollout.log_probs, rollout.advantages, beta=beta, kl=kl)
            return rollout.mean(each)

        logits = jax.lax.fori_loop(0, STEPS, lambda _, x: x - RATE * jax.grad(loss)(x), logits)
        kl = rollout.divergence(logits)
        return (logits, controller.update(beta, kl, 1)), (mdp.objective(world, logits), kl, beta)

    return jax.lax.scan(update, (start, controller.init()), length=UPDATES)[1]


CHAPTER = Chapter(
    name="trpo",
    title="TRPO: a constraint, or a penalty",
    text=TEXT,
    functions=(
        "losses.trpo.surrogate",
        "losses.trpo.step",
        "losses.trpo.conjugate_gradient",
        "losses.trpo.fisher_vector_product",
        "losses.ppo_kl_penalty",
        "losses.kl.doubling_controller",
        "distributions.categorical_kl",
        "mdp.visitation",
    ),
    picture="Promised and true gain along the natural gradient; divergence and value over updates with constraint and penalty",
    compute=_compute,
    commands=("jaxrl4lm agent --algorithm trpo", "jaxrl4lm agent --algorithm ppo-kl"),
)
