"""Continuous batching inside jit: rows that have ended make room for the next prompts of a queue.

Shapes: `G` prompts, `M` = G x copies completions, `B` slots, `P` prompt tokens, `T` completion tokens, `D` width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.decoding.drawing import draw_row_uniforms
from jaxrl4lm.decoding.generation import Generation, empty_generation, make_columns
from jaxrl4lm.decoding.processors import History
from jaxrl4lm.decoding.sampling import Sampling, choose, ends
from jaxrl4lm.models.attention import EMPTY
from jaxrl4lm.models.cache import Prefix, empty_cache
from jaxrl4lm.models.policy import Carry, LanguagePolicy
from jaxrl4lm.types import Array, Key, Params


class _Queue(NamedTuple):
    row: Array
    """int32 `[B]`: the completion that each slot works on; M for none."""
    step: Array
    """int32 `[B]`: how many tokens that completion has."""
    hidden: Array
    """`[B, D]`: the state from which its next token is chosen."""
    carry: Carry
    following: Array
    """int32 `[]`: the next completion to begin."""
    out: Generation
    """Of all M completions."""


def generate_queue(
    policy: LanguagePolicy,
    params: Params,
    prompts: Array,
    prompt_mask: Array,
    key: Key,
    sampling: Sampling,
    *,
    slots: int,
) -> Generation:
    """The completions of `generate`, with the same tokens, computed `slots` at a time.

    No slot waits for the longest row of a batch: when an eighth of the slots are idle, the next completions of the queue
    move in. Every prompt is read once, at the beginning.

    Args:
      slots: B, how many completions are in progress at a time.
      The others: as in `generate`.
    Raises:
      ValueError: if `slots` is below 1.
    """
    if slots < 1:
        raise ValueError(f"slots must be at least 1, not {slots}")
    T, B, copies = sampling.length, slots, sampling.copies
    prompts, prompt_mask = jnp.asarray(prompts), jnp.asarray(prompt_mask)
    M = prompts.shape[0] * copies
    greedy = sampling.temperature is None
    uniforms = jnp.zeros((M, T)) if greedy else draw_row_uniforms(key, jnp.arange(M), T)
    first_GD, prefixes, lengths = policy.prefill(params, prompts, prompt_mask, T)
    params = policy.for_decoding(params)

    def refill(q: _Queue) -> _Queue:
        return _refill(q, first_GD, prefixes, lengths, copies, M)

    def body(q: _Queue) -> _Queue:
        """Chooses a token in every slot, closes what has ended, reads the tokens, refills."""
        busy = q.row < M
        at = jnp.minimum(q.row, M - 1)
        full = busy & (q.step == T)  # cut by the limit; its last state is here only for its value
        values = policy.values(params, q.hidden)
        out = q.out._replace(
            final_values=q.out.final_values.at[jnp.where(full, q.row, M)].set(values, mode="drop"),
            truncated=q.out.truncated.at[jnp.where(full, q.row, M)].set(True, mode="drop"),
        )
        alive = busy & ~full
        step = jnp.minimum(q.step, T - 1)
        history = History(
            prompts[at // copies], prompt_mask[at // copies], out.tokens[at], out.mask[at], q.step
        )
        choice = choose(policy.logits(params, q.hidden), uniforms[at, step], history, sampling)
        ended = alive & ends(choice.token, history.tokens, q.step, sampling)
        target = jnp.where(alive, q.row, M)
        added = make_columns(choice, values, alive, sampling.pad_id)
        written = {n: getattr(out, n).at[target, step].set(x, mode="drop") for n, x in added.items()}
        hidden, carry = policy.step(params, q.carry, choice.token)
        # A row lives for at most T tokens: a ring of T slots never overwrites what it still reads.
        carry = carry._replace(slot=carry.slot % T)
        row = jnp.where(ended | full, M, q.row)
        q = _Queue(row, q.step + 1, hidden, carry, q.following, out._replace(**written))
        idle = (q.row == M).sum()
        return jax.lax.cond((idle >= max(B // 8, 1)) & (q.following < M), refill, lambda q: q, q)

    start = refill(_make_idle(policy, sampling, first_GD, prefixes, B, M))
    return jax.lax.while_loop(lambda q: (q.row < M).any(), body, start).out


def _make_idle(
    policy: LanguagePolicy, sampling: Sampling, first_GD: Array, prefixes: Prefix, slots: int, rows: int
) -> _Queue:
    """The queue before any completion has begun."""
    B, T = slots, sampling.length
    blank = Prefix(
        keys=tuple(jnp.zeros((B, *k.shape[1:]), k.dtype) for k in prefixes.keys),
        values=tuple(jnp.zeros((B, *v.shape[1:]), v.dtype) for v in prefixes.values),
        positions=jnp.full((B, prefixes.positions.shape[1]), EMPTY, jnp.int32),
    )
    zeros = jnp.zeros((B,), jnp.int32)
    return _Queue(
        row=jnp.full((B,), rows, jnp.int32),
        step=zeros,
        hidden=jnp.zeros((B, first_GD.shape[-1]), first_GD.dtype),
        carry=Carry(blank, empty_cache(policy.config, B, T), zeros, jnp.int32(0)),
        following=jnp.int32(0),
        out=empty_generation(rows, sampling),
    )


def _refill(q: _Queue, first_GD: Array, prefixes: Prefix, lengths: Array, copies: int, rows: int) -> _Queue:
    """The queue with the next completions moved into its idle slots."""
    idle = q.row == rows
    coming = q.following + jnp.cumsum(idle, dtype=jnp.int32) - 1
    new = idle & (coming < rows)
    prompt = jnp.where(new, coming, 0) // copies

    def take(old: Array, source: Array) -> Array:
        return jnp.where(new.reshape(-1, *(1,) * (old.ndim - 1)), source[prompt], old)

    cache = q.carry.cache
    carry = q.carry._replace(
        prefix=jax.tree.map(take, q.carry.prefix, prefixes),
        cache=cache._replace(positions=jnp.where(new[:, None], EMPTY, cache.positions)),
        positions=take(q.carry.positions, lengths),
    )
    row, step = jnp.where(new, coming, q.row), jnp.where(new, 0, q.step)
    following = jnp.minimum(q.following + idle.sum(dtype=jnp.int32), rows)
    return q._replace(row=row, step=step, hidden=take(q.hidden, first_GD), carry=carry, following=following)
