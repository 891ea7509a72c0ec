"""Which cases of an exhaustive parametrisation run each time, and which with the slow tests."""

from collections.abc import Iterable

import pytest


def mark_slow(case):
    """The case, an element of `argvalues` of `pytest.mark.parametrize`, as one of the slow tests."""
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.slow)


def spread(cases: Iterable, fast: int) -> list:
    """The cases, all but `fast` of them marked slow: the first, and others as far from each other as they can be."""
    cases = list(cases)
    kept = {i * len(cases) // fast for i in range(fast)}
    return [case if i in kept else mark_slow(case) for i, case in enumerate(cases)]
