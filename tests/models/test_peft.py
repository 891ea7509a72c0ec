"""Adapters that `lora.save` wrote, in PEFT itself: the same logits, and merged the same model."""

import jax
import numpy as np
import pytest

from jaxrl4lm import models
from jaxrl4lm.models import LanguagePolicy, TransformerConfig, lora
from tests.selection import slow_but

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# PEFT asks transformers by a name that is about to go.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

V = 13
LLAMA = TransformerConfig(V, layers=2, width=16, heads=4, kv_heads=2, mlp_width=24, tied=False)
GPT2 = TransformerConfig.gpt2(V, layers=2, width=16, heads=4, context=16)
CASES = {
    "some layers": (LLAMA, ["q_proj", "v_proj"], {"q_proj", "v_proj"}),
    "all layers": (
        LLAMA,
        ["all-linear"],
        {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"},
    ),
    "three kernels in one tensor": (GPT2, ["c_attn"], {"c_attn"}),
    "one of the three": (GPT2, ["value"], {"c_attn"}),
    "all layers of GPT-2": (GPT2, ["all-linear"], {"c_attn", "c_proj", "c_fc"}),
    "one layer": (LLAMA, ["layer_1/mlp/up"], {"model.layers.1.mlp.up_proj"}),
}


@pytest.mark.parametrize("case", slow_but(CASES, ["some layers", "three kernels in one tensor", "one layer"]))
def test_peft_computes_the_same_logits_and_merges_to_the_same_model(case, tmp_path):
    config, words, targets = CASES[case]
    policy, rng = LanguagePolicy(config), np.random.default_rng(0)

    def draw(tree):
        return jax.tree.map(lambda x: (x + rng.normal(size=x.shape, scale=0.2)).astype(np.float32), tree)

    params = draw(policy.init(jax.random.key(0)))
    adapters = draw(lora.init(jax.random.key(1), params, 3, lora.match_targets(words, policy)))
    merged = lora.merge(params, adapters, 4.0 / 3)
    models.save(tmp_path / "base", policy, params)
    models.save(tmp_path / "merged", policy, merged)
    lora.save(tmp_path / "adapter", policy, adapters, 4.0, dropout=0.1, base=str(tmp_path / "base"))

    ids = rng.integers(0, V, (2, 8))
    base, ours = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("base", "merged")
    )
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert theirs.peft_config["default"].target_modules == targets
    with torch.no_grad():
        logits = theirs(torch.tensor(ids)).logits
    plain, expected = (policy.apply(each, ids)[0] for each in (params, merged))
    assert np.abs(plain - expected).max() > 1e-2
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    weights = theirs.merge_and_unload().state_dict()
    assert weights.keys() == ours.state_dict().keys()
    for name, tensor in ours.state_dict().items():
        np.testing.assert_allclose(weights[name], tensor, atol=1e-6, err_msg=name)
