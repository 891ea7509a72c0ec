"""The optimizer of language-model training, and the rule that a non-finite update is never applied."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxrl4lm.types import Array, Params, ScalarLike

Optimizer: TypeAlias = Callable[[ScalarLike, Any], optax.GradientTransformation]
"""(learning rate, configuration) → the transformation; both may be traced. It is built anew at every update, from that
update's numbers, so its state must hold arrays only."""


def adam(learning_rate: ScalarLike, config: Any) -> optax.GradientTransformation:
    """Adam behind a clip of the global norm.

    Args:
      config: a record with `max_grad_norm`, `weight_decay` (decoupled, of matrices) and `adam_eps`.
    Reference: Kingma & Ba 2015, arXiv:1412.6980; Loshchilov & Hutter 2019, arXiv:1711.05101.
    """
    decays = not isinstance(config.weight_decay, int | float) or config.weight_decay > 0
    decay = [optax.add_decayed_weights(config.weight_decay, mask=_find_matrices)] if decays else []
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.scale_by_adam(eps=config.adam_eps),
        *decay,
        optax.scale_by_learning_rate(learning_rate),  # pyright: ignore[reportArgumentType]
    )


def _find_matrices(params: Params) -> Params:
    return jax.tree.map(lambda x: x.ndim > 1, params)


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
