"""Compiled programs: kept on disk, so that a command's second start compiles nothing, and counted."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import jax


def enable_compilation_cache() -> None:
    """Turns on JAX's persistent cache, in `JAX_COMPILATION_CACHE_DIR` or the user's cache folder."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(base) / "jaxrl4lm" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@contextlib.contextmanager
def count_programs() -> Iterator[list[float]]:
    """Seconds of each program that is compiled, or read from the folder, until the block ends."""
    seconds: list[float] = []

    def note(event: str, duration_secs: float, **kwargs: str | int) -> None:
        del kwargs
        if event.endswith("backend_compile_duration"):
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
