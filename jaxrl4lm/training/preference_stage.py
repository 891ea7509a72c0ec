"""Learning from preferences as a stage: pairs, or completions that were liked or not.

Shapes: `N` rows, `K` texts of each.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.data import Tokenizer
from jaxrl4lm.data.batching import group_by_length
from jaxrl4lm.data.encoding import Example
from jaxrl4lm.data.pairs import Judged
from jaxrl4lm.lm import PairConfig, PreferenceConfig
from jaxrl4lm.lm import preference as update_rule
from jaxrl4lm.lm.optimizer import Optimizer, adam
from jaxrl4lm.lm.preference_losses import LOSSES, PreferenceLoss, check
from jaxrl4lm.lm.trainable import Trainable, everything
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.training.batch_steps import BatchSteps, choose_rows, count_steps, place_like
from jaxrl4lm.training.evaluation import Evaluation, say_judgements
from jaxrl4lm.training.judgements import (
    JudgementBatches,
    JudgementSet,
    arrange,
    pad_judgements,
    prepare_judgements,
)
from jaxrl4lm.training.language_stage import complete_stage
from jaxrl4lm.training.stage import Numbers, Sample, Stage
from jaxrl4lm.training.texts import MOST_WIDTHS
from jaxrl4lm.types import InputError, Params

Texts = Sequence[Sequence[Example]]


def preference(
    policy: LanguagePolicy,
    tokenizer: Tokenizer,
    dataset: JudgementSet | Sequence[Any],
    *,
    loss: PreferenceLoss = LOSSES["dpo"],
    config: PreferenceConfig = PreferenceConfig(),  # noqa: B008 (immutable)
    reference: Params | None = None,
    once: bool = False,
    pairs: PairConfig = PairConfig(),  # noqa: B008 (immutable)
    evaluation: Evaluation | None = None,
    samples: Callable[[Params], Sequence[Sample]] | None = None,
    optimizer: Optimizer = adam,
    trainable: Trainable | None = None,
    seed: int = 0,
    evaluate_every: int = 50,
) -> Stage:
    """Makes the better of two completions likelier than the worse, or what was liked likelier than what was not.

    Args:
      dataset: records with `prompt`, `chosen` and `rejected`, or with `prompt`, `completion` and `label`, rows of `data.load`,
        or a `JudgementSet` (`training.prepare_judgements`), each seen once an epoch in a new order. A loss of completions judged
        alone (KTO) takes pairs apart.
      loss: of `lm.preference_losses.LOSSES`, a mixture (`mix`), or one of your own.
      reference: its parameters, if the loss has one: mostly those that training begins with. Under adapters the base is the
        reference: give the parameters of the base.
      once: whether the reference's log-probabilities are computed before the first step and kept with the rows: no second
        model is held then.
      pairs: how rows become token ids; a `JudgementSet` is encoded already.
      evaluation: what is measured; if None loss, accuracy and margin of the held-out rows.
      samples: what the model says to a few prompts, to look at.
      optimizer: (learning rate, config) → an optax transformation.
      trainable: what learns (`lm.trainable`); everything if None.
      seed: decides everything.
      evaluate_every: steps between evaluations.
    Raises:
      InputError: where sizes do not fit, a row cannot be used, or a reference is missing.
    """
    try:
        check(config, loss)
    except ValueError as error:
        raise InputError(str(error)) from None
    if loss.referenced and reference is None:
        raise InputError(
            "the loss compares with a reference: give reference=, the parameters that training begins with, or a loss "
            "without one"
        )
    if not isinstance(dataset, JudgementSet):
        sizes = policy.config
        dataset = prepare_judgements(
            dataset,
            tokenizer,
            pairs,
            context=sizes.context,
            embeddings=sizes.vocab_size,
            paired=loss.paired,
        )
    learner = update_rule.Learner(policy, loss, optimizer, trainable or everything())
    texts, held_out = (
        arrange(part, dataset.length, loss.mismatched) for part in (dataset.training, dataset.held_out)
    )
    batches = JudgementBatches(texts, _list_columns(dataset.training), tokenizer.pad_id, config.batch, seed)
    config = count_steps(config, batches)
    known = Reference(
        reference if loss.referenced else None,
        learner,
        config,
        tokenizer.pad_id,
        {"held_out": held_out, **({"training": texts} if once else {})},
    )
    if evaluation is None and held_out:
        evaluation = evaluate_preferences(learner, dataset, config, known, tokenizer.pad_id)
        evaluation = evaluation._replace(samples=samples)
    part = BatchSteps(
        lambda state, batch, *beside: update_rule.update(state, batch, config, learner, *beside), batches
    )
    if loss.referenced and once:
        batches.kept = lambda: known.score("training")
    elif loss.referenced and not learner.trainable.frozen_is_reference:
        part.beside = known.place_beside
    stage = part.make_stage(
        "preference",
        learner,
        config,
        seed=seed,
        evaluate_every=evaluate_every,
        evaluation=evaluation,
        panels={"loss": "training loss", "rewards/margins": "margin of the rewards"},
        texts=len(texts[0]),
    )
    settings = {
        "seed": seed,
        "config": config,
        "dataset": part.description,
        "optimizer": optimizer,
        "loss": loss,
        "reference": ("once" if once else "live") if loss.referenced else "none",
        "trainable": trainable,
    }
    return complete_stage(stage, policy, tokenizer, trainable, evaluation, 1, settings)


def _list_columns(examples: Sequence[Any]) -> dict[str, np.ndarray]:
    """What a row has beside its texts, by its name in `Judgements`."""
    if not isinstance(examples[0], Judged):
        return {}
    return {"desirable": np.array([example.label for example in examples], bool)}


class Reference:
    """A reference and what is kept of it. Where rows bring its log-probabilities, it is forgotten after the first use."""

    def __init__(
        self,
        params: Params | None,
        learner: update_rule.Learner,
        config: PreferenceConfig,
        pad_id: int,
        texts: Mapping[str, Texts],
    ):
        """Takes the texts `[N][K]` of which the log-probabilities are kept, by a name. None: there is no reference."""
        self._params, self._pad_id, self._texts = params, pad_id, texts
        self._sums: dict[str, np.ndarray] = {}
        policy, frozen = learner.policy, learner.trainable.frozen_is_reference
        self._live = "training" not in texts and not frozen
        self._score = jax.jit(lambda params, texts: update_rule.sum_log_probs(params, texts, policy, config))

    def score(self, name: str) -> np.ndarray:
        """Its log-probabilities `[N, K]` of the texts of that name; 0 if there is no reference."""
        if not self._sums:
            self._sums = {each: self._score_texts(texts) for each, texts in self._texts.items()}
            if not self._live:
                self._params = None
        return self._sums[name]

    def place_beside(self, state: Any) -> tuple[Params]:
        """The parameters, where those of a state are."""
        self._params = place_like(self._params, state)
        return (self._params,)

    def _score_texts(self, texts: Texts) -> np.ndarray:
        sums = np.zeros((len(texts), len(texts[0])), np.float32)
        if self._params is None:
            return sums
        lengths = [max(len(text.tokens) for text in row) for row in texts]
        count = choose_rows(max(lengths) * len(texts[0]), len(texts))
        groups = group_by_length(lengths, count, most=MOST_WIDTHS)
        for width, members in zip(groups.widths, groups.members, strict=True):
            for first in range(0, len(members), count):
                # The last batch is filled up with its own last row, to keep the shape.
                indices = members[np.minimum(np.arange(first, first + count), len(members) - 1)]
                batch = pad_judgements([texts[i] for i in indices], self._pad_id, width)
                sums[indices] = self._score(self._params, batch)
        return sums


def evaluate_preferences(
    learner: update_rule.Learner,
    dataset: JudgementSet,
    config: PreferenceConfig,
    reference: Reference,
    pad_id: int,
) -> Evaluation:
    """Loss, accuracy and margin of held-out rows.

    Args:
      reference: what is kept of it under the name `held_out`.
    """
    config = config.replace(micro_batches=1)
    texts = arrange(dataset.held_out, dataset.length, learner.loss.mismatched)
    width = max(len(text.tokens) for row in texts for text in row)
    count = choose_rows(width * len(texts[0]), len(texts))
    columns = _list_columns(dataset.held_out)
    what = "training" if dataset.seen else "held-out"

    @jax.jit
    def measure(params: Params, batch: update_rule.Judgements) -> update_rule.Sums:
        return update_rule.measure(params, batch, config, learner)

    def score(params: Params) -> Numbers:
        parts = []
        for first in range(0, len(texts), count):
            chosen = slice(first, first + count)
            kept = {name: jnp.asarray(column[chosen]) for name, column in columns.items()}
            ref = jnp.asarray(reference.score("held_out")[chosen])
            batch = update_rule.Judgements(pad_judgements(texts[chosen], pad_id, width), ref, **kept)
            parts.append(jax.device_get(measure(params, batch)))
        sums = jax.tree.map(lambda *x: np.sum(x, dtype=np.float64), *parts)
        numbers = {name: np.asarray(value) for name, value in update_rule.summarize(sums).items()}
        accuracy, margin = numbers["rewards/accuracies"], numbers["rewards/margins"]
        return {"held_out": accuracy, "held_out/loss": numbers["loss"], "held_out/margin": margin}

    return Evaluation(
        score=score,
        label=f"{what} {'pair ' if learner.loss.paired else ''}accuracy",
        headline=say_judgements(what),
        panels={"held_out/loss": f"{what} loss"},
        rank=lambda metrics: -float(metrics["held_out/loss"]),
    )
