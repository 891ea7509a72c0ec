"""Distillation: TRL's divergences, bounds and ends, and gradients on a model whose completions can all be listed."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import decoding, lm
from jaxrl4lm.lm import distillation, rollout
from jaxrl4lm.lm.distillation_losses import compare, gather_with_rest, keep_top
from jaxrl4lm.lm.supervised import Texts
from jaxrl4lm.models import LanguagePolicy, TransformerConfig
from tests.selection import slow_but

V, T = 3, 2
# With its usual ε Adam would make steps of the rounding of gradients that are 0.
CONFIG = lm.DistillationConfig(learning_rate=1e-2, batch=8, adam_eps=1e-3)


def make_model(seed, width=16, vocabulary=V):
    # Learned positions: with rotary ones the prompt 0 and a first token 0 would be told apart by nothing.
    policy = LanguagePolicy(TransformerConfig.gpt2(vocabulary, layers=1, width=width, heads=2, context=16))
    params = jax.jit(policy.init)(jax.random.key(seed))
    return policy, jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, params)  # far from uniform


STUDENT, TEACHER, OTHER = make_model(0), make_model(1, 24), make_model(2)
SAMPLING = decoding.Sampling(T, eos_id=-1)


def make_learner(*teachers, weights=None, **options):
    weights = (1.0,) * len(teachers) if weights is None else weights
    policies = tuple(policy for policy, _ in teachers)
    return distillation.Learner(STUDENT[0], policies, weights, SAMPLING, **options)


def draw_logits(count=40, vocabulary=11):
    return 3 * np.random.default_rng(0).normal(size=(2, count, vocabulary)).astype(np.float32)


@pytest.mark.parametrize("temperature", slow_but([1.0, 0.7, 2.0], [0.7]))
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 0.1])
def test_the_divergence_is_that_of_trl(beta, temperature):
    torch = pytest.importorskip("torch")
    gkd = pytest.importorskip("trl.experimental.gkd", reason="needs the extra 'peers'")
    student, teacher = draw_logits()
    labels = torch.tensor(np.where(np.arange(40) % 3, 1, -100))
    theirs = gkd.GKDTrainer.generalized_jsd_loss(
        torch.tensor(student), torch.tensor(teacher), labels=labels, beta=beta, temperature=temperature
    )
    trainer = pytest.importorskip("trl.trainer.distillation_trainer")
    states = [torch.tensor(x)[None] for x in (student, teacher)]  # of models whose readout is the identity
    chunked, _, _ = trainer._chunked_divergence_loss(
        *states, *[torch.eye(11)] * 2, (labels > 0)[None].int(), beta, temperature=temperature
    )
    np.testing.assert_allclose(chunked, theirs, rtol=1e-5)
    for number in (beta, jnp.float32(beta)):
        ours = compare(student / temperature, teacher / temperature, CONFIG.replace(beta=number))
        np.testing.assert_allclose(ours[np.arange(40) % 3 > 0].mean(), theirs, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_buckets_bound_the_divergence(beta):
    """With more of a teacher's tokens the bound rises; with all of them it is the divergence."""
    student, teacher = draw_logits()
    config = CONFIG.replace(beta=beta)
    whole = compare(student, teacher, config)
    bounds = []
    for k in (1, 3, 8, 11):
        kept = keep_top(jnp.asarray(teacher), k)
        assert kept.log_probs.shape == (40, min(k + 1, 11))
        np.testing.assert_allclose(np.exp(kept.log_probs).sum(-1), 1, rtol=1e-5)
        bounds.append(compare(gather_with_rest(jnp.asarray(student), kept.ids), kept.log_probs, config))
    assert all((low <= high + 1e-5).all() for low, high in itertools.pairwise([*bounds, whole]))
    assert (bounds[0] < whole - 1e-2).mean() > 0.5
    np.testing.assert_allclose(bounds[-1], whole, rtol=1e-4, atol=1e-5)


def draw_texts(count=8, seed=0):
    """Ragged texts: a prompt of one token and a completion of up to five."""
    rng = np.random.default_rng(seed)
    real = np.arange(6) < rng.integers(2, 7, count)[:, None]
    tokens = jnp.asarray(rng.integers(0, V, real.shape))
    return Texts(tokens, jnp.asarray(real), jnp.asarray(real & (np.arange(6) > 0)))


def make_prompts(count=8):
    tokens = jnp.arange(2 * count).reshape(count, 2) % V
    return distillation.Prompts(tokens, tokens >= jnp.array([[1, 0]]))  # padded on the left, here and there


def take_step(params, batch, teachers, config, learner):
    state = distillation.init(jax.random.key(0), config, learner, params)
    return distillation.update(state, batch, config, learner, teachers)


ONE_STEP = jax.jit(take_step, static_argnames="learner")  # numbers are traced: one program serves them all
APPLY = jax.jit(lambda policy, params, *texts: policy.apply(params, *texts)[0], static_argnums=0)


def step(batch, learner, teachers, config=CONFIG, program=None):
    run = program or partial(ONE_STEP, learner=learner)
    return run(STUDENT[1], batch, tuple(params for _, params in teachers), config)


def test_a_step_is_the_mean_over_target_tokens():
    texts = draw_texts()
    _, metrics = step(texts, make_learner(TEACHER), [TEACHER], CONFIG.replace(loss_temperature=1.5))
    student, teacher = (
        APPLY(policy, params, texts.tokens, texts.mask) for policy, params in (STUDENT, TEACHER)
    )
    target = texts.target_mask[:, 1:]
    each = compare(student[:, :-1] / 1.5, teacher[:, :-1] / 1.5, CONFIG)
    np.testing.assert_allclose(metrics["loss"], each[target].mean(), rtol=1e-5)
    same = (student.argmax(-1) == teacher.argmax(-1))[:, :-1][target].mean()
    np.testing.assert_allclose(metrics["token_agreement"], same, rtol=1e-6)
    assert metrics["target_tokens"] == target.sum()
    assert metrics["tokens"] == texts.mask.sum()


CASES = {
    "forward": {"beta": 0.0},
    "between": {"beta": 0.3},
    "reverse": {},
    "top-k": {"teacher_top_k": 1, "beta": 0.5},
    "advantage": {"objective": "advantage", "discount": 1.0},
}


@pytest.mark.parametrize("case", CASES)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(case):
    config = CONFIG.replace(**CASES[case])
    _, metrics = step(make_prompts(), make_learner(STUDENT), [STUDENT], config)
    assert abs(metrics["loss"]) < 1e-6
    assert metrics["grad_norm"] < 1e-6
    _, metrics = step(make_prompts(), make_learner(OTHER), [OTHER], config)
    assert metrics["grad_norm"] > 1e-2


@pytest.mark.parametrize(
    "case, drawn",
    slow_but(
        [(case, drawn) for case in CASES for drawn in (True, False) if drawn or case != "advantage"],
        [("advantage", True)],
    ),
)
def test_micro_batches_and_parts_of_the_tokens_change_nothing(case, drawn, monkeypatch):
    config, teachers = CONFIG.replace(**CASES[case]), [TEACHER, OTHER]
    batch, learner = make_prompts() if drawn else draw_texts(), make_learner(*teachers, weights=(0.5, 2.0))
    whole, metrics = step(batch, learner, teachers, config)
    monkeypatch.setattr(distillation, "LOGITS_AT_ONCE", 1)
    monkeypatch.setattr(distillation, "FEWEST_ROWS", 5)
    in_parts = jax.jit(lambda *inputs: take_step(*inputs, learner))  # traced again, with the sizes above
    for parts in (1, 4):
        state, same = step(batch, learner, teachers, config.replace(micro_batches=parts), in_parts)
        for name, value in metrics.items():
            np.testing.assert_allclose(same[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), state.params, whole.params)


def test_weights_add_divergences():
    texts, both = draw_texts(), [TEACHER, OTHER]
    alone = [step(texts, make_learner(each), [each])[1]["loss"] for each in both]
    _, metrics = step(texts, make_learner(*both, weights=(0.3, 2.0)), both)
    np.testing.assert_allclose(metrics["loss"], 0.3 * alone[0] + 2 * alone[1], rtol=1e-5)


COMPLETIONS = jnp.array(list(itertools.product(range(V), repeat=T)))
PROMPT = jnp.array([[1, 0]])


def list_log_probs(model, params):
    """Of each token of each completion of the one prompt, `[V^T, T]`."""
    policy, count = model[0], len(COMPLETIONS)
    tokens = jnp.concatenate([jnp.tile(PROMPT, (count, 1)), COMPLETIONS], 1)
    logits = jax.nn.log_softmax(policy.apply(params, tokens)[0], axis=-1)
    return jnp.take_along_axis(logits[:, 1:-1], COMPLETIONS[..., None], -1)[..., 0]


@pytest.mark.parametrize("discount", [0.0, 1.0])
def test_the_expected_policy_gradient(discount):
    """γ = 1: the gradient of the reverse KL of whole completions. γ = 0: that of the divergences of single tokens, at states that
    are drawn and held fixed."""
    config = CONFIG.replace(objective="advantage", discount=discount)
    learner = make_learner(TEACHER)
    draw = jax.jit(lambda p: rollout(STUDENT[0], p, PROMPT, PROMPT >= 0, jax.random.key(0), SAMPLING))
    drawn = draw(STUDENT[1])

    def estimate(params, i):
        one = COMPLETIONS[i][None]
        each = drawn._replace(completions=one, mask=jnp.ones(one.shape, bool))
        return distillation.measure(params, (TEACHER[1],), each, config, learner)["loss"].total

    def expect(params):
        weights = jnp.exp(list_log_probs(STUDENT, STUDENT[1]).sum(-1))
        return (weights * jax.lax.map(lambda i: estimate(params, i), jnp.arange(len(COMPLETIONS)))).sum()

    teacher = jax.jit(partial(list_log_probs, TEACHER))(TEACHER[1])

    def exact(params):
        said = list_log_probs(STUDENT, params)
        if discount:
            return (jnp.exp(said.sum(-1)) * (said - teacher).sum(-1)).sum()
        before = jnp.cumsum(said, -1) - said  # how likely the state before each token is
        return (jnp.exp(jax.lax.stop_gradient(before) + said) * (said - teacher) * SHARE[None]).sum()

    value, gradient = jax.jit(jax.value_and_grad(expect))(STUDENT[1])
    wanted_value, wanted = jax.jit(jax.value_and_grad(exact))(STUDENT[1])
    np.testing.assert_allclose(value, wanted_value, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradient, wanted)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(wanted)) > 1e-2


SHARE = V ** -(T - 1.0 - jnp.arange(T))
"""Of the completions that share their first tokens, each counts so much of them."""


def test_drawn_completions_are_those_of_the_student():
    """Log-probabilities of the sampler are those that the advantage reads; the draw depends on the step."""
    learner, config = make_learner(TEACHER), CONFIG.replace(objective="advantage")
    draw = jax.jit(lambda p, key: distillation.complete(p, make_prompts(64), key, learner))
    drawn = draw(STUDENT[1], jax.random.key(1))
    listen = jax.jit(lambda *inputs: distillation.listen(*inputs, config, make_learner(STUDENT))[0])
    said = listen((STUDENT[1],), drawn)
    np.testing.assert_allclose(said, drawn.log_probs, atol=1e-5)
    assert (draw(STUDENT[1], jax.random.key(2)).completions != drawn.completions).any()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"objective": "advantage", "on_policy_share": 0.5}, "on_policy_share must be 1 .* not 0.5"),
        (
            {"objective": "advantage", "teacher_top_k": 3},
            "teacher_top_k has a meaning for objective divergence",
        ),
        ({"beta": 1.5}, "beta must lie in 0..1, not 1.5"),
        ({"batch": 3, "micro_batches": 2}, "multiple of micro_batches"),
    ],
)
def test_what_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        lm.DistillationConfig(**options).check()
