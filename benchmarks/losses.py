"""How light and how fast are the losses?

Import time; GAE and V-trace beside rlax; chunked log-probs beside the naive form, and by the size of the vocabulary;
the forward and backward pass of PPO beside TRL's formula in PyTorch.

    taskset -c 0 python benchmarks/losses.py [--quick] [--only PART ...]

Both sides of a comparison run in alternation in one process. A ratio is the other side's time over ours:
above 1 we are faster. Compile time is not in it.
"""

import argparse
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm import distributions, losses, reduce, returns

RESULTS = pathlib.Path(__file__).parent / "results" / "losses.json"


def alternate(ours: Callable, theirs: Callable, rounds: int, inner: int = 1, warm: bool = True) -> dict:
    """Milliseconds of both, and the ratio theirs/ours of each round."""

    def seconds(function: Callable) -> float:
        start = time.perf_counter()
        for _ in range(inner):
            jax.block_until_ready(function())
        return (time.perf_counter() - start) / inner

    if warm:
        seconds(ours), seconds(theirs)
    pairs = []
    for i in range(rounds):  # the order changes, so that neither always follows the other
        first, second = (ours, theirs) if i % 2 == 0 else (theirs, ours)
        a, b = seconds(first), seconds(second)
        pairs.append((a, b) if i % 2 == 0 else (b, a))
    ratios = [b / a for a, b in pairs]
    return {
        "ours_ms": round(1e3 * statistics.median(a for a, _ in pairs), 4),
        "theirs_ms": round(1e3 * statistics.median(b for _, b in pairs), 4),
        "ratio": {
            "median": round(statistics.median(ratios), 3),
            "min": round(min(ratios), 3),
            "max": round(max(ratios), 3),
        },
    }


def import_time(rounds: int) -> dict:
    """Seconds of `import jaxrl4lm.losses, jaxrl4lm.returns` after `import jax`, in fresh processes."""
    code = (
        "import time, jax, jax.numpy; start = time.perf_counter(); import jaxrl4lm.losses, jaxrl4lm.returns; "
        "print(time.perf_counter() - start)"
    )
    runs = [float(subprocess.check_output([sys.executable, "-c", code], text=True)) for _ in range(rounds)]
    return {"seconds": {"median": round(statistics.median(runs), 3), "min": min(runs), "max": max(runs)}}


def with_layouts(ours: Callable, theirs: Callable, arrays: list, rounds: int) -> dict:
    """`ours(axis)(*arrays)` beside vmapped `theirs`, with time first and time last."""
    results = {}
    for name, axis, batch_axis in (("time last [2048, 128]", 1, 0), ("time first [128, 2048]", 0, 1)):
        placed = [jnp.asarray(x if axis == 1 else x.T) for x in arrays]
        mine = jax.jit(ours(axis))
        peer = jax.jit(jax.vmap(theirs, in_axes=batch_axis, out_axes=batch_axis))
        for a, b in zip(jax.tree.leaves(mine(*placed)), jax.tree.leaves(peer(*placed)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        results[name] = alternate(
            functools.partial(mine, *placed), functools.partial(peer, *placed), rounds, inner=20
        )
    return results


def generalized_advantages(rounds: int) -> dict:
    rlax = import_rlax()
    rewards, values, next_values, terminated, _ = trajectories()

    def ours(axis: int) -> Callable:
        def run(r, v, nv, ended):
            return returns.generalized_advantage_estimation(
                r, v, nv, ended, discount=0.99, gae_lambda=0.95, axis=axis
            )[0]

        return run

    def theirs(r, v, nv, ended):
        discounts = 0.99 * (1 - ended)
        return rlax.truncated_generalized_advantage_estimation(
            r, discounts, 0.95, jnp.concatenate([v, nv[-1:]])
        )

    return with_layouts(ours, theirs, [rewards, values, next_values, terminated], rounds)


def v_trace(rounds: int) -> dict:
    rlax = import_rlax()

    def ours(axis: int) -> Callable:
        def run(r, v, nv, ended, log_ratios):
            return returns.vtrace(
                r, v, nv, ended, log_ratios=log_ratios, discount=0.99, lambda_=0.95, axis=axis
            )

        return run

    def theirs(r, v, nv, ended, log_ratios):
        out = rlax.vtrace_td_error_and_advantage(
            v, nv, r, 0.99 * (1 - ended), jnp.exp(log_ratios), lambda_=0.95
        )
        return out.pg_advantage, out.errors + v

    return with_layouts(ours, theirs, list(trajectories()), rounds)


def import_rlax():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import rlax
    return rlax


def trajectories(batch: int = 2048, length: int = 128) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(batch, length + 1)).astype(np.float32)
    terminated = (rng.random((batch, length)) < 0.02).astype(np.float32)
    rewards, log_ratios = rng.normal(size=(2, batch, length)).astype(np.float32)
    return rewards, values[:, :-1], values[:, 1:], terminated, 0.3 * log_ratios


def recurrences() -> dict:
    """`associative_recurrence` beside the default, at the same size, time first."""
    rewards, values, next_values, terminated, _ = (jnp.asarray(x.T) for x in trajectories())

    def run(recurrence):
        function = functools.partial(
            returns.generalized_advantage_estimation, discount=0.99, gae_lambda=0.95, recurrence=recurrence
        )
        return functools.partial(jax.jit(function), rewards, values, next_values, terminated)

    return alternate(run(returns.sequential_recurrence), run(returns.associative_recurrence), 9, inner=10)


def chunked(rounds: int, tokens: int, vocabulary: int, chunk_size: int, *, everything: bool) -> dict:
    """Token log-probs and entropies, forward and with both gradients: peak temporary memory and time."""
    width = 512
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (8, tokens // 8, width))
    unembedding = jax.random.normal(keys[1], (width, vocabulary)) * width**-0.5
    targets = jax.random.randint(keys[2], hidden.shape[:-1], 0, vocabulary)
    weights = jax.random.normal(keys[3], hidden.shape[:-1])

    def naive(h, w):
        logits = h @ w
        return (
            distributions.categorical_log_prob(logits, targets),
            distributions.categorical_entropy(logits),
        )

    def naive_log_probs(h, w):
        return (distributions.categorical_log_prob(h @ w, targets),)

    def loss(function):
        def total(h, w):
            log_probs, *entropies = function(h, w)
            return -(weights * log_probs).sum() - 0.01 * sum(x.sum() for x in entropies)

        return jax.grad(total, argnums=(0, 1))

    def compiled(function):
        return jax.jit(function).lower(hidden, unembedding).compile()

    def ours(h, w):
        return losses.chunked_token_log_probs(h, w, targets, chunk_size=chunk_size)

    sides = {"forward": (ours, naive), "gradients": (loss(ours), loss(naive))}
    if everything:
        sides["gradients, beside log-probs alone"] = (loss(ours), loss(naive_log_probs))
    results = {"tokens": tokens, "width": width, "vocabulary": vocabulary, "chunk_size": chunk_size}
    for name, pair in sides.items():
        mine, plain = (compiled(function) for function in pair)
        memory = [f.memory_analysis().temp_size_in_bytes / 2**20 for f in (mine, plain)]
        entry = alternate(
            functools.partial(mine, hidden, unembedding),
            functools.partial(plain, hidden, unembedding),
            rounds,
            warm=everything,
        )
        entry["temporary_MiB"] = {"ours": round(memory[0], 1), "naive": round(memory[1], 1)}
        entry["memory_ratio"] = round(memory[1] / memory[0], 1)
        results[name] = entry
        print(f"  {name}: {entry}", flush=True)
    return results


def by_vocabulary(rounds: int, vocabulary: int, width: int, tokens: int = 2048) -> dict:
    """`LanguagePolicy.token_log_probs` by how many ids it takes at a time, beside the log-softmax of all logits.

    Milliseconds in which the process had the core, forward and with both gradients, and temporary memory.
    """
    from jaxrl4lm.models import LanguagePolicy, TransformerConfig

    policy = LanguagePolicy(TransformerConfig(vocabulary, layers=1, width=width, heads=1))
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"embedding": jax.random.normal(keys[0], (vocabulary, width)) * width**-0.5}
    params["value_head"] = jnp.zeros(width)  # a module reads all parameters of its own
    hidden = jax.random.normal(keys[1], (tokens, width))
    targets = jax.random.randint(keys[2], (tokens,), 0, vocabulary)

    def plain(params, hidden):
        logits = policy.logits(params, hidden)
        return (
            distributions.categorical_log_prob(logits, targets),
            distributions.categorical_entropy(logits),
        )

    def ours(params, hidden, chunk):
        return policy.token_log_probs(params, hidden, targets, chunk=chunk)

    sides = {"log-softmax of all logits": plain}
    for chunk in (512, 1024, 2048, 4096, 8192, vocabulary):
        if chunk <= vocabulary:
            sides[f"{chunk} at a time"] = functools.partial(ours, chunk=chunk)
    programs = {}
    for name, function in sides.items():
        gradients = jax.grad(lambda p, h, f=function: sum(x.sum() for x in f(p, h)), argnums=(0, 1))
        for kind, f in (("forward", function), ("gradients", gradients)):
            programs[name, kind] = jax.jit(f).lower(params, hidden).compile()
    times = {key: [] for key in programs}
    for i in range(rounds + 1):
        for key, program in programs.items():
            began = time.process_time()
            jax.block_until_ready(program(params, hidden))
            if i:
                times[key].append(1e3 * (time.process_time() - began))
    result: dict = {"tokens": tokens, "width": width, "vocabulary": vocabulary}
    for (name, kind), values in times.items():
        memory = programs[name, kind].memory_analysis().temp_size_in_bytes / 2**20
        spread = {"min": min(values), "median": statistics.median(values), "max": max(values)}
        entry = {k: round(x, 2) for k, x in spread.items()} | {"temporary_MiB": round(memory, 1)}
        result.setdefault(name, {})[kind] = entry
    return result


def ppo_beside_torch(rounds: int) -> dict:
    """The clipped loss on [256, 512], averaged over tokens, with its gradient."""
    import torch

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    old = -rng.random((256, 512)).astype(np.float32)
    log_probs = old + 0.1 * rng.normal(size=old.shape).astype(np.float32)
    advantages = rng.normal(size=(256, 1)).astype(np.float32)
    mask = (rng.random(old.shape) < 0.8).astype(np.float32)

    def mean_loss(x, o, a, m):
        return reduce.token_mean(losses.ppo_clip(x, o, a, clip_eps=0.2, clip_eps_high=0.28, mask=m), m)

    ours = functools.partial(
        jax.jit(jax.value_and_grad(mean_loss)), *map(jnp.asarray, (log_probs, old, advantages, mask > 0))
    )
    x, o, a, m = (torch.tensor(array) for array in (log_probs, old, advantages, mask))
    x.requires_grad_()

    def formula(x, o, a, m):
        ratio = torch.exp(x - o)
        loss = -torch.min(ratio * a, torch.clamp(ratio, 0.8, 1.28) * a)
        return (loss * m).sum() / m.sum().clamp(min=1.0)

    def eager():
        value = formula(x, o, a, m)
        return torch.autograd.grad(value, x)[0].numpy()

    np.testing.assert_allclose(ours()[1], eager(), atol=1e-8)
    results = {"eager": alternate(ours, eager, rounds, inner=50)}
    try:
        compiled_formula = torch.compile(formula)

        def compiled():
            return torch.autograd.grad(compiled_formula(x, o, a, m), x)[0].numpy()

        np.testing.assert_allclose(ours()[1], compiled(), atol=1e-8)
        results["torch.compile"] = alternate(ours, compiled, rounds, inner=50)
    except Exception as error:  # no C++ compiler on this machine, say
        results["torch.compile"] = {"not measured": f"{type(error).__name__}: {str(error)[:200]}"}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three rounds, no vocabulary of 128k")
    parser.add_argument(
        "--only", nargs="*", default=None, metavar="PART", help="parts to run; the others stay"
    )
    options = parser.parse_args()
    rounds = 3 if options.quick else 15
    questions = {
        "import": lambda: import_time(rounds),
        "gae": lambda: generalized_advantages(rounds),
        "vtrace": lambda: v_trace(rounds),
        "recurrences": recurrences,
        "ppo": lambda: ppo_beside_torch(rounds),
        **{
            f"vocabulary {size}, width {width}": functools.partial(by_vocabulary, rounds // 3, size, width)
            for size in (15, 1000, 4096, 32_000, 128_000)
            for width in (64, 768)
        },
        "chunked-32k": lambda: chunked(3, 1024, 2**15, 2048, everything=True),
        "chunked-128k": lambda: chunked(2, 8 * 512, 2**17, 2048, everything=False),
    }
    setting = {
        "device": f"{jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} core(s)",
        "processor": platform.processor() or platform.machine(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "numpy", "rlax", "torch")}
        | {"python": platform.python_version()},
    }
    parts = options.only or [name for name in questions if not (options.quick and "128" in name)]
    report = json.loads(RESULTS.read_text()) if options.only and RESULTS.exists() else {}
    for name in parts:
        print(name, flush=True)
        report[name] = questions[name]() | {"setting": setting}
        print(json.dumps(report[name], indent=1), flush=True)
        if not options.quick:
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
