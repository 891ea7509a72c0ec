"""What all learning from data shares: a state, the gradient of a batch in parts, one optimizer step, the learning rate."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl4lm.finite_step import step_if_finite
from jaxrl4lm.lm.config import DescentConfig
from jaxrl4lm.lm.optimizer import Optimizer
from jaxrl4lm.lm.trainable import ADAPTERS
from jaxrl4lm.types import Array, Key, Metrics, Params

DROPOUT = 2**32 - 2
"""What the key of a run is folded with to draw dropout masks: no number of a step."""


class DescentState(NamedTuple):
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


def init(key: Key, config: DescentConfig, learner: Any, params: Params) -> DescentState:
    """The state before the first step, starting from a copy of `params`.

    Args:
      learner: a record with `optimizer` and `trainable`.
    """
    learning, frozen = learner.trainable.split(jax.random.fold_in(key, ADAPTERS), params)
    return DescentState(
        params=jax.tree.map(jnp.copy, learning),
        frozen=jax.tree.map(jnp.copy, frozen),
        opt_state=learner.optimizer(config.learning_rate, config).init(learning),
        key=jnp.copy(key),
        step=jnp.int32(0),
        skipped=jnp.int32(0),
    )


def choose_key(state: DescentState) -> Key:
    """For what is random in a step, its dropout."""
    return jax.random.fold_in(jax.random.fold_in(state.key, DROPOUT), state.step)


def accumulate(differentiate: Callable[[Any, Key], Any], batch: Any, key: Key, parts: int) -> Any:
    """The sum of what `differentiate(part, key)` gives of so many equal parts of a batch, one after another."""
    if parts == 1:
        return differentiate(batch, key)

    def add(totals: Any, part: tuple[Any, Key]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, totals, differentiate(*part)), None

    divided = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch), jax.random.split(key, parts)
    first = jax.tree.map(lambda x: x[0], divided)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(differentiate, *first))
    return jax.lax.scan(add, zero, divided)[0]


def descend(
    state: DescentState, grads: Params, config: DescentConfig, optimizer: Optimizer
) -> tuple[DescentState, Metrics]:
    """One optimizer step, at the learning rate of its number; none where the gradient is not finite."""
    rate = learning_rate_at(state.step, config)
    params, opt_state, norm, applied = step_if_finite(
        optimizer(rate, config), grads, state.opt_state, state.params
    )
    skipped = state.skipped + (~applied).astype(jnp.int32)
    state = state._replace(params=params, opt_state=opt_state, step=state.step + 1, skipped=skipped)
    return state, {"grad_norm": norm, "learning_rate": rate, "skipped_updates": skipped}


def learning_rate_at(step: Array, config: DescentConfig) -> Array:
    """The learning rate of a step: it rises along a line, then follows the schedule, which `steps` end."""
    highest, share = config.learning_rate, config.final_learning_rate_share
    rest = max(config.steps - config.warmup, 1)
    decay = max(config.steps // 10, 1)
    schedules = {
        "constant": optax.constant_schedule(highest),
        "cosine": optax.cosine_decay_schedule(highest, rest, share),
        "linear": optax.linear_schedule(highest, highest * share, rest),
        "wsd": optax.linear_schedule(highest, highest * share, decay, transition_begin=max(rest - decay, 0)),
    }
    rising = optax.linear_schedule(highest / (config.warmup + 1), highest, config.warmup)
    return jnp.asarray(optax.join_schedules([rising, schedules[config.schedule]], [config.warmup])(step))
