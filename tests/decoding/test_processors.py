"""Penalties and truncations against transformers, plain sorts, and the distributions they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxrl4lm import decoding
from jaxrl4lm.decoding import History, Sampling, choose, draw_row_uniforms

B, V, T = 6, 53, 8


@pytest.fixture(scope="module")
def logits():
    """Rows of different sharpness, with ties and forbidden tokens."""
    x = np.random.default_rng(0).normal(size=(B, V)).astype(np.float32) * np.linspace(0.2, 5, B)[:, None]
    x = np.round(x, 1).astype(np.float32)
    x[2, 5:30] = -np.inf
    return x


@pytest.fixture(scope="module")
def history():
    rng = np.random.default_rng(1)
    prompts, tokens = rng.integers(0, V, (B, 5)), rng.integers(0, V, (B, T))
    tokens[:, 1] = tokens[:, 0]  # a token that occurs twice
    mask = np.broadcast_to(np.arange(T) < 4, (B, T))
    return History(
        jnp.array(prompts), jnp.ones((B, 5), bool), jnp.array(tokens), jnp.array(mask), jnp.int32(4)
    )


def sorted_top_p(p):
    """Keeps a token unless those strictly more likely already reach p."""

    def keep(logits):
        probabilities = np.asarray(jax.nn.softmax(logits.astype(np.float64)))
        above = (probabilities[:, None] * (logits[:, None] > logits[:, :, None])).sum(-1)
        return above < p

    return keep


def sorted_typical(p):
    def keep(logits):
        probabilities = np.asarray(jax.nn.softmax(logits, axis=-1), np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            surprise = -np.log(probabilities)
            entropy = np.nansum(probabilities * surprise, -1, keepdims=True)
        distance = np.abs(surprise - entropy).astype(np.float32)
        nearer = distance[:, None] < distance[:, :, None]
        return ((probabilities[:, None] * nearer).sum(-1) < p) & (probabilities > 0)

    return keep


TRUNCATIONS = [
    ("top_k", 1, "TopKLogitsWarper"),
    ("top_k", 7, "TopKLogitsWarper"),
    ("top_k", 99, "TopKLogitsWarper"),
    ("min_p", 0.05, "MinPLogitsWarper"),
    ("min_p", 0.5, "MinPLogitsWarper"),
    ("top_p", 0.1, sorted_top_p(0.1)),
    ("top_p", 0.7, sorted_top_p(0.7)),
    ("top_p", 0.95, sorted_top_p(0.95)),
    ("typical", 0.2, sorted_typical(0.2)),
    ("typical", 0.9, sorted_typical(0.9)),
]


@pytest.mark.parametrize("name, setting, oracle", TRUNCATIONS, ids=lambda x: getattr(x, "__name__", str(x)))
def test_truncations_keep_the_promised_set_and_its_logits(name, setting, oracle, logits):
    ours = np.asarray(jax.jit(getattr(decoding, name)(setting))(logits))
    if isinstance(oracle, str):
        transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
        kept = np.isfinite(getattr(transformers, oracle)(setting)(None, torch.from_numpy(logits)).numpy())
    else:
        kept = oracle(logits)
    np.testing.assert_array_equal(np.isfinite(ours), kept & np.isfinite(logits))
    np.testing.assert_array_equal(ours[np.isfinite(ours)], logits[np.isfinite(ours)])


@pytest.mark.parametrize("name", ["top_p", "typical"])
@pytest.mark.parametrize("p", [0.3, 0.9])
def test_sorted_truncations_agree_with_transformers_where_nothing_ties(name, p):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    logits = np.random.default_rng(3).normal(size=(64, 300)).astype(np.float32) * 2
    warper = {"top_p": "TopPLogitsWarper", "typical": "TypicalLogitsWarper"}[name]
    theirs = getattr(transformers, warper)(p)(None, torch.from_numpy(logits)).numpy()
    np.testing.assert_array_equal(np.asarray(getattr(decoding, name)(p)(logits)), theirs)


def test_top_p_keeps_the_smallest_sufficient_set():
    probabilities = jnp.array([[0.5, 0.25, 0.125, 0.0625, 0.0625]])
    kept = {
        p: int(jnp.isfinite(decoding.top_p(p)(jnp.log(probabilities))).sum())
        for p in (0.4, 0.51, 0.8, 0.88, 1.0)
    }
    assert kept == {0.4: 1, 0.51: 2, 0.8: 3, 0.88: 5, 1.0: 5}  # the last two tie


@pytest.mark.parametrize(
    "name, args, oracle",
    [
        ("repetition_penalty", (1.7,), "RepetitionPenaltyLogitsProcessor"),
        ("min_new_tokens", (5, (3, 7)), "MinNewTokensLengthLogitsProcessor"),
        ("min_new_tokens", (4, (3, 7)), "MinNewTokensLengthLogitsProcessor"),
    ],
)
def test_penalties_are_those_of_transformers(name, args, oracle, logits, history):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    ids = torch.from_numpy(np.concatenate([history.prompts, history.tokens[:, :4]], 1)).long()
    theirs = {"min_new_tokens": lambda: (5, args[0], list(args[-1]))}.get(name, lambda: args)()
    expected = getattr(transformers, oracle)(*theirs)(ids, torch.from_numpy(logits.copy())).numpy()
    ours = jax.jit(getattr(decoding, name)(*args))(logits, history)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_padding_is_no_repetition(logits, history):
    padding = jnp.arange(5)[None] >= jnp.ones((B, 1), int)
    penalty = decoding.repetition_penalty(2.0)
    ours = penalty(jnp.array(logits), history._replace(prompt_mask=padding))
    shorter = history._replace(prompts=history.prompts[:, 1:], prompt_mask=padding[:, 1:])
    np.testing.assert_array_equal(ours, penalty(jnp.array(logits), shorter))
    assert not np.array_equal(ours, penalty(jnp.array(logits), history))


def test_frequency_and_presence_penalties_count_the_completion(logits, history):
    ours = decoding.frequency_penalty(0.5, presence=0.25)(jnp.array(logits), history)
    expected = logits.copy()
    for row, tokens in enumerate(np.asarray(history.tokens)[:, :4]):
        for token in tokens:
            expected[row, token] -= 0.5
        for token in set(tokens.tolist()):
            expected[row, token] -= 0.25
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


DRAWN = {"max_new_tokens": 8, "eos_id": -1, "pad_id": 0, "temperature": 0.7}
SAMPLINGS = {
    "plain": Sampling(**DRAWN),
    "bias": Sampling(
        **DRAWN, penalties=(decoding.logit_bias(jnp.where(jnp.arange(V) % 4 == 0, -jnp.inf, 0.0)),)
    ),
    "top_k and top_p": Sampling(**DRAWN, truncations=(decoding.top_k(20), decoding.top_p(0.8))),
    "min_p": Sampling(**DRAWN, truncations=(decoding.min_p(0.1),), entropy=True, alternatives=3),
    "typical": Sampling(**DRAWN, truncations=(decoding.typical(0.7),)),
    "penalties": Sampling(
        **DRAWN, penalties=(decoding.repetition_penalty(1.5), decoding.frequency_penalty(0.4, presence=0.2))
    ),
}


def processed_log_probs(sampling, logits, history):
    """Of the distribution that is to be sampled `[B, V]`, in double precision."""
    processed = jnp.array(logits)
    for penalty in sampling.penalties:
        processed = penalty(processed, history)
    processed = processed / 0.7
    for truncation in sampling.truncations:
        processed = truncation(processed)
    return np.asarray(jax.nn.log_softmax(processed), np.float64)


@pytest.mark.parametrize("name", SAMPLINGS)
def test_draws_follow_the_processed_distribution(name, logits, history):
    """Chi-square of each row, and nothing outside the support; the draws are those that `generate` makes."""
    sampling, n = SAMPLINGS[name], 20_000
    uniforms = draw_row_uniforms(jax.random.key(1), jnp.arange(B), n)  # [B, n]
    run = jax.jit(lambda uniform: choose(jnp.array(logits), uniform, history, sampling).token)
    tokens = np.asarray(jax.lax.map(run, uniforms.T))
    probabilities = np.exp(processed_log_probs(sampling, logits, history))
    for row in range(B):
        counts, p = np.bincount(tokens[:, row], minlength=V), probabilities[row]
        assert not counts[p == 0].any()
        often = n * p >= 5  # the rest are one bin
        observed, expected = (np.append(x[often], x[~often].sum()) for x in (counts, n * p))
        real = expected > 0
        statistic = ((observed - expected)[real] ** 2 / expected[real]).sum()
        assert statistic < scipy.stats.chi2.isf(1e-6, max(real.sum() - 1, 1))


@pytest.mark.parametrize("name", SAMPLINGS)
def test_a_grid_of_uniforms_draws_the_processed_distribution(name, logits, history):
    sampling, n = SAMPLINGS[name], 4096

    @jax.jit
    def run(uniform):
        return choose(jnp.array(logits), jnp.full((B,), uniform), history, sampling)

    choice = jax.lax.map(run, (jnp.arange(n) + 0.5) / n)
    log_probs = processed_log_probs(sampling, logits, history)
    for row in range(B):
        counts = np.bincount(np.asarray(choice.token[:, row]), minlength=V)
        assert np.abs(counts - n * np.exp(log_probs[row])).max() < 1.5
        np.testing.assert_allclose(choice.log_prob[:, row], log_probs[row][choice.token[:, row]], atol=1e-5)
    if sampling.entropy:
        entropy = -(np.exp(log_probs) * np.maximum(log_probs, -1e9)).sum(-1)
        np.testing.assert_allclose(choice.entropy[0], entropy, atol=1e-5)
        np.testing.assert_allclose(choice.top_log_probs[0], np.sort(log_probs)[:, :-4:-1], atol=1e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: decoding.top_k(0), "k must be a whole number of at least 1, not 0"),
        (lambda: decoding.top_k(5.0), "k must be a whole number"),
        (lambda: decoding.top_p(np.float32(7)), "at most 1, not 7.0"),
        (lambda: decoding.repetition_penalty(0.0), "the penalty must be positive, not 0.0"),
        (lambda: decoding.Sampling(1, 1, 0, alternatives=-1), "alternatives must be at least 0"),
        (lambda: decoding.Sampling(1, 1, 0, temperature=-1.0), "temperature must be positive, not -1.0"),
        (lambda: decoding.top_p(0.0), "p must lie above 0 and be at most 1, not 0.0"),
        (lambda: decoding.min_p(2.0), "at most 1, not 2.0"),
        (lambda: decoding.typical(float("nan")), "at most 1, not nan"),
        (lambda: decoding.Sampling(0, 1, 0), "max_new_tokens must be at least 1, not 0"),
        (lambda: decoding.Sampling(1, 1, 0, copies=0), "copies must be at least 1, not 0"),
        (
            lambda: decoding.choose(None, None, None, decoding.Sampling(1, 1, 0, temperature=0)),
            "temperature must be positive, not 0",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": jnp.ones(4)}, r"temperature has shape \(4,\), .* temperature\[:, None\]"),
        ({"truncations": (lambda logits: logits[:, :2],)}, r"makes logits \(4, 2\) of \(4, 4\)"),
        ({"penalties": (lambda logits, history: logits[:1],)}, r"makes logits \(1, 4\) of \(4, 4\)"),
    ],
)
def test_shapes_that_would_mix_rows_are_refused(options, message, history):
    with pytest.raises(ValueError, match=message):
        choose(jnp.zeros((4, 4)), jnp.zeros(4), history, Sampling(1, 0, 0, **options))


def test_settings_may_be_traced_and_differ_by_row(logits):
    settings = jnp.linspace(0.1, 0.9, B)[:, None]
    for make in (decoding.top_p, decoding.min_p, decoding.typical):
        together = jax.jit(lambda p, make=make: make(p)(jnp.array(logits)))(settings)
        for row in range(B):
            alone = make(settings[row, 0])(logits[row : row + 1])
            np.testing.assert_array_equal(together[row], alone[0])
