"""Learning from preferences: DPO and its family on pairs, KTO and its on completions that were judged alone.

Shapes: `B` pairs or judged completions, `K` texts of each, `T` tokens.
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxrl4lm.lm import descent
from jaxrl4lm.lm.config import PreferenceConfig
from jaxrl4lm.lm.descent import DescentState
from jaxrl4lm.lm.optimizer import Optimizer, adam
from jaxrl4lm.lm.preference_losses import PreferenceLoss, Scores, mean_log_probs
from jaxrl4lm.lm.supervised import Texts
from jaxrl4lm.lm.trainable import Trainable, everything
from jaxrl4lm.losses.chunked import TokenStatistics
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.types import Array, Key, Metrics, Params

init = descent.init


class Judgements(NamedTuple):
    """What was liked, and what was not."""

    texts: Texts
    """`[B, K, T]`, each a prompt and its completion, which `target_mask` marks. Of pairs the better one, then the worse. Of
    completions judged alone the completion; then, if the loss asks for it, another completion after the same prompt."""
    ref_log_probs: Array | None = None
    """`[B, K]`: what `sum_log_probs` gives under the reference, if that was computed before."""
    desirable: Array | None = None
    """bool `[B]`: which were liked, of completions judged alone."""


Sums: TypeAlias = dict[str, tuple[Array, Array]]
"""Metrics as (sum, count) pairs."""


class Learner(NamedTuple):
    """What is trained and how: the parts of the program that are functions."""

    policy: LanguagePolicy
    loss: PreferenceLoss
    optimizer: Optimizer = adam
    trainable: Trainable = everything()


def read(
    params: Params, texts: Texts, policy: LanguagePolicy, *, reads_prompts: bool = False
) -> TokenStatistics:
    """What the policy says of each token after the first `[B, K, T - 1]`; 0 at those that are not asked for."""
    flat = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), texts)
    hidden = policy.hidden(params, flat.tokens, flat.mask)[:, :-1]
    mask = flat.mask if reads_prompts else flat.target_mask
    said = policy.token_log_probs(params, hidden, flat.tokens[:, 1:], mask=mask[:, 1:])
    return jax.tree.map(lambda x: x.reshape(*texts.tokens.shape[:2], -1), said)


def _weigh_tokens(texts: Texts, config: PreferenceConfig) -> Array:
    """Weights `[B, K, T - 1]` of the tokens of completions: `tail_weight` beyond the length of the shorter one, 0 in
    prompts."""
    mask = texts.target_mask[..., 1:]
    shared = mask.sum(-1).min(-1)[:, None, None]
    return jnp.where(mask, jnp.where(jnp.cumsum(mask, -1) <= shared, 1.0, config.tail_weight), 0.0)


def sum_log_probs(params: Params, texts: Texts, policy: LanguagePolicy, config: PreferenceConfig) -> Array:
    """Log-probabilities of completions `[B, K]`, as `Scores.log_probs`: what is kept of a reference."""
    return (read(params, texts, policy).log_probs * _weigh_tokens(texts, config)).sum(-1)


def update(
    state: DescentState,
    batch: Judgements,
    config: PreferenceConfig,
    learner: Learner,
    reference: Params | None = None,
) -> tuple[DescentState, Metrics]:
    """One optimizer step on the mean loss of the pairs, or of the completions judged alone.

    Args:
      reference: its parameters, where the loss has one and the batch does not bring its log-probabilities. Under adapters the
        base is the reference.
    """
    if learner.trainable.frozen_is_reference:
        reference = state.frozen
    count = len(batch.texts.tokens)
    now = learner.trainable.join(state.params, state.frozen, None)
    of_step = _find_point(now, batch, config, learner, reference), *_measure_lengths(batch.texts)

    def differentiate(part: Judgements, key: Key) -> tuple[Sums, Params]:
        def sum_losses(params: Params) -> tuple[Array, Sums]:
            whole = learner.trainable.join(params, state.frozen, key)
            return _sum_losses(whole, part, config, learner, reference, of_step)

        grads, sums = jax.grad(sum_losses, has_aux=True)(state.params)
        return sums, grads

    batch = _drop_mismatched(batch, learner)
    sums, grads = descent.accumulate(differentiate, batch, descent.choose_key(state), config.micro_batches)
    grads = jax.tree.map(lambda x: (x / count).astype(x.dtype), grads)
    state, metrics = descent.descend(state, grads, config, learner.optimizer)
    more = {} if learner.loss.point is None else {"reference_point": of_step[0]}
    return state, {**summarize(sums), **more, "tokens": batch.texts.mask.sum(), **metrics}


def _drop_mismatched(batch: Judgements, learner: Learner) -> Judgements:
    """The batch without the completions of other prompts, of which `Scores.point` is known."""
    if learner.loss.paired:
        return batch
    texts, ref = batch.texts, batch.ref_log_probs
    return batch._replace(
        texts=jax.tree.map(lambda x: x[:, :1], texts), ref_log_probs=None if ref is None else ref[:, :1]
    )


def _measure_lengths(texts: Texts) -> tuple[Array, Array]:
    """Mean tokens of the first completions and of the first texts, in which nothing predicts the first token."""
    first = jax.tree.map(lambda x: x[:, 0, 1:], texts)
    return tuple(x.sum(-1).mean() for x in (first.target_mask, first.mask))


def _find_reference(
    batch: Judgements, config: PreferenceConfig, learner: Learner, reference: Params | None
) -> Array:
    """Its log-probabilities `[B, K]`; 0 where the loss has none."""
    if not learner.loss.referenced:
        return jnp.zeros(batch.texts.tokens.shape[:2])
    if batch.ref_log_probs is not None:
        return batch.ref_log_probs
    if reference is None:
        raise ValueError("the loss compares with a reference: give its parameters, or its log-probabilities")
    return jax.lax.stop_gradient(sum_log_probs(reference, batch.texts, learner.policy, config))


def _find_point(
    params: Params,
    batch: Judgements,
    config: PreferenceConfig,
    learner: Learner,
    reference: Params | None,
) -> Array:
    """`Scores.point` of the step, from the last texts of all of its parts."""
    if learner.loss.point is None or batch.desirable is None:
        return jnp.float32(0)
    last = batch._replace(texts=jax.tree.map(lambda x: x[:, -1:], batch.texts))
    if batch.ref_log_probs is not None:
        last = last._replace(ref_log_probs=batch.ref_log_probs[:, -1:])

    def compare_part(part: Judgements) -> Array:
        now = sum_log_probs(params, part.texts, learner.policy, config)
        return (now - _find_reference(part, config, learner, reference))[:, 0]

    parts = jax.tree.map(lambda x: x.reshape(config.micro_batches, -1, *x.shape[1:]), last)
    log_ratios = jax.lax.map(compare_part, parts).reshape(-1)
    return jax.lax.stop_gradient(learner.loss.point(log_ratios, batch.desirable, config))


def _sum_losses(
    params: Params,
    part: Judgements,
    config: PreferenceConfig,
    learner: Learner,
    reference: Params | None,
    of_step: tuple[Array, Array, Array],
) -> tuple[Array, Sums]:
    """The sum of the losses of a part, and sums for the metrics."""
    point, mean_length, mean_text_length = of_step
    loss, texts = learner.loss, part.texts
    said = read(params, texts, learner.policy, reads_prompts=loss.reads_prompts)
    completions = jnp.where(texts.target_mask[..., 1:], said.log_probs, 0)
    scores = Scores(
        log_probs=(completions * _weigh_tokens(texts, config)).sum(-1),
        ref_log_probs=_find_reference(part, config, learner, reference),
        completion_log_probs=completions.sum(-1),
        text_log_probs=said.log_probs.sum(-1),
        lengths=texts.target_mask[..., 1:].sum(-1).astype(jnp.float32),
        mean_length=mean_length,
        mean_text_length=mean_text_length,
        desirable=part.desirable,
        point=point,
    )
    each = loss.compute(scores, config)
    if config.policy_weights:
        likeness = jnp.where(texts.target_mask[..., 1:], said.log_probs - said.log_collisions, 0)
        means = likeness.sum(-1) / jnp.maximum(scores.lengths, 1)
        each *= jax.lax.stop_gradient(jnp.exp(means).prod(-1))
    return each.sum(), {"loss": (each.sum(), jnp.float32(len(each))), **_observe(scores, config, loss)}


def _observe(scores: Scores, config: PreferenceConfig, loss: PreferenceLoss) -> Sums:
    """(sum, count) of what is watched: rewards β(log π − log π_ref), and log-probabilities."""
    log_probs = mean_log_probs(scores).T if loss.of_means else scores.log_probs
    rewards = jax.lax.stop_gradient(config.beta * (log_probs - scores.ref_log_probs))
    if scores.desirable is None:
        better, worse = rewards.T
        masks = jnp.ones_like(better), jnp.ones_like(better)
        columns = (better, worse), log_probs.T
        pairs = {
            "rewards/margins": (better - worse, masks[0]),
            "rewards/accuracies": ((better > worse).astype(jnp.float32), masks[0]),
        }
    else:
        liked = scores.desirable.astype(jnp.float32)
        masks, columns = (liked, 1 - liked), ((rewards[:, 0],) * 2, (log_probs[:, 0],) * 2)
        threshold = scores.point * (config.beta if loss.mismatched else 1)
        right = (rewards[:, 0] > threshold) == scores.desirable
        pairs = {"rewards/accuracies": (right.astype(jnp.float32), jnp.ones_like(liked))}
    for name, values in zip(("rewards", "log_probs"), columns, strict=True):
        for side, value, mask in zip(("chosen", "rejected"), values, masks, strict=True):
            pairs[f"{name}/{side}"] = (value, mask)
    return {name: ((value * mask).sum(), mask.sum()) for name, (value, mask) in pairs.items()}


def summarize(sums: Sums) -> Metrics:
    """Numbers of (sum, count) pairs; of completions judged alone the margin of the means."""
    metrics = {name: total / jnp.maximum(count, 1) for name, (total, count) in sums.items()}
    metrics.setdefault("rewards/margins", metrics["rewards/chosen"] - metrics["rewards/rejected"])
    return metrics


def measure(
    params: Params,
    batch: Judgements,
    config: PreferenceConfig,
    learner: Learner,
    reference: Params | None = None,
) -> Sums:
    """(sum, count) of what `update` says of its batch, without learning from it; `summarize` makes numbers of them."""
    of_step = _find_point(params, batch, config, learner, reference), *_measure_lengths(batch.texts)
    return _sum_losses(params, _drop_mismatched(batch, learner), config, learner, reference, of_step)[1]
