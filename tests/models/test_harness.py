"""Folders of ours in EleutherAI's lm-evaluation-harness: its log-likelihoods are those of `decoding.score`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import decoding, models
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxrl4lm.models import LanguagePolicy, TransformerConfig
from tests.model_folders import byte_tokenizer

TEXTS = [
    ("The capital of France is", " Paris"),
    ("2 + 2 =", " 4"),
    ("x", " and a longer continuation, with é"),
]


@pytest.mark.slow
def test_log_likelihoods_are_those_of_the_harness(tmp_path):
    pytest.importorskip("lm_eval", reason="needs the extra 'peers'")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    backend = byte_tokenizer(["<eos>"])
    policy = LanguagePolicy(TransformerConfig.gpt2(257, layers=2, width=32, heads=2, context=64))
    params = jax.tree.map(lambda x: 3 * x, jax.jit(policy.init)(jax.random.key(0)))
    models.save(
        tmp_path, policy, params, HuggingFaceTokenizer(backend, 0, 256, config={"eos_token": "<eos>"})
    )
    model = HFLM(pretrained=str(tmp_path), device="cpu", batch_size=2, dtype="float32")
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(TEXTS)]
    theirs = model.loglikelihood(asked, disable_tqdm=True)

    policy, params, _ = models.load(tmp_path)
    for (prompt, completion), (likelihood, greedy) in zip(TEXTS, theirs, strict=True):
        tokens = jnp.array([backend.encode(prompt + completion).ids])
        begin = len(backend.encode(prompt).ids)
        ours = decoding.score(policy, params, tokens)[0, begin:].sum()
        np.testing.assert_allclose(ours, likelihood, rtol=1e-4)
        assert not greedy
