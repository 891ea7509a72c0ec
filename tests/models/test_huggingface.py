"""Hugging Face folders: parity with transformers on random weights, round trips, errors that name the
trouble."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import models
from jaxrl4lm.data import CharacterTokenizer
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxrl4lm.decoding import Sampling, generate
from jaxrl4lm.models.families import FAMILIES, read_config, write_config
from jaxrl4lm.models.tensor_files import Tensor, read_tensors, write_tensors
from tests.selection import slow_but

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 89,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 12, "rope_theta": 100.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "rope_theta": 100.0}
GLOBAL_LOCAL = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
LONGROPE = {"rope_type": "longrope", "rope_theta": 100.0}
LONGROPE |= {"short_factor": [1.0, 1.2, 1.3, 1.7, 2.0, 2.1], "long_factor": [1.1, 1.9, 3.0, 4.5, 6.0, 9.0]}
LONGROPE |= {"partial_rotary_factor": 1.0}
LONG = {"rope_parameters": LONGROPE, "head_dim": 12}
PLAIN = {"rope_type": "default", "rope_theta": 100.0}
THETA, PARTIAL = {"rope_parameters": PLAIN}, {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}}
WINDOW = {"sliding_window": 7}
GPT2 = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 80, "vocab_size": 89}
# Windows shorter than the text, scalings that bite within it, head_dim != width / heads, distinct scales.
CASES = {
    "gpt2": ("gpt2", GPT2),
    "gpt_neox": ("gpt_neox", PARTIAL),
    "gpt_neox_serial": ("gpt_neox", {**PARTIAL, "use_parallel_residual": False, "attention_bias": False}),
    "llama": ("llama", {**THETA, "attention_bias": True, "mlp_bias": True}),
    "llama3": ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama_yarn": ("llama", {"rope_parameters": YARN}),
    "mistral": ("mistral", {**THETA, **WINDOW}),
    "qwen2": ("qwen2", {**THETA, **WINDOW, "use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": ("qwen3", {**THETA, "tie_word_embeddings": True}),
    "gemma": ("gemma", THETA),
    "gemma2": ("gemma2", {**THETA, **WINDOW, "query_pre_attn_scalar": 9, "attn_logit_softcapping": 2.0}),
    "gemma3": ("gemma3_text", {"rope_parameters": GLOBAL_LOCAL, **WINDOW, "sliding_window_pattern": 2}),
    "smollm3": ("smollm3", {**THETA, **WINDOW, "no_rope_layers": [1, 0], "use_sliding_window": True}),
    "phi3": ("phi3", {**PARTIAL, **WINDOW}),
    "phi3_long": ("phi3", {**LONG, "original_max_position_embeddings": 11}),
    "phi3_short": ("phi3", {**LONG, "original_max_position_embeddings": 32}),
    "olmo2": ("olmo2", THETA),
}


def options(case):
    """Arguments of the configuration of transformers."""
    model_type, special = CASES[case]
    sizes = {**SIZES, **special} if model_type != "gpt2" else special
    if model_type == "gpt_neox":  # head_dim is width / heads there
        sizes = {k: v for k, v in sizes.items() if k != "head_dim"}
    return {**sizes, "bos_token_id": 1, "eos_token_id": 2}


def make(case, **changes):
    """A random model of transformers in which every parameter is random: swapped or missing norms show."""
    config = transformers.AutoConfig.for_model(CASES[case][0], **options(case), **changes)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if "norm" in name or "ln_" in name or name.endswith("bias") else 0.15
            parameter.add_(torch.randn(parameter.shape) * spread)
    return model


def batch(vocab=89, length=24):
    """Token ids, left-padded, right-padded and whole rows, with their mask."""
    rng = np.random.default_rng(1)
    tokens, mask = rng.integers(3, vocab, (4, length)), np.ones((4, length), bool)
    mask[1, :7], mask[2, -5:], mask[3, :3] = False, False, False
    return tokens.astype(np.int32), mask


@torch.no_grad()
def reference(model, tokens, mask):
    positions = torch.from_numpy(np.maximum(np.cumsum(mask, -1) - 1, 0))
    out = model(
        torch.from_numpy(tokens).long(), attention_mask=torch.from_numpy(mask).long(), position_ids=positions
    )
    return out.logits.numpy()


def relative_error(ours, theirs, mask):
    return np.abs(np.asarray(ours) - theirs)[mask].max() / np.abs(theirs[mask]).max()


@pytest.fixture(scope="module", params=slow_but(CASES, ["gpt2", "llama3", "gemma3", "phi3_long"]))
def family(request, tmp_path_factory):
    """A folder that transformers wrote, and what it computes."""
    folder = tmp_path_factory.mktemp(request.param)
    model = make(request.param)
    model.save_pretrained(folder)
    tokens, mask = batch()
    return folder, tokens, mask, reference(model, tokens, mask)


def test_logits_are_those_of_transformers_and_survive_the_way_back(family, tmp_path):
    folder, tokens, mask, theirs = family
    policy, params, tokenizer = models.load(folder)
    assert tokenizer is None
    logits, values = jax.jit(policy.apply)(params, tokens, mask)
    assert relative_error(logits, theirs, mask) < 1e-5
    assert not values.any()
    params["value_head"] = jnp.arange(48.0)
    models.save(tmp_path, policy, params, shard_bytes=30_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert [type(back).__name__] == json.loads((folder / "config.json").read_text())["architectures"]
    assert relative_error(reference(back, tokens, mask), theirs, mask) < 1e-6
    again, same, _ = models.load(tmp_path)
    assert again == policy
    assert again.config.family == policy.config.family
    jax.tree.map(np.testing.assert_array_equal, same, params)


@torch.no_grad()
def test_greedy_completions_are_those_of_transformers(family):
    folder, tokens, _, _ = family
    policy, params, _ = models.load(folder)
    prompts, mask = tokens[:, :12], np.arange(12) >= np.array([0, 5, 2, 0])[:, None]
    ours = jax.jit(
        lambda params: generate(
            policy,
            params,
            jnp.array(prompts),
            jnp.array(mask),
            jax.random.key(0),
            Sampling(12, eos_id=-1, pad_id=0, temperature=None),
        )
    )(params)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    theirs = model.generate(
        torch.from_numpy(prompts).long(),
        attention_mask=torch.from_numpy(mask).long(),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    np.testing.assert_array_equal(ours.tokens, theirs[:, 12:].numpy())


KINDS = {"sequence": "SequenceClassification", "token": "TokenClassification", "span": "QuestionAnswering"}
HEADS = [
    *[
        (case, "sequence")
        for case in ("gpt2", "gpt_neox", "llama", "qwen3", "gemma2", "gemma3", "phi3", "olmo2")
    ],
    *[(case, "token") for case in ("gpt2", "gpt_neox", "mistral", "gemma")],
    *[(case, "span") for case in ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "smollm3")],
]


@torch.no_grad()
@pytest.mark.parametrize("case, kind", slow_but(HEADS, 1))
def test_task_heads_of_transformers_in_and_out(case, kind, tmp_path):
    auto = getattr(transformers, f"AutoModelFor{KINDS[kind]}")
    labels = {} if kind == "span" else {"num_labels": 3}
    config = transformers.AutoConfig.for_model(
        CASES[case][0], **{**options(case), "pad_token_id": 0}, **labels
    )
    torch.manual_seed(0)
    model = auto.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(tmp_path / "theirs")
    tokens, mask = batch()
    tokens = np.where(mask, tokens, 0)  # by which they find the last token

    def outputs(model):
        positions = torch.from_numpy(np.maximum(np.cumsum(mask, -1) - 1, 0))
        inputs = {"attention_mask": torch.from_numpy(mask).long(), "position_ids": positions}
        out = model(torch.from_numpy(tokens).long(), **inputs)
        pair = (out.start_logits, out.end_logits) if kind == "span" else (out.logits,)
        return [x.numpy() for x in pair]

    policy, params, head, _ = models.load_with_head(tmp_path / "theirs")
    hidden = jax.jit(policy.hidden)(params, tokens, mask)
    if kind == "span":
        ours = models.span_outputs(head, hidden, mask)
    else:
        read = {
            "sequence": models.sequence_outputs,
            "token": lambda head, hidden, _: models.token_outputs(head, hidden),
        }
        ours = [read[kind](head, hidden, mask)]
    real = np.ones(4, bool) if kind == "sequence" else mask
    for mine, theirs in zip(ours, outputs(model), strict=True):
        assert relative_error(mine, theirs, real) < 1e-5
    names = [] if kind == "span" else ["no", "yes", "perhaps"]
    models.save_with_head(tmp_path / "ours", policy, params, head, kind, labels=names)
    path = tmp_path / "ours" / "config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "pad_token_id": 0})
    )  # as a tokenizer would say
    back, loading = auto.from_pretrained(
        tmp_path / "ours", attn_implementation="eager", output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert type(back) is type(model)
    assert back.config.architectures == [type(model).__name__]
    assert back.config.id2label[1] == (names or ["LABEL_0", "LABEL_1"])[1]
    for one, other in zip(outputs(back.eval()), outputs(model), strict=True):
        assert relative_error(one, other, real) < 1e-6
    with pytest.raises(models.CheckpointError, match=f"holds a {type(model).__name__}.*load_with_head"):
        models.load(tmp_path / "ours")


def test_heads_that_transformers_lacks_are_refused(tmp_path):
    policy = models.LanguagePolicy(models.TransformerConfig(20, width=16, mlp_width=24, tied=False))
    params = jax.jit(policy.init)(jax.random.key(0))
    head = models.init_head(jax.random.key(1), 16, 2)
    models.save_with_head(tmp_path, policy, params, head, "sequence")  # the unembedding is left out
    policy, params, same, _ = models.load_with_head(tmp_path)
    np.testing.assert_allclose(same.kernel, head.kernel)
    assert "unembedding" not in params
    with pytest.raises(models.CheckpointError, match="LlamaForSequenceClassification has no bias"):
        models.save_with_head(tmp_path, policy, params, head._replace(bias=head.bias + 1), "sequence")
    with pytest.raises(models.CheckpointError, match="3 labels for the 2 outputs"):
        models.save_with_head(tmp_path, policy, params, head, "token", labels=["a", "b", "c"])
    config = models.TransformerConfig(20, width=16, norm_placement="after", qk_norm="all", family="olmo2")
    policy = models.LanguagePolicy(config)
    params = jax.jit(policy.init)(jax.random.key(0))
    with pytest.raises(models.CheckpointError, match="transformers has no Olmo2ForQuestionAnswering"):
        models.save_with_head(tmp_path, policy, params, head, "span")
    models.save(tmp_path, policy, params)
    with pytest.raises(models.CheckpointError, match="has no task head"):
        models.load_with_head(tmp_path)


def test_a_policy_from_scratch_is_saved_as_the_first_family_that_expresses_it(tmp_path, key):
    config = models.TransformerConfig(20, width=32, heads=4, kv_heads=2, mlp_width=40)
    policy = models.LanguagePolicy(config)
    params = jax.jit(policy.init)(key)
    tokens = np.arange(8, dtype=np.int32)[None] % 20
    tokenizer = CharacterTokenizer("0123456789+-*/=. ")
    models.save(tmp_path, policy, params, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert theirs.config.model_type == "llama"
    logits = jax.jit(policy.apply)(params, tokens)[0]
    assert relative_error(logits, reference(theirs, tokens, np.ones_like(tokens, bool)), np.s_[:]) < 1e-5
    text = "12+30=42"
    hf = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert hf.encode(text, add_special_tokens=False) == tokenizer.encode(text)
    assert (hf.pad_token_id, hf.eos_token_id) == (tokenizer.pad_id, tokenizer.eos_id)
    assert models.load(tmp_path)[2].encode(text) == tokenizer.encode(text)


def test_a_configuration_that_no_family_expresses_is_refused():
    config = models.TransformerConfig(20, norm="layer", activation="relu", gated=True)
    with pytest.raises(models.CheckpointError, match="no Hugging Face model_type expresses"):
        write_config(config)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    make("llama").save_pretrained(folder)
    return folder


def copy_without(folder, target, drop=None, add=None, **changes):
    """A copy of a folder with tensors dropped, added or replaced."""
    (target / "config.json").write_text((folder / "config.json").read_text())
    tensors = {**read_tensors(folder), **changes, **(add or {})}
    tensors = {k: v for k, v in tensors.items() if k != drop}
    write_tensors(target, {k: Tensor(v.shape, v.dtype, lambda v=v: v) for k, v in tensors.items()})


def changed(folder, target, add=None, **options):
    """A copy of a folder with another configuration, perhaps with further tensors."""
    copy_without(folder, target, add=add)
    config = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **options}))


YARN_OF_NOTHING = {
    "rope_theta": 1e4,
    "rope_type": "yarn",
    "factor": 2.0,
    "original_max_position_embeddings": 0,
}
LEVEL = {**YARN_OF_NOTHING, "rope_type": "llama3", "low_freq_factor": 2.0, "high_freq_factor": 2.0}
LEVEL["original_max_position_embeddings"] = 32


def header(text):
    return len(text).to_bytes(8, "little") + text


def listing(target, shards):
    (target / "model.safetensors").unlink()
    (target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def damaged_value_head(folder, target):
    copy_without(folder, target)
    path = target / "value_head.npy"
    path.write_bytes(b"")
    return path


def last_but(value):
    return np.append(np.ones(47, np.float32), np.float32(value))


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    "spoil, message",
    slow_but(
        [
            (lambda f, t: copy_without(f, t, drop=NORM), f"the tensor {NORM} is missing"),
            (lambda f, t: copy_without(f, t, add={"x.y": np.ones(3)}), "1 tensors are left over.*x.y"),
            (
                lambda f, t: copy_without(f, t, **{NORM: np.ones(5)}),
                rf"{NORM} has shape \(5,\).*means \(48,\)",
            ),
            (lambda f, t: None, "config.json is missing"),
            (
                lambda f, t: (t / "config.json").write_text('{"model_type": "mamba"}'),
                "model_type 'mamba' is not one of",
            ),
            (
                lambda f, t: (t / "config.json").write_text('{"model_type": "llama"}'),
                "key '[a-z_]+' is missing",
            ),
            (
                lambda f, t: (t / "config.json").write_text('{"model_type": []}'),
                "model_type .* is not one of",
            ),
            (
                lambda f, t: copy_without(f, t, **{NORM: np.ones(48, np.int32)}),
                f"{NORM} holds int32, not floats",
            ),
            (lambda f, t: copy_without(f, t, **{NORM: last_but(np.nan)}), f"{NORM} holds nan or an infinity"),
            (
                lambda f, t: changed(f, t, tie_word_embeddings=True),
                "model.safetensors: .*lm_head.weight is not the emb",
            ),
            (
                lambda f, t: changed(f, t, rms_norm_eps=float("nan")),
                "config.json: norm_eps must be .*not nan",
            ),
            (lambda f, t: changed(f, t, rms_norm_eps="1e-5"), "config.json: norm_eps must be"),
            (lambda f, t: changed(f, t, num_hidden_layers=0), "config.json: layers must be a whole number"),
            (
                lambda f, t: changed(f, t, rope_parameters={"rope_theta": -1.0}),
                "config.json: .*positive theta",
            ),
            (
                lambda f, t: changed(f, t, rope_parameters={"rope_theta": 1e4, "rope_type": "linear"}),
                "config.json: the rope type 'linear' needs a factor",
            ),
            (
                lambda f, t: changed(f, t, rope_parameters=YARN_OF_NOTHING),
                "original context of a rope must be positive",
            ),
            (lambda f, t: changed(f, t, rope_parameters=LEVEL), "low frequency must be below"),
            (lambda f, t: damaged_value_head(f, t), "value_head.npy is damaged"),
            (
                lambda f, t: np.save(damaged_value_head(f, t), np.array(["x"] * 48)),
                "value_head.npy holds <U1",
            ),
            (
                lambda f, t: (changed(f, t), listing(t, {"a": ""})),
                "is missing, which model.safetensors.index.json",
            ),
            (lambda f, t: np.save(damaged_value_head(f, t), last_but(np.inf)), "value_head.npy holds nan or"),
            (lambda f, t: np.save(damaged_value_head(f, t), np.ones(3)), r"value_head.npy has shape \(3,\)"),
            (lambda f, t: (t / "config.json").write_text((f / "config.json").read_text()), "holds neither"),
        ],
        8,
    ),
)
def test_errors_name_the_file_and_the_tensor(llama, tmp_path, spoil, message):
    spoil(llama, tmp_path)
    with pytest.raises(models.CheckpointError, match=message) as caught:
        models.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda data: data[:-10], "tensor .* lacks its last 10 bytes"),
        (lambda data: data[:100], "cut short at 100 bytes"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (lambda data: (5).to_bytes(8, "little") + b"hello", "header is not JSON"),
        (lambda data: (9).to_bytes(8, "little") + b'{"x": {}}', "of tensor x is damaged"),
        (lambda data: header(b"[" * 100_000), "header is not JSON"),
        (lambda data: header(b'{"x": {"dtype": [], "shape": [], "data_offsets": [0, 0]}}'), "type"),
        (
            lambda data: header(
                b'{"x": {"dtype": "F32", "shape": [1%b, 0], "data_offsets": [0, 0]}}' % (b"0" * 30)
            ),
            "not its shape",
        ),
    ],
)
def test_broken_files_are_named(llama, tmp_path, spoil, message):
    (tmp_path / "config.json").write_text((llama / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(spoil((llama / "model.safetensors").read_bytes()))
    with pytest.raises(models.CheckpointError, match=f"model.safetensors.*{message}"):
        models.load(tmp_path)


def test_files_of_an_older_model_go(llama, tmp_path):
    policy, params, _ = models.load(llama)
    other = jax.tree.map(lambda x: x + 1, params)
    for i, shard_bytes in enumerate([10**9, 30_000, 60_000, 10**9]):
        written = (params, other)[i % 2]
        models.save(tmp_path, policy, written, shard_bytes=shard_bytes)
        jax.tree.map(np.testing.assert_array_equal, models.load(tmp_path)[1], written)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["config.json", "model.safetensors", "value_head.npy"]


@pytest.mark.parametrize("architectures", slow_but([None, [], "LlamaForCausalLM", [3]], 1))
def test_architectures_need_not_be_named(llama, tmp_path, architectures):
    changed(llama, tmp_path, architectures=architectures)
    jax.tree.map(np.testing.assert_array_equal, models.load(tmp_path)[1], models.load(llama)[1])


def test_a_copy_of_the_embedding_may_stand_in_a_tied_model(llama, tmp_path):
    tensors = read_tensors(llama)
    copied = {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    changed(llama, tmp_path, copied, tie_word_embeddings=True)
    policy, params, _ = models.load(tmp_path)
    assert policy.config.tied
    assert "unembedding" not in params


def test_a_padding_id_beyond_the_vocabulary_stays_out_of_the_configuration(llama, tmp_path):
    policy, params, _ = models.load(llama)
    letters = "".join(chr(256 + i) for i in range(policy.config.vocab_size))
    tokenizer = HuggingFaceTokenizer.of(CharacterTokenizer(letters))
    tokenizer.config["pad_token"] = letters[-1]
    models.save(tmp_path, policy, params, tokenizer)
    assert json.loads((tmp_path / "config.json").read_text())["pad_token_id"] is None


def test_the_first_token_is_named_also_where_the_tokenizer_does_not_put_it(llama, tmp_path):
    policy, params, _ = models.load(llama)
    models.save(tmp_path, policy, params, CharacterTokenizer("ab"))
    bare = json.loads((tmp_path / "tokenizer.json").read_text()) | {"post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(bare))
    tokenizer = models.load(tmp_path)[2]
    assert tokenizer.begin_ids == ()
    models.save(tmp_path, policy, params, tokenizer)
    assert json.loads((tmp_path / "config.json").read_text())["bos_token_id"] == 2


def test_a_missing_shard_is_named(llama, tmp_path):
    policy, params, _ = models.load(llama)
    models.save(tmp_path, policy, params, shard_bytes=30_000)
    gone = sorted(tmp_path.glob("model-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(models.CheckpointError, match=f"{gone.name} is missing"):
        models.load(tmp_path)


def test_bfloat16_in_and_out(llama, tmp_path):
    policy, params, _ = models.load(llama, dtype=jnp.bfloat16)
    assert policy.config.dtype == "bfloat16"
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"bfloat16"}
    models.save(tmp_path, policy, params)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert theirs.dtype == torch.bfloat16
    _, same, _ = models.load(tmp_path, dtype=jnp.bfloat16)
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_leaves_go_straight_to_their_sharding(llama):
    mesh = models.make_mesh(tensor=2)
    _, params, _ = models.load(llama, sharding=models.place(mesh))
    assert params["layer_0"]["mlp"]["up"]["kernel"].addressable_shards[0].data.shape == (48, 40)
    assert params["layer_0"]["mlp"]["down"]["kernel"].addressable_shards[0].data.shape == (40, 48)
    assert params["embedding"].is_fully_replicated  # 89 tokens do not divide
    assert params["final_norm"]["scale"].sharding.mesh == mesh


@pytest.mark.parametrize("case", CASES)
def test_every_family_reads_what_it_writes(case):
    model_type = CASES[case][0]
    config = read_config(transformers.AutoConfig.for_model(model_type, **options(case)).to_dict())
    written = write_config(config)
    assert written["model_type"] == model_type
    assert read_config(json.loads(json.dumps(written))) == config
    newer = transformers.AutoConfig.for_model(**written).to_dict()  # made of the older format
    assert read_config(newer) == config


def test_every_family_is_a_case():
    compared = {model_type for model_type, _ in CASES.values()}
    assert compared == {name for name, family in FAMILIES.items() if "ForMaskedLM" not in family.architecture}
