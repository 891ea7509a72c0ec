"""A task head as a stage: spans, classes or tags, over a frozen backbone or with a part of it or the whole."""

import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.data import Tokenizer
from jaxrl4lm.data.labels import NO_LABEL, Labelled
from jaxrl4lm.lm import HeadConfig
from jaxrl4lm.lm import heads as update_rule
from jaxrl4lm.lm.optimizer import Optimizer, adam
from jaxrl4lm.lm.trainable import Trainable, everything, matching
from jaxrl4lm.models import Head, LanguagePolicy, new_head, save_with_head
from jaxrl4lm.models.partitioning import path_of
from jaxrl4lm.training.batch_steps import BatchSteps, count_steps
from jaxrl4lm.training.evaluation import AT_ONCE, SHOWN, TOKENS_AT_ONCE, Evaluation
from jaxrl4lm.training.folder import MODEL
from jaxrl4lm.training.labelled import LabelledBatches, LabelledSet, pad_labelled
from jaxrl4lm.training.language_stage import check_config, choose_keys, complete_stage
from jaxrl4lm.training.scores import score_answers, score_classes, score_tags
from jaxrl4lm.training.stage import Numbers, Sample, Stage
from jaxrl4lm.types import InputError, Key, Params


def freeze(*patterns: str) -> Trainable:
    """What learns beside the head: nothing (`backbone`), all (`none`), or the parameters whose path none of the patterns
    matches (`layer_0/`, `embedding`).

    Raises:
      InputError: if a pattern is no regular expression, or `none` is not alone; by `split` of what it returns, if a pattern
        matches no parameter.
    """
    if patterns == ("none",):
        return everything()
    if "none" in patterns:
        raise InputError(f"freeze {' '.join(patterns)}: none stands alone: leave it out, or the others")
    try:
        found = [re.compile(pattern) for pattern in patterns if pattern != "backbone"]
    except re.error as error:
        raise InputError(f"freeze {' '.join(patterns)}: no regular expression ({error}): mend it") from None
    whole = "backbone" in patterns

    def learns(path: str) -> bool:
        if path.startswith("head/"):
            return True
        return not whole and not any(pattern.search(path) for pattern in found)

    trainable = matching(learns)

    def split(key: Key, params: Params) -> tuple[Params, Params]:
        paths = [path_of(keys) for keys, _ in jax.tree.leaves_with_path(params["backbone"])]
        for pattern in found:
            if not any(pattern.search(f"backbone/{path}") for path in paths):
                names = dict.fromkeys(re.sub(r"layer_\d+", "layer_N", path) for path in paths)
                raise InputError(
                    f"freeze {pattern.pattern}: no parameter is called so: give a part of {', '.join(names)}"
                )
        return trainable.split(key, params)

    return trainable._replace(split=split)


def init_parameters(policy: LanguagePolicy, backbone: Params, dataset: LabelledSet, seed: int = 0) -> Params:
    """A backbone under a new head for the labels of a dataset, as `head` takes them."""
    return {
        "backbone": backbone,
        "head": new_head(choose_keys(seed, 1, "head"), policy, dataset.kind, dataset.outputs),
    }


def head(
    policy: LanguagePolicy,
    tokenizer: Tokenizer,
    dataset: LabelledSet,
    *,
    config: HeadConfig = HeadConfig(),  # noqa: B008 (immutable)
    trainable: Trainable | None = None,
    evaluation: Evaluation | None = None,
    optimizer: Optimizer = adam,
    seed: int = 0,
    evaluate_every: int = 50,
) -> Stage:
    """Trains a task head. `fit` takes it with `init_parameters`.

    Args:
      dataset: as `training.prepare_labelled` gives it.
      trainable: what learns; the head alone, over a frozen backbone, if None. See `freeze`.
      evaluation: what is measured; if None the scores of the held-out rows.
      optimizer: (learning rate, config) → an optax transformation.
      seed: decides everything.
      evaluate_every: steps between evaluations.
    Raises:
      InputError: where sizes do not fit.
    """
    check_config(config)
    trainable = trainable or freeze("backbone")
    learner = update_rule.Learner(policy, update_rule.OUTPUTS[dataset.kind], optimizer, trainable)
    parts, pad_id = policy.config.token_types, tokenizer.pad_id
    batches = LabelledBatches(dataset, pad_id, config.batch, seed, parts=parts)
    config = count_steps(config, batches)
    evaluation = evaluation or evaluate_head(learner, dataset, pad_id)
    part = BatchSteps(lambda state, batch: update_rule.update(state, batch, config, learner), batches)
    stage = part.make_stage(
        "head",
        learner,
        config,
        seed=seed,
        evaluate_every=evaluate_every,
        evaluation=evaluation,
        panels={"loss": "training loss (nats a label)"},
    )
    settings = {
        "seed": seed,
        "config": config,
        "kind": dataset.kind,
        "dataset": part.description,
        "optimizer": optimizer,
        "trainable": trainable,
    }
    stage = complete_stage(stage, policy, tokenizer, trainable, evaluation, 1, settings)

    def export(folder: pathlib.Path, state: Any, scores: Mapping[str, Any]) -> None:
        params = stage.params_of(state)
        made: Head = params["head"]
        save_with_head(
            folder, policy, params["backbone"], made, dataset.kind, tokenizer, labels=dataset.names
        )

    return stage._replace(exports={MODEL: export})


class _Judge(NamedTuple):
    """How what a head says of rows is read, scored and shown."""

    main: str
    """The score that counts."""
    score: Callable[[Sequence[Labelled], list[Any]], Mapping[str, float]]
    """(rows, what was said of each) → scores."""
    show: Callable[[Labelled, Any], tuple[str, str]]
    """What was asked and what was said, as text."""


def evaluate_head(learner: update_rule.Learner, dataset: LabelledSet, pad_id: int) -> Evaluation:
    """Scores of the held-out rows: F1 and exact match of answers; accuracy and F1 of classes or tags."""
    kind, examples, parts = dataset.kind, dataset.held_out, learner.policy.config.token_types
    judge = _make_judge(dataset)
    width = max(len(example.tokens) for example in examples)
    count = max(1, min(AT_ONCE, TOKENS_AT_ONCE // width, len(examples)))
    what = "training" if dataset.seen else "held-out"

    @jax.jit
    def predict(params: Params, texts: update_rule.LabelledTexts, allowed: jax.Array):
        logits = update_rule.read(params, texts, learner)
        said = update_rule.find_spans(logits, allowed) if kind == "span" else logits.argmax(-1)
        return said, update_rule.cross_entropy(logits, texts.targets)

    def say(params: Params, rows: Sequence[Labelled]) -> tuple[list[Any], float]:
        said, nats, labels = [], 0.0, 0.0
        for first in range(0, len(rows), count):
            # The last batch is filled up with its own last row, to keep the shape.
            chosen = [rows[min(i, len(rows) - 1)] for i in range(first, first + count)]
            texts = pad_labelled(chosen, kind, pad_id, width, parts=parts)
            allowed = np.zeros((count, width), bool)
            for i, row in enumerate(chosen):
                allowed[i, : len(row.places)] = [end > begin for begin, end in row.places]
            rest = min(count, len(rows) - first)
            answers, (total, number) = jax.device_get(predict(params, texts, jnp.asarray(allowed)))
            said += answers[:rest].tolist()
            nats, labels = nats + float(total), labels + float(number)
        return said, nats / max(labels, 1)

    def score(params: Params) -> Numbers:
        said, loss = say(params, examples)
        scores = {"loss": loss, **judge.score(examples, said)}
        main = scores.pop(judge.main)
        named = {f"held_out/{name}": np.asarray(value) for name, value in scores.items()}
        return {"held_out": np.asarray(main), **named}

    def samples(params: Params) -> list[Sample]:
        few = examples[:SHOWN]
        return [
            Sample(*judge.show(row, each), score=None)
            for row, each in zip(few, say(params, few)[0], strict=True)
        ]

    main = judge.main.replace("f1", "F1")
    return Evaluation(
        score=score,
        label=f"{what} {main}",
        headline=lambda m: f"{what} loss {float(m['held_out/loss']):.3f}, {main} {float(m['held_out']):.3f}",
        samples=samples,
        panels={"held_out/loss": f"{what} loss (nats a label)"},
    )


def _make_judge(dataset: LabelledSet) -> _Judge:
    labels = dataset.labels

    def answer(row: Labelled, span: Sequence[int]) -> str:
        return row.text[row.places[span[0]][0] : row.places[span[1]][1]]

    def keep(row: Labelled, values: Sequence[int]) -> list[int]:
        return [value for value, target in zip(values, row.targets, strict=False) if target != NO_LABEL]

    if dataset.kind == "span":
        return _Judge(
            "f1",
            lambda rows, said: score_answers(
                [answer(*each) for each in zip(rows, said, strict=True)], [r.answers for r in rows]
            ),
            lambda row, span: (f"{row.question} | {row.text}", answer(row, span)),
        )
    if dataset.kind == "sequence":
        return _Judge(
            "accuracy",
            lambda rows, said: score_classes(said, [row.targets[0] for row in rows], len(labels)),
            lambda row, said: (row.text, str(labels[said])),
        )
    return _Judge(
        "f1",
        lambda rows, said: score_tags(
            [keep(*each) for each in zip(rows, said, strict=True)],
            [keep(row, row.targets) for row in rows],
            labels,
        ),
        lambda row, said: (row.text, " ".join(str(labels[i]) for i in keep(row, said))),
    )
