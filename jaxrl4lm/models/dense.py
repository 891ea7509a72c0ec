"""A dense layer whose backward pass is written on two-dimensional operands."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxrl4lm.types import Array

FEW = 64
"""With up to so many rows of x, a weight stored by output is the left operand of the product."""


def dense(
    x: Array, kernel: Array, bias: Array | None, dtype: jnp.dtype | None = None, by_output: bool = False
) -> Array:
    """x W + b over the last axis of x.

    Args:
      x: `[..., in]`.
      kernel: `[in, out]`, or `[out, in]` with `by_output`. It is cast to the dtype of x; products are summed in float32.
      bias: `[out]` or None.
      dtype: of the result; None: that of x.
      by_output: whether the kernel is stored `[out, in]`, as a tied embedding is for the unembedding.
    Returns:
      `[..., out]`.
    """
    rows = x.reshape(-1, x.shape[-1])
    y: Array = _matmul(rows, kernel, dtype or x.dtype, by_output)  # pyright: ignore[reportAssignmentType]
    if bias is not None:
        y = y + bias.astype(y.dtype)[None]
    return y.reshape(*x.shape[:-1], y.shape[-1])


# Autodiff would run the backward products in float32 where the result is rounded to a lower precision. Its weight
# gradient of a product of higher rank contracts two transposed axes, at less than half the speed of this form on XLA:CPU.
@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _matmul(x: Array, kernel: Array, dtype, by_output: bool) -> Array:
    kernel = kernel.astype(x.dtype)
    if by_output and x.shape[0] <= FEW and jax.default_backend() == "cpu":
        # XLA:CPU packs the right operand anew at every call: let that be the few rows, not the weights.
        if x.dtype != jnp.float32:
            return _product(kernel, x, 1, 1).T.astype(dtype)
        # In float32 it is faster still if both transposes are copies; they are of few numbers.
        columns = jax.lax.optimization_barrier(x.T)
        return jax.lax.optimization_barrier(_product(kernel, columns, 1, 0)).T.astype(dtype)
    return _product(x, kernel, 1, 1 if by_output else 0).astype(dtype)


def _product(a: Array, b: Array, over_a: int, over_b: int) -> Array:
    """Contracts one axis of each; a `.T` before a plain product would keep XLA:CPU from its fast kernel."""
    dims = (((over_a,), (over_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _forward(x, kernel, dtype, by_output):
    return _matmul(x, kernel, dtype, by_output), (x, kernel)


def _backward(dtype, by_output, saved, g):
    x, kernel = saved
    g, low = g.astype(x.dtype), kernel.astype(x.dtype)
    dx = _product(g, low, 1, 0 if by_output else 1).astype(x.dtype)
    a, b = (g, x) if by_output else (x, g)
    if a.shape[1] > b.shape[1] and jax.default_backend() == "cpu":
        # XLA:CPU makes a wide result up to twice as fast as a tall one.
        dkernel = jax.lax.optimization_barrier(_product(b, a, 0, 0)).T
    else:
        dkernel = _product(a, b, 0, 0)
    return dx, dkernel.astype(kernel.dtype)


_matmul.defvjp(_forward, _backward)
