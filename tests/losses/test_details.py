"""Identities and edges that the table does not hold."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import advantages, losses, reduce
from tests.selection import slow_but

rng = np.random.default_rng(1)
LOG_PROBS, OLD = (jnp.asarray(-rng.random((3, 5)) - 0.1, jnp.float32) for _ in range(2))
ADVANTAGES = jnp.asarray(rng.normal(size=(3, 1)), jnp.float32)
RATIO_LOSSES = [
    losses.ppo_clip,
    functools.partial(losses.ppo_clip, dual_clip=3.0),
    functools.partial(losses.ppo_kl_penalty, beta=0.1),
    losses.cispo,
    losses.sapo,
    losses.gspo,
    losses.gspo_token,
    losses.gmpo,
    losses.trpo.surrogate,
]


@pytest.mark.parametrize("loss", slow_but(RATIO_LOSSES, 3))
@pytest.mark.parametrize("gap", [1e2, 1e6, -1e2, -1e6])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_extreme_ratios_stay_finite(loss, gap, advantage):
    def total(x):
        return loss(x, jnp.full((1, 2), -1.0), jnp.full((1, 1), advantage)).sum()

    value, grad = jax.value_and_grad(total)(jnp.array([[-1.0, -1.0 + gap]]))
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize(
    "loss", [losses.ppo_clip, losses.trpo.surrogate, losses.cispo, losses.sapo, losses.ppo_kl_penalty]
)
def test_on_policy_the_gradient_is_that_of_reinforce(loss):
    rest = {"beta": 0.7} if loss is losses.ppo_kl_penalty else {}
    grad = jax.grad(lambda x: loss(x, LOG_PROBS, ADVANTAGES, **rest).sum())(LOG_PROBS)
    expected = jax.grad(lambda x: losses.reinforce(x, ADVANTAGES).sum())(LOG_PROBS)
    np.testing.assert_allclose(grad, expected, rtol=1e-6)


@pytest.mark.parametrize("loss", [losses.gspo, losses.gspo_token, losses.gmpo])
def test_on_policy_sequence_losses_have_the_gradient_of_reinforce(loss):
    """Their sequence means do: the exponent divides by the length."""
    grad = jax.grad(lambda x: reduce.sequence_mean(loss(x, LOG_PROBS, ADVANTAGES)))(LOG_PROBS)
    expected = jax.grad(lambda x: reduce.sequence_mean(losses.reinforce(x, ADVANTAGES)))(LOG_PROBS)
    np.testing.assert_allclose(grad, expected, rtol=1e-6)


def test_gspo_token_has_the_value_and_gradient_of_gspo():
    def mean(loss, x):
        return reduce.sequence_mean(loss(x, OLD, ADVANTAGES, clip_eps=0.5, clip_eps_high=0.5))

    for transform in (lambda f: f, jax.grad):
        a, b = (
            transform(functools.partial(mean, loss))(LOG_PROBS) for loss in (losses.gspo, losses.gspo_token)
        )
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_cispo_keeps_the_gradient_of_clipped_tokens():
    old = LOG_PROBS - 5.0
    grads = [
        jax.grad(lambda x, loss=loss: loss(x, old, jnp.ones((3, 1)), clip_eps_high=0.2).sum())(LOG_PROBS)
        for loss in (losses.ppo_clip, losses.cispo)
    ]
    np.testing.assert_array_equal(grads[0], 0)
    np.testing.assert_allclose(grads[1], -1.2)


def test_ratios_are_held_within_exp_of_20():
    np.testing.assert_allclose(
        losses.probability_ratio(jnp.array([1e3, -1e3])), np.exp([20.0, -20.0]), rtol=1e-6
    )


def test_the_bounds_of_masked_importance_weights_are_kept():
    weights = losses.masked_importance_weights(LOG_PROBS, LOG_PROBS, low=1.0, high=1.0)
    np.testing.assert_array_equal(weights, 1)


DEFAULTS = {
    losses.a2c: {"value_coef": 0.5, "entropy_coef": 0.01},
    losses.ppo_clip: {"clip_eps": 0.2, "clip_eps_high": None, "dual_clip": None},
    losses.sapo: {"temperature": 1.0, "negative_temperature": 1.05},
    losses.gspo: {"clip_eps": 3e-4, "clip_eps_high": 4e-4},
    losses.gspo_token: {"clip_eps": 3e-4, "clip_eps_high": 4e-4},
    losses.gmpo: {"clip_eps": 0.4, "clip_eps_high": None},
    losses.clipped_value: {"clip_eps": 0.2},
    losses.truncated_importance_weights: {"cap": 2.0},
    losses.masked_importance_weights: {"low": 0.5, "high": 2.0},
    losses.kl.adaptive_controller: {"coef": 0.15, "target": 6.0, "horizon": 10_000.0},
    losses.trpo.step: {"max_kl": 0.01, "damping": 0.1, "backtrack": 0.8, "max_backtracks": 10},
    losses.dpo: {"beta": 0.1, "label_smoothing": 0.0},
    losses.kto: {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    losses.orpo: {"odds_coef": 0.1},
    losses.simpo: {"beta": 2.0, "gamma": 0.5},
    losses.bradley_terry: {"margin": 0.0, "center_coef": 0.0},
    advantages.group_normalized: {"eps": 1e-4},
    reduce.whiten: {"eps": 1e-8, "shift_mean": True},
}
"""The usual ones, of the papers and of what others ship."""


@pytest.mark.parametrize("function", DEFAULTS, ids=lambda function: function.__name__)
def test_defaults_are_the_usual_ones(function):
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in DEFAULTS[function]} == DEFAULTS[function]


def test_a_huge_clip_is_no_clip():
    clipped = losses.ppo_clip(LOG_PROBS, OLD, ADVANTAGES, clip_eps=1e9)
    np.testing.assert_allclose(clipped, losses.trpo.surrogate(LOG_PROBS, OLD, ADVANTAGES), rtol=1e-6)


@pytest.mark.parametrize("x", [-1e-3, -1e-5, 1e-7, 1e-5, 1e-3])
def test_k3_keeps_its_digits(x):
    """x²/2 for small x, where e^{−x} − 1 + x computed as written has none and may be negative."""
    value = losses.kl.k3(jnp.float32(x), jnp.float32(0))
    assert value >= 0
    exact = np.expm1(-np.float64(np.float32(x))) + np.float64(np.float32(x))
    np.testing.assert_allclose(value, exact, atol=3e-7 * abs(x))


def test_helpers_take_numbers_and_compute_in_float32():
    for x in (-1.0, -1, jnp.array(-1, jnp.bfloat16), np.float32(-1)):
        np.testing.assert_allclose(losses.log1mexp(x), np.log1p(-np.exp(-1.0)), rtol=1e-6)
        np.testing.assert_allclose(losses.probability_ratio(x), np.exp(-1.0), rtol=1e-6)


@pytest.mark.parametrize("x", [-1e-6, -1e-3, -0.69, -0.7, -5.0, -50.0])
def test_log1mexp(x):
    value, grad = jax.value_and_grad(losses.log1mexp)(jnp.float32(x))
    exact = np.float64(np.float32(x))
    np.testing.assert_allclose(value, np.log1p(-np.exp(exact)), rtol=1e-5)
    np.testing.assert_allclose(grad, -np.exp(exact) / -np.expm1(exact), rtol=1e-5)


def test_orpo_of_certain_completions_is_finite():
    value, grad = jax.value_and_grad(lambda c: losses.orpo(c, jnp.float32(-1.0)))(jnp.float32(0.0))
    assert np.isfinite(value)
    assert np.isfinite(grad)


def test_kto_reference_point():
    policy, ref = jnp.array([-1.0, -2.0, jnp.nan]), jnp.array([-3.0, -2.5, 0.0])
    mask = jnp.array([True, True, False])
    assert losses.kto_reference_kl(policy, ref, mask=mask) == 1.25
    assert losses.kto_reference_kl(ref, policy, mask=mask) == 0
    assert (jax.grad(lambda x: losses.kto_reference_kl(x, ref, mask=mask))(policy) == 0).all()


def test_fixed_controller():
    controller = losses.kl.fixed_controller(0.3)
    assert controller.update(controller.init(), 100.0, 1) == jnp.float32(0.3)


@pytest.mark.parametrize("kl, factor", [(6.0, 1.0), (60.0, 1.02), (0.0, 0.98), (6.6, 1.01)])
def test_adaptive_controller(kl, factor):
    controller = losses.kl.adaptive_controller(0.15, target=6.0, horizon=10_000)
    update = jax.jit(controller.update)
    np.testing.assert_allclose(update(controller.init(), kl, 1000), 0.15 * factor, rtol=1e-5)


@pytest.mark.parametrize("kl, factor", [(0.016, 2.0), (0.014, 1.0), (0.0068, 1.0), (0.0066, 0.5)])
def test_doubling_controller(kl, factor):
    controller = losses.kl.doubling_controller(3.0, target=0.01)
    assert jax.jit(controller.update)(controller.init(), kl, 1) == 3.0 * factor


def test_next_token_cross_entropy_is_shifted():
    logits = jnp.asarray(rng.normal(size=(2, 5, 7)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, 7, (2, 5)))
    mask = jnp.array([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0]], bool)
    loss = losses.next_token_cross_entropy(logits, tokens, mask=mask)
    log_p = np.asarray(jax.nn.log_softmax(logits))
    for b in range(2):
        for t in range(1, 5):
            expected = -log_p[b, t - 1, tokens[b, t]] if mask[b, t] else 0
            np.testing.assert_allclose(loss[b, t - 1], expected, rtol=1e-5)
    # Causality of the shift: what the last position says counts for nothing.
    grad = jax.grad(lambda z: losses.next_token_cross_entropy(z, tokens).sum())(logits)
    assert (grad[:, -1] == 0).all()
    assert (np.abs(grad[:, :-1]).max(-1) > 0).all()


def test_forbidden_tokens_have_no_share():
    """−inf logits: probability 0, nothing in the entropy, and finite gradients."""
    logits = jnp.array([1.0, -jnp.inf, 0.5])
    allowed = jnp.array([1.0, 0.5])
    np.testing.assert_allclose(losses.entropy(logits), losses.entropy(allowed), rtol=1e-6)
    np.testing.assert_allclose(losses.kl.exact(logits, logits + 0), 0, atol=1e-7)
    np.testing.assert_allclose(
        losses.cross_entropy(logits, jnp.array(0)), losses.cross_entropy(allowed, jnp.array(0)), rtol=1e-6
    )
    assert losses.cross_entropy(logits, jnp.array(0), label_smoothing=0.1) == jnp.inf
    for f in (
        losses.entropy,
        lambda z: losses.kl.exact(z, jnp.zeros(3)),
        lambda z: losses.cross_entropy(z, jnp.array(0)),
        lambda z: losses.generalized_jsd(z, 0.5 * logits),
        lambda z: losses.generalized_jsd(z, jnp.zeros(3)),
    ):
        grad = jax.grad(f)(logits)
        assert np.isfinite(grad).all()
        assert grad[1] == 0


def naive(hidden, unembedding, tokens, temperature=1.0):
    log_p = jax.nn.log_softmax((hidden @ unembedding).astype(jnp.float32) / temperature)
    chosen = jnp.take_along_axis(log_p, tokens[..., None], -1)[..., 0]
    return chosen, -(jnp.exp(log_p) * log_p).sum(-1)


@pytest.mark.parametrize("chunk_size", slow_but([1, 4, 7, 10, 11, 64], 3))
def test_chunks_of_any_size_agree(chunk_size):
    """Also those that do not divide the vocabulary (11)."""
    hidden = jnp.asarray(rng.normal(size=(2, 3, 8)), jnp.float32)
    unembedding = jnp.asarray(rng.normal(size=(8, 11)), jnp.float32)
    tokens = jnp.array([[0, 10, 5], [9, 3, 7]])
    weights = jnp.asarray(rng.normal(size=(2, 2, 3)), jnp.float32)

    def total(function, h, w):
        log_probs, entropies = function(h, w, tokens, temperature=0.8)
        return (weights[0] * log_probs + weights[1] * entropies).sum()

    chunked = functools.partial(losses.chunked_token_log_probs, chunk_size=chunk_size)
    ours, theirs = (
        jax.value_and_grad(functools.partial(total, f), argnums=(0, 1))(hidden, unembedding)
        for f in (chunked, naive)
    )
    chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_second_derivatives_of_chunks_are_those_of_the_naive_form():
    """Forward over reverse (a Fisher-vector product), and reverse over reverse."""
    shapes = ((4, 6), (6, 11), (4, 6))
    hidden, unembedding, direction = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)

    def products(function):
        def total(h):
            log_probs, entropies = function(h, unembedding, jnp.array([0, 10, 3, 5]))
            return (3 * log_probs**2 + 5 * entropies**2).sum()

        gradient = jax.grad(total)
        forward = jax.jvp(gradient, (hidden,), (direction,))[1]
        return forward, jax.grad(lambda h: (gradient(h) * direction).sum())(hidden)

    chunked = functools.partial(losses.chunked_token_log_probs, chunk_size=4)
    for ours, theirs in zip(products(chunked), products(naive), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_chunked_log_probs_of_large_logits():
    hidden = jnp.array([[1000.0], [-1000.0]])
    log_probs, entropies = losses.chunked_token_log_probs(
        hidden, jnp.array([[1.0, 0.5, -1.0]]), jnp.array([0, 0]), chunk_size=2
    )
    np.testing.assert_allclose(log_probs, [0, -2000])
    np.testing.assert_allclose(entropies, [0, 0], atol=1e-6)


def test_chunked_memory_is_a_fraction():
    """No array of the size of the logits: compiled, and asked how much it needs."""
    n, d, v = 256, 16, 8192
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, d), (d, v))]
    tokens = jnp.zeros(n, jnp.int32)

    def needed(function):
        def total(h, w):
            return sum(x.sum() for x in function(h, w, tokens))

        compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    chunked = functools.partial(losses.chunked_token_log_probs, chunk_size=256)
    assert 8 * needed(chunked) < needed(naive)


def test_an_action_that_is_never_taken_has_no_value():
    error = losses.expected_sarsa_error(
        jnp.zeros(2),
        jnp.array(0),
        0.5,
        jnp.array([-jnp.inf, 1.0]),
        jnp.array([0.0, 1.0]),
        False,
        discount=0.5,
    )
    assert error == 1.0


def test_entropy_does_not_depend_on_the_level_of_the_logits():
    logits = jnp.array([0.0, 1.0, 2.0])
    np.testing.assert_allclose(losses.entropy(logits + 1e6), losses.entropy(logits), rtol=1e-6)


@pytest.mark.parametrize("token", [-100, -1, 11])
def test_a_token_outside_the_vocabulary_has_no_log_prob(token):
    hidden, unembedding = jnp.ones((2, 3)), jnp.ones((3, 11))
    tokens = jnp.array([token, 1])
    log_probs, _ = losses.chunked_token_log_probs(hidden, unembedding, tokens, chunk_size=4)
    np.testing.assert_allclose(log_probs, [np.nan, -np.log(11)], rtol=1e-6)
    log_probs, _ = losses.chunked_token_log_probs(hidden, unembedding, tokens, mask=jnp.array([False, True]))
    assert log_probs[0] == 0


@pytest.mark.parametrize("dtype", slow_but([jnp.int8, jnp.uint8, jnp.uint16], 1))
def test_tokens_may_be_small_integers(dtype):
    """The size of their vocabulary is no number of their type: 256 would be 0 as a byte."""
    largest = jnp.iinfo(dtype).max
    tokens, vocabulary = jnp.array([1, largest], dtype), int(largest) + 1
    plain = losses.cross_entropy(jnp.zeros((2, vocabulary)), tokens)
    chunked, _ = losses.chunked_token_log_probs(jnp.ones((2, 1)), jnp.ones((1, vocabulary)), tokens)
    np.testing.assert_allclose(plain, np.log(vocabulary), rtol=1e-6)
    np.testing.assert_allclose(chunked, -np.log(vocabulary), rtol=1e-6)


def test_chunked_temperature_is_as_precise_as_the_states(x64):
    hidden, unembedding = jnp.asarray(rng.normal(size=(2, 3))), jnp.asarray(rng.normal(size=(3, 11)))
    tokens = jnp.array([1, 10])
    ours, _ = losses.chunked_token_log_probs(hidden, unembedding, tokens, temperature=0.7, chunk_size=4)
    expected = jax.nn.log_softmax(hidden @ unembedding / 0.7)[jnp.arange(2), tokens]
    np.testing.assert_allclose(ours, expected, rtol=1e-13)


@pytest.mark.parametrize(
    "call",
    slow_but(
        [
            lambda x: losses.bradley_terry(x, x),
            lambda x: losses.bradley_terry(x, x, margin=0.3),
            lambda x: losses.sppo(x, x, x, x),
            lambda x: losses.cpo(x, x),
            lambda x: losses.kto(x, x, x > 0, 0.3),
        ],
        2,
    ),
)
def test_numbers_do_not_widen_the_result(call, x64):
    """In double-precision mode a Python number is no float64 input."""
    assert call(jnp.ones(3, jnp.float32)).dtype == jnp.float32
    assert call(jnp.ones(3, jnp.bfloat16)).dtype == jnp.float32
    assert call(jnp.ones(3, jnp.float64)).dtype == jnp.float64


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: losses.ppo_clip(LOG_PROBS, OLD, ADVANTAGES[:, 0]), r"advantages has shape \(3,\)"),
        (lambda: losses.ipo(*[OLD] * 4, chosen_lengths=OLD), "give both"),
        (lambda: losses.chunked_token_log_probs(OLD, OLD.T, jnp.zeros(2, int)), "hidden has shape"),
        (lambda: losses.chunked_token_log_probs(OLD, OLD.T, jnp.zeros(3, int), chunk_size=0), "chunk_size"),
        (lambda: losses.chunked_token_log_probs(OLD, OLD.T[None], jnp.zeros(3, int)), "unembedding"),
        (lambda: losses.cross_entropy(OLD, jnp.zeros(2, int)), r"targets has shape \(2,\)"),
        (lambda: losses.next_token_cross_entropy(OLD[0], jnp.array(0)), r"tokens has shape \(\)"),
        (
            lambda: losses.q_learning_error(OLD, jnp.zeros(3, int), 0, OLD[0], 0, discount=1),
            "next_q_values has shape",
        ),
        (
            lambda: losses.double_q_learning_error(
                OLD, jnp.zeros(3, int), 0, OLD, jnp.zeros((3, 9)), 0, discount=1
            ),
            "next_q_selector has shape",
        ),
        (
            lambda: losses.td_error(OLD[0], OLD[0], OLD[0], False, discount=jnp.ones((2, 1))),
            "discount has shape",
        ),
        (lambda: losses.q_learning_error(OLD, jnp.zeros(2, int), 0, OLD, 0, discount=1), "actions has shape"),
        (lambda: losses.clipped_surrogate(OLD[0], ADVANTAGES, 0.2, None), "advantages has shape"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_clip_range_has_the_dtype_of_the_loss_and_one_value_for_both():
    low, high = losses.clip_range([0.5, 1.0], 0.2, None)
    assert low == high == jnp.float32(0.2)
    low, high = losses.clip_range(jnp.ones((2, 3), jnp.bfloat16), 0.2, jnp.array([[0.25], [0.5]]))
    assert low.dtype == high.dtype == jnp.bfloat16
    assert high.shape == (2, 1)


@pytest.mark.parametrize("chunk_size", [8, 64])
def test_most_likely_token(chunk_size):
    """In each of many rows, whatever rounding does to log-probs."""
    hidden, kernel = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2000, 16), (16, 40)))
    likeliest = (hidden @ kernel).argmax(-1)
    unembedding = losses.Unembedding(lambda h, w: h @ w, axis=1, vocabulary=40, chunk=chunk_size)
    measure = jax.jit(functools.partial(losses.log_probs_by_chunks, unembedding, temperature=0.7))
    assert measure(hidden, kernel, likeliest).most_likely.all()
    assert not measure(hidden, kernel, (likeliest + 1) % 40).most_likely.any()
