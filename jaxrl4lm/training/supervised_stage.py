"""Teacher forcing as a stage: on a task's solutions, or on texts."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.data import Tokenizer
from jaxrl4lm.data.corpus import Corpus, epoch_rows
from jaxrl4lm.lm import SupervisedConfig
from jaxrl4lm.lm import supervised as update_rule
from jaxrl4lm.lm.optimizer import Optimizer, adam
from jaxrl4lm.lm.trainable import Trainable, everything
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.tasks import Task
from jaxrl4lm.training.evaluation import Evaluation, evaluate_task
from jaxrl4lm.training.language_stage import (
    check_config,
    choose_chunk,
    choose_keys,
    describe,
    digest,
    export_with,
    fetch,
    map_over_seeds,
)
from jaxrl4lm.training.stage import Numbers, Stage
from jaxrl4lm.types import InputError, Params


def supervised(
    policy: LanguagePolicy,
    dataset: Task | Corpus,
    config: SupervisedConfig,
    *,
    tokenizer: Tokenizer | None = None,
    evaluation: Evaluation | None = None,
    until: Callable[[Numbers], bool] | None = None,
    optimizer: Optimizer = adam,
    trainable: Trainable | None = None,
    loss: update_rule.TokenLoss = update_rule.negate,
    seed: int = 0,
    seeds: int = 1,
    evaluate_every: int | None = None,
) -> Stage:
    """Imitates the solutions of a task, or texts.

    Args:
      dataset: a task, which makes its own problems in the compiled program, or texts as arrays
        (`data.corpus.encode_documents`), each seen once an epoch in a new order.
      tokenizer: saved beside the model.
      evaluation: what is measured; of a task greedy answers, of texts nothing if None.
      until: whether an evaluation is good enough to end before `config.steps`.
      optimizer: (learning rate, config) → an optax transformation.
      trainable: what learns (`lm.trainable`); everything if None.
      loss: of log π of each target token; the cross-entropy by default.
      seed: decides everything.
      seeds: so many runs as one program, on a task; parameters have a leading axis then.
      evaluate_every: steps between evaluations; 10 on a task and 50 on texts if None.
    Raises:
      InputError: where sizes do not fit.
    """
    check_config(config)
    teacher = update_rule.Teacher(policy, optimizer, trainable or everything(), loss)
    keys = choose_keys(seed, seeds, "supervised")

    def init(params: Params) -> update_rule.SupervisedState:
        return map_over_seeds(lambda k, p: update_rule.init(k, config, teacher, p), seeds)(keys, params)

    if isinstance(dataset, Task):
        evaluation = evaluation or evaluate_task(policy, dataset, seeds=seeds)
        every, tokenizer = 10 if evaluate_every is None else evaluate_every, tokenizer or dataset.tokenizer
        part = _imitate_task(config, teacher, dataset, seeds)
    else:
        if seeds > 1:
            raise InputError(
                f"seeds {seeds}: several seeds at once need a task, not texts: train one at a time"
            )
        if not isinstance(dataset, Corpus):
            raise InputError("the dataset is neither a task nor texts that data.corpus.encode_documents gave")
        every = 50 if evaluate_every is None else evaluate_every
        part = _imitate_texts(config, teacher, dataset, seed)
    every = choose_chunk(every, config.steps)

    def prepare(params: Params) -> None:
        part.chunk.lower(jax.eval_shape(init, params), *part.arguments(0, every)).compile()

    merge = jax.jit(map_over_seeds(lambda state: update_rule.merge_params(state, teacher), seeds))
    whole = trainable is None
    return Stage(
        name="supervised",
        steps=config.steps,
        chunk=every,
        init=init,
        advance=partial(_advance, part, seeds),
        evaluate=evaluation.score if evaluation else _measure_nothing,
        headline=partial(_say, evaluation),
        until=until,
        params_of=(lambda state: state.params) if whole else merge,
        samples=evaluation.samples if evaluation else None,
        export=export_with(policy, tokenizer) if seeds == 1 else None,
        prepare=prepare,
        config={
            "seed": seed,
            "seeds": seeds,
            "config": describe(config),
            "dataset": part.description,
            "optimizer": describe(optimizer),
            "loss": describe(loss),
            "trainable": describe(trainable),
        },
        panels={"loss": "training loss (nats a token)", **_choose_panels(evaluation)},
    )


class _Part(NamedTuple):
    """What differs between a task and texts."""

    chunk: Any
    """A jitted function of the state and what `arguments` gives."""
    arguments: Callable[[int, int], tuple]
    """(steps done, steps to do) → the other arguments of `chunk`."""
    description: Any


def _imitate_task(config: SupervisedConfig, teacher: update_rule.Teacher, task: Task, seeds: int) -> _Part:
    source = update_rule.task_source(task, config.batch)

    @partial(jax.jit, static_argnums=1, donate_argnums=0)
    def chunk(state: update_rule.SupervisedState, steps: int):
        return map_over_seeds(lambda s: update_rule.run(s, config, teacher, source, steps), seeds)(state)

    return _Part(chunk, lambda done, count: (count,), task.name)


def _imitate_texts(
    config: SupervisedConfig, teacher: update_rule.Teacher, corpus: Corpus, seed: int
) -> _Part:
    texts = update_rule.Texts(*(jnp.asarray(x) for x in corpus[:3]))

    @partial(jax.jit, donate_argnums=0)
    def chunk(state: update_rule.SupervisedState, texts: update_rule.Texts, rows):
        return update_rule.run(state, config, teacher, update_rule.row_source(texts), len(rows), rows)

    def arguments(done: int, count: int) -> tuple:
        stream = epoch_rows(seed, done * config.batch, count * config.batch, len(corpus.tokens))
        return texts, stream.reshape(count, config.batch)

    description = {"texts": len(corpus.tokens), "digest": digest(*corpus[:3])}
    return _Part(chunk, arguments, description)


def _advance(part: _Part, seeds: int, state: Any, done: int, count: int) -> tuple[Any, Numbers]:
    state, metrics = part.chunk(state, *part.arguments(done, count))
    return state, fetch(metrics, seeds)


def _choose_panels(evaluation: Evaluation | None) -> dict[str, str]:
    return {**evaluation.panels, "held_out": evaluation.label} if evaluation else {}


def _say(evaluation: Evaluation | None, metrics: Numbers) -> str:
    held_out = f"  {evaluation.headline(metrics)}" if evaluation else ""
    return f"loss {float(metrics['loss'].mean()):.3f}{held_out}"


def _measure_nothing(params: Params) -> Mapping[str, Any]:
    return {}
