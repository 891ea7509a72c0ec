"""The code that the README shows runs as shown."""

import ast
import inspect
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import pytest

from jaxrl4lm import advantages, losses, models, reduce, returns

README = pathlib.Path(__file__).parent.parent / "README.md"


def learned(scope):
    return scope["curve"][0] < 0.2 and scope["curve"][-1] > 0.7


def population(scope):
    return scope["metrics"]["reward/mean"].shape == (4, 3, 20)


def solved(scope):
    solution = scope["solution"]
    return solution.converged and abs(solution.values[0] - 0.812) < 5e-4  # Russell & Norvig's


def played(scope):
    return scope["history"].rewards.shape == (1000, 2000) and scope["history"].optimal[-100:].mean() > 0.8


def model():
    policy = models.LanguagePolicy(models.TransformerConfig(11, layers=1, width=8, heads=2))
    prompts = jnp.full((2, 3), 5)
    given = {"policy": policy, "params": jax.jit(policy.init)(jax.random.key(0)), "key": jax.random.key(1)}
    return given | {
        "jax": jax,
        "tokenizer": types.SimpleNamespace(eos_ids=(1,), pad_id=0),
        "prompts": prompts,
        "prompt_mask": prompts > 0,
    }


def completed(scope):
    return scope["out"].tokens.shape == (16, 64) and scope["out"].mask.any()


@pytest.mark.parametrize(
    "heading, given, holds",
    [
        ("## Use the losses in your own JAX code", dict, learned),
        ("### A population in Python", dict, population),
        ("## Exact worlds", dict, solved),
        ("Bandits are", lambda: {"jax": jax}, played),
        ("## Decoding", model, completed),
    ],
    ids=["losses", "population", "worlds", "bandits", "decoding"],
)
def test_example(heading, given, holds):
    code = re.search(r"```python\n(.*?)```", README.read_text().split(heading, 1)[1], re.DOTALL)
    assert code, f"{heading} has no Python block"
    # The training step is short, as the text promises.
    steps = [node for node in ast.walk(ast.parse(code[1])) if getattr(node, "name", "") == "train_step"]
    assert all(node.end_lineno - node.lineno < 15 for node in steps)
    scope = given()
    exec(compile(code[1], str(README), "exec"), scope)
    assert holds(scope)


def functions_of_the_table():
    """`module.name`, and names after it of the same module; `name(arguments)` and `name(_suffix)` as well."""
    table = README.read_text().split("### Which function is which paper", 1)[1].split("\n### ", 1)[0]
    rooms = {"losses": losses, "losses.kl": losses.kl, "losses.trpo": losses.trpo}
    rooms |= {"advantages": advantages, "reduce": reduce, "returns": returns}
    for cell in re.findall(r"(?m)^\| (`[^|]*`) \|", table):
        for path, suffix in re.findall(r"`([\w.]+)(?:\(([^`]*)\))?`", cell):
            *namespaces, name = path.split(".")
            if namespaces:
                room = rooms[".".join(namespaces)]
            for end in ["", suffix] if suffix.startswith("_") else [""]:
                assert name + end in vars(room), path
                yield getattr(room, name + end)


def test_the_table_names_every_function_and_no_other():
    named = set(functions_of_the_table())
    public = {getattr(room, name) for room in (losses, losses.kl, losses.trpo) for name in room.__all__}
    for module in (advantages, reduce, returns):
        public |= {f for name, f in vars(module).items() if not name.startswith("_")}
    ours = {f for f in public if inspect.isfunction(f) and f.__module__.startswith("jaxrl4lm.")}
    plumbing = {f for f in ours if f.__module__ == "jaxrl4lm.arguments"}
    assert named == ours - plumbing
