"""How long does a step of learning from data take, and how much memory, beside TRL on the same rows and the same model?

    python benchmarks/post_training.py --trl VENV/bin/python [--methods sft dpo once] [--sizes small gpt2] [--rounds 3]

sft: packed conversations of random length. dpo: pairs of one length, the reference a second model on both sides; once: its
log-probabilities are computed before the first step on both sides, and no second model is held. Both sides load the same
folder, with random weights, and take the same rows
through the same optimizer; each is a process of its own on one core, and they alternate. The first step of a process, which
compiles or warms up, is left out of its median. A round's ratio of times is TRL / ours; of memory, ours / TRL. `programs` are
what an epoch of the same conversations without packing compiles, of rows of many lengths.
"""

import argparse
import json
import pathlib
import platform
import random
import resource
import sys
import tempfile
import time

from lm_rl_gpt2 import measure, spread
from lm_rl_step import versions

RESULTS = pathlib.Path(__file__).parent / "results" / "post_training.json"
SIZES = {
    "small": {
        "layers": 2,
        "width": 128,
        "heads": 4,
        "vocabulary": 1000,
        "batch": 8,
        "length": 256,
        "rows": 400,
    },
    "gpt2": {
        "layers": 12,
        "width": 768,
        "heads": 12,
        "vocabulary": 50_257,
        "batch": 4,
        "length": 256,
        "rows": 100,
    },
}


def make_rows(size: dict) -> list[dict]:
    """Token ids of conversations, about 4 a packed row."""
    draw = random.Random(0)
    return [
        {"input_ids": [draw.randrange(2, size["vocabulary"]) for _ in range(draw.randrange(16, 112))]}
        for _ in range(size["rows"])
    ]


def make_model(folder: str, size: dict) -> None:
    """A GPT-2 with random weights, and a tokenizer of as many words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, size["vocabulary"])}
    backend = Tokenizer(models.WordLevel(words, "<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")
    config = GPT2Config(
        vocab_size=size["vocabulary"],
        n_positions=size["length"],
        n_layer=size["layers"],
        n_embd=size["width"],
        n_head=size["heads"],
        eos_token_id=1,
        bos_token_id=1,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tell(seconds: float, loss: float, began: float) -> None:
    """Prints a step's JSON line."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    row = {"seconds": round(seconds, 4), "loss": loss, "peak_gb": round(peak, 3)}
    print(json.dumps(row | {"cpu_seconds": round(time.process_time() - began, 4)}), flush=True)


def make_pairs(size: dict) -> list[dict]:
    """Preferences of words: a fifth prompt, and two completions as long as each other."""
    draw = random.Random(0)
    prompt = size["length"] // 5
    lengths = {"prompt": prompt, **dict.fromkeys(("chosen", "rejected"), size["length"] - prompt - 1)}

    def write(words: int) -> str:
        return " ".join(f"w{draw.randrange(2, size['vocabulary'])}" for _ in range(words))

    return [
        {name: f"{' ' * (name != 'prompt')}{write(words)}" for name, words in lengths.items()}
        for _ in range(size["batch"] * 8)
    ]


def take_steps(stage, start, steps: int) -> None:
    """Steps of ours from what `start` gives, each told."""
    import jax

    state = jax.jit(stage.init)(start())
    for step in range(steps):
        began, busy = time.perf_counter(), time.process_time()
        state, metrics = stage.advance(state, step, 1)
        tell(time.perf_counter() - began, float(metrics["loss"][0]), busy)


def prefer_here(folder: str, size: dict, steps: int, once: bool) -> None:
    """Ours, of preferences."""
    from jaxrl4lm import lm, models, training

    policy, _, tokenizer = models.load(folder)
    config = lm.PreferenceConfig(learning_rate=1e-4, steps=steps, batch=size["batch"])
    stage = training.preference(
        policy,
        tokenizer,
        make_pairs(size),
        config=config,
        reference=models.load(folder)[1],
        once=once,
        pairs=lm.PairConfig(max_length=size["length"], held_out=0),
        evaluate_every=1,
    )
    take_steps(stage, lambda: models.load(folder)[1], steps)


def work_here(folder: str, size: dict, steps: int) -> None:
    """Ours, of texts."""
    import jax

    from jaxrl4lm import lm, models, training

    policy, _, tokenizer = models.load(folder)
    rows = make_rows(size)
    sizes = {"context": size["length"], "embeddings": size["vocabulary"]}

    def build(packing: str, steps: int) -> training.Stage:
        texts = lm.TextConfig(packing=packing, held_out=0)  # pyright: ignore[reportArgumentType]
        known = training.prepare_texts(rows, tokenizer, texts, **sizes)._replace(held_out=[])
        config = lm.SupervisedConfig(
            learning_rate=1e-4, warmup=0, schedule="linear", steps=steps, batch=size["batch"]
        )
        return training.supervised(policy, known, config, tokenizer=tokenizer, evaluate_every=1)

    stage = build("bfd", steps)
    take_steps(stage, lambda: models.load(folder)[1], steps)
    if size["width"] < 500:
        count = []
        jax.monitoring.register_event_duration_secs_listener(
            lambda name, *_, **__: count.append(name) if name.endswith("backend_compile_duration") else None
        )
        ragged = build("none", size["rows"] // size["batch"])
        state = jax.jit(ragged.init)(models.load(folder)[1])
        begun = len(count)
        for step in range(ragged.steps):
            state, _ = ragged.advance(state, step, 1)
        print(json.dumps({"compile_seconds": 0, "programs": len(count) - begun}), flush=True)


def work_there(method: str, folder: str, size: dict, steps: int) -> None:
    """TRL."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    torch.set_num_threads(1)

    class Clock(TrainerCallback):
        began = busy = 0.0

        def on_step_begin(self, *_, **__):
            self.began, self.busy = time.perf_counter(), time.process_time()

        def on_step_end(self, *_, **__):
            self.seconds = time.perf_counter() - self.began

        def on_log(self, args, state, control, logs=None, **_):
            if logs and "loss" in logs:
                tell(self.seconds, logs["loss"], self.busy)

    common = {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": steps,
        "per_device_train_batch_size": size["batch"],
        "learning_rate": 1e-4,
        "max_length": size["length"],
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    others = {"processing_class": AutoTokenizer.from_pretrained(folder), "callbacks": [Clock()]}
    if method == "sft":
        rows = Dataset.from_list(make_rows(size))
        SFTTrainer(folder, args=SFTConfig(packing=True, **common), train_dataset=rows, **others).train()
        return
    reference = None if method == "once" else AutoModelForCausalLM.from_pretrained(folder)
    config = DPOConfig(precompute_ref_log_probs=method == "once", **common)
    rows = Dataset.from_list(make_pairs(size))
    DPOTrainer(folder, ref_model=reference, args=config, train_dataset=rows, **others).train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", nargs=5, help="side, method, folder, size, steps")
    parser.add_argument("--methods", nargs="*", default=["sft", "dpo", "once"])
    parser.add_argument("--sizes", nargs="*", default=list(SIZES))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--trl", default=sys.executable, help="the Python of the peer")
    args = parser.parse_args()
    if args.worker:
        side, method, folder, name, steps = args.worker
        size, steps = SIZES[name], int(steps)
        if side == "trl":
            return work_there(method, folder, size, steps)
        if method == "sft":
            return work_here(folder, size, steps)
        return prefer_here(folder, size, steps, method == "once")
    record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    record |= {
        "processor": platform.processor() or platform.machine(),
        "versions": {
            "jaxrl4lm": versions(sys.executable, ("jax", "jaxlib", "flax", "optax")),
            "trl": versions(args.trl, ("trl", "torch", "transformers")),
        },
    }
    for method, size in [(method, size) for method in args.methods for size in args.sizes]:
        rounds = []
        with tempfile.TemporaryDirectory() as folder:
            make_model(folder, SIZES[size])
            for _ in range(args.rounds):
                here, there = (
                    measure(
                        [python, __file__, "--worker", side, method, folder, size, str(args.steps)], args.core
                    )
                    for side, python in (("ours", sys.executable), ("trl", args.trl))
                )
                rounds.append({"ours": here, "trl": there})
                record[f"{method} {size}"] = {
                    "trl / ours, seconds": spread(
                        [r["trl"]["seconds"] / r["ours"]["seconds"] for r in rounds]
                    ),
                    "ours / trl, memory": spread(
                        [r["ours"]["peak_gb"] / r["trl"]["peak_gb"] for r in rounds]
                    ),
                    "rounds": rounds,
                }
                print(
                    method,
                    size,
                    {k: v for k, v in record[f"{method} {size}"].items() if "/" in k},
                    flush=True,
                )
                RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
