"""What the stages of language models share: keys, populations, metrics on their way to the host, descriptions."""

import contextlib
import dataclasses
import functools
import hashlib
import operator
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm import models
from jaxrl4lm.data import Row, Tokenizer
from jaxrl4lm.lm.population import map_population
from jaxrl4lm.lm.trainable import Trainable
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.models.model_card import write_model_card
from jaxrl4lm.training.evaluation import Evaluation
from jaxrl4lm.training.folder import ADAPTER, MODEL
from jaxrl4lm.training.stage import Stage
from jaxrl4lm.types import Array, InputError, Params

SEEDS_AT_ONCE = 4
"""The best block of `benchmarks/population.py` on a CPU."""
MOST_HELD_OUT = 256
FUNCTIONS = ("optimizer", "loss")
"""Settings of a stage that a model's card names beside those of its configuration."""
ADAPTED = ("rank", "scale", "dropout", "patterns")
"""Settings of what learns, where not everything does."""
PURPOSES = ("params", "supervised", "reinforcement", "preference", "reward", "head", "distillation")
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


def complete_stage(
    stage: Stage,
    policy: LanguagePolicy,
    tokenizer: Tokenizer | None,
    trainable: Trainable | None,
    evaluation: Evaluation | None,
    seeds: int,
    settings: Mapping[str, Any],
) -> Stage:
    """The stage with what follows from its model and its evaluation: parameters, samples, exports, pictures.

    Args:
      stage: its state has `params`, what learns, and `frozen`, what does not. Without exports of its own it leaves the model.
      trainable: how they come together; None: all learns.
      seeds: of how many runs the parameters have a leading axis.
      settings: what config.json says of it.
    """

    params_of = operator.attrgetter("params")
    if trainable is not None:
        merge = trainable.merge
        params_of = jax.jit(map_over_seeds(lambda state: merge(state.params, state.frozen), seeds))

    def export_model(folder: pathlib.Path, state: Any, scores: Mapping[str, Any]) -> None:
        models.save(folder, policy, params_of(state), tokenizer)

    def export_adapter(folder: pathlib.Path, state: Any, scores: Mapping[str, Any]) -> None:
        assert trainable is not None
        assert trainable.save is not None
        trainable.save(folder, policy, state.params)

    exports = dict(stage.exports) or ({MODEL: export_model} if seeds == 1 else {})
    if seeds == 1 and trainable is not None and trainable.save is not None:
        exports[ADAPTER] = export_adapter
    stage = stage._replace(
        params_of=params_of, exports=exports, config=describe({"model": policy.config, **settings})
    )
    if evaluation is None:
        return stage
    first, *others = stage.panels.items()
    return stage._replace(
        evaluate=evaluation.score,
        samples=evaluation.samples,
        rank=evaluation.rank,
        panels=dict([first, *evaluation.panels.items(), ("held_out", evaluation.label), *others]),
    )


def with_card(
    stage: Stage, *, name: str, base: str | None, data: Sequence[str], method: str | None = None
) -> Stage:
    """The stage, whose exported model has a README.md that the Hugging Face hub reads.

    Args:
      name: of the model.
      base: the model that it is trained from, by its folder or its name on the hub; None: a new one.
      data: names of what it is trained on.
      method: the stage's name if None.
    """
    if MODEL not in stage.exports:
        return stage

    def export(folder: pathlib.Path, state: Any, scores: Mapping[str, Any]) -> None:
        stage.exports[MODEL](folder, state, scores)
        settings = {
            key: value for key, value in stage.config["config"].items() if not isinstance(value, dict)
        }
        settings |= {key: stage.config[key] for key in FUNCTIONS if isinstance(stage.config.get(key), str)}
        settings |= dict(_list_leaves(stage.config.get("trainable")))
        known = stage.config.get("dataset")
        settings |= {"packing": known["packing"]} if isinstance(known, Mapping) and "packing" in known else {}
        figures = {f"{key} at the start": value for key, value in scores.get("start", {}).items()}
        write_model_card(
            folder,
            name=name,
            base=base,
            data=data,
            method=method or stage.name,
            settings=settings,
            figures=figures | dict(scores.get(stage.name, {})),
        )

    return stage._replace(exports={**stage.exports, MODEL: export})


def _list_leaves(described: Any) -> Iterator[tuple[str, Any]]:
    """The settings of what `describe` made of functions, however deep; not the functions' names."""
    for key, value in described.items() if isinstance(described, Mapping) else ():
        if isinstance(value, Mapping):
            yield from _list_leaves(value)
        elif key in ADAPTED:
            yield key, value


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


def hold_back(
    examples: Sequence[Any], others: Sequence[Any] | None, held_out: int | None, what: str
) -> tuple[Sequence[Any], Sequence[Any], bool]:
    """(to train on, held out, whether those are trained on as well), by `split_indices`; `others` are held out if given."""
    if others is not None:
        return examples, others, False
    training, kept_back = split_indices(len(examples), held_out, what)
    seen = len(training) == len(examples)
    return [examples[i] for i in training], [examples[i] for i in kept_back], seen


def make_rows(values: Sequence[Any], name: str, column: str) -> list[Row]:
    """Rows of texts, messages, records or rows; texts and messages get the column of that name.

    Raises:
      InputError: if there is none, or one is something else; it begins with `name`.
    """
    if isinstance(values, str):
        raise InputError(f"{name} is one text: give a list of texts, or data.load(FILE)")
    rows = []
    for number, value in enumerate(values, start=1):
        if isinstance(value, Row):
            rows.append(value)
            continue
        columns = {column: value} if isinstance(value, str | list) else value
        if not isinstance(columns, Mapping):
            kind = type(value).__name__
            raise InputError(
                f"{name}, line {number}: a {kind} where a text, messages or a record is expected"
            )
        rows.append(Row(number, dict(columns)))
    if not rows:
        raise InputError(f"there are no {name}: give at least one")
    return rows


def check_usable(encoded: Any, name: str) -> None:
    """Raises InputError where all rows of a dataset were dropped.

    Args:
      encoded: a record with `examples` and `dropped`.
    """
    if not encoded.examples:
        reasons = ", ".join(f"{len(lines)} {reason}" for reason, lines in encoded.dropped.items())
        raise InputError(f"no row of {name} can be used ({reasons or 'it has none'})")


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
    """The numbers and words that a function made by another one remembers, as `decoding.top_k(5)` its 5, and those of the
    functions that it remembers."""
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None) or ()
    settings = {}
    for name, cell in zip(code.co_freevars if code else (), cells, strict=False):
        with contextlib.suppress(ValueError):  # of a name that is not bound yet
            value = cell.cell_contents
            if callable(value):
                value = describe(value) if _find_settings(value) else None
            several = value if isinstance(value, tuple | list) else [value]
            if value is not None and all(isinstance(each, str | int | float | dict) for each in several):
                settings[name] = value
    return settings


def digest(*arrays: Any) -> str:
    """A fingerprint of arrays or lists of numbers, to tell whether a resumed run sees the same data."""
    hashed = hashlib.sha256()
    for array in arrays:
        hashed.update(np.asarray(array).tobytes())
    return hashed.hexdigest()[:16]
