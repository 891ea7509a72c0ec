"""Task heads: functions of a backbone's hidden states, with parameters of their own. Most are linear; those of encoders may
transform the states first.

Shapes: `B` sequences, `T` tokens, `D` width, `N` outputs.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.arguments import last_token
from jaxrl4lm.models.transformer import ACTIVATIONS
from jaxrl4lm.types import Array, Key

POOLER_ACTIVATIONS = {**ACTIVATIONS, "tanh": jnp.tanh}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pooler:
    """activation(h W + b), perhaps normalised: what an encoder's head makes of a state before its linear function."""

    kernel: Array
    """`[D, D]`."""
    bias: Array | None = None
    """`[D]`."""
    scale: Array | None = None
    """`[D]`, of the layer norm; None: there is no norm."""
    shift: Array | None = None
    """`[D]`, of the layer norm."""
    reads: Literal["first", "mean"] = field(default="first", metadata={"static": True})
    """The state that stands for a sequence: that of its first token, or the mean over its tokens."""
    activation: str = field(default="tanh", metadata={"static": True})
    norm_eps: float = field(default=1e-5, metadata={"static": True})

    def __call__(self, states: Array) -> Array:
        """Transformed states, float32, of states `[..., D]`."""

        def row(x: Array) -> Array:
            return x.reshape((1,) * (states.ndim - 1) + (-1,))

        y = jnp.matmul(states.astype(jnp.float32), self.kernel)
        y = POOLER_ACTIVATIONS[self.activation](y if self.bias is None else y + row(self.bias))
        if self.scale is None:
            return y
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + self.norm_eps) * row(self.scale)
        return y if self.shift is None else y + row(self.shift)


class Head(NamedTuple):
    """The parameters of h W + b."""

    kernel: Array
    """`[D, N]`."""
    bias: Array | None
    """`[N]`. None: 0, and it does not learn."""
    pooler: Pooler | None = None
    """What transforms the states first. None: nothing."""


def init_head(key: Key, width: int, outputs: int) -> Head:
    """A random linear head: W normal with variance 1 / (D + 1), as reward models usually start, b zero.

    Reference: Stiennon et al. 2020, arXiv:2009.01325.
    """
    return Head(jax.random.normal(key, (width, outputs)) * (width + 1) ** -0.5, jnp.zeros(outputs))


def token_outputs(head: Head, hidden: Array) -> Array:
    """Float32 outputs `[B, T, N]` of every token, from hidden states `[B, T, D]`: token classification."""
    states = hidden.astype(jnp.float32) if head.pooler is None else head.pooler(hidden)
    outputs = jnp.matmul(states, head.kernel)
    return outputs if head.bias is None else outputs + head.bias[None, None]


def sequence_outputs(head: Head, hidden: Array, mask: Array | None = None) -> Array:
    """Float32 outputs `[B, N]` of every sequence, read at its last real token, or where the head's pooler says.

    For classification with N labels, or a scalar reward with N = 1.

    Args:
      hidden: `[B, T, D]`.
      mask: bool `[B, T]`, False at padding, on either side. None: no padding.
    """
    mask = jnp.ones(hidden.shape[:2], bool) if mask is None else mask
    if head.pooler is not None and head.pooler.reads == "mean":
        kept = jnp.where(mask[..., None], hidden.astype(jnp.float32), 0)
        state = kept.sum(1, keepdims=True) / mask.sum(1)[:, None, None]
    else:
        at = last_token(mask).argmax(-1) if head.pooler is None else mask.argmax(-1)
        state = jnp.take_along_axis(hidden, at[:, None, None], axis=1)
    return token_outputs(head, state)[:, 0]


def span_outputs(head: Head, hidden: Array, mask: Array) -> tuple[Array, Array]:
    """Float32 logits `[B, T]` of where a span starts, and of where it ends; -inf at padding. The head has N = 2."""
    outputs = jnp.where(mask[..., None], token_outputs(head, hidden), -jnp.inf)
    return outputs[..., 0], outputs[..., 1]
