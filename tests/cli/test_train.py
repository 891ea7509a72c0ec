"""`jaxrl4lm train`, end to end and tiny: what it leaves behind, what decides it, and its options."""

import dataclasses
import json
import pathlib
import re
import struct
import zlib

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxrl4lm import decoding, losses, models, tasks, training
from jaxrl4lm.cli.options import from_json, name_option, to_json
from jaxrl4lm.cli.train import make_rewards
from jaxrl4lm.cli.train_options import NEW_MODEL, PREFIXES, TrainArguments, parse_train
from jaxrl4lm.data.token_reward import TokenReward
from jaxrl4lm.lm import ReinforcementConfig, algorithms, credit, reinforcement, surrogates
from jaxrl4lm.lm.algorithms import ALGORITHMS, KL_PLACEMENTS
from jaxrl4lm.models import LanguagePolicy, TransformerConfig
from jaxrl4lm.types import InputError
from tests.cli.conftest import without
from tests.selection import slow_but


def bits(run: pathlib.Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def records(run: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def png_size(path: pathlib.Path) -> tuple[int, int]:
    """Width and height of a PNG whose image data are whole."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, image = 8, b""
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        image += data[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    assert zlib.decompress(image)
    return struct.unpack(">II", data[16:24])


@pytest.mark.parametrize("name", ["task_run", "prompt_run"])
def test_the_run_folder(name, request):
    run = request.getfixturevalue(name)
    assert {p.name for p in run.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "samples.txt",
        "learning_curve.png",
        "checkpoints",
        "model",
        "best",
        *(["completions.jsonl"] if name == "prompt_run" else []),
    }
    seen = records(run)
    stages = ("supervised", "reinforcement")
    assert [(r["stage"], r["step"]) for r in seen] == [(stage, i) for stage in stages for i in range(5)]
    evaluated = [(r["stage"], r["step"]) for r in seen if "held_out" in r]
    assert evaluated == [(stage, i) for stage in stages for i in (0, 2, 4)]
    assert all("seconds" in r for r in seen if "held_out" in r)
    assert all(np.isfinite(v) for r in seen for k, v in r.items() if k != "stage")
    assert {"reward/mean", "kl/ref_sequence", "policy/entropy", "policy/clip_frac_low"} <= set(seen[-1])
    width, height = png_size(run / "learning_curve.png")
    assert width > 1000
    assert height > 300
    samples = (run / "samples.txt").read_text(encoding="utf-8")
    assert samples.startswith("# before reinforcement")
    assert "\n# after" in samples
    config = json.loads((run / "config.json").read_text())
    del config["version"], config["digests"], config["command"]
    assert json.loads(json.dumps(to_json(from_json(TrainArguments, config)))) == config


@pytest.mark.slow
def test_a_seed_decides_everything(cli, task_run, task_options, tmp_path):
    shown = cli("train", *task_options, "--out", tmp_path / "same")
    assert shown.code == 0, shown.err
    assert bits(tmp_path / "same") == bits(task_run)
    without = [{k: v for k, v in r.items() if k != "seconds"} for r in records(task_run)]
    assert [{k: v for k, v in r.items() if k != "seconds"} for r in records(tmp_path / "same")] == without
    for piece in (
        "parameters on",
        "supervised 4/4",
        "reinforcement 4/4",
        "tokens/s",
        "after reinforcement",
        "before",
    ):
        assert piece in shown.out
    assert cli("train", *task_options, "--seed", 1, "--out", tmp_path / "other").code == 0
    assert bits(tmp_path / "other") != bits(task_run)


@pytest.mark.slow
def test_a_member_of_many_seeds_is_that_seed_alone(cli, task_options, tmp_path):
    # A dense reward and enough prompts: where rewards hardly differ, whitened advantages are rounding, and runs follow it
    # apart.
    options = [*task_options, "--task", "copy", "--digits", "3", "--prompts-per-update", 16]
    result = cli("train", *options, "--seeds", 2, "--out", tmp_path / "two")
    assert result.code == 0, result.err
    assert "2 seeds" in result.out
    assert "samples of held-out prompts (seed 0)" in " ".join(result.out.split())
    for seed in (0, 1):
        assert cli("train", *options, "--seed", seed, "--out", tmp_path / str(seed)).code == 0
    together, alone = records(tmp_path / "two"), [records(tmp_path / "0"), records(tmp_path / "1")]
    for i, record in enumerate(together):
        for name in set(record) - {"stage", "step", "seconds"}:
            expected = [seed[i][name] for seed in alone]
            np.testing.assert_allclose(record[name], expected, rtol=1e-4, atol=1e-4, err_msg=name)
    evaluated = cli("evaluate", tmp_path / "two", "--json")
    assert json.loads(evaluated.out)["held_out"] == together[-1]["held_out"]
    refused = cli("generate", tmp_path / "two", "--prompt", "1+1=")
    assert refused.code == 2
    assert "one seed" in refused.err


ALL = [(a, k) for a in ALGORITHMS for k in KL_PLACEMENTS]
# Each algorithm and each KL once (ppo with the KL in the reward is every other test's).
RUN = [
    ("reinforce", "reward"),
    ("reinforce", "sequence_k2"),
    ("rloo", "k2"),
    ("grpo", "k3"),
    ("grpo", "sequence_ratio"),
]


TASK = tasks.addition(1)
POLICY = LanguagePolicy(
    TransformerConfig.gpt2(TASK.tokenizer.vocab_size, layers=1, width=16, heads=2, context=7)
)
CONFIG = ReinforcementConfig(
    learning_rate=0.01,
    entropy_coef=0.01,
    updates=2,
    prompts_per_update=4,
    completions=3,
    sampling=decoding.Sampling(TASK.completion_length, TASK.tokenizer.eos_id, TASK.tokenizer.pad_id),
)


@pytest.mark.parametrize("algorithm, kl", slow_but(ALL, 5))
def test_every_algorithm_takes_every_kl(algorithm, kl):
    """The parts fit: one update gives a state of the same shapes."""
    learner = reinforcement.Learner(POLICY, ALGORITHMS[algorithm]._replace(kl=KL_PLACEMENTS[kl]))
    key = jax.random.key(0)
    state = jax.eval_shape(lambda: reinforcement.init(key, CONFIG, learner, POLICY.init(key)))
    after, metrics = jax.eval_shape(lambda s: reinforcement.iterate(s, CONFIG, learner, TASK), state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert all(m.shape == () for m in metrics.values())


@pytest.mark.parametrize("algorithm, kl", slow_but(RUN, 1))
def test_algorithms_and_kls_run(algorithm, kl):
    composed = ALGORITHMS[algorithm]._replace(kl=KL_PLACEMENTS[kl])
    stage = training.reinforcement(POLICY, TASK.tokenizer, TASK, algorithm=composed, config=CONFIG)
    start = jax.jit(POLICY.init)(jax.random.key(0))
    before = jax.device_get(start)
    state, metrics = stage.advance(jax.jit(stage.init)(start), 0, 2)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, jax.device_get(state.params))
    assert max(jax.tree.leaves(moved)) > 0
    assert all(np.isfinite(v).all() and v.shape == (2,) for v in metrics.values())
    assert not metrics["skipped_updates"].any()


def test_options_compose_an_algorithm():
    """Each axis is one option; what they leave open is the named algorithm's, its numbers those of its paper."""

    def make(*words):
        arguments = parse_train(list(words))
        return arguments.algorithm.make(arguments.reinforcement), arguments.reinforcement

    assert make()[0] == algorithms.PPO
    for name, algorithm in ALGORITHMS.items():
        found, config = make("--algorithm", name)
        assert found == algorithm
        assert all(getattr(config, key) == value for key, value in algorithm.defaults.items())
    words = "--algorithm dapo --scale batch --ratio sequence --surrogate gmpo --reduction constant_length --kl k3_ratio"
    words += " --kl-controller doubling --entropy-price adaptive --correction masked rejected --top-entropy-share .2"
    words += " --clip-eps-high .3 --dual-clip 3 --truncation mask --advantage maxrl"
    found, config = make(*words.split())
    assert found == algorithms.DAPO._replace(
        credit=algorithms.SCALES["batch"],
        level=losses.sequence_log_probs,
        surrogate=surrogates.clip_geometric_mean,
        reduction=algorithms.average_longest,
        kl=algorithms.KL(loss=losses.kl.k3, times_ratio=True, controller=algorithms.double_price),
        entropy_price=algorithms.adapt_entropy_price,
        weights=(surrogates.mask_ratios, surrogates.reject_sequences, surrogates.select_top_entropy),
    )
    assert (config.clip_eps_high, config.dual_clip, config.truncation) == (0.3, 3, "mask")
    assert make("--overlong-buffer", "2")[0].credit.func is credit.penalize_length
    critic, _ = make("--algorithm", "reinforce", "--advantage", "ppo")
    assert critic == algorithms.REINFORCE._replace(
        credit=algorithms.PPO.credit, value_loss=algorithms.PPO.value_loss
    )
    for wrong, message in [
        ("--scale group", "does not compare"),
        (
            "--algorithm dr_grpo --kl-controller adaptive",
            "moves the price of a KL, and dr_grpo has none here",
        ),
        ("--algorithm grpo --whiten-rewards", "--whiten-rewards is of learned values, and grpo learns none"),
        ("--algorithm grpo --value-clip 1", "--value-clip is of learned values, and grpo learns none"),
        ("--algorithm grpo --correction truncated", "the ratio, which this surrogate has"),
        ("--curriculum hard", "give --prompts"),
        ("--critic nowhere", "--critic nowhere is no folder"),
        ("--critic policy --algorithm grpo", "grpo learns no values"),
    ]:
        with pytest.raises(InputError, match=message):
            make(*wrong.split())


@pytest.mark.slow
def test_rewards_see_the_columns_of_their_rows(cli, prompt_options, tmp_path, files):
    """Each completion comes with its own row's columns; rows that lack one have None."""
    (tmp_path / "spy.py").write_text(
        "import json, pathlib\n"
        "def reward(prompts, completions, letter, line, **columns):\n"
        "    assert len(prompts) == len(completions) == len(letter) == len(line) == len(columns['extra'])\n"
        f"    text = pathlib.Path({str(files / 'prompts.jsonl')!r}).read_text()\n"
        "    rows = [json.loads(row) for row in text.splitlines()]\n"
        "    for p, l, i, e in zip(prompts, letter, line, columns['extra']):\n"
        "        assert (p, l) == (rows[i]['prompt'], rows[i]['letter']) and e == ('x' if i == 3 else None)\n"
        "    return [float(i) for i in line]\n"
    )
    rows = [json.loads(row) for row in (files / "prompts.jsonl").read_text().splitlines()]
    rows[3]["extra"] = "x"
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    options = [
        *without(prompt_options, "--reward"),
        "--reward",
        f"{tmp_path}/spy.py:reward",
        "--prompts",
        tmp_path / "prompts.jsonl",
    ]
    result = cli("train", *options, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert 0 < records(tmp_path / "run")[-1]["reward/mean"] < 9


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        # Built-in rewards; names that look like markup or mathematics in titles; documents of other forms.
        ["--reward", "regex:[/b]$a$", "--algorithm", "rloo", "--kl-controller", "adaptive"],
        [
            "--reward",
            "length:3",
            "--text-unit",
            "file",
            "--tokenizer",
            "byte",
            "--evaluate-by",
            "sampling",
        ],
        ["--reward", "exact_match", "--style", "llama", "--algorithm", "grpo", "--micro-batches", "2"],
        ["--reward", "numeric_answer", "--pretrain.steps", "0", "--held-out", "0", "--dtype", "bfloat16"],
    ],
    ids=["regex", "length", "exact_match", "numeric_answer"],
)
def test_options_of_prompt_runs(cli, prompt_options, tmp_path, options):
    rows = [{"prompt": "2+2 — " * i + "ü", "answer": str(i), "completion": f" {i}."} for i in range(1, 11)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows))
    data = ["--prompts", tmp_path / "rows.jsonl"]
    if "--text-unit" not in options:
        data += ["--text", tmp_path / "rows.jsonl"]
    given = [*without(prompt_options, "--reward"), *data, *options]
    result = cli("train", *given, "--updates", "2", "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert [r["step"] for r in records(tmp_path / "run") if r["stage"] == "reinforcement"] == [0, 1, 2]


@pytest.mark.slow
def test_rlhf_with_the_folder_of_a_reward_model(cli, text_run, tmp_path):
    """As reward and as critic, every detail on; the exported model is the policy alone, and the run can be evaluated."""
    policy, params, tokenizer = models.load(text_run / "model")
    head = models.init_head(jax.random.key(0), policy.config.width, 1)._replace(bias=None)
    models.save_with_head(tmp_path / "judge", policy, params, head, "sequence", tokenizer)
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "{w}"}}\n' for w in ("ab", "ba", "b", "a")))
    options = ["--model", text_run / "model", "--prompts", tmp_path / "prompts.jsonl", "--held-out", "1"]
    options += ["--reward", tmp_path / "judge", "--critic", tmp_path / "judge", "--max-new-tokens", "4"]
    details = (
        "--kl-controller adaptive --kl-horizon 64 --missing-end-score -1 --truncation terminal --score-clip 5"
    )
    details += " --whiten-rewards --no-whiten-advantages --epochs 2 --lora-rank 2 --learning-rate 1e-3"
    details += " --updates 2 --prompts-per-update 2 --completions 2 --evaluate-every 1 --save-interval 0"
    result = cli("train", *options, *details.split(), "--out", tmp_path / "run")
    assert result.code == 0, result.err
    seen = records(tmp_path / "run")[-1]
    assert np.isfinite([seen["value/loss"], seen["kl/coef"], seen["reward/mean"]]).all()
    _, trained, _ = models.load(tmp_path / "run" / "model")
    assert jax.tree.structure(trained) == jax.tree.structure(params)
    assert cli("evaluate", tmp_path / "run", "--json").code == 0


@pytest.mark.slow
def test_empty_prompts_are_completed(cli, prompt_options, tmp_path, files):
    options = without(without(prompt_options, "--prompts"), "--reward")
    result = cli("train", *options, "--held-out", "0", "--reward", "regex:^a", "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert "'' -> " in (tmp_path / "run" / "samples.txt").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("score", ["1e30"])
def test_a_score_that_overflows_is_never_applied(cli, prompt_options, tmp_path, score):
    """Whatever float32 makes of it: parameters stay finite, and steps that were left out are counted and told."""
    (tmp_path / "huge.py").write_text(
        f"def reward(prompts, completions, **columns):\n    return [{score} * (i % 2) for i in range(len(prompts))]\n"
    )
    options = ["--reward", f"{tmp_path}/huge.py:reward", "--pretrain.steps", "0"]
    options += without(prompt_options, "--reward")
    result = cli("train", *options, "--updates", "2", "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert all(
        np.isfinite(x).all() for x in load_file(tmp_path / "run" / "model" / "model.safetensors").values()
    )
    skipped = records(tmp_path / "run")[-1]["skipped_updates"]
    assert (f"{skipped} optimizer steps were not applied" in result.out) == (skipped > 0)


@pytest.mark.slow
def test_a_learning_rate_that_explodes_is_reported(cli, task_options, tmp_path):
    result = cli(
        "train", *task_options, "--learning-rate", "1e25", "--updates", "4", "--out", tmp_path / "run"
    )
    assert result.code == 0, result.err
    assert all(
        np.isfinite(x).all() for x in load_file(tmp_path / "run" / "model" / "model.safetensors").values()
    )
    skipped = records(tmp_path / "run")[-1]["skipped_updates"]
    assert skipped > 0
    assert f"{skipped} optimizer steps were not applied" in result.out


@pytest.mark.slow
def test_tensorboard(cli, task_options, tmp_path):
    pytest.importorskip("tensorboardX")
    assert cli("train", *task_options, "--log", "tensorboard", "--out", tmp_path / "run").code == 0
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert b"reinforcement/held_out" in events.read_bytes()


def test_help_says_what_every_option_does(cli):
    shown = cli("train", "--help")
    assert shown.code == 0
    text = " ".join(shown.out.split())
    for group in dataclasses.fields(TrainArguments):
        for field in dataclasses.fields(getattr(parse_train([]), group.name)):
            option = name_option(field.name, PREFIXES.get(group.name, ""))
            assert (re.search(rf"{option}[ ,]", text) is not None) == (field.name != "sampling"), option


@pytest.mark.slow  # tests/data/test_reward_pool.py shows the processes
def test_several_rewards_in_processes_of_their_own(cli, prompt_options, files, tmp_path):
    """One async, one that says nothing of some completions; each has its column; a prompt that is too long is dropped."""
    (tmp_path / "more.py").write_text(
        "async def ends(completions):\n    return [1.0 if text.endswith('b') else None for text in completions]\n"
    )
    rewards = ["--reward", f"{tmp_path}/more.py:ends", "--reward-weights", "1,-.5", "--reward-workers", "2"]
    words = [*prompt_options, *rewards, "--pretrain.steps", "0", "--context", "16", "--normalize-rewards"]
    result = cli("train", *words, "--algorithm", "grpo", "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert "1 prompts left out: too long to leave room for a completion (line 5)" in result.out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    names = config["world"]["reward"]
    assert names == [f"{files}/reward.py:reward", f"{tmp_path}/more.py:ends"]
    names = [name.split("/")[-1] for name in names]
    for record in records(tmp_path / "run")[1:]:
        assert {f"reward/{name}" for name in names} <= set(record)
        assert all(record[f"reward/{name}/failures"] == 0 for name in names)
    assert f"held_out/{names[1]}" in records(tmp_path / "run")[-1]


def test_a_reward_of_tokens_needs_no_process(tmp_path):
    """It is part of the program that draws; it reads no columns, and the processes are for the others."""
    (tmp_path / "brief.py").write_text(
        "from jaxrl4lm.data.token_reward import TokenReward\n"
        "@TokenReward\ndef brief(prompts, prompt_mask, completions, mask):\n    return -1.0 * mask.sum(-1)\n"
    )
    words = ["--prompts", "p.jsonl", "--reward", f"{tmp_path}/brief.py:brief", "--reward-workers", "2"]
    (made,) = make_rewards(parse_train(words).world, ["answer"]).functions.values()
    assert isinstance(made, TokenReward)
    assert made([[1, 2], [3]], [[4], [5, 6]]).tolist() == [-1.0, -2.0]


@pytest.mark.slow
def test_teacher_forcing_ends_at_the_score_that_was_asked(cli, task_options, tmp_path):
    """Every score is at least 0, so it ends at its first evaluation; a resumed run ends it there as well."""
    options = [*task_options, "--pretrain.steps", "60", "--pretrain-until", "0", "--updates", "2"]
    result = cli("train", *options, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert "at most 60 steps supervised" in result.out
    assert "supervised 2/60" in result.out
    steps = [(r["stage"], r["step"]) for r in records(tmp_path / "run")]
    assert steps == [("supervised", i) for i in range(3)] + [("reinforcement", i) for i in range(3)]
    assert cli("train", "--resume", tmp_path / "run").code == 0
    assert [(r["stage"], r["step"]) for r in records(tmp_path / "run")] == steps


def test_default_tasks_are_taught_only_a_little():
    def teaching(*words):
        arguments = parse_train(list(words))
        return arguments.pretrain.steps, arguments.text.pretrain_until

    assert teaching() == (800, 0.4)
    assert teaching("--pretrain-until", "0.5") == (800, 0.5)
    assert teaching("--pretrain.steps", "9") == (9, None)


def test_defaults_suit_what_is_trained(tmp_path):
    """A new model on a task, a new one on prompts, a given one; and on-policy algorithms take one step a round."""
    prompts = ["--prompts", "p.jsonl", "--reward", "length:3"]
    assert parse_train([]).reinforcement == NEW_MODEL.replace(truncation="terminal")
    assert parse_train(prompts).reinforcement == NEW_MODEL
    assert parse_train([*prompts, "--model", "m"]).reinforcement == ReinforcementConfig()
    assert parse_train(["--algorithm", "rloo"]).reinforcement.minibatches == 1
    assert parse_train(["--algorithm", "rloo", "--minibatches", "2"]).reinforcement.minibatches == 2
    assert parse_train([*prompts, "--text", "t"]).pretrain.steps == 1000
    assert parse_train(prompts).pretrain.steps == 0
