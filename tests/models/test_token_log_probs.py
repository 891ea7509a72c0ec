"""Log-probs of given tokens from hidden states: the softmax of the logits, without the logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import distributions
from jaxrl4lm.decoding import score
from jaxrl4lm.models import LanguagePolicy, TransformerConfig
from jaxrl4lm.models.policy import VOCABULARY_CHUNK
from tests.selection import slow_but

V, D = 23, 8
rng = np.random.default_rng(0)
HIDDEN = rng.normal(size=(2, 5, D)).astype(np.float32)
TOKENS = rng.integers(0, V - 3, (2, 5))
WEIGHTS = rng.normal(size=(6, 2, 5)).astype(np.float32)


def model(vocabulary, tokens=None, **style):
    config = TransformerConfig(vocabulary, layers=1, width=D, heads=2, **style)
    policy = LanguagePolicy(config, tokens=tokens)
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    return policy, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)


def of_logits(policy, params, hidden, tokens, temperature):
    logits = policy.logits(params, hidden) / temperature
    return (
        distributions.categorical_log_prob(logits, tokens),
        distributions.categorical_entropy(logits),
        logits.argmax(-1) == tokens,
        jax.nn.log_softmax(logits).mean(-1),
        jax.nn.logsumexp(logits, axis=-1),
        jax.lax.stop_gradient(jnp.log(jnp.square(jax.nn.softmax(logits)).sum(-1))),
    )


@pytest.mark.parametrize("chunk", slow_but([5, 7, None], [7]))
@pytest.mark.parametrize(
    "style",
    [{}, {"tied": False}, {"logit_softcap": 2.0}, {"tied": False, "logit_softcap": 2.0, "tokens": V - 3}],
    ids=["tied", "untied", "capped", "padded"],
)
def test_they_are_the_softmax_of_the_logits(style, chunk):
    policy, params = model(V, **style)
    temperature = np.linspace(0.5, 2.0, 10, dtype=np.float32).reshape(2, 5)

    def total(params, hidden, f):
        outputs = f(params, hidden)
        return sum((w * x).sum() for w, x in zip(WEIGHTS, outputs, strict=True)), outputs

    def ours(params, hidden):
        return policy.token_log_probs(params, hidden, TOKENS, temperature=temperature, chunk=chunk)

    def theirs(params, hidden):
        return of_logits(policy, params, hidden, TOKENS, temperature[..., None])

    results = [
        jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True), static_argnums=2)(params, HIDDEN, f)
        for f in (ours, theirs)
    ]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
        *((jax.tree.leaves(value), gradient) for value, gradient in results),
    )


@pytest.mark.parametrize("chunk", [5, None])
def test_what_is_masked_is_not_read_and_an_unknown_id_is_nan(chunk):
    policy, params = model(V, tokens=V - 3)
    mask = np.array([[1, 0, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    hidden = np.where(mask[..., None], HIDDEN, np.nan)
    tokens = np.where(mask, TOKENS, -100)
    tokens[0, 0] = V - 3

    def total(hidden):
        outputs = policy.token_log_probs(params, hidden, tokens, mask=mask, chunk=chunk)
        return outputs[1].sum(), outputs

    gradient, (log_probs, *others) = jax.jit(jax.grad(total, has_aux=True))(hidden)
    expected = of_logits(policy, params, HIDDEN, TOKENS, 1.0)
    assert np.isnan(log_probs[0, 0])
    log_probs = log_probs.at[0, 0].set(expected[0][0, 0])
    for ours, theirs in zip((log_probs, *others), expected, strict=True):
        np.testing.assert_allclose(ours, np.where(mask, theirs, 0), atol=2e-5)
    assert not np.asarray(gradient)[~mask].any()
    assert np.isfinite(gradient).all()


def sizes(jaxpr):
    """Elements of every array that a program makes, in its loops and branches too."""
    for equation in jaxpr.eqns:
        yield from (v.aval.size for v in equation.outvars)
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from sizes(inner)


@pytest.mark.parametrize("vocabulary, held", [(VOCABULARY_CHUNK, True), (16 * VOCABULARY_CHUNK, False)])
def test_the_logits_of_a_large_vocabulary_are_never_held(vocabulary, held):
    policy = LanguagePolicy(TransformerConfig(vocabulary, layers=1, width=D, heads=2))
    params = jax.eval_shape(policy.init, jax.random.key(0))
    tokens = np.zeros((4, 300), np.int32)

    def loss(params):
        hidden = policy.hidden(params, tokens)
        return sum(x.sum() for x in policy.token_log_probs(params, hidden, tokens))

    for program in (jax.grad(loss), lambda params: score(policy, params, tokens)):
        assert any(size > 1000 * vocabulary for size in sizes(jax.make_jaxpr(program)(params).jaxpr)) == held
