"""Returns and advantages along time: discounted, n-step, λ-returns, GAE, V-trace.

One convention for all. Arrays have one time axis (`axis`, the first by default) and any others. `rewards[t]`
follows the action at t; `values[t]` is V(s_t); `next_values[t]` is V of the observation after it, *before*
any reset. `terminated[t]`: the world ended, nothing follows. `truncated[t]`: somebody stopped looking (a
time limit); the return is cut there and bootstraps from `next_values[t]`. The end of the array cuts
likewise.

`mask` marks the steps that exist for the policy. A masked step (padding, or a gap of tool tokens) is
skipped, as if the steps around it were neighbours: the value after step t is then that of the next unmasked
step. What stands in masked slots is never read, and the result there is 0.

Hyper-parameters are scalars or arrays that broadcast to the rewards, and may be traced. Everything is plain
differentiable arithmetic in float32 (float64 for float64 rewards): the losses stop the gradients.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.arguments import as_float, as_mask, check_broadcastable, coefficients
from jaxrl4lm.types import Array, ScalarLike

Recurrence = Callable[[Array, Array], Array]
"""(x, decay) ↦ y with y_t = x_t + decay_t · y_{t+1}, y_T = 0, along the first axis."""


def sequential_recurrence(x: Array, decay: Array) -> Array:
    """y_t = x_t + decay_t · y_{t+1} by a reverse `lax.scan`: T steps, no extra memory.

    Args:
      x: [T, ...]. Gradients flow through both arguments.
      decay: [T, ...], same shape.
    Returns:
      y [T, ...].
    Reference: Sutton & Barto 2018, eq. 3.9, of which it is the general form.

    >>> sequential_recurrence(jnp.array([1.0, 2.0, 4.0]), jnp.full(3, 0.5))
    Array([3., 4., 4.], dtype=float32)
    """

    def step(following: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        y = at[0] + at[1] * following
        return y, y

    return jax.lax.scan(step, jnp.zeros(x.shape[1:], x.dtype), (x, decay), reverse=True)[1]


def associative_recurrence(x: Array, decay: Array) -> Array:
    """y_t = x_t + decay_t · y_{t+1} by `lax.associative_scan`: log T parallel steps, twice the work.

    Arguments as of `sequential_recurrence`.

    Reference: Blelloch 1990, "Prefix sums and their applications", sec. 1.4.
    """

    def compose(later: tuple[Array, Array], earlier: tuple[Array, Array]) -> tuple[Array, Array]:
        return earlier[0] + earlier[1] * later[0], earlier[1] * later[1]

    return jax.lax.associative_scan(compose, (x, decay), reverse=True)[0]


class _Steps(NamedTuple):
    """Arrays of the shape of the rewards, in which masked steps have no reward and are passed through."""

    rewards: Array
    values: Array
    next_values: Array
    """V after the step: 0 after a termination; across a gap, the value on its other side."""
    following: Array | None
    """Index of the next unmasked step, T if there is none; None without a mask (it is t + 1)."""
    last: Array
    """The return ends here: terminated, truncated, or no step follows."""
    keep: Array


def _clean_steps(
    rewards: Array,
    values: ScalarLike,
    next_values: ScalarLike,
    terminated: ScalarLike,
    truncated: ScalarLike,
    mask: ScalarLike | None,
    axis: int,
) -> _Steps:
    """Validate, broadcast, and clean what stands in masked slots."""
    rewards = as_float(rewards)
    shape, dtype = rewards.shape, rewards.dtype
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis is {axis}, rewards has shape {shape}: name one of its axes.")

    def like_rewards(name: str, array: ScalarLike) -> Array:
        check_broadcastable(name, np.shape(array), shape)
        return jnp.broadcast_to(jnp.asarray(array, dtype), shape)

    values, next_values = like_rewards("values", values), like_rewards("next_values", next_values)
    keep, ended = as_mask(mask, shape), as_mask(terminated, shape, "terminated")
    cut = ended | as_mask(truncated, shape, "truncated")
    time = jax.lax.broadcasted_iota(jnp.int32, shape, axis % len(shape))
    length = shape[axis]
    if mask is None:
        following, last = None, cut | (time == length - 1)
    else:
        rewards, values, next_values = (jnp.where(keep, x, 0) for x in (rewards, values, next_values))
        first_from = jax.lax.cummin(jnp.where(keep, time, length), axis % len(shape), reverse=True)
        following = jnp.where(time == length - 1, length, _shift(first_from, axis))
        last = cut | (following == length)
        across_gap = ~last & (following > time + 1)
        next_values = jnp.where(across_gap, _take_following(values, following, axis), next_values)
    return _Steps(rewards, values, jnp.where(ended, 0, next_values), following, last, keep)


def _shift(array: Array, axis: int) -> Array:
    """array[t + 1]; at the end the last element again."""
    length = array.shape[axis]
    later = jax.lax.slice_in_dim(array, min(1, length), length, axis=axis)
    return jnp.concatenate([later, jax.lax.slice_in_dim(array, max(length - 1, 0), length, axis=axis)], axis)


def _take_following(array: Array, following: Array | None, axis: int) -> Array:
    """array[next unmasked step]; unspecified where there is none."""
    if following is None:
        return _shift(array, axis)
    return jnp.take_along_axis(array, jnp.minimum(following, array.shape[axis] - 1), axis)


def _mask_coefficients(steps: _Steps, **values: ScalarLike) -> tuple[Array, ...]:
    """Hyper-parameters, and what else varies by step, in the dtype of the rewards; masked slots are not read."""
    return tuple(jnp.where(steps.keep, x, 0) if x.ndim else x for x in coefficients(steps.rewards, **values))


def _solve(recurrence: Recurrence, steps: _Steps, x: Array, decay: Array, axis: int) -> Array:
    """The recurrence, in which a masked step adds nothing and hands on what follows it.

    Only here does time move to the front: two arrays are transposed in and one out, whatever the layout.
    """
    x = jnp.where(steps.keep, x, 0)
    decay = jnp.where(steps.keep, jnp.where(steps.last, 0, decay), 1)
    if axis % x.ndim == 0:
        return recurrence(x, decay)
    return jnp.moveaxis(recurrence(jnp.moveaxis(x, axis, 0), jnp.moveaxis(decay, axis, 0)), 0, axis)


def discounted_returns(
    rewards: Array,
    terminated: ScalarLike = False,
    truncated: ScalarLike = False,
    next_values: ScalarLike = 0.0,
    *,
    discount: ScalarLike,
    mask: Array | None = None,
    axis: int = 0,
    recurrence: Recurrence = sequential_recurrence,
) -> Array:
    """Monte-Carlo returns-to-go: G_t = r_t + γ·G_{t+1}; where the return is cut short, r_t + γ·V(s_{t+1}).

    Args:
      rewards: [..., T, ...]. Gradients flow through every floating argument.
      terminated: nothing follows these steps.
      truncated: the return is cut after these steps, and at the end of the array.
      next_values: V(s_{t+1}), read only at cuts; with the default of 0 nothing is earned beyond a cut.
      discount: γ.
      mask: the steps that exist.
      axis: the time axis.
      recurrence: `sequential_recurrence` or `associative_recurrence`.
    Returns:
      G of the shape of `rewards`, 0 where masked.
    Reference: Sutton & Barto 2018, eq. 3.9.

    >>> discounted_returns(jnp.array([1.0, 0.0, 4.0]), discount=0.5)
    Array([2., 2., 4.], dtype=float32)
    """
    steps = _clean_steps(rewards, 0.0, next_values, terminated, truncated, mask, axis)
    (discount,) = _mask_coefficients(steps, discount=discount)
    bootstrap = jnp.where(steps.last, steps.next_values, 0)
    returns = _solve(recurrence, steps, steps.rewards + discount * bootstrap, discount, axis)
    return jnp.where(steps.keep, returns, 0)


def lambda_returns(
    rewards: Array,
    values: ScalarLike,
    next_values: ScalarLike,
    terminated: ScalarLike,
    truncated: ScalarLike = False,
    *,
    discount: ScalarLike,
    lambda_: ScalarLike,
    mask: Array | None = None,
    axis: int = 0,
    recurrence: Recurrence = sequential_recurrence,
) -> Array:
    """λ-returns: G_t = r_t + γ·[(1−λ)·V(s_{t+1}) + λ·G_{t+1}]; at a cut r_t + γ·V(s_{t+1}), at an end r_t.

    λ=0 is the one-step target, λ=1 `discounted_returns` with bootstrapping at cuts.

    Args:
      rewards: [..., T, ...]. Gradients flow through every floating argument.
      values: V(s_t), read only across the gaps of `mask`.
      next_values: V(s_{t+1}), before any reset.
      terminated: nothing follows these steps.
      truncated: the return is cut after these steps, and at the end of the array.
      discount: γ.
      lambda_: λ.
      mask: the steps that exist.
      axis: the time axis.
      recurrence: `sequential_recurrence` or `associative_recurrence`.
    Returns:
      G of the shape of `rewards`, 0 where masked.
    Reference: Sutton & Barto 2018, eq. 12.2; in recursive form, eq. 12.18.
    """
    steps = _clean_steps(rewards, values, next_values, terminated, truncated, mask, axis)
    discount, lambda_ = _mask_coefficients(steps, discount=discount, lambda_=lambda_)
    bootstrap = jnp.where(steps.last, 1, 1 - lambda_) * steps.next_values
    returns = _solve(recurrence, steps, steps.rewards + discount * bootstrap, discount * lambda_, axis)
    return jnp.where(steps.keep, returns, 0)


def n_step_returns(
    rewards: Array,
    values: ScalarLike,
    next_values: ScalarLike,
    terminated: ScalarLike,
    truncated: ScalarLike = False,
    *,
    n: int,
    discount: ScalarLike,
    mask: Array | None = None,
    axis: int = 0,
) -> Array:
    """n-step returns: G_t = r_t + γ·r_{t+1} + ... + γ^{n−1}·r_{t+n−1} + γⁿ·V(s_{t+n}); fewer terms at a cut.

    n=1 is the one-step target, n ≥ T `discounted_returns`.

    Args:
      rewards: [..., T, ...]. Gradients flow through every floating argument.
      values: V(s_t), read only across the gaps of `mask`.
      next_values: V(s_{t+1}), before any reset.
      terminated: nothing follows these steps.
      truncated: the return is cut after these steps, and at the end of the array.
      n: number of rewards, static.
      discount: γ.
      mask: the steps that exist.
      axis: the time axis.
    Returns:
      G of the shape of `rewards`, 0 where masked.
    Raises:
      ValueError: if n < 1.
    Reference: Sutton & Barto 2018, eq. 7.1.

    >>> n_step_returns(jnp.ones(3), 0.0, jnp.full(3, 8.0), jnp.zeros(3), n=2, discount=0.5)
    Array([3.5, 3.5, 5. ], dtype=float32)
    """
    if n < 1:
        raise ValueError(f"n is {n}: an n-step return needs at least one reward, n >= 1.")
    steps = _clean_steps(rewards, values, next_values, terminated, truncated, mask, axis)
    (discount,) = _mask_coefficients(steps, discount=discount)

    def one_more(_: int, returns: Array) -> Array:
        following = jnp.where(steps.last, steps.next_values, _take_following(returns, steps.following, axis))
        return steps.rewards + discount * following

    shortest = steps.rewards + discount * steps.next_values
    returns = jax.lax.fori_loop(1, min(n, shortest.shape[axis]), one_more, shortest)
    return jnp.where(steps.keep, returns, 0)


def generalized_advantage_estimation(
    rewards: Array,
    values: ScalarLike,
    next_values: ScalarLike,
    terminated: ScalarLike,
    truncated: ScalarLike = False,
    *,
    discount: ScalarLike,
    gae_lambda: ScalarLike,
    mask: Array | None = None,
    axis: int = 0,
    recurrence: Recurrence = sequential_recurrence,
) -> tuple[Array, Array]:
    """Generalised advantage estimation: δ_t = r_t + γ·V(s_{t+1}) − V(s_t), A_t = δ_t + γλ·A_{t+1}.

    V(s_{t+1}) is 0 after a termination; A_{t+1} is 0 after a termination, a truncation and the last step.

    Args:
      rewards: [..., T, ...]. Gradients flow through every floating argument.
      values: V(s_t).
      next_values: V(s_{t+1}), before any reset.
      terminated: nothing follows these steps.
      truncated: the return is cut after these steps, and at the end of the array.
      discount: γ.
      gae_lambda: λ. 0 gives the one-step advantage, 1 the Monte-Carlo return minus V.
      mask: the steps that exist.
      axis: the time axis.
      recurrence: `sequential_recurrence` or `associative_recurrence`.
    Returns:
      (A, A + V): advantages and value targets of the shape of `rewards`, 0 where masked. Whiten the
      advantages if you like, never the targets.
    Reference: Schulman et al. 2016, arXiv:1506.02438, eq. 16.

    >>> advantages, targets = generalized_advantage_estimation(
    ...     jnp.array([0.0, 1.0]), jnp.array([0.5, 0.5]), jnp.array([0.5, 9.0]), jnp.array([False, True]),
    ...     discount=1.0, gae_lambda=1.0)
    >>> advantages, targets
    (Array([0.5, 0.5], dtype=float32), Array([1., 1.], dtype=float32))
    """
    steps = _clean_steps(rewards, values, next_values, terminated, truncated, mask, axis)
    discount, gae_lambda = _mask_coefficients(steps, discount=discount, gae_lambda=gae_lambda)
    errors = steps.rewards + discount * steps.next_values - steps.values
    advantages = _solve(recurrence, steps, errors, discount * gae_lambda, axis)
    return jnp.where(steps.keep, advantages, 0), jnp.where(steps.keep, advantages + steps.values, 0)


def vtrace(
    rewards: Array,
    values: ScalarLike,
    next_values: ScalarLike,
    terminated: ScalarLike,
    truncated: ScalarLike = False,
    *,
    log_ratios: Array,
    discount: ScalarLike,
    lambda_: ScalarLike = 1.0,
    clip_rho: ScalarLike = 1.0,
    clip_c: ScalarLike = 1.0,
    mask: Array | None = None,
    axis: int = 0,
    recurrence: Recurrence = sequential_recurrence,
) -> tuple[Array, Array]:
    """V-trace off-policy advantages and value targets: v_t = V(s_t) + δ_t + γ·c_t·(v_{t+1} − V(s_{t+1})).

    With ρ_t = exp(log π − log μ): δ_t = min(ρ_t, ρ̄)·(r_t + γ·V(s_{t+1}) − V(s_t)), c_t = λ·min(ρ_t, c̄),
    and the advantage is min(ρ_t, ρ̄)·(r_t + γ·[λ·v_{t+1} + (1−λ)·V(s_{t+1})] − V(s_t)).

    Args:
      rewards: [..., T, ...]. Gradients flow through every floating argument.
      values: V(s_t).
      next_values: V(s_{t+1}), before any reset.
      terminated: nothing follows these steps.
      truncated: the return is cut after these steps, and at the end of the array.
      log_ratios: log π(a_t|s_t) − log μ(a_t|s_t) of the learner and the behaviour policy.
      discount: γ.
      lambda_: λ.
      clip_rho: ρ̄. It decides whose values the targets converge to: those of π for ∞, those of a policy between π
        and μ for less.
      clip_c: c̄. Smaller values have less variance and converge more slowly; they do not change the limit.
      mask: the steps that exist.
      axis: the time axis.
      recurrence: `sequential_recurrence` or `associative_recurrence`.
    Returns:
      (advantages, value targets v), both 0 where masked. On-policy with λ=1 the targets are the n-step
      returns.
    Reference: Espeholt et al. 2018, arXiv:1802.01561, eq. 1; λ as in its remark 2.
    """
    steps = _clean_steps(rewards, values, next_values, terminated, truncated, mask, axis)
    discount, lambda_, clip_rho, clip_c, log_ratios = _mask_coefficients(
        steps, discount=discount, lambda_=lambda_, clip_rho=clip_rho, clip_c=clip_c, log_ratios=log_ratios
    )
    # A bound on the logarithm keeps the gradient of the clipped ratio finite; both clips are far below it.
    ratios = jnp.exp(jnp.clip(log_ratios, -20.0, 20.0))
    clipped = jnp.minimum(ratios, clip_rho)
    errors = clipped * (steps.rewards + discount * steps.next_values - steps.values)
    decay = discount * lambda_ * jnp.minimum(ratios, clip_c)
    targets = steps.values + _solve(recurrence, steps, errors, decay, axis)
    mixed = lambda_ * _take_following(targets, steps.following, axis) + (1 - lambda_) * steps.next_values
    following = jnp.where(steps.last, steps.next_values, mixed)
    advantages = clipped * (steps.rewards + discount * following - steps.values)
    return jnp.where(steps.keep, advantages, 0), jnp.where(steps.keep, targets, 0)
