"""How long does a GRPO step take, and how much memory, at GPT-2 small's size, beside TRL on the same work?

    python benchmarks/lm_rl_gpt2.py --peer FOLDER/trl_grpo_gpt2.py --trl VENV/bin/python [--rounds 3]

12 layers x 768, vocabulary 50,257, 8 prompts x 4 completions of 32 tokens after 64; generate + reward + reference + update.
The peer prints a JSON line a step with `seconds` and `peak_gb`. Each side is a process of its own on one core; they alternate,
and the first step of each process, which compiles or warms up, is left out of its median. A round's ratio of times is peer /
ours; of memory, ours / peer. `cpu_seconds` is what a step of ours kept the core busy: beside other work the more telling.
"""

import argparse
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time

from lm_rl_step import versions

RESULTS = pathlib.Path(__file__).parent / "results" / "lm_rl_gpt2.json"
VOCABULARY, PROMPT, COMPLETION = 50_257, 64, 32


def training(layers: int, scan: bool):
    """(the state before the first update, update(state) → (state, metrics)): the one place that knows the library's calls."""
    import jax
    import jax.numpy as jnp

    from jaxrl4lm import decoding
    from jaxrl4lm.lm import ReinforcementConfig, algorithms, reinforcement
    from jaxrl4lm.models import LanguagePolicy, TransformerConfig

    sizes = {"layers": layers, "width": 768, "heads": 12, "context": 128, "scan": scan}
    policy = LanguagePolicy(TransformerConfig.gpt2(VOCABULARY, **sizes))
    learner = reinforcement.Learner(policy, algorithms.GRPO)
    config = ReinforcementConfig(
        learning_rate=1e-5,
        kl_coef=0.04,
        prompts_per_update=8,
        completions=4,
        sampling=decoding.Sampling(COMPLETION, eos_id=VOCABULARY - 1, pad_id=0),
    )

    def update(state):
        key = jax.random.fold_in(state.key, state.update)
        prompts = jax.random.randint(key, (config.prompts_per_update, PROMPT), 1, VOCABULARY - 1)
        trajectories = reinforcement.sample(state, prompts, jnp.ones(prompts.shape, bool), config, learner)
        rewards = trajectories.completions.sum(-1) % 7 / 7.0
        return reinforcement.learn(state, trajectories, rewards, config, learner)

    def begin(key):
        return reinforcement.init(key, config, learner, policy.init(key))

    return jax.jit(begin)(jax.random.key(0)), jax.jit(update, donate_argnums=0)


def worker(steps: int, layers: int, scan: bool) -> None:
    """Prints a JSON line with the compilation, then one a step."""
    import jax

    state, update = training(layers, scan)
    began, busy = time.perf_counter(), time.process_time()
    update = update.lower(state).compile()
    memory = update.memory_analysis()
    sizes = {name: getattr(memory, f"{name}_size_in_bytes") / 1e9 for name in ("temp", "argument", "alias")}
    compilation = {"compile_seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - busy}
    print(json.dumps(compilation | {f"{name}_gb": round(x, 3) for name, x in sizes.items()}), flush=True)
    for _ in range(steps):
        began, busy = time.perf_counter(), time.process_time()
        state, _ = jax.block_until_ready(update(state))
        row = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - busy}
        row["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps({name: round(x, 3) for name, x in row.items()}), flush=True)


def measure(command: list[str], core: int) -> dict:
    """The JSON lines that a side prints, run on one core, as medians over its steps but the first."""
    done = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, {core})
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    steps = [line for line in lines if "seconds" in line]
    result = {name: statistics.median(s[name] for s in steps[1:]) for name in steps[0] if name != "peak_gb"}
    result |= {"steps": steps, "peak_gb": max(s["peak_gb"] for s in steps)}
    return result | {"compilation": [line for line in lines if "compile_seconds" in line]}


def spread(values: list[float]) -> dict[str, float]:
    return {
        "min": round(min(values), 3),
        "median": round(statistics.median(values), 3),
        "max": round(max(values), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", action="store_true", help="measure ours here and print it")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--scan", action="store_true", help="layers as one loop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--peer", type=pathlib.Path)
    parser.add_argument("--trl", default=sys.executable, help="the Python of the peer")
    args = parser.parse_args()
    if args.worker:
        return worker(args.steps, args.layers, args.scan)
    ours = [sys.executable, __file__, "--worker", "--steps", str(args.steps), "--layers", str(args.layers)]
    ours += ["--scan"] * args.scan
    record = {
        "processor": platform.processor() or platform.machine(),
        "versions": {
            "jaxrl4lm": versions(sys.executable, ("jax", "jaxlib", "flax", "optax")),
            "trl": versions(args.trl, ("trl", "torch", "transformers")),
        },
        "rounds": [],
    }
    for _ in range(args.rounds):
        peer = [args.trl, str(args.peer), "--steps", str(args.steps)]
        row = {"jaxrl4lm": measure(ours, args.core), "trl": measure(peer, args.core)}
        record["rounds"].append(row)
        rows = record["rounds"]
        record["trl / jaxrl4lm, seconds"] = spread(
            [r["trl"]["seconds"] / r["jaxrl4lm"]["seconds"] for r in rows]
        )
        record["jaxrl4lm / trl, memory"] = spread(
            [r["jaxrl4lm"]["peak_gb"] / r["trl"]["peak_gb"] for r in rows]
        )
        print({name: x for name, x in record.items() if "/" in name}, flush=True)
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
