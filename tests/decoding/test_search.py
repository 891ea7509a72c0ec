"""Beam search against exhaustive search and transformers; scores against plain log-softmax; the small
builders."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxrl4lm import models
from jaxrl4lm.decoding import Sampling, beam_search, best_of, few_shot, generate, generate_queue, score
from jaxrl4lm.decoding.generation import empty_generation
from jaxrl4lm.decoding.processors import frequency_penalty, min_new_tokens, repetition_penalty, top_k
from jaxrl4lm.decoding.sampling import ends
from tests.selection import slow_but

EOS, PAD = 1, 0
# Compiled once for each configuration.
apply, score_all = jax.jit(models.LanguagePolicy.apply, static_argnums=0), jax.jit(score, static_argnums=0)


def model(vocab, scale=0.6, **sizes):
    config = models.TransformerConfig(vocab, **{"layers": 1, "width": 16, "heads": 2, **sizes})
    policy = models.LanguagePolicy(config)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    return policy, jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape, scale=scale), jnp.float32), shapes
    )


@pytest.mark.parametrize("length_penalty", slow_but([0.0, 1.0, 2.0], [1.0]))
def test_a_beam_as_wide_as_the_tree_is_exhaustive_search(length_penalty):
    vocab, length = 4, 3
    policy, params = model(vocab)
    prompts = np.array([[2, 3], [0, 2]])
    mask = prompts > 0
    out = jax.jit(
        lambda params: beam_search(
            policy,
            params,
            prompts,
            mask,
            beams=vocab**length,
            max_new_tokens=length,
            eos_id=EOS,
            pad_id=PAD,
            length_penalty=length_penalty,
        )
    )(params)
    texts = list(itertools.product(range(vocab), repeat=length))
    ends = [t.index(EOS) + 1 if EOS in t else length for t in texts]
    for g in range(2):
        every = np.concatenate([prompts[g][None].repeat(len(texts), 0), texts], 1)
        every_mask = np.concatenate(
            [mask[g][None].repeat(len(texts), 0), np.ones((len(texts), length), bool)], 1
        )
        log_probs = np.asarray(score_all(policy, params, every, every_mask))[:, 2:]
        scores = {
            t[:n]: log_probs[i, :n].sum() / n**length_penalty
            for i, (t, n) in enumerate(zip(texts, ends, strict=True))
        }
        best = sorted(scores.items(), key=lambda item: -item[1])[:10]
        found = (np.asarray(x[g]) for x in (out.tokens, out.mask, out.scores))
        for (text, expected), row, real, got in zip(best, *found, strict=False):
            assert tuple(row[: real.sum()].tolist()) == text
            np.testing.assert_allclose(got, expected, atol=1e-5)
            assert not row[real.sum() :].any()


@pytest.mark.parametrize("patient", slow_but([True, False], 1))
def test_beams_are_those_of_transformers(patient, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    policy, params = model(19, scale=0.4, layers=2, width=32)
    models.save(tmp_path, policy, params)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    prompts = np.random.default_rng(2).integers(2, 19, (5, 4))
    mask = np.arange(4) >= np.array([0, 1, 2, 0, 3])[:, None]
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 7, "do_sample": False}
    expected = theirs.generate(
        torch.from_numpy(np.where(mask, prompts, 0)),
        attention_mask=torch.from_numpy(mask).long(),
        eos_token_id=EOS,
        pad_token_id=PAD,
        early_stopping="never" if patient else True,
        length_penalty=0.8,
        **options,
    ).numpy()[:, 4:]
    out = jax.jit(
        lambda params: beam_search(
            policy,
            params,
            jnp.array(prompts),
            jnp.array(mask),
            beams=3,
            max_new_tokens=7,
            eos_id=EOS,
            pad_id=PAD,
            length_penalty=0.8,
            patient=patient,
        )
    )(params)
    ours = np.asarray(out.tokens).reshape(15, 7)
    # Theirs fills what follows the end with the end token when the pad token's id is 0.
    ended = np.cumsum(expected == EOS, -1) - (expected == EOS) > 0
    np.testing.assert_array_equal(ours[:, : expected.shape[1]], np.where(ended, PAD, expected))
    assert not ours[:, expected.shape[1] :].any()
    assert (np.asarray(out.mask).sum(-1) < 7).any()


def test_beams_do_not_depend_on_the_batch():
    policy, params = model(11, scale=0.4)
    prompts = jnp.array(np.random.default_rng(3).integers(2, 11, (6, 3)))
    search = jax.jit(
        lambda prompts: beam_search(
            policy,
            params,
            prompts,
            prompts > 0,
            beams=3,
            max_new_tokens=10,
            eos_id=(1, 2, 3),
            pad_id=PAD,
            patient=False,
        )
    )
    together = search(prompts)
    for row in range(6):
        alone = search(prompts[row : row + 1])
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])
        np.testing.assert_allclose(together.scores[row], alone.scores[0], atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", slow_but([7, 5, 100], 1))
def test_scores_are_the_log_softmax_whatever_the_chunk(tied, chunk):
    policy, params = model(23, tied=tied, logit_softcap=4.0)
    tokens = np.random.default_rng(0).integers(0, 23, (3, 8))
    mask = np.array([[1] * 8, [0] * 3 + [1] * 5, [1] * 6 + [0] * 2], bool)
    ours = jax.jit(lambda p: score(policy, p, tokens, mask, temperature=0.7, chunk=chunk))(params)
    ours = np.asarray(ours)
    log_probs = scipy.special.log_softmax(np.asarray(apply(policy, params, tokens, mask)[0]) / 0.7, -1)
    chosen = np.take_along_axis(log_probs[:, :-1], tokens[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(ours[:, 1:], np.where(mask[:, 1:] & mask[:, :-1], chosen, 0), atol=1e-5)
    assert not ours[:, 0].any()


@pytest.mark.parametrize("how", slow_but([generate, lambda *args: generate_queue(*args, slots=2)], 1))
def test_a_completion_beyond_a_learned_table_is_refused(how):
    policy = models.LanguagePolicy(models.TransformerConfig.gpt2(13, layers=1, width=8, heads=2, context=8))
    run = jax.jit(how, static_argnums=0)
    prompts = np.ones((2, 5), np.int32)
    arguments = (policy, jax.jit(policy.init)(jax.random.key(0)), prompts, prompts > 0, jax.random.key(1))
    assert run(*arguments, Sampling(3, -1, PAD)).tokens.shape == (2, 3)
    with pytest.raises(ValueError, match="9 tokens do not fit the table of context 8"):
        run(*arguments, Sampling(4, -1, PAD))


def test_a_queue_gives_the_completions_of_the_whole_batch():
    policy, params = model(13, scale=0.3, context=32)
    prompts = np.random.default_rng(1).integers(2, 13, (6, 5))
    mask = np.arange(5)[None] >= np.array([0, 1, 2, 3, 0, 4])[:, None]
    sampling = Sampling(
        max_new_tokens=9,
        eos_id=(EOS, 5),
        pad_id=PAD,
        copies=3,
        penalties=(frequency_penalty(0.3), repetition_penalty(1.5), min_new_tokens(1, (EOS,))),
        truncations=(top_k(9),),
        entropy=True,
        alternatives=2,
    )
    key = jax.random.key(3)
    whole = jax.jit(lambda p: generate(policy, p, prompts, mask, key, sampling))(params)
    queue = jax.jit(lambda p: generate_queue(policy, p, prompts, mask, key, sampling, slots=4))(params)
    np.testing.assert_array_equal(queue.tokens, whole.tokens)
    assert whole.truncated.any()
    assert len(np.unique(whole.mask.sum(-1))) > 3
    for name in whole._fields:
        expected = getattr(whole, name)
        if name in ("entropy", "top_log_probs", "top_tokens"):
            real = np.asarray(whole.mask).reshape(18, 9, *(1,) * (expected.ndim - 2))
            expected = np.where(real, expected, 0)
        np.testing.assert_allclose(getattr(queue, name), expected, atol=1e-5, err_msg=name)


def test_stop_sequences_end_a_completion():
    policy, params = model(7, scale=0.3)
    prompts = jnp.array([[2, 3]])
    stops = jnp.array([[-1, 3, 4], [5, 5, 2]])
    sampling = Sampling(20, EOS, PAD, copies=64, stop_sequences=stops)
    out = jax.jit(lambda p: generate(policy, p, prompts, prompts > 0, jax.random.key(0), sampling))(params)
    by_sequence = 0
    for row, real, truncated in zip(np.asarray(out.tokens), np.asarray(out.mask), out.truncated, strict=True):
        text = row[real].tolist()
        found = [
            i
            for i in range(len(text))
            if (text[i - 1 : i + 1] == [3, 4] and i) or text[max(i - 2, 0) : i + 1] == [5, 5, 2]
        ]
        ends = sorted([*found, *[i for i, x in enumerate(text) if x == EOS]])
        assert ends == ([] if truncated else [len(text) - 1])
        by_sequence += bool(found)
    assert by_sequence > 5


def test_a_stop_sequence_longer_than_the_text_has_not_ended_it():
    sampling = Sampling(4, EOS, PAD, stop_sequences=jnp.array([[5, 5, 2], [-1, 5, 2], [3, 3, 3]]))
    tokens = jnp.array([[5, 0, 0, 0], [5, 5, 0, 0], [3, 3, 0, 0]])
    assert ends(jnp.array([5, 5, 3]), tokens, jnp.int32(0), sampling).tolist() == [False] * 3
    only = Sampling(4, EOS, PAD, stop_sequences=sampling.stop_sequences[::2])
    chosen, step = jnp.array([2, 2, 3]), jnp.array([1, 2, 1])
    assert ends(chosen, tokens, step, sampling).tolist() == [True, True, False]
    assert ends(chosen, tokens, step, only).tolist() == [False, True, False]


def test_sizes_that_mean_nothing_are_refused():
    policy, params = model(7)
    prompts = jnp.array([[2, 3]])
    both = {"beams": 2, "max_new_tokens": 2, "eos_id": EOS, "pad_id": PAD}
    for change, message in (
        ({"beams": 0}, "at least 1, not 0 and 2"),
        ({"max_new_tokens": 0}, "at least 1, not 2 and 0"),
        ({"length_penalty": -1.0}, "length_penalty must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            beam_search(policy, params, prompts, prompts > 0, **{**both, **change})
    with pytest.raises(ValueError, match="slots must be at least 1, not 0"):
        generate_queue(
            policy, params, prompts, prompts > 0, jax.random.key(0), Sampling(2, EOS, PAD), slots=0
        )


def test_any_of_several_end_tokens_ends_a_completion():
    policy, params = model(7, scale=0.3)
    prompts = jnp.array([[2, 3]])
    sampling = Sampling(12, (EOS, 4, 6), PAD, copies=64)
    out = jax.jit(lambda p: generate(policy, p, prompts, prompts > 0, jax.random.key(0), sampling))(params)
    for row, real, truncated in zip(np.asarray(out.tokens), np.asarray(out.mask), out.truncated, strict=True):
        found = [i for i, token in enumerate(row[real]) if token in (EOS, 4, 6)]
        assert found == ([] if truncated else [real.sum() - 1])
    assert {1, 4, 6} <= set(np.asarray(out.tokens)[~np.asarray(out.truncated)].reshape(-1).tolist())


def test_best_of_takes_the_best_of_each_group():
    out = empty_generation(6, Sampling(4, EOS, PAD, entropy=True))
    out = out._replace(tokens=jnp.arange(24).reshape(6, 4), truncated=jnp.arange(6) == 3)
    best = best_of(out, jnp.array([0.0, 2.0, 1.0, 5.0, 3.0, 4.0]), 3)
    np.testing.assert_array_equal(best.tokens, out.tokens[jnp.array([1, 3])])
    assert best.truncated.tolist() == [False, True]
    assert best.top_tokens is None
    best = best_of(out, jnp.array([np.nan, -2.0, -1.0, *[np.nan] * 3]), 3)  # a judge that fails never wins
    np.testing.assert_array_equal(best.tokens, out.tokens[jnp.array([2, 3])])
    best = best_of(out, jnp.array([0, 2, 1, 5, 3, 4]), 3)
    np.testing.assert_array_equal(best.tokens, out.tokens[jnp.array([1, 3])])
    with jax.enable_x64(True):  # equal in float32
        best = best_of(out, np.array([1, 1 + 1e-12, 0] * 2), 3)
    np.testing.assert_array_equal(best.tokens, out.tokens[jnp.array([1, 4])])
    best = best_of(out, jnp.array([np.nan, -np.inf, np.nan, 1.0, np.inf, 2.0]), 3)
    np.testing.assert_array_equal(best.tokens, out.tokens[jnp.array([1, 4])])


def test_few_shot_prompts_show_the_examples_and_leave_the_last_output_open():
    prompt = few_shot(
        [("1+1", "2"), ("2+3", "5")], "4+4", template="{input} = {output}\n", instruction="Add.\n"
    )
    assert prompt == "Add.\n1+1 = 2\n2+3 = 5\n4+4 ="
    with pytest.raises(ValueError, match="must hold"):
        few_shot([], "x", template="{output} {input}")
