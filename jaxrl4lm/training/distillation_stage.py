"""Distillation as a stage: a student learns from one or several frozen teachers, on its own completions or given ones."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.data import Tokenizer
from jaxrl4lm.data.corpus import pad
from jaxrl4lm.data.packing import pad_examples
from jaxrl4lm.decoding import Sampling
from jaxrl4lm.lm import DistillationConfig, PairConfig
from jaxrl4lm.lm import distillation as update_rule
from jaxrl4lm.lm.distillation_losses import Divergence, compare
from jaxrl4lm.lm.optimizer import Optimizer, adam
from jaxrl4lm.lm.supervised import Texts
from jaxrl4lm.lm.trainable import Trainable, everything
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.training.batch_steps import BatchSteps, choose_rows, count_steps, place_like
from jaxrl4lm.training.evaluation import Evaluation
from jaxrl4lm.training.language_stage import check_config, complete_stage
from jaxrl4lm.training.prompted import MixedBatches, list_prompts, prepare_prompted
from jaxrl4lm.training.reinforcement_stage import LONGEST_COMPLETION
from jaxrl4lm.training.stage import Numbers, Sample, Stage
from jaxrl4lm.training.texts import TextSet
from jaxrl4lm.types import Array, InputError, Params

Teacher = tuple[LanguagePolicy, Params]


def distillation(
    policy: LanguagePolicy,
    tokenizer: Tokenizer,
    dataset: TextSet | Sequence[Any],
    teachers: Sequence[Teacher],
    *,
    weights: Sequence[float] | None = None,
    config: DistillationConfig = DistillationConfig(),  # noqa: B008 (immutable)
    rows: PairConfig = PairConfig(),  # noqa: B008 (immutable)
    sampling: Sampling = Sampling(),
    divergence: Divergence = compare,
    evaluation: Evaluation | None = None,
    samples: Callable[[Params], Sequence[Sample]] | None = None,
    optimizer: Optimizer = adam,
    trainable: Trainable | None = None,
    seed: int = 0,
    evaluate_every: int = 50,
) -> Stage:
    """Brings the distribution of a student near those of its teachers.

    Args:
      dataset: prompts (text or messages), records with `prompt` and maybe `completion`, or `messages`, rows of `data.load`, or a
        `TextSet` (`training.prepare_prompted`), each seen once an epoch in a new order.
      teachers: policies and their parameters, of the student's vocabulary.
      weights: with which the divergences are added; equal ones, whose sum is 1, if None.
      rows: how rows become token ids; a `TextSet` is encoded already.
      sampling: how the student draws; it may leave length and end tokens open: then they are 64 and the tokenizer's.
      divergence: (logits of the student, of a teacher, config) → `[N]`; by β of the configuration if it is not given.
      evaluation: what is measured; if None token agreement, loss and reverse KL of the held-out rows.
      samples: what the model says to a few prompts, to look at.
      optimizer: (learning rate, config) → an optax transformation.
      trainable: what learns (`lm.trainable`); everything if None.
      seed: decides everything.
      evaluate_every: steps between evaluations.
    Raises:
      InputError: where sizes do not fit, a row cannot be used, or there are no completions to learn from.
    """
    sampling = sampling.complete(LONGEST_COMPLETION, tokenizer.eos_ids, tokenizer.pad_id)
    weights = _check(policy, teachers, weights, config, sampling)
    context = min(each.config.context for each in (policy, *(teacher for teacher, _ in teachers)))
    room = sampling.length if config.on_policy_share > 0 else 1
    if not isinstance(dataset, TextSet):
        size = policy.config.vocab_size
        dataset = prepare_prompted(dataset, tokenizer, rows, context=context, embeddings=size, room=room)
    if config.on_policy_share < 1 and not all(any(example.targets) for example in dataset.training):
        raise InputError(
            f"on_policy_share {config.on_policy_share} needs completions, and the rows have prompts alone: give 1, or rows "
            "with `completion`"
        )
    policies = tuple(teacher for teacher, _ in teachers)
    learner = update_rule.Learner(
        policy, policies, weights, sampling, divergence, optimizer, trainable or everything()
    )
    batches = MixedBatches(dataset, tokenizer.pad_id, config.batch, seed, config.on_policy_share, room)
    config = count_steps(config, batches)
    known = _Teachers(tuple(params for _, params in teachers))
    if evaluation is None and dataset.held_out:
        evaluation = evaluate_distillation(
            learner, known.place_beside, dataset, config, tokenizer.pad_id, context
        )
        evaluation = evaluation._replace(samples=samples)
    part = BatchSteps(
        lambda state, batch, *params: update_rule.update(state, batch, config, learner, params), batches
    )
    part.beside = known.place_beside
    stage = part.make_stage(
        "distillation",
        learner,
        config,
        seed=seed,
        evaluate_every=evaluate_every,
        evaluation=evaluation,
        panels={"loss": "training loss (nats a token)"},
    )
    settings = {
        "seed": seed,
        "config": config,
        "dataset": part.description,
        "teachers": [teacher.config for teacher in policies],
        "weights": weights,
        "sampling": sampling,
        "divergence": divergence,
        "optimizer": optimizer,
        "trainable": trainable,
    }
    return complete_stage(stage, policy, tokenizer, trainable, evaluation, 1, settings)


def _check(
    policy: LanguagePolicy,
    teachers: Sequence[Teacher],
    weights: Sequence[float] | None,
    config: DistillationConfig,
    sampling: Sampling,
) -> tuple[float, ...]:
    """The weights. Raises InputError where something does not fit."""
    check_config(config)
    if not teachers:
        raise InputError("there is no teacher: give at least one, as (policy, parameters)")
    for teacher, _ in teachers:
        if teacher.vocab_size != policy.vocab_size:
            raise InputError(
                f"a teacher has {teacher.vocab_size} tokens and the student {policy.vocab_size}: distributions compare over one "
                "vocabulary, take models of one tokenizer"
            )
    weights = [1 / len(teachers)] * len(teachers) if weights is None else list(map(float, weights))
    if len(weights) != len(teachers):
        raise InputError(f"there are {len(weights)} weights for {len(teachers)} teachers: give one for each")
    if not (all(weight >= 0 for weight in weights) and 0 < sum(weights) < math.inf):
        raise InputError(
            f"the weights of teachers are {weights}: they must be finite, none may be negative, nor all 0"
        )
    if config.on_policy_share > 0 and (sampling.copies != 1 or sampling.temperature is None):
        raise InputError(
            "the student draws one completion of a prompt: give sampling a temperature and 1 copy"
        )
    same = sampling.temperature is config.loss_temperature or sampling.temperature == config.loss_temperature
    if config.objective == "advantage" and (sampling.reshapes or not same):
        raise InputError(
            "objective advantage needs completions of the distribution that learns: give loss_temperature the temperature "
            "of drawing, and no penalties or truncations"
        )
    return tuple(weights)


class _Teachers:
    """Parameters that stand beside those of a state, on the same devices."""

    def __init__(self, params: tuple[Params, ...]):
        self._params = params

    def place_beside(self, state: Any) -> tuple[Params, ...]:
        self._params = place_like(self._params, state)
        return self._params


def evaluate_distillation(
    learner: update_rule.Learner,
    teachers: Callable[[Params], tuple[Params, ...]],
    dataset: TextSet,
    config: DistillationConfig,
    pad_id: int,
    context: int,
) -> Evaluation:
    """Token agreement and loss of held-out rows, and the reverse KL on what the student says to some of their prompts.

    Agreement is how often the student's likeliest token is a teacher's. Both are of the given completions, and of the student's
    where it trains on these alone.

    Args:
      teachers: parameters of the student → those of the teachers, where they are to be read.
      context: the models', in tokens.
    """
    config = config.replace(
        objective="divergence", beta=1.0 if config.objective == "advantage" else config.beta
    )
    reverse = config.replace(beta=1.0, teacher_top_k=None)
    own = learner._replace(divergence=compare)
    room = learner.sampling.length
    prompts = [ids for ids in list_prompts(dataset.held_out) if len(ids) + room <= context]
    prompts = prompts[: choose_rows(room + max(map(len, prompts), default=0), len(prompts))]
    batch = pad(prompts, max(map(len, prompts), default=0), pad_id, left=True)

    @jax.jit
    def measure(params: Params, known: tuple[Params, ...], texts: Texts) -> update_rule.Sums:
        return update_rule.measure(params, known, texts, config, learner)

    @jax.jit
    def measure_own(
        params: Params, known: tuple[Params, ...], tokens: Array, mask: Array
    ) -> update_rule.Sums:
        said = update_rule.Prompts(tokens, mask)
        drawn = update_rule.complete(params, said, jax.random.key(0), learner)
        divergence = update_rule.measure(params, known, drawn, reverse, own)["loss"]
        return {**update_rule.measure(params, known, drawn, config, learner), "reverse_kl": divergence}

    def score(params: Params) -> Numbers:
        known = teachers(params)
        parts = []
        if config.on_policy_share < 1:
            parts = [jax.device_get(measure(params, known, part)) for part in texts]
        sums = jax.tree.map(lambda *x: np.sum(x, dtype=np.float64), *parts) if parts else {}
        if prompts:
            sums = jax.device_get(measure_own(params, known, *batch)) | sums
        numbers = {name: np.asarray(value) for name, value in update_rule.summarize(sums).items()}
        names = {"token_agreement": "held_out", "loss": "held_out/loss", "reverse_kl": "held_out/reverse_kl"}
        return {name: numbers[each] for each, name in names.items() if each in numbers}

    texts = _batch_texts(dataset, pad_id)
    what = "training" if dataset.seen else "held-out"
    panels = {"held_out/loss": f"{what} loss (nats a token)"}
    if prompts:
        panels["held_out/reverse_kl"] = f"{what} reverse KL, own completions (nats a token)"
    return Evaluation(
        score=score,
        label=f"{what} token agreement",
        headline=lambda m: (
            f"{what} loss {float(m['held_out/loss']):.3f}, agreement {float(m['held_out']):.3f}"
            + (f", reverse KL {float(m['held_out/reverse_kl']):.3f}" if prompts else "")
        ),
        panels=panels,
        rank=lambda m: -float(m["held_out/loss"]),
    )


def _batch_texts(dataset: TextSet, pad_id: int) -> list[Texts]:
    """The held-out rows, in batches of one shape."""
    examples = dataset.held_out
    width = max(len(example.tokens) for example in examples)
    count = choose_rows(width, len(examples))
    padded = pad_examples(examples, pad_id, width)
    fill = -len(examples) % count  # rows without a target: they count for nothing
    tokens, segments, targets = (np.pad(x, ((0, fill), (0, 0))).reshape(-1, count, width) for x in padded)
    real = segments > 0
    real[..., 0] = True
    return [Texts(*map(jnp.asarray, part)) for part in zip(tokens, real, targets, strict=True)]
