"""Beam search inside jit. All beams of a prompt share its keys and values.

Shapes: `G` prompts, `W` beams of each, `T` completion tokens, `V` vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.decoding.sampling import as_ids
from jaxrl4lm.models.policy import Carry, LanguagePolicy
from jaxrl4lm.types import Array, Params, ScalarLike

NEVER = -1e30


class Beams(NamedTuple):
    """The best completions of each prompt, the best first."""

    tokens: Array
    """int32 `[G, W, T]`; `pad_id` after the end."""
    mask: Array
    """bool `[G, W, T]`: True up to and including the end token."""
    scores: Array
    """float32 `[G, W]`: summed log-probability / length ^ length_penalty; below -1e29 where fewer than W were found."""


class _Search(NamedTuple):
    step: Array
    tokens: Array
    """int32 `[G, W, T]`, of the beams that go on."""
    log_probs: Array
    """float32 `[G, W]`, of the beams that go on."""
    hidden: Array
    carry: Carry
    done: Beams
    """The best beams that have ended."""


def beam_search(
    policy: LanguagePolicy,
    params: Params,
    prompts: Array,
    prompt_mask: Array,
    *,
    beams: int,
    max_new_tokens: int,
    eos_id: int | tuple[int, ...],
    pad_id: int,
    length_penalty: ScalarLike = 1.0,
    patient: bool = True,
) -> Beams:
    """Beam search for the completions with the highest log-probability / length ^ length_penalty.

    Args:
      prompts: int `[G, P]`, padded on the left.
      prompt_mask: bool `[G, P]`.
      beams: W.
      length_penalty: at least 0; above 0 favours longer completions.
      patient: True goes on while a beam could still become better than the worst of the W kept. False stops as soon as
        W beams have ended. They are `early_stopping="never"` and `True` of transformers.
    Raises:
      ValueError: if a size is below 1, or the penalty below 0.
    """
    _check(beams, max_new_tokens, length_penalty)
    G, W, T = prompts.shape[0], beams, max_new_tokens
    eos = jnp.array(as_ids(eos_id))
    # Of this many candidates at least W go on, even if every beam ends with each of the end tokens.
    candidates = W * (1 + len(as_ids(eos_id)))

    def normalise(log_probs: Array, length: ScalarLike) -> Array:
        return log_probs / jnp.asarray(length, jnp.float32) ** length_penalty

    def extend(s: _Search) -> _Search:
        """Replaces the beams by their W best continuations. Those that end move to `done`."""
        log_probs = jax.nn.log_softmax(policy.logits(params, s.hidden)).reshape(G, W, -1)
        V = log_probs.shape[-1]
        total = (s.log_probs[:, :, None] + log_probs).reshape(G, W * V)
        best, index = jax.lax.top_k(total, min(candidates, W * V))
        parent, token = index // V, (index % V).astype(jnp.int32)
        tokens = jnp.take_along_axis(s.tokens, parent[:, :, None], axis=1).at[:, :, s.step].set(token)
        ended = jnp.isin(token, eos) | (s.step == T - 1)
        length = s.step + 1
        # Only the W best may end: a beam that ends competes with those that go on.
        counts = ended & (jnp.arange(best.shape[1]) < W)[None] & (best > NEVER / 2)
        if not patient:  # a prompt that has its W beams is finished, whatever the other prompts do
            counts &= ~_is_complete(s.done)[:, None]
        real = jnp.broadcast_to(jnp.arange(T) < length, tokens.shape)
        done = _keep_best(s.done, Beams(tokens, real, jnp.where(counts, normalise(best, length), NEVER)))
        going, chosen = jax.lax.top_k(jnp.where(ended, NEVER, best), W)
        parent, token = (jnp.take_along_axis(x, chosen, 1) for x in (parent, token))
        tokens = jnp.take_along_axis(tokens, chosen[:, :, None], 1)
        hidden, carry = policy.step(params, _reorder(s.carry, parent), token.reshape(-1))
        return _Search(s.step + 1, tokens, going, hidden, carry, done)

    def is_unfinished(s: _Search) -> Array:
        worst = s.done.scores.min(-1)
        # Log-probabilities only fall: a beam's best score is its present one at the longest length.
        hope = normalise(s.log_probs.max(-1), T) if patient else jnp.full((G,), jnp.inf)
        full = _is_complete(s.done) & ((hope <= worst) | (not patient))
        return (s.step < T) & ~full.all()

    hidden, carry = policy.start(params, prompts, prompt_mask, W, T)
    params = policy.for_decoding(params)
    empty = jnp.full((G, W, T), pad_id, jnp.int32)
    none = Beams(empty, jnp.zeros(empty.shape, bool), jnp.full((G, W), NEVER))
    first = jnp.where(jnp.arange(W) == 0, 0.0, NEVER)[None].repeat(G, 0)  # all beams begin alike: one counts
    out = jax.lax.while_loop(
        is_unfinished, extend, _Search(jnp.int32(0), empty, first, hidden, carry, none)
    ).done
    return out._replace(tokens=jnp.where(out.mask, out.tokens, pad_id))


def _check(beams: int, max_new_tokens: int, length_penalty: ScalarLike) -> None:
    if min(beams, max_new_tokens) < 1:
        raise ValueError(f"beams and max_new_tokens must be at least 1, not {beams} and {max_new_tokens}")
    if isinstance(length_penalty, float | int) and not length_penalty >= 0:
        raise ValueError(f"length_penalty must be at least 0, not {length_penalty}")


def _is_complete(done: Beams) -> Array:
    """Whether each prompt `[G]` has W ended beams."""
    return done.scores.min(-1) > NEVER / 2


def _keep_best(kept: Beams, others: Beams) -> Beams:
    """The W of both with the highest scores."""
    tokens, masks, scores = (jnp.concatenate(pair, 1) for pair in zip(kept, others, strict=True))
    scores, index = jax.lax.top_k(scores, kept.scores.shape[1])
    index = index[:, :, None]
    return Beams(jnp.take_along_axis(tokens, index, 1), jnp.take_along_axis(masks, index, 1), scores)


def _reorder(carry: Carry, parent: Array) -> Carry:
    """The carry in which beam w is the old beam parent[g, w]. The shared prompts are not copied."""
    G, W = parent.shape
    rows = (parent + W * jnp.arange(G)[:, None]).reshape(-1)
    cache, positions = jax.tree.map(lambda x: x[rows], (carry.cache, carry.positions))
    return carry._replace(cache=cache, positions=positions)
