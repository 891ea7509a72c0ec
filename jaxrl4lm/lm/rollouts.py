"""Completions of prompts by a policy, and everything that learning needs to know of them.

Shapes: `G` prompts, `B` completions, `P` prompt tokens, `T` completion tokens.
"""

from typing import NamedTuple

from jaxrl4lm import distributions
from jaxrl4lm.decoding import Sampling, generate
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.types import Array, Key, Params, ScalarLike


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


def rollout(
    policy: LanguagePolicy,
    params: Params,
    prompts: Array,
    prompt_mask: Array,
    key: Key,
    *,
    completions: int,
    length: int,
    eos_id: int | tuple[int, ...],
    pad_id: int,
    temperature: ScalarLike = 1.0,
    final_values: bool = True,
) -> Rollout:
    """Samples `completions` completions, of at most `length` tokens, of each prompt."""
    sampling = Sampling(length, eos_id, pad_id, completions, temperature)
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


class Scores(NamedTuple):
    """What a policy says of given completions, float32 `[B, T]`."""

    log_probs: Array
    entropy: Array
    values: Array


def score(policy: LanguagePolicy, params: Params, rollout: Rollout, temperature: ScalarLike) -> Scores:
    """Log-probabilities of the chosen tokens under softmax(logits / temperature), its entropy, and values."""
    hidden = policy.completion_hidden(params, rollout.prompts, rollout.prompt_mask, rollout.completions)
    logits = policy.logits(params, hidden) / temperature
    return Scores(
        log_probs=distributions.categorical_log_prob(logits, rollout.completions),
        entropy=distributions.categorical_entropy(logits),
        values=policy.values(params, hidden),
    )
