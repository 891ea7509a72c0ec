"""The code that the README shows runs as shown."""

import ast
import pathlib
import re

import pytest

README = pathlib.Path(__file__).parent.parent / "README.md"


def learned(scope):
    return scope["curve"][0] < 0.2 and scope["curve"][-1] > 0.7


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
    # The training step is short, as the text promises.
    steps = [node for node in ast.walk(ast.parse(code[1])) if getattr(node, "name", "") == "train_step"]
    assert all(node.end_lineno - node.lineno < 15 for node in steps)
    scope = {}
    exec(compile(code[1], str(README), "exec"), scope)
    assert holds(scope)
