"""What does each control agent learn, over 16 seeds, and does it reach its bar?

    python benchmarks/agents_learning.py [--only CartPole-v1/ppo ...] [--set learning_rate=1e-3 ...] [--table]

A row is the returns of the last policy, by the likeliest actions, on episodes of each seed's own; IQM with a bootstrap interval
(`agents.scores`). Seeds are one program, except for images, which go one after another. Each row is written as soon as it is
known; with `--set` (a trial of other numbers) nothing is written. `--table` prints what is there as Markdown.
"""

import argparse
import ast
import json
import pathlib
import platform
import re
import time
from typing import NamedTuple

import jax
import numpy as np

from jaxrl4lm.agents.agent import train
from jaxrl4lm.agents.environment import make_environment
from jaxrl4lm.agents.scores import bootstrap_interval, interquartile_mean
from jaxrl4lm.cli.agent import ALGORITHMS

RESULTS = pathlib.Path(__file__).parent / "results" / "agents_learning.json"
EPISODES = 64


class Task(NamedTuple):
    """A run: what is learnt, by what, in how many steps."""

    environment: str
    algorithm: str
    steps: int
    bar: float | None
    """What the interquartile mean shall be at least; None where there is no figure to beat."""
    numbers: dict
    """Hyper-parameters that are not the defaults."""
    seeds: int = 16


FALLING = {"final_learning_rate_share": 0.0}
CARTPOLE = {"learning_rate": 2e-3, "discount": 0.98, "gae_lambda": 0.9, "entropy_coef": 0.01, **FALLING}
VALUES = {"n_step": 3, "learning_rate": 1e-3, "buffer": 50_000, **FALLING}
ACROBOT = {"environments": 16, "rollout": 64, "normalize_observations": True}
CAR = {"environments": 16, "normalize_observations": True, "normalize_rewards": True, "gae_lambda": 0.98}
MINATAR = {
    "environments": 128,
    "rollout": 32,
    "epochs": 2,
    "minibatches": 32,
    "learning_rate": 5e-4,
    **FALLING,
}
TASKS = [
    Task("CartPole-v1", "ppo", 100_000, 495, CARTPOLE),
    Task("CartPole-v1", "ppo-kl", 100_000, 495, CARTPOLE),
    Task("CartPole-v1", "trpo", 100_000, 495, {"discount": 0.98, "gae_lambda": 0.9, "learning_rate": 1e-3}),
    Task("CartPole-v1", "a2c", 300_000, 495, {"rollout": 10, **CARTPOLE}),
    Task(
        "CartPole-v1",
        "reinforce",
        500_000,
        495,
        {"learning_rate": 1e-2, "rollout": 1_000, "environments": 4, **FALLING},
    ),
    Task("CartPole-v1", "recurrent-ppo", 100_000, None, CARTPOLE),
    Task("CartPole-v1", "dqn", 50_000, 495, VALUES),
    Task("CartPole-v1", "qr-dqn", 50_000, None, VALUES),
    Task("CartPole-v1", "c51", 50_000, None, {**VALUES, "learning_rate": 4e-3}),
    Task("CartPole-v1", "pqn", 100_000, None, {"learning_rate": 8e-3, **FALLING}),
    Task(
        "Acrobot-v1",
        "ppo",
        99_328,
        -82,
        {
            **ACROBOT,
            "learning_rate": 3e-3,
            "entropy_coef": 0.01,
            "gae_lambda": 0.85,
            **FALLING,
        },
    ),
    Task(
        "Acrobot-v1",
        "trpo",
        99_328,
        -82,
        {**ACROBOT, "learning_rate": 3e-3, "max_grad_norm": 10, "gae_lambda": 0.75},
    ),
    Task(
        "Acrobot-v1",
        "dqn",
        100_000,
        -82,
        {
            "gradient_steps": 80,
            "batch": 128,
            "buffer": 50_000,
            "target_interval": 3,
            "learning_rate": 6.3e-4,
            "epsilon": 0.03,
            **FALLING,
        },
    ),
    Task(
        "MountainCar-v0",
        "dqn",
        120_000,
        -110,
        {**VALUES, "discount": 0.98, "buffer": 10_000, "epsilon": 0.07},
    ),
    Task("MountainCar-v0", "ppo", 1_000_000, -115, {"learning_rate": 3e-3, **CAR, **FALLING}),
    Task("Catch-bsuite", "ppo", 100_000, 1, {"learning_rate": 2e-3, **FALLING}),
    Task("Catch-bsuite", "alphazero", 16_000, 1, {"rollout": 16, "learning_rate": 3e-3}),
    Task("CartPole-v1", "alphazero", 50_000, None, {"learning_rate": 1e-3}),
    Task("DeepSea-bsuite", "ppo", 100_000, None, {"learning_rate": 2e-3, "entropy_coef": 0.01, **FALLING}),
    Task("DeepSea-bsuite", "dqn", 100_000, None, {"learning_rate": 1e-3, **FALLING}),
    Task(
        "Pendulum-v1",
        "ppo",
        150_000,
        -180,
        {"learning_rate": 1e-3, "discount": 0.95, "normalize_rewards": True, **FALLING},
    ),
    Task("Pendulum-v1", "sac", 20_000, -155, {"learning_rate": 1e-3, **FALLING}),
    Task(
        "Pendulum-v1",
        "td3",
        20_000,
        -155,
        {"learning_rate": 1e-3, "discount": 0.98, "warmup": 8_000, "exploration_noise": 0.3, **FALLING},
    ),
    Task(
        "Pendulum-v1",
        "ddpg",
        20_000,
        None,
        {"learning_rate": 1e-3, "discount": 0.98, "warmup": 8_000, "exploration_noise": 0.3, **FALLING},
    ),
    Task("Breakout-MinAtar", "pqn", 10_002_432, 28, MINATAR, seeds=2),
    Task("Freeway-MinAtar", "pqn", 10_002_432, 58, MINATAR, seeds=2),
    Task("Asterix-MinAtar", "pqn", 10_002_432, 15, MINATAR, seeds=2),
]


def play(task: Task) -> dict:
    """The row of a task."""
    environment, params = make_environment(task.environment)
    make, kind = ALGORITHMS[task.algorithm]
    agent = make(environment, params)
    config = kind(steps=task.steps, **task.numbers)
    config.check()

    def run(key):
        _, history = train(agent, key, config, params, episodes=EPISODES)
        return history["evaluation"][-1]

    keys = jax.vmap(jax.random.key)(np.arange(task.seeds))
    begun = time.perf_counter()
    images = len(agent.spec.shape) == 3
    together = (lambda keys: jax.lax.map(run, keys)) if images else jax.vmap(run)
    compiled = jax.jit(together).lower(keys).compile()
    compiling = time.perf_counter() - begun
    scores = np.asarray(compiled(keys))
    seconds = time.perf_counter() - begun - compiling
    return {
        "steps": task.steps,
        "bar": task.bar,
        "iqm": round(interquartile_mean(scores), 2),
        "interval": [round(x, 2) for x in bootstrap_interval(scores)],
        "worst": round(float(scores.min()), 2),
        "scores": [round(float(x), 2) for x in scores],
        "numbers": task.numbers,
        "compile_seconds": round(compiling, 1),
        "steps_per_second": round(task.seeds * task.steps / seconds),
    }


def describe_number(name: str, value: float | bool) -> str:
    """A hyper-parameter, as the table has it."""
    if name == "final_learning_rate_share" and value == 0:
        return "falling"
    if value is True:
        return f"`{name}`"
    return f"rate {value:g}" if name == "learning_rate" else f"`{name}` {value:g}"


def print_table(rows: dict) -> None:
    """The rows as Markdown."""
    print(
        "| environment | algorithm | steps | seeds | IQM | interval | worst seed | bar | hyper-parameters |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        environment, algorithm = name.split("/")
        numbers = ", ".join(describe_number(*each) for each in row["numbers"].items())
        interval = " to ".join(f"{x:g}" for x in row["interval"])
        cells = [environment, algorithm, f"{row['steps']:,}", len(row["scores"]), f"{row['iqm']:g}", interval]
        cells += [f"{row['worst']:g}", "" if row["bar"] is None else f"{row['bar']:g}", numbers]
        line = " | ".join(str(cell) for cell in cells)
        print("|", re.sub(r"(?<= )-(?=\d)", "−", line), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    if options.table:
        print_table(results["rows"])
        return
    trial = {
        name: ast.literal_eval(value) for name, _, value in (each.partition("=") for each in options.set)
    }
    for task in TASKS:
        name = f"{task.environment}/{task.algorithm}"
        if options.only is not None and name not in options.only:
            continue
        task = task._replace(numbers={**task.numbers, **trial}, steps=options.steps or task.steps)
        row = play(task)
        print(name, row, flush=True)
        if not trial and not options.steps:
            results["rows"][name] = row
            results |= {"episodes": EPISODES, "jax": jax.__version__}
            results |= {"processor": platform.machine(), "device": jax.devices()[0].device_kind}
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
