"""Encoders: parity with transformers on random weights, round trips, and what they cannot do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import models
from jaxrl4lm.decoding import Sampling, generate
from jaxrl4lm.models.attention import EMPTY, attend
from jaxrl4lm.models.families import FAMILIES, read_config, write_config
from jaxrl4lm.models.tensor_files import Tensor, read_tensors, write_tensors
from jaxrl4lm.types import InputError
from tests.models.test_huggingface import batch, relative_error
from tests.selection import slow_but

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 89,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
DISTIL = {"vocab_size": 89, "dim": 48, "hidden_dim": 80, "n_layers": 2, "n_heads": 4}
DISTIL |= {"max_position_embeddings": 64, "pad_token_id": 0}
ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 200.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
MODERN = {**SIZES, "local_attention": 6, "bos_token_id": 1, "eos_token_id": 2}
MODERN |= {"cls_token_id": 1, "sep_token_id": 2}
BIASES = {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True}
ENCODERS = {
    "bert": ("bert", SIZES),
    "bert_untied": ("bert", {**SIZES, "tie_word_embeddings": False, "hidden_act": "relu"}),
    "roberta": ("roberta", {**SIZES, "pad_token_id": 1, "type_vocab_size": 1}),
    "distilbert": ("distilbert", DISTIL),
    "modernbert": ("modernbert", {**MODERN, "global_attn_every_n_layers": 2}),
    "modernbert_biased": ("modernbert", {**MODERN, **BIASES, "rope_parameters": ROPES}),
}


def make(case, auto, **changes):
    """A random model of transformers in which every parameter is random."""
    model_type, options = ENCODERS[case]
    config = transformers.AutoConfig.for_model(model_type, **options, **changes)
    torch.manual_seed(0)
    model = getattr(transformers, auto).from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if "orm" in name or name.endswith("bias") else 0.15
            parameter.add_(torch.randn(parameter.shape) * spread)
    return model


def token_types(case, tokens):
    """Parts of the texts, for the family that tells them apart."""
    return (tokens % 2).astype(np.int32) if case.startswith("bert") else None


@torch.no_grad()
def reference(case, model, tokens, mask):
    """What transformers makes of a padded batch; it counts positions over padding, unless it is told."""
    positions = np.maximum(np.cumsum(mask, -1) - 1, 0) + (2 if case == "roberta" else 0)
    inputs = {"attention_mask": torch.from_numpy(mask).long(), "position_ids": torch.from_numpy(positions)}
    if case.startswith("bert"):
        inputs["token_type_ids"] = torch.from_numpy(token_types(case, tokens)).long()
    return model(torch.from_numpy(tokens).long(), **inputs)


def load_back(auto, folder):
    """The model as transformers opens it, and the parameters that it did not find."""
    model, loading = getattr(transformers, auto).from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not loading["unexpected_keys"]
    return model.eval(), set(loading["missing_keys"])


@pytest.mark.parametrize("case", slow_but(ENCODERS, ["bert", "modernbert"]))
def test_logits_and_hidden_states_are_those_of_transformers_and_survive_the_way_back(case, tmp_path):
    tokens, mask = batch()
    for auto in ("AutoModelForMaskedLM", "AutoModel"):
        model = make(case, auto)
        model.save_pretrained(tmp_path / auto)
        policy, params, _ = models.load(tmp_path / auto)
        types = token_types(case, tokens)
        hidden = jax.jit(policy.hidden)(params, tokens, mask, None, types)
        theirs = reference(case, model, tokens, mask)
        name = "last_hidden_state" if auto == "AutoModel" else "logits"
        ours = hidden if auto == "AutoModel" else jax.jit(policy.apply)(params, tokens, mask, types)[0]
        assert relative_error(ours, getattr(theirs, name).numpy(), mask) < 1e-5
        models.save(tmp_path / "ours", policy, params)
        back, missing = load_back(auto, tmp_path / "ours")
        assert type(back) is type(model)
        assert all("pooler" in name for name in missing)
        again = getattr(reference(case, back, tokens, mask), name).numpy()
        assert relative_error(again, getattr(theirs, name).numpy(), mask) < 1e-6
        reread = models.load(tmp_path / "ours")[0]
        assert reread == policy
        assert reread.config.family == ENCODERS[case][0]


def test_what_old_files_call_otherwise_is_read(tmp_path):
    """Norms of the first BERT, the second name of a bias, what pretraining had beside the logits."""
    model = make("bert", "AutoModelForPreTraining")
    model.save_pretrained(tmp_path)
    _, params, _ = models.load(tmp_path)
    tensors = {n: np.array(t) for n, t in read_tensors(tmp_path).items()}
    assert any(name.startswith("cls.seq_relationship") for name in tensors)
    old = {
        n.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): t
        for n, t in tensors.items()
    }
    old["cls.predictions.decoder.bias"] = old.pop("cls.predictions.bias")  # both are one
    write_tensors(tmp_path, {n: Tensor(t.shape, t.dtype, lambda t=t: t) for n, t in old.items()})
    jax.tree.map(np.testing.assert_array_equal, models.load(tmp_path)[1], params)
    older = {"model_type": "modernbert", **SIZES, "local_attention": 8, "global_attn_every_n_layers": 3}
    config = read_config({**older, "global_rope_theta": 300.0, "local_rope_theta": 40.0})
    assert [rope.theta for rope in config.layer_ropes] == [300.0, 40.0, 40.0]
    assert config.layer_windows == (None, 5, 5)
    assert write_config(config)["global_attn_every_n_layers"] == 3


KINDS = {"sequence": "SequenceClassification", "token": "TokenClassification", "span": "QuestionAnswering"}
HEADS = [(case, kind) for case in ("bert", "roberta", "distilbert", "modernbert") for kind in KINDS]
HEADS += [("modernbert_mean", "sequence"), ("modernbert_biased", "token")]


@pytest.mark.parametrize("case, kind", slow_but(HEADS, [("roberta", "sequence"), ("modernbert", "span")]))
def test_task_heads_of_transformers_in_and_out(case, kind, tmp_path):
    auto = f"AutoModelFor{KINDS[kind]}"
    changes = {} if kind == "span" else {"num_labels": 3}
    if case == "modernbert_mean":
        case, changes = (
            "modernbert",
            {**changes, "classifier_pooling": "mean", "classifier_activation": "relu"},
        )
    model = make(case, auto, **changes)
    model.save_pretrained(tmp_path / "theirs")
    tokens, mask = batch()
    mask[:, 0] = mask[:, :7].all(1)  # they read the first column, we the first real token
    tokens, mask = tokens[mask[:, 0]], mask[mask[:, 0]]

    def outputs(model):
        out = reference(case, model, tokens, mask)
        return [x.numpy() for x in ((out.start_logits, out.end_logits) if kind == "span" else (out.logits,))]

    policy, params, head, _ = models.load_with_head(tmp_path / "theirs")
    hidden = jax.jit(policy.hidden)(params, tokens, mask, None, token_types(case, tokens))
    if kind == "span":
        ours = models.span_outputs(head, hidden, mask)
    else:
        sequence = kind == "sequence"
        ours = [
            models.sequence_outputs(head, hidden, mask) if sequence else models.token_outputs(head, hidden)
        ]
    real = np.ones(len(tokens), bool) if kind == "sequence" else mask
    theirs = outputs(model)
    for mine, other in zip(ours, theirs, strict=True):
        assert relative_error(mine, other, real) < 1e-5
    labels = [] if kind == "span" else ["no", "yes", "perhaps"]
    models.save_with_head(tmp_path / "ours", policy, params, head, kind, labels=labels)
    back, missing = load_back(auto, tmp_path / "ours")
    assert not missing
    assert type(back) is type(model)
    for one, other in zip(outputs(back), theirs, strict=True):
        assert relative_error(one, other, real) < 1e-6
    fresh = models.new_head(jax.random.key(0), policy, kind, head.bias.size)
    assert [x.shape for x in jax.tree.leaves(fresh)] == [x.shape for x in jax.tree.leaves(head)]
    models.save_with_head(tmp_path / "fresh", policy, params, fresh, kind)
    assert not load_back(auto, tmp_path / "fresh")[1]
    backbone, same, _ = models.load_backbone(tmp_path / "ours")
    assert backbone == policy
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_heads_and_logits_part(tmp_path):
    """A model that has logits loses them under a head; a head without its pooler is refused."""
    make("bert", "AutoModelForMaskedLM").save_pretrained(tmp_path / "masked")
    policy, params, _ = models.load(tmp_path / "masked")
    linear = models.init_head(jax.random.key(0), 48, 3)
    with pytest.raises(
        models.CheckpointError, match="BertForSequenceClassification has a pooler: make it by"
    ):
        models.save_with_head(tmp_path / "a", policy, params, linear, "sequence")
    models.save_with_head(tmp_path / "a", policy, params, linear, "token")
    assert not load_back("AutoModelForTokenClassification", tmp_path / "a")[1]
    backbone, same, _ = models.load_backbone(tmp_path / "masked")
    assert backbone == models.load_backbone(tmp_path / "a")[0]
    assert set(params) - set(same) == {"readout", "readout_norm", "unembedding_bias"}
    with pytest.raises(models.CheckpointError, match="has no task head"):
        models.load_with_head(tmp_path / "masked")


OPTIONS = {
    "bert": [{"embedding_norm": False}, {"causal": True}, {"norm_placement": "after"}, {"norm_eps": 1e-3}],
    "roberta": [{"position_offset": 1, "context": 63}],
    "modernbert": [
        {"windows": (None, 5, None)},
        {"ropes": (models.Rope(160_000.0),) * 3},
        {"norm_bias": True},
    ],
}


@pytest.mark.parametrize("case", OPTIONS)
def test_every_option_changes_the_hidden_states_by_more_than_the_parity_tests_allow(case):
    model_type, options = ENCODERS[case]
    config = read_config({"model_type": model_type, **options})
    tokens = batch()[0]

    def hidden(config):
        policy, rng = models.LanguagePolicy(config), np.random.default_rng(0)
        shapes = jax.eval_shape(policy.init, jax.random.key(0))
        params = jax.tree.map(lambda x: rng.normal(size=x.shape, scale=0.3).astype(np.float32), shapes)
        return np.asarray(jax.jit(policy.hidden)(params, tokens))

    plain = hidden(config)
    for change in OPTIONS[case]:
        assert (
            np.abs(plain - hidden(dataclasses.replace(config, **change))).max() / np.abs(plain).max() > 7e-5
        )


@pytest.fixture(scope="module")
def encoder():
    config = read_config({"model_type": "modernbert", **MODERN})
    policy = models.LanguagePolicy(config)
    return policy, jax.jit(policy.init)(jax.random.key(0))


HIDDEN = jax.jit(lambda policy, *inputs: policy.hidden(*inputs), static_argnums=0)


def test_tokens_read_both_sides_but_no_padding(encoder):
    policy, params = encoder
    tokens, mask = batch(length=12)

    def first(x):  # of the input embeddings, each scaled by its own x
        scaled = policy.hidden(
            {**params, "embedding": params["embedding"] * x[:, None]}, tokens[2:3], mask[2:3]
        )
        return jnp.square(scaled[0, 0]).sum()

    read = np.abs(np.asarray(jax.jit(jax.grad(first))(jnp.ones(89)))) > 0
    assert read[tokens[2, : mask[2].sum()]].all()
    assert not read[list({*tokens[2, mask[2].sum() :]} - {*tokens[2, : mask[2].sum()]})].any()
    alone = HIDDEN(policy, params, tokens[2:3, :7])
    np.testing.assert_allclose(HIDDEN(policy, params, tokens, mask)[2, :7], alone[0], atol=2e-6)


def test_a_window_reaches_to_both_sides():
    q = jax.random.normal(jax.random.key(0), (1, 6, 2, 4))
    k, v = q.transpose(0, 2, 3, 1), q.transpose(0, 2, 1, 3)
    positions = jnp.array([[0, 1, 2, 3, 4, EMPTY]])
    got = attend(q, [(k, v, positions)], positions, 2, None, False)
    scores = np.einsum("bqhc,bhck->bhqk", q, k)[..., :5, :]
    near = np.abs(np.arange(5)[:, None] - np.arange(6)) < 2
    near[:, 5] = False
    weights = np.exp(scores) * near
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(got[:, :5], np.einsum("bhqk,bhkc->bqhc", weights, v), rtol=1e-5)
    assert np.isfinite(got).all()


def test_an_encoder_is_no_decoder(encoder, tmp_path):
    policy, params = encoder
    tokens, mask = (jnp.asarray(x) for x in batch(length=8))
    sampling = Sampling(4, eos_id=-1, pad_id=0, temperature=None)
    with pytest.raises(
        InputError, match=r"is an encoder \(modernbert\).*cannot continue a text: use a decoder"
    ):
        generate(policy, params, tokens, mask, jax.random.key(0), sampling)
    hidden = HIDDEN(policy, params, tokens)
    with pytest.raises(InputError, match="is an encoder"):
        policy.token_log_probs(params, hidden, tokens)
    with pytest.raises(InputError, match="is an encoder"):
        policy.hidden(params, tokens, None, jnp.zeros_like(tokens))
    with pytest.raises(ValueError, match="a model of 0 types: leave them out"):
        policy.hidden(params, tokens, token_types=tokens)
    bare = models.LanguagePolicy(dataclasses.replace(policy.config, readout="none"))
    with pytest.raises(InputError, match="has no logits"):
        bare.apply(params, tokens)
    with pytest.raises(ValueError, match="the first lacks a norm"):
        dataclasses.replace(policy.config, scan=True)
    for options, message in (
        ({"is_decoder": True}, "run as a decoder"),
        ({"position_embedding_type": "relative_key"}, "'relative_key' is not supported"),
        ({"model_type": "roberta", "hidden_act": "relu"}, "not that of RoBERTa's logits"),
        ({"model_type": "modernbert", "decoder_bias": False}, r"logits without a bias \(decoder_bias\)"),
    ):
        with pytest.raises(models.CheckpointError, match=message):
            read_config({"model_type": "bert", **SIZES, **options})


def test_layers_as_one_loop_and_computed_again_are_the_same(tmp_path):
    model_type, options = ENCODERS["bert"]
    policy = models.LanguagePolicy(read_config({"model_type": model_type, **options}))
    params = jax.jit(policy.init)(jax.random.key(0))
    tokens, mask = batch(length=8)
    plain = HIDDEN(policy, params, tokens, mask)
    for change in ({"scan": True}, {"remat": "full"}):
        other = models.LanguagePolicy(dataclasses.replace(policy.config, **change))
        np.testing.assert_allclose(jax.jit(other.hidden)(params, tokens, mask), plain, atol=1e-5)


def test_every_encoder_is_compared():
    compared = {model_type for model_type, _ in ENCODERS.values()}
    assert compared == {name for name, family in FAMILIES.items() if family.architecture.endswith("MaskedLM")}
