"""Hyper-parameters (pytree leaves: they may be traced, and vmap) and sizes (static) of language-model training.

A field says its own range (`fields`), which `check` reads, and the command line, whose options embed these records.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal, Self

import jax

from jaxrl4lm.decoding import Sampling
from jaxrl4lm.fields import find_out_of_range, number, size
from jaxrl4lm.types import ScalarLike

Packing = Literal["none", "bfd", "bfd_split", "wrapped"]


class _Config:
    def replace(self, **changes) -> Self:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]

    def check(self) -> None:
        """Raises ValueError, naming the field, its value and the fix, where a number does not fit."""
        found = find_out_of_range(self)
        if found:
            raise ValueError(" ".join(found))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ReinforcementConfig(_Config):
    """One update: `prompts_per_update` x `completions` are drawn and scored, then learned from for `epochs` x
    `minibatches` optimizer steps.

    Call `check` once, outside of jit.
    """

    learning_rate: ScalarLike = number(1e-6, above=0)
    """Of the optimizer, at its highest."""
    final_learning_rate_share: ScalarLike = number(1.0, least=0, most=1)
    """Share of the learning rate that is left at the last of `updates`; it falls linearly."""
    clip_eps: ScalarLike = number(0.2, above=0)
    """How far the ratio of new to old probability may move from 1 before its gradient is cut (PPO, GRPO)."""
    clip_eps_high: ScalarLike | None = number(None, above=0)
    """How far it may rise, where that is another distance; --clip-eps is then how far it may fall (DAPO)."""
    dual_clip: ScalarLike | None = number(None, above=1)
    """Ratio above which a token with a negative advantage has no gradient (PPO's dual clip); 3 is usual."""
    kl_coef: ScalarLike = number(0.02, least=0)
    """β: price of a nat of divergence from the reference, which is the model before reinforcement learning."""
    kl_target: ScalarLike = number(6.0, above=0)
    """Nats that an adaptive price aims at: a completion, or, where it doubles and halves, a token."""
    kl_horizon: ScalarLike = number(10_000.0, above=0)
    """Completions over which a divergence that is a fifth too large raises an adaptive price by a fifth."""
    discount: ScalarLike = number(1.0, least=0, most=1)
    """Of later rewards, a token (PPO, REINFORCE)."""
    gae_lambda: ScalarLike = number(0.95, least=0, most=1)
    """Between one-step values (0) and whole returns (1) in the advantages (PPO)."""
    entropy_coef: ScalarLike = number(0.0, least=0)
    """Price that is paid for a nat of entropy of a token, against early certainty."""
    entropy_target: ScalarLike = number(0.2, least=0)
    """Nats a token that an adaptive price of the entropy aims at."""
    entropy_step: ScalarLike = number(0.005, above=0)
    """By how much that price rises in an update with less entropy, and falls in one with more."""
    top_entropy_share: ScalarLike = number(1.0, above=0, most=1)
    """Share of the tokens, those of the highest entropy, that the policy learns from."""
    ratio_cap: ScalarLike = number(2.0, above=0)
    """Largest ratio of new to old probability of an off-policy correction."""
    ratio_floor: ScalarLike = number(0.5, least=0)
    """Smallest ratio of a token that a correction by masks keeps."""
    rejection_divergence: ScalarLike = number(0.5, least=0)
    """Nats a token by which a bad completion may have become unlikelier before it is rejected."""
    score_clip: ScalarLike | None = number(None, above=0)
    """Scores are cut to this distance from 0 before anything else is done with them."""
    missing_end_score: ScalarLike | None = number(None)
    """Score of a completion without an end token, whatever the reward says of it; -1 is usual where scores are normalised."""
    missing_end_penalty: ScalarLike = number(0.0, least=0)
    """What is taken from the score of a completion without an end token."""
    overlong_buffer: ScalarLike = number(0.0, least=0)
    """Tokens before the longest completion over which DAPO's penalty of length grows to 1; a fifth of it is usual."""
    trust_region: ScalarLike = number(0.01, above=0)
    """Nats a token that a step may move the policy (TRPO)."""
    mask_top_p: ScalarLike = number(0.9, above=0, most=1)
    """Probability that the tokens have together of which an older policy lets the policy choose (NLPO)."""
    value_coef: ScalarLike = number(0.5, least=0)
    """Weight of the value loss (PPO)."""
    value_clip: ScalarLike = number(0.2, above=0)
    """How far a value may move from the old one before its loss is cut (PPO)."""
    max_grad_norm: ScalarLike = number(1.0, above=0)
    """Global norm above which a gradient is scaled down."""
    weight_decay: ScalarLike = number(0.0, least=0)
    """Of matrices, decoupled from the gradient."""
    adam_b1: ScalarLike = number(0.9, least=0, most=1)
    """Adam's β₁ (Lion's, too): the share of the old mean of gradients that a step keeps."""
    adam_b2: ScalarLike = number(0.999, least=0, most=1)
    """Adam's β₂: the share of the old mean of squares that a step keeps."""
    adam_eps: ScalarLike = number(1e-5, above=0)
    """Adam's ε. Larger than the usual 1e-8: a gradient that is nearly 0 gives no full step."""
    sampling: Sampling = Sampling()
    """How completions are drawn: length, temperature, penalties, truncations, stop sequences. Every log-probability in a
    ratio is of this distribution. Its `copies` stay 1: `completions` says how many."""

    updates: int = size(100, least=0)
    """Rounds of drawing and learning."""
    warmup: int = size(0, least=0)
    """Updates over which the learning rate rises: Adam's first steps are as long as any, on little evidence."""
    prompts_per_update: int = size(64)
    """Prompts of an update."""
    completions: int = size(8)
    """Completions of each prompt of an update: the group of GRPO and RLOO."""
    best_of: int = size(2)
    """k of pass@k, below `completions`: what is learned is that the best of so many is good."""
    mask_interval: int = size(20)
    """Updates after which that older policy is the policy again (NLPO)."""
    sampling_rounds: int = size(1)
    """Most rounds of drawing an update, until each group has completions of different scores (DAPO's dynamic sampling);
    groups that have not are not learned from. 1: one round, and every group is."""
    staleness: int = size(0, least=0, most=1)
    """1: the completions of the next update are drawn while Python rewards score those of this one, so by a policy that is one
    update older than the one that learns from them; ratios correct for it."""
    epochs: int = size(1)
    """Passes over the completions of an update."""
    minibatches: int = size(1)
    """Optimizer steps of a pass; each takes prompts_per_update / minibatches whole groups."""
    micro_batches: int = size(1)
    """Parts in which the gradient of a minibatch is computed, to save memory; the gradient is the same."""
    whiten_rewards: bool = field(default=False, metadata={"static": True})
    """Divide rewards, the price of the KL in them, by their deviation over the tokens of the update; their mean stays (PPO)."""
    whiten_advantages: bool = field(default=True, metadata={"static": True})
    """Give advantages mean 0 and deviation 1 over the tokens of the update (PPO)."""
    truncation: Literal["bootstrap", "terminal", "mask"] = field(
        default="bootstrap", metadata={"static": True}
    )
    """A completion cut by the length limit: its return continues with the value estimate (PPO), or ends there, or it is
    compared with the others but not learned from (mask)."""

    def check(self) -> None:
        """Raises ValueError, naming the field, its value and the fix, where a number does not fit."""
        super().check()
        if self.sampling.temperature is None:
            raise ValueError(
                "sampling.temperature must be a number: the most likely tokens alone teach nothing"
            )
        if self.sampling.copies != 1:
            raise ValueError(
                f"sampling.copies must be 1, not {self.sampling.copies}: `completions` says how many"
            )
        if self.prompts_per_update % (self.minibatches * self.micro_batches):
            raise ValueError(
                f"prompts_per_update {self.prompts_per_update} must be a multiple of minibatches x micro_batches "
                f"({self.minibatches} x {self.micro_batches}): every part takes as many whole prompts"
            )


@dataclass(frozen=True)
class DescentConfig(_Config):
    """Optimizer steps on batches of rows: what all learning from data has."""

    learning_rate: ScalarLike = number(2e-5, above=0)
    """Of the optimizer, at its highest."""
    final_learning_rate_share: ScalarLike = number(0.1, least=0, most=1)
    """Share of the learning rate that is left at the end of its schedule."""
    weight_decay: ScalarLike = number(0.0, least=0)
    """Of matrices, decoupled from the gradient."""
    max_grad_norm: ScalarLike = number(1.0, above=0)
    """Global norm above which a gradient is scaled down."""
    adam_b1: ScalarLike = number(0.9, least=0, most=1)
    """Adam's β₁ (Lion's, too): the share of the old mean of gradients that a step keeps."""
    adam_b2: ScalarLike = number(0.999, least=0, most=1)
    """Adam's β₂: the share of the old mean of squares that a step keeps."""
    adam_eps: ScalarLike = number(1e-8, above=0)
    """Adam's ε."""

    steps: int = size(500, least=0)
    """Optimizer steps."""
    epochs: float | None = size(None, above=0, least=None, whole=False)
    """Passes over the rows, in place of --steps."""
    batch: int = size(128)
    """Rows of an optimizer step."""
    micro_batches: int = size(1)
    """Parts in which the gradient of a step is computed, to save memory; the gradient is the same."""
    warmup: int = size(20, least=0)
    """Steps over which the learning rate rises."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = field(
        default="cosine", metadata={"static": True}
    )
    """How the learning rate falls after its warm-up: along a half cosine, along a line, not at all, or (wsd: warm-up,
    stable, decay) along a line in the last tenth of the steps."""

    def check(self) -> None:
        """Raises ValueError, naming the field, its value and the fix, where a number does not fit."""
        super().check()
        if self.batch % self.micro_batches:
            raise ValueError(
                f"batch {self.batch} must be a multiple of micro_batches ({self.micro_batches}): every part takes as many"
            )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SupervisedConfig(DescentConfig):
    """Teacher forcing: the next token's cross-entropy. `training.supervised` checks it; else call `check`, outside of jit."""

    label_smoothing: ScalarLike = number(0.0, least=0, most=1)
    """Share of a target's probability that is spread over the whole vocabulary (nll)."""
    z_loss: ScalarLike = number(0.0, least=0)
    """Price of the square of the logits' log-sum-exp, which keeps them small."""


@dataclass(frozen=True)
class _JudgementConfig(DescentConfig):
    """Such steps begin with the whole learning rate, which falls to 0 along a line; batches are small."""

    final_learning_rate_share: ScalarLike = number(0.0, least=0, most=1)
    """Share of the learning rate that is left at the end of its schedule."""
    batch: int = size(8)
    """Pairs, or judged completions, of an optimizer step."""
    warmup: int = size(0, least=0)
    """Steps over which the learning rate rises."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = field(
        default="linear", metadata={"static": True}
    )
    """How the learning rate falls after its warm-up: along a half cosine, along a line, not at all, or (wsd: warm-up,
    stable, decay) along a line in the last tenth of the steps."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PreferenceConfig(_JudgementConfig):
    """Learning from preferences: DPO and its family. A loss reads those of the fields that it has."""

    learning_rate: ScalarLike = number(1e-6, above=0)
    """Of the optimizer, at its highest."""
    beta: ScalarLike = number(0.1, above=0)
    """β: how strongly the reference holds (DPO and most others); of ORPO the weight of the odds ratio, of SimPO the scale of
    mean log-probabilities, where 2 is usual."""
    label_smoothing: ScalarLike = number(0.0, least=0, most=1)
    """Share of the labels that is taken to be wrong (dpo: then called cDPO; robust, aot, cpo, and exo, which needs some)."""
    gamma: ScalarLike = number(0.5, least=0)
    """γ, the margin that SimPO asks for."""
    nll_coef: ScalarLike = number(1.0, least=0)
    """α, the weight of CPO's likelihood of the better completion."""
    discopop_temperature: ScalarLike = number(0.05, above=0)
    """τ of DiscoPOP."""
    desirable_weight: ScalarLike = number(1.0, least=0)
    """λ_D, the weight of a completion that was liked (KTO, BCO, APO unpaired)."""
    undesirable_weight: ScalarLike = number(1.0, least=0)
    """λ_U, the weight of one that was not."""
    tail_weight: ScalarLike = number(1.0, least=0, most=1)
    """Weight of the tokens of a completion beyond the length of the other one (LD-DPO's α); 1: as all tokens."""
    alpha: ScalarLike = number(0.5)
    """α of the α-divergence: 1 is the reverse, 0 the forward KL."""

    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = field(
        default="reverse_kl", metadata={"static": True}
    )
    """Which holds the policy to the reference (f-DPO); others than the reverse KL for losses of a pair's difference."""
    policy_weights: bool = field(default=False, metadata={"static": True})
    """Weigh each pair by how likely the policy itself says such completions (WPO)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RewardConfig(_JudgementConfig):
    """A reward model: Bradley-Terry on pairs."""

    learning_rate: ScalarLike = number(1e-4, above=0)
    """Of the optimizer, at its highest."""
    center_coef: ScalarLike = number(0.0, least=0)
    """Price of the square of a pair's summed rewards, which keeps them around 0; .01 is usual."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DistillationConfig(_JudgementConfig):
    """Distillation: a student learns what its teachers say of completions, its own or given ones."""

    learning_rate: ScalarLike = number(1e-6, above=0)
    """Of the optimizer, at its highest. On given completions 2e-5 is usual."""
    batch: int = size(8)
    """Prompts, or prompts with their completions, of an optimizer step."""
    beta: ScalarLike = number(1.0, least=0, most=1)
    """β of the divergence: 0 is the forward KL (the student covers the teacher), 1 the reverse KL (it stays where the teacher
    is), between them the generalised Jensen-Shannon divergence."""
    loss_temperature: ScalarLike = number(1.0, above=0)
    """Of both softmaxes that are compared; --temperature is that of drawing."""
    discount: ScalarLike = number(0.0, least=0, most=1)
    """Of the log-ratios of later tokens in the advantage of a token: 0 counts its own alone, 1 makes the gradient that of the
    reverse KL of whole completions."""

    on_policy_share: float = size(1.0, least=0, most=1, whole=False)
    """λ: share of the steps whose completions the student draws itself; the others take those of the dataset."""
    objective: Literal["divergence", "advantage"] = field(default="divergence", metadata={"static": True})
    """divergence: between the distributions of every token. advantage: a policy gradient, where the advantage of a drawn token is
    the teacher's log-probability minus the student's; it needs completions that the student draws."""
    teacher_top_k: int | None = size(None)
    """Compare the k likeliest tokens of the teacher and all others together: what is kept of a teacher is small then, and the
    divergence a lower bound. All tokens, if not given."""

    def check(self) -> None:
        """Raises ValueError, naming the field, its value and the fix, where a number does not fit."""
        super().check()
        if self.objective == "advantage" and self.on_policy_share != 1:
            raise ValueError(
                f"on_policy_share must be 1 for objective advantage, not {self.on_policy_share}: a policy gradient is of "
                "completions that the student draws"
            )
        if self.objective == "advantage" and self.teacher_top_k is not None:
            raise ValueError(
                "teacher_top_k has a meaning for objective divergence: an advantage reads the drawn token alone"
            )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HeadConfig(DescentConfig):
    """A task head, over a frozen backbone or with it."""

    learning_rate: ScalarLike = number(1e-3, above=0)
    """Of the optimizer, at its highest. A whole pretrained model wants less, 5e-5."""
    batch: int = size(32)
    """Rows of an optimizer step."""


@dataclass(frozen=True)
class TextConfig(_Config):
    """How rows of a dataset become the sequences of teacher forcing."""

    max_length: int | None = size(None)
    """Most tokens of a row; longer texts lose their end. If not given: 1024, or the model's context if that is less."""
    packing: Packing | None = None
    """Several texts in a row, which do not see each other. bfd: as many as fit, what is too long is cut; bfd_split: it goes
    on in further rows; wrapped: texts are cut wherever a row ends. If not given: none; wrapped if there is one text."""
    completion_only: bool | None = None
    """Imitate completions, not their prompts. If not given: where there are prompts and completions."""
    assistant_only: bool = False
    """Imitate the assistant's messages alone; the chat template must mark them."""
    strict: bool = False
    """Refuse a file with a row that cannot be used, instead of dropping the row."""
    held_out: int | None = size(None, least=0)
    """Texts kept back for evaluation: a tenth, at most 256, if not given; 0: evaluate on what is trained on."""


@dataclass(frozen=True)
class PairConfig(_Config):
    """How rows of a dataset become pairs, judged completions, or prompts with a completion or none."""

    max_length: int | None = size(None)
    """Most tokens of a prompt and a completion together. If not given: 1024, or the model's context if that is less."""
    strict: bool = False
    """Refuse a file with a row that cannot be used, instead of dropping the row."""
    held_out: int | None = size(None, least=0)
    """Rows kept back for evaluation: a tenth, at most 256, if not given; 0: evaluate on what is trained on."""
