"""Metrics of steps and evaluations as records, and records as the history of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrl4lm.training.stage import TABLES, Numbers, Stage
from jaxrl4lm.types import InputError

RESERVED = ("stage", "step", "seconds")
"""What a record says beside metrics."""
SKIPPED = "skipped_updates"
"""The metric that counts the steps of a stage that were not applied because they were not finite."""


def check_metrics(stage: Stage, metrics: Numbers, count: int) -> None:
    """Raises InputError where a stage's metrics are no numbers a step, or have a name of the record's own."""
    for name, values in metrics.items():
        if name in RESERVED:
            raise InputError(
                f"the stage {stage.name!r} has a metric {name!r}: records use that name, give another"
            )
        if np.shape(values)[:1] != (count,):
            raise InputError(
                f"the stage {stage.name!r} gave {name} of shape {np.shape(values)} for {count} steps: give a value for each"
            )


def split_tables(metrics: Numbers) -> tuple[dict[str, np.ndarray], Sequence[Sequence[Mapping[str, Any]]]]:
    """The metrics of a stage, and its tables: one a step, or none at all."""
    metrics = dict(metrics)
    tables = metrics.pop(TABLES, None)
    return metrics, () if tables is None else tables.tolist()


def make_plain(value: Any) -> Any:
    """An array or a number as Python's own numbers."""
    array = np.asarray(value)
    return (array if array.dtype.kind in "biuf" else array.astype(np.float32)).tolist()


def drop_non_finite(value: Any) -> Any:
    """None, which JSON has, for nan and infinities, which it has not."""
    if isinstance(value, dict):
        return {name: drop_non_finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [drop_non_finite(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def gather_history(records: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Each metric over the records that have it, in order."""
    columns: dict[str, list] = {}
    for record in records:
        for name, value in record.items():
            if name not in ("stage", "step"):
                columns.setdefault(name, []).append(value)
    return {name: _join_column(values) for name, values in columns.items()}


def _join_column(values: list) -> np.ndarray:
    try:
        return np.array(values, float)
    except ValueError:  # two stages have a metric of one name and of different shapes
        joined = np.empty(len(values), object)
        joined[:] = [np.array(value, float) for value in values]
        return joined


def count_skipped(records: Sequence[Mapping[str, Any]]) -> int:
    """Each stage counts its own; its last record holds the count."""
    counts = {r["stage"]: np.sum(np.array(r[SKIPPED], float)) for r in records if SKIPPED in r}
    return int(sum(counts.values()))
