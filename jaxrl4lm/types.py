"""Names for what passes between floors: arrays, keys, parameters, metrics, and errors of the user."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax

Array: TypeAlias = jax.Array
Key: TypeAlias = jax.Array
"""A typed PRNG key, from `jax.random.key`."""
Params: TypeAlias = Any
"""A pytree of arrays: plain nested dicts for the networks of this library."""
ScalarLike: TypeAlias = float | jax.Array
"""A Python number or a traced scalar; every hyper-parameter takes either."""
Metrics: TypeAlias = Mapping[str, Array]
"""What an update reports: a name and an array each, scalars or stacked over steps."""


class InputError(ValueError):
    """The user gave something wrong. The message is one sentence: what it is, its value, and the fix."""
