"""Which cases of an exhaustive parametrisation run each time, and which with the slow tests."""

from collections.abc import Collection, Iterable

import pytest


def slow_but(cases: Iterable, fast: int | Collection) -> list:
    """The cases for `pytest.mark.parametrize`, marked slow but for some.

    Args:
      fast: those that are not, or how many are not: then the first and others, equally far from each other.
    """
    cases = list(cases)
    if isinstance(fast, int):
        kept = {i * len(cases) // fast for i in range(fast)}
        return [case if i in kept else _mark(case) for i, case in enumerate(cases)]
    assert all(case in cases for case in fast)
    return [case if case in fast else _mark(case) for case in cases]


def _mark(case):
    if hasattr(case, "marks"):  # a `pytest.param`
        return pytest.param(*case.values, id=case.id, marks=pytest.mark.slow)
    return pytest.param(*(case if type(case) is tuple else (case,)), marks=pytest.mark.slow)
