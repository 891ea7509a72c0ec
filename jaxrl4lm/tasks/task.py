"""The contract of a task: prompts with a verifiable reward, as pure JAX functions.

Shapes: `n` problems, `P` prompt tokens, `T` completion tokens.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from jaxrl4lm.arguments import last_token
from jaxrl4lm.data.tokenizer import CharacterTokenizer
from jaxrl4lm.types import Array, Key


class Prompts(NamedTuple):
    """Problems and their solutions. Each leaf has a leading axis n."""

    tokens: Array
    """int32 `[n, P]`, padded on the left."""
    mask: Array
    """bool `[n, P]`, True at real tokens; the last column is real."""
    answers: Array
    """int32 `[n, T]`: the solution with its end token, then padding."""
    answer_mask: Array
    """bool `[n, T]`, True up to and including the end token."""


class Task(NamedTuple):
    """A distribution of prompts and a reward, both jittable.

    `reward(prompts, completions [n, T], mask [n, T])` gives either one score for each completion, `[n]`, which is paid on
    its last token; or one reward for each token, `[n, T]`, which must not depend on later tokens.
    """

    name: str
    tokenizer: CharacterTokenizer
    prompt_length: int
    """P."""
    completion_length: int
    """T, the end token included."""
    sample: Callable[[Key, int], Prompts]
    """Training problems."""
    held_out: Callable[[Key, int], Prompts]
    """Problems that `sample` never gives."""
    reward: Callable[[Prompts, Array, Array], Array]


def exact_match(prompts: Prompts, completions: Array, mask: Array) -> Array:
    """1 where a completion is the answer with its end token, else 0: float32 `[n]`."""
    same = (completions == prompts.answers) | ~prompts.answer_mask
    return (same.all(-1) & (mask == prompts.answer_mask).all(-1)).astype(jnp.float32)


def token_rewards(rewards: Array, mask: Array) -> Array:
    """Rewards of tokens `[n, T]`. A score of each completion `[n]` is paid once, on its last real token."""
    if rewards.ndim == mask.ndim:
        return jnp.where(mask, rewards, 0.0)
    return jnp.where(last_token(mask), rewards[:, None], 0.0)


def split_by_residue(first: Array, rest_hash: Array, low: int, high: int, held_out: bool) -> Array:
    """Changes the first number of each problem as little as needed, so that all are held out or all are not.

    A problem is held out if (first − low − rest_hash) mod m = 0, where m is 11, or the number of values if it is smaller.

    Args:
      first: `[n]`, in [low, high].
      rest_hash: `[n]`, a hash of everything else in the problem.
      held_out: True for held-out problems, False for training problems.
    Returns:
      The first numbers `[n]`, in [low, high].
    """
    modulus = min(11, high - low + 1)
    residue = (first - low - rest_hash) % modulus
    if held_out:
        down = first - residue
        return jnp.where(down < low, down + modulus, down)
    step = jnp.where(first < high, 1, -1)
    return jnp.where(residue == 0, first + step, first)


def hash_integers(values: Array) -> Array:
    """A non-negative int32 hash of the integers along the last axis."""
    hashed = jnp.zeros(values.shape[:-1], jnp.uint32)
    for i in range(values.shape[-1]):
        hashed = (hashed ^ values[..., i].astype(jnp.uint32)) * jnp.uint32(2654435761)
        hashed = hashed ^ (hashed >> 15)
    return (hashed >> 8).astype(jnp.int32)


def append_end_token(
    digits: Array, length: Array, first_id: int, pad_id: int, eos_id: int
) -> tuple[Array, Array]:
    """Answer tokens `[n, T]` and their mask: the first `length` `[n]` digits of `[n, T - 1]`, the end token, padding."""
    width = digits.shape[1]
    index = jnp.arange(width + 1)[None]
    symbols = jnp.pad(digits + first_id, ((0, 0), (0, 1)))
    tokens = jnp.where(index < length[:, None], symbols, jnp.where(index == length[:, None], eos_id, pad_id))
    return tokens.astype(jnp.int32), index <= length[:, None]
