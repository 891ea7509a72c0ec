"""Hyper-parameters that agents share: floats are pytree leaves (they may be traced, and vmap), sizes are static."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax

from jaxrl4lm.fields import find_out_of_range, number, size
from jaxrl4lm.finite_step import step_if_finite
from jaxrl4lm.types import Array, InputError, Params, ScalarLike


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AgentConfig:
    """Of every agent. Call `check` once, outside of jit."""

    steps: int = size(100_000)
    """Environment steps of the whole run: exactly so many are taken."""
    environments: int = size(8)
    """Copies of the environment that are played side by side."""
    learning_rate: ScalarLike = number(3e-4, above=0)
    """Of Adam, at its highest."""
    final_learning_rate_share: ScalarLike = number(1.0, least=0, most=1)
    """Share of the learning rate that is left at the end; it falls linearly."""
    discount: ScalarLike = number(0.99, least=0, most=1)
    """γ, of later rewards."""
    max_grad_norm: ScalarLike = number(0.5, above=0)
    """Longer gradients, by their global norm, are shortened to it."""
    adam_eps: ScalarLike = number(1e-5, above=0)
    """ε of Adam."""

    def replace(self, **changes) -> Self:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def check(self) -> None:
        """Raises InputError, naming the field, its value and the fix, where a number does not fit."""
        if found := find_out_of_range(self):
            raise InputError(" ".join(found))
        self.count_updates()

    def check_each(self, name: str, values: Iterable[float]) -> None:
        """Raises InputError where the field cannot have one of these values, as `check`."""
        for value in values:
            self.replace(**{name: value}).check()

    def steps_per_update(self) -> int:
        """Environment steps of an update, of all copies together."""
        raise NotImplementedError

    def steps_before(self) -> int:
        """Environment steps before the first update."""
        return 0

    def count_updates(self) -> int:
        """Updates of the whole run.

        Raises:
          InputError: if they do not take exactly `steps`.
        """
        per_update, left = self.steps_per_update(), self.steps - self.steps_before()
        if left <= 0 or left % per_update:
            nearest = self.steps_before() + max(round(left / per_update), 1) * per_update
            raise InputError(
                f"steps {self.steps} is no whole number of updates of {per_update} steps: give {nearest}"
            )
        return left // per_update


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ReplayConfig(AgentConfig):
    """Of agents that remember what was played, and learn from random parts of it."""

    rollout: int = size(10)
    """Steps of each copy before an update."""
    gradient_steps: int = size(40)
    """Optimizer steps of an update."""
    batch: int = size(64)
    """Memories of an optimizer step."""
    buffer: int = size(20_000)
    """Steps that are remembered; the oldest are overwritten. A multiple of the steps of an update."""
    warmup: int = size(800)
    """Steps of random actions before the first update; a multiple of the steps of an update."""

    def steps_per_update(self) -> int:
        """Environment steps of an update, of all copies together."""
        return self.environments * self.rollout

    def steps_before(self) -> int:
        """Those of the warm-up."""
        return self.warmup

    def check(self) -> None:
        """Raises InputError, naming the field, its value and the fix, where a number does not fit."""
        super().check()
        per_update = self.steps_per_update()
        for name in ("buffer", "warmup"):
            if (value := getattr(self, name)) % per_update:
                more = -(-value // per_update) * per_update
                raise InputError(
                    f"{name} {value} is no multiple of the {per_update} steps of an update: give {more}"
                )
        if self.warmup > self.buffer:
            raise InputError(
                f"warmup {self.warmup} is more than the buffer holds: give at most {self.buffer}"
            )


def check_minibatches(total: int, parts: int) -> None:
    """Raises InputError unless so many steps of an update divide into so many minibatches."""
    if total % parts:
        divisors = [n for n in range(1, total + 1) if total % n == 0]
        nearest = min(divisors, key=lambda n: abs(n - parts))
        raise InputError(
            f"minibatches {parts} does not divide the {total} steps of an update: give {nearest}"
        )


def learning_rate_at(update: Array, config: AgentConfig) -> Array:
    """The learning rate of an update, from 0; it falls along a line and never below its end."""
    done = jnp.minimum(update / config.count_updates(), 1.0)
    return config.learning_rate * (1 - (1 - config.final_learning_rate_share) * done)


def adam(config: AgentConfig) -> optax.GradientTransformation:
    """Adam behind a clip of the global norm, at learning rate 1: the state holds no hyper-parameter."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm), optax.scale_by_adam(eps=config.adam_eps)
    )


def descend(
    config: AgentConfig, update: Array, grads: Params, opt_state: optax.OptState, params: Params
) -> tuple[Params, optax.OptState]:
    """One step of Adam at the learning rate of that update; none where the gradient is not finite."""
    rate = learning_rate_at(update, config)

    def update_scaled(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = adam(config).update(updates, state, params)
        return jax.tree.map(lambda x: -rate * x, updates), state

    optimizer = optax.GradientTransformation(adam(config).init, update_scaled)
    params, opt_state, *_ = step_if_finite(optimizer, grads, opt_state, params)
    return params, opt_state
