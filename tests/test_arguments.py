"""The last real token of a row, against a Python loop over rows with gaps, without tokens, and full ones."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm.arguments import last_token

MASKS = np.array(list(itertools.product([0, 1], repeat=6)))


def marked(row):
    ones = [t for t, real in enumerate(row) if real]
    return [bool(ones) and t == ones[-1] for t in range(len(row))]


@pytest.mark.parametrize("dtype", [bool, np.int8, np.float32])
def test_last_token_of_every_mask_of_six(dtype):
    expected = np.array([marked(row) for row in MASKS])
    result = jax.jit(last_token)(MASKS.astype(dtype))
    assert result.dtype == bool
    np.testing.assert_array_equal(result, expected)


def test_a_gap_is_no_end():
    np.testing.assert_array_equal(last_token(jnp.array([1, 1, 0, 1, 1, 0])), [0, 0, 0, 0, 1, 0])


@pytest.mark.parametrize("axis", [0, 1, -2, -1])
def test_axis(axis):
    mask = MASKS.reshape(4, 16, 6)
    expected = np.apply_along_axis(marked, axis, mask)
    np.testing.assert_array_equal(last_token(mask, axis=axis), expected)


def test_rows_of_no_length():
    assert last_token(jnp.zeros((3, 0))).shape == (3, 0)
