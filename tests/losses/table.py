"""The table that drives the tests of every loss and every return: see `test_table.py`.

A row names the function, its arguments by what they hold, which of them gradients flow through, its
hyper-parameters, and its formula in NumPy, written down from the paper.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from jaxrl4lm import losses, returns
from tests.losses.formulas import (
    aot_formula,
    at,
    chunked_formula,
    cispo_surrogate,
    clip_formula,
    cross_entropy_formula,
    delta,
    discopop_formula,
    discounted_formula,
    dppo_formula,
    exo_formula,
    gae_formula,
    gmpo_formula,
    gspo_token_surrogate,
    jsd_formula,
    k2_formula,
    k3_formula,
    kl_formula,
    kto_formula,
    lambda_formula,
    log_sigmoid,
    log_softmax,
    nca_formula,
    near_policy_formula,
    orpo_formula,
    over_sequence,
    ppo_formula,
    quantile_formula,
    robust_formula,
    sequence_ratio_surrogate,
    sigmoid,
    softmax,
    two_step_formula,
    vespo_gate,
    vespo_surrogate,
    vtrace_formula,
)

B, T, A, D = 3, 4, 5, 6


@dataclasses.dataclass
class Row:
    name: str
    function: Callable
    arguments: dict[str, str]
    """parameter → what it holds: see `draw`. Those marked with * let gradients flow."""
    formula: Callable
    """(*arguments, **hyper) ↦ the value, in NumPy."""
    hyper: dict[str, float] = dataclasses.field(default_factory=dict)
    surrogate: Callable | None = None
    """(at, mask) ↦ f, f(*arguments, **hyper) the function of which its gradient is the derivative, at the
    first argument `at`, in NumPy. None: the loss itself."""

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
        cispo_surrogate,
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
        losses.ppo_kl_penalty,
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
    Row("surrogate", losses.trpo.surrogate, POLICY, lambda lp, old, a: -np.exp(lp - old) * a),
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
        gspo_token_surrogate,
    ),
    Row("gmpo", losses.gmpo, POLICY, gmpo_formula, {"clip_eps": 0.1, "clip_eps_high": 0.15}),
    Row("dppo", losses.dppo, POLICY, dppo_formula, {"threshold": 0.05}),
    Row(
        "vespo",
        losses.vespo,
        POLICY,
        lambda lp, old, a, **hyper: -vespo_gate(lp - old, a, **hyper) * a * lp,
        {"power": 2.0, "decay": 3.0, "negative_power": 3.0, "negative_decay": 2.0},
        vespo_surrogate,
    ),
    Row(
        "sequence_log_probs",
        losses.sequence_log_probs,
        {"log_probs": "log_prob*", "old_log_probs": "log_prob"},
        lambda lp, old: old + over_sequence(lp - old),
    ),
    Row(
        "near_policy_sequences",
        losses.near_policy_sequences,
        {"log_probs": "log_prob", "sampler_log_probs": "log_prob", "advantages": "value"},
        near_policy_formula,
        {"threshold": 0.0},
    ),
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
    Row("k2", losses.kl.k2, REFERENCE, k2_formula),
    Row("k3", losses.kl.k3, REFERENCE, k3_formula),
    Row(
        "k3_value_k2_gradient",
        losses.kl.k3_value_k2_gradient,
        REFERENCE,
        k3_formula,
        surrogate=lambda at, mask: k2_formula,
    ),
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
        surrogate=functools.partial(sequence_ratio_surrogate, lambda lp, ref: lp - ref),
    ),
    Row(
        "sequence_ratio_k3",
        losses.kl.sequence_ratio_k3,
        REFERENCE,
        lambda lp, ref: k3_formula(lp, ref).sum(-1, keepdims=True) + 0 * lp,
        surrogate=functools.partial(sequence_ratio_surrogate, k3_formula),
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
        "quantile_huber",
        losses.quantile_huber,
        {"quantiles": "logits*", "targets": "logits"},
        quantile_formula,
        {"kappa": 0.8},
    ),
    Row(
        "quantile_huber_exact",
        losses.quantile_huber,
        {"quantiles": "logits*", "targets": "logits"},
        quantile_formula,
        {"kappa": 0.0},
    ),
    Row(
        "categorical_value",
        losses.categorical_value,
        {"logits": "logits*", "target_probs": "probs"},
        lambda z, p: -(p * log_softmax(z)).sum(-1),
    ),
    Row(
        "td_error",
        losses.td_error,
        {"values": "value*", "rewards": "value", "next_values": "value", "terminated": "flag"},
        lambda v, r, n, d, *, discount: r + discount * (1 - d) * n - v,
        {"discount": 0.9},
    ),
    Row(
        "soft_td_error",
        losses.soft_td_error,
        {
            "values": "value*",
            "rewards": "value",
            "next_values": "value",
            "next_log_probs": "log_prob",
            "terminated": "flag",
        },
        lambda v, r, n, lp, d, *, discount, temperature: r + discount * (1 - d) * (n - temperature * lp) - v,
        {"discount": 0.9, "temperature": 0.3},
    ),
    Row(
        "soft_policy",
        losses.soft_policy,
        {"log_probs": "log_prob*", "q_values": "value*"},
        lambda lp, q, *, temperature: temperature * lp - q,
        {"temperature": 0.3},
    ),
    Row(
        "soft_temperature",
        losses.soft_temperature,
        {"log_probs": "log_prob", "log_temperature": "value*"},
        lambda lp, log_alpha, *, target_entropy: -np.exp(log_alpha) * (lp + target_entropy),
        {"target_entropy": 0.4},
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
        losses.ipo,
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
        "bco_pair",
        losses.bco_pair,
        PAIRS,
        lambda c, r, rc, rr, *, beta: -log_sigmoid(beta * (c - rc)) - log_sigmoid(beta * (rr - r)),
        {"beta": 0.5},
    ),
    Row("discopop", losses.discopop, PAIRS, discopop_formula, {"beta": 0.5, "temperature": 0.1}),
    Row("aot", losses.aot, PAIRS, aot_formula, {"beta": 0.5, "label_smoothing": 0.1}),
    Row(
        "aot_unpaired",
        losses.aot_unpaired,
        PAIRS,
        lambda c, r, rc, rr, **hyper: aot_formula(c - rc, 0 * c, r - rr, 0 * c, **hyper),
        {"beta": 0.5, "label_smoothing": 0.1},
    ),
    Row(
        "alpha_score",
        losses.alpha_score,
        {"log_ratios": "value*"},
        lambda d, *, alpha: (np.exp((alpha - 1) * d) - 1) / (alpha - 1),
        {"alpha": 0.5},
    ),
    Row(
        "jensen_shannon_score",
        losses.jensen_shannon_score,
        {"log_ratios": "value*"},
        lambda d: np.log(2 * np.exp(d) / (np.exp(d) + 1)),
    ),
    Row(
        "cpo",
        losses.cpo,
        {"chosen_log_probs": "log_prob*", "rejected_log_probs": "log_prob*", "chosen_lengths": "length"},
        lambda c, r, n, *, beta, nll_coef, label_smoothing: (
            -(1 - label_smoothing) * log_sigmoid(beta * (c - r))
            - label_smoothing * log_sigmoid(-beta * (c - r))
            - nll_coef * c / n
        ),
        {"beta": 0.5, "nll_coef": 0.7, "label_smoothing": 0.1},
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
        "apo_zero_unpaired",
        losses.apo_zero_unpaired,
        REFERENCE | {"desirable": "flag"},
        lambda lp, ref, good, **hyper: kto_formula(lp, ref, good, 0.0, **hyper),
        {"beta": 0.5, "desirable_weight": 1.2, "undesirable_weight": 0.8},
    ),
    Row(
        "bco",
        losses.bco,
        REFERENCE | {"desirable": "flag", "reward_shift": "scalar"},
        lambda lp, ref, good, shift, *, beta, desirable_weight, undesirable_weight: np.where(
            good,
            -desirable_weight * log_sigmoid(beta * (lp - ref) - shift),
            -undesirable_weight * log_sigmoid(shift - beta * (lp - ref)),
        ),
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
    # The returns over gaps of the mask have their loops in tests/test_returns.py.
    Row(
        "discounted_returns",
        functools.partial(returns.discounted_returns, **along_time),
        {"rewards": "value*", "terminated": "flag", "truncated": "flag", "next_values": "value*"},
        discounted_formula,
        {"discount": 0.9},
    ),
    Row(
        "lambda_returns",
        functools.partial(returns.lambda_returns, **along_time),
        STEPS,
        lambda_formula,
        {"discount": 0.9, "lambda_": 0.8},
    ),
    Row(
        "n_step_returns",
        functools.partial(returns.n_step_returns, n=2, **along_time),
        STEPS,
        two_step_formula,
        {"discount": 0.9},
    ),
    Row(
        "generalized_advantage_estimation",
        functools.partial(returns.generalized_advantage_estimation, **along_time),
        STEPS,
        gae_formula,
        {"discount": 0.9, "gae_lambda": 0.8},
    ),
    Row(
        "vtrace",
        functools.partial(returns.vtrace, **along_time),
        STEPS | {"log_ratios": "value*"},
        vtrace_formula,
        {"discount": 0.9, "lambda_": 0.8, "clip_rho": 1.1, "clip_c": 0.9},
    ),
]
