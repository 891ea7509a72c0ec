"""Losses of preferences as they are trained with: what each reads of the scores of a step, and what it needs.

Shapes: `B` pairs or judged completions, `K` texts of each.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp

from jaxrl4lm import losses, reduce
from jaxrl4lm.lm.config import PreferenceConfig
from jaxrl4lm.types import Array


class Scores(NamedTuple):
    """What a loss sees: sums of log-probabilities, in nats."""

    log_probs: Array
    """`[B, K]`, of completions, with `tail_weight`. Gradients flow."""
    ref_log_probs: Array
    """`[B, K]`, of the reference; 0 without one."""
    completion_log_probs: Array
    """`[B, K]`, of completions, all tokens alike. Gradients flow."""
    text_log_probs: Array
    """`[B, K]`, of prompt and completion, where the loss reads prompts; else as before. Gradients flow."""
    lengths: Array
    """`[B, K]`: tokens of the completions."""
    mean_length: Array
    """Of the first completions of the whole step: what the mean over its tokens divides by."""
    mean_text_length: Array
    """Of the first texts, likewise."""
    desirable: Array | None
    """bool `[B]`, of completions judged alone."""
    point: Array
    """What they are measured against: z of KTO, δ of BCO."""


LossFunction: TypeAlias = Callable[[Scores, PreferenceConfig], Array]


class PreferenceLoss(NamedTuple):
    """A loss, and what it needs."""

    compute: LossFunction
    """(scores, configuration) → the loss of each pair or judged completion `[B]`; its mean is descended."""
    paired: bool = True
    referenced: bool = True
    """Whether it compares with a reference."""
    reads_prompts: bool = False
    """Whether it reads the log-probabilities of prompts, too."""
    of_means: bool = False
    """Whether a completion's reward is of its mean per token."""
    ranks: bool = False
    """Whether it compares pairs of a step with each other, so that a step cannot be divided."""
    smoothing: tuple[float, float] = (-math.inf, math.inf)
    """What `label_smoothing` lies between, where the loss has no value elsewhere."""
    of_difference: bool = False
    """Whether it reads the difference of a pair alone, so that other divergences than the reverse KL have a meaning."""
    mismatched: bool = False
    """Whether judged completions come with another prompt's completion."""
    point: Callable[[Array, Array, PreferenceConfig], Array] | None = None
    """(log π − log π_ref of the last text `[B]`, `desirable`, configuration) → `Scores.point`, over the whole step."""


def compare(scores: Scores, config: PreferenceConfig) -> tuple[Array, Array, Array, Array]:
    """The better's and the worse's log-probs and the reference's; the scores of another divergence, and 0."""
    pairs = *scores.log_probs.T, *scores.ref_log_probs.T
    if config.divergence == "reverse_kl":
        return pairs
    if config.divergence == "js":
        transform = losses.jensen_shannon_score
    else:
        transform = partial(
            losses.alpha_score, alpha=0.0 if config.divergence == "forward_kl" else config.alpha
        )
    better, worse = (transform(log_probs - ref) for log_probs, ref in zip(pairs[:2], pairs[2:], strict=True))
    return better, worse, jnp.zeros_like(better), jnp.zeros_like(worse)


def _by_beta(loss: Callable[..., Array], scores: Scores, config: PreferenceConfig) -> Array:
    return loss(*compare(scores, config), beta=config.beta)


def _smoothed(loss: Callable[..., Array], scores: Scores, config: PreferenceConfig) -> Array:
    return loss(*compare(scores, config), beta=config.beta, label_smoothing=config.label_smoothing)


def ipo(scores: Scores, config: PreferenceConfig) -> Array:
    """On means per token, as its authors have it."""
    better, worse = scores.lengths.T
    return losses.ipo(
        *compare(scores, config), beta=config.beta, chosen_lengths=better, rejected_lengths=worse
    )


def dpo_of_means(scores: Scores, config: PreferenceConfig) -> Array:
    """DPO on means per token."""
    lengths = jnp.maximum(scores.lengths, 1).T
    pairs = [x / lengths[i % 2] for i, x in enumerate(compare(scores, config))]
    return losses.dpo(*pairs, beta=config.beta)


def discopop(scores: Scores, config: PreferenceConfig) -> Array:
    """`losses.discopop`, its temperature from the configuration."""
    return losses.discopop(
        *compare(scores, config), beta=config.beta, temperature=config.discopop_temperature
    )


def negative_log_likelihood(scores: Scores, config: PreferenceConfig) -> Array:
    """Of the better completions: the mean over the pairs is the mean over the tokens of the step."""
    del config
    return -scores.completion_log_probs[:, 0] / jnp.maximum(scores.mean_length, 1)


def cpo(scores: Scores, config: PreferenceConfig) -> Array:
    """Its likelihood is the mean over the tokens of the step."""
    return losses.cpo(
        *scores.completion_log_probs.T,
        beta=config.beta,
        nll_coef=config.nll_coef,
        label_smoothing=config.label_smoothing,
        chosen_lengths=scores.mean_length,
    )


def simpo(scores: Scores, config: PreferenceConfig) -> Array:
    """On means per token."""
    return losses.simpo(*mean_log_probs(scores), beta=config.beta, gamma=config.gamma)


def orpo(scores: Scores, config: PreferenceConfig) -> Array:
    """The odds ratio, and the likelihood of the better text with its prompt, as its authors train it: the mean over the tokens
    of the step."""
    better, worse = mean_log_probs(scores)
    odds = losses.orpo(better, worse, odds_coef=config.beta) + better
    return odds - scores.text_log_probs[:, 0] / jnp.maximum(scores.mean_text_length, 1)


def mean_log_probs(scores: Scores) -> Array:
    """Of the tokens of completions `[K, B]`."""
    return (scores.completion_log_probs / jnp.maximum(scores.lengths, 1)).T


def _judge(loss: Callable[..., Array], scores: Scores, config: PreferenceConfig) -> Array:
    assert scores.desirable is not None
    return loss(
        scores.log_probs[:, 0],
        scores.ref_log_probs[:, 0],
        scores.desirable,
        scores.point,
        beta=config.beta,
        desirable_weight=config.desirable_weight,
        undesirable_weight=config.undesirable_weight,
    )


def find_reference_kl(log_ratios: Array, desirable: Array, config: PreferenceConfig) -> Array:
    """KTO's z: the mean log ratio of completions after prompts that are not theirs, at least 0."""
    del desirable, config
    return losses.kto_reference_kl(log_ratios, jnp.zeros_like(log_ratios))


def find_reward_shift(log_ratios: Array, desirable: Array, config: PreferenceConfig) -> Array:
    """BCO's δ: half-way between the mean rewards of what was liked and of the rest, of the step."""
    liked, others = (reduce.masked_mean(log_ratios, mask) for mask in (desirable, ~desirable))
    return config.beta * (liked + others) / 2


_difference = partial(PreferenceLoss, of_difference=True)
_alone = partial(PreferenceLoss, referenced=False)
_apo_unpaired = partial(_judge, lambda a, b, c, point, **hyper: losses.apo_zero_unpaired(a, b, c, **hyper))
LOSSES: Mapping[str, PreferenceLoss] = {
    "dpo": _difference(partial(_smoothed, losses.dpo)),
    "robust": _difference(partial(_smoothed, losses.robust_dpo), smoothing=(-math.inf, 0.5)),
    "ipo": _difference(ipo),
    "hinge": _difference(partial(_by_beta, losses.hinge)),
    "exo": _difference(partial(_smoothed, losses.exo), smoothing=(0.0, 1.0)),
    "discopop": _difference(discopop),
    "sigmoid_norm": _difference(dpo_of_means),
    "nca": PreferenceLoss(partial(_by_beta, losses.nca)),
    "sppo": PreferenceLoss(partial(_by_beta, losses.sppo)),
    "apo_zero": PreferenceLoss(partial(_by_beta, losses.apo_zero)),
    "apo_down": PreferenceLoss(partial(_by_beta, losses.apo_down)),
    "bco_pair": PreferenceLoss(partial(_by_beta, losses.bco_pair)),
    "aot": PreferenceLoss(partial(_smoothed, losses.aot), ranks=True),
    "aot_unpaired": PreferenceLoss(partial(_smoothed, losses.aot_unpaired), ranks=True),
    "orpo": _alone(orpo, of_means=True, reads_prompts=True),
    "cpo": _alone(cpo),
    "simpo": _alone(simpo, of_means=True),
    "sft": _alone(negative_log_likelihood, of_difference=True),
    "kto": PreferenceLoss(
        partial(_judge, losses.kto), paired=False, mismatched=True, point=find_reference_kl
    ),
    "bco": PreferenceLoss(partial(_judge, losses.bco), paired=False, point=find_reward_shift),
    "apo_zero_unpaired": PreferenceLoss(_apo_unpaired, paired=False),
}
"""What the command line calls them. The last three are of completions judged alone."""


def mix(parts: Sequence[tuple[PreferenceLoss, float]]) -> PreferenceLoss:
    """The weighted sum of losses of pairs.

    Raises:
      ValueError: if one is of completions judged alone, or a weight is not positive.
    """
    kinds = [loss for loss, _ in parts]
    if wrong := [weight for _, weight in parts if not 0 < weight < math.inf]:
        raise ValueError(f"the weight of a loss must be positive and finite, not {wrong[0]:g}")
    if len(parts) == 1 and parts[0][1] == 1:
        return kinds[0]
    if not all(loss.paired for loss in kinds):
        raise ValueError("a mixture is of losses of pairs: leave out those of completions judged alone")
    return PreferenceLoss(
        partial(_add, tuple((loss.compute, weight) for loss, weight in parts)),
        referenced=any(loss.referenced for loss in kinds),
        reads_prompts=any(loss.reads_prompts for loss in kinds),
        smoothing=(max(loss.smoothing[0] for loss in kinds), min(loss.smoothing[1] for loss in kinds)),
        ranks=any(loss.ranks for loss in kinds),
        of_difference=all(loss.of_difference for loss in kinds),
    )


def _add(parts: tuple[tuple[LossFunction, float], ...], scores: Scores, config: PreferenceConfig) -> Array:
    return sum((weight * loss(scores, config) for loss, weight in parts), jnp.zeros(()))


def check(config: PreferenceConfig, loss: PreferenceLoss) -> None:
    """Raises ValueError, naming the field and the fix, where the configuration does not fit the loss."""
    config.check()
    if config.divergence != "reverse_kl" and not loss.of_difference:
        raise ValueError(
            f"divergence {config.divergence} has a meaning for losses of a pair's difference alone "
            f"({', '.join(name for name, each in LOSSES.items() if each.of_difference)}): leave it at reverse_kl"
        )
    smoothing = config.label_smoothing
    low, high = loss.smoothing
    if isinstance(smoothing, int | float) and not low < smoothing < high:
        where = f"between {low:g} and {high:g}" if math.isfinite(low) else f"below {high:g}"
        raise ValueError(
            f"label_smoothing must lie {where} for this loss, not {smoothing}: 0.001 is usual of exo, 0.1 of robust"
        )
    if loss.ranks and config.micro_batches > 1:
        raise ValueError(
            f"micro_batches must be 1, not {config.micro_batches}: the loss compares the pairs of a step with each other"
        )
    if loss.ranks and config.policy_weights:
        raise ValueError(
            "policy_weights weigh a pair, and the loss compares pairs with others: leave them out"
        )
    if not loss.paired and (config.policy_weights or config.tail_weight != 1):
        raise ValueError(
            "policy_weights and tail_weight are of pairs, and the loss is of completions judged alone: leave them out"
        )
