"""Files of tensors: what is found wrong with numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm.models.tensor_files import is_finite


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, jnp.bfloat16])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_found_anywhere(dtype, value):
    largest = jnp.finfo(dtype).max
    tensor = np.full((600, 700), largest, dtype)
    tensor[::2], tensor[1::7] = -largest, 0
    assert is_finite(tensor)
    for place in ((0, 0), (374, 343), (374, 344), (599, 699)):
        other = tensor.copy()
        other[place] = value
        assert not is_finite(other)
    assert is_finite(np.zeros((0, 3), dtype))
    assert not is_finite(np.array(value, dtype))
