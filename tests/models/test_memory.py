"""Reading a checkpoint holds no more than the checkpoint and its largest tensor."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import models
from tests.selection import slow_but

PROGRAM = """
import json, pathlib, sys
import jax
from jaxrl4lm import models
from tests.selection import slow_but


def memory(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


models.load(sys.argv[1])  # imports and compiles
before = memory("VmRSS")
policy, params, _ = models.load(sys.argv[2])
sizes = [x.nbytes for x in jax.tree.leaves(params)]
print(json.dumps({"grown": memory("VmHWM") - before, "size": sum(sizes), "largest": max(sizes)}))
"""


NEOX = {"norm": "layer", "bias": True, "parallel": True, "gated": False, "activation": "gelu"}


def write(folder, vocab, layers, width, **style):
    config = models.TransformerConfig(vocab, layers=layers, width=width, heads=4, tied=False, **style)
    policy = models.LanguagePolicy(config)
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    models.save(folder, policy, params, shard_bytes=30 * 10**6)


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="reads /proc")
# GPT-NeoX stores its queries, keys and values interleaved: each is a copy.
@pytest.mark.parametrize("style", slow_but([NEOX, {}], 1), ids=["gpt_neox", "llama"])
def test_loading_holds_the_checkpoint_and_its_largest_tensor(tmp_path, style):
    write(tmp_path / "small", 20, 1, 16, **style)
    write(tmp_path / "large", 12_000, 10 if not style else 20, 256, **style)
    folders = [tmp_path / "small", tmp_path / "large"]
    result = subprocess.run([sys.executable, "-c", PROGRAM, *folders], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    used = json.loads(result.stdout)
    assert used["size"] > 5 * used["largest"]
    assert used["grown"] < used["size"] + used["largest"]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_parameters_outlive_the_file(tmp_path, dtype):
    write(tmp_path, 20, 1, 64)
    _, params, _ = models.load(tmp_path, dtype=dtype)
    with (tmp_path / "model.safetensors").open("r+b") as file:  # in place: a map of the file would show it
        size = file.seek(0, 2)
        file.seek(0)
        file.write(bytes(size))
    assert all((x == 1).all() for name, x in params.items() if name in ("embedding", "unembedding"))
    assert (params["layer_0"]["mlp"]["up"]["kernel"] == 1).all()
