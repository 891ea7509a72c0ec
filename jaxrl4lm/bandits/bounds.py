"""What no algorithm can do better than."""

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import rel_entr
from jax.typing import ArrayLike


def lai_robbins(means: ArrayLike, *, gaussian: bool = False) -> Array:
    """c of the bound c · ln T: where T grows, every algorithm whose regret is sublinear on all worlds has at least that.

    c = Σ Δ_a / KL(arm a ‖ best arm), over the arms that are not best; Δ_a is what arm a pays less.

    Args:
      means: what arms pay on average, `[A, ...]`.
      gaussian: rewards are N(mean, 1); otherwise 1 with the probability `means`, else 0.
    Returns:
      float, of the shape of a mean. 0 where a best arm pays 1 always, for it is known at the first other reward.

    Reference: Lai & Robbins 1985, "Asymptotically efficient adaptive allocation rules".
    """
    means = jnp.asarray(means, float)
    best = jnp.broadcast_to(means.max(axis=0), means.shape)
    divergence = (
        (best - means) ** 2 / 2 if gaussian else rel_entr(means, best) + rel_entr(1 - means, 1 - best)
    )
    lost = means < best
    return jnp.where(lost, (best - means) / jnp.where(lost, divergence, 1.0), 0.0).sum(axis=0)
