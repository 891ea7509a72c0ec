"""Tunix's sampler at the other end of a pipe: runs in Tunix's own environment, started by
benchmarks/generate.py.

Reads one JSON line of sizes, generates once to compile, and then once for every line that it reads, writing
the seconds.
Takes the most likely tokens: its sampler does no more than that unless top_p is set, and then sorts the
vocabulary.
"""

import json
import sys
import time

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tunix.generate import sampler
from tunix.models.llama3 import model as llama

sizes = json.loads(sys.stdin.readline())


class Words:
    """Texts are ids joined by spaces."""

    def encode(self, text, **_):
        return [int(x) for x in text.split()]

    def decode(self, ids, **_):
        return " ".join(str(int(i)) for i in ids)

    def bos_id(self):
        return 2

    def eos_id(self):
        return 1

    def pad_id(self):
        return 0


config = llama.ModelConfig(
    num_layers=sizes["layers"],
    vocab_size=sizes["vocab_size"],
    embed_dim=sizes["width"],
    hidden_dim=sizes["mlp_width"],
    num_heads=sizes["heads"],
    head_dim=sizes["width"] // sizes["heads"],
    num_kv_heads=sizes["kv_heads"],
    rope_theta=10000,
    norm_eps=1e-5,
    weight_tying=True,
)
mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
prompts = [
    " ".join(str(x) for x in row) for row in np.array(sizes["prompts"])[:, 1:]
]  # it puts the begin token first
with mesh:
    model = llama.Llama3(config, rngs=nnx.Rngs(0))
    cache = sampler.CacheConfig(
        cache_size=len(sizes["prompts"][0]) + sizes["new"] + 8,
        num_layers=sizes["layers"],
        num_kv_heads=sizes["kv_heads"],
        head_dim=sizes["width"] // sizes["heads"],
    )
    generate = sampler.Sampler(model, Words(), cache)

    def run():
        out = generate(
            prompts,
            max_generation_steps=sizes["new"],
            max_prompt_length=len(sizes["prompts"][0]),
            eos_tokens=[sizes["vocab_size"] - 1],
            forbidden_tokens=[sizes["vocab_size"] - 1],
            pad_output=True,
        )
        jax.block_until_ready(out.tokens)
        return np.asarray(out.tokens).shape

    shape = run()
    print(json.dumps({"ready": list(shape), "jax": jax.__version__}), flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        run()
        print(json.dumps({"seconds": time.process_time() - start}), flush=True)
