"""Generation inside jit: prefill each prompt once, decode with a cache, stop when every row has ended.

Shapes: `G` prompts, `B` = G x copies completions, `P` prompt tokens, `T` completion tokens, `V` vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.decoding.draw import draw, greedy, row_uniforms
from jaxrl4lm.models.policy import Carry, LanguagePolicy
from jaxrl4lm.types import Array, Key, Params, ScalarLike


class Generation(NamedTuple):
    """Completions and what was known when each token was chosen; the completions of a prompt are
    consecutive."""

    tokens: Array
    """int32 `[B, T]`; `pad_id` after the end."""
    mask: Array
    """bool `[B, T]`: True up to and including the end token."""
    log_probs: Array
    """float32 `[B, T]`, of the distribution that was sampled (logits / temperature), in nats; 0 where
    masked."""
    values: Array
    """float32 `[B, T]`: the value head's estimate before each token; 0 where masked."""
    final_values: Array
    """float32 `[B]`: the estimate after the last token, for completions cut by the limit; 0 for ended
    ones."""
    truncated: Array
    """bool `[B]`: reached the limit without an end token."""


class _Loop(NamedTuple):
    step: Array
    out: Generation
    ended: Array
    token: Array
    carry: Carry


def generate(
    policy: LanguagePolicy,
    params: Params,
    prompts: Array,
    prompt_mask: Array,
    key: Key,
    *,
    max_new_tokens: int,
    eos_id: int,
    pad_id: int,
    copies: int = 1,
    temperature: ScalarLike | None = 1.0,
    row_offset: ScalarLike = 0,
    final_values: bool = True,
) -> Generation:
    """Completes every prompt `copies` times, token by token.

    Args:
      prompts: int `[G, P]`, padded on the left.
      prompt_mask: bool `[G, P]`, True at real tokens.
      key: row i draws from fold_in(fold_in(key, row_offset + i), t): its text does not depend on its batch.
      max_new_tokens: T.
      eos_id, pad_id: the token that ends a completion, and what fills the rest.
      temperature: of the softmax, traced. None (static) takes the most likely token, its log-probability at
        temperature 1.
      row_offset: number of the first row, for batches that are parts of a larger one.
      final_values: whether to spend a step on the values after truncated completions; if not they are 0.
    """
    G = prompts.shape[0]
    B, T = G * copies, max_new_tokens
    sampled = temperature is not None
    uniforms = row_uniforms(key, row_offset + jnp.arange(B), T) if sampled else jnp.zeros((B, T))

    def choose(step: Array, loop: _Loop, hidden: Array) -> _Loop:
        """Chooses token number `step` of every row that has not ended, and records it."""
        logits = policy.logits(params, hidden)
        if sampled:
            logits = logits / temperature
            chosen = draw(logits, jax.lax.dynamic_index_in_dim(uniforms, step, axis=1, keepdims=False))
        else:
            chosen = greedy(logits)
        log_prob = jnp.take_along_axis(logits, chosen[:, None], -1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)
        alive = ~loop.ended

        def put(buffer: Array, column: Array) -> Array:
            return jax.lax.dynamic_update_slice(buffer, column[:, None].astype(buffer.dtype), (0, step))

        out = loop.out._replace(
            tokens=put(loop.out.tokens, jnp.where(alive, chosen, pad_id)),
            mask=put(loop.out.mask, alive),
            log_probs=put(loop.out.log_probs, jnp.where(alive, log_prob, 0.0)),
            values=put(loop.out.values, jnp.where(alive, policy.values(params, hidden), 0.0)),
        )
        return loop._replace(step=step + 1, out=out, ended=loop.ended | (chosen == eos_id), token=chosen)

    def body(loop: _Loop) -> _Loop:
        hidden, carry = policy.step(params, loop.carry, loop.token)
        return choose(loop.step, loop._replace(carry=carry), hidden)

    hidden, carry = policy.start(params, prompts, prompt_mask, copies, T)
    zeros = jnp.zeros((B, T), jnp.float32)
    empty = Generation(
        tokens=jnp.full((B, T), pad_id, jnp.int32),
        mask=jnp.zeros((B, T), bool),
        log_probs=zeros,
        values=zeros,
        final_values=zeros[:, 0],
        truncated=jnp.zeros((B,), bool),
    )
    start = _Loop(jnp.int32(0), empty, jnp.zeros((B,), bool), jnp.zeros((B,), jnp.int32), carry)
    loop = choose(jnp.int32(0), start, hidden)
    loop = jax.lax.while_loop(lambda loop: (loop.step < T) & ~loop.ended.all(), body, loop)

    def last_values(loop: _Loop) -> Array:
        return policy.values(params, policy.step(params, loop.carry, loop.token)[0])

    final = loop.out.final_values
    if final_values:
        final = jax.lax.cond(loop.ended.all(), lambda loop: loop.out.final_values, last_values, loop)
    return loop.out._replace(final_values=jnp.where(loop.ended, 0.0, final), truncated=~loop.ended)
