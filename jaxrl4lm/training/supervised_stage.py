"""Teacher forcing as a stage: on a task's solutions, or on texts."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax

from jaxrl4lm.data import Tokenizer
from jaxrl4lm.lm import SupervisedConfig, TextConfig
from jaxrl4lm.lm import supervised as update_rule
from jaxrl4lm.lm.optimizer import Optimizer, adam
from jaxrl4lm.lm.trainable import Trainable, everything
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.tasks import Task
from jaxrl4lm.training.batch_steps import BatchSteps, count_steps, say_loss
from jaxrl4lm.training.evaluation import Evaluation, evaluate_task, evaluate_texts
from jaxrl4lm.training.language_stage import (
    check_config,
    choose_chunk,
    choose_keys,
    complete_stage,
    fetch,
    map_over_seeds,
)
from jaxrl4lm.training.stage import Numbers, Stage
from jaxrl4lm.training.texts import TextBatches, TextSet, fill_rows, prepare_texts
from jaxrl4lm.types import InputError, Params


def supervised(
    policy: LanguagePolicy,
    dataset: Task | TextSet | Sequence[Any],
    config: SupervisedConfig,
    *,
    tokenizer: Tokenizer | None = None,
    texts: TextConfig = TextConfig(),  # noqa: B008 (immutable)
    evaluation: Evaluation | None = None,
    until: Callable[[Numbers], bool] | None = None,
    optimizer: Optimizer = adam,
    trainable: Trainable | None = None,
    loss: update_rule.TokenLoss = update_rule.negative_log_likelihood,
    seed: int = 0,
    seeds: int = 1,
    evaluate_every: int | None = None,
) -> Stage:
    """Imitates the solutions of a task, or texts.

    Args:
      dataset: a task, which makes its own problems in the compiled program; or texts, each seen once an epoch in a new
        order: strings, records, rows of `data.load`, or a `TextSet` (`training.prepare_texts`).
      tokenizer: encodes the texts, and is saved beside the model.
      texts: how rows become sequences; a `TextSet` is encoded already.
      evaluation: what is measured; if None greedy answers of a task, and the loss of held-out texts.
      until: whether an evaluation is good enough to end before `config.steps`.
      optimizer: (learning rate, config) → an optax transformation.
      trainable: what learns (`lm.trainable`); everything if None.
      loss: of the target tokens; the cross-entropy by default.
      seed: decides everything.
      seeds: so many runs as one program, on a task; parameters have a leading axis then.
      evaluate_every: steps between evaluations; 10 on a task and 50 on texts if None.
    Raises:
      InputError: where sizes do not fit, or a row cannot be used.
    """
    check_config(config)
    teacher = update_rule.Teacher(policy, optimizer, trainable or everything(), loss)
    if isinstance(dataset, Task):
        part: _TaskPart | BatchSteps = _TaskPart(config, dataset, teacher, seeds)
        evaluation = evaluation or evaluate_task(policy, dataset, seeds=seeds)
        tokenizer = tokenizer or dataset.tokenizer
    else:
        if seeds > 1:
            raise InputError(
                f"seeds {seeds}: several seeds at once need a task, not texts: train one at a time"
            )
        known = dataset if isinstance(dataset, TextSet) else _prepare(policy, dataset, tokenizer, texts)
        pad_id = tokenizer.pad_id if tokenizer else 0
        batches = TextBatches(known, pad_id, config.batch, seed)
        evaluation = evaluation or _evaluate(policy, known, pad_id)
        config = count_steps(config, batches)
        part = BatchSteps(lambda state, texts: update_rule.update(state, texts, config, teacher), batches)
    stage = part.make_stage(
        "supervised",
        teacher,
        config,
        seed=seed,
        evaluate_every=part.every if evaluate_every is None else evaluate_every,
        evaluation=evaluation,
        panels={"loss": "training loss (nats a token)"},
    )._replace(until=until)
    settings = {
        "seed": seed,
        "seeds": seeds,
        "config": config,
        "dataset": part.description,
        "optimizer": optimizer,
        "loss": loss,
        "trainable": trainable,
    }
    return complete_stage(stage, policy, tokenizer, trainable, evaluation, seeds, settings)


def _prepare(
    policy: LanguagePolicy, rows: Sequence[Any], tokenizer: Tokenizer | None, texts: TextConfig
) -> TextSet:
    if tokenizer is None:
        raise InputError(
            "texts need a tokenizer: give tokenizer=, as models.load or data.ByteTokenizer() gives one"
        )
    sizes = policy.config
    return prepare_texts(rows, tokenizer, texts, context=sizes.context, embeddings=sizes.vocab_size)


def _evaluate(policy: LanguagePolicy, texts: TextSet, pad_id: int) -> Evaluation | None:
    """The loss of the texts that are held out."""
    if not texts.held_out:
        return None
    what = "training" if texts.seen else "held-out"
    return evaluate_texts(policy, fill_rows(texts, texts.held_out, pad_id), what=what)


class _TaskPart:
    """Steps on a task, which makes its problems in the program."""

    every = 10

    def __init__(self, config: SupervisedConfig, task: Task, teacher: update_rule.Teacher, seeds: int):
        self._seeds, self.description = seeds, task.name
        source = update_rule.task_source(task, config.batch)

        @partial(jax.jit, static_argnums=1, donate_argnums=0)
        def chunk(state: update_rule.SupervisedState, steps: int):
            return map_over_seeds(lambda s: update_rule.run(s, config, teacher, source, steps), seeds)(state)

        self._chunk = chunk

    def make_stage(
        self,
        name: str,
        learner: update_rule.Teacher,
        config: SupervisedConfig,
        *,
        seed: int,
        evaluate_every: int,
        evaluation: Evaluation | None,
        panels: Mapping[str, str],
    ) -> Stage:
        """As that of `BatchSteps`, of all seeds."""
        every = choose_chunk(evaluate_every, config.steps)
        keys = choose_keys(seed, self._seeds, name)

        def init(params: Params) -> update_rule.SupervisedState:
            begin = map_over_seeds(lambda k, p: update_rule.init(k, config, learner, p), self._seeds)
            return begin(keys, params)

        def prepare(params: Params) -> None:
            self._chunk.lower(jax.eval_shape(init, params), every).compile()

        return Stage(
            name=name,
            steps=config.steps,
            chunk=every,
            init=init,
            advance=self._advance,
            headline=partial(say_loss, evaluation),
            prepare=prepare,
            panels=panels,
        )

    def _advance(self, state: Any, done: int, count: int) -> tuple[Any, Numbers]:
        del done  # the state knows
        state, metrics = self._chunk(state, count)
        return state, fetch(metrics, self._seeds)
