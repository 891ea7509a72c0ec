"""How near to the hardware are decoding and training on one accelerator, in bfloat16, beside HF on the same card?

    python benchmarks/accelerator.py [--sizes 1B] [--parts decode train] [--rounds 3] [--peers] [--profile FOLDER]

Decoding: the share of memory bandwidth, (weights + mean keys and values) / time of a step / bandwidth of a large copy,
both measured here. Training: model FLOP utilisation, (6 N + 12 layers x width x tokens of a row) a token, over the
stated peak of the card (`--peak`, TFLOP/s); beside it the share of what a large product reaches here. N counts the
tied embedding once. Float32 master weights and Adam, products in bfloat16, on both sides (HF: autocast). Times are
wall-clock, every call waited for, both sides in alternation in one process; a ratio is HF's time over ours.
"""

import argparse
import gc
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the other side needs memory, too

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl4lm import models
from jaxrl4lm.decoding import Sampling, generate

RESULTS = pathlib.Path(__file__).parent / "results" / "accelerator.json"
SIZES = {
    "1B": {
        "vocab_size": 128_256,
        "layers": 16,
        "width": 2048,
        "heads": 32,
        "kv_heads": 8,
        "mlp_width": 8192,
        "rope_theta": 500_000.0,
        "context": 8192,
    },
    "tiny": {"vocab_size": 512, "layers": 2, "width": 64, "heads": 4, "kv_heads": 2, "mlp_width": 128},
}
DECODE = {"1B": (64, 128, 256), "tiny": (4, 8, 8)}
"""Rows, prompt tokens, new tokens."""
TRAIN = {"1B": (16, 512), "tiny": (4, 16)}
"""Rows, tokens."""


def seconds(function: Callable, rounds: int) -> list[float]:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return times


def ceilings(scale: int) -> dict:
    """Bytes per second of a large copy (read + written) and FLOP per second of a large bfloat16 product."""
    x = jax.random.normal(jax.random.key(0), (scale * 2**20,), jnp.float32)
    # Many passes in one program, each of another value: nothing is left out and nothing waits for the host.
    copies = jax.jit(lambda x: jax.lax.fori_loop(0, 16, lambda i, x: x * 1.0001, x))
    n = 8 * scale
    a = jax.random.normal(jax.random.key(1), (n, n), jnp.bfloat16)

    def product(i, b):
        return (jnp.matmul(a, b, preferred_element_type=jnp.float32) / n**0.5).astype(jnp.bfloat16)

    products = jax.jit(lambda b: jax.lax.fori_loop(0, 16, product, b))
    jax.block_until_ready((copies(x), products(a)))
    copy = min(seconds(lambda: copies(x), 5)) / 16
    multiply = min(seconds(lambda: products(a), 5)) / 16
    return {"bytes_per_s": 2 * x.nbytes / copy, "flop_per_s": 2 * n**3 / multiply}


def hugging_face(size: str):
    import torch
    import transformers

    s = SIZES[size]
    config = transformers.LlamaConfig(
        vocab_size=s["vocab_size"],
        num_hidden_layers=s["layers"],
        hidden_size=s["width"],
        num_attention_heads=s["heads"],
        num_key_value_heads=s["kv_heads"],
        intermediate_size=s["mlp_width"],
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return transformers.LlamaForCausalLM(config)


def random_params(policy: models.LanguagePolicy, dtype: str) -> dict:
    """As `policy.init`, leaf by leaf: one small program for each of the few shapes."""

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.ndim < 2:
            return jnp.ones(leaf.shape, dtype)
        return 0.02 * jax.random.normal(jax.random.key(0), leaf.shape, dtype)

    return jax.tree.map(draw, jax.eval_shape(policy.init, jax.random.key(0)))


def summary(times: list[float]) -> dict:
    return {k: f(times) for k, f in (("median_s", statistics.median), ("min_s", min), ("max_s", max))}


def decode(size: str, args: argparse.Namespace, limits: dict) -> dict:
    batch, prompt, new = DECODE[size]
    policy = models.LanguagePolicy(models.TransformerConfig(**SIZES[size], dtype="bfloat16"))
    params = random_params(policy, "bfloat16")
    prompts = np.random.default_rng(0).integers(3, SIZES[size]["vocab_size"], (batch, prompt))
    tokens, mask, sampling = jnp.array(prompts), jnp.ones(prompts.shape, bool), Sampling(new, -1, 0)

    def complete(params, key):
        return generate(policy, params, tokens, mask, key, sampling, final_values=False).tokens

    def read(params):
        return policy.start(params, tokens, mask, 1, new)

    start = time.perf_counter()
    whole = jax.jit(complete).lower(params, jax.random.key(1)).compile()
    compilation = time.perf_counter() - start
    prefill = jax.jit(read).lower(params).compile()
    sides: dict[str, Callable[[], float]] = {
        "ours": lambda: seconds(lambda: whole(params, jax.random.key(1)), 1)[0]
    }
    if args.peers:
        sides["hugging face"] = _hugging_face_generate(size, prompts, new)
    jax.block_until_ready((whole(params, jax.random.key(1)), prefill(params)))
    times = _alternate(sides, args.rounds)
    reading = statistics.median(seconds(lambda: prefill(params), args.rounds))
    if args.profile:
        profile(args.profile, "decode", lambda: whole(params, jax.random.key(2)))
    c = policy.config
    weights = sum(x.nbytes for x in jax.tree.leaves(params))
    remembered = 2 * c.layers * c.num_kv_heads * c.channels * 2 * batch * (prompt + new / 2)
    step = (statistics.median(times["ours"]) - reading) / (new - 1)
    floor = (weights + remembered) / limits["bytes_per_s"]
    return _against(times) | {
        "compile_s": compilation,
        "prefill_s": reading,
        "step_ms": 1e3 * step,
        "floor_ms": 1e3 * floor,
        "share_of_bandwidth": floor / step,
        "tokens_per_s": batch * new / statistics.median(times["ours"]),
    }


def _hugging_face_generate(size: str, prompts: np.ndarray, new: int) -> Callable[[], float]:
    import torch

    model = hugging_face(size).to(torch.bfloat16).eval()
    tokens = torch.from_numpy(prompts).long().to(model.device)

    def run(new: int = new) -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=True,
                top_k=0,
                max_new_tokens=new,
                min_new_tokens=new,
            )
        out.cpu()
        return time.perf_counter() - start

    run(4)
    return run


def train(size: str, args: argparse.Namespace, limits: dict) -> dict:
    batch, length = TRAIN[size]
    config = models.TransformerConfig(**SIZES[size], dtype="bfloat16", remat=args.remat)
    policy, tx = models.LanguagePolicy(config), optax.adam(1e-4)
    drawn = np.random.default_rng(0).integers(0, SIZES[size]["vocab_size"], (batch, length))
    tokens = jnp.array(drawn, jnp.int32)

    def step(state, tokens):
        def loss(params):
            logits = policy.logits(params, policy.hidden(params, tokens)[:, :-1])
            return optax.losses.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        params, opt_state = state
        value, gradients = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(gradients, opt_state)
        return (optax.apply_updates(params, updates), opt_state), value

    params = random_params(policy, "float32")
    state = [(params, tx.init(params))]
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state[0], tokens).compile()
    compilation = time.perf_counter() - start

    def ours(steps: int = 5) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            state[0], loss = compiled(state[0], tokens)
        jax.block_until_ready((state[0], loss))
        return (time.perf_counter() - start) / steps

    sides: dict[str, Callable[[], float]] = {"ours": ours}
    if args.peers:
        sides["hugging face"] = _hugging_face_train(size, drawn)
    ours()
    times = _alternate(sides, args.rounds)
    if args.profile:
        profile(args.profile, "train", lambda: ours(1))
    flop = batch * length * (6 * models.parameter_count(params) + 12 * config.layers * config.width * length)
    rate = flop / statistics.median(times["ours"])
    return _against(times) | {
        "compile_s": compilation,
        "temporaries_gb": compiled.memory_analysis().temp_size_in_bytes / 1e9,
        "tflop_per_s": rate / 1e12,
        "model_flop_utilisation": rate / (args.peak * 1e12),
        "share_of_a_product": rate / limits["flop_per_s"],
        "tokens_per_s": batch * length / statistics.median(times["ours"]),
    }


def _hugging_face_train(size: str, drawn: np.ndarray) -> Callable[[], float]:
    import torch

    model = hugging_face(size).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=torch.cuda.is_available())
    ids = torch.from_numpy(drawn).long().to(model.device)

    def run(steps: int = 5) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(model.device.type, torch.bfloat16):
                logits = model(ids).logits[:, :-1]
            logits = logits.float().reshape(-1, logits.shape[-1])
            loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].reshape(-1))
            loss.backward()
            optimizer.step()
        loss.item()
        return (time.perf_counter() - start) / steps

    run(1)
    return run


def _alternate(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds):
        for name in list(sides)[:: 1 if i % 2 == 0 else -1]:
            sides[name]()  # the other side may have left the card at a lower clock
            times[name].append(sides[name]())
    return times


def _against(times: dict[str, list[float]]) -> dict:
    """Seconds of both sides, and HF's over ours."""
    result: dict = {name: summary(t) for name, t in times.items()}
    if "hugging face" in times:
        ratios = [b / a for a, b in zip(times["ours"], times["hugging face"], strict=True)]
        result["ratio"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return result


def profile(folder: str, name: str, function: Callable) -> None:
    """Writes which kernels took how long in one call, the longest first."""
    where = pathlib.Path(folder) / f"trace_{name}"
    with jax.profiler.trace(str(where)):
        jax.block_until_ready(function())
    totals: dict[str, list[float]] = {}
    for file in where.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines if "GPU" in plane.name else ():
                for event in line.events if "Stream" in line.name else ():
                    totals.setdefault(event.name, []).append(event.duration_ns)
    rows = sorted(totals.items(), key=lambda row: -sum(row[1]))[:60]
    text = [f"{sum(t) / 1e6:10.3f} ms {len(t):7d} x {n[:150]}" for n, t in rows]
    whole = sum(sum(t) for t in totals.values()) / 1e6
    (pathlib.Path(folder) / f"{name}_kernels.txt").write_text("\n".join([f"{whole:10.3f} ms in all", *text]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="*", default=["1B"], choices=list(SIZES))
    parser.add_argument("--parts", nargs="*", default=["decode", "train"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", action="store_true", help="HF beside ours")
    parser.add_argument("--peak", type=float, default=989.0, help="TFLOP/s of the card in bfloat16, dense")
    parser.add_argument("--remat", default="none")
    parser.add_argument("--profile", metavar="FOLDER", help="write the longest kernels here")
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args()
    device = jax.devices()[0]
    results = json.loads(args.output.read_text()) if args.output.exists() else {}
    results["where"] = {"device": device.device_kind, "jax": jax.__version__, "peak_tflop_per_s": args.peak}
    limits = results["ceilings"] = ceilings(1024 if device.platform == "gpu" else 16)
    print(json.dumps(limits), flush=True)
    for size in args.sizes:
        for part in args.parts:
            result = {"decode": decode, "train": train}[part](size, args, limits)
            results[f"{part} {size}"] = result
            print(part, size, json.dumps(result), flush=True)
            args.output.write_text(json.dumps(results, indent=1) + "\n")
            gc.collect()


if __name__ == "__main__":
    main()
