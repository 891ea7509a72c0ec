"""BiCGStab for (I − γP)x = b, where the matrix is given only by its product with a vector."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.types import Array, ScalarLike


class _Iterate(NamedTuple):
    x: Array
    residual: Array
    direction: Array
    image: Array
    rho: Array
    iterations: Array
    best_x: Array
    best_norm: Array


def bicgstab(
    matvec: Callable[[Array], Array],
    target: Array,
    start: Array,
    *,
    tolerance: ScalarLike,
    max_iterations: ScalarLike,
) -> tuple[Array, Array]:
    """Solve A x = b. Returns the iterate with the smallest residual, and the iterations made (2 products each).

    BiCGStab's residual jumps, and where A is nearly singular the iteration breaks down. So the best iterate is
    kept: the result is never worse than `start`.

    Args:
      matvec: x ↦ A x on arrays `[S]`.
      target: b, `[S]`.
      start: first guess, `[S]`.
      tolerance: stop at max |b − A x| ≤ this.
      max_iterations: traced or not; 0 returns `start`.
    Reference: van der Vorst 1992.
    """
    residual = target - matvec(start)
    shadow = residual
    norm = jnp.abs(residual).max()
    zero = jnp.zeros((), residual.dtype)

    def is_unfinished(state: _Iterate) -> Array:
        usable = jnp.isfinite(state.rho) & (state.rho != 0)
        running = jnp.abs(state.residual).max() > tolerance
        return running & usable & (state.iterations < max_iterations)

    def step(state: _Iterate) -> _Iterate:
        alpha = state.rho / jnp.vdot(shadow, state.image)
        half = state.residual - alpha * state.image
        half_image = matvec(half)
        power = jnp.vdot(half_image, half_image)
        omega = jnp.where(power > 0, jnp.vdot(half_image, half) / jnp.where(power > 0, power, 1), zero)
        x = state.x + alpha * state.direction + omega * half
        residual = half - omega * half_image
        rho = jnp.vdot(shadow, residual)
        beta = (rho / state.rho) * (alpha / jnp.where(omega == 0, 1, omega))
        direction = residual + beta * (state.direction - omega * state.image)
        # A maximum of elements with nan need not be nan; the scalar product is.
        norm = jnp.where(jnp.isfinite(rho), jnp.abs(residual).max(), jnp.inf)
        better = norm < state.best_norm
        return _Iterate(
            x,
            residual,
            direction,
            matvec(direction),
            jnp.where(omega == 0, zero, rho),
            state.iterations + 1,
            jnp.where(better, x, state.best_x),
            jnp.where(better, norm, state.best_norm),
        )

    first = _Iterate(
        start, residual, residual, matvec(residual), jnp.vdot(shadow, residual), jnp.int32(0), start, norm
    )
    final = jax.lax.while_loop(is_unfinished, step, first)
    return final.best_x, final.iterations
