"""Categorical, diagonal Gaussian and squashed Gaussian distributions, as functions of their parameters.

Softmax statistics are taken in float32 (float64 for float64 logits), also of bfloat16 logits. The log-prob
of a chosen action is a gather and a logsumexp: no one-hot and no second array of the size of the logits.
Logits of −inf (forbidden actions) are allowed everywhere: they have probability 0 and contribute 0 to
entropies and divergences. All values are in nats.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.arguments import as_float, check_rows, known_index
from jaxrl4lm.types import Array, Key


def categorical_log_prob(logits: Array, actions: Array) -> Array:
    """log softmax(z)[a] = z_a − logsumexp(z).

    Args:
      logits: [..., A], unnormalised. Gradients flow.
      actions: integers [...].
    Returns:
      [...], in nats; nan for an action that is not in 0 … A−1.
    Raises:
      ValueError: if `actions` does not have the shape of `logits` without its last axis.
    Reference: Goodfellow et al. 2016, "Deep learning", sec. 6.2.2.3.

    >>> float(categorical_log_prob(jnp.zeros(4), jnp.array(2)))  # log 1/4
    -1.3862943649291992
    """
    actions = jnp.asarray(actions)
    if actions.shape != np.shape(logits)[:-1]:
        raise ValueError(
            f"actions has shape {actions.shape}, logits {np.shape(logits)}: actions must have the shape "
            f"{np.shape(logits)[:-1]}, one index per row of logits."
        )
    logits = as_float(logits)
    known, index = known_index(actions, logits.shape[-1])
    chosen = jnp.take_along_axis(logits, index[..., None], axis=-1)[..., 0]
    return jnp.where(known, chosen - jax.nn.logsumexp(logits, axis=-1), jnp.nan)


def categorical_entropy(logits: Array) -> Array:
    """Exact entropy H = logsumexp(z) − Σ softmax(z)·z of each row.

    Args:
      logits: [..., A], unnormalised. Gradients flow.
    Returns:
      [...], in nats.
    Reference: Shannon 1948; Cover & Thomas 2006, eq. 2.1.

    >>> float(categorical_entropy(jnp.zeros(4)))  # log 4
    1.3862943649291992
    """
    logits = as_float(logits)
    # H does not depend on the level of the logits; its digits do.
    logits = logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    probs = jax.nn.softmax(logits, axis=-1)
    finite = jnp.where(jnp.isneginf(logits), 0, logits)
    return jax.nn.logsumexp(logits, axis=-1) - (probs * finite).sum(-1)


def categorical_kl(logits: Array, other_logits: Array) -> Array:
    """KL(p‖q) = Σ p·(log p − log q), p = softmax(logits), q = softmax(other_logits).

    Args:
      logits: of p [..., A]. Gradients flow.
      other_logits: of q [..., A]. Gradients flow.
    Returns:
      [...], in nats; inf where p puts mass on what q forbids.
    Raises:
      ValueError: if the last axes differ.
    Reference: Kullback & Leibler 1951; Cover & Thomas 2006, sec. 2.3.
    """
    if np.shape(logits)[-1:] != np.shape(other_logits)[-1:]:
        raise ValueError(
            f"logits has shape {np.shape(logits)}, other_logits {np.shape(other_logits)}: the last axes must be "
            "equal."
        )
    log_p = jax.nn.log_softmax(as_float(logits), axis=-1)
    log_q = jax.nn.log_softmax(as_float(other_logits), axis=-1)
    possible = ~jnp.isneginf(log_p)
    difference = jnp.where(possible, log_p, 0) - jnp.where(possible, log_q, 0)
    return (jnp.exp(log_p) * difference).sum(-1)


def categorical_sample(key: Key, logits: Array) -> Array:
    """An action of each row, with probability softmax(z).

    Args:
      key: consumed here.
      logits: [..., A], unnormalised.
    Returns:
      Integers [...], without gradient.
    Reference: the Gumbel-max trick: Gumbel 1954; Maddison et al. 2014, arXiv:1411.0030.
    """
    return jax.random.categorical(key, as_float(logits), axis=-1)


def gaussian_log_prob(mean: Array, log_std: Array, actions: Array) -> Array:
    """log N(a; μ, diag σ²) = Σ_d −½((a−μ)/σ)² − log σ − ½ log 2π, over the last axis.

    Args:
      mean: μ [..., D]. Gradients flow through every argument.
      log_std: log σ, broadcastable to `mean`.
      actions: a [..., D].
    Returns:
      [...], in nats.
    Raises:
      ValueError: if `actions` does not have the shape of `mean`, or one that broadcasts to it but for D.
    Reference: Bishop 2006, eq. 2.43, of a diagonal covariance.
    """
    mean, log_std, actions = as_float(mean), as_float(log_std), as_float(actions)
    check_rows("actions", actions.shape, mean.shape)
    log_std = jnp.broadcast_to(log_std, mean.shape)
    standard = (actions - mean) * jnp.exp(-log_std)
    return (-0.5 * standard**2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def gaussian_entropy(log_std: Array) -> Array:
    """H = Σ_d log σ_d + ½ log 2πe, over the last axis.

    Args:
      log_std: log σ [..., D]. Gradients flow.
    Returns:
      [...], in nats.
    Reference: Cover & Thomas 2006, th. 8.4.1.
    """
    return (as_float(log_std) + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


def gaussian_kl(mean: Array, log_std: Array, other_mean: Array, other_log_std: Array) -> Array:
    """KL(N(μ, σ²)‖N(μ′, σ′²)) = Σ_d log σ′/σ + (σ² + (μ−μ′)²)/2σ′² − ½, over the last axis.

    Args:
      mean: μ [..., D]. Gradients flow through every argument.
      log_std: log σ, broadcastable to `mean`.
      other_mean: μ′ [..., D].
      other_log_std: log σ′, broadcastable to `mean`.
    Returns:
      [...], in nats.
    Raises:
      ValueError: if `other_mean` does not have the shape of `mean`, or one that broadcasts to it but for D.
    Reference: Kullback & Leibler 1951; the diagonal case of the divergence of two normal distributions.
    """
    mean, other_mean = as_float(mean), as_float(other_mean)
    check_rows("other_mean", other_mean.shape, mean.shape)
    log_std = jnp.broadcast_to(as_float(log_std), mean.shape)
    other_log_std = jnp.broadcast_to(as_float(other_log_std), mean.shape)
    log_ratio = log_std - other_log_std
    standard = (mean - other_mean) * jnp.exp(-other_log_std)
    return (0.5 * (jnp.exp(2 * log_ratio) - 1 + standard**2) - log_ratio).sum(-1)


def gaussian_sample(key: Key, mean: Array, log_std: Array) -> Array:
    """An action μ + σ·ε of each row, ε standard normal.

    Args:
      key: consumed here.
      mean: μ [..., D]. Gradients flow (reparametrised).
      log_std: log σ, broadcastable to `mean`. Gradients flow.
    Returns:
      [..., D].
    Reference: Kingma & Welling 2014, arXiv:1312.6114, sec. 2.4.
    """
    mean = as_float(mean)
    log_std = jnp.broadcast_to(as_float(log_std), mean.shape)
    return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape, mean.dtype)


def squashed_gaussian_log_prob(mean: Array, log_std: Array, unsquashed: Array) -> Array:
    """log-density of a = tanh(u), u ~ N(μ, diag σ²): log N(u) − Σ_d log(1 − tanh² u_d), over the last axis.

    It takes u and not a: near ±1 float32 cannot tell one a from the next. The second term is computed as
    2(log 2 − u − softplus(−2u)), which is finite wherever u is.

    Args:
      mean: μ [..., D]. Gradients flow through every argument.
      log_std: log σ, broadcastable to `mean`.
      unsquashed: u [..., D], as `gaussian_sample` draws it.
    Returns:
      [...], in nats.
    Raises:
      ValueError: if `unsquashed` does not have the shape of `mean`, or one that broadcasts to it but for D.
    Reference: Haarnoja et al. 2018, arXiv:1801.01290, eq. 21.

    >>> float(squashed_gaussian_log_prob(jnp.zeros(1), jnp.zeros(1), jnp.zeros(1)))  # tanh is u near 0: −½ log 2π
    -0.9189385175704956
    """
    unsquashed = as_float(unsquashed)
    log_slopes = 2 * (math.log(2) - unsquashed - jax.nn.softplus(-2 * unsquashed))
    return gaussian_log_prob(mean, log_std, unsquashed) - log_slopes.sum(-1)
