"""`jaxrl4lm train` on chats, with several rewards and named evaluation sets."""

import json
import re

import pytest

from tests.cli.conftest import SIZES

REWARDS = """
async def vowels(completions, log_extra):
    said = [each[0]["content"] for each in completions]
    log_extra("bytes", [len(text.encode()) for text in said])
    return [sum(c in "aeiou" for c in text) / 8 for text in said]


def ends(completions, **columns):
    return [float(each[0]["content"].endswith("e")) for each in completions]
"""
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    """A folder with chats, two sets more, a template and rewards; the options that name them."""
    folder = tmp_path_factory.mktemp("chats")
    for name, first in (("prompts", 0), ("easy", 20), ("hard", 40), ("late", 60)):
        rows = [
            {"prompt": [{"role": "user", "content": f"{i}+1?"}], "answer": str(i + 1)}
            for i in range(first, first + 6)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "bare.jsonl").write_text('{"prompt": "é"}\n')
    (folder / "template.jinja").write_text(TEMPLATE)
    (folder / "rewards.py").write_text(REWARDS)
    options = [
        *(*SIZES, "--prompts", folder / "prompts.jsonl", "--held-out", 2, "--max-new-tokens", 8),
        *("--reward", f"{folder}/rewards.py:vowels", "--reward", f"{folder}/rewards.py:ends"),
        *("--reward", "numeric_answer", "--reward-weights", "1,.5,2", "--tokenizer", "byte"),
        *("--chat-template", folder / "template.jinja", "--evaluate-every", 1, "--learning-rate", 0.03),
    ]
    return folder, options


@pytest.mark.slow
def test_chats_three_rewards_and_named_sets(cli, chats, tmp_path):
    """Each reward and each set has its figures, the best model is that of the named set, and completions can be read."""
    folder, options = chats
    sets = ["--eval-dataset", f"easy={folder}/easy.jsonl", f"hard={folder}/hard.jsonl", "--best-by", "hard"]
    shown = cli("train", *options, *sets, "--updates", 2, "--staleness", 1, "--out", tmp_path / "run")
    assert shown.code == 0, shown.err
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    named = ("rewards.py:vowels", "rewards.py:ends", "numeric_answer")
    figures = {f"{s}/{f}" for s in ("easy", "hard") for f in ("reward", "length", "ended", *named)}
    assert all(figures < set(record) for record in records)
    best = max(records[1:], key=lambda record: (record["hard/reward"], -record["step"]))
    assert f"the best evaluation, of step {best['step']}," in shown.out
    assert re.search(r"reinforcement 2/2 .* held-out \S+  easy \S+  hard ", shown.out)
    assert "completions of step" in shown.out
    rows = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1] * 4 + [2] * 4
    for row in rows:
        total = sum(w * row[f"reward/{name}"] for w, name in zip((1, 0.5, 2), named, strict=True))
        assert row["reward"] == pytest.approx(total)
        assert row["bytes"] >= len(row["completion"])
    words = ["evaluate", tmp_path / "run", "--eval-dataset", f"late={folder}/late.jsonl", "--draws", 2]
    evaluated = json.loads(cli(*words, "--json").out)
    assert {name: evaluated[name] for name in figures} == {name: records[-1][name] for name in figures}
    assert {"late/reward", "late/ended"} < set(evaluated)
    assert {"pass@2", "easy/pass@2", "late/maj@2"} < set(evaluated["draws"])
    table = cli(*words).out
    for piece in ("held out", "easy", "late", "maj@2", f"{evaluated['hard/reward']:.3f}"):
        assert piece in table


@pytest.mark.parametrize(
    "words, said",
    [
        ("--eval-dataset easy", "--eval-dataset easy: write it as NAME=FILE"),
        ("--eval-dataset policy=easy.jsonl", "other metrics have that name"),
        ("--eval-dataset a=easy.jsonl a=hard.jsonl", "another set has that name"),
        ("--eval-dataset a=gone.jsonl", "gone.jsonl does not exist"),
        ("--eval-dataset a=bare.jsonl", "bare.jsonl: the reward numeric_answer cannot be called"),
        ("--best-by hard", "--best-by hard names no evaluation set: there is none, give --eval-dataset"),
        ("--staleness 1 --algorithm rloo", "staleness 1 needs a ratio"),
    ],
)
def test_what_does_not_fit_is_refused(cli, chats, words, said, tmp_path, monkeypatch):
    folder, options = chats
    monkeypatch.chdir(folder)
    refused = cli("train", *options, *words.split(), "--out", tmp_path / "run")
    assert refused.code == 2
    assert said in refused.err
    assert len(refused.err.strip().splitlines()) == 1
