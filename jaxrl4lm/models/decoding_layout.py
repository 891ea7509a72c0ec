"""The weights of a transformer as decoding reads them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl4lm.types import Array, Params

JOINED = {("query", "key", "value"): "query_key_value", ("up", "gate"): "up_gate"}
"""Dense layers that read the same input, and the name of the layer that holds them side by side."""


def lay_out_for_decoding(params: Params) -> Params:
    """The weights in the layout that a step reads fastest.

    Dense layers of the same input are joined, so that one product takes the place of three. On CPU, kernels are stored
    `[out, in]`. Layers with adapters stay as they are.
    """

    def is_plain(p: Any) -> bool:
        return isinstance(p, dict) and set(p) in ({"kernel"}, {"kernel", "bias"})

    def lay_out(p: Any) -> Any:
        if not is_plain(p):
            return lay_out_for_decoding(p) if isinstance(p, dict) else p
        if jax.default_backend() != "cpu":
            return p
        return {"by_output": _move(jnp.transpose, p["kernel"])} | {n: x for n, x in p.items() if n == "bias"}

    layers = dict(params)
    for names, joined in JOINED.items():
        if all(is_plain(layers.get(name)) for name in names):
            parts = [layers.pop(name) for name in names]
            layers[joined] = jax.tree.map(lambda *xs: _move(lambda *xs: jnp.concatenate(xs, -1), *xs), *parts)
    return {name: lay_out(p) for name, p in layers.items()}


def _move(move: Callable[..., Array], *xs: Array) -> Array:
    """move(*xs), for a function that only moves numbers.

    16-bit floats are moved as integers; otherwise XLA:CPU would move float32 copies of them.
    """
    dtype = xs[0].dtype
    if dtype.itemsize != 2:
        return move(*xs)
    bits = jax.lax.optimization_barrier([jax.lax.bitcast_convert_type(x, jnp.uint16) for x in xs])
    return jax.lax.bitcast_convert_type(jax.lax.optimization_barrier(move(*bits)), dtype)
