"""Functional reinforcement learning for language-model training, in JAX.

A reinforcement-learning run is a pure function of a key: environments, policies, returns, losses, updates
and whole training runs are functions from arrays to arrays. Sub-packages load on first use, so that
`import jaxrl4lm.losses` costs little more than `import jax`.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

_SUBPACKAGES = (
    "advantages",
    "agents",
    "bandits",
    "checkpoint",
    "data",
    "decoding",
    "diagnostics",
    "distributions",
    "envs",
    "lm",
    "losses",
    "mdp",
    "metrics",
    "models",
    "plots",
    "reduce",
    "returns",
    "tasks",
    "training",
    "types",
)

__all__ = ["__version__", *_SUBPACKAGES]


def __getattr__(name: str) -> ModuleType:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
