"""Derivatives of a fixed point by the implicit function theorem: the loop that found it does not matter."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl4lm.mdp.krylov import bicgstab
from jaxrl4lm.types import Array


def fixed_point(operator: Callable[[Array], Array], solution: Array) -> Array:
    """`solution`, with the derivative of v*(θ) = T_θ(v*): dv* = (I − ∂T/∂v)⁻¹ (∂T/∂θ) dθ.

    For forward and reverse mode. It costs nothing unless differentiated; then one linear solve by BiCGStab, to rounding.

    Args:
      operator: T_θ, `[S]` → `[S]`, a closure over the arrays θ.
      solution: v*, `[S]`, found by any means; no gradient flows into it.
    """
    found = jax.tree.map(jax.lax.stop_gradient, solution)
    return jax.lax.custom_root(
        lambda values: values - operator(values),
        found,
        solve=lambda _, start: start,
        tangent_solve=_linear_solve,
    )


def attach_derivative(function: Callable[..., Array], value: Array, *arguments: Any) -> Array:
    """`value` with the derivative of `function(*arguments)`, to which it is equal up to rounding.

    The function is evaluated only if differentiated.
    """

    @jax.custom_jvp
    def look_up(value: Array, *arguments: Any) -> Array:
        return value

    @look_up.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
        return primals[0], jax.jvp(function, tuple(primals[1:]), tuple(tangents[1:]))[1]

    return look_up(jax.lax.stop_gradient(value), *arguments)


def _linear_solve(matvec: Callable[[Array], Array], target: Array) -> Array:
    def solve(product: Callable[[Array], Array], b: Array) -> Array:
        tiny = 4 * jnp.finfo(b.dtype).eps * jnp.abs(b).max()
        start = jnp.zeros_like(b)
        # A restart replaces the drifted recurrence by the true residual.
        for _ in range(2):
            start, _ = bicgstab(product, b, start, tolerance=tiny, max_iterations=10 * b.size)
        return start

    return jax.lax.custom_linear_solve(matvec, target, solve=solve, transpose_solve=solve)
