"""What does each algorithm reach on the default task, with as many updates and the numbers of its paper?

    taskset -c 0 python benchmarks/algorithms.py [--only ppo grpo] [--updates 100] [--seeds 5] [--words "--digits 1 --layers 1"]

All seeds of an algorithm are one program, from the same start: a model that teacher forcing has brought to 40 %. The learning
rate is the command line's for all. Seconds are the process's own CPU seconds: on one core they are those of the clock on an idle
machine, and other programs disturb them less. Each line is written as soon as it is known; `--table` prints what is there as
Markdown.
"""

import argparse
import json
import pathlib
import platform
import time

import jax
import numpy as np

from jaxrl4lm import training
from jaxrl4lm.cli.train import build
from jaxrl4lm.cli.train_options import parse_train
from jaxrl4lm.lm.algorithms import ALGORITHMS

RESULTS = pathlib.Path(__file__).parent / "results" / "algorithms.json"

BESIDE_TRL = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo", "luspo", "vespo")
"""tests/lm/test_algorithm_peers.py; the others are held to formulas by tests/lm/test_algorithms.py."""


def make_session(name: str, options: argparse.Namespace):
    """The stages of `jaxrl4lm train --algorithm NAME`; groups of four, so that all can be compared."""
    words = [
        "--algorithm",
        name,
        "--seeds",
        options.seeds,
        "--updates",
        options.updates,
        *options.words.split(),
    ]
    return build(parse_train([str(word) for word in words]))


def measure(name: str, options: argparse.Namespace, start) -> dict:
    """Held-out accuracy before and after, over the seeds; updates a second without the compilation."""
    stage = make_session(name, options).stages[-1]
    begun = time.process_time()
    marks = [(0, begun)]

    def mark(report) -> None:
        if report.progress.done > marks[-1][0]:
            marks.append((report.progress.done, time.process_time()))

    run = training.fit([stage], start, on_progress=mark)
    (early, since), (late, until) = marks[(len(marks) - 1) // 2], marks[-1]  # the first half compiles
    held_out = np.array(run.history["held_out"])
    row = {
        "before": float(held_out[0].mean()),
        "after": [round(float(x), 4) for x in held_out[-1]],
        "reward": float(run.history["reward/mean"][-5:].mean()),
        "updates_per_second": round((late - early) / (until - since), 2),
        "whole_seconds": round(time.process_time() - begun, 1),
    }
    if "group/rounds" in run.history:
        row["rounds"] = float(run.history["group/rounds"].mean())
    return row


def print_table(results: dict) -> None:
    """The rows as Markdown, the best first."""
    print(
        "| algorithm | loss and gradient checked against | right, mean of seeds | least, most | rounds of drawing | updates/s |\n"
        "|---|---|---|---|---|---|"
    )
    for name, row in sorted(results["rows"].items(), key=lambda item: -np.mean(item[1]["after"])):
        after = 100 * np.array(row["after"])
        rounds = f"{row['rounds']:.1f}" if "rounds" in row else "1"
        checked = "TRL" if name in BESIDE_TRL else "formulas in NumPy"
        print(
            f"| {name} | {checked} | {after.mean():.1f} | {after.min():.1f}, {after.max():.1f} | {rounds} | "
            f"{row['updates_per_second']:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(ALGORITHMS))
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--words", default="")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    if options.table:
        print_table(results)
        return
    session = make_session("ppo", options)
    start = training.fit([session.stages[0]], session.start()).params
    for name in options.only:
        results["rows"][name] = measure(name, options, start)
        results |= {"updates": options.updates, "seeds": options.seeds, "words": options.words}
        results |= {
            "jax": jax.__version__,
            "processor": platform.machine(),
            "device": jax.devices()[0].device_kind,
        }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(name, results["rows"][name], flush=True)


if __name__ == "__main__":
    main()
