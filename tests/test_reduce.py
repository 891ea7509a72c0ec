"""Averages against NumPy over lists of tokens; fractions over micro-batches against the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import reduce

MASK = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 1]], bool)
LOSS = np.where(MASK, np.random.default_rng(0).normal(size=MASK.shape), np.nan).astype(np.float32)
TOKENS = [row[keep] for row, keep in zip(LOSS, MASK, strict=True) if keep.any()]

AVERAGES = {
    "token_mean": (reduce.token_mean, reduce.token_fraction, np.concatenate(TOKENS).mean()),
    "sequence_mean": (
        reduce.sequence_mean,
        reduce.sequence_mean_fraction,
        np.mean([tokens.mean() for tokens in TOKENS]),
    ),
    "sequence_sum": (
        reduce.sequence_sum,
        reduce.sequence_sum_fraction,
        np.mean([tokens.sum() for tokens in TOKENS]),
    ),
    "constant_length": (
        lambda x, m: reduce.constant_length(x, m, length=10),
        lambda x, m: reduce.constant_length_fraction(x, m, length=10),
        sum(tokens.sum() for tokens in TOKENS) / (len(TOKENS) * 10),
    ),
}
averages = pytest.mark.parametrize("mean, fraction, expected", AVERAGES.values(), ids=AVERAGES)


@averages
def test_average(mean, fraction, expected):
    np.testing.assert_allclose(mean(LOSS, MASK), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(mean)(LOSS, MASK), expected, rtol=1e-6)
    np.testing.assert_allclose(reduce.divide(fraction(LOSS, MASK)), expected, rtol=1e-6)


@averages
def test_micro_batches_give_the_gradient_of_the_whole(mean, fraction, expected):
    del expected
    whole = jax.grad(mean)(LOSS, MASK)

    def accumulated(loss):
        return reduce.divide(
            reduce.add(*[fraction(loss[i : i + 1], MASK[i : i + 1]) for i in range(len(MASK))])
        )

    np.testing.assert_allclose(jax.grad(accumulated)(LOSS), whole, rtol=1e-6)
    assert (np.asarray(whole)[~MASK] == 0).all()
    assert np.isfinite(whole).all()


def test_the_mean_of_micro_batch_means_is_another_number():
    parts = [reduce.token_mean(LOSS[i], MASK[i]) for i in (0, 1, 3)]
    assert abs(np.mean(parts) - reduce.token_mean(LOSS, MASK)) > 0.01


@averages
def test_fractions_add_over_devices(mean, fraction, expected):
    del mean
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")

    def shard(loss, mask):
        return reduce.divide(jax.lax.psum(fraction(loss, mask), "data"))

    result = jax.shard_map(shard, mesh=mesh, in_specs=(spec, spec), out_specs=jax.sharding.PartitionSpec())
    np.testing.assert_allclose(jax.jit(result)(LOSS, MASK), expected, rtol=1e-6)


@averages
def test_nothing_counted_is_zero(mean, fraction, expected):
    del fraction, expected
    value, grad = jax.value_and_grad(mean)(LOSS, np.zeros_like(MASK))
    assert value == 0
    assert (grad == 0).all()


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 1)])
@pytest.mark.parametrize("ddof", [0, 1])
def test_masked_moments(axis, ddof):
    keep = MASK | (np.arange(4) == 0)[:, None]
    x = np.random.default_rng(1).normal(3, size=MASK.shape).astype(np.float32)
    masked = np.ma.masked_array(x, ~keep)
    np.testing.assert_allclose(reduce.masked_mean(x, keep, axis=axis), masked.mean(axis), rtol=1e-6)
    expected = masked.var(axis, ddof=ddof)
    expected = np.where(np.sum(keep, axis) > ddof, np.ma.filled(expected, 0), 0)
    np.testing.assert_allclose(reduce.masked_variance(x, keep, axis=axis, ddof=ddof), expected, rtol=1e-5)


def test_whitening():
    white = np.asarray(reduce.whiten(LOSS, MASK))
    tokens = white[MASK]
    np.testing.assert_allclose([tokens.mean(), tokens.std()], [0, 1], atol=1e-6)
    assert (white[~MASK] == 0).all()
    kept = np.asarray(reduce.whiten(LOSS, MASK, shift_mean=False))[MASK]
    np.testing.assert_allclose(kept, tokens + LOSS[MASK].mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_whitening_without_information_is_exactly_zero(count):
    keep = np.arange(4) < count
    x = np.where(keep, np.float32(0.7), np.nan)
    assert (reduce.whiten(x, keep) == 0).all()
    assert np.isfinite(jax.grad(lambda x: (reduce.whiten(x, keep) ** 2).sum())(x)).all()


def test_a_mask_that_does_not_fit_says_so():
    with pytest.raises(ValueError, match=r"mask has shape \(4,\).*\(4, 4\).*mask\[:, None\]"):
        reduce.token_mean(LOSS, MASK[:, 0])


def test_zeros_and_ones_are_a_mask():
    np.testing.assert_array_equal(
        reduce.token_mean(LOSS, jnp.asarray(MASK, jnp.float32)), reduce.token_mean(LOSS, MASK)
    )


@pytest.mark.parametrize("level", [0.0, 0.7, -1e6, 1e-30])
def test_values_differ_by_more_than_rounding(level):
    """Eight equal values do not differ, whatever their computed deviation; a visible difference counts."""
    equal = jnp.full((2, 8), level, jnp.float32)
    assert not reduce.differ(equal, axis=-1).any()
    assert reduce.differ(equal, axis=-1).shape == (2, 1)
    rounded = equal.at[0, 3].multiply(1 + 2e-7)
    assert not reduce.differ(rounded, axis=-1).any()
    different = equal.at[0, 3].add(max(abs(level), 1e-3) * 1e-5)
    np.testing.assert_array_equal(reduce.differ(different, axis=-1), [[True], [False]])
    assert reduce.differ(different).shape == (1, 1)


def test_what_counts_differs():
    values = jnp.array([[1.0, 1.0, jnp.nan], [1.0, 2.0, 3.0]])
    mask = jnp.array([[1, 1, 0], [0, 1, 0]])
    assert not reduce.differ(values, mask, axis=-1).any()
    assert reduce.differ(values, axis=-1).all()


def test_strict_promotion_is_respected():
    values, mask = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((2, 3), jnp.int8)
    with jax.numpy_dtype_promotion("strict"):
        for mean, *_ in AVERAGES.values():
            assert mean(values, mask).dtype == jnp.float32
        assert reduce.whiten(values, mask).dtype == jnp.float32
        assert reduce.masked_variance(values, mask, axis=-1, ddof=1).dtype == jnp.float32
