"""Every public function of the ground floor says what it takes, what it gives, in which shapes, and from where."""

import importlib
import inspect
import pkgutil
import re

import pytest

import jaxrl4lm.losses

MODULES = [f"jaxrl4lm.{name}" for name in ("returns", "advantages", "reduce", "distributions", "diagnostics")]
MODULES += [f"jaxrl4lm.losses.{module.name}" for module in pkgutil.iter_modules(jaxrl4lm.losses.__path__)]

# Our own plumbing and textbook definitions: there is no paper to cite.
WITHOUT_SOURCE = {
    "jaxrl4lm.reduce": {
        "add",
        "divide",
        "masked_mean",
        "masked_variance",
        "sequence_sum",
        "sequence_sum_fraction",
        "spread",
        "whiten",
    },
    "jaxrl4lm.returns": {"sequential_recurrence"},
    "jaxrl4lm.losses.importance": {"probability_ratio"},
    "jaxrl4lm.losses.kl": {
        "fixed_controller",
        # derived, and proven by enumeration in tests/losses/test_enumeration.py
        "k3_value_k2_gradient",
        "sequence_k2",
        "sequence_ratio_k1",
        "sequence_ratio_k3",
    },
    "jaxrl4lm.losses.language_model": {"next_token_cross_entropy"},
    "jaxrl4lm.losses.ppo": {"clip_range"},
}
DEFINITIONS = {"jaxrl4lm.distributions", "jaxrl4lm.diagnostics"}


def public_functions():
    for name in MODULES:
        module = importlib.import_module(name)
        for member in vars(module).values():
            ours = inspect.isfunction(member) and member.__module__ == name
            if ours and not member.__name__.startswith("_"):
                yield pytest.param(module, member, id=f"{name}.{member.__name__}")


def text(module, function):
    """The docstring, and those to which it refers for other arguments."""
    own = inspect.getdoc(function) or ""
    referred = re.search(r"rguments(?: and result)?\s+as\s+of\s+`(\w+)`", own)
    return own + ("\n" + text(module, vars(module)[referred[1]]) if referred else "")


@pytest.mark.parametrize("module, function", public_functions())
def test_docstring(module, function):
    own, whole = inspect.getdoc(function) or "", text(module, function)
    summary = own.split("\n\n")[0]
    assert "\n" not in summary
    assert summary.endswith((".", "?"))
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"(?m)^  \*?{parameter}: ", whole), f"{parameter} is not described"
    assert "Returns:" in whole
    sourceless = module.__name__ in DEFINITIONS or function.__name__ in WITHOUT_SOURCE.get(
        module.__name__, ()
    )
    assert sourceless or "Reference:" in whole
    assert not (sourceless and "Reference:" in own)


@pytest.mark.parametrize("module, function", public_functions())
def test_what_raises_says_so(module, function):
    if "raise ValueError" in inspect.getsource(function):
        assert "Raises:\n  ValueError: " in text(module, function)
