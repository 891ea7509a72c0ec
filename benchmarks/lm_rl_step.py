"""How long does one GRPO iteration take (generate + reward + reference + update), beside TRL and Tunix on the same work?

    python benchmarks/lm_rl_step.py --peers FOLDER --trl VENV/bin/python --tunix VENV/bin/python

`FOLDER` holds `trl_grpo.py` and `tunix_grpo.py`, which print one JSON line with `seconds_per_step`. Every side is a process of
its own on one core; the sides alternate, round by round; a round's ratio is peer / ours. Ours runs as `jaxrl4lm train` does,
in chunks of updates that are one compiled program; `single` is the same update called once at a time, each waited for. Leave
a peer out by leaving out its Python. Sizes are `layers width completions tokens`; the sizes that a run does not measure keep
their record.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

SIZES = ("2 32 32 8", "2 64 64 8", "2 64 256 16", "4 128 256 16")
RESULTS = pathlib.Path(__file__).parent / "results" / "lm_rl_step.json"


CHUNK = 10
"""Updates in one program."""


def share_right(prompts, completions, mask):
    """The share of the answer's digits that stand where they should, in completions of any length."""
    width = prompts.answers.shape[1]
    digits = prompts.answer_mask & (prompts.answers != 1)
    return ((completions[:, :width] == prompts.answers) & digits).sum(-1) / digits.sum(-1)


def worker(layers: int, width: int, batch: int, tokens: int, chunks: int = 6, group: int = 8) -> dict:
    """Seconds of an iteration of ours, in chunks and one at a time: the median over calls, each waited for."""
    import jax
    import jax.numpy as jnp

    from jaxrl4lm import decoding, tasks
    from jaxrl4lm.lm import ReinforcementConfig, algorithms, reinforcement
    from jaxrl4lm.models import LanguagePolicy, TransformerConfig, parameter_count

    task = tasks.addition(2)._replace(reward=share_right)
    policy = LanguagePolicy(
        TransformerConfig.gpt2(task.tokenizer.vocab_size, layers=layers, width=width, heads=4, context=64)
    )
    learner = reinforcement.Learner(policy, algorithms.GRPO)
    config = ReinforcementConfig(
        learning_rate=1e-4,
        kl_coef=0.04,
        prompts_per_update=batch // group,
        completions=group,
        sampling=decoding.Sampling(tokens, eos_id=1, pad_id=0),
    )
    params = policy.init(jax.random.key(0))
    state = reinforcement.init(jax.random.key(1), config, learner, params)

    def timed(state, updates: int, calls: int):
        update = jax.jit(lambda s: reinforcement.run(s, config, learner, task, updates), donate_argnums=0)
        began = time.perf_counter()
        state, _ = jax.block_until_ready(update(state))
        compilation = time.perf_counter() - began
        seconds = []
        for _ in range(calls):
            began = time.perf_counter()
            state, metrics = jax.block_until_ready(update(state))
            seconds.append((time.perf_counter() - began) / updates)
        assert jnp.isfinite(metrics["policy/loss"]).all()
        return state, statistics.median(seconds[1:]), compilation

    state, in_chunks, compilation = timed(state, CHUNK, chunks)
    state, single, _ = timed(state, 1, 2 * CHUNK)
    return {
        "peer": "jaxrl4lm",
        "parameters": parameter_count(params),
        "seconds_per_step": in_chunks,
        "single": single,
        "compile_seconds": compilation,
        "device": jax.devices()[0].device_kind,
    }


def measure(command: list[str], core: int) -> dict:
    """The JSON line that a side prints, run on one core."""
    done = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, {core})
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])


def versions(python: str, packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of packages in another environment."""
    code = (
        f"import importlib.metadata as m, json; print(json.dumps({{p: m.version(p) for p in {packages!r}}}))"
    )
    return json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", nargs=4, type=int)
    parser.add_argument("--sizes", nargs="*", default=SIZES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--peers", type=pathlib.Path)
    parser.add_argument("--trl")
    parser.add_argument("--tunix")
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(worker(*args.worker)))
        return
    pythons = {name: getattr(args, name) for name in ("trl", "tunix") if getattr(args, name)}
    packages = {"trl": ("trl", "torch", "transformers"), "tunix": ("google-tunix", "jax", "flax")}
    ours = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    record = {
        "processor": platform.processor() or platform.machine(),
        "versions": {"jaxrl4lm": ours}
        | {name: versions(python, packages[name]) for name, python in pythons.items()},
        "updates in one program": CHUNK,
        "sizes": json.loads(RESULTS.read_text())["sizes"] if RESULTS.exists() else {},
    }
    for size in args.sizes:
        layers, width, batch, tokens = size.split()
        rounds = []
        for _ in range(args.rounds):
            here = measure([sys.executable, __file__, "--worker", *size.split()], args.core)
            row = {"jaxrl4lm": here["seconds_per_step"], "single": here["single"]}
            row["compile"] = here["compile_seconds"]
            for name, python in pythons.items():
                options = ["--layers", layers, "--width", width, "--batch", batch, "--completion", tokens]
                row[name] = measure([python, str(args.peers / f"{name}_grpo.py"), *options], args.core)[
                    "seconds_per_step"
                ]
            rounds.append(row)
        record["sizes"][size] = {"rounds": rounds, "device": here["device"], "parameters": here["parameters"]}
        text = f"{size}: {1e3 * statistics.median(r['jaxrl4lm'] for r in rounds):.1f} ms"
        for name in pythons:
            ratios = sorted(r[name] / r["jaxrl4lm"] for r in rounds)
            record["sizes"][size][f"{name} / jaxrl4lm"] = ratios
            text += f", {name} / ours {statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
            single = statistics.median(r[name] / r["single"] for r in rounds)
            text += f" ({single:.2f} beside single calls)"
        print(text, flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["versions"]))


if __name__ == "__main__":
    main()
