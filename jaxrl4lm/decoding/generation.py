"""Generation inside jit: prefill each prompt once, decode with a cache, stop when every row has ended.

Shapes: `G` prompts, `B` = G x copies completions, `P` and `T` tokens of a prompt and a completion, `V` vocabulary,
`K` alternatives.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxrl4lm.decoding.drawing import draw_row_uniforms
from jaxrl4lm.decoding.processors import History
from jaxrl4lm.decoding.sampling import Choice, Sampling, choose, ends
from jaxrl4lm.models.policy import Carry, LanguagePolicy
from jaxrl4lm.types import Array, Key, Params, ScalarLike


class Generation(NamedTuple):
    """Completions, and what was known when each token was chosen. The completions of a prompt are consecutive."""

    tokens: Array
    """int32 `[B, T]`; `pad_id` after the end."""
    mask: Array
    """bool `[B, T]`: True up to and including the end token."""
    log_probs: Array
    """float32 `[B, T]`, in nats, of the distribution that was sampled: logits / temperature, truncated. 0 where masked."""
    values: Array
    """float32 `[B, T]`: the value head's estimate before each token; 0 where masked."""
    final_values: Array
    """float32 `[B]`: the estimate after the last token of completions cut by the limit; 0 for ended ones."""
    truncated: Array
    """bool `[B]`: True for completions that reached the limit without an end token."""
    entropy: Array | None = None
    """float32 `[B, T]`, in nats, of the distribution that was sampled; None unless `Sampling.entropy`."""
    top_tokens: Array | None = None
    """int32 `[B, T, K]`: the most likely tokens; None unless `Sampling.alternatives`."""
    top_log_probs: Array | None = None
    """float32 `[B, T, K]`: their log-probabilities."""


class _Loop(NamedTuple):
    step: Array
    out: Generation
    ended: Array
    token: Array
    carry: Carry


def empty_generation(batch: int, sampling: Sampling) -> Generation:
    """Empty buffers for completions."""
    length, pad_id, K = sampling.length, sampling.pad_id, sampling.alternatives
    zeros = jnp.zeros((batch, length), jnp.float32)
    return Generation(
        tokens=jnp.full((batch, length), pad_id, jnp.int32),
        mask=jnp.zeros((batch, length), bool),
        log_probs=zeros,
        values=zeros,
        final_values=zeros[:, 0],
        truncated=jnp.zeros((batch,), bool),
        entropy=zeros if sampling.entropy else None,
        top_tokens=jnp.full((batch, length, K), pad_id, jnp.int32) if K else None,
        top_log_probs=jnp.zeros((batch, length, K), jnp.float32) if K else None,
    )


def make_columns(choice: Choice, values: Array, alive: Array, pad_id: int) -> dict[str, Array]:
    """What one choice adds to each buffer of a `Generation`; `pad_id` and 0 in rows that have ended."""
    rows = {"tokens": jnp.where(alive, choice.token, pad_id), "mask": alive, "values": values}
    rows["log_probs"] = choice.log_prob
    optional = ("entropy", "top_tokens", "top_log_probs")
    rows |= {name: x for name in optional if (x := getattr(choice, name)) is not None}

    def clear_ended(x: Array) -> Array:
        return jnp.where(alive.reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.zeros_like(x))

    return {name: x if name in ("tokens", "mask") else clear_ended(x) for name, x in rows.items()}


def generate(
    policy: LanguagePolicy,
    params: Params,
    prompts: Array,
    prompt_mask: Array,
    key: Key,
    sampling: Sampling,
    *,
    row_offset: ScalarLike = 0,
    final_values: bool = True,
) -> Generation:
    """Completes every prompt `sampling.copies` times, token by token.

    Args:
      prompts: int `[G, P]`, padded on the left.
      prompt_mask: bool `[G, P]`, True at real tokens.
      key: row i draws token t from fold_in(fold_in(key, row_offset + i), t): its text does not depend on its batch.
      sampling: lengths, ends, temperature, penalties, truncations, and what else to record.
      row_offset: number of the first row, for a batch that is a part of a larger one.
      final_values: whether to spend a step on the values after truncated completions; otherwise they are 0.
    Raises:
      ValueError: as `LanguagePolicy.prefill`.
    """
    B = prompts.shape[0] * sampling.copies
    decoder = _Decoder(policy, sampling)
    text = _Text(prompts, prompt_mask, key, row_offset)
    stepping = policy.for_decoding(params)
    loop = decoder.run_until(stepping, text, decoder.begin(params, text), sampling.length)

    def last_values(loop: _Loop) -> Array:
        return policy.values(stepping, policy.step(stepping, loop.carry, loop.token)[0])

    final = jnp.zeros((B,), jnp.float32)
    if final_values:
        final = jax.lax.cond(loop.ended.all(), lambda _: final, last_values, loop)
    return loop.out._replace(final_values=jnp.where(loop.ended, 0.0, final), truncated=~loop.ended)


def stream(
    policy: LanguagePolicy,
    params: Params,
    prompts: Array,
    prompt_mask: Array,
    key: Key,
    sampling: Sampling,
    *,
    row_offset: ScalarLike = 0,
    chunk: int = 8,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The tokens of `generate` as they come, `chunk` at a time. Called from the host, compiled inside.

    Another setting of a penalty or truncation compiles nothing; another kind of it, or another shape of prompts, does.

    Args:
      chunk: tokens between two returns to the host.
      The others: as in `generate`.
    Yields:
      The next tokens int `[B, C]` and their mask, C at most `chunk`, until every row has ended.
    """
    text, max_new_tokens = _Text(prompts, prompt_mask, key, row_offset), sampling.length
    penalties, truncations = map(_as_pytrees, (sampling.penalties, sampling.truncations))
    sampling = replace(sampling, penalties=penalties, truncations=truncations)
    loop, shown = _begin(policy, params, text, sampling), 0
    params = jax.jit(policy.for_decoding)(params)
    while True:
        loop = _run_until(policy, params, text, sampling, loop, min(shown + chunk, max_new_tokens))
        done = int(loop.step)
        yield np.asarray(loop.out.tokens[:, shown:done]), np.asarray(loop.out.mask[:, shown:done])
        shown = done
        if done == max_new_tokens or bool(loop.ended.all()):
            return


class _Text(NamedTuple):
    """What a completion depends on, apart from the parameters."""

    prompts: Array
    prompt_mask: Array
    key: Key
    row_offset: ScalarLike


@dataclass(frozen=True)
class _Decoder:
    """The loop of `generate`: it can begin, and run until some token."""

    policy: LanguagePolicy
    sampling: Sampling

    def begin(self, params: Params, text: _Text) -> _Loop:
        """Reads the prompts and chooses the first token of every row."""
        copies, T = self.sampling.copies, self.sampling.length
        hidden, carry = self.policy.start(params, text.prompts, text.prompt_mask, copies, T)
        B = text.prompts.shape[0] * copies
        empty = empty_generation(B, self.sampling)
        start = _Loop(jnp.int32(0), empty, jnp.zeros((B,), bool), jnp.zeros((B,), jnp.int32), carry)
        return self._advance(params, text, self._draw_uniforms(text), start, hidden)

    def run_until(self, params: Params, text: _Text, loop: _Loop, limit: ScalarLike) -> _Loop:
        """Goes on until every row has `limit` tokens or has ended."""
        uniforms = self._draw_uniforms(text)

        def body(loop: _Loop) -> _Loop:
            hidden, carry = self.policy.step(params, loop.carry, loop.token)
            return self._advance(params, text, uniforms, loop._replace(carry=carry), hidden)

        return jax.lax.while_loop(lambda loop: (loop.step < limit) & ~loop.ended.all(), body, loop)

    def _draw_uniforms(self, text: _Text) -> Array:
        B, T = text.prompts.shape[0] * self.sampling.copies, self.sampling.length
        if self.sampling.temperature is None:
            return jnp.zeros((B, T))
        return draw_row_uniforms(text.key, jnp.arange(B) + text.row_offset, T)

    def _advance(self, params: Params, text: _Text, uniforms: Array, loop: _Loop, hidden: Array) -> _Loop:
        """Chooses the next token of every row that has not ended, and records it."""
        step, sampling, prompts, mask = loop.step, self.sampling, text.prompts, text.prompt_mask
        if sampling.penalties:
            prompts, mask = (jnp.repeat(x, sampling.copies, 0) for x in (prompts, mask))
        history = History(prompts, mask, loop.out.tokens, loop.out.mask, step)
        uniform = jax.lax.dynamic_index_in_dim(uniforms, step, axis=1, keepdims=False)
        choice = choose(self.policy.logits(params, hidden), uniform, history, sampling)
        ended = ends(choice.token, loop.out.tokens, step, sampling)

        def put(buffer: Array, column: Array) -> Array:
            column = column[:, None].astype(buffer.dtype)
            return jax.lax.dynamic_update_slice(buffer, column, (0, step, *(0,) * (buffer.ndim - 2)))

        added = make_columns(choice, self.policy.values(params, hidden), ~loop.ended, sampling.pad_id)
        out = loop.out._replace(**{name: put(getattr(loop.out, name), x) for name, x in added.items()})
        return loop._replace(step=step + 1, out=out, ended=loop.ended | ended, token=choice.token)


def _as_pytrees(parts: tuple[Callable, ...]) -> tuple[Partial, ...]:
    """Turns a caller's own functions into pytrees, as the library's are."""
    return tuple(part if isinstance(part, Partial) else Partial(part) for part in parts)


@partial(jax.jit, static_argnums=0)
def _begin(policy: LanguagePolicy, params: Params, text: _Text, sampling: Sampling) -> _Loop:
    return _Decoder(policy, sampling).begin(params, text)


@partial(jax.jit, static_argnums=0, donate_argnums=4)
def _run_until(
    policy: LanguagePolicy, params: Params, text: _Text, sampling: Sampling, loop: _Loop, limit: ScalarLike
) -> _Loop:
    return _Decoder(policy, sampling).run_until(params, text, loop, limit)
