"""Tasks over strings of decimal digits: sort, reverse, and counting with a reward for every token."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl4lm.data.tokenizer import SPECIAL, CharacterTokenizer
from jaxrl4lm.tasks.task import Prompts, Task, append_end_token, exact_match, hash_integers, split_by_residue
from jaxrl4lm.types import Array, Key

TOKENIZER = CharacterTokenizer("0123456789=", bos_id=None)
EQUALS = TOKENIZER.encode("=")[0]


def sort(length: int = 5) -> Task:
    """Sorts digits: "31524=" → "12345"."""
    return _make_string_task("sort", length, lambda symbols: jnp.sort(symbols, axis=-1), exact_match)


def reverse(length: int = 5) -> Task:
    """Reverses digits: "31524=" → "42513"."""
    return _make_string_task("reverse", length, lambda symbols: symbols[:, ::-1], exact_match)


def copy(length: int = 5) -> Task:
    """Repeats digits. The reward is dense: each right token, the end token included, pays 1 / (length + 1)."""

    def reward(prompts: Prompts, completions: Array, mask: Array) -> Array:
        return ((completions == prompts.answers) & prompts.answer_mask & mask) / (length + 1)

    return _make_string_task("copy", length, lambda symbols: symbols, reward)


def _make_string_task(
    name: str,
    length: int,
    solve: Callable[[Array], Array],
    reward: Callable[[Prompts, Array, Array], Array],
) -> Task:
    if length < 2:
        raise ValueError(f"length must be at least 2, not {length}")

    def sample_problems(key: Key, n: int, held_out: bool) -> Prompts:
        symbols = jax.random.randint(key, (n, length), 0, 10)
        first = split_by_residue(symbols[:, 0], hash_integers(symbols[:, 1:]), 0, 9, held_out)
        symbols = symbols.at[:, 0].set(first)
        tokens = jnp.concatenate([symbols + SPECIAL, jnp.full((n, 1), EQUALS)], axis=1).astype(jnp.int32)
        answers, answer_mask = append_end_token(
            solve(symbols), jnp.full((n,), length), SPECIAL, TOKENIZER.pad_id, TOKENIZER.eos_id
        )
        return Prompts(tokens, jnp.ones(tokens.shape, bool), answers, answer_mask)

    return Task(
        name=f"{name} of {length} digits",
        tokenizer=TOKENIZER,
        prompt_length=length + 1,
        completion_length=length + 1,
        sample=lambda key, n: sample_problems(key, n, held_out=False),
        held_out=lambda key, n: sample_problems(key, n, held_out=True),
        reward=reward,
    )
