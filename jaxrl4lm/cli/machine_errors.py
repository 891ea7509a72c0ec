"""Errors of the machine's, its disk and its memory, and of what a program calls, as sentences for its user."""

import os

import jax

from jaxrl4lm.types import InputError

CALLED = f"\n{InputError.__name__}: "
"""What XLA writes before the message of an `InputError` that a callback of a program has raised."""
COPIES = 5
"""Float32 numbers a parameter: itself, its reference, its gradient and Adam's two moments."""


def check_memory(parameters: int, what: str) -> None:
    """Raises InputError where a model of so many parameters cannot be trained here, before anybody waits for it."""
    statistics = jax.devices()[0].memory_stats()
    if statistics:
        there = statistics["bytes_limit"]
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = 4 * COPIES * parameters
    if needed > there:
        raise InputError(
            f"{what} is a model of {parameters:,} parameters, which take {needed / 2**30:,.0f} GiB to train, and this "
            f"machine has {there / 2**30:,.0f}: choose smaller sizes"
        )


def explain_error(error: BaseException) -> InputError | None:
    """What to tell the user, or None where the error is not of the machine's (or only says that nobody reads our output)."""
    if CALLED in str(error):  # a JaxRuntimeError of a first call, a plain ValueError of later ones
        return InputError(str(error).rpartition(CALLED)[2].strip())
    if isinstance(error, OSError) and error.strerror and not isinstance(error, BrokenPipeError):
        what = f"{error.filename} cannot be used" if error.filename else "a file cannot be written"
        return InputError(f"{what} ({error.strerror}): make room, or mend the path and its permissions")
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return InputError(
            f"the memory of this machine is too small ({' '.join(str(error).split())[:120] or 'out of memory'}): choose "
            "smaller sizes, shorter texts, or more --micro-batches"
        )
    return None
