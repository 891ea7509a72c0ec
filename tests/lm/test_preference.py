"""Learning from preferences on a model whose completions can all be listed."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm.lm import PreferenceConfig, preference
from jaxrl4lm.lm.preference_losses import LOSSES, PreferenceLoss, check, mix
from jaxrl4lm.lm.supervised import Texts
from jaxrl4lm.models import LanguagePolicy, TransformerConfig
from tests.selection import slow_but

V, T = 3, 2
# Learned positions: with rotary ones the prompt 0 and a first token 0 would be told apart by nothing.
POLICY = LanguagePolicy(TransformerConfig.gpt2(V, layers=1, width=16, heads=2, context=8))
START = jax.jit(POLICY.init)(jax.random.key(0))
COMPLETIONS = np.array(list(itertools.product(range(V), repeat=T)))
REWARDS = np.random.default_rng(0).normal(size=len(COMPLETIONS))
BETA = 0.5


def make_texts(completions):
    """Texts `[..., 1 + T]`: each completion after the prompt 0."""
    tokens = np.concatenate([np.zeros((*completions.shape[:-1], 1), int), completions], -1)
    targets = np.broadcast_to(np.arange(1 + T) > 0, tokens.shape)
    return Texts(jnp.array(tokens), jnp.ones(tokens.shape, bool), jnp.array(targets))


@jax.jit
def list_log_probs(params):
    return preference.sum_log_probs(params, make_texts(COMPLETIONS[:, None]), POLICY, PreferenceConfig())[
        :, 0
    ]


def test_dpo_reaches_its_closed_form():
    """π* ∝ π_ref·exp(r/β), from all pairs, each preferred as often as Bradley and Terry say."""
    first, second = np.array(list(itertools.combinations(range(len(COMPLETIONS)), 2))).T
    wrong = 1 / (1 + np.exp(REWARDS[first] - REWARDS[second]))
    config = PreferenceConfig(
        learning_rate=1e-2, beta=BETA, steps=800, final_learning_rate_share=0.01, batch=len(first)
    ).replace(label_smoothing=jnp.array(wrong, jnp.float32))
    learner = preference.Learner(POLICY, LOSSES["dpo"])
    pairs = np.stack([COMPLETIONS[first], COMPLETIONS[second]], 1)
    reference = np.asarray(list_log_probs(START), np.float64)
    ref = jnp.array(np.stack([reference[first], reference[second]], 1), jnp.float32)
    batch = preference.Judgements(make_texts(pairs), ref)

    @jax.jit
    def train(state):
        step = lambda state, _: preference.update(state, batch, config, learner)  # noqa: E731
        return jax.lax.scan(step, state, length=config.steps)[0]

    state = train(jax.jit(lambda p: preference.init(jax.random.key(0), config, learner, p))(START))
    wanted = np.exp(reference + REWARDS / BETA)
    np.testing.assert_allclose(np.exp(list_log_probs(state.params)), wanted / wanted.sum(), atol=2e-3)
    assert np.abs(np.exp(reference) - wanted / wanted.sum()).max() > 0.1


def draw(count, loss, seed=0):
    rng = np.random.default_rng(seed)
    texts = make_texts(
        COMPLETIONS[rng.integers(0, len(COMPLETIONS), (count, 1 + (loss.paired or loss.mismatched)))]
    )
    ragged = jnp.asarray(rng.integers(2, 2 + T, texts.tokens.shape[:2]))[..., None]
    real = jnp.arange(1 + T)[None, None] < ragged
    texts = texts._replace(mask=real, target_mask=texts.target_mask & real)
    desirable = None if loss.paired else jnp.array(rng.random(count) < 0.5)
    return preference.Judgements(texts, desirable=desirable)


def step(loss, batch, reference, **options):
    config = PreferenceConfig(learning_rate=1e-3, batch=8, label_smoothing=0.1, **options)
    learner = preference.Learner(POLICY, loss)

    @jax.jit
    def run(params, batch, reference):
        state = preference.init(jax.random.key(0), config, learner, params)
        return preference.update(state, batch, config, learner, reference)

    return run(START, batch, reference)


OTHER = jax.tree.map(lambda x: np.float32(1.1) * np.asarray(x), START)


PLAIN = PreferenceConfig()


@partial(jax.jit, static_argnames="config")
def score(params, texts, config=PLAIN):
    return preference.sum_log_probs(params, texts, POLICY, config)


@pytest.mark.parametrize("name", slow_but(["orpo", "kto", "a mixture"], ["kto"]))
def test_micro_batches_and_kept_references_change_nothing(name):
    """Though parts have other lengths: what is averaged over a step is so over all of its parts."""
    loss = LOSSES[name] if name in LOSSES else mix([(LOSSES["dpo"], 1.0), (LOSSES["sft"], 0.5)])
    batch = draw(8, loss)
    options = {"tail_weight": 0.5, "policy_weights": True} if name == "a mixture" else {}
    whole, metrics = step(loss, batch, OTHER, **options)
    kept = score(OTHER, batch.texts, PreferenceConfig(**options))
    others = [
        step(loss, batch, OTHER, micro_batches=4, **options),
        step(loss, batch._replace(ref_log_probs=kept), None, **options),
    ]
    for state, same in others:
        for key, value in metrics.items():
            np.testing.assert_allclose(same[key], value, rtol=2e-5, atol=1e-6, err_msg=key)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), state.params, whole.params
        )


def test_bco_stands_between_what_was_liked_and_the_rest():
    """δ is half-way between the mean rewards; a step makes the liked likelier."""
    batch = draw(8, LOSSES["bco"])
    _, metrics = step(LOSSES["bco"], batch, OTHER)
    half = (metrics["rewards/chosen"] + metrics["rewards/rejected"]) / 2
    np.testing.assert_allclose(metrics["reference_point"], half, rtol=1e-5)
    ratios = score(START, batch.texts) - score(OTHER, batch.texts)
    margins = 0.1 * ratios[:, 0] - half
    expected = -jax.nn.log_sigmoid(jnp.where(batch.desirable, margins, -margins)).mean()
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    "loss, options, message",
    [
        (LOSSES["nca"], {"divergence": "js"}, "divergence js has a meaning for .*dpo, robust"),
        (LOSSES["aot"], {"micro_batches": 2}, "micro_batches must be 1, not 2"),
        (LOSSES["aot"], {"policy_weights": True}, "policy_weights weigh a pair"),
        (LOSSES["kto"], {"tail_weight": 0.5}, "tail_weight are of pairs"),
        (LOSSES["exo"], {}, "label_smoothing must lie between 0 and 1 for"),
        (LOSSES["robust"], {"label_smoothing": 0.5}, "label_smoothing must lie below 0.5 for"),
        (LOSSES["dpo"], {"batch": 3, "micro_batches": 2}, "multiple of micro_batches"),
    ],
)
def test_what_does_not_fit(loss, options, message):
    with pytest.raises(ValueError, match=message):
        check(PreferenceConfig(**options), loss)


def test_a_loss_of_ones_own_and_mixtures():
    own = PreferenceLoss(lambda scores, config: -scores.log_probs[:, 0], referenced=False)
    _, metrics = step(own, draw(8, own), None)
    np.testing.assert_allclose(metrics["loss"], -metrics["log_probs/chosen"], rtol=1e-6)
    assert metrics["rewards/chosen"] < 0
    mixture = mix([(LOSSES["dpo"], 1.0), (LOSSES["aot"], 2.0)])
    assert (mixture.referenced, mixture.ranks, mixture.of_difference) == (True, True, False)
    with pytest.raises(ValueError, match="a mixture is of losses of pairs"):
        mix([(LOSSES["dpo"], 1.0), (LOSSES["kto"], 1.0)])
    for weight in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"must be positive and finite, not {weight:g}"):
            mix([(LOSSES["dpo"], weight), (LOSSES["sft"], 1.0)])
    with pytest.raises(ValueError, match="give its parameters"):
        step(LOSSES["dpo"], draw(8, LOSSES["dpo"]), None)
