"""Hyper-parameters (pytree leaves: they may be traced, and vmap) and sizes (static) of language-model training."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal, Self

import jax

from jaxrl4lm.types import ScalarLike


def static(default):
    """A field that is part of the program, not an argument of it."""
    return field(default=default, metadata={"static": True})


class _Config:
    def replace(self, **changes) -> Self:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ReinforcementConfig(_Config):
    """One update: `prompts` x `completions` are generated and scored, then learned from for `epochs` x `minibatches` steps.

    Call `check` once, outside of jit.
    """

    learning_rate: ScalarLike = 5e-4
    final_learning_rate: ScalarLike = 1.0
    """The share of the learning rate that is left at the last of `updates`; it falls linearly."""
    clip_eps: ScalarLike = 0.2
    """Clip range of the probability ratio (PPO, GRPO)."""
    kl_coef: ScalarLike = 0.02
    """β: the price of a nat of divergence from the reference."""
    kl_target: ScalarLike = 6.0
    """Nats a sequence that an adaptive controller of β aims at."""
    discount: ScalarLike = 1.0
    gae_lambda: ScalarLike = 0.95
    temperature: ScalarLike = 1.0
    """Of sampling and of every log-probability in a ratio or a KL."""
    entropy_coef: ScalarLike = 0.0
    value_coef: ScalarLike = 0.5
    value_clip: ScalarLike = 0.2
    max_grad_norm: ScalarLike = 1.0
    """Global norm above which a gradient is scaled down."""

    updates: int = static(100)
    warmup: int = static(0)
    """Updates over which the learning rate rises: Adam's first steps are as long as any, on little evidence."""
    prompts: int = static(64)
    """Prompts of one update."""
    completions: int = static(1)
    """Completions of each prompt; the group of GRPO and RLOO."""
    epochs: int = static(2)
    minibatches: int = static(2)
    """Optimizer steps of one epoch; each takes prompts / minibatches whole groups."""
    micro_batches: int = static(1)
    """Parts in which the gradient of a minibatch is computed, to save memory; the gradient is the same."""
    truncation: Literal["bootstrap", "terminal"] = static("bootstrap")
    """A completion cut by the length limit: its return continues with the value estimate, or ends there."""

    def check(self) -> None:
        """Raises ValueError, naming the field, its value and the fix, where sizes do not fit."""
        for name in ("prompts", "completions", "epochs", "minibatches", "micro_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.updates < 0:
            raise ValueError(f"updates must not be negative, not {self.updates}")
        if self.prompts % (self.minibatches * self.micro_batches):
            raise ValueError(
                f"prompts ({self.prompts}) must be a multiple of minibatches x micro_batches "
                f"({self.minibatches} x {self.micro_batches}): every part takes as many whole prompts"
            )
        for name in ("learning_rate", "temperature", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SupervisedConfig(_Config):
    """Teacher forcing: cross-entropy of the next token."""

    learning_rate: ScalarLike = 1e-3
    weight_decay: ScalarLike = 0.0
    max_grad_norm: ScalarLike = 1.0

    steps: int = static(500)
    batch: int = static(128)
    """Sequences of one step."""
    warmup: int = static(20)
    """Steps over which the learning rate rises from 0; it falls along a half cosine to a tenth afterwards."""
