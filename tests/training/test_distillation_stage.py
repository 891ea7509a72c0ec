"""Distillation as a stage: TRL's first losses, resume, the share of its own completions, what is held out and refused."""

import math
import os

import jax
import numpy as np
import pytest

from jaxrl4lm import data, decoding, lm, models, training
from jaxrl4lm.lm.trainable import adapters
from jaxrl4lm.training.prompted import MixedBatches, list_prompts
from jaxrl4lm.types import InputError
from tests.selection import slow_but
from tests.training.stages import interrupt_at
from tests.training.trl_oracle import ONCE_A_STEP, make_llama

STEPS = 5
TOKENIZER = data.CharacterTokenizer.from_texts(["0123456789+=."])
ROWS = [{"prompt": f"2+{i}=", "completion": str(2 + i) + "." * (i % 3)} for i in range(10)]
CONFIG = lm.DistillationConfig(learning_rate=3e-3, steps=STEPS, batch=4)


def make_model(seed, width=16, vocabulary=TOKENIZER.vocab_size):
    config = models.TransformerConfig(vocabulary, layers=1, width=width, heads=2, context=16)
    policy = models.LanguagePolicy(config)
    return policy, jax.jit(policy.init)(jax.random.key(seed))


@pytest.fixture(scope="module")
def start():
    return make_model(0)


@pytest.fixture(scope="module")
def teacher():
    policy, params = make_model(1, 24)
    return policy, jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, params)  # far from uniform


def distil(start, teachers, dataset=ROWS, **options) -> training.Stage:
    options = {"config": CONFIG, "sampling": decoding.Sampling(4), "evaluate_every": 2, **options}
    return training.distillation(start[0], TOKENIZER, dataset, teachers, **options)


@pytest.mark.slow  # the divergence itself is compared with TRL's in tests/lm
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_first_losses(tmp_path, beta):
    """TRL's GKD on given completions: the same tiny Llamas, conversations and optimizer."""
    pytest.importorskip("trl", reason="needs the extra 'peers'")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    rows = [
        {
            "messages": [
                {"role": "user", "content": f"hi {i}"},
                {"role": "assistant", "content": "yo" * (1 + i)},
            ]
        }
        for i in range(8)
    ]
    for name, width in (("student", 32), ("teacher", 48)):
        make_llama(tmp_path / name, width=width)
    arguments = GKDConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=STEPS,
        per_device_train_batch_size=len(rows),
        learning_rate=1e-3,
        lmbda=0.0,
        beta=beta,
        **ONCE_A_STEP,
    )
    student, teacher = (AutoModelForCausalLM.from_pretrained(tmp_path / n) for n in ("student", "teacher"))
    with torch.no_grad():
        for x in teacher.parameters():
            x.mul_(1.5)  # so that they disagree
    teacher.save_pretrained(tmp_path / "teacher")
    trainer = GKDTrainer(
        student,
        teacher,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(tmp_path / "student"),
    )
    trainer.train()
    theirs = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    policy, params, tokenizer = models.load(tmp_path / "student")
    stage = training.distillation(
        policy,
        tokenizer,
        rows,
        [models.load(tmp_path / "teacher")[:2]],
        config=lm.DistillationConfig(
            learning_rate=1e-3, steps=STEPS, batch=len(rows), beta=beta, on_policy_share=0.0
        ),
        rows=lm.PairConfig(held_out=0),
        sampling=decoding.Sampling(4),
    )
    np.testing.assert_allclose(training.fit([stage], params).history["loss"], theirs, rtol=1e-4)


@pytest.mark.parametrize(
    "changes, trainable",
    slow_but(
        [
            ({"on_policy_share": 0.5, "beta": 0.5}, adapters(rank=2, dropout=0.2)),
            ({}, None),
            ({"on_policy_share": 0.0, "teacher_top_k": 3}, None),
            ({"objective": "advantage", "discount": 1.0}, None),
        ],
        [({}, None)],
    ),
    ids=["a mixture, adapters", "on-policy", "off-policy, top-k", "advantage"],
)
def test_resume(start, teacher, tmp_path, changes, trainable):
    """Interrupted and resumed, the same bits; the divergence falls."""
    config = CONFIG.replace(learning_rate=1e-2, **changes)
    options = {"config": config, "trainable": trainable, "rows": lm.PairConfig(held_out=0)}
    stage = distil(start, [teacher], **options)
    run = training.fit([stage], start[1], out=tmp_path / "whole")
    assert [r["step"] for r in run.records if "held_out/loss" in r] == [0, 2, 4, 5]
    if trainable is None and config.objective == "divergence":  # the others need more than five steps
        assert run.history["held_out/loss"][-1] < run.history["held_out/loss"][0]
    assert list(stage.panels) == ["loss", "held_out/loss", "held_out/reverse_kl", "held_out"]
    training.fit([interrupt_at(stage, 2)], start[1], out=tmp_path / "run")
    resumed = training.fit([stage], start[1], out=tmp_path / "run", resume=True)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, run.params)
    _, params, _ = models.load(tmp_path / "run" / "best")
    assert models.parameter_count(params) == models.parameter_count(start[1])


def test_a_student_becomes_its_teacher(start, teacher):
    """On its own completions of prompts alone; two teachers with weights; the state holds no teacher."""
    prompts = [row["prompt"] for row in ROWS]
    config = CONFIG.replace(steps=60, learning_rate=1e-2)
    stage = distil(start, [teacher, teacher], prompts, config=config, weights=(0.25, 0.75), evaluate_every=60)
    history = training.fit([stage], start[1]).history
    assert history["held_out/reverse_kl"][-1] < 0.3 * history["held_out/reverse_kl"][0]
    np.testing.assert_allclose(history["held_out/loss"], history["held_out/reverse_kl"], rtol=1e-5)
    assert history["on_policy"].all()
    state = jax.eval_shape(stage.init, start[1])
    assert models.parameter_count((state.params, state.frozen)) == models.parameter_count(start[1])


def test_the_share_of_its_own_completions():
    """It is spread evenly, and exact; both kinds of steps go through all rows, in orders of their own."""
    known = training.prepare_prompted(
        ROWS, TOKENIZER, lm.PairConfig(held_out=0), context=16, embeddings=TOKENIZER.vocab_size
    )
    assert list_prompts(known.training)[3] == [*TOKENIZER.begin_ids, *TOKENIZER.encode("2+3=")]
    batches = MixedBatches(known, TOKENIZER.pad_id, 5, 0, 0.3, 4)
    taken = [batches.take(i, 1) for i in range(20)]
    prompts = [each for each in taken if type(each).__name__ == "Prompts"]
    assert len(prompts) == 6
    assert {
        len({*np.flatnonzero([isinstance(x, lm.distillation.Prompts) for x in taken[i : i + 10]])})
        for i in range(10)
    } == {3}
    first = {tuple(ids) for batch in prompts[:2] for ids in batch.tokens[0].tolist()}
    assert len(first) == len(ROWS)


def test_chats_and_completions_are_read_alike():
    """The last message completes a conversation; a preference gives its prompt; long prompts are left out, or refused."""
    sizes = {"context": 16, "embeddings": TOKENIZER.vocab_size}
    liked = [{**row, "label": True} for row in ROWS]
    pairs = [{"prompt": row["prompt"], "chosen": "1", "rejected": "2"} for row in ROWS]
    whole, judged, alone = (
        training.prepare_prompted(rows, TOKENIZER, lm.PairConfig(), **sizes) for rows in (ROWS, liked, pairs)
    )
    assert whole.training == judged.training
    assert list_prompts(whole.training) == [example.tokens for example in alone.training]
    rows = [*ROWS, {"prompt": "1" * 13, "completion": "2"}]
    known = training.prepare_prompted(rows, TOKENIZER, lm.PairConfig(), room=4, **sizes)
    assert list(known.dropped.values()) == [[11]]
    with pytest.raises(
        InputError, match="line 11: cut before what is to be learned, the prompt has 14 tokens"
    ):
        training.prepare_prompted(rows, TOKENIZER, lm.PairConfig(strict=True), room=4, **sizes)


REFUSED = {
    "a completion": (
        {"dataset": ["2+2="] * 9, "config": CONFIG.replace(on_policy_share=0.5)},
        "on_policy_share 0.5 needs completions, and the rows have prompts alone",
    ),
    "a prompt": ({"dataset": [{"text": "2+2"}]}, "line 1: this is text: give `prompt`"),
    "weights": ({"weights": (1.0, 2.0)}, "there are 2 weights for 1 teachers"),
    "no number": ({"weights": (math.nan,)}, r"the weights of teachers are \[nan\]"),
    "no weight": ({"weights": (0.0,)}, "none may be negative, nor all 0"),
    "a temperature": (
        {"config": CONFIG.replace(objective="advantage", loss_temperature=2.0)},
        "give loss_temperature the temperature of drawing",
    ),
    "a draw": (
        {"sampling": decoding.Sampling(4, temperature=None)},
        "give sampling a temperature and 1 copy",
    ),
    "a range": ({"config": CONFIG.replace(on_policy_share=2.0)}, "on_policy_share must lie in 0..1, not 2.0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(start, teacher, case):
    options, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        distil(start, [teacher], **options)


def test_teachers_of_another_vocabulary(start):
    with pytest.raises(InputError, match="a teacher has 99 tokens and the student 16: distributions compare"):
        distil(start, [make_model(1, vocabulary=99)])
    with pytest.raises(InputError, match="there is no teacher"):
        distil(start, [])
