"""Addition of numbers in decimal, "12+34=46"."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxrl4lm.data.tokenizer import SPECIAL, CharacterTokenizer
from jaxrl4lm.tasks.task import Prompts, Task, append_end_token, exact_match, hash_integers, split_by_residue
from jaxrl4lm.types import Array, Key

TOKENIZER = CharacterTokenizer("0123456789+=", bos_id=None)
PLUS, EQUALS = TOKENIZER.encode("+=")


def addition(digits: int = 2) -> Task:
    """Sums of two numbers without leading zeros, of exactly `digits` digits each.

    Raises:
      ValueError: if digits is not in 1..8 (sums are held in int32).
    """
    if not 1 <= digits <= 8:
        raise ValueError(f"digits must lie in 1..8, not {digits}")
    return Task(
        name=f"{digits}-digit addition",
        tokenizer=TOKENIZER,
        prompt_length=2 * digits + 2,
        completion_length=digits + 2,
        sample=partial(_sample_problems, digits=digits, held_out=False),
        held_out=partial(_sample_problems, digits=digits, held_out=True),
        reward=exact_match,
    )


def _sample_problems(key: Key, n: int, *, digits: int, held_out: bool) -> Prompts:
    low, high = (10 ** (digits - 1), 10**digits - 1) if digits > 1 else (0, 9)
    a, b = jax.random.randint(key, (2, n), low, high + 1)
    a = split_by_residue(a, hash_integers(b[:, None]), low, high, held_out)
    plus, equals = (jnp.full((n, 1), symbol, jnp.int32) for symbol in (PLUS, EQUALS))
    tokens = jnp.concatenate(
        [_to_decimal(a, digits) + SPECIAL, plus, _to_decimal(b, digits) + SPECIAL, equals], axis=1
    )
    total = a + b
    length = digits + (total >= 10**digits)
    # Without a leading zero: the digits of a short sum start one place further on.
    places = _to_decimal(total, digits + 1)
    shift = (digits + 1 - length)[:, None] + jnp.arange(digits + 1)[None]
    places = jnp.take_along_axis(places, jnp.minimum(shift, digits), axis=1)
    answers, answer_mask = append_end_token(places, length, SPECIAL, TOKENIZER.pad_id, TOKENIZER.eos_id)
    return Prompts(tokens, jnp.ones(tokens.shape, bool), answers, answer_mask)


def _to_decimal(numbers: Array, digits: int) -> Array:
    """Decimal digits `[n, digits]`, most significant first."""
    powers = jnp.array([10**i for i in reversed(range(digits))], jnp.int32)
    return numbers[:, None] // powers[None] % 10
