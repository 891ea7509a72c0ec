"""The code that the README shows runs as shown."""

import ast
import inspect
import pathlib
import re

import pytest

from jaxrl4lm import advantages, losses, reduce, returns

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


def functions_of_the_table():
    """`module.name`, and names after it of the same module; `name(arguments)` and `name(_suffix)` as well."""
    table = README.read_text().split("### Which function is which paper", 1)[1].split("\n### ", 1)[0]
    rooms = {"losses": losses, "advantages": advantages, "reduce": reduce, "returns": returns}
    for cell in re.findall(r"(?m)^\| (`[^|]*`) \|", table):
        for name in re.findall(r"`([\w.]+)(?:\(([^`]*)\))?`", cell):
            first, *rest = name[0].split(".")
            if first in rooms:
                room = rooms[first]
            else:
                rest = [first, *rest]
            for suffix in ["", name[1]] if name[1].startswith("_") else [""]:
                member = room
                for part in rest:
                    member = getattr(member, part + suffix if part is rest[-1] else part)
                yield member


def test_the_table_names_every_function_and_no_other():
    named = set(functions_of_the_table())
    public = {getattr(losses, name) for name in losses.__all__}
    for module in (advantages, reduce, returns):
        public |= {f for name, f in vars(module).items() if not name.startswith("_")}
    ours = {f for f in public if inspect.isfunction(f) and f.__module__.startswith("jaxrl4lm.")}
    plumbing = {f for f in ours if f.__module__ == "jaxrl4lm.arguments"}
    assert named == ours - plumbing
