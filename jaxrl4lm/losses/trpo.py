"""Trust-region policy optimisation: natural gradient by conjugate gradients, and a backtracking line search.

Policies enter as functions of their parameters: `surrogate(params)` is a loss to lower and `kl(params)` the
mean KL(π_old‖π_params), both scalars over a fixed batch. Parameters are any pytree of floating arrays.

    def surrogate(params): return reduce.token_mean(losses.trpo.surrogate(log_probs(params), old, advantages))
    def kl(params): return distributions.categorical_kl(old_logits, logits(params)).mean()
    params, info = losses.trpo.step(surrogate, kl, params)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.arguments import as_log_ratios, check_broadcastable
from jaxrl4lm.losses.importance import probability_ratio
from jaxrl4lm.types import Array, Params, ScalarLike

__all__ = [
    "StepInfo",
    "conjugate_gradient",
    "fisher_vector_product",
    "line_search",
    "step",
    "surrogate",
]


class StepInfo(NamedTuple):
    """What a step did; all scalars."""

    accepted: Array
    """False if no step length would do; the parameters are then unchanged."""
    fraction: Array
    """Step length taken, as a share of the full natural-gradient step."""
    kl: Array
    improvement: Array
    """By how much the surrogate loss fell."""


def surrogate(
    log_probs: Array, old_log_probs: Array, advantages: Array, *, mask: Array | None = None
) -> Array:
    """−ρA, ρ = exp(log π − log π_old), per element: the objective without a clip.

    Args:
      log_probs: log π_θ(a_t|s_t), any shape, in nats. Gradients flow through this argument only.
      old_log_probs: those of the behaviour policy.
      advantages: A.
      mask: the elements that count.
    Returns:
      Loss of the shape of `log_probs`; exactly 0, with exactly 0 gradient, where masked.
    Reference: Schulman et al. 2015, arXiv:1502.05477, eq. 14.
    """
    keep, log_ratios, advantages = as_log_ratios(log_probs, old_log_probs, advantages, mask)
    return jnp.where(keep, -probability_ratio(log_ratios) * advantages, 0)


def _dot(a: Params, b: Params) -> Array:
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda x, y: jnp.sum(x * y), a, b))


def _axpy(scale: ScalarLike, x: Params, y: Params) -> Params:
    """scale·x + y, leaf by leaf, in the type of y."""
    return jax.tree.map(lambda x, y: (scale * x + y).astype(y.dtype), x, y)


def fisher_vector_product(
    kl: Callable[[Params], Array], params: Params, vector: Params, *, damping: ScalarLike = 0.0
) -> Params:
    """(F + damping·I)·v without forming F, the Fisher information: the Hessian of KL(π_old‖π) at π = π_old.

    Args:
      kl: params ↦ mean KL(π_old‖π_params), a scalar.
      params: the parameters of π_old.
      vector: v, a pytree like `params`.
      damping: added to the diagonal.
    Returns:
      A pytree like `params`; no gradient is asked of it.
    Reference: Schulman et al. 2015, arXiv:1502.05477, app. C; Pearlmutter 1994.
    """
    check_broadcastable("damping", np.shape(damping), ())
    # Backward twice: layers with a gradient rule of their own have no forward mode.
    product = jax.grad(lambda params: _dot(jax.grad(kl)(params), vector))(params)
    return _axpy(damping, vector, product)


def conjugate_gradient(
    matvec: Callable[[Params], Params], b: Params, *, iterations: int = 10, tolerance: ScalarLike = 1e-10
) -> Params:
    """Solve A·x = b from x = 0 for a symmetric positive definite A given by its products.

    Args:
      matvec: v ↦ A·v over pytrees.
      b: the right-hand side, a pytree.
      iterations: at most so many, static.
      tolerance: stop where ‖r‖² ≤ tolerance·‖b‖²; x then stays as it is.
    Returns:
      x, a pytree like `b`; no gradient is asked of it.
    Reference: Hestenes & Stiefel 1952.
    """
    check_broadcastable("tolerance", np.shape(tolerance), ())
    enough = tolerance * _dot(b, b)

    def iterate(_: int, state: tuple[Params, Params, Params, Array]) -> tuple[Params, Params, Params, Array]:
        x, residual, direction, squared = state
        product = matvec(direction)
        curvature = _dot(direction, product)
        going = (squared > enough) & (curvature > 0)
        alpha = jnp.where(going, squared / jnp.where(going, curvature, 1), 0)
        x = _axpy(alpha, direction, x)
        residual = _axpy(-alpha, product, residual)
        new_squared = _dot(residual, residual)
        beta = new_squared / jnp.where(squared > 0, squared, 1)
        direction = _axpy(beta, direction, residual)
        return x, residual, direction, new_squared

    start = (jax.tree.map(jnp.zeros_like, b), b, b, _dot(b, b))
    return jax.lax.fori_loop(0, iterations, iterate, start)[0]


def line_search(
    loss: Callable[[Params], Array],
    kl: Callable[[Params], Array],
    params: Params,
    direction: Params,
    *,
    max_kl: ScalarLike = 0.01,
    backtrack: ScalarLike = 0.8,
    max_backtracks: int = 10,
) -> tuple[Params, StepInfo]:
    """The longest of the steps 1, c, c², ... along `direction` that lowers the loss within KL ≤ δ.

    Args:
      loss: params ↦ scalar to lower.
      kl: params ↦ scalar to hold at or below `max_kl`.
      params: where to start.
      direction: the full step.
      max_kl: δ.
      backtrack: c.
      max_backtracks: how often to shorten, static.
    Returns:
      (params, StepInfo): unchanged parameters, with `accepted` False, if no step will do. A loss or KL that
      is not finite is refused like one that is too large. No gradient is asked of it.
    Raises:
      ValueError: if `max_kl` or `backtrack` is not a scalar.
    Reference: Schulman et al. 2015, arXiv:1502.05477, app. C.
    """
    check_broadcastable("max_kl", np.shape(max_kl), ())
    check_broadcastable("backtrack", np.shape(backtrack), ())
    before = loss(params)

    def attempt(power: Array) -> tuple[Params, StepInfo]:
        fraction = jnp.asarray(backtrack, before.dtype) ** power
        candidate = _axpy(fraction, direction, params)
        divergence, improvement = kl(candidate), before - loss(candidate)
        accepted = (divergence <= max_kl) & (improvement > 0)
        return candidate, StepInfo(accepted, fraction, divergence.astype(before.dtype), improvement)

    def unfinished(state: tuple[Array, Params, StepInfo]) -> Array:
        power, _, info = state
        return ~info.accepted & (power <= max_backtracks)

    def again(state: tuple[Array, Params, StepInfo]) -> tuple[Array, Params, StepInfo]:
        return state[0] + 1, *attempt(state[0])

    zero = jnp.zeros_like(before)
    start = (jnp.zeros((), jnp.int32), params, StepInfo(jnp.zeros((), bool), zero, zero, zero))
    _, candidate, info = jax.lax.while_loop(unfinished, again, start)
    chosen = jax.tree.map(lambda new, old: jnp.where(info.accepted, new, old), candidate, params)
    refused = StepInfo(info.accepted, zero, zero, zero)
    return chosen, jax.tree.map(lambda new, old: jnp.where(info.accepted, new, old), info, refused)


def step(
    loss: Callable[[Params], Array],
    kl: Callable[[Params], Array],
    params: Params,
    *,
    max_kl: ScalarLike = 0.01,
    damping: ScalarLike = 0.1,
    cg_iterations: int = 10,
    backtrack: ScalarLike = 0.8,
    max_backtracks: int = 10,
) -> tuple[Params, StepInfo]:
    """One TRPO update: x = F⁻¹g by conjugate gradients, then a line search along −√(2δ/xᵀFx)·x.

    Args:
      loss: params ↦ mean of `surrogate`, a scalar.
      kl: params ↦ mean KL(π_old‖π_params), a scalar, 0 at `params`.
      params: the parameters of π_old.
      max_kl: δ, the trust region.
      damping: added to the diagonal of F.
      cg_iterations: static.
      backtrack: factor of the line search.
      max_backtracks: static.
    Returns:
      (params, StepInfo). KL(π_old‖π_new) ≤ δ always; with `accepted` False nothing has moved.
    Reference: Schulman et al. 2015, arXiv:1502.05477, sec. 6 and app. C.
    """
    gradient = jax.grad(loss)(params)

    def curvature(vector: Params) -> Params:
        return fisher_vector_product(kl, params, vector, damping=damping)

    natural = conjugate_gradient(curvature, gradient, iterations=cg_iterations)
    quadratic = _dot(natural, curvature(natural))
    # A gradient of exactly 0 has no direction; the step is then 0, and refused.
    scale = jnp.where(quadratic > 0, jnp.sqrt(2 * max_kl / jnp.where(quadratic > 0, quadratic, 1)), 0)
    direction = jax.tree.map(lambda x: -scale * x, natural)
    return line_search(
        loss, kl, params, direction, max_kl=max_kl, backtrack=backtrack, max_backtracks=max_backtracks
    )
