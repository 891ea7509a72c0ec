"""The token-level MDP of a small task, written out: every text, every completion, every reward.

Shapes: `G` prompts, `S` prefixes that a token may follow, `L` texts of full length, `N` completions, `T` tokens, `V` ids.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.mdp import FiniteMDP, from_successors
from jaxrl4lm.tasks.task import Prompts, Task, token_rewards
from jaxrl4lm.types import Array, InputError

MOST = 10**6
"""The most completions that are written out."""


class TokenTree(NamedTuple):
    """All that may follow some prompts. A completion that ends early is there once, so that probabilities sum to 1.

    Texts are numbered by length, then in the order of their ids: text 0 is empty, texts 0 … S−1 may go on, and texts
    S … S+L−1 have the full length without an end token.
    """

    prompts: Prompts
    """Of `G` problems."""
    texts: Array
    """int32 `[S + L, T]`, padded."""
    successors: Array
    """int32 `[S, V]`: the text that a prefix and a token make; −1 where the token ends it."""
    rewards: Array
    """Float `[G, S, V]`: what a token pays after a prefix."""
    completions: Array
    """int32 `[N, T]`, padded."""
    mask: Array
    """bool `[N, T]`: True up to and including the end token."""
    truncated: Array
    """bool `[N]`: of full length without an end token."""
    states: Array
    """int32 `[N, T]`: the prefix before each token; 0 where masked."""

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """How many texts have 0, 1, … T tokens; of the shapes alone."""
        prefixes = self.successors.shape[0]
        branches = (self.texts.shape[0] - prefixes - 1) // prefixes + 1
        return tuple(branches**length for length in range(self.texts.shape[1] + 1))

    def token_rewards(self) -> Array:
        """Rewards of the tokens of all completions `[G, N, T]`."""
        return jnp.where(self.mask[None], self.rewards[:, self.states, self.completions], 0.0)


def grow(task: Task, prompts: Prompts) -> TokenTree:
    """Writes out everything that may follow these prompts of a task.

    Any id but the tokenizer's end tokens may stand in a text, its pad token included: a policy may say it.

    Raises:
      InputError: if there are more than `MOST` completions.
    """
    V, T, G = task.tokenizer.vocab_size, task.completion_length, prompts.tokens.shape[0]
    ending = np.isin(np.arange(V), task.tokenizer.eos_ids)
    letters = np.flatnonzero(~ending)
    sizes = [len(letters) ** length for length in range(T + 1)]
    count = G * (sum(sizes[:-1]) * int(ending.sum()) + sizes[-1])
    if count > MOST:
        raise InputError(
            f"{task.name!r} has {count:,} completions of {T} tokens out of {V} after {G} prompts: exact answers need a task"
            f" of at most {MOST:,}"
        )
    texts, lengths = _write_texts(letters, sizes, T, task.tokenizer.pad_id)
    S = sum(sizes[:-1])
    first = np.concatenate([[0], np.cumsum(sizes)])
    codes = np.arange(len(texts)) - first[lengths]
    digits = np.cumsum(~ending) - 1
    follows = first[lengths[:S] + 1] + codes[:S] * len(letters)
    successors = np.where(ending, -1, follows[:, None] + digits)
    longer = np.broadcast_to(texts[:S, None], (S, V, T)).copy()
    np.put_along_axis(
        longer, np.broadcast_to(lengths[:S, None, None], (S, V, 1)), np.arange(V)[None, :, None], -1
    )
    reach = np.arange(T) <= lengths[:S, None]
    finished = ending[None] | (lengths[:S, None] == T - 1)
    ends, tokens = np.nonzero(finished)
    back = lengths[ends, None] - np.arange(T)
    before = first[np.arange(T)] + codes[ends, None] // len(letters) ** np.maximum(back, 0)
    return TokenTree(
        prompts=prompts,
        texts=jnp.asarray(texts, jnp.int32),
        successors=jnp.asarray(successors, jnp.int32),
        rewards=_pay(task, prompts, longer, reach, finished),
        completions=jnp.asarray(longer[ends, tokens], jnp.int32),
        mask=jnp.asarray(reach[ends]),
        truncated=jnp.asarray(~ending[tokens]),
        states=jnp.asarray(np.where(reach[ends], before, 0), jnp.int32),
    )


def _write_texts(letters: np.ndarray, sizes: list[int], T: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """All texts without an end token `[S + L, T]`, and their lengths."""
    texts = np.full((sum(sizes), T), pad_id)
    lengths = np.repeat(np.arange(T + 1), sizes)
    for length in range(1, T + 1):
        places = len(letters) ** np.arange(length)[::-1]
        codes = np.arange(sizes[length])[:, None]
        texts[lengths == length, :length] = letters[codes // places % max(len(letters), 1)]
    return texts, lengths


def _pay(task: Task, prompts: Prompts, longer: np.ndarray, reach: np.ndarray, finished: np.ndarray) -> Array:
    """Rewards `[G, S, V]` of the last token of each text `[S, V, T]`. A score of a whole completion is paid at its end."""
    G, (S, V, T) = prompts.tokens.shape[0], longer.shape
    mask = np.broadcast_to(reach[:, None], longer.shape).reshape(-1, T)
    mask = jnp.asarray(np.tile(mask, (G, 1)))
    texts = jnp.asarray(np.tile(longer.reshape(-1, T), (G, 1)), jnp.int32)
    paid = jnp.asarray(
        task.reward(jax.tree.map(lambda x: jnp.repeat(x, S * V, 0), prompts), texts, mask), float
    )
    last = (
        token_rewards(paid, mask).sum(-1)
        if paid.ndim == 1
        else jnp.take_along_axis(paid, mask.sum(-1, keepdims=True) - 1, axis=1)[:, 0]
    )
    last = last.reshape(G, S, V)
    return jnp.where(finished[None], last, 0.0) if paid.ndim == 1 else last


def as_finite_mdp(tree: TokenTree, discount: float = 1.0) -> FiniteMDP:
    """The tree as a finite MDP: states are prefixes and actions are tokens.

    State g·S + s is prefix s after prompt g; the last state is the end, worth 0. The first state is an empty text, after each
    prompt with the same probability.
    """
    G, S, V = tree.rewards.shape
    following = np.asarray(tree.successors)
    going = (following >= 0) & (following < S)
    offsets = S * np.arange(G)[:, None, None]
    successors = np.full((G * S + 1, V, 1), G * S)
    successors[:-1] = np.where(going, following + offsets, G * S).reshape(G * S, V, 1)
    rewards = np.concatenate([np.asarray(tree.rewards).reshape(G * S, V), np.zeros((1, V))])
    initial = np.zeros(G * S + 1)
    initial[:-1:S] = 1 / G
    return from_successors(
        successors,
        np.ones(successors.shape),
        rewards,
        discount,
        terminal=np.arange(G * S + 1) == G * S,
        initial=initial,
        horizon=tree.texts.shape[1],
    )
