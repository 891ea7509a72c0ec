"""Divergence from a reference policy: what each estimator is as a value, and what it optimises as a loss.

With x = log π − log π_ref at a sampled token (samples drawn from π), as a term of the loss:

| form | value | expected gradient, one decision |
|---|---|---|
| `k1` | unbiased | 0: no regularisation at all |
| `k2` | biased | ∇KL(π‖ref), exactly |
| `k3` | unbiased, ≥ 0, low variance | ∇KL(ref‖π), the forward divergence |
| `k3_value_k2_gradient` | that of k3 | that of k2 |
| `exact` | exact | ∇KL(π‖ref), exactly |
| `k1` in the reward | | ∇KL(π‖ref), exactly |

For completions of several tokens the divergence of interest is that of whole sequences, whose optimum is
π_ref·exp(R/β)/Z. Only these have its gradient: `k1` in the reward with returns-to-go; `sequence_k2`;
`sequence_ratio_k1` and `sequence_ratio_k3`; and `exact` both in the reward and as a loss. Token-level k2,
token-level exact and ratio-times-k3 miss how a token changes later states; token-level k3 has another
target altogether.

Gradients flow through `log_probs` only; the reference is a constant. Values are in nats. sg is `stop_gradient`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.arguments import as_float, as_mask, check_rows, coefficients, mask_inputs
from jaxrl4lm.distributions import categorical_kl
from jaxrl4lm.losses.importance import MAX_LOG_RATIO
from jaxrl4lm.types import Array, ScalarLike

__all__ = [
    "Controller",
    "adaptive_controller",
    "doubling_controller",
    "exact",
    "fixed_controller",
    "k1",
    "k2",
    "k3",
    "k3_value_k2_gradient",
    "sequence_k2",
    "sequence_ratio_k1",
    "sequence_ratio_k3",
]


class Controller(NamedTuple):
    """A rule for the coefficient of a KL term, as two pure functions; its state is the coefficient."""

    init: Callable[[], Array]
    update: Callable[[Array, ScalarLike, ScalarLike], Array]
    """(coefficient, measured KL, number of sequences since) → coefficient."""


def _log_ratios(log_probs: Array, ref_log_probs: Array, mask: Array | None) -> tuple[Array, Array]:
    """(mask, x), x = log π − log π_ref, 0 where masked."""
    keep, log_probs, ref_log_probs = mask_inputs(mask, log_probs=log_probs, ref_log_probs=ref_log_probs)
    return keep, log_probs - jax.lax.stop_gradient(ref_log_probs)


def _k3(log_ratios: Array) -> Array:
    """e^{−x} − 1 + x by expm1: the naive form loses all digits near 0 and goes negative."""
    bounded = jnp.maximum(log_ratios, -MAX_LOG_RATIO)
    return jnp.expm1(-bounded) + log_ratios


def k1(log_probs: Array, ref_log_probs: Array, *, mask: Array | None = None) -> Array:
    """x = log π − log π_ref, per token: for rewards and reports. As a loss its expected gradient is 0.

    Args:
      log_probs: log π_θ of the sampled tokens, any shape, in nats. Gradients flow through this argument only.
      ref_log_probs: those of the reference.
      mask: the tokens that count.
    Returns:
      The shape of `log_probs`, in nats; exactly 0, with exactly 0 gradient, where masked.
    Reference: Schulman 2020, http://joschu.net/blog/kl-approx.html.
    """
    keep, log_ratios = _log_ratios(log_probs, ref_log_probs, mask)
    return jnp.where(keep, log_ratios, 0)


def k2(log_probs: Array, ref_log_probs: Array, *, mask: Array | None = None) -> Array:
    """x²/2, per token: as a loss of one decision its expected gradient is ∇KL(π‖ref).

    Arguments as of `k1`.

    Reference: Schulman 2020, http://joschu.net/blog/kl-approx.html.
    """
    keep, log_ratios = _log_ratios(log_probs, ref_log_probs, mask)
    return jnp.where(keep, 0.5 * log_ratios**2, 0)


def k3(log_probs: Array, ref_log_probs: Array, *, mask: Array | None = None) -> Array:
    """e^{−x} − 1 + x ≥ 0, per token: the GRPO standard. As a loss it pulls towards the *forward* KL(ref‖π).

    Where x < −20 the exponential is held at e^20. Arguments as of `k1`.

    Reference: Schulman 2020, http://joschu.net/blog/kl-approx.html; as a loss: Shao et al. 2024,
      arXiv:2402.03300, eq. 4.

    >>> k3(jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.25])))  # ½ − 1 + log 2
    Array([0.19314718], dtype=float32)
    """
    keep, log_ratios = _log_ratios(log_probs, ref_log_probs, mask)
    return jnp.where(keep, _k3(log_ratios), 0)


def k3_value_k2_gradient(log_probs: Array, ref_log_probs: Array, *, mask: Array | None = None) -> Array:
    """The value of `k3` (unbiased, low variance) with the gradient of `k2` (∇KL(π‖ref)).

    Arguments as of `k1`.

    Reference: k3 and k2 as of `k3` and `k2`, joined by a straight-through estimator (Bengio et al. 2013,
      arXiv:1308.3432); verl calls it `low_var_kl+`.
    """
    keep, log_ratios = _log_ratios(log_probs, ref_log_probs, mask)
    squared = 0.5 * log_ratios**2
    return jnp.where(keep, squared + jax.lax.stop_gradient(_k3(log_ratios) - squared), 0)


def exact(logits: Array, ref_logits: Array, *, mask: Array | None = None) -> Array:
    """KL(π‖π_ref) of each state by summing over the actions: Σ π·(log π − log π_ref).

    Args:
      logits: [..., A]. Gradients flow through this argument only.
      ref_logits: [..., A].
      mask: the states that count [...].
    Returns:
      [...], in nats; exactly 0, with exactly 0 gradient, where masked.
    Raises:
      ValueError: if the shapes do not fit.
    Reference: Kullback & Leibler 1951.
    """
    logits, ref_logits = as_float(logits), jax.lax.stop_gradient(as_float(ref_logits))
    check_rows("ref_logits", ref_logits.shape, logits.shape)
    keep = as_mask(mask, logits.shape[:-1])
    logits, ref_logits = (jnp.where(keep[..., None], z, 0) for z in (logits, ref_logits))
    return jnp.where(keep, categorical_kl(logits, ref_logits), 0)


def sequence_k2(log_probs: Array, ref_log_probs: Array, *, mask: Array | None = None) -> Array:
    """½(Σ_t x)² of the sequence: as a loss its expected gradient is exactly that of the sequence KL(π‖ref).

    Every token of a sequence carries the value of the sequence, so `reduce.sequence_mean` is the mean over
    sequences. Arguments as of `k1`, time last.

    Reference: k2 of a whole completion taken as one decision: Schulman 2020 (see `k2`); what the
      per-token forms miss: Tang & Munos 2025, arXiv:2506.09477. Proven here by enumeration.
    """
    keep, log_ratios = _log_ratios(log_probs, ref_log_probs, mask)
    return jnp.where(keep, 0.5 * log_ratios.sum(-1, keepdims=True) ** 2, 0)


def _sequence_ratio(log_probs: Array, keep: Array) -> Array:
    """Π_t π/sg(π) of each sequence [..., 1]: equal to 1, with the score of the sequence as its gradient."""
    total = jnp.where(keep, as_float(log_probs), 0).sum(-1, keepdims=True)
    return jnp.exp(total - jax.lax.stop_gradient(total))


def sequence_ratio_k1(log_probs: Array, ref_log_probs: Array, *, mask: Array | None = None) -> Array:
    """s·Σ_t x with s = Π π/sg(π): unbiased in value, and in gradient for the sequence KL(π‖ref).

    Every token carries the value of its sequence (average with `reduce.sequence_mean`). For samples of π
    itself. Arguments as of `k1`, time last.

    Reference: of Σ k1, the gradient of an expectation over what depends on θ itself, Schulman et al. 2015,
      arXiv:1506.05254, theorem 1. Proven here by enumeration.
    """
    keep, log_ratios = _log_ratios(log_probs, ref_log_probs, mask)
    return jnp.where(keep, _sequence_ratio(log_probs, keep) * log_ratios.sum(-1, keepdims=True), 0)


def sequence_ratio_k3(log_probs: Array, ref_log_probs: Array, *, mask: Array | None = None) -> Array:
    """s·Σ_t (e^{−x} − 1 + x) with s = Π π/sg(π): as `sequence_ratio_k1`, with less variance.

    Arguments as of `k1`, time last.

    Reference: as of `sequence_ratio_k1`, of Σ k3. Proven here by enumeration.
    """
    keep, log_ratios = _log_ratios(log_probs, ref_log_probs, mask)
    return jnp.where(keep, _sequence_ratio(log_probs, keep) * _k3(log_ratios).sum(-1, keepdims=True), 0)


def fixed_controller(coef: ScalarLike) -> Controller:
    """β_t = β: a coefficient that stays.

    Args:
      coef: β, a scalar.
    Returns:
      A `Controller`; its coefficient is a constant.
    Reference: the constant β of Ziegler et al. 2019, arXiv:1909.08593, eq. 2.
    """
    return Controller(lambda: as_float(coef), lambda coef, kl, count: coef)


def adaptive_controller(
    coef: ScalarLike = 0.15, *, target: ScalarLike = 6.0, horizon: ScalarLike = 10_000.0
) -> Controller:
    """β grows by the factor 1 + clip(KL/target − 1, ±0.2)·n/horizon: a step towards a wanted KL.

    Args:
      coef: the first coefficient, a scalar.
      target: KL per sequence to hold, in nats.
      horizon: number of sequences over which a sustained error of 20 % changes the coefficient by 20 %.
    Returns:
      A `Controller`; `update` takes the KL per sequence, in nats, and the number of sequences since; plain
      arithmetic, to be used outside of gradients.
    Reference: Ziegler et al. 2019, arXiv:1909.08593, sec. 2.2.

    >>> controller = adaptive_controller(0.1, target=6.0, horizon=1000)
    >>> controller.update(controller.init(), 12.0, 500)  # 20 % at most, for half the horizon
    Array(0.11000001, dtype=float32)
    """

    def update(coef: Array, kl: ScalarLike, count: ScalarLike) -> Array:
        coef = as_float(coef)
        measured, wanted, new, window = coefficients(coef, kl=kl, target=target, count=count, horizon=horizon)
        return coef * (1 + jnp.clip(measured / wanted - 1, -0.2, 0.2) * new / window)

    return Controller(lambda: as_float(coef), update)


def doubling_controller(coef: ScalarLike = 1.0, *, target: ScalarLike = 0.01) -> Controller:
    """β doubles if KL > 1.5·target, and halves if KL < target/1.5: the rule of `losses.ppo_kl_penalty`.

    Args:
      coef: the first β, a scalar.
      target: KL per element to hold, in nats.
    Returns:
      A `Controller`; `update` does not use the number of sequences; to be used outside of gradients.
    Reference: Schulman et al. 2017, arXiv:1707.06347, sec. 4.
    """

    def update(coef: Array, kl: ScalarLike, count: ScalarLike) -> Array:
        del count
        coef = as_float(coef)
        measured, wanted = coefficients(coef, kl=kl, target=target)
        return jnp.where(
            measured > 1.5 * wanted, 2 * coef, jnp.where(measured < wanted / 1.5, coef / 2, coef)
        )

    return Controller(lambda: as_float(coef), update)
