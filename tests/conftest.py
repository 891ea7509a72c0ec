"""Strictness for every test: rank promotion raises, warnings are errors, two CPU devices. And speed: programs are
compiled once, without most optimizations."""

import gc
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Nearly all programs of these tests take longer to compile than to run. As variables, for processes of tests as well.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import pytest

if jax.config.read("jax_disable_most_optimizations") and jax.__version_info__ < (0, 11):
    # The older emitter of loops takes a third less time to compile; later versions no longer have it.
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")


MOST_MAPS = 30_000
"""What a process of these tests may hold of memory maps. Linux ends one that has 65,530 (vm.max_map_count), and a
compiled program holds dozens."""

LARGEST_CACHE = 2 * 1024**3
"""Bytes of compiled programs that are kept from one run to the next."""


def pytest_configure(config):
    """Choose the folder of compiled programs: what one test has compiled, no other compiles again, in no process and
    in no later run."""
    gc.set_threshold(200_000, 100, 100)  # traces make many objects and few cycles
    folder = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("programs")))
    jax.config.update("jax_compilation_cache_dir", folder)
    if not hasattr(config, "workerinput"):  # before the workers begin
        remove_least_used(pathlib.Path(folder), LARGEST_CACHE)


def remove_least_used(folder: pathlib.Path, most: int) -> None:
    """Remove files until at most so many bytes are left, first those that were not read for longest."""
    held = 0
    for file in sorted(folder.glob("*-cache"), key=lambda file: file.stat().st_atime, reverse=True):
        held += file.stat().st_size
        if held > most:
            file.unlink()


@pytest.fixture(autouse=True)
def few_memory_maps():
    """Let compiled programs go where they are many: those that are called again come back from the folder."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    held = maps.read_bytes().count(b"\n") if maps.exists() else 0
    if held > MOST_MAPS // 2:
        jax.clear_caches()
        gc.collect()
    assert held <= MOST_MAPS, f"this process holds {held} memory maps"


@pytest.fixture(scope="session")
def programs(tmp_path_factory) -> pathlib.Path:
    """A folder for the compiled programs of processes that may be killed, of this run alone: a kill may tear one."""
    own = tmp_path_factory.getbasetemp()  # of a worker: a folder in that of the whole run
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "programs"


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield
