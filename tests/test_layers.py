"""Imports go only downward, and heavy packages stay on their floors (DESIGN.md's table, read from the source)."""

import ast
import pathlib
import subprocess
import sys

import pytest

import jaxrl4lm

ROOT = pathlib.Path(jaxrl4lm.__file__).parent

# Each room may import the rooms of lower floors, and rooms of its own floor that stand before it in the list.
FLOORS = [
    ["types"],
    ["arguments", "fields", "reduce", "user_file"],
    ["distributions", "returns", "advantages", "losses", "diagnostics"],
    ["mdp", "bandits"],
    ["data", "tasks", "envs"],
    ["models", "decoding"],
    ["finite_step", "agents", "lm"],
    ["checkpoint", "metrics", "plots", "training"],
    ["cli"],
]
ORDER = {room: i for i, room in enumerate(room for floor in FLOORS for room in floor)}
APART = {"agents": "lm", "lm": "agents"}
"""Rooms that know nothing of each other: what both need is on a lower floor."""

# Heavy packages, and the rooms that may import them at module level.
HEAVY = {
    "chex": {"agents", "training", "models", "decoding"},
    "mctx": {"agents"},
    "flax": {"models", "envs"},  # in envs: flax.struct, of which gymnax states are made
    "gymnax": {"envs", "agents"},
    "gymnasium": {"envs"},
    "optax": {"agents", "finite_step", "lm", "models"},
    "orbax": {"checkpoint"},
    "matplotlib": {"plots"},
    "rich": {"cli"},
    "tyro": {"cli"},
    "tokenizers": {"data"},
}


def rooms_and_files():
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        if relative.parts != ("__init__.py",):
            yield relative.parts[0].removesuffix(".py"), path


def imported(path):
    """Every dotted name that a file imports, at any depth of its code."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room, path", rooms_and_files(), ids=lambda x: str(x).replace(str(ROOT), ""))
def test_imports_go_downward(room, path):
    assert room in ORDER, f"{room} has no floor: give it one in {__file__}"
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "jaxrl4lm" and len(parts) > 1 and parts[1] in ORDER and parts[1] != room:
            assert ORDER[parts[1]] < ORDER[room], f"{path} imports {name}, which stands above it"
            assert parts[1] != APART.get(room), f"{path} imports {name}, of which it should know nothing"
        if parts[0] in HEAVY:
            assert room in HEAVY[parts[0]], f"{path} imports {name}"


def test_the_ground_floor_is_light():
    rooms = [r for floor in FLOORS[:3] for r in floor if (ROOT / f"{r}.py").exists() or (ROOT / r).exists()]
    code = "import sys; " + "; ".join(f"import jaxrl4lm.{room}" for room in rooms)
    code += "; print([m for m in ('chex', 'flax', 'gymnax', 'matplotlib', 'optax') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def hidden_modules(init):
    """Modules beside an `__init__.py` whose names it binds to something else: `import a.b` would not be module b."""
    folder = init.parent
    package = ".".join(folder.relative_to(ROOT.parent).parts)
    modules = {path.stem for path in folder.glob("*.py")} | {
        path.parent.name for path in folder.glob("*/__init__.py")
    }
    bound = set()
    for node in ast.walk(ast.parse(init.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            own = (
                getattr(node, "module", None) == package
            )  # `from package import module` binds the module itself
            bound |= {alias.asname or alias.name for alias in node.names if alias.asname or not own}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
    return modules & bound


@pytest.mark.parametrize("init", sorted(ROOT.rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_no_name_of_a_package_hides_its_module(init):
    assert not hidden_modules(init), f"{init.parent}: rename the module, or what the package exports"


@pytest.mark.parametrize(
    "line, found",
    [
        ("from jaxrl4lm.decoding.generate import generate", {"generate"}),
        ("from jaxrl4lm.decoding.generate import Generation as generate", {"generate"}),
        ("def generate(): ...", {"generate"}),
        ("from jaxrl4lm.decoding import generate", set()),
        ("from jaxrl4lm.decoding.generate import Generation", set()),
    ],
)
def test_a_function_that_hides_its_module_is_found(line, found, tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path / "jaxrl4lm")
    folder = tmp_path / "jaxrl4lm" / "decoding"
    folder.mkdir(parents=True)
    (folder / "generate.py").touch()
    (folder / "__init__.py").write_text(line)
    assert hidden_modules(folder / "__init__.py") == found
