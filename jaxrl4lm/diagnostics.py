"""Metrics of a training step: ratios, clipping, divergences, rewards, lengths, by name.

1. `policy`, `value`, `reference_kl`, `rewards` and `completions` give the metrics of a micro-batch, inside `jit`: dicts
   of `reduce.Fraction` (total, denominator) and `Maximum`.
2. `combine` adds them over micro-batches; over devices `jax.lax.psum` and `pmax` do.
3. `to_numbers` divides, once.

A masked slot is never read. Nothing here has a gradient.

    metrics = diagnostics.combine(*[diagnostics.policy(...) for micro_batch in ...])
    row = diagnostics.to_numbers(metrics)

| here | TRL | verl |
|---|---|---|
| `policy/clip_frac_low`, `policy/clip_frac_high` | `clip_ratio/low_mean`, `clip_ratio/high_mean` | their sum: `actor/pg_clipfrac` |
| `policy/approx_kl` (k3 of π_old and π, on samples of π_old) | | `actor/ppo_kl` (their −mean log ρ is k1) |
| `policy/entropy` (exact) | `entropy` | `actor/entropy` |
| `kl/ref`, `kl/ref_sequence` | `kl` (k3, per token) | `actor/kl_loss` |
| `mismatch/logprob_diff_max` | `sampling/sampling_logp_difference/max` | |
| `value/explained_variance` | | `critic/vf_explained_var` |
| `reward/mean`, `reward/std` | `reward`, `reward_std` | `critic/score/mean` |
| `group/frac_zero_std` | `frac_reward_zero_std` | |
| `completion/length_mean`, `completion/truncated_frac` | `completions/mean_length`, `completions/clipped_ratio` | `response_length/mean`, `response_length/clip_ratio` |
"""  # noqa: E501

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxrl4lm.arguments import as_float, coefficients, mask_inputs
from jaxrl4lm.losses import kl as kl_estimators
from jaxrl4lm.losses.importance import probability_ratio
from jaxrl4lm.losses.ppo import clip_range
from jaxrl4lm.losses.value import squared_value
from jaxrl4lm.reduce import (
    Fraction,
    add,
    differ,
    divide,
    masked_variance,
    sequence_sum_fraction,
    token_fraction,
)
from jaxrl4lm.types import Array, ScalarLike


class Maximum(NamedTuple):
    """The largest of something. Micro-batches are combined by their maximum, devices by `jax.lax.pmax`."""

    value: Array


ROUNDING = 1e-6
"""Targets with a smaller standard deviation differ only by the rounding of float32 log-probabilities in rewards."""
Diagnostics: TypeAlias = dict[str, Fraction | Maximum]


def combine(*diagnostics: Mapping[str, Fraction | Maximum]) -> Diagnostics:
    """The diagnostics of all micro-batches together: fractions are added, of maxima the largest is kept.

    Args:
      *diagnostics: one per micro-batch, all with the same keys.
    Returns:
      Diagnostics with the same keys, without gradient.
    Raises:
      ValueError: if the keys differ.
    Reference: the convention of `reduce.add`.
    """
    names = set().union(*diagnostics)
    for each in diagnostics:
        if missing := names - set(each):
            raise ValueError(f"some micro-batches have {sorted(missing)}, others do not: give each the same.")

    def merge(*entries: Fraction | Maximum) -> Fraction | Maximum:
        fractions = [entry for entry in entries if isinstance(entry, Fraction)]
        if fractions:
            return add(*fractions)
        return Maximum(jnp.stack([entry.value for entry in entries if isinstance(entry, Maximum)]).max(0))

    return {name: merge(*(each[name] for each in diagnostics)) for name in next(iter(diagnostics), {})}


def to_numbers(diagnostics: Mapping[str, Fraction | Maximum]) -> dict[str, Array]:
    """Numbers to report: each fraction divided; 0 where nothing was counted.

    Args:
      diagnostics: of the whole step, combined.
    Returns:
      A scalar for each name, without gradient.
    Reference: the convention of `reduce.divide`.

    >>> to_numbers({"loss": token_fraction(jnp.array([1.0, 3.0])), "ratio": Maximum(jnp.array(1.5))})
    {'loss': Array(2., dtype=float32), 'ratio': Array(1.5, dtype=float32, weak_type=True)}
    """
    return {
        name: divide(entry) if isinstance(entry, Fraction) else entry.value
        for name, entry in diagnostics.items()
    }


def _mean_and_std(name: str, values: Array, mask: Array | None) -> Diagnostics:
    """Over micro-batches the mean is exact; the standard deviation is the weighted mean of those of each."""
    mean = token_fraction(values, mask)
    std = jnp.sqrt(masked_variance(values, mask))
    return {f"{name}/mean": mean, f"{name}/std": Fraction(std * mean.denominator, mean.denominator)}


def policy(
    log_probs: Array,
    old_log_probs: Array,
    advantages: Array,
    *,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
    clipped_log_probs: Array | None = None,
    entropies: Array | None = None,
    loss: Array | None = None,
    mask: Array | None = None,
) -> Diagnostics:
    """Ratio, clipping, movement from π_old, and the advantages.

    Args:
      log_probs: log π(a_t|s_t), any shape, in nats.
      old_log_probs: those of the behaviour policy.
      advantages: A.
      clip_eps: ε of the clip.
      clip_eps_high: ε_high of the clip; ε if None.
      clipped_log_probs: those whose ratio is clipped, as of whole sequences; `log_probs` if None.
      entropies: exact entropies, if at hand.
      loss: the unreduced policy loss, if at hand.
      mask: the tokens that count.
    Returns:
      Without gradient: `policy/ratio_mean`, `policy/ratio_max`, `policy/clip_frac_low` (ρ < 1−ε and A < 0:
      tokens whose gradient the lower bound removes), `policy/clip_frac_high` (ρ > 1+ε_high and A > 0),
      `policy/approx_kl` (k3 of KL(π_old‖π), on samples of π_old, in nats per token),
      `mismatch/logprob_diff_max` (in nats), `advantage/mean`, `advantage/std`, and `policy/entropy` (in nats
      per token), `policy/loss` where given.
    Reference: Huang et al. 2022, "The 37 implementation details", no. 12; k3: Schulman 2020,
      http://joschu.net/blog/kl-approx.html.
    """
    keep, log_probs, old_log_probs, advantages = jax.lax.stop_gradient(
        mask_inputs(mask, log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    )
    ratios = probability_ratio(log_probs - old_log_probs)
    low, high = clip_range(ratios, clip_eps, clip_eps_high)
    bounded = ratios
    if clipped_log_probs is not None:
        _, clipped = jax.lax.stop_gradient(mask_inputs(keep, clipped_log_probs=clipped_log_probs))
        bounded = probability_ratio(clipped - old_log_probs)
    metrics: Diagnostics = {
        "policy/ratio_mean": token_fraction(ratios, keep),
        "policy/ratio_max": Maximum(jnp.max(jnp.where(keep, ratios, 0), initial=0)),
        "policy/clip_frac_low": token_fraction((bounded < 1 - low) & (advantages < 0), keep),
        "policy/clip_frac_high": token_fraction((bounded > 1 + high) & (advantages > 0), keep),
        "policy/approx_kl": token_fraction(kl_estimators.k3(old_log_probs, log_probs, mask=keep), keep),
        "mismatch/logprob_diff_max": Maximum(jnp.max(jnp.abs(log_probs - old_log_probs), initial=0)),
        **_mean_and_std("advantage", advantages, keep),
    }
    extra = {"entropies": ("policy/entropy", entropies), "loss": ("policy/loss", loss)}
    for argument, (name, values) in extra.items():
        if values is not None:
            _, _, values = mask_inputs(keep, log_probs=log_probs, **{argument: values})
            metrics[name] = token_fraction(jax.lax.stop_gradient(values), keep)
    return metrics


def value(
    values: Array, targets: Array, *, loss: Array | None = None, mask: Array | None = None
) -> Diagnostics:
    """How much of the targets a value function explains.

    Args:
      values: V(s_t), any shape.
      targets: R.
      loss: the unreduced value loss; ½(V−R)² if None.
      mask: the elements that count.
    Returns:
      Without gradient: `value/loss`, `value/mean`, and `value/explained_variance` = 1 − Var(e)/Var(R), e = R − V, as
      the fraction (Σ(R−R̄)² − Σ(e−ē)², Σ(R−R̄)²), with means within each micro-batch. It is 0 if the standard
      deviation of the targets is below 1e-6, because then they differ only by rounding.
    Reference: `explained_variance` of OpenAI Baselines, 2017; the coefficient of determination of an unbiased
      predictor.
    """
    keep, values, targets = jax.lax.stop_gradient(mask_inputs(mask, values=values, targets=targets))
    loss = squared_value(values, targets, mask=keep) if loss is None else jax.lax.stop_gradient(loss)
    count = keep.sum(dtype=values.dtype)
    total = masked_variance(targets, keep) * count
    unexplained = masked_variance(targets - values, keep) * count
    explained = jnp.where(total > ROUNDING**2 * count, total - unexplained, 0)
    return {
        "value/loss": token_fraction(loss, keep),
        "value/mean": token_fraction(values, keep),
        "value/explained_variance": Fraction(explained, total),
    }


def reference_kl(log_probs: Array, ref_log_probs: Array, *, mask: Array | None = None) -> Diagnostics:
    """Distance from a reference policy, per token (k3) and per sequence (Σ k1, unbiased).

    Args:
      log_probs: log π of the sampled tokens [..., T], in nats.
      ref_log_probs: those of the reference.
      mask: the tokens that count.
    Returns:
      `kl/ref` and `kl/ref_sequence`, in nats, without gradient.
    Reference: Schulman 2020, http://joschu.net/blog/kl-approx.html.
    """
    log_probs, ref_log_probs = jax.lax.stop_gradient((log_probs, ref_log_probs))
    return {
        "kl/ref": token_fraction(kl_estimators.k3(log_probs, ref_log_probs, mask=mask), mask),
        "kl/ref_sequence": sequence_sum_fraction(kl_estimators.k1(log_probs, ref_log_probs, mask=mask), mask),
    }


def rewards(rewards: Array, mask: Array | None = None, *, success: ScalarLike = 1.0) -> Diagnostics:
    """What the completions of a batch earned.

    Args:
      rewards: [groups, n].
      mask: the completions that were scored, of the same shape.
      success: the least reward that counts as solved.
    Returns:
      Without gradient: `reward/mean`, `reward/std`, `group/frac_zero_std` (groups that carry no information),
      `pass_at_1` and `pass_at_n` (share of completions, and of groups with at least one completion, that
      reach `success`).
    Reference: groups without information: Yu et al. 2025, arXiv:2503.14476, sec. 3.2; pass@k: Chen et al.
      2021, arXiv:2107.03374, sec. 2.1.
    """
    keep, rewards = mask_inputs(mask, rewards=as_float(rewards))
    (success,) = coefficients(rewards, success=success)
    solved = keep & (rewards >= success)
    return {
        **_mean_and_std("reward", rewards, keep),
        "group/frac_zero_std": token_fraction(~differ(rewards, keep, axis=-1)),
        "pass_at_1": token_fraction(solved, keep),
        "pass_at_n": token_fraction(solved.any(-1)),
    }


def completions(mask: Array, ended: Array) -> Diagnostics:
    """Lengths and ends of completions.

    Args:
      mask: the tokens of each completion, its end included [..., T].
      ended: did it end by itself, rather than at the length limit [...].
    Returns:
      Without gradient: `completion/length_mean` (in tokens), `completion/eos_frac`,
      `completion/truncated_frac`.
    Reference: what becomes of cut completions: Yu et al. 2025, arXiv:2503.14476, sec. 3.4.
    """
    lengths = jnp.asarray(mask).astype(bool).sum(-1)
    ended = jnp.asarray(ended).astype(bool)
    return {
        "completion/length_mean": token_fraction(lengths),
        "completion/eos_frac": token_fraction(ended),
        "completion/truncated_frac": token_fraction(~ended),
    }
