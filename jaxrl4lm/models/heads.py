"""Task heads: linear functions of a backbone's hidden states, with parameters of their own.

Shapes: `B` sequences, `T` tokens, `D` width, `N` outputs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.arguments import last_token
from jaxrl4lm.types import Array, Key


class Head(NamedTuple):
    """The parameters of h W + b."""

    kernel: Array
    """`[D, N]`."""
    bias: Array
    """`[N]`."""


def init_head(key: Key, width: int, outputs: int) -> Head:
    """A random head: W normal with variance 1 / (D + 1), as reward models usually start, b zero.

    Reference: Stiennon et al. 2020, arXiv:2009.01325.
    """
    return Head(jax.random.normal(key, (width, outputs)) * (width + 1) ** -0.5, jnp.zeros(outputs))


def token_outputs(head: Head, hidden: Array) -> Array:
    """Float32 outputs `[B, T, N]` of every token, from hidden states `[B, T, D]`: token classification."""
    return jnp.matmul(hidden.astype(jnp.float32), head.kernel) + head.bias[None, None]


def sequence_outputs(head: Head, hidden: Array, mask: Array | None = None) -> Array:
    """Float32 outputs `[B, N]` of every sequence, read at its last real token.

    For classification with N labels, or a scalar reward with N = 1.

    Args:
      hidden: `[B, T, D]`.
      mask: bool `[B, T]`, False at padding, on either side. None: no padding.
    """
    B, T, _ = hidden.shape
    last = jnp.full((B,), T - 1) if mask is None else last_token(mask).argmax(-1)
    return token_outputs(head, jnp.take_along_axis(hidden, last[:, None, None], axis=1))[:, 0]


def span_outputs(head: Head, hidden: Array, mask: Array) -> tuple[Array, Array]:
    """Float32 logits `[B, T]` of where a span starts, and of where it ends; -inf at padding. The head has N = 2."""
    outputs = jnp.where(mask[..., None], token_outputs(head, hidden), -jnp.inf)
    return outputs[..., 0], outputs[..., 1]
