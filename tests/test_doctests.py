"""The examples in docstrings give what they show."""

import doctest
import importlib
import pkgutil

import pytest

import jaxrl4lm.losses

MODULES = [
    f"jaxrl4lm.{name}"
    for name in ("arguments", "reduce", "distributions", "returns", "advantages", "diagnostics")
]
MODULES += [f"jaxrl4lm.losses.{module.name}" for module in pkgutil.iter_modules(jaxrl4lm.losses.__path__)]
MODULES += [f"jaxrl4lm.data.{name}" for name in ("packing", "preview", "sources", "text_stream")]
MODULES += ["jaxrl4lm.models.partitioning"]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0
