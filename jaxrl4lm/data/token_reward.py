"""Rewards as JAX functions of token ids: part of the compiled program that draws the completions.

Shapes: `B` completions, `P` prompt tokens, `T` completion tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxrl4lm.data.corpus import bucket, pad
from jaxrl4lm.types import Array, InputError
from jaxrl4lm.user_file import describe_error


class TokenReward:
    """A reward that is a JAX function of token ids. `@TokenReward` above a function without parameters makes one.

    >>> @TokenReward
    ... def brevity(prompts, prompt_mask, completions, mask):
    ...     return -0.1 * mask.sum(-1)

    It applies to every completion: where it is no finite number, the run stops.
    """

    def __init__(self, score: Callable[..., Array], params: Any = None, *, name: str | None = None):
        """Takes the function.

        Args:
          score: `([params,] prompts [B, P], prompt_mask, completions [B, T], mask)` -> rewards `[B]`; prompts are padded on
            the left, completions on the right, to the most tokens that one may have. The mask has the end token.
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

    def check(self, name: str, room: int) -> None:
        """Refuses a function that cannot be traced, or gives another shape.

        Args:
          name: of the reward, for the message.
          room: the most tokens of a completion.
        Raises:
          InputError: saying what is wrong.
        """
        completions, prompts = (
            (jax.ShapeDtypeStruct((4, width), dtype) for dtype in (np.int32, bool)) for width in (room, 8)
        )
        try:
            said = jax.eval_shape(self.score, self.params, *prompts, *completions)
        except Exception as error:  # whatever the user's function does wrong
            raise InputError(
                f"the reward {name} raised {describe_error(error)}: mend the function"
            ) from error
        if getattr(said, "shape", None) != (4,):
            raise InputError(
                f"the reward {name} gives {said} of 4 completions: return an array of shape (4,), a number for each"
            )

    def __call__(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        room: int | None = None,
    ) -> np.ndarray:
        """Rewards `[B]` of completions that were drawn elsewhere.

        Args:
          room: T, the most tokens of a completion; enough for these if None.
        """
        room = room or bucket(max(map(len, completion_ids)))
        prompts = pad(prompt_ids, bucket(max(map(len, prompt_ids))), 0, left=True)
        return np.asarray(self._compiled(self.params, *prompts, *pad(completion_ids, room, 0, left=False)))
