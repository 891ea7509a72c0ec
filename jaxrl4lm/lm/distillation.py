"""Distillation: a student learns what frozen teachers say of completions, given ones or those that it draws itself.

Shapes: `B` rows, `P` tokens of a prompt, `T` targets of a row, `N` = B x T, `D` width, `V` vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxrl4lm import reduce
from jaxrl4lm.decoding import Sampling
from jaxrl4lm.lm import descent
from jaxrl4lm.lm.config import DistillationConfig
from jaxrl4lm.lm.descent import DescentState
from jaxrl4lm.lm.distillation_losses import Divergence, compare, gather_with_rest, keep_top, policy_gradient
from jaxrl4lm.lm.optimizer import Optimizer, adam
from jaxrl4lm.lm.rollouts import Rollout, rollout
from jaxrl4lm.lm.supervised import Texts
from jaxrl4lm.lm.trainable import Trainable, everything
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.types import Array, Key, Metrics, Params

init = descent.init

SAMPLING = 2**32 - 3
"""What the key of a run is folded with to draw completions: no number of a step."""
LOGITS_AT_ONCE, FEWEST_ROWS = 2**22, 128
"""Logits of a model that are held at a time, of so many tokens at least."""


class Prompts(NamedTuple):
    """What the student is to complete."""

    tokens: Array
    """int `[B, P]`, padded on the left."""
    mask: Array
    """bool `[B, P]`."""


Completed: TypeAlias = Texts | Rollout
"""Prompts with completions: given ones, or those that were drawn."""


Sums: TypeAlias = dict[str, reduce.Fraction]
"""Metrics before their division."""


class Learner(NamedTuple):
    """What is trained and how: the parts of the program that are functions."""

    policy: LanguagePolicy
    teachers: tuple[LanguagePolicy, ...]
    """Of the same vocabulary."""
    weights: tuple[float, ...]
    """With which their divergences are added."""
    sampling: Sampling
    """How the student draws; with its length and its end tokens."""
    divergence: Divergence = compare
    optimizer: Optimizer = adam
    trainable: Trainable = everything()


def complete(params: Params, prompts: Prompts, key: Key, learner: Learner) -> Rollout:
    """A completion of each prompt, drawn by the student."""
    return rollout(learner.policy, params, *prompts, key, learner.sampling, final_values=False)


def update(
    state: DescentState,
    batch: Texts | Prompts,
    config: DistillationConfig,
    learner: Learner,
    teachers: tuple[Params, ...],
) -> tuple[DescentState, Metrics]:
    """One optimizer step on the mean loss of the tokens of completions: those of the batch, or of prompts alone those that the
    student draws.

    Args:
      teachers: parameters of each.
    """
    drawn = isinstance(batch, Prompts)
    completed: Completed = batch  # pyright: ignore[reportAssignmentType]
    if isinstance(batch, Prompts):
        key = jax.random.fold_in(jax.random.fold_in(state.key, SAMPLING), state.step)
        params = learner.trainable.merge(state.params, state.frozen)
        completed = complete(params, batch, key, learner)

    def differentiate(part: Completed, key: Key) -> tuple[Sums, Params]:
        heard = listen(teachers, part, config, learner)

        def sum_losses(params: Params) -> tuple[Array, Sums]:
            whole = learner.trainable.join(params, state.frozen, key)
            sums = _measure(whole, teachers, heard, part, config, learner)
            return sums["loss"].total, sums

        grads, sums = jax.grad(sum_losses, has_aux=True)(state.params)
        return sums, grads

    sums, grads = descent.accumulate(
        differentiate, completed, descent.choose_key(state), config.micro_batches
    )
    count = sums["loss"].denominator
    grads = jax.tree.map(lambda x: (x / jnp.maximum(count, 1)).astype(x.dtype), grads)
    state, metrics = descent.descend(state, grads, config, learner.optimizer)
    tokens = completed.mask.sum() + (batch.mask.sum() if drawn else 0)
    more = {"on_policy": jnp.float32(drawn), "tokens": tokens, "target_tokens": count}
    return state, {**summarize(sums), **more, **metrics}


def summarize(sums: Sums) -> Metrics:
    """The numbers."""
    return {name: reduce.divide(fraction) for name, fraction in sums.items()}


def measure(
    params: Params,
    teachers: tuple[Params, ...],
    batch: Completed,
    config: DistillationConfig,
    learner: Learner,
) -> Sums:
    """Of the loss and, of a divergence, of how often the student's likeliest token is a teacher's; without learning."""
    return _measure(params, teachers, listen(teachers, batch, config, learner), batch, config, learner)


def _read(policy: LanguagePolicy, params: Params, batch: Completed) -> Array:
    """The states `[B, T, D]` from which each target is predicted."""
    if isinstance(batch, Rollout):
        return policy.completion_hidden(params, batch.prompts, batch.prompt_mask, batch.completions)
    return policy.hidden(params, batch.tokens, batch.mask)[:, :-1]


def _list_targets(batch: Completed) -> tuple[Array, Array]:
    """Tokens, and which of them are a completion's `[B, T]`."""
    if isinstance(batch, Rollout):
        return batch.completions, batch.mask
    return batch.tokens[:, 1:], batch.target_mask[:, 1:]


def listen(
    teachers: tuple[Params, ...], batch: Completed, config: DistillationConfig, learner: Learner
) -> tuple[Any, ...]:
    """What is kept of each teacher to compare with: its states `[N, D]`, of which logits are made when they are read; the
    `TopTokens`; or the log-probabilities `[B, T]` of the tokens, for advantages."""
    tokens, mask = _list_targets(batch)

    def listen_to(policy: LanguagePolicy, params: Params) -> Any:
        hidden = _read(policy, params, batch)
        if config.objective == "advantage":
            return policy.token_log_probs(
                params, hidden, tokens, temperature=config.loss_temperature, mask=mask
            ).log_probs
        states, k = _flatten(hidden, mask), config.teacher_top_k
        if k is None:
            return states
        return _map_rows(
            lambda x: keep_top(policy.logits(params, x) / config.loss_temperature, k),
            states,
            policy.vocab_size,
        )

    return tuple(map(listen_to, learner.teachers, teachers))


def _flatten(hidden: Array, mask: Array) -> Array:
    """States `[N, D]`, 0 where masked: what is not read has no gradient, whatever it holds."""
    return jnp.where(mask[..., None], hidden, 0).reshape(-1, hidden.shape[-1])


def _map_rows(function: Callable[[Any], Any], rows: Any, vocabulary: int) -> Any:
    """The function of arrays `[N, ...]`, of some rows at a time, where the logits of all would be many. The backward pass
    makes them again."""
    total = len(jax.tree.leaves(rows)[0])
    size = max(FEWEST_ROWS, LOGITS_AT_ONCE // vocabulary)
    if total <= size:
        return function(rows)

    def part(x: Array) -> Array:
        padded = jnp.pad(x, ((0, -total % size), *((0, 0),) * (x.ndim - 1)))
        return padded.reshape(-1, size, *x.shape[1:])

    parts = jax.lax.map(jax.checkpoint(function), jax.tree.map(part, rows))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:total], parts)


def _measure(
    params: Params,
    teachers: tuple[Params, ...],
    heard: tuple[Any, ...],
    batch: Completed,
    config: DistillationConfig,
    learner: Learner,
) -> Sums:
    """As `measure`, of what the teachers have said."""
    policy, (tokens, mask) = learner.policy, _list_targets(batch)
    hidden = _read(policy, params, batch)
    if config.objective == "advantage":
        said = policy.token_log_probs(params, hidden, tokens, temperature=config.loss_temperature, mask=mask)
        each = policy_gradient(said.log_probs, heard, learner.weights, mask, discount=config.discount)
        return {"loss": reduce.token_fraction(each, mask)}

    def compare_rows(rows: tuple[Array, tuple[Any, ...]]) -> tuple[Array, Array]:
        return _compare_rows(params, teachers, *rows, config, learner)

    rows = _flatten(hidden, mask), heard
    each, same = (x.reshape(mask.shape) for x in _map_rows(compare_rows, rows, policy.vocab_size))
    return {
        "loss": reduce.token_fraction(each, mask),
        "token_agreement": reduce.token_fraction(same, mask),
    }


def _compare_rows(
    params: Params,
    teachers: tuple[Params, ...],
    states: Array,
    heard: tuple[Any, ...],
    config: DistillationConfig,
    learner: Learner,
) -> tuple[Array, Array]:
    """The weighted divergences `[N]`, and the share of the weights of those teachers whose likeliest token is the student's."""
    logits = learner.policy.logits(params, states) / config.loss_temperature
    divergence, same = jnp.zeros(len(logits)), jnp.zeros(len(logits))
    for policy, known, weight, said in zip(learner.teachers, teachers, learner.weights, heard, strict=True):
        if config.teacher_top_k is None:
            student, teacher = logits, policy.logits(known, said) / config.loss_temperature
            likeliest = teacher.argmax(-1)
        else:
            student, teacher, likeliest = gather_with_rest(logits, said.ids), said.log_probs, said.ids[:, 0]
        divergence += weight * learner.divergence(student, teacher, config)
        same += weight * (logits.argmax(-1) == likeliest)
    return divergence, same / sum(learner.weights)
