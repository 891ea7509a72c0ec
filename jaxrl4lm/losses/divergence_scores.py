"""What DPO compares when another divergence than the reverse KL holds the policy to the reference: f′(π/π_ref).

Give them to a loss of differences (`dpo`, `ipo`, `hinge`, `exo`, `robust_dpo`, `discopop`) in place of log-probs, with 0
for the reference's. In the formulas d = log π − log π_ref of a completion; the reverse KL has d itself.
"""

import jax
import jax.numpy as jnp

from jaxrl4lm.arguments import coefficients, mask_inputs
from jaxrl4lm.types import Array, ScalarLike

_LARGEST_EXPONENT = 80.0
_NEAR_ONE = 1e-6


def alpha_score(log_ratios: Array, *, alpha: ScalarLike = 1.0, mask: Array | None = None) -> Array:
    """α-divergence: (exp((α − 1)d) − 1)/(α − 1). α = 1 is the reverse KL, d; α = 0 the forward KL, 1 − e^{−d}.

    Args:
      log_ratios: d of whole completions [B]. Gradients flow.
      alpha: α. The derivative with respect to it is 0 at 1.
      mask: the completions that count.
    Returns:
      The shape of `log_ratios`; 0, with 0 gradient, where masked.
    Reference: Wang et al. 2023, arXiv:2309.16240, table 2.
    """
    keep, d = mask_inputs(mask, log_ratios=log_ratios)
    (order,) = coefficients(d, alpha=alpha)
    order = order - 1
    plain = jnp.abs(order) < _NEAR_ONE
    safe = jnp.where(plain, 1, order)
    score = jnp.expm1(jnp.minimum(safe * d, _LARGEST_EXPONENT)) / safe
    return jnp.where(keep, jnp.where(plain, d, score), 0)


def jensen_shannon_score(log_ratios: Array, *, mask: Array | None = None) -> Array:
    """Jensen-Shannon divergence: log 2 + log σ(d). Arguments and result as of `alpha_score`.

    Reference: Wang et al. 2023, arXiv:2309.16240, table 2.
    """
    keep, d = mask_inputs(mask, log_ratios=log_ratios)
    return jnp.where(keep, jnp.log(jnp.asarray(2, d.dtype)) + jax.nn.log_sigmoid(d), 0)
