"""Judging texts: their log-probabilities, the best of several, and prompts that show examples.

Shapes: `B` texts, `T` tokens, `G` prompts.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp

from jaxrl4lm.arguments import as_float
from jaxrl4lm.decoding.generation import Generation
from jaxrl4lm.models.policy import LanguagePolicy
from jaxrl4lm.types import Array, Params, ScalarLike


def score(
    policy: LanguagePolicy,
    params: Params,
    tokens: Array,
    mask: Array | None = None,
    *,
    temperature: ScalarLike = 1.0,
    chunk: int | None = None,
) -> Array:
    """log π(token t | tokens before t) `[B, T]`, float32; 0 for the first real token of a text and at padding.

    Args:
      tokens: int `[B, T]`.
      mask: bool `[B, T]`, False at padding, on either side. None: no padding.
      temperature: divides the logits.
      chunk: as of `LanguagePolicy.token_log_probs`, which never holds the logits of a large vocabulary.
    """
    mask = jnp.ones(tokens.shape, bool) if mask is None else mask
    # The state before each token: that of the column before it (real texts stand in one piece).
    hidden = policy.hidden(params, tokens, mask)[:, :-1]
    known = mask[:, 1:] & mask[:, :-1]
    said = policy.token_log_probs(
        params, hidden, tokens[:, 1:], temperature=temperature, mask=known, chunk=chunk
    )
    return jnp.pad(said.log_probs, ((0, 0), (1, 0)))


def best_of(generation: Generation, scores: Array, copies: int) -> Generation:
    """The completion with the highest score `[B]` of each prompt, the first of equals: a `Generation` of
    G = B / copies rows. nan is below every score."""
    scores = as_float(scores)  # of counts, too
    lowest = jnp.finfo(scores.dtype).min
    groups = jnp.where(jnp.isnan(scores), -jnp.inf, jnp.maximum(scores, lowest)).reshape(-1, copies)
    rows = jnp.argmax(groups, axis=-1) + copies * jnp.arange(groups.shape[0])
    return jax.tree.map(lambda x: x[rows], generation)


def few_shot(
    examples: Iterable[tuple[str, str]],
    query: str,
    *,
    instruction: str = "",
    template: str = "Input: {input}\nOutput: {output}\n\n",
) -> str:
    """A prompt that shows the examples (input, output) and leaves the output of the query to be completed.

    Raises:
      ValueError: if the template lacks {input} or {output}, or the output does not come last.
    """
    before, found, _ = template.partition("{output}")
    if not found or "{input}" not in before:
        raise ValueError(f"the template {template!r} must hold {{input}} and, after it, {{output}}")
    shown = "".join(template.format(input=x, output=y) for x, y in examples)
    return instruction + shown + before.format(input=query).rstrip(" ")
