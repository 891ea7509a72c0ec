"""One step of any optimizer, and the rule that a non-finite one is never applied."""

import jax
import jax.numpy as jnp
import optax

from jaxrl4lm.types import Array, Params


def step_if_finite(
    tx: optax.GradientTransformation, grads: Params, opt_state: optax.OptState, params: Params
) -> tuple[Params, optax.OptState, Array, Array]:
    """One optimizer step, or none at all where the gradient is not finite.

    Returns:
      (params, opt_state, norm of the gradient before the clip, whether the step was applied).
    """
    norm = optax.global_norm(grads)
    finite = jnp.isfinite(norm)
    updates, new_opt_state = tx.update(grads, opt_state, params)
    new = (optax.apply_updates(params, updates), new_opt_state)
    params, opt_state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, (params, opt_state))
    return params, opt_state, norm, finite
