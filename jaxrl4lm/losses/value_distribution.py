"""Losses of distributions of returns: quantiles, and probabilities on a fixed support.

Gradients flow through the prediction only.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.arguments import as_float, as_mask, check_rows, coefficients
from jaxrl4lm.types import Array, ScalarLike


def quantile_huber(
    quantiles: Array, targets: Array, *, kappa: ScalarLike = 1.0, mask: Array | None = None
) -> Array:
    """Σ_i mean_j |τ_i − 1{u < 0}|·L_κ(u) / κ, u = target_j − θ_i: θ_i towards the quantile τ_i = (i + ½)/N of the targets.

    L_κ is Huber's loss, of whose line κ is the slope: κ = 0 gives |u|, quantile regression itself, and a larger κ moves the
    quantiles towards expectiles.

    Args:
      quantiles: θ `[..., N]`, of τ_0 < τ_1 < ... Gradients flow through this argument only.
      targets: samples, or quantiles of equal weights, `[..., M]`.
      kappa: κ ≥ 0, where the parabola becomes a line.
      mask: the rows that count `[...]`.
    Returns:
      Loss `[...]`; exactly 0, with exactly 0 gradient, where masked.
    Raises:
      ValueError: if the leading axes differ, or `mask` or `kappa` does not broadcast to them.
    Reference: Dabney et al. 2018, arXiv:1710.10044, eq. 10, over κ as in arXiv:1806.06923, eq. 3; the same for κ = 1.

    >>> quantile_huber(jnp.array([0.0]), jnp.array([2.0]))  # ½·(2 − ½)
    Array(0.75, dtype=float32)
    """
    shape = np.shape(quantiles)[:-1]
    if np.shape(targets)[:-1] != shape:
        raise ValueError(
            f"targets has shape {np.shape(targets)}, quantiles {np.shape(quantiles)}: all axes but the last "
            "must be equal."
        )
    keep = as_mask(mask, shape)
    quantiles, targets = (jnp.where(keep[..., None], as_float(x), 0) for x in (quantiles, targets))
    (kappa,) = coefficients(quantiles[..., 0], kappa=kappa)
    kappa = kappa[..., None, None] if kappa.ndim else kappa
    count = quantiles.shape[-1]
    tau = ((jnp.arange(count, dtype=quantiles.dtype) + 0.5) / count)[:, None]
    errors = jax.lax.stop_gradient(targets)[..., None, :] - quantiles[..., :, None]
    size = jnp.abs(errors)
    near = jnp.minimum(size, kappa)
    share = jnp.where(kappa > 0, near / jnp.where(kappa > 0, kappa, 1), 1)
    weight = jnp.abs(tau.reshape((1,) * len(shape) + (count, 1)) - (errors < 0).astype(errors.dtype))
    loss = (weight * share * (size - 0.5 * near)).mean(-1).sum(-1)
    return jnp.where(keep, loss, 0)


def categorical_value(logits: Array, target_probs: Array, *, mask: Array | None = None) -> Array:
    """−Σ_i p_i·log softmax(logits)_i: the cross-entropy with a target distribution on the same support.

    Args:
      logits: of the predicted distribution `[..., K]`. Gradients flow through this argument only.
      target_probs: p `[..., K]`, as of `project_categorical`.
      mask: the rows that count `[...]`.
    Returns:
      Loss `[...]`, in nats; exactly 0, with exactly 0 gradient, where masked.
    Raises:
      ValueError: if the shapes differ, or `mask` does not broadcast.
    Reference: Bellemare et al. 2017, arXiv:1707.06887, alg. 1.
    """
    check_rows("target_probs", np.shape(target_probs), np.shape(logits))
    keep = as_mask(mask, np.shape(logits)[:-1])
    logits, target_probs = (jnp.where(keep[..., None], as_float(x), 0) for x in (logits, target_probs))
    target_probs = jax.lax.stop_gradient(target_probs)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    # A category of probability 0 counts for nothing, also where its logit is −inf.
    return -jnp.where(target_probs == 0, 0, target_probs * log_probs).sum(-1)


def project_categorical(atoms: Array, probs: Array, *, support: Array, mask: Array | None = None) -> Array:
    """The distribution on `support` nearest to one on other atoms: each atom is shared by its two neighbours, by nearness.

    Its mean is the same, but for atoms beyond the ends of the support, which go to the ends.

    Args:
      atoms: where the probabilities stand `[..., N]`, in any order. A constant.
      probs: the probabilities `[..., N]`. A constant.
      support: `[K]`, K ≥ 2, increasing.
      mask: the rows that count `[...]`.
    Returns:
      Probabilities `[..., K]`, constants to every loss; 0 where masked.
    Raises:
      ValueError: if the shapes do not fit.
    Reference: Bellemare et al. 2017, arXiv:1707.06887, eq. 7; of least Cramér distance: Rowland et al. 2018, arXiv:1802.08163.

    >>> project_categorical(jnp.array([0.25, 9.0]), jnp.array([0.5, 0.5]), support=jnp.array([0.0, 1.0, 2.0]))
    Array([0.375, 0.125, 0.5  ], dtype=float32)
    """
    check_rows("probs", np.shape(probs), np.shape(atoms))
    if np.ndim(support) != 1 or np.shape(support)[0] < 2:
        raise ValueError(f"support has shape {np.shape(support)}: give at least two increasing numbers [K].")
    keep = as_mask(mask, np.shape(atoms)[:-1])[..., None]
    atoms, probs = (jax.lax.stop_gradient(jnp.where(keep, as_float(x), 0)) for x in (atoms, probs))
    support = jax.lax.stop_gradient(as_float(support))
    gaps = jnp.diff(support)
    one = jnp.ones(1, gaps.dtype)  # no atom lies beyond an end
    rows = (1,) * (atoms.ndim - 1) + (-1, 1)
    above, below = (jnp.concatenate(x).reshape(rows) for x in ((gaps, one), (one, gaps)))
    distance = jnp.clip(atoms, support[0], support[-1])[..., None, :] - support.reshape(rows)
    share = jnp.maximum(1 - jnp.where(distance >= 0, distance / above, -distance / below), 0)
    return (share * probs[..., None, :]).sum(-1)
