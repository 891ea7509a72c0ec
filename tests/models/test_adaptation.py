"""Rematerialised and scanned layers, bf16, LoRA, partial fine-tuning and heads: each against the plain
computation."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl4lm import models
from jaxrl4lm.lm import trainable
from jaxrl4lm.models import LanguagePolicy, Rope, TransformerConfig, lora, tensor_files
from jaxrl4lm.models.huggingface import flatten
from jaxrl4lm.models.transformer import Dense
from tests.selection import slow_but

V, T = 13, 8
LLAMA = TransformerConfig(V, layers=2, width=16, heads=4, kv_heads=2, mlp_width=24, tied=False)
VARIED = dataclasses.replace(LLAMA, ropes=(Rope(100.0), None), windows=(None, 3), norm_placement="both")

# Compiled once for each configuration.
apply, hidden_states = (jax.jit(f, static_argnums=0) for f in (LanguagePolicy.apply, LanguagePolicy.hidden))


def randomised(config, scale=0.2):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(LanguagePolicy(config).init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape, scale=scale), jnp.float32), shapes)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    prompts, completions = rng.integers(0, V, (2, 4)), rng.integers(0, V, (4, T))
    return prompts, np.arange(4)[None] >= np.array([[1], [0]]), completions


def loss_and_gradient(config, params, batch):
    policy = LanguagePolicy(config)

    def loss(params):
        hidden = policy.completion_hidden(params, *batch)
        log_probs = jax.nn.log_softmax(policy.logits(params, hidden))
        return -jnp.take_along_axis(log_probs, batch[2][..., None], -1).mean()

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.fixture(scope="module")
def plain(batch):
    return {config: loss_and_gradient(config, randomised(config), batch) for config in (LLAMA, VARIED)}


@pytest.mark.parametrize(
    "config, remat, scan",
    [
        pytest.param(VARIED, "none", True, id="varied, scanned", marks=pytest.mark.slow),
        pytest.param(VARIED, "full", True, id="varied, scanned, all again", marks=pytest.mark.slow),
        pytest.param(VARIED, "dots", False, id="varied, products kept", marks=pytest.mark.slow),
        pytest.param(LLAMA, "full", False, id="alike, all again", marks=pytest.mark.slow),
        pytest.param(LLAMA, "dots", True, id="alike, scanned, products kept"),
    ],
)
def test_rematerialised_and_scanned_layers_compute_the_same(config, remat, scan, batch, plain):
    ours = loss_and_gradient(dataclasses.replace(config, remat=remat, scan=scan), randomised(config), batch)
    chex.assert_trees_all_close(ours, plain[config], atol=1e-6)


@pytest.mark.slow
def test_full_rematerialisation_holds_less(batch):
    deep = dataclasses.replace(LLAMA, layers=6, scan=True)
    params = jax.eval_shape(LanguagePolicy(deep).init, jax.random.key(0))
    tokens = jnp.zeros((16, 64), jnp.int32)

    def temporaries(config):
        policy = LanguagePolicy(config)
        grad = jax.jit(jax.grad(lambda p: policy.apply(p, tokens)[0].mean()))
        return grad.lower(params).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(dataclasses.replace(deep, remat="full")) < 0.5 * temporaries(deep)


@pytest.mark.slow
def test_bfloat16_products_keep_float32_statistics(batch):
    params = randomised(LLAMA)
    exact = np.asarray(apply(LanguagePolicy(LLAMA), params, batch[2])[0])
    half = LanguagePolicy(dataclasses.replace(LLAMA, dtype="bfloat16"))
    logits, values = apply(half, params, batch[2])
    assert logits.dtype == values.dtype == jnp.float32
    error = np.abs(logits - exact).max() / np.abs(exact).max()
    assert 1e-4 < error < 3e-2
    loss, gradient = loss_and_gradient(half.config, params, batch)
    assert loss.dtype == jnp.float32
    assert {g.dtype for g in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}


@pytest.fixture(scope="module")
def adapted():
    params = randomised(LLAMA)
    adapters = lora.init(jax.random.key(5), params, rank=3)
    return LanguagePolicy(LLAMA), params, adapters


def test_an_adapter_starts_as_the_identity_and_attached_is_merged(adapted, batch):
    policy, params, adapters = adapted
    logits = jax.jit(lambda p, a: policy.apply(lora.attach(p, a, 0.5), batch[2])[0])
    plain = np.asarray(apply(policy, params, batch[2])[0])
    np.testing.assert_allclose(logits(params, adapters), plain, atol=5e-7)
    moved = jax.tree.map(lambda x: x + 0.3, adapters)
    attached = np.asarray(logits(params, moved))
    assert np.abs(attached - plain).max() > 0.1
    merged = lora.merge(params, moved, 0.5)
    np.testing.assert_allclose(apply(policy, merged, batch[2])[0], attached, atol=2e-5)


def test_only_adapters_receive_a_gradient(adapted, batch):
    policy, params, adapters = adapted
    moved = jax.tree.map(lambda x: x + 0.1, adapters)

    def loss(params, adapters, join):
        return jnp.sin(policy.apply(join(params, adapters, 0.5), batch[2])[0]).mean()

    frozen, attached = jax.jit(jax.grad(lambda p, a: loss(p, a, lora.attach), (0, 1)))(params, moved)
    merged = jax.jit(jax.grad(lambda a: loss(params, a, lora.merge)))(moved)
    assert not any(g.any() for g in jax.tree.leaves(frozen))
    chex.assert_trees_all_close(attached, merged, atol=1e-6)


def test_dropout_is_of_the_inputs_of_each_adapter(adapted, batch):
    """Drawn by the key, of each layer another, the same in a scan; without a key there is none; right on average."""
    policy, params, adapters = adapted
    adapters = jax.tree.map(lambda x: x + 0.3, adapters)

    def run(key, dropout=0.5, **changes):
        config = dataclasses.replace(policy.config, **changes)
        joined = lora.attach(params, adapters, 0.5, dropout=dropout, key=key)
        return jax.jit(LanguagePolicy(config).hidden)(joined, batch[0])

    plain = np.asarray(run(None))
    np.testing.assert_array_equal(run(jax.random.key(0), dropout=0.0), plain)
    one = np.asarray(run(jax.random.key(1)))
    np.testing.assert_array_equal(run(jax.random.key(1)), one)
    assert np.abs(one - plain).max() > 1e-3
    assert np.abs(run(jax.random.key(2)) - one).max() > 1e-3
    for changes in ({"scan": True}, {"remat": "full"}):
        np.testing.assert_allclose(run(jax.random.key(1), **changes), one, atol=1e-5)
    joined = flatten(lora.attach(params, adapters, 0.5, dropout=0.5, key=jax.random.key(1)))
    keys = [tuple(jax.random.key_data(x).tolist()) for path, x in joined.items() if path.endswith("lora_key")]
    assert len(set(keys)) == len(keys) > 2
    x = jnp.ones((4000, 6))
    layer = {"kernel": jnp.zeros((6, 2)), "lora_a": jnp.ones((6, 1)), "lora_b": jnp.ones((1, 2))}
    layer |= {"lora_key": jax.random.key(0), "lora_dropout": jnp.float32(0.25)}
    outputs = Dense(2).apply({"params": layer}, x)
    np.testing.assert_allclose(outputs.mean(0), 6.0, rtol=0.02)
    np.testing.assert_allclose(outputs[:, 0].var(), 6 * 0.25 / 0.75, rtol=0.1)
    with pytest.raises(ValueError, match=r"dropout must be at least 0 and below 1, not 1.0"):
        trainable.adapters(dropout=1.0)


def test_targets_by_any_of_their_names():
    llama = LanguagePolicy(TransformerConfig(9, layers=2, width=8, heads=2))
    gpt2 = LanguagePolicy(TransformerConfig.gpt2(9, layers=2, width=8, heads=2))

    def chosen(policy, *words):
        rule = lora.match_targets(words, policy)
        return [path for path in flatten(jax.eval_shape(policy.init, jax.random.key(0))) if rule(path)]

    assert set(chosen(llama, "q_proj", "up")) == {
        f"layer_{i}/{name}/kernel" for i in (0, 1) for name in ("attention/query", "mlp/up")
    }
    assert chosen(llama, "q_proj") == chosen(llama, "query")
    assert len(chosen(llama, "all-linear")) == 14
    assert len(chosen(gpt2, "c_attn")) == 6
    assert chosen(gpt2, "mlp.c_proj") == chosen(gpt2, "down")
    assert len(chosen(llama, "layer_1/mlp")) == 3
    with pytest.raises(
        ValueError, match=r"'c_attn' names no dense layer of this model: choose all-linear, down, down_proj"
    ):
        chosen(llama, "c_attn")


def test_only_the_targets_are_adapted(adapted):
    _, params, _ = adapted
    adapters = lora.init(jax.random.key(0), params, 2, models.match_paths("attention/(query|value)/kernel"))
    assert set(adapters["layer_0"]) == {"attention"}
    assert set(adapters["layer_1"]["attention"]) == {"query", "value"}
    with pytest.raises(ValueError, match="no kernel is targeted"):
        lora.init(jax.random.key(0), params, 2, models.match_paths("nothing"))


def test_adapters_in_the_format_of_peft(adapted, tmp_path):
    policy, _, adapters = adapted
    adapters = jax.tree.map(lambda x: x + 1.0, adapters)
    lora.save(tmp_path, policy, adapters, alpha=6.0)
    tensors = tensor_files.read_tensors(tmp_path, "adapter_model")
    name = "base_model.model.model.layers.1.mlp.down_proj"
    query = adapters["layer_1"]["mlp"]["down"]
    np.testing.assert_array_equal(tensors[f"{name}.lora_A.weight"], query["lora_a"].T)  # [r, in]
    np.testing.assert_array_equal(tensors[f"{name}.lora_B.weight"], query["lora_b"].T)  # [out, r]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (3, 6.0, "LORA")
    assert config["target_modules"] == sorted(f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down"))
    loaded, scale = lora.load(tmp_path, policy)
    assert scale == 2.0
    jax.tree.map(np.testing.assert_array_equal, loaded, adapters)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(models.CheckpointError, match="use_dora is not supported"):
        lora.load(tmp_path, policy)


def test_an_adapter_of_a_fused_kernel_as_peft_writes_it(tmp_path):
    policy = LanguagePolicy(TransformerConfig.gpt2(V, layers=1, width=16, heads=4, context=16))
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 16)).astype(np.float32), rng.normal(size=(48, 2)).astype(np.float32)
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_"
    arrays = {f"{name}A.weight": a, f"{name}B.weight": b}
    tensors = {k: tensor_files.Tensor(x.shape, x.dtype, lambda x=x: x) for k, x in arrays.items()}
    tensor_files.write_tensors(tmp_path, tensors, "adapter_model")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4, "use_rslora": True}))
    adapters, scale = lora.load(tmp_path, policy)
    assert scale == pytest.approx(4 / 2**0.5)
    attention = adapters["layer_0"]["attention"]
    joint = np.concatenate(
        [attention[x]["lora_a"] @ attention[x]["lora_b"] for x in ("query", "key", "value")], 1
    )
    np.testing.assert_allclose(joint, (b @ a).T, atol=1e-5)
    lora.save(tmp_path / "back", policy, adapters, 4.0)  # they share A: the same tensors
    back = tensor_files.read_tensors(tmp_path / "back", "adapter_model")
    assert set(back) == set(arrays)
    jax.tree.map(np.testing.assert_array_equal, back, arrays)
    assert json.loads((tmp_path / "back" / "adapter_config.json").read_text())["fan_in_fan_out"]


@pytest.mark.parametrize("family", slow_but(["gpt2", "gpt_neox", "phi3"], 1))
def test_adapters_of_kernels_that_share_a_tensor_go_out_and_in(family, tmp_path):
    gpt2 = TransformerConfig.gpt2(V, layers=2, width=16, heads=4, context=16)
    neox = dataclasses.replace(gpt2, rope_theta=100.0, parallel=True, activation="gelu", tied=False)
    configs = {"gpt2": gpt2, "gpt_neox": neox, "phi3": dataclasses.replace(LLAMA, family="phi3")}
    policy = LanguagePolicy(dataclasses.replace(configs[family], family=family))
    params = randomised(policy.config)
    adapters = lora.init(jax.random.key(0), params, 2)
    rng = np.random.default_rng(0)
    adapters = jax.tree.map(lambda x: x + rng.normal(size=x.shape).astype(np.float32), adapters)
    lora.save(tmp_path, policy, adapters, alpha=6.0)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    joint = {"gpt2": "c_attn", "gpt_neox": "query_key_value", "phi3": "qkv_proj"}[family]
    (name,) = [name for name in config["rank_pattern"] if name.endswith(joint) and ".1." in name]
    assert (config["r"], config["rank_pattern"][name], config["alpha_pattern"][name]) == (2, 6, 18.0)
    loaded, scale = lora.load(tmp_path, policy)
    assert scale == 3.0
    expected, ours = lora.merge(params, adapters, 3.0), lora.merge(params, loaded, scale)
    chex.assert_trees_all_close(ours, expected, atol=1e-4)
    value = adapters["layer_0"]["attention"]["value"]
    some = {**adapters, "layer_0": {"attention": {"value": value}}}  # of layer 0 a third of one tensor
    lora.save(tmp_path, policy, some, alpha=6.0)
    loaded, scale = lora.load(tmp_path, policy)
    chex.assert_trees_all_close(lora.merge(params, loaded, scale), lora.merge(params, some, 3.0), atol=1e-4)


def test_mixed_ranks_come_back(adapted, tmp_path):
    policy, _, adapters = adapted
    rank, moved = 3, jax.tree.map(lambda x: x + 0.5, adapters)
    up = moved["layer_1"]["mlp"]["up"]
    up |= {"lora_a": up["lora_a"][:, :2], "lora_b": up["lora_b"][:2]}
    lora.save(tmp_path, policy, moved, alpha=6.0)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["rank_pattern"] == {"model.layers.1.mlp.up_proj": 2}
    assert config["alpha_pattern"] == {"model.layers.1.mlp.up_proj": 4.0}
    loaded, scale = lora.load(tmp_path, policy)
    assert scale == 6.0 / rank
    jax.tree.map(np.testing.assert_array_equal, loaded, moved)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "rank_pattern": {}}))
    with pytest.raises(models.CheckpointError, match="up_proj has rank 2"):
        lora.load(tmp_path, policy)


def test_an_adapter_of_the_unembedding_is_refused(adapted, tmp_path):
    policy, _, adapters = adapted
    policy = LanguagePolicy(dataclasses.replace(policy.config, tied=False))
    lora.save(tmp_path, policy, adapters, alpha=6.0)
    tensors = tensor_files.read_tensors(tmp_path, lora.STEM)
    for letter, shape in {"A": (3, 16), "B": (policy.config.vocab_size, 3)}.items():
        tensors[f"base_model.model.lm_head.lora_{letter}.weight"] = np.ones(shape, np.float32)
    written = {n: tensor_files.Tensor(x.shape, x.dtype, lambda x=x: x) for n, x in tensors.items()}
    tensor_files.write_tensors(tmp_path, written, lora.STEM)
    with pytest.raises(
        models.CheckpointError, match=r"lm_head.lora_A.weight has no place among the adapters"
    ):
        lora.load(tmp_path, policy)


def test_ranks_and_scales_of_their_own_are_read(adapted, tmp_path):
    policy, _, adapters = adapted
    moved = jax.tree.map(lambda x: x + 0.5, adapters)
    lora.save(tmp_path, policy, moved, alpha=6.0)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "alpha_pattern": {"layers.1.mlp.up_proj": 12.0}}))
    loaded, scale = lora.load(tmp_path, policy)
    up = moved["layer_1"]["mlp"]["up"]
    up["lora_b"] = 2 * up["lora_b"]
    jax.tree.map(np.testing.assert_array_equal, loaded, moved)
    assert scale == 2.0
    for option in lora.UNSUPPORTED:
        path.write_text(json.dumps({**config, option: ["x"]}))
        with pytest.raises(models.CheckpointError, match=f"{option} is not supported"):
            lora.load(tmp_path, policy)
    for start in ("pissa_niter_16", "olora", "corda", "loftq"):
        path.write_text(json.dumps({**config, "init_lora_weights": start}))
        with pytest.raises(models.CheckpointError, match=f"init_lora_weights '{start}' changes the base"):
            lora.load(tmp_path, policy)
    path.write_text(json.dumps({"peft_type": "IA3"}))
    with pytest.raises(models.CheckpointError, match="is not of a LoRA adapter"):
        lora.load(tmp_path, policy)
    path.write_text(json.dumps(config))
    other = LanguagePolicy(dataclasses.replace(LLAMA, mlp_width=28))
    with pytest.raises(models.CheckpointError, match="gate_proj does not fit a kernel 16 x 28"):
        lora.load(tmp_path, other)


@pytest.mark.parametrize("apply", [lora.attach, lora.merge])
def test_adapters_of_another_model_are_refused(apply):
    def shapes(**sizes):
        policy = LanguagePolicy(dataclasses.replace(LLAMA, **sizes))
        return jax.eval_shape(policy.init, jax.random.key(0))

    adapters = jax.eval_shape(lambda p: lora.init(jax.random.key(0), p, 2), shapes(mlp_width=24))
    with pytest.raises(ValueError, match=r"down/kernel is \(24, 2\) x \(2, 16\), the kernel \(28, 16\)"):
        jax.eval_shape(apply, shapes(mlp_width=28), adapters, 1.0)
    fewer = {name: x for name, x in shapes(mlp_width=24).items() if name != "layer_1"}
    with pytest.raises(ValueError, match=r"the parameters have no layer_1/.*kernel, which an adapter is for"):
        jax.eval_shape(apply, fewer, adapters, 1.0)


def test_frozen_parameters_stand_still_and_cost_no_optimizer_state(batch):
    policy, params = LanguagePolicy(LLAMA), randomised(LLAMA)
    trained, frozen = models.partition(params, models.match_paths("layer_1/mlp/", "final_norm"))
    jax.tree.map(np.testing.assert_array_equal, models.combine(trained, frozen), params)
    tx = optax.adam(1e-2)
    state = tx.init(trained)
    assert models.parameter_count(state[0].mu) == 3 * 16 * 24 + 16

    @jax.jit
    def update(trained, state):
        def loss(trained):
            return policy.apply(models.combine(trained, frozen), batch[2])[0].mean()

        updates, state = tx.update(jax.grad(loss)(trained), state)
        return optax.apply_updates(trained, updates), state

    moved, _ = update(trained, state)
    assert all((x != y).any() for x, y in zip(jax.tree.leaves(moved), jax.tree.leaves(trained), strict=True))
    after = models.combine(moved, frozen)
    np.testing.assert_array_equal(
        after["layer_0"]["mlp"]["up"]["kernel"], params["layer_0"]["mlp"]["up"]["kernel"]
    )
    with pytest.raises(ValueError, match=r"no parameter is trained by this rule: .* layer_N/mlp/up/kernel"):
        models.partition(params, models.match_paths("nothing"))


def test_heads_read_the_tokens_that_they_name(batch):
    policy, params = LanguagePolicy(LLAMA), randomised(LLAMA)
    tokens = batch[2]
    mask = np.array([[1] * 8, [0] * 2 + [1] * 6, [1] * 5 + [0] * 3, [0, 1, 1, 1, 0, 0, 0, 0]], bool)
    hidden = np.asarray(hidden_states(policy, params, tokens, mask))
    head = models.init_head(jax.random.key(0), 16, 2)
    assert 0.1 < head.kernel.std() * 17**0.5 < 3
    each = np.asarray(models.token_outputs(head, hidden))
    np.testing.assert_allclose(each[1, 3], hidden[1, 3] @ np.asarray(head.kernel), atol=1e-6)
    last = models.sequence_outputs(head, hidden, mask)
    np.testing.assert_allclose(last, np.stack([each[0, 7], each[1, 7], each[2, 4], each[3, 3]]), atol=1e-6)
    np.testing.assert_allclose(models.sequence_outputs(head, hidden), each[:, -1], atol=1e-6)
    start, end = models.span_outputs(head, hidden, mask)
    np.testing.assert_array_equal(np.isfinite(start), mask)
    np.testing.assert_array_equal(np.where(mask, end, 0), np.where(mask, each[..., 1], 0))


def test_a_task_head_learns_on_a_frozen_backbone():
    policy, params = LanguagePolicy(LLAMA), randomised(LLAMA)
    tokens = np.random.default_rng(3).integers(0, V, (64, 6))
    labels = (tokens[:, -1] > V // 2).astype(np.int32)
    features = hidden_states(policy, params, tokens)  # once: the backbone stands still
    tx = optax.adam(0.1)

    @jax.jit
    def step(carry, _):
        def loss(head):
            return optax.losses.softmax_cross_entropy_with_integer_labels(
                models.sequence_outputs(head, features), labels
            ).mean()

        head, state = carry
        updates, state = tx.update(jax.grad(loss)(head), state)
        return (optax.apply_updates(head, updates), state), None

    head = models.init_head(jax.random.key(4), 16, 2)
    (head, _), _ = jax.lax.scan(step, (head, tx.init(head)), length=200)
    assert (models.sequence_outputs(head, features).argmax(-1) == labels).mean() > 0.95
