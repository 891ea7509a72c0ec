"""What each option of a configuration does: every one is seen by the parity test, in either format of the
files."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from jaxrl4lm.models import CheckpointError, LanguagePolicy, Rope, TransformerConfig
from jaxrl4lm.models.families import read_config, write_config
from tests.selection import slow_but

SIZES = {
    "vocab_size": 31,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "rope_theta": 100.0,
}
LAYER_TYPES = ["sliding_attention", "full_attention"]
SCALES = {"query_pre_attn_scalar": 7, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.0}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 12}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
LONGROPE = {"rope_scaling": {"type": "longrope", "short_factor": [1.0, 2.0, 3.0, 4.0]}}
LONGROPE["rope_scaling"]["long_factor"] = [2.0, 3.0, 6.0, 11.0]
LONGROPE |= {"head_dim": 8, "max_position_embeddings": 64, "original_max_position_embeddings": 12}
# Configurations as transformers 4 writes them.
OLDER = {
    "llama": {"rope_scaling": LLAMA3},
    "llama_yarn": {"model_type": "llama", "rope_scaling": YARN},
    "gemma2": {**SCALES, "sliding_window": 5, "hidden_activation": "gelu_pytorch_tanh"},
    "gemma3_text": {**SCALES, "sliding_window": 5, "sliding_window_pattern": 2, "rope_local_base_freq": 10.0},
    "gpt_neox": {"rotary_pct": 0.5, "rotary_emb_base": 100.0, "hidden_act": "gelu"},
    "qwen2": {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1},
    "smollm3": {"no_rope_layers": [1, 0]},
    "phi3": {"partial_rotary_factor": 0.5, "sliding_window": 5},
    "phi3_longrope": {"model_type": "phi3", **LONGROPE},
    "olmo2": {},
}


def config_of(case):
    return read_config({**SIZES, "model_type": case, **OLDER[case]})


@functools.cache
def logits_of(config):
    """Logits of a configuration at one set of random parameters of each shape."""
    policy = LanguagePolicy(config)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    params = jax.tree.map(lambda x: rng.normal(size=x.shape, scale=0.3).astype(np.float32), shapes)
    return np.asarray(jax.jit(policy.apply)(params, rng.integers(0, 31, (2, 16)))[0])


MUTATIONS = [
    ("llama", {"norm_eps": 1e-5}),
    ("llama", {"activation": "gelu"}),
    ("llama", {"ropes": (Rope(100.0),) * 2}),
    ("llama", {"ropes": (Rope(100.0, "linear", 4.0),) * 2}),
    ("llama_yarn", {"ropes": (Rope(100.0, "yarn", 4.0, 8, attention_factor=1.0),) * 2}),
    ("llama_yarn", {"ropes": (Rope(150.0, "yarn", 4.0, 8),) * 2}),
    ("gemma2", {"windows": (6, None)}),
    ("gemma2", {"windows": (None, 5)}),
    ("gemma2", {"attention_softcap": None}),
    ("gemma2", {"logit_softcap": None}),
    ("gemma2", {"attention_scale": None}),
    ("gemma2", {"embedding_scale": 1.0}),
    ("gemma2", {"activation": "gelu"}),
    ("gemma3_text", {"ropes": (Rope(100.0),) * 2}),
    ("gpt_neox", {"parallel": False}),
    ("gpt_neox", {"rope_dim": 8}),
    ("gpt_neox", {"activation": "gelu_tanh"}),
    ("gpt_neox", {"norm": "rms"}),
    ("qwen2", {"windows": (None, 4)}),
    ("smollm3", {"ropes": (Rope(100.0),) * 2}),
    ("phi3", {"rope_dim": None}),
    ("phi3_longrope", {"ropes": (Rope(100.0),) * 2}),
    ("olmo2", {"qk_norm": "none"}),
]


@pytest.mark.parametrize(
    "case, change", slow_but(MUTATIONS, 6), ids=lambda x: x if isinstance(x, str) else next(iter(x))
)
def test_every_option_changes_the_logits_by_more_than_the_parity_tests_allow(case, change):
    config = config_of(case)
    plain, changed = logits_of(config), logits_of(dataclasses.replace(config, **change))
    assert np.abs(plain - changed).max() / np.abs(plain).max() > 7e-5


@pytest.mark.parametrize("case", OLDER)
def test_the_newer_format_of_transformers_means_the_same(case):
    transformers = pytest.importorskip("transformers")
    config = config_of(case)
    hf = {**SIZES, "model_type": case, **OLDER[case]}
    newer = transformers.AutoConfig.for_model(**json.loads(json.dumps(hf))).to_dict()
    assert "rope_parameters" in newer
    assert "rope_scaling" not in newer
    assert dataclasses.replace(read_config(newer), context=config.context) == config


@pytest.mark.parametrize(
    "hf, message",
    [
        (
            {"model_type": "phi3", "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4}},
            "'longrope' needs long_factor, max_position_embeddings, original_max_position_embeddings",
        ),
        ({"model_type": "phi3", **LONGROPE, "head_dim": 10}, "4 short and 4 long factors: give one .*, 5"),
        ({"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2}}, "rope type 'dynamic'"),
        (
            {"model_type": "phi3", "partial_rotary_factor": 1.5},
            "partial_rotary_factor is 1.5: give a fraction",
        ),
        ({"model_type": "llama", "hidden_act": "quick"}, "activation 'quick' is not one of silu"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "attention scaled by layer"),
        ({"model_type": None}, "model_type None is not one of gpt2"),
    ],
)
def test_options_that_are_not_supported_are_named(hf, message):
    with pytest.raises(CheckpointError, match=f"config.json: .*{message}"):
        read_config({**SIZES, **hf})


YARNS = [{}, {"attention_factor": 1.3}, {"beta_fast": 8.0}, {"beta_slow": 2.0}, {"truncate": False}]
YARNS += [{"original_max_position_embeddings": 64}, {"beta_fast": 1.0, "beta_slow": 1.0}]
YARNS += [{"beta_fast": 8.0, "beta_slow": 2.0, "truncate": False}]  # no channel turns so often
YARNS += [{"mscale": 0.7, "mscale_all_dim": 1.3}, {"mscale": 0.7}]  # one without the other weighs nothing
YARNS += [{"mscale": 0.7, "mscale_all_dim": 1.3, "attention_factor": 1.3}]


@pytest.mark.parametrize("changes", YARNS)
def test_frequencies_of_yarn_are_those_of_transformers(changes):
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    yarn = {
        "rope_type": "yarn",
        "rope_theta": 100.0,
        **{k: v for k, v in YARN.items() if k != "type"},
        **changes,
    }
    config = transformers.LlamaConfig(**{**SIZES, "max_position_embeddings": 64}, rope_parameters=yarn)
    frequencies, amplitude = ROPE_INIT_FUNCTIONS["yarn"](config, None)
    (rope, _) = read_config(config.to_dict()).ropes
    np.testing.assert_allclose(rope.frequencies(12), frequencies.numpy(), rtol=1e-6)
    assert rope.amplitude == pytest.approx(amplitude)


def test_the_first_gemma_files_name_another_activation_than_they_were_trained_with():
    assert read_config({**SIZES, "model_type": "gemma", "hidden_act": "gelu"}).activation == "gelu_tanh"


def test_partial_rotation_is_that_of_transformers():
    """Which ignores the key in most families: such a configuration is written as one that has it."""
    llama = {**SIZES, "model_type": "llama"}
    assert read_config({**llama, "partial_rotary_factor": 0.5}) == read_config(llama)
    config = TransformerConfig(17, layers=1, width=48, heads=4, kv_heads=2, rope_dim=6, family="llama")
    written = write_config(config)
    assert written["model_type"] == "phi3"
    assert read_config(written).rotated == 6
    with pytest.raises(CheckpointError, match="no Hugging Face model_type expresses"):
        write_config(dataclasses.replace(config, qk_norm="head"))
    with pytest.raises(
        CheckpointError, match=r"partial_rotary_factor 0\.5 is not supported beside .* 'linear'"
    ):
        read_config(
            {**llama, "partial_rotary_factor": 0.5, "rope_scaling": {"type": "linear", "factor": 2.0}}
        )


def test_what_a_file_leaves_out_of_gemma_3():
    hf = {k: v for k, v in SIZES.items() if not k.startswith("rope_")}
    ropes = read_config({**hf, "model_type": "gemma3_text", "num_hidden_layers": 6}).layer_ropes
    assert [rope.theta for rope in ropes] == [10_000.0] * 5 + [1e6]


def test_gpt_neox_says_whether_attention_and_mlp_are_parallel():
    config = read_config({**SIZES, "model_type": "gpt_neox", "head_dim": None})
    for parallel in (True, False):
        assert (
            write_config(dataclasses.replace(config, parallel=parallel))["use_parallel_residual"] is parallel
        )


def test_early_names_of_longrope_are_read():
    scaling = {**LONGROPE["rope_scaling"], "type": "su"}
    early = read_config({**SIZES, "model_type": "phi3", **LONGROPE, "rope_scaling": scaling})
    assert early == config_of("phi3_longrope")


def test_frequencies_of_the_scaled_kinds_are_between_plain_and_divided():
    plain = Rope(100.0).frequencies(32)
    for kind in ("linear", "llama3", "yarn"):
        scaled = Rope(100.0, kind, 4.0, 64).frequencies(32)
        assert (scaled <= plain * (1 + 1e-6)).all()
        assert (scaled >= plain / 4 * (1 - 1e-6)).all()
        assert np.isclose(scaled[-1], plain[-1] / 4)
        assert np.isclose(scaled[0], plain[0]) == (kind != "linear")
    rough, exact = (Rope(100.0, "yarn", 4.0, 64, truncate=t).frequencies(32) for t in (True, False))
    assert not np.allclose(rough, exact)


def test_what_transformers_wants_in_a_gemma_file_is_there():
    sizes = {"layers": 2, "width": 16, "heads": 2, "norm_offset": 1.0, "embedding_scale": 4.0}
    gemma2 = TransformerConfig(
        11, **sizes, norm_placement="both", activation="gelu_tanh", attention_softcap=5.0
    )
    assert write_config(gemma2)["model_type"] == "gemma2"
    assert write_config(gemma2)["sliding_window"] > 0  # although no layer has one
    ropes = (Rope(1e4, "linear", 2.0), Rope(1e6))
    style = {"norm_placement": "both", "qk_norm": "head", "activation": "gelu_tanh", "windows": (4, None)}
    gemma3 = TransformerConfig(11, **sizes, **style, ropes=ropes)
    written = write_config(gemma3)
    assert written["model_type"] == "gemma3_text"
    assert read_config(written).layer_ropes == ropes
    with pytest.raises(CheckpointError, match="use_bidirectional_attention"):
        read_config({**written, "use_bidirectional_attention": True})


def test_a_stretch_that_no_family_expresses_is_refused():
    rope = Rope(1e4, "yarn", 4.0)
    with pytest.raises(CheckpointError, match="no Hugging Face model_type expresses"):
        write_config(TransformerConfig(11, ropes=(rope, Rope(1e4, "linear", 2.0))))
