"""Programs of these tests take longer to compile than to run."""

import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def quickly_compiled():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
