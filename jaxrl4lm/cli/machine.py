"""Errors of the machine's, its disk and its memory, as sentences for its user."""

from jaxrl4lm.types import InputError


def explained(error: BaseException) -> InputError | None:
    """What to tell the user, or None where the error is not of the machine's (or only says that nobody reads our output)."""
    if isinstance(error, OSError) and error.strerror and not isinstance(error, BrokenPipeError):
        what = f"{error.filename} cannot be used" if error.filename else "a file cannot be written"
        return InputError(f"{what} ({error.strerror}): make room, or mend the path and its permissions")
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return InputError(
            f"the memory of this machine is too small ({' '.join(str(error).split())[:120] or 'out of memory'}): choose "
            "smaller sizes, shorter texts, or more --micro-batches"
        )
    return None
