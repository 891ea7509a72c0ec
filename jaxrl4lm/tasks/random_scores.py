"""A task whose completions can all be written down: each pays a number of its own."""

import jax
import jax.numpy as jnp

from jaxrl4lm.data.tokenizer import BOS, SPECIAL, CharacterTokenizer
from jaxrl4lm.tasks.task import Prompts, Task
from jaxrl4lm.types import Array, InputError, Key

LARGEST = 10**6
"""Texts that have a number."""


def lottery(vocabulary: int = 3, length: int = 3, seed: int = 0, *, highest: float = 1.0) -> Task:
    """One prompt, after which each completion of at most `length` tokens pays what was drawn for it between 0 and `highest`.

    Nothing is to be understood: it is for measuring how far a policy is from the best one (`lm.exact`). Training and held-out
    problems are the same.

    Args:
      vocabulary: how many ids there are; one of them ends a completion, and a policy may say all others.
      length: the most tokens.
      seed: decides what completions pay.
      highest: the most that one can pay.
    Raises:
      InputError: if a size is too small, or there would be more than `LARGEST` texts.
    """
    if vocabulary < SPECIAL or length < 1:
        raise InputError(
            f"vocabulary is {vocabulary} and length {length}: give at least {SPECIAL} ids (pad, end, begin) and 1 token"
        )
    if vocabulary**length > LARGEST:
        raise InputError(
            f"vocabulary is {vocabulary} and length {length}, which make {vocabulary**length:,} texts: give at most"
            f" {LARGEST:,}"
        )
    tokenizer = CharacterTokenizer("".join(chr(ord("a") + i) for i in range(vocabulary - SPECIAL)))
    numbers = jax.random.uniform(jax.random.key(seed), (vocabulary,) * length, maxval=highest)

    def sample(key: Key, n: int) -> Prompts:
        del key
        prompt = jnp.full((n, 1), BOS, jnp.int32)
        nothing = jnp.zeros((n, length), jnp.int32)
        return Prompts(prompt, jnp.ones((n, 1), bool), nothing, nothing.astype(bool))

    def reward(prompts: Prompts, completions: Array, mask: Array) -> Array:
        del prompts
        return numbers[tuple(jnp.where(mask, completions, tokenizer.pad_id).T)]

    return Task(
        name=f"lottery of {length} tokens",
        tokenizer=tokenizer,
        prompt_length=1,
        completion_length=length,
        sample=sample,
        held_out=sample,
        reward=reward,
    )
