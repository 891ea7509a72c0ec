"""Which restaurant: exploring and exploiting."""

from functools import partial

import jax
import numpy as np

from jaxrl4lm import bandits
from jaxrl4lm.cli.tour.chapter import Chapter, Findings, Table
from jaxrl4lm.plots.panels import Line, Panel

TEXT = """
Where to eat tonight: at the favourite, or at the new place that may be better? Who only **exploits** what is known
never finds out. Who only **explores** never profits from it. With one state and no consequences beyond the reward this
is a **bandit**, and what a choice loses against the best arm is its **regret**.

Three restaurants give 5, 7 and 8 of 10 on average, and no two evenings are alike: the standard deviation is 2. Thompson
sampling chooses each place as often as it believes that it is the best; UCB chooses by what a place may be worth at
most.
"""
EVENINGS, RUNS = 300, 2000


def _compute() -> Findings:
    problem = bandits.restaurants()
    algorithms = {
        "each once, then the best": bandits.epsilon_greedy(0.0, initial_value=11.0),
        "any, always": bandits.epsilon_greedy(1.0),
        "ε-greedy, ε = .1": bandits.epsilon_greedy(0.1),
        "UCB, c = 2": bandits.ucb(2.0),
        "Thompson sampling": bandits.thompson_gaussian(prior_mean=5.0, prior_scale=3.0, noise=2.0),
    }
    steps, optimal, regret, rows = np.arange(1, EVENINGS + 1), [], [], []
    for name, algorithm in algorithms.items():
        play = jax.jit(
            partial(bandits.run, problem=problem, algorithm=algorithm, num_steps=EVENINGS, num_runs=RUNS),
            compiler_options=bandits.compiler_options(),
        )
        history = jax.tree.map(np.asarray, play(jax.random.key(0)))
        share, lost = history.optimal.mean(1), history.regrets.mean(1).cumsum()
        optimal.append(Line(steps, share))  # the other panel's legend names them
        regret.append(Line(steps, lost, name))
        rows.append(
            [
                name,
                f"{history.rewards.mean():.2f}",
                f"{100 * share[-1]:.0f} %",
                f"{lost[-1]:.0f}",
                f"{100 * (~history.optimal[-30:].any(0)).mean():.0f} %",
            ]
        )
    return Findings(
        panels=(
            Panel(
                "the best place",
                "evening",
                "share of the runs that go there",
                optimal,
                log_x=True,
                y_limits=(0, 1),
            ),
            Panel("regret", "evening", "enjoyment lost so far", regret),
        ),
        tables=(
            Table(
                [
                    "",
                    "enjoyment of an evening",
                    "at the best, last evening",
                    "regret",
                    "never there in the last 30",
                ],
                rows,
            ),
        ),
        remarks=(
            f"Means of {RUNS:,} runs of {EVENINGS} evenings. Who tries each place once, and then stays, misses the"
            f" best one in {rows[0][4]} of the runs for good. Who explores at a fixed rate pays for it every evening."
        ),
    )


CHAPTER = Chapter(
    name="restaurant",
    title="Which restaurant: explore and exploit",
    text=TEXT,
    functions=(
        "bandits.restaurants",
        "bandits.epsilon_greedy",
        "bandits.ucb",
        "bandits.thompson_gaussian",
        "bandits.run",
    ),
    picture="Share of runs at the best restaurant, and regret, against evenings, five algorithms",
    compute=_compute,
    commands=("jaxrl4lm bandit",),
)
