"""What every function of the ground floor does to its arguments: dtype, shape, mask, range, before any formula.

Masks are True (or non-zero) where an element counts. A masked element is never read: nan and inf there change
neither a value nor a gradient. Arithmetic is in float32, or float64 for float64 input. Arrays broadcast axis by
axis: they have equal rank, or one is a scalar. [B] beside [B, T] is refused, because NumPy would align B with T.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.types import Array, ScalarLike


def as_float(values: ScalarLike) -> Array:
    """float32, or wider if `values` are: bfloat16, integers and booleans become float32."""
    values = jnp.asarray(values)
    return values.astype(precise_dtype(values.dtype))


def precise_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """float64 for float64, else float32. No promotion of two types: it works under strict promotion as well."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def as_mask(mask: ScalarLike | None, shape: tuple[int, ...], name: str = "mask") -> Array:
    """`mask` (booleans or zeros and ones; None for all True) as booleans of the given shape.

    Raises:
      ValueError: if it does not broadcast to `shape` axis by axis (equal rank, or a scalar).
    """
    if mask is None:
        return jnp.ones(shape, bool)
    check_broadcastable(name, np.shape(mask), shape)
    return jnp.broadcast_to(jnp.asarray(mask).astype(bool), shape)


def last_token(mask: ScalarLike, *, axis: int = -1) -> Array:
    """True at the last real token of each row, and nowhere else: gaps before it do not end a row.

    Args:
      mask: True (or non-zero) at real tokens, any shape with a time axis.
      axis: the time axis.
    Returns:
      Booleans of the shape of `mask`: one True in each row that has a token, none in the others. A constant.
    Reference: what this library calls the end of a completion; a score of a whole completion is paid there.

    >>> last_token(jnp.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]]))
    Array([[False, False, False,  True, False],
           [False, False, False, False, False]], dtype=bool)
    """
    keep = jnp.asarray(mask).astype(bool)
    time = jax.lax.broadcasted_iota(jnp.int32, keep.shape, axis % keep.ndim)
    return time == jnp.max(time, axis=axis, keepdims=True, initial=-1, where=keep)


def check_broadcastable(name: str, shape: tuple[int, ...], target: tuple[int, ...]) -> None:
    """Raise a ValueError unless `shape` is () or has the rank of `target` with each axis equal or 1."""
    fits = len(shape) == len(target) and all(n in (1, m) for n, m in zip(shape, target, strict=True))
    if shape and not fits:
        fix = (
            f"give it as many axes, each equal or 1 (one value per sequence is {name}[:, None])"
            if target
            else "give it a single number (or `jax.vmap` over it)"
        )
        raise ValueError(f"{name} has shape {shape}, which does not broadcast to {target}: {fix}.")


def check_rows(name: str, shape: tuple[int, ...], target: tuple[int, ...]) -> None:
    """Raise a ValueError unless `shape` broadcasts to `target` with an equal last axis: a value per category.

    One logit beside V of them would broadcast, and give a divergence below 0.
    """
    check_broadcastable(name, shape, target)
    if shape[-1:] != target[-1:]:
        raise ValueError(f"{name} has shape {shape}, which is not {target}: the last axes must be equal.")


def coefficients(like: Array | jax.ShapeDtypeStruct, **values: ScalarLike) -> tuple[Array, ...]:
    """Hyper-parameters as arrays of the dtype of `like`, so that none of them widens the result.

    Each is a number, or an array that broadcasts to the shape of `like`. Hyper-parameters are read also where a mask
    is False, unlike data: an array of them must be finite everywhere.

    Raises:
      ValueError: if one does not broadcast to the shape of `like` (equal rank, or a scalar).
    """
    for name, value in values.items():
        check_broadcastable(name, np.shape(value), like.shape)
    return tuple(jnp.asarray(value, like.dtype) for value in values.values())


def mask_inputs(mask: ScalarLike | None, **arrays: ScalarLike) -> tuple[Array, ...]:
    """(mask, *arrays): all of the shape of the first array, in float32 or wider, 0 where masked.

    A loss is masked twice. Here, before a logarithm or an exponential: otherwise inf in a masked slot reaches the
    gradient (0 · inf = nan). And at its end, by `jnp.where(mask, loss, 0)`.

    Raises:
      ValueError: if a later array does not broadcast to the shape of the first (equal rank, or a scalar).
    """
    first = as_float(next(iter(arrays.values())))
    shape = first.shape
    selected = []
    for name, array in arrays.items():
        check_broadcastable(name, np.shape(array), shape)
        # A Python number has no precision of its own.
        number = isinstance(array, int | float)
        selected.append(
            jnp.broadcast_to(jnp.asarray(array, first.dtype) if number else as_float(array), shape)
        )
    if mask is None:
        return jnp.ones(shape, bool), *selected
    keep = as_mask(mask, shape)
    return keep, *(jnp.where(keep, array, 0) for array in selected)


def as_log_ratios(
    log_probs: Array, old_log_probs: Array, advantages: Array, mask: Array | None
) -> tuple[Array, Array, Array]:
    """(mask, log π − log π_old, A) of a policy loss: 0 where masked; gradients flow through `log_probs` only.

    Raises:
      ValueError: if an array or the mask does not broadcast to the shape of `log_probs`.
    """
    keep, log_probs, old_log_probs, advantages = mask_inputs(
        mask, log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages
    )
    return keep, log_probs - jax.lax.stop_gradient(old_log_probs), jax.lax.stop_gradient(advantages)


def known_index(indices: Array, size: int) -> tuple[Array, Array]:
    """(0 ≤ i < size, i or 0 where that is False). JAX alone would count a negative index from the end.

    Losses give nan for an index outside that is not masked. So −100, which elsewhere marks labels to ignore, must be
    masked.
    """
    indices = jnp.asarray(indices)
    if indices.dtype.itemsize < 4 and not jnp.issubdtype(indices.dtype, jnp.floating):
        indices = indices.astype(jnp.int32)  # 256 as a uint8 is 0: no byte would be below it
    known = (indices >= 0) & (indices < size)
    return known, jnp.where(known, indices, 0)
