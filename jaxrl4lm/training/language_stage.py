"""What the stages of language models share: keys, populations, metrics on their way to the host, descriptions."""

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm import models
from jaxrl4lm.data import Tokenizer
from jaxrl4lm.lm.population import map_population
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.types import Array, InputError, Params

SEEDS_AT_ONCE = 8
"""The best block of `benchmarks/population.py` on a CPU."""
MOST_HELD_OUT = 256
PURPOSES = ("params", "supervised", "reinforcement")
"""A key of its own for each: a stage draws the same numbers whether others run before it or not."""


def choose_keys(seed: int, seeds: int, purpose: str) -> Array:
    """The key of a purpose, or one a seed `[seeds]`: the same whether a seed is trained alone or with others."""

    def choose(seed: Array | int) -> Array:
        return jax.random.split(jax.random.key(seed), len(PURPOSES))[PURPOSES.index(purpose)]

    return jax.vmap(choose)(seed + jnp.arange(seeds)) if seeds > 1 else choose(seed)


def init_params(policy: LanguagePolicy, seed: int = 0, seeds: int = 1) -> Params:
    """Random parameters, of several seeds with a leading axis."""
    return jax.jit(map_over_seeds(policy.init, seeds))(choose_keys(seed, seeds, "params"))


def map_over_seeds(function: Callable, seeds: int) -> Callable:
    """The function, over a leading axis of seeds where there are several; on a CPU in blocks that its cache holds."""
    if seeds == 1:
        return function
    return map_population(function, SEEDS_AT_ONCE if jax.default_backend() == "cpu" else seeds)


def fetch(metrics: Mapping[str, Array], seeds: int = 1) -> dict[str, np.ndarray]:
    """Metrics as NumPy arrays, fetched together: steps lead, seeds follow."""
    fetched = jax.device_get(dict(metrics))
    return {name: np.asarray(value).T if seeds > 1 else np.asarray(value) for name, value in fetched.items()}


def export_with(
    policy: LanguagePolicy, tokenizer: Tokenizer | None
) -> Callable[[pathlib.Path, Params], None]:
    """A function that writes parameters as a Hugging Face folder."""

    def export(folder: pathlib.Path, params: Params) -> None:
        models.save(folder, policy, params, tokenizer)

    return export


def choose_chunk(every: int, steps: int) -> int:
    """Steps between evaluations: `every`, or all where there are fewer.

    Raises:
      InputError: if it is below 1.
    """
    if every < 1:
        raise InputError(f"evaluate_every must be at least 1, not {every}")
    return max(1, min(every, steps))


def split_indices(total: int, held_out: int | None, what: str) -> tuple[list[int], list[int]]:
    """(to train on, held out) of so many rows, by a fixed shuffle. None: a tenth, 256 at most; 0: what is trained on.

    Raises:
      InputError: if nothing is left to train on.
    """
    count = min(MOST_HELD_OUT, total // 10) if held_out is None else held_out
    if count >= total and count:
        raise InputError(f"held_out {count} leaves nothing of {total} {what} to train on: lower it")
    if count == 0:
        return list(range(total)), list(range(min(MOST_HELD_OUT, total)))
    order = np.random.default_rng(0).permutation(total).tolist()
    return sorted(order[count:]), sorted(order[:count])


def check_config(config: Any) -> None:
    """Raises InputError where a number of the configuration does not fit."""
    try:
        config.check()
    except ValueError as error:
        raise InputError(str(error)) from None


def describe(value: Any) -> Any:
    """A configuration as JSON: records by their fields, functions by their names, arrays by their numbers."""
    if isinstance(value, str | int | float | bool | None):
        return value
    if hasattr(value, "_asdict"):
        return {name: describe(each) for name, each in value._asdict().items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: describe(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): describe(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [describe(each) for each in value]
    if isinstance(value, functools.partial):
        return {"function": describe(value.func), "arguments": describe([*value.args, value.keywords])}
    if isinstance(value, jax.Array | np.ndarray):
        return np.asarray(value).tolist()
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return {"function": name, **settings} if (settings := _find_settings(value)) else name


def _find_settings(function: Any) -> dict[str, Any]:
    """The numbers and words that a function made by another one remembers, as `decoding.top_k(5)` its 5."""
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None) or ()
    settings = {}
    for name, cell in zip(code.co_freevars if code else (), cells, strict=False):
        with contextlib.suppress(ValueError):  # of a name that is not bound yet
            if isinstance(cell.cell_contents, str | int | float):
                settings[name] = cell.cell_contents
    return settings


def digest(*arrays: Any) -> str:
    """A fingerprint of arrays or lists of numbers, to tell whether a resumed run sees the same data."""
    hashed = hashlib.sha256()
    for array in arrays:
        hashed.update(np.asarray(array).tobytes())
    return hashed.hexdigest()[:16]
