"""The losses come alone: importing them brings no framework, and every name is where users look for it."""

import subprocess
import sys

import jaxrl4lm.losses

HEAVY = ["flax", "gymnax", "matplotlib", "optax", "chex", "orbax", "torch", "tensorflow"]
MODULES = [
    "chunked", "importance", "kl", "language_model", "policy_gradient", "ppo", "preference", "sequence_ratio",
    "trpo", "value",
]  # fmt: skip


def test_imports_are_light():
    code = (
        "import sys, jaxrl4lm.losses, jaxrl4lm.returns, jaxrl4lm.advantages, jaxrl4lm.diagnostics\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_function_is_documented_and_at_the_top():
    below_their_module = {"Controller", "StepInfo", "clipped_surrogate", "log1mexp", "step"}
    for module in (getattr(jaxrl4lm.losses, name) for name in MODULES):
        for name, member in vars(module).items():
            if getattr(member, "__module__", None) != module.__name__ or name.startswith("_"):
                continue
            assert member.__doc__, name
            assert name in below_their_module or getattr(jaxrl4lm.losses, name) is member, name
