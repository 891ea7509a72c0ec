"""The same first losses and token accuracies as TRL's trainers: the same tiny Llama, rows and optimizer."""

import os

import numpy as np
import pytest

from jaxrl4lm import lm, models, training
from jaxrl4lm.lm.supervised import LOSSES
from tests.selection import slow_but
from tests.training.trl_oracle import ONCE_A_STEP, TEMPLATE, make_llama

pytest.importorskip("trl", reason="needs the extra 'peers'")

STEPS = 5
PAIRS = [{"prompt": f"2+{i}=", "completion": f"{2 + i}." + "0" * (i % 3)} for i in range(8)]
CHATS = [
    {"messages": [{"role": "user", "content": f"hi {i}"}, {"role": "assistant", "content": "yo" * (1 + i)}]}
    for i in range(8)
]
TEXTS = [{"text": "abc " * (1 + i % 4)} for i in range(8)]
TOKENS = [{"input_ids": [5, 6, 7, 8 + i, 1], "labels": [-100, -100, 7, 8 + i, 1]} for i in range(8)]
CASES = {
    "texts": (TEXTS, {}, {}),
    "completions": (PAIRS, {}, {}),
    "conversations, the assistant alone": (CHATS, {"assistant_only": True}, {"assistant_only_loss": True}),
    "ids": (TOKENS, {}, {}),
    "conversations, packed": (
        CHATS,
        {"packing": "bfd", "max_length": 64},
        {"packing": True, "max_length": 64},
    ),
    "completions, dynamic fine-tuning": (PAIRS, {}, {"loss_type": "dft"}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    make_llama(path)
    return path


def train_with_trl(folder, rows, options):
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        output_dir=str(folder / "out"),
        max_steps=STEPS,
        per_device_train_batch_size=len(rows),
        learning_rate=1e-3,
        **ONCE_A_STEP,
        **options,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trainer = SFTTrainer(
        str(folder), args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()
    return [
        (record["loss"], record["mean_token_accuracy"])
        for record in trainer.state.log_history
        if "loss" in record
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", slow_but(CASES, ["conversations, packed"]))
def test_first_losses(folder, case):
    rows, texts, options = CASES[case]
    os.environ["HF_HUB_OFFLINE"] = "1"
    theirs = train_with_trl(folder, rows, options)
    policy, params, tokenizer = models.load(folder)
    assert tokenizer.chat_template == TEMPLATE
    known = training.prepare_texts(
        rows,
        tokenizer,
        lm.TextConfig(held_out=0, **texts),
        context=policy.config.context,
        embeddings=policy.config.vocab_size,
    )
    stage = training.supervised(
        policy,
        known,
        lm.SupervisedConfig(
            learning_rate=1e-3,
            schedule="linear",
            final_learning_rate_share=0.0,
            warmup=0,
            steps=STEPS,
            batch=training.TextBatches(known, tokenizer.pad_id, 1, 0).rows,
        ),
        tokenizer=tokenizer,
        loss=LOSSES[options.get("loss_type", "nll")],
    )
    history = training.fit([stage], params).history
    ours = np.stack([history["loss"], history["token_accuracy"]], axis=1)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
