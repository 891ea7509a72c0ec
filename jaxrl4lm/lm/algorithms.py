"""The shop window: algorithms as compositions of credit, level, surrogate, weights, value loss, KL, entropy and reduction.

A new one is one new function passed in. docs/algorithms.md has them as a table.

    mine = algorithms.GRPO._replace(reduction=reduce.token_fraction, weights=(surrogates.reject_sequences,))
    config = mine.configure(updates=200, completions=8)  # a configuration with the numbers of its paper

Shapes: `B` completions, `T` tokens.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm import advantages, decoding, losses, reduce
from jaxrl4lm.decoding.processors import History, Penalty
from jaxrl4lm.lm import credit, surrogates
from jaxrl4lm.lm.config import ReinforcementConfig
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.types import Array, Params, ScalarLike


def keep_price(config: ReinforcementConfig) -> losses.kl.Controller:
    """β = `kl_coef`."""
    return losses.kl.fixed_controller(config.kl_coef)


def adapt_price(config: ReinforcementConfig) -> losses.kl.Controller:
    """β starts at `kl_coef` and holds the divergence of a sequence at `kl_target`."""
    return losses.kl.adaptive_controller(config.kl_coef, target=config.kl_target, horizon=config.kl_horizon)


def double_price(config: ReinforcementConfig) -> losses.kl.Controller:
    """β starts at `kl_coef`, and doubles or halves to hold the divergence at `kl_target`."""
    return losses.kl.doubling_controller(config.kl_coef, target=config.kl_target)


def adapt_entropy_price(config: ReinforcementConfig) -> losses.kl.Controller:
    """The price of entropy starts at `entropy_coef` and goes by `entropy_step`, up below `entropy_target` and down above.

    Reference: He et al. 2025, arXiv:2505.22312 (Skywork-OR1).
    """

    def update(coef: Array, entropy: ScalarLike, count: ScalarLike) -> Array:
        del count
        step = jnp.where(entropy <= config.entropy_target, config.entropy_step, -config.entropy_step)
        return jnp.clip(coef + step, 0.0, 1.0)

    return losses.kl.Controller(lambda: jnp.asarray(config.entropy_coef, jnp.float32), update)


class KL(NamedTuple):
    """Where the divergence from the reference enters, and how its price β is set. `KL()`: it enters nowhere, and no
    reference is kept.

    Only k1 in the reward and the sequence forms give the gradient of the sequence KL; token k2 and k3 as losses miss how a
    token changes later states, and k3's is moreover that of the forward KL (see the table in `losses.kl`).
    """

    reward: Callable[..., Array] | None = None
    """(log_probs, ref_log_probs, mask=) → `[B, T]`, subtracted from the rewards times β."""
    loss: Callable[..., Array] | None = None
    """The same signature; added to the loss times β."""
    of_sequence: bool = False
    """The loss has one value a sequence (on each of its tokens): it is averaged over sequences."""
    times_ratio: bool = False
    """The loss is multiplied by ρ, through which gradients flow, at the algorithm's level: with k3 and of one decision that
    is ∇KL(π‖ref), and holds for completions of an older policy (arXiv:2512.02556)."""
    from_old: bool = False
    """The divergence is from the policy that drew the completions (PPO's penalty), in nats a token; no reference is kept."""
    controller: Callable[[ReinforcementConfig], losses.kl.Controller] = keep_price
    """The rule for β."""

    @property
    def priced(self) -> bool:
        """Whether a divergence has a price at all."""
        return self.reward is not None or self.loss is not None

    @property
    def referred(self) -> bool:
        """Whether a reference is needed."""
        return self.priced and not self.from_old


Step = Callable[
    [Callable[[Params], Array], Callable[[Params], Array], Params, ReinforcementConfig],
    tuple[Params, losses.trpo.StepInfo],
]
"""(params ↦ loss, params ↦ mean KL(π_old‖π), params, config) → (params, what the step did)."""


class Algorithm(NamedTuple):
    """A policy-gradient algorithm for completions."""

    credit: credit.Assign
    """(token rewards `[B, T]`, what the KL costs each token `[B, T]`, rollout, config) → credit."""
    surrogate: surrogates.Surrogate
    """(log_probs, old_log_probs, advantages, mask, config) → loss `[B, T]`."""
    reduction: Callable[[Array, Array], reduce.Fraction]
    """(loss `[B, T]`, mask) → (sum, denominator)."""
    value_loss: Callable[[Array, Array, Array, Array, ReinforcementConfig], Array] | None = None
    """(values, old_values, targets, mask, config) → loss `[B, T]`. None: there is no critic."""
    kl: KL = KL(reward=losses.kl.k1)
    compares_group: bool = False
    """Whether completions of one prompt are compared, so that each prompt needs several."""
    level: surrogates.Level | None = None
    """Whose ratio the surrogate takes, as `losses.sequence_log_probs`; None: that of each token."""
    weights: tuple[surrogates.Weight, ...] = ()
    """Constants that multiply the surrogate: corrections for old completions, choices of tokens."""
    entropy_price: Callable[[ReinforcementConfig], losses.kl.Controller] | None = None
    """The rule for the price of entropy; None: it stays `entropy_coef`."""
    greedy_baseline: bool = False
    """Whether the most likely completion of each prompt is drawn and scored, too: `Rollout.baselines`."""
    vocabulary: Callable[[LanguagePolicy, Params, ReinforcementConfig], Penalty] | None = None
    """(policy, older parameters, config) → what forbids tokens, while drawing and while learning; `Rollout` and ratios are
    then of the distribution that is left. None: every token may come."""
    step: Step | None = None
    """In place of the optimizer's steps: one step of its own an update."""
    defaults: Mapping[str, Any] = MappingProxyType({})
    """Fields of the configuration that its paper sets otherwise."""

    def configure(self, **changes: Any) -> ReinforcementConfig:
        """A configuration with the numbers of the algorithm's paper, and these changes."""
        return ReinforcementConfig(**{**self.defaults, **changes})


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────


def clip_value(values, old_values, targets, mask, config):
    """PPO's value loss, of `value_clip`."""
    return losses.clipped_value(values, old_values, targets, clip_eps=config.value_clip, mask=mask)


def square_value(values, old_values, targets, mask, config):
    """½(V − R)²."""
    return losses.squared_value(values, targets, mask=mask)


def average_longest(loss: Array, mask: Array) -> reduce.Fraction:
    """Dr.GRPO's: every completion is divided by the longest one allowed, whatever its own length."""
    return reduce.constant_length_fraction(loss, mask, length=float(mask.shape[-1]))


def measure_old_kl(log_probs: Array, old_log_probs: Array, *, mask: Array | None = None) -> Array:
    """KL(π_old‖π) from samples of π_old, per token: (ρ − 1) − log ρ."""
    nothing = jnp.zeros_like(log_probs)
    return losses.ppo_kl_penalty(log_probs, old_log_probs, nothing, beta=1.0, mask=mask)


def step_in_trust_region(loss, kl, params, config):
    """TRPO's: the natural gradient by conjugate gradients, as far as KL(π_old‖π) ≤ `trust_region`."""
    return losses.trpo.step(loss, kl, params, max_kl=config.trust_region)


def mask_vocabulary(policy: LanguagePolicy, params: Params, config: ReinforcementConfig) -> Penalty:
    """NLPO's: only the most likely tokens of the older policy, which have `mask_top_p` together, may come.

    The older policy reads the text anew at every step: T passes over a completion.
    """

    def forbid(params: Params, top_p: ScalarLike, logits: Array, history: History) -> Array:
        hidden = policy.completion_hidden(params, history.prompts, history.prompt_mask, history.tokens)
        step = jnp.broadcast_to(history.step, logits.shape[:1])[:, None, None]
        older = policy.logits(params, jnp.take_along_axis(hidden, step, axis=1)[:, 0])
        return jnp.where(jnp.isneginf(decoding.top_p(top_p)(older)), -jnp.inf, logits)

    return jax.tree_util.Partial(forbid, params, config.mask_top_p)


def compare(estimator: Callable[[Array, Array], Array]) -> credit.Assign:
    """Credit by an estimator of `advantages` over groups."""
    return partial(credit.group_credit, estimator=estimator)


ON_POLICY = {"epochs": 1, "minibatches": 1}
SEQUENCE_CLIP = {"clip_eps": 3e-4, "clip_eps_high": 4e-4}
"""Of a mean over tokens, which hardly moves."""

# ── with a critic ────────────────────────────────────────────────────────────────────────────────────────

PPO = Algorithm(
    credit=credit.actor_critic_credit,
    surrogate=surrogates.clip_ratio,
    value_loss=clip_value,
    reduction=reduce.token_fraction,
)
"""Schulman et al. 2017, arXiv:1707.06347, on tokens as in Ziegler et al. 2019, arXiv:1909.08593. The critic is a head on the
policy's trunk, or a transformer of its own (`lm.critic`). `dual_clip` bounds the ratio where an advantage is negative (Ye et
al. 2020, arXiv:1912.09729)."""

PPO_PENALTY = PPO._replace(
    surrogate=surrogates.free_ratio,
    kl=KL(loss=measure_old_kl, from_old=True, controller=double_price),
    defaults={"kl_coef": 1.0, "kl_target": 0.01, "epochs": 4},
)
"""The other form of the same paper, eq. 8: a price on KL(π_old‖π), which doubles or halves, in place of the clip. Several
epochs: in the first step of one there is no such divergence."""

NLPO = PPO._replace(vocabulary=mask_vocabulary)
"""Ramamurthy et al. 2022, arXiv:2210.01241: PPO among the tokens that a copy of the policy, `mask_interval` updates old at
most, finds likely."""

A2C = Algorithm(
    credit=partial(credit.actor_critic_credit, gae_lambda=1.0, whiten=False),
    surrogate=surrogates.score_function,
    value_loss=square_value,
    reduction=reduce.token_fraction,
    defaults={"entropy_coef": 0.01, **ON_POLICY},
)
"""Mnih et al. 2016, arXiv:1602.01783, synchronous: A = G − V with Monte-Carlo returns G, which are the value's targets."""

A2C_ONE_STEP = A2C._replace(credit=partial(credit.actor_critic_credit, gae_lambda=0.0, whiten=False))
"""The same with the error of one step: A = r + γV(s') − V(s)."""

# ── returns with a baseline ──────────────────────────────────────────────────────────────────────────────

REINFORCE = Algorithm(
    credit=credit.return_to_go_credit,
    surrogate=surrogates.score_function,
    reduction=reduce.sequence_sum_fraction,
    defaults=ON_POLICY,
)
"""Williams 1992, with the batch mean as baseline. On-policy: take one epoch of one minibatch."""

TRPO = REINFORCE._replace(
    surrogate=surrogates.free_ratio, reduction=reduce.token_fraction, step=step_in_trust_region
)
"""Schulman et al. 2015, arXiv:1502.05477: one natural-gradient step an update, its length searched so that the sampled
KL(π_old‖π) stays within `trust_region`. Its Fisher matrix is that of the drawn tokens. No learning rate is read."""

REINFORCE_PLUS_PLUS = Algorithm(
    credit=credit.return_to_go_credit, surrogate=surrogates.clip_ratio, reduction=reduce.token_fraction
)
"""Hu 2025, arXiv:2501.03262: PPO without a critic, the baseline and the scale those of the whole batch."""

REINFORCE_PLUS_PLUS_BASELINE = REINFORCE_PLUS_PLUS._replace(
    credit=credit.token_whitened_group_credit, kl=KL(loss=losses.kl.k2), compares_group=True
)
"""Its later version: the mean of the group is the baseline, the batch gives the scale, and the KL is k2 as a loss."""

REMAX = Algorithm(
    credit=credit.greedy_credit,
    surrogate=surrogates.score_function,
    reduction=reduce.sequence_sum_fraction,
    greedy_baseline=True,
    defaults=ON_POLICY,
)
"""Li et al. 2023, arXiv:2310.10505: what the most likely completion earns is the baseline, one completion more a prompt."""

# ── completions of a prompt compared, the score function ─────────────────────────────────────────────────

RLOO = Algorithm(
    credit=compare(advantages.leave_one_out),
    surrogate=surrogates.score_function,
    reduction=reduce.sequence_sum_fraction,
    compares_group=True,
    defaults=ON_POLICY,
)
"""Ahmadian et al. 2024, arXiv:2402.14740. On-policy: take one epoch of one minibatch."""

OPO = RLOO._replace(credit=credit.length_weighted_credit, kl=KL())
"""Hao et al. 2025, arXiv:2505.23585: the baseline weighs completions by their length; exactly on-policy, no KL."""

GPG = RLOO._replace(credit=credit.success_credit, reduction=reduce.token_fraction, kl=KL())
"""Chu et al. 2025, arXiv:2504.02546: scores less their mean, over the share of groups that say anything; no KL."""

MAXRL = RLOO._replace(
    credit=compare(advantages.mean_normalized), reduction=reduce.sequence_mean_fraction, kl=KL()
)
"""Tajwar et al. 2026: scores over their mean, whose gradient is that of the logarithm of the success; rewards ≥ 0."""

PASS_AT_K = RLOO._replace(credit=credit.best_of_credit, kl=KL())
"""Walder & Karkhanis 2025, arXiv:2505.15201: the gradient of the best of `best_of` completions."""

# ── completions of a prompt compared, a ratio ────────────────────────────────────────────────────────────

GRPO = Algorithm(
    credit=compare(advantages.group_normalized),
    surrogate=surrogates.clip_ratio,
    reduction=reduce.sequence_mean_fraction,
    kl=KL(loss=losses.kl.k3),
    compares_group=True,
)
"""Shao et al. 2024, arXiv:2402.03300; its KL is the paper's, a loss."""

DR_GRPO = GRPO._replace(credit=compare(advantages.centered), reduction=average_longest, kl=KL())
"""Liu et al. 2025, arXiv:2503.20783: neither the group's deviation nor the completion's length divides; no KL."""

DAPO = GRPO._replace(
    credit=partial(credit.penalize_length, credit=compare(advantages.group_normalized)),
    reduction=reduce.token_fraction,
    kl=KL(),
    defaults={"clip_eps_high": 0.28, "sampling_rounds": 4},
)
"""Yu et al. 2025, arXiv:2503.14476: the ratio may rise further than fall, every token weighs the same, groups that agree are
drawn again, long completions pay (`overlong_buffer`); no KL."""

GSPO = GRPO._replace(level=losses.sequence_log_probs, kl=KL(), defaults=SEQUENCE_CLIP)
"""Zheng et al. 2025, arXiv:2507.18071: the ratio is that of the sequence, exp of the mean log-ratio of its tokens."""

GSPO_TOKEN = GSPO._replace(level=surrogates.token_sequence_log_probs)
"""Its form for advantages that differ by token; with one advantage a completion the gradient is that of GSPO."""

LUSPO = GSPO._replace(reduction=reduce.sequence_sum_fraction)
"""Liu et al. 2026, arXiv:2602.05261: GSPO, each completion weighed by its length, which GSPO's mean takes away."""

GMPO = GRPO._replace(surrogate=surrogates.clip_geometric_mean, kl=KL(), defaults={"clip_eps": 0.4})
"""Zhao et al. 2025, arXiv:2507.20673: the geometric mean of clipped ratios; `clip_eps` is of their logarithms."""

CISPO = GRPO._replace(
    surrogate=surrogates.clip_weight,
    reduction=reduce.token_fraction,
    kl=KL(),
    defaults={"clip_eps": 1.0, "clip_eps_high": 4.0},
)
"""MiniMax 2025, arXiv:2506.13585: the ratio is a weight, which is clipped; no token loses its gradient."""

SAPO = GRPO._replace(surrogate=surrogates.gate_ratio, kl=KL())
"""Gao et al. 2025, arXiv:2511.20347: a smooth gate in place of the clip."""

VESPO = GRPO._replace(surrogate=surrogates.gate_sequence, reduction=reduce.token_fraction, kl=KL())
"""arXiv:2602.10693: a smooth gate of the whole sequence's ratio; it bears completions of an old policy."""

DPPO = GRPO._replace(
    credit=compare(advantages.centered),
    surrogate=surrogates.mask_divergence,
    reduction=reduce.token_fraction,
    kl=KL(),
)
"""Qi et al. 2026, arXiv:2602.04879: a token is dropped when its probability, not its ratio, has moved by `clip_eps`."""

ALGORITHMS: Mapping[str, Algorithm] = {
    "ppo": PPO,
    "ppo_penalty": PPO_PENALTY,
    "nlpo": NLPO,
    "a2c": A2C,
    "a2c_one_step": A2C_ONE_STEP,
    "trpo": TRPO,
    "reinforce": REINFORCE,
    "reinforce++": REINFORCE_PLUS_PLUS,
    "reinforce++_baseline": REINFORCE_PLUS_PLUS_BASELINE,
    "remax": REMAX,
    "rloo": RLOO,
    "opo": OPO,
    "gpg": GPG,
    "maxrl": MAXRL,
    "pass_at_k": PASS_AT_K,
    "grpo": GRPO,
    "dr_grpo": DR_GRPO,
    "dapo": DAPO,
    "gspo": GSPO,
    "gspo_token": GSPO_TOKEN,
    "luspo": LUSPO,
    "gmpo": GMPO,
    "cispo": CISPO,
    "sapo": SAPO,
    "vespo": VESPO,
    "dppo": DPPO,
}
"""The command line's words."""

# ── axes: the command line's words for the parts ─────────────────────────────────────────────────────────

KL_PLACEMENTS: Mapping[str, KL] = {
    "reward": KL(reward=losses.kl.k1),
    "k2": KL(loss=losses.kl.k2),
    "k3": KL(loss=losses.kl.k3),
    "k3_value_k2_gradient": KL(loss=losses.kl.k3_value_k2_gradient),
    "k3_ratio": KL(loss=losses.kl.k3, times_ratio=True),
    "sequence_k2": KL(loss=losses.kl.sequence_k2, of_sequence=True),
    "sequence_ratio": KL(loss=losses.kl.sequence_ratio_k1, of_sequence=True),
    "none": KL(),
}
KL_CONTROLLERS: Mapping[str, Callable[[ReinforcementConfig], losses.kl.Controller]] = {
    "fixed": keep_price,
    "adaptive": adapt_price,
    "doubling": double_price,
}
SCALES: Mapping[str, credit.Assign] = {
    "group": compare(advantages.group_normalized),
    "batch": compare(advantages.batch_normalized),
    "none": compare(advantages.centered),
}
LEVELS: Mapping[str, surrogates.Level | None] = {
    "token": None,
    "sequence": losses.sequence_log_probs,
    "sequence_token": surrogates.token_sequence_log_probs,
}
SURROGATES: Mapping[str, surrogates.Surrogate] = {
    "clip": surrogates.clip_ratio,
    "free": surrogates.free_ratio,
    "score": surrogates.score_function,
    "cispo": surrogates.clip_weight,
    "gmpo": surrogates.clip_geometric_mean,
    "sapo": surrogates.gate_ratio,
    "vespo": surrogates.gate_sequence,
    "dppo": surrogates.mask_divergence,
}
REDUCTIONS: Mapping[str, Callable[[Array, Array], reduce.Fraction]] = {
    "token_mean": reduce.token_fraction,
    "sequence_mean": reduce.sequence_mean_fraction,
    "sequence_sum": reduce.sequence_sum_fraction,
    "constant_length": average_longest,
}
CORRECTIONS: Mapping[str, surrogates.Weight] = {
    "truncated": surrogates.truncate_weights,
    "masked": surrogates.mask_ratios,
    "rejected": surrogates.reject_sequences,
}
