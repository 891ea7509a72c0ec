"""The optimizer of language-model training, and the rule that a non-finite update is never applied."""

import jax
import jax.numpy as jnp
import optax

from jaxrl4lm.types import Array, Params, ScalarLike


def adam(
    learning_rate: ScalarLike, max_grad_norm: ScalarLike, weight_decay: ScalarLike | None = None
) -> optax.GradientTransformation:
    """Adam (eps 1e-5) behind a clip of the global norm; every argument may be traced.

    The state holds arrays only, so build the transformation anew, from this call's hyper-parameters, wherever it is used.
    """
    decay = [] if weight_decay is None else [optax.add_decayed_weights(weight_decay, mask=_matrices)]
    return optax.chain(
        optax.clip_by_global_norm(max_grad_norm),  # pyright: ignore[reportArgumentType]
        optax.scale_by_adam(eps=1e-5),
        *decay,
        optax.scale_by_learning_rate(learning_rate),  # pyright: ignore[reportArgumentType]
    )


def _matrices(params: Params) -> Params:
    return jax.tree.map(lambda x: x.ndim > 1, params)


def apply_if_finite(
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
