"""Task heads: where an answer stands, which class a text is of, which tag a token has; over a frozen backbone or with it.

Shapes: `B` rows, `T` tokens, `N` labels.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxrl4lm import reduce
from jaxrl4lm.arguments import known_index
from jaxrl4lm.lm import descent
from jaxrl4lm.lm.config import HeadConfig
from jaxrl4lm.lm.descent import DescentState
from jaxrl4lm.lm.optimizer import Optimizer, adam
from jaxrl4lm.lm.trainable import Trainable, everything
from jaxrl4lm.models import Head, LanguagePolicy, sequence_outputs, span_outputs, token_outputs
from jaxrl4lm.types import Array, Key, Metrics, Params

init = descent.init
LONGEST_SPAN = 64
"""Tokens of an answer, at most."""


class LabelledTexts(NamedTuple):
    """Texts with their labels."""

    tokens: Array
    """int `[B, T]`."""
    mask: Array
    """bool `[B, T]`, True at real tokens."""
    parts: Array | None
    """int `[B, T]`: the part of the text that each token belongs to; None where the model does not tell them apart."""
    targets: Array
    """int, with -1 where there is no label. Sequences: the label `[B]`. Tokens: labels `[B, T]`. Spans: first and last token of
    the answer `[B, 2]`."""


Outputs: TypeAlias = Callable[[Head, Array, Array], Array]
"""(head, hidden states, mask) → logits, whose last axis has a place for every value of a target."""


def _read_spans(head: Head, hidden: Array, mask: Array) -> Array:
    return jnp.stack(span_outputs(head, hidden, mask), axis=1)


OUTPUTS: Mapping[str, Outputs] = {
    "sequence": sequence_outputs,
    "token": lambda head, hidden, mask: token_outputs(head, hidden),
    "span": _read_spans,
}
"""What the command line calls them: logits `[B, N]`, `[B, T, N]` and `[B, 2, T]`."""


class Learner(NamedTuple):
    """What is trained and how. Parameters are {"backbone": those of the policy, "head": a `Head`}."""

    policy: LanguagePolicy
    outputs: Outputs
    optimizer: Optimizer = adam
    trainable: Trainable = everything()


def read(params: Params, texts: LabelledTexts, learner: Learner) -> Array:
    """The logits of each target `[..., values]`."""
    hidden = learner.policy.hidden(params["backbone"], texts.tokens, texts.mask, token_types=texts.parts)
    return learner.outputs(params["head"], hidden, texts.mask)


def cross_entropy(logits: Array, targets: Array) -> reduce.Fraction:
    """−log softmax(logits)[target] in nats, summed over the targets that are labels, and their count."""
    labelled, index = known_index(targets, logits.shape[-1])
    log_probs = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_probs, index[..., None], -1)[..., 0]
    return reduce.token_fraction(-picked, labelled)


def update(
    state: DescentState, batch: LabelledTexts, config: HeadConfig, learner: Learner
) -> tuple[DescentState, Metrics]:
    """One optimizer step on the mean loss of the labels of the batch."""

    def differentiate(part: LabelledTexts, key: Key) -> tuple[tuple[Array, Array, Array], Params]:
        def sum_losses(params: Params) -> tuple[Array, tuple[Array, Array, Array]]:
            logits = read(learner.trainable.join(params, state.frozen, key), part, learner)
            total, count = cross_entropy(logits, part.targets)
            right = (logits.argmax(-1) == part.targets).sum()
            return total, (total, count, right)

        grads, sums = jax.grad(sum_losses, has_aux=True)(state.params)
        return sums, grads

    key = descent.choose_key(state)
    (total, count, right), grads = descent.accumulate(differentiate, batch, key, config.micro_batches)
    grads = jax.tree.map(lambda x: (x / jnp.maximum(count, 1)).astype(x.dtype), grads)
    state, metrics = descent.descend(state, grads, config, learner.optimizer)
    mean, accuracy = (reduce.divide(reduce.Fraction(x, count)) for x in (total, right))
    return state, {"loss": mean, "accuracy": accuracy, "tokens": batch.mask.sum(), **metrics}


def find_spans(logits: Array, allowed: Array) -> Array:
    """First and last token `[B, 2]` of the likeliest answer, which does not end before it begins.

    Args:
      logits: `[B, 2, T]`.
      allowed: bool `[B, T]`, the tokens that may belong to an answer.
    """
    first, last = (jnp.where(allowed, logits[:, i], -jnp.inf) for i in (0, 1))
    T = allowed.shape[1]
    ahead = jnp.arange(T)[None, :] - jnp.arange(T)[:, None]
    possible = ((ahead >= 0) & (ahead < LONGEST_SPAN))[None]
    scores = jnp.where(possible, first[:, :, None] + last[:, None, :], -jnp.inf)
    best = scores.reshape(len(scores), -1).argmax(-1)
    return jnp.stack([best // T, best % T], axis=1)
