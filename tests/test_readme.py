"""The code that the README shows runs as shown."""

import pathlib
import re

import pytest

README = pathlib.Path(__file__).parent.parent / "README.md"
HEADING = "Use the losses in your own JAX code"


def test_losses_example():
    text = README.read_text()
    if HEADING not in text:
        pytest.skip("the section is not in the README yet")
    code = re.search(r"```python\n(.*?)```", text.split(HEADING, 1)[1], re.DOTALL)
    assert code, "the section has no Python block"
    scope = {}
    exec(compile(code.group(1), str(README), "exec"), scope)
    assert scope["after"] < scope["before"]
