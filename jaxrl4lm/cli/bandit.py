"""`jaxrl4lm bandit`: the ten-armed testbed, its learning curves and a parameter study."""

import dataclasses
import pathlib
import time
from typing import Literal

from jaxrl4lm.cli.options import parse
from jaxrl4lm.types import InputError


@dataclasses.dataclass(frozen=True)
class BanditArguments:
    """Plays bandit algorithms against each other: average reward, share of optimal actions, regret, one
    line each.

    Draws the learning curves, and a parameter study: average reward against each algorithm's hyper-parameter.
    """

    arms: int = 10
    """Number of arms."""
    runs: int = 2000
    """Independent bandits, each drawn anew."""
    steps: int = 1000
    """Choices per run."""
    rewards: Literal["gaussian", "bernoulli"] = "gaussian"
    """What arms pay: N(q, 1) with q from N(0, 1), or 1 with a probability drawn uniformly."""
    means: tuple[float, ...] = ()
    """Probabilities with which the arms of every bandit pay 1, in place of --arms drawn ones. The regret is then drawn
    beside the bound of Lai and Robbins."""
    seed: int = 0
    """Decides everything."""
    study: bool = True
    """Also draw the parameter study."""
    folder: pathlib.Path = pathlib.Path(".")
    """Where bandit.png and bandit_study.png are written."""


def main(arguments: list[str]) -> int:
    """Runs the command."""
    parsed = parse(BanditArguments, arguments, "bandit")
    for name in ("arms", "runs", "steps"):
        smallest = 2 if name == "arms" else 1
        if getattr(parsed, name) < smallest:
            raise InputError(f"--{name} is {getattr(parsed, name)}: give at least {smallest}.")
    if parsed.means and (len(parsed.means) < 2 or not all(0 <= mean <= 1 for mean in parsed.means)):
        raise InputError(f"--means is {parsed.means}: give at least two probabilities, each from 0 to 1.")
    if parsed.means and (parsed.arms != BanditArguments.arms or parsed.rewards != BanditArguments.rewards):
        raise InputError(
            "--means says how many arms there are and what they pay: leave out --arms and --rewards"
        )
    if not -(2**63) <= parsed.seed < 2**63:
        raise InputError(f"--seed is {parsed.seed}: give a number of at most 18 digits.")
    try:
        parsed.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--folder {parsed.folder} cannot be made ({error}): name another one.") from None
    return _play(parsed)


def _play(arguments: BanditArguments) -> int:
    import jax
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from jaxrl4lm import bandits
    from jaxrl4lm.plots.bandits import draw_learning_curves, draw_parameter_study

    console = Console()
    gaussian = arguments.rewards == "gaussian" and not arguments.means
    problem = _make_problem(arguments)
    learners, grids = _learners(gaussian), _grids(gaussian) if arguments.study else {}
    key_play, key_study, key_best = jax.random.split(jax.random.key(arguments.seed), 3)
    curves: dict[str, dict[str, np.ndarray]] = {}
    studies: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    started = time.perf_counter()
    with _progress(console) as progress:
        task = progress.add_task("", total=len(learners) + len(grids))
        for name, learner in learners.items():
            progress.update(task, description=name)
            curves[name] = _curve(key_play, problem, learner, arguments)
            progress.advance(task)
        for name, (make, values) in grids.items():
            progress.update(task, description=f"study: {name}")
            studies[name] = np.asarray(values), _study(key_study, problem, make, values, arguments)
            progress.advance(task)
    best = float(problem.means(problem.init(key_best, 10_000), None).max(axis=0).mean())

    table = Table("algorithm", "average reward", "at the end", "optimal at the end", "regret")
    late = max(1, arguments.steps // 10)
    for name, curve in curves.items():
        table.add_row(
            name,
            f"{curve['rewards'].mean():.3f}",
            f"{curve['rewards'][-late:].mean():.3f}",
            f"{100 * curve['optimal'][-late:].mean():.1f} %",
            f"{curve['regrets'].sum():.1f}",
        )
    console.print(table)
    arms = f"{arguments.arms} {arguments.rewards} arms"
    bound = None
    if arguments.means:
        arms = f"arms that pay {', '.join(f'{mean:g}' for mean in arguments.means)}"
        bound = float(bandits.lai_robbins(np.array(arguments.means)))
        console.print(
            f"No regret of an algorithm for all means grows slower than {bound:.1f} ln t in the end (Lai & Robbins)."
        )
    title = f"{arms}, {arguments.runs} runs"
    draw_learning_curves(curves, best, title, arguments.folder / "bandit.png", bound=bound)
    written = "bandit.png"
    if studies:
        over = f"{arms}, {_study_runs(arguments)} runs of {arguments.steps} steps"
        draw_parameter_study(studies, over, arguments.folder / "bandit_study.png")
        written += ", bandit_study.png"
    seconds = time.perf_counter() - started
    console.print(
        f"{title} × {arguments.steps} steps in {seconds:.1f} s. Pictures in {arguments.folder}: {written}"
    )
    return 0


def _make_problem(arguments: BanditArguments):
    import jax.numpy as jnp

    from jaxrl4lm import bandits

    if arguments.means:
        means = jnp.array(arguments.means)[:, None]
        return bandits.fixed_bernoulli(
            lambda key, runs: jnp.broadcast_to(means, (len(means), runs)), len(means)
        )
    return (bandits.gaussian if arguments.rewards == "gaussian" else bandits.bernoulli)(arguments.arms)


def _curve(key, problem, learner, arguments: BanditArguments):
    """Means over runs, `[T]` each, computed where the runs are."""
    import jax
    import numpy as np

    from jaxrl4lm import bandits

    def means(key):
        history = bandits.run(key, problem, learner, arguments.steps, arguments.runs)
        shown = {name: getattr(history, name) for name in ("rewards", "optimal", "regrets")}
        return {name: values.mean(axis=1, dtype="float32") for name, values in shown.items()}

    return jax.tree.map(np.asarray, jax.jit(means, compiler_options=bandits.compiler_options())(key))


def _study_runs(arguments: BanditArguments) -> int:
    """Fewer than those of a curve: a study has many points, each of which needs less precision."""
    return max(1, arguments.runs // 4)


def _study(key, problem, make, values, arguments: BanditArguments):
    """Average reward over all steps and runs for each value of a hyper-parameter: one vmap."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxrl4lm import bandits

    def average(value):
        return bandits.run(key, problem, make(value), arguments.steps, _study_runs(arguments)).rewards.mean()

    study = jax.jit(lambda values: jax.lax.map(average, values), compiler_options=bandits.compiler_options())
    return np.asarray(study(jnp.asarray(values)))


def _learners(gaussian: bool):
    from jaxrl4lm import bandits

    learners = {
        "greedy": bandits.epsilon_greedy(0.0),
        "ε-greedy, ε = 0.01": bandits.epsilon_greedy(0.01),
        "ε-greedy, ε = 0.1": bandits.epsilon_greedy(0.1),
        "optimistic, Q₁ = 5, α = 0.1": bandits.epsilon_greedy(0.0, step_size=0.1, initial_value=5.0),
        "softmax, τ = 0.2": bandits.softmax(0.2),
        "UCB, c = 2": bandits.ucb(2.0),
        "gradient, α = 0.1": bandits.gradient(0.1),
        "gradient without baseline": bandits.gradient(0.1, baseline=False),
    }
    if gaussian:
        return learners | {"Thompson, Gaussian": bandits.thompson_gaussian()}
    return learners | {
        "KL-UCB": bandits.kl_ucb(),
        "Thompson, Beta": bandits.thompson_beta(),
        "EXP3, γ = 0.1": bandits.exp3(0.1),
    }


def _grids(gaussian: bool):
    """Learner and parameter → (constructor, values), as in Sutton & Barto's figure 2.6."""
    from jaxrl4lm import bandits

    def powers(low: int, high: int) -> list[float]:
        return [2.0**exponent for exponent in range(low, high + 1)]

    grids = {
        "ε-greedy: ε": (bandits.epsilon_greedy, powers(-7, -2)),
        "gradient: α": (bandits.gradient, powers(-5, 2)),
        "UCB: c": (bandits.ucb, powers(-4, 2)),
        "greedy, α = 0.1: Q₁": (
            lambda value: bandits.epsilon_greedy(0.0, step_size=0.1, initial_value=value),
            powers(-2, 2),
        ),
        "softmax: τ": (bandits.softmax, powers(-6, 1)),
    }
    return grids if gaussian else grids | {"EXP3: γ": (bandits.exp3, powers(-7, -1))}


def _progress(console):
    """A bar that leaves no trace."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    return Progress(*columns, TextColumn("{task.description}"), console=console, transient=True)
