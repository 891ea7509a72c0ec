"""Reward models: a backbone and a head that scores texts, learned from pairs by Bradley and Terry's model.

Shapes: `B` pairs, `T` tokens, `D` width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm import losses
from jaxrl4lm.lm import descent
from jaxrl4lm.lm.config import RewardConfig
from jaxrl4lm.lm.descent import DescentState
from jaxrl4lm.lm.optimizer import Optimizer, adam
from jaxrl4lm.lm.preference import Sums
from jaxrl4lm.lm.supervised import Texts
from jaxrl4lm.lm.trainable import Trainable, everything
from jaxrl4lm.models import LanguagePolicy, new_head, sequence_outputs
from jaxrl4lm.types import Array, Key, Metrics, Params

init = descent.init


class RatedPairs(NamedTuple):
    """Pairs, the better text first."""

    texts: Texts
    """`[B, 2, T]`."""
    margins: Array
    """`[B]`: by how much the reward of the better is to be higher."""


class Learner(NamedTuple):
    """What is trained and how: the parts of the program that are functions."""

    policy: LanguagePolicy
    optimizer: Optimizer = adam
    trainable: Trainable = everything()
    """Of `{"backbone": ..., "head": ...}`, as `beside_head` makes it."""


def add_head(key: Key, policy: LanguagePolicy, params: Params) -> Params:
    """What a reward model learns: the parameters of the policy as `backbone`, and a random `head` with one output."""
    return {"backbone": params, "head": new_head(key, policy, "sequence", 1)}


def beside_head(trainable: Trainable) -> Trainable:
    """The same of the backbone, where the head learns, too."""

    def split(key: Key, params: Params) -> tuple[Params, Params]:
        learning, frozen = trainable.split(key, params["backbone"])
        return {"backbone": learning, "head": params["head"]}, frozen

    return Trainable(
        split=split,
        join=lambda learning, frozen, key: (
            learning | {"backbone": trainable.join(learning["backbone"], frozen, key)}
        ),
        merge=lambda learning, frozen: learning | {"backbone": trainable.merge(learning["backbone"], frozen)},
    )


def score(params: Params, texts: Texts, policy: LanguagePolicy) -> Array:
    """Rewards `[B, K]` of texts `[B, K, T]`, read where the head reads: of a decoder at the last token."""
    flat = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), texts)
    hidden = policy.hidden(params["backbone"], flat.tokens, flat.mask)
    return sequence_outputs(params["head"], hidden, flat.mask).reshape(texts.tokens.shape[:2])


def update(
    state: DescentState, batch: RatedPairs, config: RewardConfig, learner: Learner
) -> tuple[DescentState, Metrics]:
    """One optimizer step on the mean loss of the pairs."""

    def differentiate(part: RatedPairs, key: Key) -> tuple[Sums, Params]:
        def sum_losses(params: Params) -> tuple[Array, Sums]:
            sums = measure(learner.trainable.join(params, state.frozen, key), part, config, learner.policy)
            return sums["loss"][0], sums

        grads, sums = jax.grad(sum_losses, has_aux=True)(state.params)
        return sums, grads

    sums, grads = descent.accumulate(differentiate, batch, descent.choose_key(state), config.micro_batches)
    grads = jax.tree.map(lambda x: (x / len(batch.margins)).astype(x.dtype), grads)
    state, metrics = descent.descend(state, grads, config, learner.optimizer)
    return state, {**summarize(sums), "tokens": batch.texts.mask.sum(), **metrics}


def measure(params: Params, batch: RatedPairs, config: RewardConfig, policy: LanguagePolicy) -> Sums:
    """(sum, count) of the loss and of what is watched; `summarize` makes numbers of them."""
    return compare(score(params, batch.texts, policy), batch.margins, config)


def compare(rewards: Array, margins: Array, config: RewardConfig) -> Sums:
    """As `measure`, of rewards `[B, 2]`, those of the better texts first."""
    better, worse = rewards.T
    each = losses.bradley_terry(better, worse, margin=margins, center_coef=config.center_coef)
    columns = {
        "loss": each,
        "rewards/chosen": better,
        "rewards/rejected": worse,
        "rewards/margins": better - worse,
        "rewards/accuracies": (better > worse).astype(jnp.float32),
        "rewards/mean": (better + worse) / 2,
    }
    return {name: (column.sum(), jnp.float32(len(column))) for name, column in columns.items()}


def summarize(sums: Sums) -> Metrics:
    """Numbers of (sum, count) pairs."""
    return {name: total / count for name, (total, count) in sums.items()}
