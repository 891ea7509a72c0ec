"""The table of partitions, and a training run that is the same numbers on any mesh."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxrl4lm import models
from jaxrl4lm.models import sharding
from tests.selection import slow_but

CONFIG = models.TransformerConfig(24, layers=2, width=16, heads=4, kv_heads=2, mlp_width=32, tied=False)
MESHES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2)]
PROGRAM = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
import jax.numpy as jnp
import numpy as np
import optax
from jaxrl4lm import decoding, models

meshes, layers = json.loads(sys.argv[1])
CONFIG = models.TransformerConfig(24, layers=layers, width=16, heads=4, kv_heads=2, mlp_width=32, tied=False)
policy, tx = models.LanguagePolicy(CONFIG), optax.adam(1e-2)


def init(key):
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(key, x.shape), policy.init(key))
    return {"params": params, "opt_state": tx.init(params)}


@jax.jit
def update(state, tokens, mask):
    def loss(params):
        logits, _ = policy.apply(params, tokens, mask)
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
        return (losses * mask[:, 1:]).sum() / mask[:, 1:].sum()

    value, grads = jax.value_and_grad(loss)(state["params"])
    updates, opt_state = tx.update(grads, state["opt_state"])
    return {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}, value


rng = np.random.default_rng(0)
tokens = rng.integers(0, 24, (8, 12)).astype(np.int32)
mask = np.arange(12) >= rng.integers(0, 4, (8, 1))
results = []
for sizes in meshes:
    mesh = models.make_mesh(*sizes)
    with jax.set_mesh(mesh):
        layout = models.shardings(jax.eval_shape(init, jax.random.key(0)), mesh)
        state = jax.jit(init, out_shardings=layout)(jax.random.key(0))
        held = max(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
        batch = models.put_batch((tokens, mask), mesh)
        losses = []
        for _ in range(4):
            state, value = update(state, *batch)
            losses.append(float(value))
        logits = np.asarray(jax.jit(policy.apply)(state["params"], *batch)[0])
        sampling = decoding.Sampling(max_new_tokens=6, eos_id=-1, pad_id=0)
        out = jax.jit(lambda p, t, m: decoding.generate(policy, p, t, m, jax.random.key(1), sampling))(
            state["params"], *models.put_batch((tokens[:, :8], mask[:, :8]), mesh)
        )
        hlo = update.lower(state, *batch).compile().as_text()
    moments = jax.tree.leaves(state["opt_state"][0].mu)
    split = sum(not x.is_fully_replicated for x in moments)
    collectives = {op: hlo.count(f" {op}(") for op in ("all-gather", "all-to-all")}
    results.append({"losses": losses, "logits": logits.tolist(), "texts": np.asarray(out.tokens).tolist()})
    results[-1] |= {"held": held, "split": split, **collectives}
print(json.dumps(results))
"""


@pytest.fixture(
    scope="module", params=slow_but([[MESHES[::3], 1], [MESHES, 2]], 1), ids=["two meshes", "all meshes"]
)
def runs(request):
    """Layers, and by mesh losses and logits of the same training steps on eight devices, in a process of its own."""
    meshes, layers = request.param
    command = [sys.executable, "-c", PROGRAM, json.dumps(request.param)]
    compiled = os.environ | {
        "JAX_ENABLE_COMPILATION_CACHE": "0"
    }  # XLA warns where it compiles, and only there
    process = subprocess.run(command, capture_output=True, text=True, env=compiled)
    assert process.returncode == 0, process.stderr
    assert "Involuntary full rematerialization" not in process.stderr
    return layers, dict(zip(meshes, json.loads(process.stdout), strict=True))


def test_losses_and_logits_are_the_same_on_any_mesh(runs):
    one, *others = runs[1].values()
    assert one["losses"][-1] < one["losses"][0] - 0.05
    real = np.array(one["logits"])
    for several in others:
        np.testing.assert_allclose(several["losses"], one["losses"], rtol=1e-5)
        np.testing.assert_allclose(several["logits"], real, atol=2e-4 * np.abs(real).max())
        assert several["texts"] == one["texts"]


def test_parameters_and_moments_are_split(runs):
    layers, by_mesh = runs
    for (_, fsdp, tensor), run in by_mesh.items():
        split = fsdp * tensor
        assert run["held"] == by_mesh[1, 1, 1]["held"] / split
        # Kernels of the layers, both tables.
        assert run["split"] >= layers * 7 + 2 if split > 1 else run["split"] == 0


def test_the_residual_stream_is_not_moved(runs):
    for (_, fsdp, tensor), run in runs[1].items():
        assert run["all-to-all"] == 0
        assert fsdp * tensor > 1 or run["all-gather"] == 0


def test_the_table_names_paths_of_parameters_moments_and_adapters():
    mesh = jax.sharding.AbstractMesh((2, 2, 2), sharding.AXES)
    place = sharding.place(mesh)
    assert place("layer_0/attention/query/kernel", (16, 16)).spec == P(("fsdp",), ("tensor",))
    assert place("opt_state/0/mu/layer_0/mlp/down/kernel", (32, 16)).spec == P(("tensor",), ("fsdp",))
    assert place("layer_1/mlp/up/lora_b", (3, 32)).spec == P(None, ("tensor",))
    assert place("params/embedding", (24, 16)).spec == P(("tensor",), ("fsdp",))
    assert place("position_embedding", (24, 16)).spec == P(None, None)
    assert place("embedding", (25, 16)).spec == P(None, ("fsdp",))  # 25 does not divide
    assert place("final_norm/scale", (16,)).spec == P(None)
    state = jax.eval_shape(
        lambda key: optax.adam(1.0).init(models.LanguagePolicy(CONFIG).init(key)), jax.random.key(0)
    )
    layout = models.shardings(state, mesh)
    assert layout[0].nu["layer_0"]["mlp"]["up"]["kernel"].spec == P(("fsdp",), ("tensor",))
    assert layout[0].count.spec == P()


def test_without_a_mesh_the_constraint_is_the_identity():
    x = jnp.ones((2, 3, 4))
    assert sharding.constrain_residual(x) is x
    policy = models.LanguagePolicy(CONFIG)
    params = jax.eval_shape(policy.init, jax.random.key(0))
    text = str(jax.make_jaxpr(policy.apply)(params, jnp.zeros((2, 3), jnp.int32)))
    assert "sharding_constraint" not in text
    with pytest.raises(ValueError, match="needs 64 devices, there are"):
        models.make_mesh(8, 8)
