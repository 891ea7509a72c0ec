"""Supervised losses of language models, per token. Shapes: T tokens, V vocabulary; leading axes are free."""

import jax.numpy as jnp

from jaxrl4lm.distributions import categorical_log_prob
from jaxrl4lm.reduce import as_float, as_mask
from jaxrl4lm.types import Array, ScalarLike


def cross_entropy(
    logits: Array, targets: Array, *, label_smoothing: ScalarLike = 0.0, mask: Array | None = None
) -> Array:
    """−[(1−ε)·log p(target) + ε·mean_v log p(v)], per token, for logits already aligned with their targets.

    Args:
      logits: [..., T, V]. Gradients flow through this argument.
      targets: token ids [..., T]; any value where masked.
      label_smoothing: ε.
      mask: the targets that count [..., T].
    Returns:
      [..., T], in nats; exactly 0, with exactly 0 gradient, where masked.
    Raises:
      ValueError: if the shapes do not fit.
    """
    keep = as_mask(mask, jnp.shape(targets))
    logits = jnp.where(keep[..., None], as_float(logits), 0)
    log_probs = categorical_log_prob(logits, jnp.where(keep, targets, 0))
    # log p(v) = z_v − logsumexp(z), so the uniform part differs by the chosen logit and the mean one.
    chosen = jnp.take_along_axis(logits, jnp.where(keep, targets, 0)[..., None], axis=-1)[..., 0]
    loss = -log_probs + label_smoothing * (chosen - logits.mean(-1))
    return jnp.where(keep, loss, 0)


def next_token_cross_entropy(
    logits: Array, tokens: Array, *, label_smoothing: ScalarLike = 0.0, mask: Array | None = None
) -> Array:
    """−log p(token_t | tokens_<t), t = 1 … T−1: `logits[..., t−1, :]` predict `tokens[..., t]`.

    Args:
      logits: of the whole sequence [..., T, V]. Gradients flow through this argument.
      tokens: ids [..., T].
      label_smoothing: ε, see `cross_entropy`.
      mask: the tokens to learn [..., T] (its first column is not used: nothing predicts the first token).
    Returns:
      [..., T−1], in nats, aligned with `tokens[..., 1:]`: average with `reduce.token_mean(loss, mask[...,
      1:])`. Exactly 0, with exactly 0 gradient, where masked.
    Raises:
      ValueError: if the shapes do not fit.
    """
    if mask is not None:
        mask = as_mask(mask, jnp.shape(tokens))[..., 1:]
    return cross_entropy(logits[..., :-1, :], tokens[..., 1:], label_smoothing=label_smoothing, mask=mask)
