"""Agent and environment."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm import mdp
from jaxrl4lm.cli.tour.chapter import Chapter, Findings, Table
from jaxrl4lm.cli.tour.small_worlds import name_cells, play
from jaxrl4lm.plots.panels import Bars, Grid, Line, Panel

TEXT = """
At each step the **agent** sees a state Sₜ and chooses an action Aₜ. The **environment** answers with a reward Rₜ₊₁ and
the next state Sₜ₊₁. What the agent does is its policy π(a|s). What the environment does is its dynamics p(s′, r|s, a).
If the next state depends on nothing but the last state and action, the two are a **Markov decision process**.

The environment here is the 4×3 world of Russell and Norvig. Episodes begin at (1,1). A move goes where it is meant to
in 8 of 10 cases, and to either side in 1 of 10. Each step pays −0.04, the two ends pay +1 and −1. The agent below
chooses any direction with the same probability.
"""
EPISODES, STEPS = 2000, 200


def _compute() -> Findings:
    world = mdp.russell_norvig()
    cells = name_cells(world)
    uniform = jnp.full(world.mdp.rewards.shape, 1 / 4)
    best = jax.jit(mdp.value_iteration)(world.mdp).policy
    keys = jax.random.split(jax.random.key(0))
    policies = {"any direction": uniform, "the best policy": jax.nn.one_hot(best, 4)}
    played = {
        name: jax.tree.map(np.asarray, play(key, world.mdp, policy, count=EPISODES, steps=STEPS))
        for key, (name, policy) in zip(keys, policies.items(), strict=True)
    }
    random = played["any direction"]
    lengths = random.mask.sum(1)
    shown = int(np.argmax(lengths == 10))  # a short one, so that the table fits
    steps = range(lengths[shown])
    rows = [
        [
            str(t),
            cells[int(random.states[shown, t])],
            mdp.ARROWS[random.actions[shown, t]],
            f"{random.rewards[shown, t]:+.2f}",
            cells[int(random.following[shown, t])],
        ]
        for t in steps
    ]
    earned = {name: (each.rewards * each.mask).sum(1) for name, each in played.items()}
    bins = np.linspace(-4, 1, 26)
    middles = (bins[1:] + bins[:-1]) / 2
    shares = {name: np.histogram(np.clip(x, -4, 1), bins)[0] / EPISODES for name, x in earned.items()}
    told = ", ".join(
        f"{name} {x.mean():+.2f} in {played[name].mask.sum(1).mean():.1f} steps" for name, x in earned.items()
    )
    return Findings(
        panels=(
            Panel(
                "the episode of the table, on what is paid",
                grid=Grid(
                    world.index, np.asarray(world.mdp.rewards.max(1)), None, np.asarray(world.mdp.terminal)
                ),
                lines=(_trace(world, random, shown, len(rows)),),
            ),
            Panel(
                f"reward of an episode, {EPISODES:,} episodes",
                "sum of the rewards (−4: or less)",
                "share of the episodes",
                lines=tuple(Line(middles, share, name) for name, share in shares.items()),
            ),
            Panel(
                "where they end",
                y_label="share of the episodes",
                bars=tuple(_ends(name, each, cells) for name, each in played.items()),
            ),
        ),
        tables=(Table(["t", "Sₜ", "Aₜ", "Rₜ₊₁", "Sₜ₊₁"], rows),),
        remarks=f"Reward of an episode on average: {told}. The rest of the tour is about the way from the first to the second.",
    )


def _trace(world: mdp.GridWorld, episodes, shown: int, length: int) -> Line:
    """The way through the cells, moved a little at each step so that steps back and forth stay apart."""
    states = [*episodes.states[shown, :length], episodes.following[shown, length - 1]]
    places = np.array([np.argwhere(world.index == state)[0] for state in states], float)
    places += np.linspace([0.14, -0.3], [0.42, 0.3], len(places))  # below the numbers
    return Line(places[:, 1], places[:, 0], color="C3")


def _ends(name: str, episodes, cells: dict[int, str]) -> Bars:
    ends = episodes.following[np.arange(EPISODES), episodes.mask.sum(1) - 1]
    at = {label: np.mean(ends == state) for state, label in cells.items() if label in ("(4,3)", "(4,2)")}
    names = {"(4,3)": "+1", "(4,2)": "−1"}
    return Bars([*(names[x] for x in at), "not yet"], [*at.values(), 1 - sum(at.values())], name)


CHAPTER = Chapter(
    name="agent",
    title="Agent and environment",
    text=TEXT,
    functions=("mdp.russell_norvig", "envs.finite_mdp.as_environment", "mdp.value_iteration"),
    picture="The way of one random episode through the 4×3 world; what 2,000 episodes earn, and where they end",
    compute=_compute,
)
