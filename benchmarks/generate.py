"""How fast is generation?

Beside HF `generate` and Tunix's sampler (same sizes, random weights, in alternation), and what sharing a
prompt and refilling slots are worth.

    taskset -c 0 python benchmarks/generate.py --tunix PYTHON [--sizes 1M 100M] [--batches 32 64] [--rounds 5]

PYTHON is an interpreter of an environment with google-tunix. A ratio is the other side's time over ours,
without compile time: above 1 we are faster. Seconds are the process's own CPU seconds: on one core they are
those of the clock on an idle machine, and other programs do not disturb them. Ours and HF's draw at
temperature 1, Tunix takes the most likely token.
"""

import argparse
import functools
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm import models
from jaxrl4lm.decoding import Sampling, generate, generate_queue

RESULTS = pathlib.Path(__file__).parent / "results" / "generate.json"
PROMPT, NEW = 32, 64
SIZES = {
    "1M": {"vocab_size": 1024, "layers": 4, "width": 128, "heads": 4, "kv_heads": 4, "mlp_width": 384},
    "100M": {"vocab_size": 32000, "layers": 12, "width": 768, "heads": 12, "kv_heads": 12, "mlp_width": 2048},
}


def seconds(function: Callable) -> float:
    start = time.process_time()
    jax.block_until_ready(function())
    return time.process_time() - start


def alternate(sides: dict[str, Callable[[], float]], rounds: int) -> dict:
    """Seconds of every side, round by round in turn, and the ratios to the first side."""
    times = {name: [] for name in sides}
    order = list(sides)
    for i in range(rounds):
        for name in order if i % 2 == 0 else order[::-1]:
            times[name].append(sides[name]())
    ours = times[order[0]]
    ratios = {name: [b / a for a, b in zip(ours, times[name], strict=True)] for name in order[1:]}
    summary = {name: {"median_s": round(statistics.median(t), 4)} for name, t in times.items()}
    for name, r in ratios.items():
        spread = {"median": statistics.median(r), "min": min(r), "max": max(r)}
        summary[name]["ratio"] = {k: round(v, 3) for k, v in spread.items()}
    return summary


def hugging_face(folder: str, prompts: np.ndarray, dtype: str) -> Callable[[], float]:
    import torch
    import transformers

    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    tokens = torch.from_numpy(prompts).long()
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": 0}

    def run() -> float:
        start = time.process_time()
        with torch.inference_mode():
            model.generate(tokens, attention_mask=torch.ones_like(tokens), eos_token_id=1, **options)
        return time.process_time() - start

    run()
    return run


def tunix(python: str, sizes: dict, prompts: np.ndarray) -> tuple[subprocess.Popen, Callable[[], float]]:
    worker = pathlib.Path(__file__).parent / "tunix_worker.py"
    process = subprocess.Popen(
        [python, str(worker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def ask(line: str) -> dict:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        while not (answer := process.stdout.readline()).startswith("{"):
            assert answer, "the worker ended"
        return json.loads(answer)

    ask(json.dumps({**sizes, "prompts": prompts.tolist(), "new": NEW}))
    return process, lambda: ask("go")["seconds"]


def beside_peers(size: str, batch: int, dtype: str, args: argparse.Namespace) -> dict:
    policy = models.LanguagePolicy(models.TransformerConfig(**SIZES[size], dtype=dtype))
    params = jax.tree.map(lambda x: x.astype(dtype), jax.jit(policy.init)(jax.random.key(0)))
    prompts = np.random.default_rng(0).integers(3, SIZES[size]["vocab_size"] - 1, (batch, PROMPT))
    mask, sampling = jnp.ones(prompts.shape, bool), Sampling(NEW, eos_id=-1, pad_id=0)
    ours = jax.jit(
        lambda params, key: generate(policy, params, jnp.array(prompts), mask, key, sampling).tokens
    )
    key = jax.random.key(0)
    compiling = seconds(lambda: ours(params, key))
    sides: dict[str, Callable[[], float]] = {"jaxrl4lm": lambda: seconds(lambda: ours(params, key))}
    with tempfile.TemporaryDirectory() as folder:
        models.save(folder, policy, params)
        sides["hugging face"] = hugging_face(folder, prompts, dtype)
        if dtype != "float32":  # a rollout in low precision against one in full
            sides["hugging face, float32"] = hugging_face(folder, prompts, "float32")
    process = None
    if args.tunix and dtype == "float32":
        process, sides["tunix"] = tunix(args.tunix, SIZES[size], prompts)
    result = alternate(sides, args.rounds)
    if process:
        process.stdin.close()
        process.wait()
    for side in result.values():
        side["tokens_per_second"] = round(batch * NEW / side["median_s"])
    result["jaxrl4lm"]["first_call_s"] = round(compiling, 1)
    return result


def shared_prompt(rounds: int) -> dict:
    """16 completions of each of 4 prompts of 256 tokens: the prompt once, or 16 times."""
    policy = models.LanguagePolicy(models.TransformerConfig(**SIZES["1M"]))
    params = jax.jit(policy.init)(jax.random.key(0))
    prompts = jax.random.randint(jax.random.key(1), (4, 256), 3, 1024)

    @functools.partial(jax.jit, static_argnums=1)
    def run(params, copies):
        p = prompts.repeat(16 // copies, 0)
        mask = jnp.ones(p.shape, bool)
        sampling = Sampling(NEW, eos_id=-1, pad_id=0, copies=copies)
        return generate(policy, params, p, mask, jax.random.key(2), sampling).tokens

    same = bool((run(params, 16) == run(params, 1)).all())
    sides = {"shared": 16, "repeated": 1}
    timed = {name: lambda c=c: seconds(lambda: run(params, c)) for name, c in sides.items()}
    return {**alternate(timed, rounds), "same_tokens": same}


def refilled_slots(rounds: int) -> dict:
    """256 completions with geometric lengths (mean 16, limit 128), 32 at a time: refilled, or batch after
    batch."""
    policy = models.LanguagePolicy(models.TransformerConfig(**SIZES["1M"]))
    params = jax.jit(policy.init)(jax.random.key(0))
    prompts = jax.random.randint(jax.random.key(1), (256, 16), 3, 1024)
    mask, key, slots = jnp.ones(prompts.shape, bool), jax.random.key(2), 32

    def end_with_probability(logits, history):
        del history
        rest = jax.nn.logsumexp(logits.at[:, 1].set(-jnp.inf), axis=-1)
        return logits.at[:, 1].set(rest + jnp.log(1 / 15))

    sampling = Sampling(128, eos_id=1, pad_id=0, penalties=(end_with_probability,))
    queue = jax.jit(lambda p: generate_queue(policy, p, prompts, mask, key, sampling, slots=slots))
    part = jax.jit(lambda p, q, i: generate(policy, p, q, mask[:slots], key, sampling, row_offset=i))

    def batches(params):
        return [part(params, prompts[i : i + slots], i) for i in range(0, 256, slots)]

    whole = jnp.concatenate([out.tokens for out in batches(params)])
    out = queue(params)
    timed = {
        "refilled": lambda: seconds(lambda: queue(params)),
        "batches": lambda: seconds(lambda: batches(params)),
    }
    return {
        **alternate(timed, rounds),
        "same_tokens": bool((whole == out.tokens).all()),
        "tokens": int(out.mask.sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tunix", help="python of an environment with google-tunix")
    parser.add_argument("--sizes", nargs="*", default=["1M"], choices=list(SIZES))
    parser.add_argument("--batches", nargs="*", type=int, default=[32, 64])
    parser.add_argument("--dtypes", nargs="*", default=["float32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip-own", action="store_true", help="only the peers")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    device = {"device": str(jax.devices()[0]), "machine": platform.processor() or platform.machine()}
    cores = {"cores": len(os.sched_getaffinity(0)), "python": sys.version.split()[0], "jax": jax.__version__}
    results["where"] = {**device, **cores}

    def keep(name: str, result: dict) -> None:
        results[name] = result
        RESULTS.write_text(json.dumps(results, indent=2))
        print(name, json.dumps(result), flush=True)

    if not args.skip_own:
        keep("16 completions of a 256-token prompt", shared_prompt(args.rounds))
        keep("geometric lengths", refilled_slots(args.rounds))
    for size in args.sizes:
        for batch in args.batches:
            for dtype in args.dtypes:
                keep(f"{size}, batch {batch}, {dtype}", beside_peers(size, batch, dtype, args))


if __name__ == "__main__":
    main()
