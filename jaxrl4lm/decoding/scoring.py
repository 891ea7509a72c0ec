"""Judging texts: their log-probabilities, the best of several, and prompts that show examples.

Shapes: `B` texts, `T` tokens, `D` width, `V` vocabulary, `G` prompts.
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
    chunk: int = 4096,
) -> Array:
    """log π(token t | tokens before t) `[B, T]`, float32; 0 for the first real token of a text and at
    padding.

    The logits of the whole vocabulary are never held: they are made and summed `chunk` tokens of it at a
    time.

    Args:
      tokens: int `[B, T]`.
      mask: bool `[B, T]`, False at padding, on either side. None: no padding.
      temperature: divides the logits.
      chunk: of the vocabulary; static.
    """
    mask = jnp.ones(tokens.shape, bool) if mask is None else mask
    hidden = policy.hidden(params, tokens, mask)
    # The state before each token: that of the column before it (real texts stand in one piece).
    hidden, targets = hidden[:, :-1], tokens[:, 1:]
    vocab = policy.vocab_size
    size = min(chunk, vocab)

    def add(carry: tuple[Array, Array, Array], begin: Array) -> tuple[tuple[Array, Array, Array], None]:
        top, total, chosen = carry
        first = jnp.minimum(begin, vocab - size)  # the last chunk overlaps the one before it
        logits = policy.logits(params, hidden, (first, size)) / temperature
        ids = first + jnp.arange(size)
        logits = jnp.where((ids >= begin)[None, None], logits, -jnp.inf)
        higher = jnp.maximum(top, logits.max(-1))
        total = total * jnp.exp(top - higher) + jnp.exp(logits - higher[..., None]).sum(-1)
        here = jnp.clip(targets - first, 0, size - 1)
        found = jnp.take_along_axis(logits, here[..., None], -1)[..., 0]
        inside = (targets >= begin) & (targets < begin + size)
        return (higher, total, jnp.where(inside, found, chosen)), None

    low = jnp.full(targets.shape, -1e30, jnp.float32)
    (top, total, chosen), _ = jax.lax.scan(add, (low, jnp.zeros_like(low), low), jnp.arange(0, vocab, size))
    log_probs = jnp.where(mask[:, 1:] & mask[:, :-1], chosen - top - jnp.log(total), 0.0)
    return jnp.pad(log_probs, ((0, 0), (1, 0)))


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
