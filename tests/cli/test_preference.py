"""`jaxrl4lm preference` and `jaxrl4lm reward`, end to end and tiny."""

import json
import shutil

import numpy as np
import pytest

from jaxrl4lm import models
from jaxrl4lm.cli import main

SIZES = ("--layers", "1", "--width", "16", "--heads", "2", "--steps", "4", "--batch", "4")
SHORT = ("--evaluate-every", "2", "--save-interval", "0", "--learning-rate", "3e-3", "--held-out", "3")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("preferences") / "pairs.jsonl"
    rows = [
        {"prompt": "ab" * (1 + i % 3), "chosen": "ba" + "b" * i, "rejected": "a" * (1 + i % 4)}
        for i in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run_command(folder, command, pairs, *options):
    assert main([command, "--dataset", str(pairs), *SIZES, *SHORT, *options, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def preferred(tmp_path_factory, pairs):
    """A finished run of `preference`; not to be changed."""
    options = ("--loss", "dpo:1,sft:.1", "--reference", "once", "--max-new-tokens", "4")
    return run_command(tmp_path_factory.mktemp("run") / "dpo", "preference", pairs, *options)


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_run_folder(cli, preferred, tmp_path):
    """What it leaves; evaluated again it says the same; finished, it can be resumed; it is a start and a reference."""
    seen = records(preferred)
    assert [(r["stage"], r["step"]) for r in seen] == [("preference", i) for i in range(5)]
    names = {f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")}
    assert names | {"log_probs/chosen", "log_probs/rejected", "grad_norm", "tokens"} <= set(seen[-1])
    assert {"model", "best", "samples.txt"} <= {path.name for path in preferred.iterdir()}
    result = cli("evaluate", preferred, "--json")
    record = json.loads(result.out)
    for name in ("held_out", "held_out/loss", "held_out/margin"):
        assert record[name] == pytest.approx(seen[-1][name], rel=1e-6)
    copied = shutil.copytree(preferred, tmp_path / "run")
    assert cli("preference", "--resume", copied).code == 0


def test_a_folder_as_start_and_reference(cli, pairs, preferred, tmp_path):
    options = ["--dataset", pairs, *SIZES[6:], *SHORT, "--model", preferred / "model", "--loss", "kto"]
    result = cli("preference", *options, "--reference", preferred / "best", "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert "21 judged completions; 3 held out" in result.out
    assert json.loads((tmp_path / "run" / "config.json").read_text())["judgement"]["loss"] == "kto"


def test_a_reference_of_another_tokenizer(cli, pairs, preferred, tmp_path):
    other = shutil.copytree(preferred / "model", tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    result = cli("preference", "--dataset", pairs, "--model", preferred / "model", "--reference", other)
    assert result.code == 2
    assert "its tokenizer is another than the policy's" in result.err.replace("\n", " ")


def test_a_reward_model(cli, pairs, preferred, tmp_path):
    """Scores alike when its base has gone, and is a base itself."""
    run, base = tmp_path / "run", shutil.copytree(preferred / "model", tmp_path / "base")
    options = ["--dataset", pairs, *SIZES[6:], *SHORT]
    assert cli("reward", *options, "--model", base, "--out", run).code == 0
    seen = records(run)
    assert seen[-1]["held_out/loss"] < seen[0]["held_out/loss"]
    _, _, head, tokenizer = models.load_with_head(run / "model")
    assert head.kernel.shape == (16, 1)
    assert tokenizer is not None
    scale = json.loads((run / "best" / "reward.json").read_text())
    best = next(r for r in seen if r["step"] == 4)
    np.testing.assert_allclose(scale["mean"], best["held_out/mean"], rtol=1e-6)
    assert json.loads(cli("evaluate", run, "--json").out)["held_out"] == seen[-1]["held_out"]
    assert "completion" not in cli("evaluate", run).out  # no table of samples, where there are none
    assert cli("reward", "--resume", run).code == 0
    shutil.rmtree(base)
    assert json.loads(cli("evaluate", run, "--json").out)["held_out"] == seen[-1]["held_out"]
    further = cli("reward", *options, "--steps", "1", "--model", run / "model", "--out", tmp_path / "further")
    assert further.code == 0, further.err


BAD = {
    "--loss simpo --reference once": "--reference once: --loss simpo compares with none",
    "--batch 3 --micro-batches 2": "--batch 3 must be a multiple of --micro-batches",
    "--loss dop": "there is no loss 'dop'; did you mean dpo",
    "--loss dpo:much": "'much' is no weight: write it as dpo:0.5",
    "--loss dpo,kto": "a mixture is of losses of pairs",
    "--loss exo": "--label-smoothing must lie between 0 and 1 for",
    "--loss kto --tail-weight .5": "--tail-weight are of pairs",
    "--reference none": "--reference none: --loss dpo compares with one",
    "--reference DIR --lora-rank 2": "the reference of adapters is their base",
    "--beta 0": "--beta must be positive",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_options(cli, pairs, words):
    result = cli("preference", "--dataset", pairs, *words.split())
    assert result.code == 2
    assert BAD[words] in result.err.replace("\n", " ")


def test_a_dataset_is_needed(cli):
    for command in ("preference", "reward"):
        assert "--dataset is missing" in cli(command).err
