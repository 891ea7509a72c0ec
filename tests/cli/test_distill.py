"""`jaxrl4lm distill`, end to end and tiny."""

import json
import shutil

import numpy as np
import pytest

from jaxrl4lm import models
from jaxrl4lm.cli import main

SHORT = ("--steps", "4", "--batch", "4", "--evaluate-every", "2", "--save-interval", "0", "--held-out", "3")
SIZES = ("--layers", "1", "--width", "8", "--heads", "2")


@pytest.fixture(scope="module")
def distilled(tmp_path_factory, files, text_run):
    """A finished run of a new, smaller student; not to be changed."""
    folder = tmp_path_factory.mktemp("distilled") / "run"
    options = ("--dataset", f"{files}/pairs.jsonl", "--teacher", f"{text_run}/model", f"{text_run}/best")
    options += (
        "--teacher-weights",
        "1",
        "0.5",
        "--on-policy-share",
        "0.5",
        "--beta",
        "0.5",
        "--teacher-top-k",
        "2",
    )
    options += ("--learning-rate", "1e-3", "--max-new-tokens", "6", *SHORT, *SIZES)
    assert main(["distill", *options, "--out", str(folder)]) == 0
    return folder


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_run_folder(cli, distilled, text_run, tmp_path):
    """What it leaves; evaluated again it says the same; finished, it can be resumed; the tokenizer is the teacher's."""
    seen = records(distilled)
    assert [(r["stage"], r["step"]) for r in seen] == [("distillation", i) for i in range(5)]
    assert [r["on_policy"] for r in seen[1:]] == [0, 1, 0, 1]
    assert {"loss", "token_agreement", "target_tokens", "grad_norm"} <= set(seen[-1])
    assert {"model", "best", "samples.txt", "learning_curve.png"} <= {
        path.name for path in distilled.iterdir()
    }
    record = json.loads(cli("evaluate", distilled, "--json").out)
    for name in ("held_out", "held_out/loss", "held_out/reverse_kl"):
        np.testing.assert_allclose(record[name], seen[-1][name], rtol=1e-5)
    policy, _, tokenizer = models.load(distilled / "model")
    assert policy.config.width == 8
    assert tokenizer.backend.get_vocab() == models.load(text_run / "model")[2].backend.get_vocab()
    copied = shutil.copytree(distilled, tmp_path / "run")
    assert cli("distill", "--resume", copied).code == 0


@pytest.mark.slow
def test_a_folder_as_student_and_prompts_alone(cli, files, text_run, distilled, tmp_path):
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": "ab" * i}) + "\n" for i in range(1, 9))
    )
    options = ["--dataset", tmp_path / "prompts.jsonl", "--model", text_run / "model", *SHORT]
    options += ["--teacher", text_run / "best", "--max-new-tokens", 4, "--objective", "advantage"]
    result = cli("distill", *options, "--lora-rank", 2, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert "5 prompts; 3 held out" in result.out
    assert (
        json.loads((tmp_path / "run" / "config.json").read_text())["distillation"]["objective"] == "advantage"
    )
    assert (tmp_path / "run" / "adapter").is_dir()


def test_prompts_alone_are_no_completions(cli, text_run, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "ab"}\n' * 8)
    options = ["--dataset", tmp_path / "prompts.jsonl", "--teacher", text_run / "best", *SHORT]
    result = cli("distill", *options, "--on-policy-share", "0")
    assert "--on-policy-share 0.0 needs completions, and the rows have prompts alone" in result.err.replace(
        "\n", " "
    )


def test_a_teacher_of_another_tokenizer(cli, files, text_run, task_run):
    options = [
        "--dataset",
        f"{files}/pairs.jsonl",
        "--model",
        text_run / "model",
        "--teacher",
        task_run / "model",
    ]
    result = cli("distill", *options)
    assert result.code == 2
    assert "its tokenizer is another than the student's" in result.err.replace("\n", " ")


BAD = {
    "": "--teacher is missing: name the folder of a model",
    "--teacher none": "none",
    "--teacher none --tokenizer byte": "--tokenizer byte: a student has its teacher's",
    "--teacher none --beta 2": "--beta must lie in 0..1, not 2.0",
    "--teacher none --objective advantage --on-policy-share .5": "--on-policy-share must be 1 for objective advantage",
    "--teacher none --batch 3 --micro-batches 2": "multiple of --micro-batches",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_options(cli, files, words):
    result = cli("distill", "--dataset", f"{files}/prompts.jsonl", *words.split())
    assert result.code == 2
    assert BAD[words] in result.err.replace("\n", " ")


def test_a_dataset_is_needed(cli):
    assert "--dataset is missing" in cli("distill").err
