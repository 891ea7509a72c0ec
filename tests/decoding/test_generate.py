"""Generation against the whole-sequence forward, and what must hold of every batch of completions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.tree_util import Partial

from jaxrl4lm.decoding import Sampling, generate, min_new_tokens, repetition_penalty, stream, top_k, top_p
from jaxrl4lm.models import LanguagePolicy, TransformerConfig
from tests.selection import slow_but

V, EOS, PAD = 11, 1, 0
CONFIG = TransformerConfig(V, layers=2, width=32, heads=4, kv_heads=2)


@pytest.fixture(scope="module")
def model():
    policy = LanguagePolicy(CONFIG)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(policy.init, jax.random.key(3))
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape, scale=0.15), jnp.float32), shapes)
    prompts = jnp.asarray(rng.integers(2, V, (3, 6)))
    mask = jnp.asarray(np.arange(6)[None] >= np.array([0, 2, 4])[:, None])
    return policy, params, prompts, mask


def run(model, key, rows=slice(None), n=12, copies=4, **options):
    policy, params, prompts, mask = model
    offset = options.pop("row_offset", 0)
    sampling = Sampling(n, **{"eos_id": EOS, "pad_id": PAD, "temperature": 1.3, "copies": copies, **options})
    out = jax.jit(
        lambda params, key: generate(
            policy, params, prompts[rows], mask[rows], key, sampling, row_offset=offset
        )
    )(params, key)
    return jax.device_get(out)


@pytest.fixture(scope="module")
def sampled(model):
    return run(model, jax.random.key(0))


def teacher_forced(model, out, copies=4):
    policy, params, prompts, mask = model
    tokens = np.concatenate([np.repeat(prompts, copies, 0), out.tokens], 1)
    mask = np.concatenate([np.repeat(mask, copies, 0), out.mask], 1)
    logits, values = jax.device_get(jax.jit(policy.apply)(params, tokens, mask))
    return logits[:, 5:], values[:, 5:]


def log_probs_of(tokens, logits):
    log_probs = scipy.special.log_softmax(logits, axis=-1)
    return np.take_along_axis(log_probs, tokens[..., None], -1)[..., 0]


def test_log_probs_and_values_are_those_of_the_whole_sequence(model, sampled):
    logits, values = teacher_forced(model, sampled)
    chosen = log_probs_of(sampled.tokens, logits[:, :-1] / 1.3)
    np.testing.assert_allclose(sampled.log_probs, np.where(sampled.mask, chosen, 0), atol=5e-6)
    np.testing.assert_allclose(sampled.values, np.where(sampled.mask, values[:, :-1], 0), atol=5e-6)
    np.testing.assert_allclose(sampled.final_values, np.where(sampled.truncated, values[:, -1], 0), atol=5e-6)
    assert sampled.truncated.any()
    assert not sampled.truncated.all()


def test_a_completion_ends_with_its_first_end_token_and_is_padded_after(sampled):
    tokens, mask = np.asarray(sampled.tokens), np.asarray(sampled.mask)
    for row, real, truncated in zip(tokens, mask, sampled.truncated, strict=True):
        length = real.sum()
        assert real[:length].all()
        assert (row[length:] == PAD).all()
        assert not (row[: length - 1] == EOS).any()
        assert (row[length - 1] == EOS) != truncated
    assert not np.asarray(sampled.log_probs)[~mask].any()
    assert not np.asarray(sampled.values)[~mask].any()


def test_a_row_does_not_depend_on_its_batch(model, sampled):
    alone = run(model, jax.random.key(0), rows=slice(1, 2), row_offset=4)
    np.testing.assert_array_equal(alone.tokens, sampled.tokens[4:8])
    policy, params, prompts, mask = model
    wider = np.pad(prompts, ((0, 0), (3, 0)), constant_values=7), np.pad(mask, ((0, 0), (3, 0)))
    padded = run((policy, params, *wider), jax.random.key(0))
    np.testing.assert_array_equal(padded.tokens, sampled.tokens)
    longer = run(model, jax.random.key(0), n=15)
    np.testing.assert_array_equal(longer.tokens[:, :12], sampled.tokens)


def test_the_limit_of_temperature_zero_is_greedy(model):
    key = jax.random.key(0)
    best = run(model, key, temperature=None, copies=1)
    cold = run(model, key, temperature=1e-4, copies=1)
    np.testing.assert_array_equal(best.tokens, cold.tokens)
    logits, _ = teacher_forced(model, best, copies=1)
    np.testing.assert_array_equal(best.tokens, np.where(best.mask, logits[:, :-1].argmax(-1), PAD))


def test_all_sequences_of_a_small_model_come_with_their_probability():
    policy = LanguagePolicy(TransformerConfig(4, layers=1, width=8, heads=2))
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape, scale=0.5), jnp.float32), shapes)
    prompt = jnp.array([[2]])
    n, length = 10_000, 3
    out = jax.jit(
        lambda params, key: generate(
            policy, params, prompt, prompt > 0, key, Sampling(length, eos_id=-1, pad_id=0, copies=n)
        )
    )(params, jax.random.key(7))
    every = np.stack(np.meshgrid(*[np.arange(4)] * length, indexing="ij"), -1).reshape(-1, length)
    whole = np.concatenate([np.full((64, 1), 2), every], 1)
    logits = np.asarray(jax.jit(policy.apply)(params, whole)[0])
    expected = n * np.exp(log_probs_of(every, logits[:, :-1]).sum(1))
    counts = np.bincount(np.asarray(out.tokens) @ np.array([16, 4, 1]), minlength=64)
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert 63 - 5 * np.sqrt(126) < chi2 < 63 + 5 * np.sqrt(126)


@pytest.mark.parametrize("eos_id", slow_but([EOS, -1], [EOS]))
def test_a_stream_gives_the_same_tokens_as_they_come(model, eos_id):
    options = {"eos_id": eos_id, "temperature": 1.3}
    whole = run(model, jax.random.key(0), **options)
    policy, params, prompts, mask = model
    sampling = Sampling(12, pad_id=PAD, copies=4, **options)
    parts = list(stream(policy, params, prompts, mask, jax.random.key(0), sampling, chunk=5))
    assert [part[0].shape[1] for part in parts] == [5, 5, 2]
    np.testing.assert_array_equal(np.concatenate([tokens for tokens, _ in parts], 1), whole.tokens)
    np.testing.assert_array_equal(np.concatenate([real for _, real in parts], 1), whole.mask)


@pytest.mark.slow
def test_other_settings_of_the_same_parts_compile_nothing(model):
    policy, params, prompts, mask = model
    text, traces = (params, prompts, mask, jax.random.key(0)), []

    def own(logits, history):
        traces.append(history.step)
        return logits.at[:, 2].add(-1.0)

    def sampling(temperature, penalty, p, soonest, stop, own=own):
        penalties = (repetition_penalty(penalty), min_new_tokens(soonest, (EOS,)), own)
        parts = {"penalties": penalties, "truncations": (top_k(9), top_p(p))}
        return Sampling(8, EOS, PAD, 4, temperature, **parts, stop_sequences=jnp.array([stop]))

    settings = [(0.7, 1.5, 0.6, 2, (3, 4)), (1.6, 0.8, 0.95, 1, (-1, 6))]
    expected, traced = [], []
    for each in settings:
        expected.append(jax.jit(lambda each=each: generate(policy, *text, sampling(*each)).tokens)())
        traces.clear()
        parts = [tokens for tokens, _ in stream(policy, *text, sampling(*each), chunk=3)]
        traced.append(len(traces))
        together = np.concatenate(parts, 1)
        np.testing.assert_array_equal(together, expected[-1][:, : together.shape[1]])
    assert traced[0] > 0
    assert traced[1] == 0
    assert (expected[0] != expected[1]).any()
    stacked = [sampling(*each, own=Partial(own)) for each in settings]
    stacked = jax.tree.map(lambda *x: jnp.array(x), *stacked)
    population = jax.jit(jax.vmap(lambda each: generate(policy, *text, each).tokens))(stacked)
    np.testing.assert_array_equal(population, expected)


@pytest.mark.slow
def test_low_precision_decoding_lays_out_its_weights_once(model):
    policy, params, prompts, mask = model
    half = LanguagePolicy(dataclasses.replace(policy.config, dtype="bfloat16"))
    laid_out = half.for_decoding(params)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(laid_out) if x.ndim > 1)
    hidden = jax.random.normal(jax.random.key(0), (3, 32), jnp.bfloat16)
    logits = jax.jit(half.logits)
    np.testing.assert_allclose(logits(laid_out, hidden), logits(params, hidden), atol=1e-5)
    out = run((half, params, prompts, mask), jax.random.key(0))
    logits, _ = teacher_forced((half, params, prompts, mask), out)
    chosen = log_probs_of(out.tokens, logits[:, :-1] / 1.3)
    np.testing.assert_allclose(out.log_probs, np.where(out.mask, chosen, 0), atol=0.15)
