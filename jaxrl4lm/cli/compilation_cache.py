"""Compiled programs kept on disk, so that a command's second start compiles nothing."""

import os
import pathlib

import jax


def enable_compilation_cache() -> None:
    """Turns on JAX's persistent cache, in `JAX_COMPILATION_CACHE_DIR` or the user's cache folder."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(base) / "jaxrl4lm" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
