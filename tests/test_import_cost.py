"""The losses come alone: importing them brings no framework, and every name is where users look for it."""

import importlib
import pkgutil
import subprocess
import sys

import jaxrl4lm.losses

HEAVY = ["flax", "gymnax", "matplotlib", "optax", "chex", "orbax", "torch", "tensorflow"]


def test_imports_are_light():
    code = (
        "import sys, jaxrl4lm.losses, jaxrl4lm.returns, jaxrl4lm.advantages, jaxrl4lm.diagnostics\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_function_is_at_the_top():
    """What a user would call in a sub-module of `losses` is also `losses.<name>`, and in its `__all__`."""
    shared_between_modules = {"clip_range", "clipped_surrogate", "log1mexp"}
    returned_not_called = {"Controller", "StepInfo"}
    found = set()
    for info in pkgutil.iter_modules(jaxrl4lm.losses.__path__):
        module = importlib.import_module(f"jaxrl4lm.losses.{info.name}")
        assert getattr(jaxrl4lm.losses, info.name) is module
        for name, member in vars(module).items():
            defined_here = getattr(member, "__module__", None) == module.__name__
            if defined_here and not name.startswith("_"):
                found.add(name)
                if name not in shared_between_modules | returned_not_called:
                    assert getattr(jaxrl4lm.losses, name) is member
                    assert name in jaxrl4lm.losses.__all__
    assert len(found) > 60
