"""Teacher forcing: the next-token cross-entropy, on a task's solutions or on text held on the device.

Shapes: `B` sequences, `T` tokens, `V` vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl4lm import losses, reduce
from jaxrl4lm.lm.config import SupervisedConfig
from jaxrl4lm.lm.optimizer import adam, apply_if_finite
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.tasks import Task
from jaxrl4lm.types import Array, Key, Metrics, Params


class Batch(NamedTuple):
    """Sequences to imitate."""

    tokens: Array
    """int `[B, T]`."""
    mask: Array
    """bool `[B, T]`, True at real tokens; padding may stand on either side."""
    target_mask: Array
    """bool `[B, T]`, True at tokens that are to be predicted (a completion's, not its prompt's)."""


class State(NamedTuple):
    """Everything that a run is at one moment."""

    params: Params
    opt_state: optax.OptState
    key: Key
    step: Array
    """int32: steps done."""
    skipped: Array
    """int32: steps not applied because the gradient was not finite."""


def init(key: Key, config: SupervisedConfig, params: Params) -> State:
    """The state before the first step, starting from a copy of `params`."""
    return State(
        params=jax.tree.map(jnp.copy, params),
        opt_state=adam(config.learning_rate, config.max_grad_norm, config.weight_decay).init(params),
        key=jnp.copy(key),
        step=jnp.int32(0),
        skipped=jnp.int32(0),
    )


def update(
    state: State, batch: Batch, config: SupervisedConfig, policy: LanguagePolicy
) -> tuple[State, Metrics]:
    """One optimizer step on the mean cross-entropy of the target tokens."""

    def loss(params: Params) -> tuple[Array, Array]:
        hidden = policy.hidden(params, batch.tokens, batch.mask)
        logits = policy.logits(params, hidden[:, :-1])
        mask = batch.target_mask[:, 1:]
        each = losses.cross_entropy(logits, batch.tokens[:, 1:], mask=mask)
        right = (logits.argmax(-1) == batch.tokens[:, 1:]) & mask
        return reduce.token_mean(each, mask), reduce.token_mean(right, mask)

    (value, accuracy), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    tx = adam(learning_rate_at(state.step, config), config.max_grad_norm, config.weight_decay)
    params, opt_state, norm, applied = apply_if_finite(tx, grads, state.opt_state, state.params)
    skipped = state.skipped + (~applied).astype(jnp.int32)
    state = state._replace(params=params, opt_state=opt_state, step=state.step + 1, skipped=skipped)
    metrics = {"loss": value, "token_accuracy": accuracy, "grad_norm": norm, "skipped_updates": skipped}
    return state, metrics


def learning_rate_at(step: Array, config: SupervisedConfig) -> Array:
    """A linear warm-up, then a half cosine down to a tenth."""
    rising = jnp.minimum(1.0, (step + 1) / (config.warmup + 1))
    progress = jnp.clip((step - config.warmup) / max(config.steps - config.warmup, 1), 0.0, 1.0)
    return config.learning_rate * rising * (0.55 + 0.45 * jnp.cos(jnp.pi * progress))


def run(
    state: State,
    config: SupervisedConfig,
    policy: LanguagePolicy,
    source: Callable[[Key, Any], Batch],
    steps: int,
    xs: Any = None,
) -> tuple[State, Metrics]:
    """`steps` steps in one scan. Metrics gain a leading axis `[steps]`.

    Args:
      source: (this step's key, this step's slice of xs) → batch.
      xs: arrays `[steps, ...]`, or None.
    """

    def one(state: State, x: Any) -> tuple[State, Metrics]:
        return update(state, source(jax.random.fold_in(state.key, state.step), x), config, policy)

    return jax.lax.scan(one, state, xs, length=steps)


def task_source(task: Task, size: int) -> Callable[[Key, Any], Batch]:
    """Fresh problems of a task with their solutions; only the solution is predicted."""

    def source(key: Key, _: Any) -> Batch:
        prompts = task.sample(key, size)
        tokens = jnp.concatenate([prompts.tokens, prompts.answers], axis=1)
        mask = jnp.concatenate([prompts.mask, prompts.answer_mask], axis=1)
        return Batch(tokens, mask, mask.at[:, : prompts.tokens.shape[1]].set(False))

    return source


def row_source(corpus: Batch) -> Callable[[Key, Array], Batch]:
    """Rows `[B]` of a corpus held on the device."""
    return lambda _, rows: jax.tree.map(partial(jnp.take, indices=rows, axis=0), corpus)
