"""What every loss and every return promises, from one table: formula, masks, dtypes, gradients, jit and vmap.

A row names the function, its arguments by what they hold, which of them gradients flow through, its
hyper-parameters, and its formula in NumPy, written down from the paper.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxrl4lm import losses, returns

B, T, A, D = 3, 4, 5, 6
MASK = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]], bool)
GARBAGE = np.array([np.nan, np.inf, -np.inf])


@dataclasses.dataclass
class Row:
    name: str
    function: Callable
    arguments: dict[str, str]
    """name → what it holds: see `draw`. Those marked with * let gradients flow."""
    formula: Callable | None
    hyper: dict[str, float] = dataclasses.field(default_factory=dict)
    surrogate: bool = False
    """Its gradient is, on purpose, not the derivative of its value."""

    @property
    def flows(self):
        return [name for name, kind in self.arguments.items() if kind.endswith("*")]


def draw(kind: str, rng: np.random.Generator) -> np.ndarray:
    kind = kind.rstrip("*")
    if kind == "log_prob":
        return -0.5 - 0.4 * rng.random((B, T))
    if kind == "value":
        return rng.normal(size=(B, T))
    if kind == "length":
        return rng.integers(1, 9, size=(B, T)).astype(float)
    if kind == "logits":
        return rng.normal(size=(B, T, A))
    if kind == "probs":
        return rng.dirichlet(np.ones(A), size=(B, T))
    if kind == "hidden":
        return rng.normal(size=(B, T, D))
    if kind == "matrix":
        return rng.normal(size=(D, A))
    if kind == "index":
        return rng.integers(0, A, size=(B, T))
    if kind == "flag":
        # Nothing is flagged in the first sequence, whose gap is then bridged.
        return (rng.random((B, T)) < 0.4) & (np.arange(B) > 0)[:, None]
    assert kind == "scalar"
    return np.array(0.1)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def softmax(z):
    return np.exp(log_softmax(z))


def at(table, index):
    return np.take_along_axis(table, index[..., None], -1)[..., 0]


def clip_formula(ratio, a, low, high):
    return -np.minimum(ratio * a, np.clip(ratio, 1 - low, 1 + high) * a)


def ppo_formula(lp, old, a, *, clip_eps, clip_eps_high=None, dual_clip=None):
    loss = clip_formula(np.exp(lp - old), a, clip_eps, clip_eps if clip_eps_high is None else clip_eps_high)
    return loss if dual_clip is None else np.where(a < 0, np.minimum(loss, -dual_clip * a), loss)


def over_sequence(x):
    return np.broadcast_to(x.mean(-1, keepdims=True), x.shape)


def gmpo_formula(lp, old, a, *, clip_eps):
    sign = np.sign(a)  # the published form: the pessimistic one of ρ^sign and its clip
    pessimistic = np.minimum(sign * (lp - old), np.clip(sign * (lp - old), -clip_eps, clip_eps))
    return -np.exp(over_sequence(sign * pessimistic)) * a


def cross_entropy_formula(z, y, *, label_smoothing):
    log_p = log_softmax(z)
    return -(1 - label_smoothing) * at(log_p, y) - label_smoothing * log_p.mean(-1)


def jsd_formula(s, t, *, beta, temperature):
    s, t = softmax(s / temperature), softmax(t / temperature)
    m = beta * t + (1 - beta) * s
    return (beta * t * np.log(t / m) + (1 - beta) * s * np.log(s / m)).sum(-1)


def orpo_formula(c, r, *, odds_coef):
    odds = [np.exp(x) / (1 - np.exp(x)) for x in (c, r)]
    return -c - odds_coef * log_sigmoid(np.log(odds[0] / odds[1]))


def kl_formula(p, q):
    return (p * np.log(p / q)).sum(-1)


def nca_formula(c, r, rc, rr, *, beta):
    d, e = beta * (c - rc), beta * (r - rr)
    return -log_sigmoid(d) - 0.5 * log_sigmoid(-d) - 0.5 * log_sigmoid(-e)


def exo_formula(c, r, rc, rr, *, beta, label_smoothing):
    p = sigmoid(beta * (c - rc - r + rr))
    return p * np.log(p / (1 - label_smoothing)) + (1 - p) * np.log((1 - p) / label_smoothing)


def robust_formula(c, r, rc, rr, *, beta, label_smoothing):
    x = beta * (c - rc - r + rr)
    clean, flipped = -log_sigmoid(x), -log_sigmoid(-x)
    return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def kto_formula(lp, ref, good, z, *, beta, desirable_weight, undesirable_weight):
    d = lp - ref
    desirable = desirable_weight * (1 - sigmoid(beta * (d - z)))
    return np.where(good, desirable, undesirable_weight * (1 - sigmoid(beta * (z - d))))


def delta(c, r, rc, rr):
    return (c - rc) - (r - rr)


def k3_formula(lp, ref):
    return np.exp(ref - lp) - 1 - (ref - lp)


def chunked_formula(h, w, y, *, temperature):
    log_p = log_softmax(h @ w / temperature)
    return at(log_p, y), -(np.exp(log_p) * log_p).sum(-1)


POLICY = {"log_probs": "log_prob*", "old_log_probs": "log_prob", "advantages": "value"}
REFERENCE = {"log_probs": "log_prob*", "ref_log_probs": "log_prob"}
PAIRS = {
    "chosen_log_probs": "log_prob*",
    "rejected_log_probs": "log_prob*",
    "ref_chosen_log_probs": "log_prob",
    "ref_rejected_log_probs": "log_prob",
}
MEANS = {"chosen_mean_log_probs": "log_prob*", "rejected_mean_log_probs": "log_prob*"}
DISTILL = {"student_logits": "logits*", "teacher_logits": "logits"}
NEXT = {"q_values": "logits*", "actions": "index", "rewards": "value", "next_q_values": "logits"}
STEPS = {
    "rewards": "value*",
    "values": "value*",
    "next_values": "value*",
    "terminated": "flag",
    "truncated": "flag",
}
chunked = functools.partial(losses.chunked_token_log_probs, chunk_size=2)
along_time = {"axis": -1}

TABLE = [
    Row("reinforce", losses.reinforce, {"log_probs": "log_prob*", "returns": "value"}, lambda lp, g: -lp * g),
    Row(
        "a2c",
        losses.a2c,
        {
            "log_probs": "log_prob*",
            "advantages": "value",
            "values": "value*",
            "returns": "value",
            "entropies": "value*",
        },
        lambda lp, a, v, g, h, *, value_coef, entropy_coef: (
            -lp * a + value_coef * (v - g) ** 2 / 2 - entropy_coef * h
        ),
        {"value_coef": 0.5, "entropy_coef": 0.01},
    ),
    Row("entropy", losses.entropy, {"logits": "logits*"}, lambda z: -(softmax(z) * log_softmax(z)).sum(-1)),
    Row(
        "gpg",
        losses.gpg,
        {"log_probs": "log_prob*", "advantages": "value"},
        lambda lp, a, *, informative_fraction: -lp * a / informative_fraction,
        {"informative_fraction": 0.75},
    ),
    Row(
        "cispo",
        losses.cispo,
        POLICY,
        lambda lp, old, a, *, clip_eps, clip_eps_high: (
            -np.clip(np.exp(lp - old), 1 - clip_eps, 1 + clip_eps_high) * a * lp
        ),
        {"clip_eps": 0.1, "clip_eps_high": 0.2},
        surrogate=True,
    ),
    Row("ppo_clip", losses.ppo_clip, POLICY, ppo_formula, {"clip_eps": 0.1}),
    Row("ppo_clip_high", losses.ppo_clip, POLICY, ppo_formula, {"clip_eps": 0.1, "clip_eps_high": 0.2}),
    Row("ppo_clip_dual", losses.ppo_clip, POLICY, ppo_formula, {"clip_eps": 0.1, "dual_clip": 1.15}),
    Row(
        "ppo_kl_penalty",
        losses.ppo_kl_penalty,
        POLICY,
        lambda lp, old, a, *, beta: -np.exp(lp - old) * a + beta * (np.exp(lp - old) - 1 - (lp - old)),
        {"beta": 0.3},
    ),
    Row(
        "ppo_kl_penalty_exact",
        lambda lp, old, a, kl, **rest: losses.ppo_kl_penalty(lp, old, a, kl=kl, **rest),
        POLICY | {"kl": "value*"},
        lambda lp, old, a, kl, *, beta: -np.exp(lp - old) * a + beta * kl,
        {"beta": 0.3},
    ),
    Row(
        "sapo",
        losses.sapo,
        POLICY,
        lambda lp, old, a, *, temperature, negative_temperature: (
            -a
            * 4
            / np.where(a > 0, temperature, negative_temperature)
            * sigmoid(np.where(a > 0, temperature, negative_temperature) * (np.exp(lp - old) - 1))
        ),
        {"temperature": 1.0, "negative_temperature": 1.05},
    ),
    Row("surrogate", losses.surrogate, POLICY, lambda lp, old, a: -np.exp(lp - old) * a),
    Row(
        "gspo",
        losses.gspo,
        POLICY,
        lambda lp, old, a, *, clip_eps, clip_eps_high: clip_formula(
            np.exp(over_sequence(lp - old)), a, clip_eps, clip_eps_high
        ),
        {"clip_eps": 0.02, "clip_eps_high": 0.03},
    ),
    Row(
        "gspo_token",
        losses.gspo_token,
        POLICY,
        lambda lp, old, a, *, clip_eps, clip_eps_high: clip_formula(
            np.exp(over_sequence(lp - old)), a, clip_eps, clip_eps_high
        ),
        {"clip_eps": 0.02, "clip_eps_high": 0.03},
        surrogate=True,
    ),
    Row("gmpo", losses.gmpo, POLICY, gmpo_formula, {"clip_eps": 0.1}),
    Row(
        "truncated_importance_weights",
        losses.truncated_importance_weights,
        {"log_probs": "log_prob", "sampler_log_probs": "log_prob"},
        lambda lp, s, *, cap: np.minimum(np.exp(lp - s), cap),
        {"cap": 1.1},
    ),
    Row(
        "truncated_importance_weights_sequence",
        functools.partial(losses.truncated_importance_weights, per_sequence=True),
        {"log_probs": "log_prob", "sampler_log_probs": "log_prob"},
        lambda lp, s, *, cap: np.minimum(np.exp((lp - s).sum(-1, keepdims=True) + 0 * lp), cap),
        {"cap": 1.1},
    ),
    Row(
        "masked_importance_weights",
        losses.masked_importance_weights,
        {"log_probs": "log_prob", "sampler_log_probs": "log_prob"},
        lambda lp, s, *, low, high: np.exp(lp - s) * ((np.exp(lp - s) >= low) & (np.exp(lp - s) <= high)),
        {"low": 0.9, "high": 1.1},
    ),
    Row("k1", losses.kl.k1, REFERENCE, lambda lp, ref: lp - ref),
    Row("k2", losses.kl.k2, REFERENCE, lambda lp, ref: (lp - ref) ** 2 / 2),
    Row("k3", losses.kl.k3, REFERENCE, k3_formula),
    Row("k3_value_k2_gradient", losses.kl.k3_value_k2_gradient, REFERENCE, k3_formula, surrogate=True),
    Row(
        "exact_kl",
        losses.kl.exact,
        {"logits": "logits*", "ref_logits": "logits"},
        lambda z, r: kl_formula(softmax(z), softmax(r)),
    ),
    Row(
        "sequence_k2",
        losses.kl.sequence_k2,
        REFERENCE,
        lambda lp, ref: (lp - ref).sum(-1, keepdims=True) ** 2 / 2 + 0 * lp,
    ),
    Row(
        "sequence_ratio_k1",
        losses.kl.sequence_ratio_k1,
        REFERENCE,
        lambda lp, ref: (lp - ref).sum(-1, keepdims=True) + 0 * lp,
        surrogate=True,
    ),
    Row(
        "sequence_ratio_k3",
        losses.kl.sequence_ratio_k3,
        REFERENCE,
        lambda lp, ref: k3_formula(lp, ref).sum(-1, keepdims=True) + 0 * lp,
        surrogate=True,
    ),
    Row(
        "squared_value",
        losses.squared_value,
        {"values": "value*", "targets": "value"},
        lambda v, g: (v - g) ** 2 / 2,
    ),
    Row(
        "clipped_value",
        losses.clipped_value,
        {"values": "value*", "old_values": "value", "targets": "value"},
        lambda v, old, g, *, clip_eps: (
            np.maximum((v - g) ** 2, (np.clip(v, old - clip_eps, old + clip_eps) - g) ** 2) / 2
        ),
        {"clip_eps": 0.2},
    ),
    Row(
        "huber_value",
        losses.huber_value,
        {"values": "value*", "targets": "value"},
        lambda v, g, *, delta: np.where(
            np.abs(v - g) <= delta, (v - g) ** 2 / 2, delta * (np.abs(v - g) - delta / 2)
        ),
        {"delta": 0.8},
    ),
    Row(
        "td_error",
        losses.td_error,
        {"values": "value*", "rewards": "value", "next_values": "value", "terminated": "flag"},
        lambda v, r, n, d, *, discount: r + discount * (1 - d) * n - v,
        {"discount": 0.9},
    ),
    Row(
        "sarsa_error",
        losses.sarsa_error,
        NEXT | {"next_actions": "index", "terminated": "flag"},
        lambda q, a, r, n, b, d, *, discount: r + discount * (1 - d) * at(n, b) - at(q, a),
        {"discount": 0.9},
    ),
    Row(
        "expected_sarsa_error",
        losses.expected_sarsa_error,
        NEXT | {"next_probs": "probs", "terminated": "flag"},
        lambda q, a, r, n, p, d, *, discount: r + discount * (1 - d) * (n * p).sum(-1) - at(q, a),
        {"discount": 0.9},
    ),
    Row(
        "q_learning_error",
        losses.q_learning_error,
        NEXT | {"terminated": "flag"},
        lambda q, a, r, n, d, *, discount: r + discount * (1 - d) * n.max(-1) - at(q, a),
        {"discount": 0.9},
    ),
    Row(
        "double_q_learning_error",
        losses.double_q_learning_error,
        NEXT | {"next_q_selector": "logits", "terminated": "flag"},
        lambda q, a, r, n, s, d, *, discount: r + discount * (1 - d) * at(n, s.argmax(-1)) - at(q, a),
        {"discount": 0.9},
    ),
    Row(
        "bradley_terry",
        losses.bradley_terry,
        {"chosen_rewards": "value*", "rejected_rewards": "value*"},
        lambda c, r, *, margin, center_coef: -log_sigmoid(c - r - margin) + center_coef * (c + r) ** 2,
        {"margin": 0.3, "center_coef": 0.01},
    ),
    Row(
        "dpo",
        losses.dpo,
        PAIRS,
        lambda *x, beta, label_smoothing: (
            -(1 - label_smoothing) * log_sigmoid(beta * delta(*x))
            - label_smoothing * log_sigmoid(-beta * delta(*x))
        ),
        {"beta": 0.5, "label_smoothing": 0.1},
    ),
    Row("robust_dpo", losses.robust_dpo, PAIRS, robust_formula, {"beta": 0.5, "label_smoothing": 0.1}),
    Row("ipo", losses.ipo, PAIRS, lambda *x, beta: (delta(*x) - 1 / (2 * beta)) ** 2, {"beta": 0.5}),
    Row(
        "ipo_per_token",
        lambda c, r, rc, rr, n, m, **rest: losses.ipo(
            c, r, rc, rr, chosen_lengths=n, rejected_lengths=m, **rest
        ),
        PAIRS | {"chosen_lengths": "length", "rejected_lengths": "length"},
        lambda c, r, rc, rr, n, m, *, beta: ((c - rc) / n - (r - rr) / m - 1 / (2 * beta)) ** 2,
        {"beta": 0.5},
    ),
    Row("hinge", losses.hinge, PAIRS, lambda *x, beta: np.maximum(0, 1 - beta * delta(*x)), {"beta": 3.0}),
    Row("exo", losses.exo, PAIRS, exo_formula, {"beta": 0.5, "label_smoothing": 0.1}),
    Row("nca", losses.nca, PAIRS, nca_formula, {"beta": 0.5}),
    Row(
        "sppo",
        losses.sppo,
        PAIRS,
        lambda c, r, rc, rr, *, beta, chosen_win_prob: (
            (c - rc - (chosen_win_prob - 0.5) / beta) ** 2 + (r - rr - (0.5 - chosen_win_prob) / beta) ** 2
        ),
        {"beta": 0.5, "chosen_win_prob": 0.9},
    ),
    Row(
        "apo_zero",
        losses.apo_zero,
        PAIRS,
        lambda c, r, rc, rr, *, beta: 1 - sigmoid(beta * (c - rc)) + sigmoid(beta * (r - rr)),
        {"beta": 0.5},
    ),
    Row(
        "apo_down",
        losses.apo_down,
        PAIRS,
        lambda c, r, rc, rr, *, beta: sigmoid(beta * (c - rc)) + 1 - sigmoid(beta * ((c - rc) - (r - rr))),
        {"beta": 0.5},
    ),
    Row(
        "cpo",
        lambda c, r, n, **rest: losses.cpo(c, r, chosen_lengths=n, **rest),
        {"chosen_log_probs": "log_prob*", "rejected_log_probs": "log_prob*", "chosen_lengths": "length"},
        lambda c, r, n, *, beta, nll_coef: -log_sigmoid(beta * (c - r)) - nll_coef * c / n,
        {"beta": 0.5, "nll_coef": 0.7},
    ),
    Row(
        "simpo",
        losses.simpo,
        MEANS,
        lambda c, r, *, beta, gamma: -log_sigmoid(beta * (c - r) - gamma),
        {"beta": 2.0, "gamma": 0.5},
    ),
    Row("orpo", losses.orpo, MEANS, orpo_formula, {"odds_coef": 0.1}),
    Row(
        "kto",
        losses.kto,
        REFERENCE | {"desirable": "flag", "reference_kl": "scalar"},
        kto_formula,
        {"beta": 0.5, "desirable_weight": 1.2, "undesirable_weight": 0.8},
    ),
    Row(
        "cross_entropy",
        losses.cross_entropy,
        {"logits": "logits*", "targets": "index"},
        cross_entropy_formula,
        {"label_smoothing": 0.1},
    ),
    Row("z_loss", losses.z_loss, {"logits": "logits*"}, lambda z: np.log(np.exp(z).sum(-1)) ** 2),
    Row(
        "forward_distillation",
        losses.forward_distillation,
        DISTILL,
        lambda s, t, *, temperature: kl_formula(softmax(t / temperature), softmax(s / temperature)),
        {"temperature": 1.5},
    ),
    Row(
        "reverse_distillation",
        losses.reverse_distillation,
        DISTILL,
        lambda s, t, *, temperature: kl_formula(softmax(s / temperature), softmax(t / temperature)),
        {"temperature": 1.5},
    ),
    Row("generalized_jsd", losses.generalized_jsd, DISTILL, jsd_formula, {"beta": 0.3, "temperature": 1.5}),
    Row(
        "chunked_token_log_probs",
        chunked,
        {"hidden": "hidden*", "unembedding": "matrix*", "tokens": "index"},
        chunked_formula,
        {"temperature": 0.7},
    ),
    # The returns have their loops in tests/test_returns.py.
    Row(
        "discounted_returns",
        lambda r, d, c, n, **rest: returns.discounted_returns(r, d, c, n, axis=-1, **rest),
        {"rewards": "value*", "terminated": "flag", "truncated": "flag", "next_values": "value*"},
        None,
        {"discount": 0.9},
    ),
    Row(
        "lambda_returns",
        functools.partial(returns.lambda_returns, **along_time),
        STEPS,
        None,
        {"discount": 0.9, "lambda_": 0.8},
    ),
    Row(
        "n_step_returns",
        functools.partial(returns.n_step_returns, n=2, axis=-1),
        STEPS,
        None,
        {"discount": 0.9},
    ),
    Row(
        "generalized_advantage_estimation",
        functools.partial(returns.generalized_advantage_estimation, **along_time),
        STEPS,
        None,
        {"discount": 0.9, "gae_lambda": 0.8},
    ),
    Row(
        "vtrace",
        lambda *x, **rest: returns.vtrace(*x[:-1], log_ratios=x[-1], axis=-1, **rest),
        STEPS | {"log_ratios": "value*"},
        None,
        {"discount": 0.9, "lambda_": 0.8, "clip_rho": 1.1, "clip_c": 0.9},
    ),
]
rows = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)


def as_tuple(x):
    return x if isinstance(x, tuple) else (x,)


@functools.cache
def arguments(name):
    row = next(row for row in TABLE if row.name == name)
    rng = np.random.default_rng(len(name))
    return {key: draw(kind, rng) for key, kind in row.arguments.items()}


def cast(values, dtype=np.float32):
    return {k: jnp.asarray(x, dtype if x.dtype == np.float64 else None) for k, x in values.items()}


def plant(values):
    """Garbage in every masked slot: nan and infinities, ids far out of range, flipped flags."""
    planted = {}
    for name, x in values.items():
        if x.shape[:2] != (B, T):
            planted[name] = x
            continue
        x = x.copy()
        slots = x[~MASK]
        if x.dtype == bool:
            x[~MASK] = ~slots
        elif x.dtype == np.float64:
            x[~MASK] = np.resize(GARBAGE, slots.shape)
        else:
            x[~MASK] = 10**6
        planted[name] = x
    return planted


def evaluate(row):
    """(arguments, hyper, mask) ↦ (gradients of the floating arguments of a weighted sum, values)."""

    def weighted(floats, others, hyper, mask):
        values = {**floats, **others}
        outputs = as_tuple(row.function(*(values[k] for k in row.arguments), **hyper, mask=mask))
        total = sum((out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum() for out in outputs)
        return total, outputs

    def both(values, hyper, mask):
        floats = {k: x for k, x in values.items() if jnp.issubdtype(x.dtype, jnp.floating)}
        others = {k: x for k, x in values.items() if k not in floats}
        return jax.grad(weighted, has_aux=True)(floats, others, hyper, mask)

    return both


@functools.cache
def compiled(name):
    return jax.jit(evaluate(next(row for row in TABLE if row.name == name)))


def hyper_arrays(row):
    return {k: jnp.float32(v) for k, v in row.hyper.items()}


def assert_close(a, b, atol=2e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=atol), a, b)


@rows
def test_value_is_the_formula(row):
    if row.formula is None:
        pytest.skip("its oracle is a loop, in tests/test_returns.py")
    values = arguments(row.name)
    _, outputs = compiled(row.name)(cast(values), hyper_arrays(row), np.ones_like(MASK))
    for out, expected in zip(outputs, as_tuple(row.formula(*values.values(), **row.hyper)), strict=True):
        assert out.shape == (B, T)
        np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-6)


@rows
@pytest.mark.parametrize("jitted", [True, False], ids=["jit", "eager"])
def test_masked_slots_are_never_read(row, jitted):
    values, hyper = arguments(row.name), hyper_arrays(row)
    clean = compiled(row.name)(cast(values), hyper, MASK)
    with jax.debug_infs(False):
        run = compiled(row.name) if jitted else evaluate(row)
        grads, outputs = run(cast(plant(values)), hyper, MASK)
    for out in outputs:
        assert (np.asarray(out)[~MASK] == 0).all()
    for name, grad in grads.items():
        assert np.isfinite(grad).all(), name
        if grad.shape[:2] == (B, T):
            assert (np.asarray(grad)[~MASK] == 0).all(), name
    assert_close((grads, outputs), clean, atol=0 if jitted else 2e-6)


@rows
def test_gradients_flow_only_where_documented(row):
    grads, _ = compiled(row.name)(cast(arguments(row.name)), hyper_arrays(row), MASK)
    for name, grad in grads.items():
        assert (np.abs(grad).max() > 0) == (name in row.flows), name


@rows
def test_vmap_is_a_loop_and_leading_axes_are_free(row):
    values, hyper = cast(arguments(row.name)), hyper_arrays(row)
    in_axes = {k: 0 if x.shape[:2] == (B, T) else None for k, x in values.items()}

    def apply(values, mask):
        return as_tuple(row.function(*(values[k] for k in row.arguments), **hyper, mask=mask))

    _, whole = compiled(row.name)(values, hyper, MASK)
    assert_close(jax.jit(jax.vmap(apply, in_axes=(in_axes, 0)))(values, MASK), whole)
    deeper = {k: x[None] if in_axes[k] == 0 else x for k, x in values.items()}
    assert_close(apply(deeper, MASK[None]), tuple(out[None] for out in whole))


@rows
def test_hyper_parameters_are_traced_and_mapped_without_retracing(row):
    values, hyper = cast(arguments(row.name)), hyper_arrays(row)
    traces = []

    @jax.jit
    def mapped(values, hyper, mask):
        traces.append(1)
        return jax.vmap(evaluate(row), in_axes=(None, 0, None))(values, hyper, mask)

    pair = {k: jnp.stack([x, 1.05 * x]) for k, x in hyper.items()}
    if not hyper:
        compiled(row.name)(values, hyper, MASK)
        before = compiled(row.name)._cache_size()
        compiled(row.name)(jax.tree.map(lambda x: x + 0, values), hyper, MASK)
        assert compiled(row.name)._cache_size() == before
        return
    both = mapped(values, pair, MASK)
    for i in range(2):
        single = compiled(row.name)(values, jax.tree.map(lambda x, i=i: x[i], pair), MASK)
        assert_close(jax.tree.map(lambda x, i=i: x[i], both), single)
    mapped(values, jax.tree.map(lambda x: x * 1.1, pair), MASK)
    assert len(traces) == 1


@rows
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64], ids=["bf16", "f32", "f64"])
def test_dtypes(row, dtype):
    """Losses are float32 or wider; a gradient has the dtype of its argument."""
    with jax.enable_x64(dtype == jnp.float64):
        values = cast(arguments(row.name), dtype)
        grads, outputs = jax.eval_shape(evaluate(row), values, row.hyper, MASK)
    for out in outputs:
        assert out.dtype == jnp.promote_types(dtype, jnp.float32)
    for name, grad in grads.items():
        assert grad.dtype == values[name].dtype, name


@rows
def test_gradient_is_the_derivative(row, x64):
    if row.surrogate:
        # The gradient is by design another function's; the enumeration tests say which.
        pytest.skip("its gradient is not meant to be the derivative of its value")
    if not row.flows:
        pytest.skip("a constant")
    values = cast(arguments(row.name), np.float64)

    def apply(*flowing):
        full = values | dict(zip(row.flows, flowing, strict=True))
        return row.function(*(full[k] for k in row.arguments), **row.hyper, mask=MASK)

    check_grads(jax.jit(apply), [values[k] for k in row.flows], order=1, modes=["rev"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("row", [row for row in TABLE if len(row.arguments) > 1], ids=lambda row: row.name)
def test_a_wrong_shape_is_named(row):
    values = cast(arguments(row.name))
    for name in list(values)[1:]:
        if values[name].ndim < 2 or values[name].shape[0] != B:
            continue
        wrong = values | {name: values[name][:2]}
        with pytest.raises(ValueError, match=r"has shape|incompatible|broadcast"):
            row.function(*wrong.values(), **row.hyper)
