"""How fast is a training step of the transformer?

Forward, backward and Adam on next-token cross-entropy, beside the same model in PyTorch (eager,
transformers), in alternation, float32; and what scanning and rematerialising layers cost and save. XLA gives its
temporaries back after every call, and the next call's first touch of each page is a fault (`page_faults` a step): a
call of several steps, which is how the library trains, pays once.

    taskset -c 0 python benchmarks/lm_train_step.py [--sizes 1M 100M] [--rounds 5]

A ratio is PyTorch's time over ours, without compile time: above 1 we are faster. Seconds are the process's
own CPU seconds:
on one core they are those of the clock on an idle machine, and other programs do not disturb them.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl4lm import models

RESULTS = pathlib.Path(__file__).parent / "results" / "lm_train_step.json"
SIZES = {
    "1M": {"vocab_size": 1024, "layers": 4, "width": 128, "heads": 4, "kv_heads": 4, "mlp_width": 384},
    "100M": {"vocab_size": 32000, "layers": 12, "width": 768, "heads": 12, "kv_heads": 12, "mlp_width": 2048},
}
BATCH = {"1M": (32, 64), "100M": (4, 128)}
LAYERS = {"unrolled": {}, "scanned": {"scan": True}, "scanned, remat": {"scan": True, "remat": "full"}}
STEPS = 8
"""Of a call that makes several, as `lm.supervised.run` does."""


class Ours:
    """A compiled step, its state kept and donated from call to call."""

    def __init__(self, config: models.TransformerConfig, tokens: np.ndarray, steps: int = 1):
        self.policy, self.steps = models.LanguagePolicy(config), steps
        self.tokens = jnp.array([tokens] * steps, jnp.int32)
        tx = optax.adam(1e-4)
        params = jax.jit(self.policy.init)(jax.random.key(0))
        self.state = (params, tx.init(params))

        def step(state, tokens):
            def loss(params):
                hidden = self.policy.hidden(params, tokens)
                logits = self.policy.logits(params, hidden[:, :-1])
                return optax.losses.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

            params, opt_state = state
            value, gradients = jax.value_and_grad(loss)(params)
            updates, opt_state = tx.update(gradients, opt_state)
            return (optax.apply_updates(params, updates), opt_state), value

        def run(state, tokens):
            return step(state, tokens[0]) if steps == 1 else jax.lax.scan(step, state, tokens)

        start = time.process_time()
        compiled = jax.jit(run, donate_argnums=0).lower(self.state, self.tokens).compile()
        self.compile_s = round(time.process_time() - start, 1)
        self.temporaries_mb = round(compiled.memory_analysis().temp_size_in_bytes / 1e6)
        self.step = compiled

    def __call__(self) -> float:
        start = time.process_time()
        self.state, loss = self.step(self.state, self.tokens)
        jax.block_until_ready((self.state, loss))
        return (time.process_time() - start) / self.steps


def pytorch(config: models.TransformerConfig, tokens: np.ndarray) -> Callable[[], float]:
    import torch
    import transformers

    torch.set_num_threads(1)
    policy = models.LanguagePolicy(config)
    with tempfile.TemporaryDirectory() as folder:
        models.save(folder, policy, jax.jit(policy.init)(jax.random.key(0)))
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    ids = torch.from_numpy(tokens).long()

    def run() -> float:
        start = time.process_time()
        optimizer.zero_grad(set_to_none=True)
        logits = model(ids).logits[:, :-1]
        torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1)
        ).backward()
        optimizer.step()
        return time.process_time() - start

    return run


def compare(size: str, rounds: int) -> dict:
    config = models.TransformerConfig(**SIZES[size])
    tokens = np.random.default_rng(0).integers(0, SIZES[size]["vocab_size"], BATCH[size])
    sides = {name: Ours(dataclasses.replace(config, **change), tokens) for name, change in LAYERS.items()}
    sides[f"unrolled, {STEPS} steps a call"] = Ours(config, tokens, STEPS)
    runs: dict[str, Callable[[], float]] = {**sides, "pytorch": pytorch(config, tokens)}
    times: dict[str, list[float]] = {name: [] for name in runs}
    faults = dict.fromkeys(runs, 0)
    for i in range(rounds + 1):
        for name in list(runs)[:: 1 if i % 2 == 0 else -1]:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            seconds = runs[name]()
            faults[name] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
            if i:  # the first round warms up
                times[name].append(seconds)
    result: dict = {name: {"median_s": round(statistics.median(t), 4)} for name, t in times.items()}
    for name in runs:
        result[name]["page_faults"] = round(faults[name] / getattr(runs[name], "steps", 1))
    for name, side in sides.items():
        ratios = [b / a for a, b in zip(times[name], times["pytorch"], strict=True)]
        spread = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
        result[name] |= {"ratio": {k: round(v, 3) for k, v in spread.items()}}
        result[name] |= {"compile_s": side.compile_s, "temporaries_mb": side.temporaries_mb}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="*", default=["1M"], choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    device = {"device": str(jax.devices()[0]), "machine": platform.processor() or platform.machine()}
    cores = {"cores": len(os.sched_getaffinity(0)), "python": sys.version.split()[0], "jax": jax.__version__}
    results["where"] = {**device, **cores}
    for size in args.sizes:
        name = f"{size}, batch {BATCH[size][0]} of {BATCH[size][1]} tokens"
        results[name] = compare(size, args.rounds)
        RESULTS.write_text(json.dumps(results, indent=2))
        print(name, json.dumps(results[name]), flush=True)


if __name__ == "__main__":
    main()
