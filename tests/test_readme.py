"""The code that the README shows runs as shown."""

import pathlib
import re

import pytest

README = pathlib.Path(__file__).parent.parent / "README.md"


def learned(scope):
    return scope["after"] < scope["before"]


def population(scope):
    return scope["metrics"]["reward/mean"].shape == (4, 3, 20)


@pytest.mark.parametrize(
    "heading, holds",
    [("## Use the losses in your own JAX code", learned), ("### A population in Python", population)],
    ids=["losses", "population"],
)
def test_example(heading, holds):
    code = re.search(r"```python\n(.*?)```", README.read_text().split(heading, 1)[1], re.DOTALL)
    assert code, f"{heading} has no Python block"
    scope = {}
    exec(compile(code.group(1), str(README), "exec"), scope)
    assert holds(scope)
