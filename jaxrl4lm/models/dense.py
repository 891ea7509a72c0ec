"""A dense layer whose backward pass is written on two-dimensional operands."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxrl4lm.types import Array


def dense(x: Array, kernel: Array, bias: Array | None, dtype: jnp.dtype | None = None) -> Array:
    """x W + b over the last axis of x.

    Args:
      x: `[..., in]`.
      kernel: `[in, out]`, cast to the type of x; the product accumulates in float32.
      bias: `[out]` or None.
      dtype: of the result; None: that of x.
    Returns:
      `[..., out]`.
    """
    rows = x.reshape(-1, x.shape[-1])
    y: Array = _matmul(rows, kernel, dtype or x.dtype)  # pyright: ignore[reportAssignmentType]
    if bias is not None:
        y = y + bias.astype(y.dtype)[None]
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


# The weight gradient that autodiff emits for a product of higher rank contracts two transposed axes, which
# XLA:CPU runs at less than half the speed of this form.
@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x: Array, kernel: Array, dtype) -> Array:
    return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32).astype(dtype)


def _forward(x, kernel, dtype):
    return _matmul(x, kernel, dtype), (x, kernel)


def _backward(dtype, saved, g):
    x, kernel = saved
    g = g.astype(x.dtype)
    dx = jnp.matmul(g, kernel.astype(x.dtype).T, preferred_element_type=jnp.float32).astype(x.dtype)
    if x.shape[1] > g.shape[1]:  # XLA:CPU makes a wide result up to twice as fast as a tall one
        dkernel = jax.lax.optimization_barrier(jnp.matmul(g.T, x, preferred_element_type=jnp.float32)).T
    else:
        dkernel = jnp.matmul(x.T, g, preferred_element_type=jnp.float32)
    return dx, dkernel.astype(kernel.dtype)


_matmul.defvjp(_forward, _backward)
