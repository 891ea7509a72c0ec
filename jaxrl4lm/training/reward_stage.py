"""A reward model from pairs, as a stage."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm import models
from jaxrl4lm.data import Tokenizer
from jaxrl4lm.data.pairs import Pair
from jaxrl4lm.lm import PairConfig, RewardConfig
from jaxrl4lm.lm import reward as update_rule
from jaxrl4lm.lm.optimizer import Optimizer, adam
from jaxrl4lm.lm.supervised import Texts
from jaxrl4lm.lm.trainable import Trainable, everything
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.training.batch_steps import BatchSteps, choose_rows, count_steps
from jaxrl4lm.training.evaluation import Evaluation, say_judgements
from jaxrl4lm.training.folder import MODEL
from jaxrl4lm.training.judgements import (
    JudgementBatches,
    JudgementSet,
    arrange,
    pad_judgements,
    prepare_judgements,
)
from jaxrl4lm.training.language_stage import check_config, complete_stage
from jaxrl4lm.training.stage import Numbers, Stage
from jaxrl4lm.types import Array, Params

SCALE = "reward.json"
"""Beside a reward model: `mean` and `deviation` of its rewards of the held-out texts, to normalise others by."""


def reward_model(
    policy: LanguagePolicy,
    tokenizer: Tokenizer,
    dataset: JudgementSet | Sequence[Any],
    *,
    config: RewardConfig = RewardConfig(),  # noqa: B008 (immutable)
    pairs: PairConfig = PairConfig(),  # noqa: B008 (immutable)
    optimizer: Optimizer = adam,
    trainable: Trainable | None = None,
    seed: int = 0,
    evaluate_every: int = 50,
) -> Stage:
    """Teaches a backbone and a head to give the better of two texts the higher reward.

    It begins with what `lm.reward.add_head` makes of a policy's parameters, and leaves a folder that transformers opens as a
    model for sequence classification, whose one output is the reward.

    Args:
      dataset: records with `prompt`, `chosen`, `rejected` and maybe `margin`, rows of `data.load`, or a `JudgementSet`
        (`training.prepare_judgements(..., whole=True)`), each seen once an epoch in a new order.
      pairs: how rows become token ids; a `JudgementSet` is encoded already.
      optimizer: (learning rate, config) → an optax transformation.
      trainable: what of the backbone learns (`lm.trainable`); everything if None.
      seed: decides everything.
      evaluate_every: steps between evaluations.
    Raises:
      InputError: where sizes do not fit, or a row cannot be used.
    """
    check_config(config)
    if not isinstance(dataset, JudgementSet):
        dataset = prepare_judgements(
            dataset,
            tokenizer,
            pairs,
            context=policy.config.context,
            embeddings=policy.config.vocab_size,
            whole=True,
        )
    learner = update_rule.Learner(policy, optimizer, update_rule.beside_head(trainable or everything()))
    texts, margins = arrange(dataset.training, dataset.length, False), _list_margins(dataset.training)
    batches = JudgementBatches(
        texts, {"margins": margins}, tokenizer.pad_id, config.batch, seed, update_rule.RatedPairs
    )
    config = count_steps(config, batches)
    evaluation = evaluate_rewards(policy, dataset, config, tokenizer.pad_id) if dataset.held_out else None
    part = BatchSteps(lambda state, batch: update_rule.update(state, batch, config, learner), batches)

    def export(folder: pathlib.Path, state: Any, scores: Mapping[str, Any]) -> None:
        params = learner.trainable.merge(state.params, state.frozen)
        models.save_with_head(folder, policy, params["backbone"], params["head"], "sequence", tokenizer)
        said = scores.get(stage.name, {})
        scale = {
            name: said[f"held_out/{name}"] for name in ("mean", "deviation") if f"held_out/{name}" in said
        }
        (folder / SCALE).write_text(json.dumps(scale) + "\n")

    stage = part.make_stage(
        "reward",
        learner,
        config,
        seed=seed,
        evaluate_every=evaluate_every,
        evaluation=evaluation,
        panels={"loss": "training loss", "rewards/margins": "margin of the rewards"},
        texts=2,
    )._replace(exports={MODEL: export})
    settings = {
        "seed": seed,
        "config": config,
        "dataset": part.description,
        "optimizer": optimizer,
        "trainable": trainable,
    }
    return complete_stage(stage, policy, tokenizer, learner.trainable, evaluation, 1, settings)


def _list_margins(examples: Sequence[Any]) -> np.ndarray:
    return np.array([example.margin for example in examples if isinstance(example, Pair)], np.float32)


def evaluate_rewards(
    policy: LanguagePolicy, dataset: JudgementSet, config: RewardConfig, pad_id: int
) -> Evaluation:
    """Loss, accuracy and margin of held-out pairs; mean and deviation of the rewards of their texts."""
    texts, margins = arrange(dataset.held_out, dataset.length, False), _list_margins(dataset.held_out)
    width = max(len(text.tokens) for row in texts for text in row)
    count = choose_rows(2 * width, len(texts))
    what = "training" if dataset.seen else "held-out"

    @jax.jit
    def rate(params: Params, texts: Texts) -> Array:
        return update_rule.score(params, texts, policy)

    def score(params: Params) -> Numbers:
        parts = []
        for first in range(0, len(texts), count):
            padded = pad_judgements(texts[first : first + count], pad_id, width)
            parts.append(jax.device_get(rate(params, padded)))
        rewards = np.concatenate(parts)
        sums = jax.device_get(update_rule.compare(jnp.asarray(rewards), jnp.asarray(margins), config))
        numbers = {name: np.asarray(value) for name, value in update_rule.summarize(sums).items()}
        spread = rewards.std(
            dtype=np.float64
        )  # about the mean: squares in float32 lose it where the mean is large
        return {
            "held_out": numbers["rewards/accuracies"],
            "held_out/loss": numbers["loss"],
            "held_out/margin": numbers["rewards/margins"],
            "held_out/mean": numbers["rewards/mean"],
            "held_out/deviation": np.asarray(spread, np.float32),
        }

    return Evaluation(
        score=score,
        label=f"{what} pair accuracy",
        headline=say_judgements(what),
        panels={"held_out/loss": f"{what} loss"},
        rank=lambda metrics: -float(metrics["held_out/loss"]),
    )
