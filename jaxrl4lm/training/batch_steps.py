"""Optimizer steps on batches that come from the host, in few shapes."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, TypeVar

import jax
from jax.sharding import Mesh, NamedSharding

from jaxrl4lm.lm import descent
from jaxrl4lm.lm.config import DescentConfig
from jaxrl4lm.models import LanguagePolicy, parameter_count, shardings
from jaxrl4lm.training.evaluation import AT_ONCE, TOKENS_AT_ONCE, Evaluation
from jaxrl4lm.training.language_stage import choose_chunk, choose_keys, fetch
from jaxrl4lm.training.stage import Numbers, Stage
from jaxrl4lm.types import Metrics, Params

LARGEST_CALL = 1e13
"""Arithmetic operations of a call that makes all steps of a chunk: minutes on a core. Where they are more, each step is a
call of its own, so that a signal is soon obeyed."""
Config = TypeVar("Config", bound=DescentConfig)


class Batches(Protocol):
    """Batches of rows: a pure function of the step, so that a resumed run sees the same."""

    widths: list[int]
    """Tokens to which rows are padded."""
    steps_per_epoch: float
    description: dict[str, Any]
    """What config.json says of the rows."""

    def take(self, done: int, count: int) -> Any:
        """The batches of some steps, whose rows are of one length: arrays with a leading axis of steps."""
        ...


def count_steps(config: Config, batches: Batches) -> Config:
    """The configuration with as many steps as its epochs have, where it counts those."""
    if config.epochs is None:
        return config
    return config.replace(steps=math.ceil(config.epochs * batches.steps_per_epoch))


class BatchSteps:
    """Steps of an update on such batches."""

    every = 50

    def __init__(self, update: Callable[..., tuple[Any, Metrics]], batches: Batches):
        """Takes (state, batch, what `beside` gives) → (state, metrics)."""
        self._batches, self.description = batches, batches.description
        self.beside: Callable[[Any], tuple] = lambda state: ()

        @partial(jax.jit, donate_argnums=0)
        def chunk(state: Any, batches: Any, *beside: Any) -> tuple[Any, Metrics]:
            return jax.lax.scan(lambda state, batch: update(state, batch, *beside), state, batches)

        self._chunk = chunk

    def make_stage(
        self,
        name: str,
        learner: Any,
        config: DescentConfig,
        *,
        seed: int,
        evaluate_every: int,
        evaluation: Evaluation | None,
        panels: Mapping[str, str],
        texts: int = 1,
    ) -> Stage:
        """These steps as a stage, for `complete_stage` to complete.

        Args:
          name: of the stage, and of what its key is for.
          learner: a record with `policy`, `optimizer` and `trainable`.
          texts: of a row.
        """
        every = choose_chunk(evaluate_every, config.steps)
        key = choose_keys(seed, 1, name)

        def init(params: Params) -> descent.DescentState:
            return descent.init(key, config, learner, params)

        stride = self._choose_stride(learner.policy, texts * config.batch, every)
        return Stage(
            name=name,
            steps=config.steps,
            chunk=every,
            init=init,
            advance=self.advance,
            headline=partial(say_loss, evaluation),
            prepare=lambda params: self.prepare(jax.eval_shape(init, params), stride or every),
            panels=panels,
            stride=stride,
        )

    def _choose_stride(self, policy: LanguagePolicy, rows: int, every: int) -> int | None:
        """How many steps a call makes, None: a chunk. One where rows of several lengths follow each other, or a chunk would
        take minutes."""
        size = parameter_count(jax.eval_shape(policy.init, jax.random.key(0)))
        operations = 6 * size * rows * max(self._batches.widths) * every
        return 1 if len(self._batches.widths) > 1 or operations > LARGEST_CALL else None

    def advance(self, state: Any, done: int, count: int) -> tuple[Any, Numbers]:
        """As a stage does."""
        state, metrics = self._chunk(state, self._batches.take(done, count), *self.beside(state))
        return state, fetch(metrics)

    def prepare(self, state: Any, count: int) -> None:
        """Compiles the program, for a state of these shapes."""
        self._chunk.lower(state, self._batches.take(0, count), *self.beside(state)).compile()


def place_like(params: Params, state: Any) -> Params:
    """The parameters of another model, where those of a state are."""
    sharding = getattr(jax.tree.leaves(state)[0], "sharding", None)
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
        return jax.device_put(params, shardings(params, mesh=sharding.mesh))
    return params


def choose_rows(tokens: int, rows: int) -> int:
    """Rows of a batch that is only read.

    Args:
      tokens: of a row, with all of its texts.
      rows: that there are.
    """
    return max(1, min(AT_ONCE, TOKENS_AT_ONCE // tokens, rows))


def say_loss(evaluation: Evaluation | None, metrics: Numbers) -> str:
    """A progress line: loss, what is held out, speed."""
    parts = [f"loss {float(metrics['loss'].mean()):.3f}"]
    if evaluation:
        parts.append(evaluation.headline(metrics))
    speed = float(metrics["tokens"].sum()) / max(float(metrics["seconds"]), 1e-9)
    return "  ".join([*parts, f"{speed:,.0f} tokens/s"])
