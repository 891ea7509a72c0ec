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


def test_every_public_name_has_one_path():
    """It is `losses.<name>`, `losses.kl.<name>` or `losses.trpo.<name>`: in one `__all__`, under one name."""
    losses = jaxrl4lm.losses
    paths = {}
    for room in (losses, losses.kl, losses.trpo):
        for name in room.__all__:
            paths.setdefault(getattr(room, name), []).append(f"{room.__name__}.{name}")
    assert not {path: others for path, *others in paths.values() if others}
    namespaces = {info.name for info in pkgutil.iter_modules(losses.__path__)} & set(losses.__all__)
    assert namespaces == {"kl", "trpo"}
    for info in pkgutil.iter_modules(losses.__path__):
        module = importlib.import_module(f"jaxrl4lm.losses.{info.name}")
        room = module if info.name in namespaces else losses
        for name, member in vars(module).items():
            public = not name.startswith("_")
            if public and getattr(member, "__module__", None) == module.__name__:
                assert paths[member] == [f"{room.__name__}.{name}"]
                assert room is losses or not hasattr(losses, name)
            if public and name.isupper():
                assert getattr(losses, name) is member
    assert len(paths) > 60
