"""What is trained, as the loop sees it: a name, a number of steps, and functions."""

import operator
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl4lm.types import InputError, Params

Numbers = Mapping[str, np.ndarray]
"""Metrics on the host."""
TABLES = "tables"
"""What `advance` may give beside metrics: an object array `[steps]` of lists of rows (JSON), for people to read."""


class Sample(NamedTuple):
    """An output to look at."""

    prompt: str
    completion: str
    score: float | None
    """None where nothing scores it."""


class Stage(NamedTuple):
    """A number of steps over a state, and how to look at what they do. The loop knows nothing else of an algorithm."""

    name: str
    steps: int
    """0: there is only the evaluation."""
    chunk: int
    """Steps between evaluations."""
    init: Callable[[Params], Any]
    """The state before the first step: a pytree of arrays that shares no memory with the parameters."""
    advance: Callable[[Any, int, int], tuple[Any, Numbers]]
    """(state, steps done, steps to do) → the state after them, metrics `[steps, ...]`. It may donate the state, and may
    raise `StepFailed`."""
    evaluate: Callable[[Params], Numbers] = lambda params: {}
    """Metrics of parameters: numbers, or one number a member of a population."""
    headline: Callable[[Numbers], str] = lambda metrics: ""
    """The progress line, from the last chunk's metrics, its evaluation and `seconds`, the time it took."""
    until: Callable[[Numbers], bool] | None = None
    """Whether an evaluation is good enough for the stage to end before its steps do."""
    params_of: Callable[[Any], Params] = operator.attrgetter("params")
    """The parameters in a state, as the next stage, `evaluate` and `export` take them."""
    samples: Callable[[Params], Sequence[Sample]] | None = None
    """Outputs to look at, the same inputs each time."""
    exports: Mapping[str, Callable[[pathlib.Path, Any, Mapping[str, Any]], None]] = {}
    """What the run leaves in forms that others read, by the names of its folders, `model` first: functions that write
    (an empty folder, the last state, `Progress.scores`)."""
    rank: Callable[[Numbers], float] | None = None
    """How good an evaluation is; the first export of the best one is kept as `best`."""
    prepare: Callable[[Params], None] | None = None
    """Compiles what `advance` runs, from the shapes of the parameters: called in a thread while an earlier stage runs."""
    config: Mapping[str, Any] = {}
    """What `config.json` is to say of it: JSON."""
    panels: Mapping[str, str] = {}
    """What the picture shows: metrics, and their titles."""
    axis: tuple[str, Callable[[int], int]] = ("step", lambda step: step)
    """What the picture shows them against: its name, and how much of it the steps up to one are."""
    stride: int | None = None
    """Steps of one call of `advance`, where it does not matter how many they are: between calls the loop looks for signals,
    and saves. None: those of a chunk."""


class StepFailed(InputError):
    """A step failed, as a user's reward may; the state and the metrics `[steps]` of those before it are whole."""

    def __init__(self, reason: str, state: Any, metrics: Numbers):
        super().__init__(reason)
        self.state, self.metrics = state, metrics


class Progress(NamedTuple):
    """How far a run is: what a checkpoint says beside the state."""

    stage: int = 0
    """Number of the stage, from 0."""
    done: int = 0
    """Its steps done."""
    records: int = 0
    """Records of metrics written."""
    rows: int = 0
    """Rows of tables written."""
    seconds: float = 0.0
    """Time spent."""
    scores: Mapping[str, Mapping[str, Any]] = {}
    """The last evaluation of each stage by its name; `start`: the one before the first step."""
    before: Sequence[Sequence[Any]] = ()
    """Samples from before the last stage."""
    best: Mapping[str, Any] | None = None
    """`step` and `rank` of the last stage's best evaluation."""
    unfinished: Mapping[str, Any] | None = None
    """The record of the last step, where its evaluation failed: it is evaluated and written when the run goes on."""


class Report(NamedTuple):
    """What a caller of `fit` is told when a stage begins and after each of its chunks."""

    stage: Stage
    progress: Progress
    headline: str | None
    """None when the stage begins."""
    ended: bool
    resumed: bool
    """Whether the stage begins where a checkpoint left it."""
    table: Sequence[Mapping[str, Any]] = ()
    """The newest table of the chunk; its rows have `stage` and `step`."""
