"""Masked sums and means: how a loss per token becomes one number.

Losses give one value per token; which average is taken of them is part of the algorithm (a wrong one raises no
error). Time is the last axis, all other axes count sequences. Each average exists twice: as a number, and as a
`Fraction` (total, denominator) that is added over micro-batches and devices and divided once:

    fractions = [reduce.token_fraction(loss, mask) for loss, mask in micro_batches]
    mean = reduce.divide(reduce.add(*fractions))

A Fraction is a pytree: `jax.lax.psum(fraction, "data")` adds it over devices. The mean of the means of
micro-batches is another number: tokens of short micro-batches weigh more in it.

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
    """(Σ totals, Σ denominators): the fraction of all micro-batches together.

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
    Reference: a convention of this module, so that a batch without a counted token adds 0 and not nan.
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
    """Mean over sequences of the sum over their tokens: mean_i Σ_t m·l. (REINFORCE: no division by length).

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
    """Sum over all tokens, divided by a constant: Σ m·l / (B · length). (Dr.GRPO).

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


def differ(values: Array, mask: Array | None = None, *, axis: Axis = None) -> Array:
    """Do the counted elements along `axis` differ by more than rounding?

    Ask this before dividing by a standard deviation. That of equal float32 rewards is computed as about 1e-8, not 0,
    and dividing by it makes advantages of full size out of rounding. Elements differ if their maximum exceeds their
    minimum by more than 4 ε times the largest magnitude, ε the machine precision of the type.

    Args:
      values: any shape; a boolean has no gradient.
      mask: the elements that count.
      axis: along which they are compared; None for everything.
    Returns:
      Booleans of the shape of `values` with size 1 along `axis`; False where at most one element counts, True where
      one that counts is not finite.
    Reference: this library's own test, for the standard deviation that GRPO divides by (Shao et al. 2024,
      arXiv:2402.03300, sec. 4.1.2).
    """
    keep, kept = mask_inputs(mask, values=values)
    largest = jnp.max(kept, axis, keepdims=True, initial=-jnp.inf, where=keep)
    smallest = jnp.min(kept, axis, keepdims=True, initial=jnp.inf, where=keep)
    magnitude = jnp.max(jnp.abs(kept), axis, keepdims=True, initial=0)
    # inf and nan compare as "no difference"; taken for equal rewards they would vanish from the result unseen.
    return (largest - smallest > 4 * jnp.finfo(kept.dtype).eps * magnitude) | ~jnp.isfinite(magnitude)


def whiten(
    values: Array, mask: Array | None = None, *, shift_mean: bool = True, eps: ScalarLike = 1e-8
) -> Array:
    """Zero mean and unit variance over all counted elements: (x − x̄) / √(var + ε).

    The variance is that of the population: it divides by the number n of counted elements. TRL and verl divide by
    n − 1, so their result is smaller by the factor √((n−1)/n), which is 0.9995 for 1,000 tokens.

    Args:
      values: advantages or rewards, any shape.
      mask: the elements that count.
      shift_mean: False adds the mean again afterwards (for rewards, whose sign has a meaning).
      eps: ε, added to the variance.
    Returns:
      The same shape; 0 where masked. If all elements are equal, or there is only one, they become exactly 0 (with
      `shift_mean=False`: their mean). Gradients flow.
    Reference: advantages: Huang et al. 2022, "The 37 implementation details", no. 7; rewards, with
      `shift_mean=False`: the code of Ziegler et al. 2019, arXiv:1909.08593.

    >>> whiten(jnp.array([1.0, 3.0, jnp.inf]), jnp.array([True, True, False]))
    Array([-1.,  1.,  0.], dtype=float32)
    """
    keep, kept = mask_inputs(mask, values=values)
    (eps,) = coefficients(kept, eps=eps)
    mean = masked_mean(kept, keep)
    informative = differ(kept, keep)
    variance = jnp.where(informative, masked_variance(kept, keep), 1)  # the root has no derivative at 0
    whitened = jnp.where(informative, (kept - mean) * jax.lax.rsqrt(variance + eps), 0)
    return jnp.where(keep, whitened if shift_mean else whitened + mean, 0)
