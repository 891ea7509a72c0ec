"""Task heads on a frozen backbone."""

import jax
import numpy as np

from jaxrl4lm import data, lm, models, training
from jaxrl4lm.cli.tour.chapter import Chapter, Findings, Table
from jaxrl4lm.cli.tour.small_model import Language, list_beginnings, read_metric, teach
from jaxrl4lm.plots.panels import Line, Panel

TEXT = """
A model that can continue texts knows more than letters. A **task head** is one small matrix that reads this from the
hidden states: spans, classes or tags. The **backbone** below it stays frozen: no gradient reaches it, and it can serve
many heads.

The question here is whom a beginning such as `the old cook waits` is about, an animal or a person. Nobody taught the
model these classes. But it had to know them after the verb, since in its language animals and people are found in
different places. The same head is trained on a backbone that never learned anything, and once with everything learning.
"""
STEPS, BATCH, TAUGHT = 100, 16, 48


def _compute() -> Findings:
    language = teach()
    rows = [
        data.Row(i, {"text": f"{text} ", "label": kind})
        for i, (text, kind) in enumerate(
            np.random.default_rng(1).permutation(list_beginnings()).tolist(), start=1
        )
    ]
    dataset = training.prepare_labelled(
        rows[:TAUGHT],
        language.tokenizer,
        "sequence",
        lm.PairConfig(),
        context=language.policy.config.context,
        embeddings=language.policy.config.vocab_size,
        evaluation_rows=rows[TAUGHT:],
    )
    kinds = {
        "frozen, knows the language": (language.params, "backbone"),
        "frozen, knows nothing": (language.untrained, "backbone"),
        "everything learns": (language.untrained, "none"),
    }
    runs = {name: _train(language, dataset, *kind) for name, kind in kinds.items()}
    scores = {name: read_metric(run, "held_out") for name, run in runs.items()}
    losses = {name: read_metric(run, "held_out/loss") for name, run in runs.items()}
    learned = {"backbone": sum(x.size for x in jax.tree.leaves(runs["frozen, knows nothing"].params["head"]))}
    learned["none"] = learned["backbone"] + models.parameter_count(language.params)
    table = [
        [name, f"{learned[kinds[name][1]]:,}", f"{scores[name][1][-1]:.2f}", f"{losses[name][1][-1]:.3f}"]
        for name in kinds
    ]
    return Findings(
        panels=(
            Panel(
                "animal or person? rows that were held out",
                "steps",
                "accuracy",
                lines=[Line(*points, name) for name, points in scores.items()],
                levels=((0.5, "a guess"),),
                y_limits=(0.3, 1.05),
            ),
            Panel(
                "cross-entropy of those rows",
                "steps",
                "nats a row",
                lines=[Line(*x, name) for name, x in losses.items()],
            ),
        ),
        tables=(Table(["backbone", "parameters that learn", "accuracy", "cross-entropy"], table),),
        remarks=f"{TAUGHT} rows to learn from, {len(rows) - TAUGHT} to judge by, {STEPS} steps of {BATCH} rows.",
    )


def _train(language: Language, dataset, backbone, frozen: str) -> training.Run:
    stage = training.head(
        language.policy,
        language.tokenizer,
        dataset,
        config=lm.HeadConfig(steps=STEPS, batch=BATCH, learning_rate=3e-2 if frozen == "backbone" else 3e-3),
        trainable=training.freeze(frozen),
        evaluate_every=10,
    )
    return training.fit([stage], training.init_parameters(language.policy, backbone, dataset))


CHAPTER = Chapter(
    name="heads",
    title="Task heads on a frozen backbone",
    text=TEXT,
    functions=(
        "training.prepare_labelled",
        "training.head",
        "training.freeze",
        "training.init_parameters",
        "training.fit",
    ),
    picture="Accuracy and cross-entropy of held-out rows against steps, for two frozen backbones and one that learns",
    compute=_compute,
    commands=("jaxrl4lm head --kind sequence --model DIR --dataset FILE",),
)
