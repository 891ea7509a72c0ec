"""A reward model as a stage: TRL's first losses, a folder that transformers scores alike, resume."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import data, lm, models, training
from jaxrl4lm.data import Example, Row, rewards
from jaxrl4lm.data.corpus import encode_prompts
from jaxrl4lm.lm import reward
from jaxrl4lm.lm.trainable import adapters
from jaxrl4lm.training.evaluation import Completion, compile_rewards, judge_completions
from jaxrl4lm.training.judgements import pad_judgements, prepare_judgements
from jaxrl4lm.training.reward_stage import SCALE, evaluate_rewards
from jaxrl4lm.types import InputError
from tests.selection import slow_but
from tests.training.stages import interrupt_at
from tests.training.trl_oracle import ONCE_A_STEP, make_llama

STEPS = 5
PAIRS = [
    {
        "prompt": f"2+{i}=",
        "chosen": f"{2 + i}." + "0" * (i % 3),
        "rejected": "x" * (1 + (i * 5) % 4),
        "margin": i / 4,
    }
    for i in range(8)
]
CONFIG = lm.RewardConfig(learning_rate=1e-3, steps=STEPS, batch=8, center_coef=0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("transformers", reason="needs the extra 'peers'")
    import torch
    from transformers import LlamaForSequenceClassification

    path = tmp_path_factory.mktemp("llama")
    make_llama(path)
    torch.manual_seed(1)
    LlamaForSequenceClassification.from_pretrained(path, num_labels=1).save_pretrained(path / "reward")
    return path


def start_of(folder):
    policy, backbone, head, _ = models.load_with_head(folder / "reward")
    return policy, {"backbone": backbone, "head": head._replace(bias=None)}, models.load(folder)[2]


@pytest.mark.filterwarnings("ignore")
def test_the_first_losses_and_the_folder_are_theirs(folder, tmp_path):
    pytest.importorskip("trl", reason="needs the extra 'peers'")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    arguments = RewardConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=STEPS,
        per_device_train_batch_size=len(PAIRS),
        learning_rate=1e-3,
        center_rewards_coefficient=0.01,
        **ONCE_A_STEP,
    )
    model = AutoModelForSequenceClassification.from_pretrained(folder / "reward", num_labels=1)
    trainer = RewardTrainer(
        model, args=arguments, train_dataset=Dataset.from_list(PAIRS), processing_class=tokenizer
    )
    trainer.train()
    records = [record for record in trainer.state.log_history if "loss" in record]
    policy, params, ours = start_of(folder)
    stage = training.reward_model(policy, ours, PAIRS, config=CONFIG, pairs=lm.PairConfig(held_out=0))
    run = training.fit([stage], params, out=tmp_path / "run")
    np.testing.assert_allclose(run.history["loss"], [r["loss"] for r in records], rtol=1e-4)
    np.testing.assert_allclose(
        run.history["rewards/margins"], [r["margin"] for r in records], rtol=1e-4, atol=2e-6
    )
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    ids = [
        [tokenizer(row["prompt"] + row[side])["input_ids"] + [1] for side in ("chosen", "rejected")]
        for row in PAIRS
    ]
    theirs = [[float(saved(torch.tensor([each])).logits.detach()) for each in pair] for pair in ids]
    texts = pad_judgements([[Example(i, [True] * len(i)) for i in pair] for pair in ids], 0, 16)
    ours = jax.jit(lambda params: reward.score(params, texts, policy))(run.params)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    scale = json.loads((tmp_path / "run" / "model" / SCALE).read_text())
    np.testing.assert_allclose(scale["mean"], np.mean(theirs), atol=1e-5)
    np.testing.assert_allclose(scale["deviation"], np.std(theirs), rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.parametrize("family", ["Bert", "ModernBert"])
def test_an_encoder(folder, tmp_path, family):
    """Its head has a pooler, which learns, too; transformers scores alike."""
    import torch
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = dict.fromkeys(("bos_token_id", "cls_token_id"), 2) | {"eos_token_id": 1, "sep_token_id": 1}
    config = getattr(transformers, f"{family}Config")(vocab_size=100, pad_token_id=0, **sizes, **ids)
    getattr(transformers, f"{family}ForMaskedLM")(config).save_pretrained(tmp_path / "encoder")
    policy, backbone, _ = models.load_backbone(tmp_path / "encoder")
    start, tokenizer = reward.add_head(jax.random.key(0), policy, backbone), models.load(folder)[2]
    stage = training.reward_model(policy, tokenizer, PAIRS, config=CONFIG, evaluate_every=STEPS)
    run = training.fit([stage], start, out=tmp_path / "run")
    assert np.abs(run.params["head"].pooler.kernel - start["head"].pooler.kernel).max() > 1e-4
    saved = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    tokens = torch.tensor([[5, 9, 7, 1]])
    texts = pad_judgements([[Example(tokens[0].tolist(), [True] * 4)]], 0, 6)
    np.testing.assert_allclose(
        reward.score(run.params, texts, policy), saved.eval()(tokens).logits.detach(), atol=1e-5
    )


def critic_at_the_end(critic, ids):
    """The value that a critic begins with, of the state after a text."""
    begun = critic.start({})
    hidden = jax.jit(critic.policy.hidden)(begun["backbone"], jnp.array([ids]))
    return models.token_outputs(begun["head"], hidden)[0, -1, 0]


@pytest.mark.filterwarnings("ignore")
def test_a_folder_is_a_reward(folder, tmp_path):
    """Of texts and of chats, as transformers scores them; normalised by reward.json; cut where it is too long."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    _, _, tokenizer = models.load(folder)
    shutil.copytree(folder / "reward", tmp_path / "reward")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(folder / name, tmp_path / "reward")
    theirs = AutoModelForSequenceClassification.from_pretrained(folder / "reward").eval()
    hf = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "hi"}]
    answer = [{"role": "assistant", "content": "yo"}]
    ids = [hf("2+1=3")["input_ids"] + [1], hf.apply_chat_template(chat + answer, return_dict=False)]
    expected = np.array([float(theirs(torch.tensor([each])).logits.detach()) for each in ids])
    plain = training.ModelReward(tmp_path / "reward")
    np.testing.assert_allclose(plain(["2+1=", chat], ["3", answer]), expected, atol=1e-5)
    (tmp_path / "reward" / SCALE).write_text('{"mean": 2.0, "deviation": 0.5}')
    scaled = training.ModelReward(tmp_path / "reward")
    np.testing.assert_allclose(scaled(["2+1="], ["3"]), (expected[:1] - 2) / 0.5, atol=1e-4)
    assert np.isfinite(scaled(["2+1="] * 70, ["3" * (2 * i) for i in range(70)])).all()
    assert tokenizer is not None
    critic = training.load_critic(tmp_path / "reward", tokenizer)
    ends = [scaled(["2+1="], ["3"])[0], critic_at_the_end(critic, ids[0])]
    np.testing.assert_allclose(ends[1], ends[0], atol=1e-4)
    with pytest.raises(InputError, match="reads other ids than the policy writes"):
        training.load_critic(tmp_path / "reward", TOKENIZER)
    judged = rewards.judge({"model": scaled}, rewards.Batch(["2+1="], ["3"], [[7]], {"answer": ["3"]}))
    np.testing.assert_allclose(judged[0], scaled(["2+1="], ["3"]))


@pytest.mark.filterwarnings("ignore")
def test_a_folder_scores_the_ids_that_a_policy_draws(folder, tmp_path):
    """In the program that draws them, as it scores their texts; not where it would read other ids, or too few."""
    policy, _, tokenizer = models.load(folder)
    shutil.copytree(folder / "reward", tmp_path / "reward")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(folder / name, tmp_path / "reward")
    (tmp_path / "reward" / SCALE).write_text('{"mean": 2.0, "deviation": 0.5}')
    judge, room = training.ModelReward(tmp_path / "reward"), 8
    given = ["2+1=", "who is it?"]
    prompts = encode(given, tokenizer, room)
    inside = judge.compile_for(tokenizer, prompts, room)
    said = ["3", "me", "12345"] * 44
    ids = [[*tokenizer.encode(text), *tokenizer.eos_ids[:1]] for text in said]
    rows = [i % 2 for i in range(len(said))]
    expected = judge([given[i] for i in rows], said)
    np.testing.assert_allclose(
        inside([prompts.ids[i] for i in rows], ids), expected, atol=1e-5
    )  # more than at once
    few = inside([prompts.ids[i] for i in rows[:3]], ids[:3])
    np.testing.assert_allclose(few, expected[:3], atol=1e-5)
    read = compile_rewards(rewards.gather_rewards(judge), tokenizer, prompts, room)
    cut = [Completion("3", ids[0][:-1], ended=False), Completion("me", ids[1], ended=True)]
    scores = judge_completions(read, prompts, range(2), cut, room=room)[0]
    np.testing.assert_allclose(scores, inside(prompts.ids, [each.ids for each in cut]), atol=1e-6)
    assert abs(scores[0] - expected[0]) > 1e-4, (
        "a completion that was cut has no end, in evaluation as in training"
    )
    assert judge.compile_for(tokenizer, prompts, policy.config.context) is None
    assert judge.compile_for(TOKENIZER, encode(["2+1="], TOKENIZER, room), room) is None
    chats = encode([[{"role": "user", "content": "hi"}]], tokenizer, room)
    reads = judge.compile_for(tokenizer, chats, room)
    assert reads is None, "the template ends a turn with <|im_end|>, not with the end token"


def encode(prompts, tokenizer, room):
    rows = [Row(i, {"prompt": prompt}) for i, prompt in enumerate(prompts)]
    return encode_prompts(rows, "prompt", tokenizer, "prompts", room, 128)


TOKENIZER = data.CharacterTokenizer.from_texts(["0123456789+=.x"])
POLICY = models.LanguagePolicy(
    models.TransformerConfig(TOKENIZER.vocab_size, layers=1, width=16, heads=2, context=16)
)


@pytest.fixture(scope="module")
def start():
    params = jax.jit(POLICY.init)(jax.random.key(0))
    return reward.add_head(jax.random.key(1), POLICY, params)


@pytest.mark.parametrize("trainable", slow_but([None, adapters(rank=2)], 1), ids=["everything", "adapters"])
def test_it_learns_and_resumes(start, tmp_path, trainable):
    config = CONFIG.replace(learning_rate=1e-2, steps=12, batch=4, micro_batches=2)
    stage = training.reward_model(
        POLICY, TOKENIZER, PAIRS, config=config, trainable=trainable, evaluate_every=6
    )
    run = training.fit([stage], start, out=tmp_path / "whole")
    assert run.history["held_out/loss"][-1] < run.history["held_out/loss"][0]
    assert run.history["held_out"][-1] == 1
    training.fit([interrupt_at(stage, 2)], start, out=tmp_path / "run")
    resumed = training.fit([stage], start, out=tmp_path / "run", resume=True)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, run.params)
    _, backbone, head, _ = models.load_with_head(tmp_path / "run" / "model")
    np.testing.assert_array_equal(head.kernel, run.params["head"].kernel)
    np.testing.assert_array_equal(backbone["embedding"], run.params["backbone"]["embedding"])


def test_long_pairs_are_left_out_and_counted():
    known = training.prepare_judgements(
        [*PAIRS, {"prompt": "1", "chosen": "2" * 30, "rejected": "3"}],
        TOKENIZER,
        lm.PairConfig(max_length=12),
        context=16,
        embeddings=TOKENIZER.vocab_size,
        whole=True,
    )
    assert (len(known.training), known.dropped, known.cut) == (8, {"too long": [9]}, 0)
    with pytest.raises(InputError, match="line 9: more than 12 tokens"):
        training.prepare_judgements(
            [*PAIRS, {"prompt": "1", "chosen": "2" * 30, "rejected": "3"}],
            TOKENIZER,
            lm.PairConfig(max_length=12, strict=True),
            context=16,
            embeddings=TOKENIZER.vocab_size,
            whole=True,
        )
    with pytest.raises(InputError, match="'margin' holds 'much': give a number"):
        training.reward_model(POLICY, TOKENIZER, [PAIRS[0] | {"margin": "much"}])


def test_the_deviation_of_rewards_far_from_zero():
    """It is that of the same rewards around 0."""
    tokenizer = data.ByteTokenizer()
    sizes = models.TransformerConfig(tokenizer.vocab_size, layers=1, width=16, heads=2, context=32)
    policy = models.LanguagePolicy(sizes)
    params = reward.add_head(jax.random.key(1), policy, jax.jit(policy.init)(jax.random.key(0)))
    dataset = prepare_judgements(
        PAIRS, tokenizer, lm.PairConfig(held_out=0), context=32, embeddings=sizes.vocab_size, whole=True
    )
    score = evaluate_rewards(policy, dataset, CONFIG, tokenizer.pad_id).score
    near = score(params)
    far = score(params | {"head": params["head"]._replace(bias=np.float32([1000.0]))})
    np.testing.assert_allclose(far["held_out/mean"], near["held_out/mean"] + 1000, rtol=1e-6)
    np.testing.assert_allclose(far["held_out/deviation"], near["held_out/deviation"], rtol=0.01)
