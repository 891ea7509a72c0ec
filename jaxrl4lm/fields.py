"""Fields of the records of hyper-parameters: numbers, which may be traced, and sizes, which are static; each says its own range.

The options of the command line read the same ranges.
"""

import dataclasses
import math
from dataclasses import field
from typing import Any

import numpy as np

from jaxrl4lm.types import InputError

LARGEST = 1e30
"""Numbers beyond it overflow in float32 arithmetic."""
LARGEST_COUNT = 2**31 - 1
"""Counters are int32."""


def number(
    default: Any, *, above: float | None = None, least: float | None = None, most: float | None = None
):
    """A field that may be traced, and its range: `above` is excluded, `least` and `most` are included."""
    return field(default=default, metadata={"above": above, "least": least, "most": most})


def size(
    default: Any,
    *,
    above: float | None = None,
    least: float | None = 1,
    most: float | None = None,
    whole: bool = True,
):
    """A field that is part of the program, not an argument of it, and its range."""
    bounds = {"above": above, "least": least, "most": most}
    return field(default=default, metadata={"static": True, "whole": whole, **bounds})


def check_count(name: str, count: Any, least: int = 0) -> None:
    """Raises InputError, naming it, unless it is a whole number of at least so much."""
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < least:
        raise InputError(f"{name} must be a whole number, {least} or more, not {count!r}")


def find_out_of_range(record: Any) -> tuple[str, str] | None:
    """(field, what is wrong with its value) of the first number of a dataclass that is outside of its range.

    Traced values and arrays are not looked at.
    """
    for each in dataclasses.fields(record):
        value = getattr(record, each.name)
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, str) and "least" in each.metadata:
            return each.name, f"must be a number, not {value!r}"
        if isinstance(value, float) and each.metadata.get("whole"):
            return each.name, f"must be a whole number, not {value}"
        if isinstance(value, bool) or not isinstance(value, int | float) or "least" not in each.metadata:
            continue
        above, least, most = (each.metadata[bound] for bound in ("above", "least", "most"))
        largest = LARGEST_COUNT if isinstance(value, int) else LARGEST
        if math.isnan(value) or (math.isinf(value) and most != math.inf):
            return each.name, f"must be a finite number, not {value}"
        if above is not None and value <= above:
            return each.name, f"must be {'positive' if above == 0 else f'above {above:g}'}, not {value}"
        if least is not None and value < least:
            words = {0: "not be negative", 1: "be positive" if value <= 0 else "be at least 1"}
            return each.name, f"must {words.get(int(least), f'be at least {least:g}')}, not {value}"
        if most is not None and value > most:
            words = f"lie in 0..{most:g}" if least == 0 else f"be at most {most:g}"
            return each.name, f"must {words}, not {value}"
        if value > largest and most != math.inf:
            return each.name, f"must be at most {largest}, not {value}"
    return None


def find_range(record: Any, name: str) -> tuple[float | None, float, float]:
    """(above, least, most) of a number of a dataclass; above is excluded, None: there is none.

    Raises:
      InputError: if it has no such number, or one that is part of the program.
    """
    free = {each.name: each.metadata for each in dataclasses.fields(record) if "least" in each.metadata}
    free = {each: bounds for each, bounds in free.items() if not bounds.get("static")}
    if name not in free:
        raise InputError(
            f"{name} is no number that may differ between members: give some of {', '.join(free)}"
        )
    above, least, most = (free[name][bound] for bound in ("above", "least", "most"))
    return above, -math.inf if least is None else least, math.inf if most is None else most
