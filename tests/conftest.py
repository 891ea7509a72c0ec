"""Strictness for every test: rank promotion raises, warnings are errors, two CPU devices. And speed: programs are
compiled once, without most optimizations."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Nearly all programs of these tests take longer to compile than to run. As variables, for processes of tests as well.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

if jax.config.read("jax_disable_most_optimizations") and jax.__version_info__ < (0, 11):
    # The older emitter of loops takes a third less time to compile; later versions no longer have it.
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def programs(tmp_path_factory) -> pathlib.Path:
    """A folder of compiled programs: what one test has compiled, no other compiles again, in no process."""
    own = tmp_path_factory.getbasetemp()  # of a worker: a folder in that of the whole run
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "programs"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    compilation_cache.reset_cache()
    return folder


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield
