"""Every public function of the ground floor says what it takes, what it gives, in which shapes, and from where."""

import importlib
import inspect
import pkgutil
import re

import pytest

import jaxrl4lm.losses

MODULES = [f"jaxrl4lm.{name}" for name in ("returns", "advantages", "reduce", "distributions", "diagnostics")]
MODULES += [f"jaxrl4lm.losses.{module.name}" for module in pkgutil.iter_modules(jaxrl4lm.losses.__path__)]


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
    assert re.search(r"(?m)^Reference: \S", whole)


@pytest.mark.parametrize("module, function", public_functions())
def test_a_loss_says_its_units_and_where_gradients_flow(module, function):
    """A function that takes log-probs or logits is in nats; gradients flow, or the result is a constant."""
    whole = text(module, function)
    parameters = "".join(inspect.signature(function).parameters)
    if "log_prob" in parameters or "logits" in parameters:
        assert "nats" in whole + (module.__doc__ or "")
    assert re.search(r"[Gg]radient|constant", whole)


@pytest.mark.parametrize("module, function", public_functions())
def test_what_raises_says_so(module, function):
    if "raise ValueError" in inspect.getsource(function):
        assert "Raises:\n  ValueError: " in text(module, function)
