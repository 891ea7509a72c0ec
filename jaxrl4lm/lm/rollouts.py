"""Completions of prompts by a policy, and everything that learning needs to know of them.

Shapes: `G` prompts, `B` completions, `P` prompt tokens, `T` completion tokens, `V` vocabulary.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm import diagnostics, distributions, reduce
from jaxrl4lm.decoding import History, Sampling, generate, reshape_logits
from jaxrl4lm.diagnostics import Diagnostics
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.types import Array, Key, Params


class Rollout(NamedTuple):
    """Trajectories of the token-level MDP; the completions of a prompt are consecutive."""

    prompts: Array
    """int32 `[G, P]`, padded on the left."""
    prompt_mask: Array
    """bool `[G, P]`."""
    completions: Array
    """int32 `[B, T]`."""
    mask: Array
    """bool `[B, T]`: True up to and including the end token."""
    log_probs: Array
    """float32 `[B, T]`, captured while sampling."""
    values: Array
    """float32 `[B, T]`: V of the state before each token."""
    final_values: Array
    """float32 `[B]`: V of the state after the last token of a truncated completion, else 0."""
    truncated: Array
    """bool `[B]`: reached the length limit without an end token."""
    learned: Array | None = None
    """bool `[B]`: completions that are learned from; None: all."""
    baselines: Array | None = None
    """float32 `[G]`: what the most likely completion of each prompt earns; None where no algorithm asks."""
    scored: Array | None = None
    """bool `[B]`: which completions a reward applies to; the others are left out. None: all."""


class Drawn(NamedTuple):
    """Completions that are yet to be scored."""

    rows: Array
    """int32 `[G]`: the numbers of their prompts."""
    rollout: Rollout
    greedy: Rollout | None
    """The most likely completion of each prompt, where the algorithm compares with it."""
    scores: Mapping[str, Array]
    """float32 `[B]`: what compiled rewards say of the completions, by their names."""
    greedy_scores: Mapping[str, Array]
    """float32 `[G]`: the same of the most likely completions."""


def rollout(
    policy: LanguagePolicy,
    params: Params,
    prompts: Array,
    prompt_mask: Array,
    key: Key,
    sampling: Sampling,
    *,
    final_values: bool = True,
) -> Rollout:
    """Draws `sampling.copies` completions of each prompt `[G, P]`; `final_values` as of `decoding.generate`."""
    generation = generate(policy, params, prompts, prompt_mask, key, sampling, final_values=final_values)
    return Rollout(
        prompts=prompts,
        prompt_mask=prompt_mask,
        completions=generation.tokens,
        mask=generation.mask,
        log_probs=generation.log_probs,
        values=generation.values,
        final_values=generation.final_values,
        truncated=generation.truncated,
    )


LEAST_LOG_PROB = -100.0
"""What stands for -inf where a truncation has removed a token: losses stay finite, and no gradient flows to it."""


class Scores(NamedTuple):
    """What a policy says of given completions, float32 `[B, T]`."""

    log_probs: Array
    entropy: Array
    values: Array


def score(policy: LanguagePolicy, params: Params, rollout: Rollout, sampling: Sampling) -> Scores:
    """Log-probabilities of the chosen tokens under the distribution that `sampling` draws from, its entropy, and values.

    Penalties and truncations are applied as they were while drawing, so before the first optimizer step the ratio of new
    to old probability is 1. A token that a truncation has removed since then has log-probability `LEAST_LOG_PROB`.
    """
    hidden = policy.completion_hidden(params, rollout.prompts, rollout.prompt_mask, rollout.completions)
    values = policy.values(params, hidden)
    if sampling.reshapes:
        return Scores(*_score_reshaped(policy, params, hidden, rollout, sampling), values)
    temperature = 1.0 if sampling.temperature is None else sampling.temperature
    said = policy.token_log_probs(params, hidden, rollout.completions, temperature=temperature)
    return Scores(said.log_probs, said.entropies, values)


def _score_reshaped(
    policy: LanguagePolicy, params: Params, hidden_BTD: Array, rollout: Rollout, sampling: Sampling
) -> tuple[Array, Array]:
    """Log-probabilities and entropies `[B, T]` where the distribution depends on the text so far: a step at a time."""
    copies = rollout.completions.shape[0] // rollout.prompts.shape[0]
    prompts, prompt_mask = (jnp.repeat(x, copies, 0) for x in (rollout.prompts, rollout.prompt_mask))

    @jax.checkpoint  # or the logits of every step would be kept for the backward pass
    def score_step(step: Array, hidden_BD: Array) -> tuple[Array, Array]:
        before = rollout.mask & (jnp.arange(rollout.mask.shape[1]) < step)[None]
        history = History(prompts, prompt_mask, rollout.completions, before, step)
        logits_BV = reshape_logits(policy.logits(params, hidden_BD), history, sampling)
        chosen = jax.lax.dynamic_index_in_dim(rollout.completions, step, axis=1, keepdims=False)
        log_probs = distributions.categorical_log_prob(logits_BV, chosen)
        return jnp.maximum(log_probs, LEAST_LOG_PROB), distributions.categorical_entropy(logits_BV)

    steps = jnp.arange(rollout.completions.shape[1])
    by_step = jax.lax.map(lambda xs: score_step(*xs), (steps, jnp.moveaxis(hidden_BTD, 1, 0)))
    return by_step[0].T, by_step[1].T


def diagnose(trajectories: Rollout, rewards: Array, ref_log_probs: Array | None) -> Diagnostics:
    """Figures of scores, of the divergence where a reference is given, and of lengths; rewards are `[B, T]`."""
    groups, scored = (trajectories.prompts.shape[0], -1), trajectories.scored
    divergence: Diagnostics = {}
    if ref_log_probs is not None:
        divergence = diagnostics.reference_kl(trajectories.log_probs, ref_log_probs, mask=trajectories.mask)
    return {
        **diagnostics.rewards(
            rewards.sum(-1).reshape(groups), None if scored is None else scored.reshape(groups)
        ),
        **divergence,
        **diagnostics.completions(trajectories.mask, ~trajectories.truncated),
        "completion/tokens": reduce.Fraction(trajectories.mask.sum(dtype=jnp.float32), jnp.float32(1)),
    }
