"""What does a run cost beside others in one program: all together, or in blocks that fit the cache?

    taskset -c 0 python benchmarks/population.py [--peer FOLDER/trl_grpo.py --trl VENV/bin/python] [--runs 64 256]

GRPO on addition, 2 layers x 32, 32 completions of 8 tokens; every run has its own key, parameters and reference. All sides run
in alternation in one process; a ratio is the time of a single run over a member's: above 1 a population pays. `busy` counts the
time in which the process had the core, which is what can be compared beside other work. The peer trains one run at a time:
as many of its runs take as many times its step.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable

from lm_rl_gpt2 import spread
from lm_rl_step import measure, share_right, versions

RESULTS = pathlib.Path(__file__).parent / "results" / "population.json"
LAYERS, WIDTH, COMPLETIONS, TOKENS = 2, 32, 32, 8
UPDATES = 5
"""Of one call; a block finishes them before the next begins."""


def training() -> tuple[Callable, Callable]:
    """(init(key) → state, train(state) → (state, metrics)): the one place that knows the library's calls."""
    from jaxrl4lm import decoding, tasks
    from jaxrl4lm.lm import ReinforcementConfig, algorithms, reinforcement
    from jaxrl4lm.models import LanguagePolicy, TransformerConfig

    task = tasks.addition(2)._replace(reward=share_right)
    policy = LanguagePolicy(
        TransformerConfig.gpt2(task.tokenizer.vocab_size, layers=LAYERS, width=WIDTH, heads=4, context=64)
    )
    learner = reinforcement.Learner(policy, algorithms.GRPO)
    config = ReinforcementConfig(
        learning_rate=1e-4,
        kl_coef=0.04,
        prompts_per_update=COMPLETIONS // 8,
        completions=8,
        sampling=decoding.Sampling(TOKENS, eos_id=1, pad_id=0),
    )

    def init(key):
        return reinforcement.init(key, config, learner, policy.init(key))

    return init, lambda state: reinforcement.run(state, config, learner, task, UPDATES)


def populations(runs: int, blocks: list[int], rounds: int) -> dict:
    """Milliseconds of one update of one run, by how many advance at a time."""
    import jax

    from jaxrl4lm.lm.population import map_population

    init, train = training()
    keys = jax.random.split(jax.random.key(0), runs)
    states = jax.jit(jax.vmap(init))(keys)
    sides = {"single": (jax.jit(train), jax.jit(init)(keys[0]), 1)}
    for size in sorted({min(size, runs) for size in blocks} | {runs}):
        sides[f"blocks of {size}"] = (jax.jit(map_population(train, size)), states, runs)
    seconds = {name: [] for name in sides}
    busy = {name: [] for name in sides}
    for function, state, _ in sides.values():
        jax.block_until_ready(function(state))
    for _ in range(rounds):
        for name, (function, state, members) in sides.items():
            calls = 8 if members == 1 else 1
            began, used = time.perf_counter(), time.process_time()
            for _ in range(calls):
                jax.block_until_ready(function(state))
            count = calls * members * UPDATES
            seconds[name].append(1e3 * (time.perf_counter() - began) / count)
            busy[name].append(1e3 * (time.process_time() - used) / count)
    result = {}
    for name in sides:
        result[name] = {"ms": spread(seconds[name]), "busy_ms": spread(busy[name])}
        ratios = [a / b for a, b in zip(busy["single"], busy[name], strict=True)]
        result[name]["single / this"] = spread(ratios)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="*", type=int, default=(64, 256))
    parser.add_argument("--blocks", nargs="*", type=int, default=(4, 8, 16, 32))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--peer", type=pathlib.Path)
    parser.add_argument("--trl", default=sys.executable, help="the Python of the peer")
    args = parser.parse_args()
    os.sched_setaffinity(0, {args.core})
    import jax

    record = {
        "device": jax.devices()[0].device_kind,
        "processor": platform.processor() or platform.machine(),
        "versions": {p: importlib.metadata.version(p) for p in ("jax", "jaxlib", "flax", "optax")},
        "size": {"layers": LAYERS, "width": WIDTH, "completions": COMPLETIONS, "tokens": TOKENS},
        "runs": {},
    }
    for runs in args.runs:
        record["runs"][str(runs)] = populations(runs, args.blocks, args.rounds)
        print(runs, json.dumps(record["runs"][str(runs)], indent=1), flush=True)
    if args.peer:
        sizes = {"layers": LAYERS, "width": WIDTH, "batch": COMPLETIONS, "completion": TOKENS}
        options = [str(x) for name, size in sizes.items() for x in (f"--{name}", size)]
        steps = [
            measure([args.trl, str(args.peer), *options], args.core)["seconds_per_step"] for _ in range(3)
        ]
        record["trl"] = {"versions": versions(args.trl, ("trl", "torch", "transformers"))}
        record["trl"]["ms"] = spread([1e3 * s for s in steps])
        for runs, sides in record["runs"].items():
            best = min(side["ms"]["median"] for side in sides.values())
            record["trl"][f"seconds of {runs} updates"] = {
                "trl": round(int(runs) * statistics.median(steps), 3),
                "jaxrl4lm": round(int(runs) * best / 1e3, 3),
            }
        print(json.dumps(record["trl"], indent=1))
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
