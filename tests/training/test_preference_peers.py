"""The same first losses and margins as TRL's trainers of preferences: the same tiny Llama, rows and optimizer."""

import os

import numpy as np
import pytest

from jaxrl4lm import lm, models, training
from jaxrl4lm.lm.preference_losses import LOSSES, mix
from tests.selection import slow_but
from tests.training.trl_oracle import ONCE_A_STEP, make_llama

pytest.importorskip("trl", reason="needs the extra 'peers'")

STEPS = 5
PAIRS = [
    {"prompt": f"2+{i}=", "chosen": f"{2 + i}." + "0" * (i % 3), "rejected": "x" * (1 + (i * 5) % 4)}
    for i in range(8)
]
JUDGED = [
    {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
    for row, side in zip(PAIRS, ["chosen", "rejected", "rejected", "chosen"] * 2, strict=True)
]
SMOOTHED = {"label_smoothing": 0.1}
CASES = {
    "dpo": ("dpo", {}, {"loss_type": ["sigmoid"]}),
    "dpo, forward KL": ("dpo", {"divergence": "forward_kl"}, {"f_divergence_type": "forward_kl"}),
    "dpo, Jensen-Shannon": ("dpo", {"divergence": "js"}, {"f_divergence_type": "js_divergence"}),
    "dpo, alpha": (
        "dpo",
        {"divergence": "alpha", "alpha": 0.5},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5},
    ),
    "dpo, LD and WPO": (
        "dpo",
        {"tail_weight": 0.3, "policy_weights": True},
        {"ld_alpha": 0.3, "use_weighting": True},
    ),
    "robust": ("robust", SMOOTHED, {"loss_type": ["robust"], **SMOOTHED}),
    "ipo": ("ipo", {}, {"loss_type": ["ipo"]}),
    "hinge": ("hinge", {}, {"loss_type": ["hinge"]}),
    "exo": ("exo", SMOOTHED, {"loss_type": ["exo_pair"], **SMOOTHED}),
    "nca": ("nca", {}, {"loss_type": ["nca_pair"]}),
    "sppo": ("sppo", {}, {"loss_type": ["sppo_hard"]}),
    "apo_zero": ("apo_zero", {}, {"loss_type": ["apo_zero"]}),
    "apo_down": ("apo_down", {}, {"loss_type": ["apo_down"]}),
    "bco_pair": ("bco_pair", {}, {"loss_type": ["bco_pair"]}),
    "aot": ("aot", {}, {"loss_type": ["aot"]}),
    "aot_unpaired": ("aot_unpaired", {}, {"loss_type": ["aot_unpaired"]}),
    "discopop": ("discopop", {}, {"loss_type": ["discopop"]}),
    "sigmoid_norm": ("sigmoid_norm", {}, {"loss_type": ["sigmoid_norm"]}),
    "a mixture": (
        "dpo:1,sft:0.5",
        {},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    ),
    "orpo": ("orpo", {}, {}),
    "cpo": ("cpo", {}, {}),
    "simpo": ("simpo", {"beta": 2.0}, {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0}),
    "kto": ("kto", {"undesirable_weight": 1.5}, {"undesirable_weight": 1.5}),
    "kto, pairs taken apart": ("kto", {}, {}),
    "apo_zero_unpaired": ("apo_zero_unpaired", {}, {"loss_type": "apo_zero_unpaired"}),
}
FAST = ("dpo, LD and WPO", "kto")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    make_llama(path)
    return path


def choose_trainer(loss):
    if loss == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOConfig, ORPOTrainer
    if loss in ("cpo", "simpo"):
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        return CPOConfig, CPOTrainer
    if loss in ("kto", "apo_zero_unpaired"):
        from trl import KTOConfig, KTOTrainer

        return KTOConfig, KTOTrainer
    from trl import DPOConfig, DPOTrainer

    return DPOConfig, DPOTrainer


def train_by_trl(folder, loss, rows, options):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_config, make_trainer = choose_trainer(loss)
    arguments = make_config(
        output_dir=str(folder / "out"),
        max_steps=STEPS,
        per_device_train_batch_size=len(rows) * (1 + (loss == "kto" and "chosen" in rows[0])),
        learning_rate=1e-3,
        lr_scheduler_type="linear",
        **ONCE_A_STEP,
        **options,
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trainer = make_trainer(
        model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()
    return [record for record in trainer.state.log_history if "loss" in record]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", slow_but(CASES, FAST))
def test_first_losses(folder, case):
    name, options, theirs = CASES[case]
    os.environ["HF_HUB_OFFLINE"] = "1"
    rows = JUDGED if name in ("kto", "apo_zero_unpaired") and "pairs" not in case else PAIRS
    records = train_by_trl(folder, name, rows, theirs)
    policy, params, tokenizer = models.load(folder)
    parts = [part.partition(":")[::2] for part in name.split(",")]
    count = len(rows) * (1 + ("apart" in case))
    stage = training.preference(
        policy,
        tokenizer,
        rows,
        loss=mix([(LOSSES[word], float(weight or 1)) for word, weight in parts]),
        config=lm.PreferenceConfig(learning_rate=1e-3, steps=STEPS, batch=count, **options),
        reference=params,
        pairs=lm.PairConfig(held_out=0),
    )
    history = training.fit([stage], params).history
    np.testing.assert_allclose(history["loss"], [r["loss"] for r in records], rtol=1e-4)
    margins = [r["rewards/margins"] for r in records]
    np.testing.assert_allclose(history["rewards/margins"], margins, rtol=1e-4, atol=2e-6)
