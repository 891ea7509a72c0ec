"""Diagnostics against NumPy over the tokens that count, whole and in micro-batches."""

import jax
import numpy as np
import pytest

from jaxrl4lm import diagnostics

rng = np.random.default_rng(0)
SHAPE = (6, 5)
MASK = rng.random(SHAPE) < 0.6
MASK[2] = False
LOG_PROBS, OLD = -1 - rng.random((2, *SHAPE)) * 0.6
ADVANTAGES, VALUES, TARGETS, ENTROPIES = rng.normal(size=(4, *SHAPE))


def planted(x):
    return np.where(MASK, x, np.nan).astype(np.float32)


def policy(rows):
    return diagnostics.policy(
        planted(LOG_PROBS)[rows],
        planted(OLD)[rows],
        planted(ADVANTAGES)[rows],
        clip_eps=0.1,
        clip_eps_high=0.2,
        entropies=planted(ENTROPIES)[rows],
        mask=MASK[rows],
    )


RATIO, A = np.exp(LOG_PROBS - OLD)[MASK], ADVANTAGES[MASK]
EXPECTED = {
    "policy/ratio_mean": RATIO.mean(),
    "policy/ratio_max": RATIO.max(),
    "policy/clip_frac_low": ((RATIO < 0.9) & (A < 0)).mean(),
    "policy/clip_frac_high": ((RATIO > 1.2) & (A > 0)).mean(),
    "policy/approx_kl": (RATIO - 1 - np.log(RATIO)).mean(),
    "policy/entropy": ENTROPIES[MASK].mean(),
    "mismatch/logprob_diff_max": np.abs(np.log(RATIO)).max(),
    "advantage/mean": A.mean(),
    "advantage/std": A.std(),
}


def test_policy():
    result = diagnostics.to_numbers(jax.jit(lambda: policy(slice(None)))())
    assert result.keys() == EXPECTED.keys()
    for name, expected in EXPECTED.items():
        np.testing.assert_allclose(result[name], expected, rtol=1e-4, atol=1e-6, err_msg=name)


def test_micro_batches_add_up():
    parts = [policy(slice(i, i + 2)) for i in range(0, 6, 2)]
    result = diagnostics.to_numbers(diagnostics.combine(*parts))
    for name, expected in EXPECTED.items():
        if name != "advantage/std":  # by its documentation a mean of deviations
            np.testing.assert_allclose(result[name], expected, rtol=1e-4, atol=1e-6, err_msg=name)


def test_value():
    result = diagnostics.to_numbers(diagnostics.value(planted(VALUES), planted(TARGETS), mask=MASK))
    v, r = VALUES[MASK], TARGETS[MASK]
    np.testing.assert_allclose(result["value/loss"], ((v - r) ** 2 / 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(result["value/mean"], v.mean(), rtol=1e-5)
    np.testing.assert_allclose(result["value/explained_variance"], 1 - (r - v).var() / r.var(), rtol=1e-4)


@pytest.mark.parametrize("values, explained", [(TARGETS, 1), (TARGETS + 3, 1), (0 * TARGETS, 0)])
def test_explained_variance_at_its_ends(values, explained):
    result = diagnostics.to_numbers(diagnostics.value(values, TARGETS))
    np.testing.assert_allclose(result["value/explained_variance"], explained, atol=1e-5)


def test_reference_kl():
    result = diagnostics.to_numbers(diagnostics.reference_kl(planted(LOG_PROBS), planted(OLD), mask=MASK))
    x = np.log(RATIO)
    np.testing.assert_allclose(result["kl/ref"], (np.exp(-x) - 1 + x).mean(), rtol=1e-4)
    np.testing.assert_allclose(result["kl/ref_sequence"], x.sum() / MASK.any(1).sum(), rtol=1e-4)


def test_rewards():
    rewards = np.array([[0, 1, 1, 0], [0.7, 0.7, 0.7, 0.7], [0, 0, 0, 1]], np.float32)
    result = diagnostics.to_numbers(diagnostics.rewards(rewards))
    expected = {
        "reward/mean": rewards.mean(),
        "reward/std": rewards.std(),
        "group/frac_zero_std": 1 / 3,
        "pass_at_1": 3 / 12,
        "pass_at_n": 2 / 3,
    }
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-5, err_msg=name)


def test_completions():
    mask = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0]])
    result = diagnostics.to_numbers(diagnostics.completions(mask, np.array([True, False, True])))
    expected = {"completion/length_mean": 2, "completion/eos_frac": 2 / 3, "completion/truncated_frac": 1 / 3}
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-6)


def test_diagnostics_have_no_gradient():
    def total(x):
        entries = diagnostics.policy(x, OLD, ADVANTAGES) | diagnostics.value(x, TARGETS)
        return sum(diagnostics.to_numbers(entries).values())

    assert (jax.grad(total)(LOG_PROBS.astype(np.float32)) == 0).all()


@pytest.mark.parametrize(
    "name", ["old_log_probs", "advantages", "entropies", "loss", "clip_eps", "clip_eps_high"]
)
def test_a_wrong_shape_is_named(name):
    arrays = {"log_probs": LOG_PROBS, "old_log_probs": OLD, "advantages": ADVANTAGES}
    with pytest.raises(ValueError, match=rf"{name} has shape \(5,\)"):
        diagnostics.policy(**(arrays | {name: np.ones(5)}))


def test_nothing_at_all():
    empty = np.zeros((0, 4), np.float32)
    row = diagnostics.to_numbers(diagnostics.policy(empty, empty, empty))
    assert all(value == 0 for value in row.values())


def test_micro_batches_with_other_names_are_refused():
    rewards, lengths = diagnostics.rewards(np.eye(3)), diagnostics.completions(np.eye(3), np.ones(3))
    with pytest.raises(ValueError, match=r"some micro-batches have .*reward/mean"):
        diagnostics.combine(lengths, rewards)
    with pytest.raises(ValueError, match=r"some micro-batches have .*completion/length_mean"):
        diagnostics.combine(rewards, rewards | lengths)
    assert diagnostics.combine() == {}


@pytest.mark.parametrize(("deviation", "expected"), [(1e-8, 0.0), (1e-3, 1.0)])
def test_explained_variance_of_targets_that_differ_by_rounding_is_zero(deviation, expected):
    targets = deviation * np.array([1.0, -1.0, 1.0, -1.0])
    values = targets if expected else 1e-7 * np.array([1.0, 1.0, -1.0, -1.0])
    explained = diagnostics.to_numbers(diagnostics.value(values, targets))["value/explained_variance"]
    np.testing.assert_allclose(explained, expected, atol=1e-6)
