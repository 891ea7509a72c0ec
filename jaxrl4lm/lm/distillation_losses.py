"""How a student is compared with a teacher: pure functions of logits and log-probabilities.

Shapes: `N` tokens, `V` vocabulary, `K` likeliest ids of a teacher, `B` completions, `T` tokens of one.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxrl4lm import losses, returns
from jaxrl4lm.lm.config import DistillationConfig
from jaxrl4lm.types import Array, ScalarLike

Divergence: TypeAlias = Callable[[Array, Array, DistillationConfig], Array]
"""(logits of the student `[N, V]`, of a teacher `[N, V]`, both at `loss_temperature`, configuration) → `[N]`, in nats.
Gradients flow through those of the student."""


def compare(student_logits: Array, teacher_logits: Array, config: DistillationConfig) -> Array:
    """KL(teacher‖student) where β is 0, KL(student‖teacher) where it is 1, else the generalised Jensen-Shannon divergence,
    which would be 0 at both ends.

    Reference: Agarwal et al. 2023, arXiv:2306.13649, eq. 1; the ends as in TRL.
    """
    beta, pair = config.beta, (student_logits, teacher_logits)
    known = isinstance(beta, int | float)
    if known and beta == 0:
        return losses.forward_distillation(*pair)
    if known and beta == 1:
        return losses.reverse_distillation(*pair)
    between = losses.generalized_jsd(*pair, beta=beta)
    if known:
        return between
    forward, reverse = losses.forward_distillation(*pair), losses.reverse_distillation(*pair)
    return jnp.where(beta == 0, forward, jnp.where(beta == 1, reverse, between))


class TopTokens(NamedTuple):
    """What is kept of a teacher's distributions."""

    ids: Array
    """int32 `[N, K]`: the likeliest ids, the first before the others."""
    log_probs: Array
    """float32 `[N, K + 1]`, as `gather_with_rest` gives them."""


def keep_top(logits: Array, k: int) -> TopTokens:
    """The `k` likeliest ids of logits `[N, V]`; all if there are fewer."""
    ids = jax.lax.top_k(logits, min(k, logits.shape[-1]))[1]
    return TopTokens(ids, gather_with_rest(logits, ids))


def gather_with_rest(logits: Array, ids: Array) -> Array:
    """Log-probabilities `[N, K + 1]` of some ids `[N, K]`, and of all others together; `[N, K]` where these are all.

    A divergence of such buckets is at most that of the whole distributions (data processing).
    """
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(log_probs, ids, axis=-1)
    if ids.shape[-1] == logits.shape[-1]:
        return chosen
    # The sum of the others, not 1 minus that of the chosen: what is left of 1 has no digits in float32.
    others = log_probs.at[jnp.arange(len(ids))[:, None], ids].set(-jnp.inf)
    return jnp.concatenate([chosen, jax.nn.logsumexp(others, axis=-1, keepdims=True)], axis=-1)


def policy_gradient(
    log_probs: Array,
    teacher_log_probs: Sequence[Array],
    weights: Sequence[float],
    mask: Array,
    *,
    discount: ScalarLike = 0.0,
) -> Array:
    """log π − log π_teacher of each drawn token, whose gradient is that of −Â log π with Â_t = −Σ_{u ≥ t} γ^{u−t} of it.

    The mean is an estimate of the reverse KL. With γ = 0 the gradient is, in expectation, that of the divergence at the
    states that were drawn; with γ = 1 that of the divergence of whole completions.

    Args:
      log_probs: of the student `[B, T]`. Gradients flow.
      teacher_log_probs: of each teacher `[B, T]`.
      weights: of the teachers; the log-ratios are added with them.
      mask: bool `[B, T]`, the tokens that were drawn.
      discount: γ.
    Returns:
      `[B, T]`, in nats; 0 where masked.
    Reference: Gu et al. 2023, arXiv:2306.08543, eq. 2 (γ = 1); Lu et al. 2025, "On-policy distillation" (γ = 0).
    """
    now = jnp.where(mask, log_probs, 0)
    fixed = jax.lax.stop_gradient(now)
    ratios = sum(
        weight * (fixed - jax.lax.stop_gradient(said))
        for weight, said in zip(weights, teacher_log_probs, strict=True)
    )
    costs = jnp.where(mask, ratios, 0)
    later = returns.discounted_returns(costs, discount=discount, mask=mask, axis=-1)
    return costs + later * (now - fixed)
