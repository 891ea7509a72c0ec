"""`jaxrl4lm best-of-n`: what it writes, what is left after a kill, and rounds of learning."""

import json
import shutil

import numpy as np
import pytest

from jaxrl4lm import data

SAMPLED = ["--max-new-tokens", "4", "--keep-unended", "--seed", "3"]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def options(text_run, files):
    """Two prompts a batch."""
    prompts = ["--prompts", f"{files}/prompts.jsonl", "--reward", f"{files}/reward.py:reward"]
    (files / "ab.jsonl").write_text(
        "".join(f'{{"prompt": "{w}", "letter": "a"}}\n' for w in ("ab", "ba", "b", "a", "bb"))
    )
    prompts[1] = f"{files}/ab.jsonl"
    return ["--model", text_run, *prompts, "-n", "32", *SAMPLED]


def test_a_task_scores_a_model_that_was_trained_on_it(cli, task_run, tmp_path):
    out = tmp_path / "best"
    words = [
        "--model",
        task_run,
        "--digits",
        "1",
        "--problems",
        "6",
        "-n",
        "4",
        "--keep-unended",
        "--out",
        out,
    ]
    result = cli("best-of-n", *words)
    assert result.code == 0, result.err
    rows, kept, report = (
        read(out / "completions.jsonl"),
        read(out / "kept.jsonl"),
        json.loads((out / "report.json").read_text()),
    )
    assert len(rows) == len(kept) == 6
    for row in rows:
        a, b = row["prompt"].removesuffix("=").split("+")
        right = [
            float(e and c == str(int(a) + int(b)))
            for c, e in zip(row["completions"], row["ended"], strict=True)
        ]
        assert row["scores"] == right
    np.testing.assert_allclose(report["best"][0], np.mean([row["scores"] for row in rows]))
    np.testing.assert_allclose(report["best"][3], np.mean([max(row["scores"]) for row in rows]))
    assert (out / "best_of_n.png").stat().st_size > 1000
    assert "KL at most" in result.out
    assert cli("evaluate", out).code == 2


def test_a_killed_command_draws_the_same_when_it_goes_on(cli, options, tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert cli("best-of-n", *options, "--out", whole).code == 0
    _, rows = data.recognize(data.load(whole / "kept.jsonl"))
    assert len(rows) == 5
    shutil.copytree(whole, torn)
    text = (torn / "completions.jsonl").read_text()
    (torn / "completions.jsonl").write_text(text[: len(text) * 7 // 10])
    for name in ("kept.jsonl", "report.json", "best_of_n.png"):
        (torn / name).unlink()
    result = cli("best-of-n", "--resume", torn)
    assert result.code == 0, result.err
    for name in ("completions.jsonl", "kept.jsonl", "report.json"):
        assert (torn / name).read_bytes() == (whole / name).read_bytes()


def test_rounds_learn_and_go_on(cli, options, tmp_path):
    out = tmp_path / "rounds"
    learning = ["--rounds", "1", "--sft.learning-rate", "0.02", "--sft.batch", "5", "--sft.epochs", "8"]
    result = cli("best-of-n", *options, *learning, "--out", out)
    assert result.code == 0, result.err
    before, after = (json.loads((out / f"round-{i}" / "report.json").read_text()) for i in (0, 1))
    assert after["best"][0] > before["best"][0]
    shutil.rmtree(out / "round-1")
    shutil.rmtree(
        out / "round-0" / "sft" / "model"
    )  # as if it had been killed before the last file of the round
    assert cli("best-of-n", "--resume", out).code == 0
    assert json.loads((out / "round-1" / "report.json").read_text()) == after


BAD = {
    "": "--model is missing",
    "--model MODEL --reward length:3": "--reward needs --prompts",
    "--model MODEL --prompts PROMPTS": "--prompts needs a --reward",
    "--model MODEL -n 0": "--n must be positive",
    "--model MODEL -n 2 --keep 3": "--keep 3: of 2 completions of a prompt, keep at most 2",
    "--model MODEL --from-base": "--from-base says where each round begins: give --rounds",
    "--model nowhere": "does not exist",
    "--model MODEL --digits 1 --problems 2": "the model reads",
    "--model MODEL --prompts PROMPTS --reward length:3 --least 9 --max-new-tokens 4": "no completion can be kept",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_options(cli, text_run, options, tmp_path, words):
    named = [{"MODEL": text_run, "PROMPTS": options[3]}.get(word, word) for word in words.split()]
    result = cli("best-of-n", *named, "--out", tmp_path / "out")
    assert result.code == 2
    assert BAD[words] in " ".join(result.err.split())
    assert "--resume" not in result.err, "it would end there again"
