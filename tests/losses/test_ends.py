"""Hyper-parameters at the ends of their ranges: finite values, and derivatives that are the one-sided ones."""

import dataclasses
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import advantages, losses, reduce
from tests.losses.table import TABLE
from tests.losses.test_table import MASK, arguments, as_tuple, cast, plant, weigh
from tests.selection import slow_but

SMALL = 1e-3
"""Stands for the end of a range that is open at 0: a temperature, a divisor."""

BY_NAME = {
    "alpha": [0.0],
    "beta": [0.0],
    "cap": [0.0],
    "center_coef": [0.0],
    "clip_c": [0.0],
    "clip_eps": [0.0],
    "clip_eps_high": [0.0],
    "clip_rho": [0.0],
    "delta": [0.0],
    "desirable_weight": [0.0],
    "discount": [0.0, 1.0],
    "dual_clip": [1.0],
    "entropy_coef": [0.0],
    "gae_lambda": [0.0, 1.0],
    "gamma": [0.0],
    "high": [0.0],
    "informative_fraction": [0.0, 1.0],
    "label_smoothing": [0.0, 1.0],
    "lambda_": [0.0, 1.0],
    "kappa": [0.0],
    "low": [0.0],
    "margin": [0.0],
    "negative_temperature": [SMALL],
    "nll_coef": [0.0],
    "odds_coef": [0.0],
    "chosen_win_prob": [0.0, 1.0],
    "target_entropy": [0.0],
    "temperature": [SMALL],
    "threshold": [0.0],
    "power": [0.0],
    "decay": [0.0],
    "negative_power": [0.0],
    "negative_decay": [0.0],
    "undesirable_weight": [0.0],
    "value_coef": [0.0],
}
BY_ROW = {
    ("generalized_jsd", "beta"): [0.0, 1.0],
    ("ipo", "beta"): [SMALL],
    ("ipo_per_token", "beta"): [SMALL],
    ("soft_policy", "temperature"): [0.0],
    ("soft_td_error", "temperature"): [0.0],
    ("sppo", "beta"): [SMALL],
    ("exo", "label_smoothing"): [SMALL, 1 - SMALL],
    ("robust_dpo", "label_smoothing"): [0.0, 0.5 - SMALL],
}

CONSTANT = {
    ("bradley_terry", "margin"),
    ("chunked_token_log_probs", "temperature"),
    ("cispo", "clip_eps"),
    ("cispo", "clip_eps_high"),
    ("gpg", "informative_fraction"),
    ("masked_importance_weights", "high"),  # a step function
    ("masked_importance_weights", "low"),
    ("soft_policy", "temperature"),
    ("soft_td_error", "discount"),
    ("soft_td_error", "temperature"),
    ("soft_temperature", "target_entropy"),
    ("sppo", "chosen_win_prob"),
    *(
        (f"{name}_error", "discount")
        for name in ("td", "sarsa", "expected_sarsa", "q_learning", "double_q_learning")
    ),
}
"""Documented as constants, or piecewise constant: no gradient."""

MEETING = {("ppo_clip", "clip_eps"), ("clipped_value", "clip_eps")}
"""Where the two bounds of a clip meet, the derivative is one of several subgradients."""


@dataclasses.dataclass
class Range:
    name: str
    hyper: str
    ends: list[float]
    function: Callable
    """The hyper-parameter ↦ outputs."""


def ranges_of_the_table():
    for row in TABLE:
        for name in row.hyper:

            def function(x, row=row, name=name):
                values = cast(plant(arguments(row.name)), np.float64)
                return row.function(**values, **(row.hyper | {name: x}), mask=MASK)

            yield Range(row.name, name, BY_ROW.get((row.name, name), BY_NAME[name]), function)


REWARDS = np.array([[0.1, 0.7, 0.2], [0.5, 0.5, 0.5], [1.0, 0.0, 0.3]])
KL = np.where(MASK, np.linspace(-0.5, 0.5, 12).reshape(3, 4), np.nan)


def plus_plus(**hyper):
    hyper = {"kl_coef": 0.1, "discount": 0.9} | hyper
    return advantages.reinforce_plus_plus(jnp.arange(3.0), jnp.array(KL), MASK, **hyper)


def overlong(**hyper):
    hyper = {"max_length": 5.0, "buffer": 4.0} | hyper
    return advantages.overlong_penalty(jnp.array([1.0, 7.0]), **hyper)


RANGES = [
    *ranges_of_the_table(),
    Range("group_normalized", "eps", [0.0], lambda x: advantages.group_normalized(jnp.array(REWARDS), eps=x)),
    Range(
        "normalize_then_sum",
        "eps",
        [0.0],
        lambda x: advantages.normalize_then_sum(jnp.stack([REWARDS]), jnp.ones(1), eps=x),
    ),
    Range("batch_normalized", "eps", [0.0], lambda x: advantages.batch_normalized(jnp.array(REWARDS), eps=x)),
    Range("whiten", "eps", [0.0], lambda x: reduce.whiten(jnp.array(KL), MASK, eps=x)),
    Range("whiten_equal", "eps", [0.0], lambda x: reduce.whiten(jnp.full(3, 0.7), eps=x)),
    Range("constant_length", "length", [SMALL], lambda x: reduce.constant_length(KL, MASK, length=x)),
    Range("reinforce_plus_plus", "kl_coef", [0.0], lambda x: plus_plus(kl_coef=x)),
    Range("reinforce_plus_plus", "discount", [0.0, 1.0], lambda x: plus_plus(discount=x)),
    Range("overlong_penalty", "max_length", [0.0], lambda x: overlong(max_length=x)),
    Range("overlong_penalty", "buffer", [0.0], lambda x: overlong(buffer=x)),
]


@pytest.mark.parametrize(
    "case", slow_but(RANGES, len(RANGES) // 3), ids=lambda case: f"{case.name}-{case.hyper}"
)
def test_values_are_finite_and_derivatives_one_sided(case, x64):
    """In double precision, with garbage in the masked slots, mapped over the ends and a step into the range."""
    ends = jnp.array(case.ends, jnp.float64)
    inward = jnp.where(ends < 0.4, 1e-7, -1e-7)

    def total(x):
        outputs = as_tuple(case.function(x))
        return weigh(outputs), outputs

    run = jax.jit(jax.vmap(jax.value_and_grad(total, has_aux=True)))
    (totals, outputs), slopes = run(jnp.concatenate([ends, ends + inward]))
    chex.assert_tree_all_finite((outputs, slopes))
    at, inside = jnp.split(totals, 2)
    constant = (case.name, case.hyper) in CONSTANT
    expected = np.zeros(len(ends)) if constant else (inside - at) / inward
    if (case.name, case.hyper) not in MEETING:
        np.testing.assert_allclose(slopes[: len(ends)], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("student", [[0.3, -1.0, 0.2], [-np.inf, 0.0, 1.0], [90.0, -90.0, 0.0]])
def test_the_ends_of_generalized_jsd(beta, student):
    """Value 0 and no gradient in the logits; the derivative in β is the plain divergence, or finite all the same."""
    student, teacher = jnp.array(student), jnp.array([0.1, 0.5, -np.inf])

    def loss(z, b):
        return losses.generalized_jsd(z, teacher, beta=b)

    value, (grad, slope) = jax.value_and_grad(loss, argnums=(0, 1))(student, jnp.float32(beta))
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(grad, 0, atol=1e-6)
    assert np.isfinite(slope)


def test_the_slopes_of_generalized_jsd_are_the_plain_divergences():
    student, teacher = jnp.array([0.3, -1.0, 0.2]), jnp.array([0.1, 0.5, -0.4])
    slope = jax.grad(lambda b: losses.generalized_jsd(student, teacher, beta=b))
    np.testing.assert_allclose(slope(0.0), losses.forward_distillation(student, teacher), rtol=1e-5)
    np.testing.assert_allclose(slope(1.0), -losses.reverse_distillation(student, teacher), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_smoothing_that_is_off_reads_no_forbidden_token(smoothing):
    logits = jnp.array([1.0, -jnp.inf, 0.5])
    value, slope = jax.value_and_grad(
        lambda e: losses.cross_entropy(logits, jnp.array(0), label_smoothing=e)
    )(smoothing)
    assert value == jnp.inf if smoothing else np.isfinite(value)
    assert not np.isnan(slope)
