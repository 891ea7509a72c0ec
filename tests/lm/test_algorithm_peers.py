"""On one frozen rollout: loss and gradient by the log-probabilities are those of TRL's GRPO, whatever its options."""

import itertools
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

from jaxrl4lm import losses
from jaxrl4lm.lm import algorithms, surrogates
from tests.lm.frozen import ENTROPY, MASK, NEW, OLD, REF, REWARDS, SIZES, TRUNCATED, B, G, N, T, learn
from tests.selection import slow_but

trl = pytest.importorskip("trl", reason="needs the extra 'peers'")

CLIP = {"epsilon_low": 0.1, "epsilon_high": 0.15}


OURS = {
    "grpo": algorithms.GRPO,
    "dr_grpo": algorithms.DR_GRPO._replace(credit=algorithms.SCALES["group"]),
    "dapo": algorithms.DAPO,
    "bnpo": algorithms.DAPO,
    "cispo": algorithms.CISPO,
    "sapo": algorithms.SAPO,
    "luspo": algorithms.LUSPO,
    "vespo": algorithms.VESPO,
}
BY_SEQUENCES = ("grpo", "sapo", "luspo", "dr_grpo")


def ask_trl(loss_type, level="token", beta=0.0, truncated=False, **options):
    """(loss, its gradient by the log-probabilities), from TRL's own code."""
    import torch

    mask = torch.tensor(MASK & ~TRUNCATED[:, None] if truncated else MASK).int()
    log_probs = torch.tensor(NEW, requires_grad=True)
    groups = torch.tensor(REWARDS).view(G, N)
    advantages = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (log_probs, torch.tensor(ENTROPY), None),
        get_high_entropy_mask=lambda *a: trl.GRPOTrainer.get_high_entropy_mask(trainer, *a),
        get_gamma_weights=trl.GRPOTrainer.get_gamma_weights,
        get_off_policy_mask=trl.GRPOTrainer.get_off_policy_mask,
        accelerator=SimpleNamespace(
            gather=lambda x: x,
            reduce=lambda x, **k: x,
            pad_across_processes=lambda x, **k: x,
            num_processes=1,
        ),
        args=SimpleNamespace(
            use_bias_correction_kl=options.get("bias_correction", False),
            delta=options.get("delta"),
            sapo_temperature_pos=1.0,
            sapo_temperature_neg=1.05,
            vespo_k_pos=2.0,
            vespo_lambda_pos=3.0,
            vespo_k_neg=3.0,
            vespo_lambda_neg=2.0,
            steps_per_generation=1,
        ),
        loss_type=loss_type,
        importance_sampling_level=level,
        beta=beta,
        top_entropy_quantile=options.get("top_entropy", 1.0),
        off_policy_mask_threshold=options.get("off_policy"),
        epsilon_low=CLIP["epsilon_low"],
        epsilon_high=1 + CLIP["epsilon_high"] if loss_type == "cispo" else CLIP["epsilon_high"],
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=T,
        use_vllm=False,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    inputs = {
        "prompt_ids": torch.zeros((B, 1)),
        "prompt_mask": torch.ones((B, 1)),
        "completion_ids": torch.zeros((B, T)),
        "completion_mask": mask,
        "advantages": advantages.reshape(-1),
        "old_per_token_logps": torch.tensor(OLD),
        "ref_per_token_logps": torch.tensor(REF),
        "num_items_in_batch": mask.sum(),
    }
    loss = trl.GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    return loss.item(), log_probs.grad.numpy()


def ask_ours(loss_type, level="token", beta=0.0, truncated=False, **options):
    weights = ()
    if "top_entropy" in options:
        weights += (surrogates.select_top_entropy,)
    if "off_policy" in options:
        weights += (surrogates.reject_sequences,)
    kl = algorithms.KL(loss=losses.kl.k3, times_ratio=options.get("bias_correction", False))
    algorithm = OURS[loss_type]._replace(
        level=algorithms.LEVELS[level], kl=kl if beta else algorithms.KL(), weights=weights
    )
    config = algorithm.configure(
        clip_eps=1.0 if loss_type == "cispo" else CLIP["epsilon_low"],
        clip_eps_high=CLIP["epsilon_high"],
        dual_clip=options.get("delta"),
        kl_coef=beta,
        top_entropy_share=options.get("top_entropy", 1.0),
        rejection_divergence=options.get("off_policy", 0.5),
        truncation="mask" if truncated else "terminal",
        **SIZES,
    )
    return learn(algorithm, config)[:2]


FULL = list(itertools.product(OURS, ("token", "sequence"), (0.0, 0.04)))
MORE = [
    ("grpo", "token", 0.0, {"delta": 1.2}),
    ("dapo", "token", 0.04, {"bias_correction": True}),
    ("grpo", "sequence", 0.04, {"bias_correction": True}),
    ("dapo", "token", 0.04, {"top_entropy": 0.4}),
    ("grpo", "token", 0.0, {"off_policy": 0.05}),
    ("dapo", "token", 0.04, {"truncated": True}),
    ("grpo", "sequence", 0.0, {"truncated": True}),
    ("dr_grpo", "token", 0.0, {"truncated": True}),
]
FAST = [("grpo", "token", 0.04), ("cispo", "sequence", 0.0), ("vespo", "token", 0.0)]


@pytest.mark.parametrize(
    "loss_type, level, beta, options",
    slow_but([(*case, {}) for case in FULL] + MORE, [(*case, {}) for case in FAST] + [MORE[1], MORE[6]]),
)
def test_loss_and_gradient_are_those_of_trl(loss_type, level, beta, options):
    theirs = ask_trl(loss_type, level, beta, **options)
    ours = ask_ours(loss_type, level, beta, **options)
    share = 1.0
    if options.get("truncated") and loss_type in BY_SEQUENCES:
        # TRL divides by completions that are not learned from as well: the step shrinks with their number.
        share = (~TRUNCATED).sum() / B
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found * share, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(theirs[1]).max() > 1e-3
