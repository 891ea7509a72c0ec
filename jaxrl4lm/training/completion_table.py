"""Completions of an update as a table that people read: prompt, completion, what rewards say."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl4lm.data.files import Message
from jaxrl4lm.training.records import RESERVED
from jaxrl4lm.types import InputError


class CompletionLog(NamedTuple):
    """Which completions are kept to be read."""

    count: int = 4
    """Of an update, of different prompts as far as there are; 0: none."""
    every: int | None = None
    """Updates from table to table; None: those before an evaluation have one."""

    def check(self) -> None:
        """Raises InputError where a number does not fit."""
        if self.count < 0 or (self.every is not None and self.every < 1):
            raise InputError(
                f"a log of completions needs count >= 0 and every >= 1, not {self.count} and {self.every}"
            )

    def choose(self, step: int, last: int, groups: int, copies: int) -> list[int]:
        """The numbers of the completions of this step that are kept, those of a prompt being consecutive.

        Args:
          step: of `last` ones; that one always has a table.
        """
        if step % (self.every or 1) and step != last:
            return []
        count = min(self.count, groups * copies)
        return sorted(i % groups * copies + i // groups for i in range(count))


def tabulate(
    chosen: Sequence[int],
    prompts: Sequence[str | list[Message]],
    completions: Sequence[str],
    scores: Mapping[str, np.ndarray],
    columns: Mapping[str, list],
) -> list[dict[str, Any]]:
    """A row for each of the chosen completions; JSON, None where nothing is known.

    Args:
      prompts: one for each prompt, the completions of one after another.
      scores: `[completions]` by name.
      columns: what rewards say of each completion beside scores; one called as the row's own are is left out.
    """
    copies = len(completions) // len(prompts)
    rows = []
    for i in chosen:
        row = {"prompt": prompts[i // copies], "completion": completions[i]}
        row |= {name: float(values[i]) for name, values in scores.items()}
        others = {name: values for name, values in columns.items() if name not in (*RESERVED, *row)}
        rows.append(row | {name: _make_json(x[i]) if i < len(x) else None for name, x in others.items()})
    return rows


def _make_json(value: Any) -> Any:
    """A user's value: a number or a text as it is, anything else as it is printed."""
    if hasattr(value, "tolist"):  # of numpy, JAX or torch
        value = value.tolist()
    return value if value is None or isinstance(value, str | int | float) else str(value)
