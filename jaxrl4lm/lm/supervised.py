"""Teacher forcing: the next-token cross-entropy, on a task's solutions or on batches of texts.

Shapes: `B` sequences, `T` tokens, `V` vocabulary.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm import reduce
from jaxrl4lm.lm import descent
from jaxrl4lm.lm.config import SupervisedConfig
from jaxrl4lm.lm.optimizer import Optimizer, adam
from jaxrl4lm.lm.trainable import Trainable, everything
from jaxrl4lm.losses.chunked import TokenStatistics
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.tasks import Task
from jaxrl4lm.types import Array, Key, Metrics, Params


class Texts(NamedTuple):
    """Sequences to imitate."""

    tokens: Array
    """int `[B, T]`."""
    mask: Array
    """bool `[B, T]`, True at real tokens; padding may stand on either side."""
    target_mask: Array
    """bool `[B, T]`, True at tokens that are to be predicted (a completion's, not its prompt's)."""
    segment_ids: Array | None = None
    """int `[B, T]`, where a row holds several documents one after another: the number of each token's. They do not see each
    other. None: a row is one document."""


SupervisedState = descent.DescentState
TokenLoss = Callable[[TokenStatistics, SupervisedConfig], Array]
"""(statistics of the target tokens, configuration) → their losses `[B, T]`."""


def negative_log_likelihood(said: TokenStatistics, config: SupervisedConfig) -> Array:
    """−log π(token), a share of it smoothed over the vocabulary.

    Reference: Szegedy et al. 2016, arXiv:1512.00567 (smoothing).
    """
    epsilon = config.label_smoothing
    if isinstance(epsilon, int | float) and epsilon == 0:
        return -said.log_probs
    return -(1 - epsilon) * said.log_probs - epsilon * said.mean_log_probs


def dynamic_fine_tuning(said: TokenStatistics, config: SupervisedConfig) -> Array:
    """−sg(π) log π: unlikely tokens, whose gradient would be the largest, weigh less.

    Reference: Wu et al. 2025, arXiv:2508.05629.
    """
    del config
    return -jax.lax.stop_gradient(jnp.exp(said.log_probs)) * said.log_probs


LOSSES: Mapping[str, TokenLoss] = {"nll": negative_log_likelihood, "dft": dynamic_fine_tuning}
"""What the command line calls them."""


class Teacher(NamedTuple):
    """What is trained and how: the parts of the program that are functions."""

    policy: LanguagePolicy
    optimizer: Optimizer = adam
    trainable: Trainable = everything()
    loss: TokenLoss = negative_log_likelihood
    """Of each target token; the mean over those of the step is descended."""


init, learning_rate_at = descent.init, descent.learning_rate_at


def measure(params: Params, texts: Texts, policy: LanguagePolicy) -> tuple[reduce.Fraction, reduce.Fraction]:
    """Cross-entropy (nats) and accuracy of the target tokens, as (sum, count) pairs."""
    said, mask = read(params, texts, policy)
    return reduce.token_fraction(-said.log_probs, mask), reduce.token_fraction(said.most_likely, mask)


def read(params: Params, texts: Texts, policy: LanguagePolicy) -> tuple[TokenStatistics, Array]:
    """What the policy says of each token after the first, and which of them are targets `[B, T - 1]`. No logits of a large
    vocabulary are held."""
    hidden = policy.hidden(params, texts.tokens, texts.mask, texts.segment_ids)[:, :-1]
    mask = texts.target_mask[:, 1:]
    if texts.segment_ids is not None:  # nothing predicts the first token of a document
        mask &= texts.segment_ids[:, 1:] == texts.segment_ids[:, :-1]
    return policy.token_log_probs(params, hidden, texts.tokens[:, 1:], mask=mask), mask


def update(
    state: SupervisedState, batch: Texts, config: SupervisedConfig, teacher: Teacher
) -> tuple[SupervisedState, Metrics]:
    """One optimizer step on the mean loss of the target tokens: of all micro-batches together, not the mean of their means."""
    (total, count, right), grads = _differentiate(state, batch, config, teacher)
    grads = jax.tree.map(lambda x: (x / jnp.maximum(count, 1)).astype(x.dtype), grads)
    state, metrics = descent.descend(state, grads, config, teacher.optimizer)
    return state, {
        "loss": reduce.divide(reduce.Fraction(total, count)),
        "token_accuracy": reduce.divide(reduce.Fraction(right, count)),
        "tokens": batch.mask.sum(),
        "target_tokens": count,
        **metrics,
    }


def _differentiate(
    state: SupervisedState, batch: Texts, config: SupervisedConfig, teacher: Teacher
) -> tuple[tuple[Array, Array, Array], Params]:
    """((sum of the losses, targets, targets that were the most likely token), gradient of that sum)."""

    def sum_losses(params: Params, part: Texts, key: Key) -> tuple[Array, tuple[Array, Array, Array]]:
        whole = teacher.trainable.join(params, state.frozen, key)
        said, mask = read(whole, part, teacher.policy)
        losses = teacher.loss(said, config)
        if not isinstance(config.z_loss, int | float) or config.z_loss > 0:
            losses += config.z_loss * jnp.square(said.log_normalizers)
        total, count = reduce.token_fraction(losses, mask)
        right = reduce.token_fraction(said.most_likely, mask).total
        return total, (total, count, right)

    def differentiate_part(part: Texts, key: Key) -> tuple[tuple[Array, Array, Array], Params]:
        grads, sums = jax.grad(sum_losses, has_aux=True)(state.params, part, key)
        return sums, grads

    return descent.accumulate(differentiate_part, batch, descent.choose_key(state), config.micro_batches)


def run(
    state: SupervisedState,
    config: SupervisedConfig,
    teacher: Teacher,
    source: Callable[[Key, Any], Texts],
    steps: int,
    xs: Any = None,
) -> tuple[SupervisedState, Metrics]:
    """`steps` steps in one scan. Metrics gain a leading axis `[steps]`.

    Args:
      source: (this step's key, this step's slice of xs) → batch.
      xs: arrays `[steps, ...]`, or None.
    """

    def one(state: SupervisedState, x: Any) -> tuple[SupervisedState, Metrics]:
        return update(state, source(jax.random.fold_in(state.key, state.step), x), config, teacher)

    return jax.lax.scan(one, state, xs, length=steps)


def task_source(task: Task, size: int) -> Callable[[Key, Any], Texts]:
    """Fresh problems of a task with their solutions; only the solution is predicted."""

    def source(key: Key, _: Any) -> Texts:
        prompts = task.sample(key, size)
        tokens = jnp.concatenate([prompts.tokens, prompts.answers], axis=1)
        mask = jnp.concatenate([prompts.mask, prompts.answer_mask], axis=1)
        return Texts(tokens, mask, mask.at[:, : prompts.tokens.shape[1]].set(False))

    return source
