"""The decoder: what must hold of any causal model, on a plain style and on one with every option."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm.decoding import score
from jaxrl4lm.models import Carry, LanguagePolicy, Rope, TransformerConfig, parameter_count
from jaxrl4lm.models.attention import attend
from jaxrl4lm.models.dense import dense
from tests.selection import slow_but

V, T = 17, 9
STYLES = {
    "gpt2": TransformerConfig.gpt2(V, layers=2, width=32, heads=4, context=32),
    "llama": TransformerConfig(V, layers=2, width=32, heads=4, kv_heads=2, tied=False),
    "everything": TransformerConfig(
        V,
        layers=2,
        width=32,
        heads=4,
        kv_heads=2,
        head_dim=12,
        norm_offset=1.0,
        norm_placement="both",
        qk_norm="head",
        ropes=(Rope(100.0, "yarn", 4.0, 8), None),
        rope_dim=8,
        windows=(4, None),
        qkv_bias=True,
        activation="gelu_tanh",
        attention_scale=0.2,
        attention_softcap=2.0,
        logit_softcap=3.0,
        embedding_scale=5.0,
    ),
}

# Compiled once for each configuration.
apply, completion_hidden, step = (
    jax.jit(f, static_argnums=0)
    for f in (LanguagePolicy.apply, LanguagePolicy.completion_hidden, LanguagePolicy.step)
)
start = jax.jit(LanguagePolicy.start, static_argnums=(0, 4, 5))


def randomised(policy, seed=0):
    """Parameters with nothing left at a special value."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape, scale=0.2), jnp.float32), shapes)


@pytest.fixture(scope="module", params=slow_but(STYLES, ["gpt2", "everything"]))
def model(request):
    policy = LanguagePolicy(STYLES[request.param])
    params = randomised(policy)
    tokens = np.random.default_rng(2).integers(0, V, (4, T))
    return policy, params, tokens


def test_no_output_depends_on_a_later_token(model):
    policy, params, _ = model
    positions = np.arange(T)[None]

    def hidden(embedding):  # of the tokens 0, 1, 2 ...: each row of the table is read at one position
        return policy.encode({**params, "embedding": embedding}, positions, positions)[0][0]

    jacobian = jax.jit(jax.jacrev(hidden))(params["embedding"])  # [T, D, V, D]
    reach = np.abs(np.asarray(jacobian)).sum((1, 3))[:, :T]
    assert not np.triu(reach, 1).any()
    assert reach[np.tril_indices(T)].all()


def test_step_by_step_is_the_whole_sequence(model):
    policy, params, tokens = model
    whole, values = map(np.asarray, apply(policy, params, tokens))
    hidden, carry = start(policy, params, tokens[:, :4], np.ones((4, 4), bool), 1, T)
    logits, value = jax.jit(policy.logits), jax.jit(policy.values)
    for t in range(4, T + 1):
        np.testing.assert_allclose(logits(params, hidden), whole[:, t - 1], atol=1e-5)
        np.testing.assert_allclose(value(params, hidden), values[:, t - 1], atol=1e-5)
        if t < T:
            hidden, carry = step(policy, params, carry, tokens[:, t])


@pytest.mark.parametrize("side", ["left", "right", "both", "inside"])
def test_padding_changes_nothing_wherever_it_stands_and_whatever_it_holds(model, side):
    policy, params, tokens = model
    plain = apply(policy, params, tokens)
    real = {"left": [0] * 3 + [1] * T, "right": [1] * T + [0] * 3, "both": [0] + [1] * T + [0, 0]}
    real["inside"] = [1] * 4 + [0] * 3 + [1] * (T - 4)
    mask = np.tile(np.array(real[side], bool), (4, 1))
    for junk in (0, V - 1):
        padded = np.full((4, T + 3), junk)
        padded[mask] = tokens.reshape(-1)
        for x, y in zip(apply(policy, params, padded, mask), plain, strict=True):
            np.testing.assert_allclose(np.asarray(x)[mask].reshape(y.shape), y, atol=1e-5)


def test_a_shared_prompt_is_the_prompt_repeated(model):
    policy, params, tokens = model
    prompts, completions = tokens[:2, :4], np.arange(4 * 5).reshape(4, 5) * 7 % V
    mask = np.arange(4)[None] >= np.array([[0], [1]])
    whole = np.concatenate([prompts.repeat(2, 0), completions], 1)
    whole_mask = np.concatenate([mask.repeat(2, 0), np.ones((4, 5), bool)], 1)

    def shared(params):
        hidden = policy.completion_hidden(params, prompts, mask, completions)
        return policy.logits(params, hidden)

    def repeated(params):
        return policy.apply(params, whole, whole_mask)[0][:, 3:-1]

    weights = np.random.default_rng(3).normal(size=(4, 5, V)).astype(np.float32)

    @jax.jit
    def both(params):
        def loss(params, f):
            logits = f(params)
            return (logits * weights).mean(), logits

        return [jax.grad(loss, has_aux=True)(params, f) for f in (shared, repeated)]

    (ours, logits), (plain, expected) = both(params)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    chex.assert_trees_all_close(ours, plain, atol=2e-6)


@pytest.mark.slow
def test_longrope_takes_the_factors_of_the_length_that_a_text_may_reach():
    """Row by row, and the same in sampling and in training: by the prompt and the room after it."""
    rope = Rope(100.0, "longrope", 4.0, 8, short_factors=(1.0, 1.5), long_factors=(3.0, 7.0))
    config = TransformerConfig(V, layers=2, width=16, heads=4, ropes=(rope, rope))
    policy = LanguagePolicy(config)
    params = randomised(policy)

    def fixed(long, *args):
        same = rope.long_factors if long else rope.short_factors
        plain = dataclasses.replace(rope, short_factors=same, long_factors=same)
        return LanguagePolicy(dataclasses.replace(config, ropes=(plain, plain))), args

    rng = np.random.default_rng(2)
    tokens = rng.integers(0, V, (2, 10))
    mask = np.arange(10)[None] >= np.array([[0], [2]])  # 10 tokens, and 8: one beyond the original context
    ours = np.asarray(apply(policy, params, tokens, mask)[0])
    for row, long in enumerate([True, False]):
        other, (one, real) = fixed(long, tokens[row : row + 1], mask[row : row + 1])
        np.testing.assert_allclose(ours[row : row + 1], apply(other, params, one, real)[0], atol=1e-6)
    prompts, completions = tokens[:, :5], rng.integers(0, V, (2, 4))
    mask = np.arange(5)[None] >= np.array([[0], [2]])  # 5 + 4 tokens, and 3 + 4
    trained = np.asarray(completion_hidden(policy, params, prompts, mask, completions))
    hidden, carry = start(policy, params, prompts, mask, 1, 4)
    for t in range(4):
        np.testing.assert_allclose(hidden, trained[:, t], atol=1e-5)
        hidden, carry = step(policy, params, carry, completions[:, t])
    for row, long in enumerate([True, False]):
        other, args = fixed(long, *(x[row : row + 1] for x in (prompts, mask, completions)))
        np.testing.assert_allclose(trained[row : row + 1], completion_hidden(other, params, *args), atol=1e-5)


def test_texts_beyond_a_learned_table_are_refused():
    policy = LanguagePolicy(STYLES["gpt2"])  # 32 positions
    params = randomised(policy)
    ones = np.ones((1, 30), bool)
    start(policy, params, ones.astype(int), ones, 1, 2)
    with pytest.raises(ValueError, match="33 tokens do not fit the table of context 32"):
        start(policy, params, ones.astype(int), ones, 1, 3)
    with pytest.raises(ValueError, match="40 tokens do not fit"):
        apply(policy, params, np.zeros((1, 40), np.int32))
    tokens, at = np.zeros((1, 40), np.int32), np.arange(40)[None]
    assert policy.hidden(params, tokens, at >= 8).shape[1] == 40  # 32 tokens and padding
    with pytest.raises(ValueError, match="33 tokens do not fit"):
        policy.completion_hidden(params, tokens[:, :30], at[:, :30] >= 0, tokens[:, :3])
    for function in (policy.apply, policy.hidden, functools.partial(score, policy)):
        with pytest.raises(ValueError, match="33 tokens do not fit"):
            function(params, tokens, at >= 7)


def test_the_value_head_starts_at_zero_and_reads_the_hidden_states(key):
    config = TransformerConfig(V, layers=1, width=8, heads=2)
    policy = LanguagePolicy(config)
    params = jax.jit(policy.init)(key)
    tokens = np.arange(5)[None]
    assert not np.any(apply(policy, params, tokens)[1])
    params["value_head"] = jnp.arange(8.0)
    hidden, _ = jax.jit(policy.encode)(params, tokens, tokens)
    np.testing.assert_allclose(apply(policy, params, tokens)[1], hidden @ np.arange(8.0), rtol=1e-5)


def test_attention_is_a_softmax_over_the_allowed_keys():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 6, heads, 8)).astype(np.float32) for heads in (4, 2, 2))
    positions = np.tile(np.arange(6), (2, 1))
    segment = (k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3), positions)
    ours = jax.jit(attend, static_argnums=(3, 4))(q, [segment], positions, 3, 1.5)
    expected = np.zeros((2, 6, 4, 8))
    for b in range(2):
        for t in range(6):
            for h in range(4):
                seen = slice(max(0, t - 2), t + 1)
                scores = 1.5 * np.tanh(k[b, seen, h // 2] @ q[b, t, h] / 1.5)
                weights = np.exp(scores) / np.exp(scores).sum()
                expected[b, t, h] = weights @ v[b, seen, h // 2]
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("by_output, rows", [(False, 2), (True, 2), (True, 70)])
def test_the_written_backward_of_dense_is_the_derivative(by_output, rows):
    rng = np.random.default_rng(0)
    x, kernel, bias = (rng.normal(size=s).astype(np.float32) for s in ((rows, 3, 4), (4, 5), (5,)))

    def run(x, kernel, bias):
        return jnp.sin(dense(x, kernel.T if by_output else kernel, bias, by_output=by_output)).sum()

    def plainly(x, kernel, bias):
        return jnp.sin(x @ kernel + bias[None, None]).sum()

    ours, plain = (jax.jit(jax.grad(f, (0, 1, 2)))(x, kernel, bias) for f in (run, plainly))
    chex.assert_trees_all_close(ours, plain, atol=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"width": 30}, "width 30 does not divide into heads 4"),
        ({"kv_heads": 3}, "heads 4 does not divide into kv_heads 3"),
        ({"width": 12}, "even head_dim, not 3"),
        ({"windows": (4,)}, "windows has 1 entries for 2 layers"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(V, **options)


def test_a_text_longer_than_the_position_table_is_refused(key):
    policy = LanguagePolicy(TransformerConfig.gpt2(V, layers=1, width=8, heads=2, context=8))
    params = jax.eval_shape(policy.init, key)
    with pytest.raises(ValueError, match="9 tokens do not fit the table of context 8"):
        jax.eval_shape(policy.apply, params, jnp.zeros((1, 9), jnp.int32))


def test_parameter_count(key):
    config = TransformerConfig.gpt2(10, layers=1, width=8, heads=2, context=6)
    block = 4 * (8 * 8 + 8) + 8 * 32 + 32 + 32 * 8 + 8 + 4 * 8
    assert (
        parameter_count(jax.eval_shape(LanguagePolicy(config).init, key))
        == 10 * 8 + 6 * 8 + block + 2 * 8 + 8
    )


def test_shapes_that_do_not_fit_are_refused():
    policy = LanguagePolicy(STYLES["llama"])
    two, three = np.zeros((2, 4), int), np.zeros((3, 4), int)
    with pytest.raises(ValueError, match=r"tokens has shape \(4,\): give token ids \[rows, tokens\]"):
        policy.apply({}, two[0])
    with pytest.raises(ValueError, match=r"mask of tokens has shape \(1, 4\): .* each token, \(2, 4\)"):
        policy.hidden({}, two, two[:1] == 0)
    with pytest.raises(ValueError, match=r"mask of prompts has shape \(4,\)"):
        policy.prefill({}, two, two[0] == 0, 3)
    with pytest.raises(ValueError, match="3 completions of 2 prompts: give each prompt as many"):
        policy.completion_hidden({}, two, two == 0, three)
    with pytest.raises(AssertionError, match=r"\(2, 1\)"):
        policy.step({}, Carry(None, None, jnp.zeros(2), jnp.int32(0)), jnp.zeros((2, 1), int))


def test_keys_and_values_of_one_segment_belong_together():
    q, keys, values = jnp.ones((2, 3, 2, 4)), jnp.ones((2, 1, 4, 5)), jnp.ones((2, 1, 5, 4))
    with pytest.raises(AssertionError, match=r"\(1, 5\)"):
        attend(q, [(keys, values, jnp.zeros((1, 5), int))], jnp.zeros((2, 3), int))
