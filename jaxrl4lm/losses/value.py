"""Losses of value functions, and temporal-difference errors. Gradients flow through the prediction only."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.arguments import as_float, as_mask, coefficients, known_index, mask_inputs
from jaxrl4lm.types import Array, ScalarLike


def squared_value(values: Array, targets: Array, *, mask: Array | None = None) -> Array:
    """½(V − R)², per element.

    Args:
      values: V_θ(s_t), any shape. Gradients flow through this argument only.
      targets: R, returns or bootstrapped targets.
      mask: the elements that count.
    Returns:
      Loss of the shape of `values`; exactly 0, with exactly 0 gradient, where masked.
    Raises:
      ValueError: if `targets` or `mask` does not broadcast to the shape of `values`.
    Reference: Sutton & Barto 2018, sec. 9.2, with ½ as in sec. 9.3.
    """
    keep, values, targets = mask_inputs(mask, values=values, targets=targets)
    return jnp.where(keep, 0.5 * (values - jax.lax.stop_gradient(targets)) ** 2, 0)


def clipped_value(
    values: Array, old_values: Array, targets: Array, *, clip_eps: ScalarLike = 0.2, mask: Array | None = None
) -> Array:
    """½·max((V − R)², (V_old + clip(V − V_old, ±ε) − R)²), per element.

    Args:
      values: V_θ(s_t), any shape. Gradients flow through this argument only.
      old_values: V at sampling time.
      targets: R, returns or bootstrapped targets.
      clip_eps: ε, in units of value.
      mask: the elements that count.
    Returns:
      Loss of the shape of `values`; exactly 0, with exactly 0 gradient, where masked.
    Reference: the PPO reference implementation; Huang et al. 2022, "The 37 implementation details", no. 9.

    >>> clipped_value(jnp.array([0.9]), jnp.array([0.0]), jnp.array([1.0]))  # only to 0.2: ½(0.2 − 1)²
    Array([0.32000002], dtype=float32)
    """
    keep, values, old_values, targets = mask_inputs(
        mask, values=values, old_values=old_values, targets=targets
    )
    old_values, targets = jax.lax.stop_gradient((old_values, targets))
    (clip_eps,) = coefficients(values, clip_eps=clip_eps)
    near = old_values + jnp.clip(values - old_values, -clip_eps, clip_eps)
    return jnp.where(keep, 0.5 * jnp.maximum((values - targets) ** 2, (near - targets) ** 2), 0)


def huber_value(
    values: Array, targets: Array, *, delta: ScalarLike = 1.0, mask: Array | None = None
) -> Array:
    """½e² for |e| ≤ δ, δ(|e| − ½δ) beyond, e = V − R, per element.

    Args:
      values: V_θ(s_t), any shape. Gradients flow through this argument only.
      targets: R, returns or bootstrapped targets.
      delta: δ, where the parabola becomes a line.
      mask: the elements that count.
    Returns:
      Loss of the shape of `values`; exactly 0, with exactly 0 gradient, where masked.
    Reference: Huber 1964, "Robust estimation of a location parameter"; as Mnih et al. 2015, "Human-level
      control through deep reinforcement learning", use it with δ = 1.
    """
    keep, values, targets = mask_inputs(mask, values=values, targets=targets)
    size = jnp.abs(values - jax.lax.stop_gradient(targets))
    (delta,) = coefficients(size, delta=delta)
    near = jnp.minimum(size, delta)
    return jnp.where(keep, near * (size - 0.5 * near), 0)


def td_error(
    values: Array,
    rewards: Array,
    next_values: Array,
    terminated: Array,
    *,
    discount: ScalarLike,
    mask: Array | None = None,
) -> Array:
    """Temporal-difference error: r + γ·V(s′) − V(s), with V(s′) = 0 after a termination.

    Args:
      values: V_θ(s), any shape. Gradients flow through this argument only (semi-gradient).
      rewards: r.
      next_values: V(s′), before any reset; not read where terminated.
      terminated: nothing follows.
      discount: γ.
      mask: the elements that count.
    Returns:
      Errors of the shape of `values`; exactly 0, with exactly 0 gradient, where masked. Half their square
      is the loss.
    Reference: Sutton & Barto 2018, eq. 6.5.
    """
    keep, values, rewards, next_values = mask_inputs(
        mask, values=values, rewards=rewards, next_values=next_values
    )
    (discount,) = coefficients(values, discount=discount)
    ended = as_mask(terminated, values.shape, "terminated")
    targets = rewards + jnp.where(keep, discount, 0) * jnp.where(ended, 0, next_values)
    return jnp.where(keep, jax.lax.stop_gradient(targets) - values, 0)


def _action_values(q_values: Array, actions: Array, mask: Array | None, name: str) -> tuple[Array, Array]:
    """(mask, Q(s, a)) for [..., A] and [...]."""
    shape = np.shape(q_values)[:-1]
    if np.shape(actions) != shape:
        raise ValueError(
            f"{name} has shape {np.shape(actions)}, its values {np.shape(q_values)}: {name} must have "
            f"the shape {shape}, one index per row."
        )
    keep = as_mask(mask, shape)
    rows = jnp.where(keep[..., None], as_float(q_values), 0)
    known, index = known_index(jnp.where(keep, jnp.asarray(actions), 0), rows.shape[-1])
    return keep, jnp.where(known, jnp.take_along_axis(rows, index[..., None], axis=-1)[..., 0], jnp.nan)


def _check_per_action(name: str, array: Array, like: Array) -> None:
    """Raise a ValueError unless both hold one value per action of the same states."""
    if np.shape(array) != np.shape(like):
        raise ValueError(
            f"{name} has shape {np.shape(array)}, which is not {np.shape(like)}: one value per action [..., A]."
        )


def sarsa_error(
    q_values: Array,
    actions: Array,
    rewards: Array,
    next_q_values: Array,
    next_actions: Array,
    terminated: Array,
    *,
    discount: ScalarLike,
    mask: Array | None = None,
) -> Array:
    """SARSA: r + γ·Q(s′, a′) − Q(s, a).

    Args:
      q_values: Q_θ(s, ·) [..., A]. Gradients flow through this argument only.
      actions: a [...].
      rewards: r [...].
      next_q_values: Q(s′, ·) [..., A]; not read where terminated.
      next_actions: a′ [...].
      terminated: nothing follows [...].
      discount: γ.
      mask: the elements that count [...].
    Returns:
      Errors [...]; exactly 0, with exactly 0 gradient, where masked.
    Raises:
      ValueError: if the shapes do not fit.
    Reference: Sutton & Barto 2018, eq. 6.7.
    """
    keep, chosen = _action_values(q_values, actions, mask, "actions")
    _check_per_action("next_q_values", next_q_values, q_values)
    _, following = _action_values(next_q_values, next_actions, keep, "next_actions")
    return td_error(chosen, rewards, following, terminated, discount=discount, mask=keep)


def expected_sarsa_error(
    q_values: Array,
    actions: Array,
    rewards: Array,
    next_q_values: Array,
    next_probs: Array,
    terminated: Array,
    *,
    discount: ScalarLike,
    mask: Array | None = None,
) -> Array:
    """Expected SARSA: r + γ·Σ_a π(a|s′)·Q(s′, a) − Q(s, a).

    Other arguments and result as of `sarsa_error`.

    Args:
      next_probs: π(·|s′) [..., A].

    Reference: Sutton & Barto 2018, eq. 6.9.
    """
    keep, chosen = _action_values(q_values, actions, mask, "actions")
    _check_per_action("next_q_values", next_q_values, q_values)
    _check_per_action("next_probs", next_probs, next_q_values)
    # An action that is never taken counts for nothing, also where its value is −inf.
    next_probs = as_float(next_probs)
    following = jnp.where(next_probs == 0, 0, next_probs * as_float(next_q_values)).sum(-1)
    return td_error(chosen, rewards, following, terminated, discount=discount, mask=keep)


def q_learning_error(
    q_values: Array,
    actions: Array,
    rewards: Array,
    next_q_values: Array,
    terminated: Array,
    *,
    discount: ScalarLike,
    mask: Array | None = None,
) -> Array:
    """Q-learning: r + γ·max_a Q(s′, a) − Q(s, a).

    Args:
      q_values: Q_θ(s, ·) [..., A]. Gradients flow through this argument only.
      actions: a [...].
      rewards: r [...].
      next_q_values: Q(s′, ·) [..., A], of the target network if there is one; not read where terminated.
      terminated: nothing follows [...].
      discount: γ.
      mask: the elements that count [...].
    Returns:
      Errors [...]; exactly 0, with exactly 0 gradient, where masked.
    Raises:
      ValueError: if the shapes do not fit.
    Reference: Sutton & Barto 2018, eq. 6.8.

    >>> q_learning_error(jnp.array([1.0, 2.0]), 0, 0.5, jnp.array([3.0, 4.0]), False, discount=0.5)
    Array(1.5, dtype=float32)
    """
    keep, chosen = _action_values(q_values, actions, mask, "actions")
    _check_per_action("next_q_values", next_q_values, q_values)
    return td_error(
        chosen, rewards, as_float(next_q_values).max(-1), terminated, discount=discount, mask=keep
    )


def double_q_learning_error(
    q_values: Array,
    actions: Array,
    rewards: Array,
    next_q_values: Array,
    next_q_selector: Array,
    terminated: Array,
    *,
    discount: ScalarLike,
    mask: Array | None = None,
) -> Array:
    """Double Q-learning: r + γ·Q(s′, argmax_a Q_sel(s′, a)) − Q(s, a).

    Other arguments and result as of `q_learning_error`; `next_q_values` rates the chosen action (the target
    network in double DQN).

    Args:
      next_q_selector: Q_sel(s′, ·) [..., A], which chooses it (the online network).

    Reference: van Hasselt et al. 2016, arXiv:1509.06461, eq. 4.
    """
    _check_per_action("next_q_values", next_q_values, q_values)
    _check_per_action("next_q_selector", next_q_selector, q_values)
    best = jnp.argmax(as_float(next_q_selector), axis=-1)
    return sarsa_error(
        q_values, actions, rewards, next_q_values, best, terminated, discount=discount, mask=mask
    )
