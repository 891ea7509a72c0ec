"""Teacher forcing: the next-token cross-entropy, on a task's solutions or on text held on the device.

Shapes: `B` sequences, `T` tokens, `V` vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl4lm import reduce
from jaxrl4lm.lm.config import SupervisedConfig
from jaxrl4lm.lm.optimizer import Optimizer, adam, step_if_finite
from jaxrl4lm.lm.trainable import ADAPTERS, Trainable, everything
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


class SupervisedState(NamedTuple):
    """Everything that a run is at one moment."""

    params: Params
    """What learns: all parameters, some of them, or adapters."""
    frozen: Params | None
    """The parameters that do not learn."""
    opt_state: optax.OptState
    key: Key
    step: Array
    """int32: steps done."""
    skipped: Array
    """int32: steps not applied because the gradient was not finite."""


TokenLoss = Callable[[Array], Array]
"""log π(token) `[B, T]` → its loss, of the same shape."""


def negate(log_probs: Array) -> Array:
    """The cross-entropy: −log π."""
    return -log_probs


class Teacher(NamedTuple):
    """What is trained and how: the parts of the program that are functions."""

    policy: LanguagePolicy
    optimizer: Optimizer = adam
    trainable: Trainable = everything()
    loss: TokenLoss = negate
    """Of each target token; the mean over those of the step is descended."""


def init(key: Key, config: SupervisedConfig, teacher: Teacher, params: Params) -> SupervisedState:
    """The state before the first step, starting from a copy of `params`."""
    learning, frozen = teacher.trainable.split(jax.random.fold_in(key, ADAPTERS), params)
    return SupervisedState(
        params=jax.tree.map(jnp.copy, learning),
        frozen=jax.tree.map(jnp.copy, frozen),
        opt_state=teacher.optimizer(config.learning_rate, config).init(learning),
        key=jnp.copy(key),
        step=jnp.int32(0),
        skipped=jnp.int32(0),
    )


def merge_params(state: SupervisedState, teacher: Teacher) -> Params:
    """The parameters of the policy as it is now, in the plain form."""
    return teacher.trainable.merge(state.params, state.frozen)


def measure(
    params: Params, texts: Texts, policy: LanguagePolicy, loss: TokenLoss = negate
) -> tuple[reduce.Fraction, reduce.Fraction]:
    """Loss (nats) and accuracy of the target tokens, as (sum, count) pairs. No logits of a large vocabulary are held."""
    hidden = policy.hidden(params, texts.tokens, texts.mask)[:, :-1]
    mask, targets = texts.target_mask[:, 1:], texts.tokens[:, 1:]
    said = policy.token_log_probs(params, hidden, targets, mask=mask)
    right = (said.log_probs >= said.largest_log_probs) & mask
    return reduce.token_fraction(loss(said.log_probs), mask), reduce.token_fraction(right, mask)


def update(
    state: SupervisedState, batch: Texts, config: SupervisedConfig, teacher: Teacher
) -> tuple[SupervisedState, Metrics]:
    """One optimizer step on the mean cross-entropy of the target tokens."""

    def loss(params: Params) -> tuple[Array, Array]:
        whole = teacher.trainable.join(params, state.frozen)
        nats, right = measure(whole, batch, teacher.policy, teacher.loss)
        return reduce.divide(nats), reduce.divide(right)

    (value, accuracy), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    tx = teacher.optimizer(learning_rate_at(state.step, config), config)
    params, opt_state, norm, applied = step_if_finite(tx, grads, state.opt_state, state.params)
    skipped = state.skipped + (~applied).astype(jnp.int32)
    state = state._replace(params=params, opt_state=opt_state, step=state.step + 1, skipped=skipped)
    metrics = {"loss": value, "token_accuracy": accuracy, "grad_norm": norm, "skipped_updates": skipped}
    return state, metrics


def learning_rate_at(step: Array, config: SupervisedConfig) -> Array:
    """A linear warm-up, then a half cosine down to its last share."""
    rising = jnp.minimum(1.0, (step + 1) / (config.warmup + 1))
    progress = jnp.clip((step - config.warmup) / max(config.steps - 1 - config.warmup, 1), 0.0, 1.0)
    last = config.final_learning_rate_share
    return config.learning_rate * rising * ((1 + last) / 2 + (1 - last) / 2 * jnp.cos(jnp.pi * progress))


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


def row_source(corpus: Texts) -> Callable[[Key, Array], Texts]:
    """Rows `[B]` of a corpus held on the device."""
    return lambda _, rows: jax.tree.map(partial(jnp.take, indices=rows, axis=0), corpus)
