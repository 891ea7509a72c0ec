"""Names for the arrays that pass between floors. Shapes: `B` sequences, `T` steps."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax

Array: TypeAlias = jax.Array
Key: TypeAlias = jax.Array
"""A typed PRNG key, from `jax.random.key`."""
Params: TypeAlias = Any
"""A pytree of arrays: plain nested dicts for the networks of this library."""
ScalarLike: TypeAlias = float | jax.Array
"""A Python number or a traced scalar; every hyper-parameter takes either."""
Metrics: TypeAlias = Mapping[str, Array]


class Transition(NamedTuple):
    """One step of many environments; stacked over time each leaf gains a leading axis."""

    observation: Array
    action: Array
    reward: Array
    terminated: Array
    truncated: Array
    final_observation: Array
    """The observation before any reset: what bootstrapping reads."""
    log_prob: Array
    value: Array


class InputError(ValueError):
    """Something that a user gave is wrong; the message is one sentence that names it, its value and the fix."""
