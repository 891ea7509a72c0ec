"""Masked sums and means: how a loss per token becomes one number.

Losses are unreduced; the choice of the average is part of an algorithm (and the largest class of silent
errors). Time is the last axis, every other axis counts sequences. Each average exists twice: as a number,
and as a `Fraction` (total, denominator) that is added over micro-batches and devices and divided once:

    fractions = [reduce.token_fraction(loss, mask) for loss, mask in micro_batches]
    mean = reduce.divide(reduce.add(*fractions))

A Fraction is a pytree: `jax.lax.psum(fraction, "data")` adds it over devices. The mean of micro-batch means
is something else (it weighs tokens unequally).

Masks are True (or non-zero) where an element counts. A masked element is never read: nan and inf there change
neither a value nor a gradient. Results are float32, or float64 for float64 input.
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxrl4lm.arguments import coefficients, mask_inputs
from jaxrl4lm.types import Array, ScalarLike

Axis: TypeAlias = int | tuple[int, ...] | None


class Fraction(NamedTuple):
    """A mean before its division: add the parts over micro-batches and devices, then `divide`."""

    total: Array
    denominator: Array


def add(*fractions: Fraction) -> Fraction:
    """(Σ totals, Σ denominators): the fraction of the union of micro-batches.

    Args:
      *fractions: one per micro-batch, of equal shapes.
    Returns:
      A `Fraction`. Gradients flow.
    Reference: Hugging Face 2024, "Fixing gradient accumulation": the mean of means is not the mean.

    >>> float(divide(add(token_fraction(jnp.array([1.0])), token_fraction(jnp.array([2.0, 6.0])))))
    3.0
    """
    return Fraction(sum(f.total for f in fractions), sum(f.denominator for f in fractions))  # pyright: ignore


def divide(fraction: Fraction) -> Array:
    """total / denominator; 0 if the denominator is 0 (nothing was counted).

    Args:
      fraction: of any shape.
    Returns:
      The mean, of that shape. Gradients flow.
    Reference: the convention of this module; that nothing counted gives 0 keeps an empty batch out of a sum.
    """
    total, denominator = fraction
    return jnp.where(denominator > 0, total / jnp.where(denominator > 0, denominator, 1), 0)


def token_fraction(values: Array, mask: Array | None = None) -> Fraction:
    """(Σ m·l, Σ m) over every token: `token_mean` before its division. Arguments as of `token_mean`."""
    keep, kept = mask_inputs(mask, values=values)
    return Fraction(kept.sum(), keep.sum(dtype=kept.dtype))


def sequence_mean_fraction(values: Array, mask: Array | None = None) -> Fraction:
    """(Σ_i Σ_t m·l / Σ_t m, number of sequences). Arguments as of `sequence_mean`."""
    keep, kept = mask_inputs(mask, values=values)
    lengths = keep.sum(-1, dtype=kept.dtype)
    return Fraction((kept.sum(-1) / jnp.maximum(lengths, 1)).sum(), (lengths > 0).sum(dtype=kept.dtype))


def sequence_sum_fraction(values: Array, mask: Array | None = None) -> Fraction:
    """(Σ m·l, number of sequences). Arguments as of `sequence_sum`."""
    keep, kept = mask_inputs(mask, values=values)
    return Fraction(kept.sum(), keep.any(-1).sum(dtype=kept.dtype))


def constant_length_fraction(values: Array, mask: Array | None = None, *, length: ScalarLike) -> Fraction:
    """(Σ m·l, number of sequences · length). Arguments as of `constant_length`."""
    total, sequences = sequence_sum_fraction(values, mask)
    (length,) = coefficients(total, length=length)
    return Fraction(total, sequences * length)


def token_mean(values: Array, mask: Array | None = None) -> Array:
    """Mean over tokens: Σ m·l / Σ m. Long sequences weigh more. (DAPO, CISPO).

    Args:
      values: loss per token, any shape. Gradients flow.
      mask: the tokens that count, broadcastable to `values`; None for all.
    Returns:
      A scalar; 0 if no token counts.
    Reference: DAPO, Yu et al. 2025, arXiv:2503.14476, sec. 3.3, eq. 12.

    >>> float(token_mean(jnp.array([[1.0, 2.0], [6.0, jnp.nan]]), jnp.array([[1, 1], [1, 0]])))
    3.0
    """
    return divide(token_fraction(values, mask))


def sequence_mean(values: Array, mask: Array | None = None) -> Array:
    """Mean over sequences of the mean over their tokens: mean_i(Σ_t m·l / Σ_t m). (GRPO).

    Sequences without a counted token are left out, so that padding a batch with empty rows changes nothing.

    Args:
      values: loss per token [..., T]. Gradients flow.
      mask: the tokens that count.
    Returns:
      A scalar; 0 if no token counts.
    Reference: GRPO, Shao et al. 2024, arXiv:2402.03300, eq. 3.

    >>> float(sequence_mean(jnp.array([[1.0, 2.0], [6.0, jnp.nan]]), jnp.array([[1, 1], [1, 0]])))
    3.75
    """
    return divide(sequence_mean_fraction(values, mask))


def sequence_sum(values: Array, mask: Array | None = None) -> Array:
    """Mean over sequences of the sum over their tokens: mean_i Σ_t m·l: the policy gradient itself.

    Sequences without a counted token are left out.

    Args:
      values: loss per token [..., T]. Gradients flow.
      mask: the tokens that count.
    Returns:
      A scalar; 0 if no token counts.
    Reference: the return of an episode, Sutton & Barto 2018, sec. 13.3; for language models without the bias
      of a division by length, Liu et al. 2025, arXiv:2503.20783, sec. 3.2.

    >>> float(sequence_sum(jnp.array([[1.0, 2.0], [6.0, jnp.nan]]), jnp.array([[1, 1], [1, 0]])))
    4.5
    """
    return divide(sequence_sum_fraction(values, mask))


def constant_length(values: Array, mask: Array | None = None, *, length: ScalarLike) -> Array:
    """Sum over tokens by a constant: Σ m·l / (B · length). (Dr.GRPO).

    Args:
      values: loss per token [..., T]. Gradients flow.
      mask: the tokens that count.
      length: the constant, usually the longest completion allowed, in tokens; may be traced.
    Returns:
      A scalar; 0 if no token counts. B is the number of sequences with a counted token.
    Raises:
      ValueError: if `length` is not a scalar.
    Reference: Dr. GRPO, Liu et al. 2025, arXiv:2503.20783, sec. 3.2.

    >>> float(constant_length(jnp.array([[1.0, 2.0], [6.0, jnp.nan]]), jnp.array([[1, 1], [1, 0]]), length=4))
    1.125
    """
    return divide(constant_length_fraction(values, mask, length=length))


def masked_mean(values: Array, mask: Array | None = None, *, axis: Axis = None) -> Array:
    """Mean of the counted elements along `axis`, Σ m·x / Σ m; 0 where none counts.

    Args:
      values: any shape. Gradients flow.
      mask: the elements that count.
      axis: what to average over; None for everything.
    Returns:
      The shape of `values` without `axis`.
    Reference: the sample mean, Casella & Berger 2002, def. 5.2.2.
    """
    keep, kept = mask_inputs(mask, values=values)
    return divide(Fraction(kept.sum(axis), keep.sum(axis, dtype=kept.dtype)))


def masked_variance(values: Array, mask: Array | None = None, *, axis: Axis = None, ddof: int = 0) -> Array:
    """Variance of the counted elements along `axis`, Σ m(x − x̄)² / (Σ m − ddof); 0 where Σ m ≤ ddof.

    Args:
      values: any shape. Gradients flow.
      mask: the elements that count.
      axis: what to average over; None for everything.
      ddof: 0 for the population, 1 for a sample; static.
    Returns:
      The shape of `values` without `axis`.
    Reference: the sample variance, Casella & Berger 2002, def. 5.2.3 (ddof=1).
    """
    keep, kept = mask_inputs(mask, values=values)
    count = keep.sum(axis, keepdims=True, dtype=kept.dtype)
    deviations = jnp.where(keep, kept - kept.sum(axis, keepdims=True) / jnp.maximum(count, 1), 0)
    return divide(Fraction((deviations**2).sum(axis), keep.sum(axis, dtype=kept.dtype) - ddof))


def spread(values: Array, mask: Array | None = None, *, axis: Axis = None) -> Array:
    """Boolean along `axis` (kept, size 1): do the counted elements differ by more than rounding?

    Equal float32 rewards have a computed standard deviation of about 1e-8, and dividing by it would make a
    full-size gradient out of nothing. So ask for the spread, relative to the largest magnitude, not for the
    standard deviation.

    Args:
      values: any shape; a boolean has no gradient.
      mask: the elements that count.
      axis: along which they are compared; None for everything.
    Returns:
      Booleans; False where at most one element counts.
    Reference: this library's own test, for the standard deviation that GRPO divides by (Shao et al. 2024,
      arXiv:2402.03300, sec. 4.1.2).
    """
    keep, kept = mask_inputs(mask, values=values)
    largest = jnp.max(kept, axis, keepdims=True, initial=-jnp.inf, where=keep)
    smallest = jnp.min(kept, axis, keepdims=True, initial=jnp.inf, where=keep)
    magnitude = jnp.max(jnp.abs(kept), axis, keepdims=True, initial=0)
    # What is not finite is no rounding: it is to be seen as a nan, not taken for a group of equal rewards.
    return (largest - smallest > 4 * jnp.finfo(kept.dtype).eps * magnitude) | ~jnp.isfinite(magnitude)


def whiten(
    values: Array, mask: Array | None = None, *, shift_mean: bool = True, eps: ScalarLike = 1e-8
) -> Array:
    """Zero mean and unit variance over all counted elements: (x − x̄) · rsqrt(var + ε).

    Args:
      values: advantages or rewards, any shape.
      mask: the elements that count.
      shift_mean: False puts the mean back afterwards (for rewards, whose sign has a meaning).
      eps: added to the population variance.
    Returns:
      The same shape; 0 where masked. Elements that are all equal (or only one) become exactly 0 (with
      `shift_mean=False`: their mean). Gradients flow.
    Reference: advantages: Huang et al. 2022, "The 37 implementation details", no. 7; rewards, with
      `shift_mean=False`: the code of Ziegler et al. 2019, arXiv:1909.08593.

    >>> whiten(jnp.array([1.0, 3.0, jnp.inf]), jnp.array([True, True, False]))
    Array([-1.,  1.,  0.], dtype=float32)
    """
    keep, kept = mask_inputs(mask, values=values)
    (eps,) = coefficients(kept, eps=eps)
    mean = masked_mean(kept, keep)
    informative = spread(kept, keep)
    variance = jnp.where(informative, masked_variance(kept, keep), 1)  # the root has no derivative at 0
    whitened = jnp.where(informative, (kept - mean) * jax.lax.rsqrt(variance + eps), 0)
    return jnp.where(keep, whitened if shift_mean else whitened + mean, 0)
