"""Rewards as JAX functions of token ids: part of the compiled program that draws the completions.

Shapes: `B` completions, `P` prompt tokens, `T` completion tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxrl4lm.data.corpus import bucket, pad
from jaxrl4lm.types import Array


class TokenReward:
    """A reward that is a JAX function of token ids. `@TokenReward` above a function without parameters makes one.

    >>> @TokenReward
    ... def brevity(prompts, prompt_mask, completions, mask):
    ...     return -0.1 * mask.sum(-1)
    """

    def __init__(self, score: Callable[..., Array], params: Any = None, *, name: str | None = None):
        """Takes the function.

        Args:
          score: `([params,] prompts [B, P], prompt_mask, completions [B, T], mask)` -> rewards `[B]`; prompts are padded on
            the left, completions on the right.
          params: a pytree that the function reads, its first argument then: an argument of the program, no constant in it.
          name: for messages and metrics; that of the function if None.
        """
        self.__name__ = name or getattr(score, "__name__", "reward")
        self.__doc__ = score.__doc__
        self.params = params
        self._score = score
        self._compiled = jax.jit(self.score)

    def score(
        self, params: Any, prompts: Array, prompt_mask: Array, completions: Array, mask: Array
    ) -> Array:
        """Rewards `[B]`, to be called in a program that has `params` as an argument."""
        given = () if self.params is None else (params,)
        return self._score(*given, prompts, prompt_mask, completions, mask)

    def __call__(
        self, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """Rewards `[B]` of completions that were drawn elsewhere."""
        sides = ((prompt_ids, True), (completion_ids, False))
        padded = (pad(ids, bucket(max(map(len, ids))), 0, left=left) for ids, left in sides)
        return np.asarray(self._compiled(self.params, *(x for pair in padded for x in pair)))
