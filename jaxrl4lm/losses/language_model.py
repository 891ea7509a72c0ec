"""Supervised losses of language models, per token. Shapes: T tokens, V vocabulary; leading axes are free.

For large vocabularies take `losses.chunked_token_log_probs`, which never holds the logits.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.arguments import as_float, as_mask, check_rows, coefficients
from jaxrl4lm.distributions import categorical_kl, categorical_log_prob
from jaxrl4lm.types import Array, ScalarLike


def _check_aligned(name: str, ids: Array, logits: Array, least: int = 0) -> None:
    if np.ndim(ids) < least or np.shape(logits)[:-1] != np.shape(ids) or np.ndim(logits) == 0:
        raise ValueError(
            f"{name} has shape {np.shape(ids)}, logits {np.shape(logits)}: logits must have the shape of "
            f"{name} and then the vocabulary."
        )


def cross_entropy(
    logits: Array, targets: Array, *, label_smoothing: ScalarLike = 0.0, mask: Array | None = None
) -> Array:
    """−[(1−ε)·log p(target) + ε·mean_v log p(v)], per token, for logits already aligned with their targets.

    Args:
      logits: [..., T, V]. Gradients flow through this argument.
      targets: token ids [..., T]; any value where masked. An id that counts and is not in 0 … V−1 has the
        loss nan. If −100 marks labels to ignore, give `mask=targets != -100`.
      label_smoothing: ε.
      mask: the targets that count [..., T].
    Returns:
      [..., T], in nats; exactly 0, with exactly 0 gradient, where masked.
    Raises:
      ValueError: if the shapes do not fit.
    Reference: Shannon 1948; label smoothing: Szegedy et al. 2016, arXiv:1512.00567, sec. 7.

    >>> cross_entropy(jnp.zeros((2, 4)), jnp.array([1, -100]), mask=jnp.array([True, False]))
    Array([1.3862944, 0.       ], dtype=float32)
    """
    _check_aligned("targets", targets, logits)
    keep = as_mask(mask, np.shape(targets))
    logits = jnp.where(keep[..., None], as_float(logits), 0)
    log_probs = categorical_log_prob(logits, jnp.where(keep, jnp.asarray(targets), 0))
    (label_smoothing,) = coefficients(log_probs, label_smoothing=label_smoothing)
    uniform = logits.mean(-1) - jax.nn.logsumexp(logits, axis=-1)
    loss = -_share(1 - label_smoothing, log_probs) - _share(label_smoothing, uniform)
    return jnp.where(keep, loss, 0)


def _share(weight: Array, log_probs: Array) -> Array:
    """weight · log p; 0, not nan, where the weight of a forbidden token (−inf) is 0."""
    return weight * jnp.where((weight == 0) & jnp.isneginf(log_probs), 0, log_probs)


def next_token_cross_entropy(
    logits: Array, tokens: Array, *, label_smoothing: ScalarLike = 0.0, mask: Array | None = None
) -> Array:
    """−log p(token_t | tokens_<t), t = 1 … T−1: `logits[..., t−1, :]` predict `tokens[..., t]`.

    Args:
      logits: of the whole sequence [..., T, V]. Gradients flow through this argument.
      tokens: ids [..., T], as the targets of `cross_entropy`.
      label_smoothing: ε, see `cross_entropy`.
      mask: the tokens to learn [..., T] (its first column is not used: nothing predicts the first token).
    Returns:
      [..., T−1], in nats, aligned with `tokens[..., 1:]`; exactly 0, with exactly 0 gradient, where masked.
      Average with `reduce.token_mean(loss, mask[..., 1:])`.
    Raises:
      ValueError: if the shapes do not fit.
    Reference: Bengio et al. 2003, "A neural probabilistic language model", sec. 2; Radford et al. 2018,
      "Improving language understanding by generative pre-training", eq. 1.

    >>> next_token_cross_entropy(jnp.zeros((1, 3, 4)), jnp.array([[3, 0, 1]]), mask=jnp.array([[0, 1, 0]]))
    Array([[1.3862944, 0.       ]], dtype=float32)
    """
    logits, tokens = jnp.asarray(logits), jnp.asarray(tokens)
    _check_aligned("tokens", tokens, logits, least=1)
    if mask is not None:
        mask = as_mask(mask, np.shape(tokens))[..., 1:]
    return cross_entropy(logits[..., :-1, :], tokens[..., 1:], label_smoothing=label_smoothing, mask=mask)


def z_loss(logits: Array, *, mask: Array | None = None) -> Array:
    """logsumexp(z)², per row: times about 1e-4 it keeps the normaliser of the softmax near 1.

    Args:
      logits: [..., V]. Gradients flow through this argument.
      mask: the rows that count [...].
    Returns:
      [...], in nats²; exactly 0, with exactly 0 gradient, where masked.
    Reference: Chowdhery et al. 2022, arXiv:2204.02311, sec. 5.
    """
    keep = as_mask(mask, np.shape(logits)[:-1])
    logits = jnp.where(keep[..., None], as_float(logits), 0)
    return jnp.where(keep, jax.nn.logsumexp(logits, axis=-1) ** 2, 0)


def _student_and_teacher(
    student_logits: Array, teacher_logits: Array, temperature: ScalarLike, mask: Array | None
) -> tuple[Array, Array, Array]:
    """(mask, student, teacher): logits over the temperature, 0 where masked, the teacher a constant."""
    student, teacher = as_float(student_logits), jax.lax.stop_gradient(as_float(teacher_logits))
    check_rows("teacher_logits", teacher.shape, student.shape)
    keep = as_mask(mask, student.shape[:-1])
    (temperature,) = coefficients(jax.ShapeDtypeStruct(keep.shape, student.dtype), temperature=temperature)
    temperature = temperature[..., None] if temperature.ndim else temperature
    student, teacher = (jnp.where(keep[..., None], z, 0) / temperature for z in (student, teacher))
    return keep, student, teacher


def forward_distillation(
    student_logits: Array, teacher_logits: Array, *, temperature: ScalarLike = 1.0, mask: Array | None = None
) -> Array:
    """KL(teacher‖student) per token: the student covers the teacher.

    Args:
      student_logits: [..., V]. Gradients flow through this argument only.
      teacher_logits: [..., V].
      temperature: of both softmaxes, a number or one per token [...]. Gradients shrink with its square;
        multiply by T² to undo that.
      mask: the tokens that count [...].
    Returns:
      [...], in nats; exactly 0, with exactly 0 gradient, where masked.
    Raises:
      ValueError: if the shapes do not fit.
    Reference: Hinton et al. 2015, arXiv:1503.02531, sec. 2.
    """
    keep, student, teacher = _student_and_teacher(student_logits, teacher_logits, temperature, mask)
    return jnp.where(keep, categorical_kl(teacher, student), 0)


def reverse_distillation(
    student_logits: Array, teacher_logits: Array, *, temperature: ScalarLike = 1.0, mask: Array | None = None
) -> Array:
    """KL(student‖teacher) per token: the student stays where the teacher is.

    Arguments as of `forward_distillation`.

    Reference: Gu et al. 2023, arXiv:2306.08543, sec. 2.1.
    """
    keep, student, teacher = _student_and_teacher(student_logits, teacher_logits, temperature, mask)
    return jnp.where(keep, categorical_kl(student, teacher), 0)


def generalized_jsd(
    student_logits: Array,
    teacher_logits: Array,
    *,
    beta: ScalarLike = 0.5,
    temperature: ScalarLike = 1.0,
    mask: Array | None = None,
) -> Array:
    """Generalised Jensen–Shannon: β·KL(teacher‖m) + (1−β)·KL(student‖m), m = β·teacher + (1−β)·student.

    Close to β = 0 it is β·KL(teacher‖student), close to β = 1 it is (1−β)·KL(student‖teacher); so at 0 and at 1 it
    is 0. TRL returns the plain divergence at these two values: take `forward_distillation` for its β = 0, and
    `reverse_distillation` for its β = 1. Other arguments as of `forward_distillation`.

    Args:
      beta: β, a number or one per token [...].

    Reference: Agarwal et al. 2023, arXiv:2306.13649, eq. 1.
    """
    keep, student, teacher = _student_and_teacher(student_logits, teacher_logits, temperature, mask)
    log_s, log_t = jax.nn.log_softmax(student, axis=-1), jax.nn.log_softmax(teacher, axis=-1)
    (beta,) = coefficients(jax.ShapeDtypeStruct(keep.shape, student.dtype), beta=beta)
    rows = beta[..., None] if beta.ndim else beta
    # At its ends the mixture keeps a trace of either side, so that both logarithms, and the derivative in β,
    # KL(teacher‖m) − KL(student‖m), are finite there.
    tiny = jnp.finfo(student.dtype).tiny
    inside = rows < 1
    log_rest = jnp.where(inside, jnp.log1p(-jnp.where(inside, rows, 0)), jnp.log(tiny))
    # The log of a probability is also its logits, so the divergences can be those of distributions.
    from_t, from_s = log_t + jnp.log(jnp.maximum(rows, tiny)), log_s + log_rest
    forbidden = jnp.isneginf(from_t) & jnp.isneginf(from_s)  # logaddexp has a nan gradient there
    log_m = jnp.logaddexp(jnp.where(forbidden, 0, from_t), jnp.where(forbidden, 0, from_s))
    log_m = jnp.where(forbidden, -jnp.inf, log_m)
    divergence = beta * categorical_kl(log_t, log_m) + (1 - beta) * categorical_kl(log_s, log_m)
    return jnp.where(keep, divergence, 0)
