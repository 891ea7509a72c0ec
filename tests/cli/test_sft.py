"""`jaxrl4lm sft`, end to end and tiny: texts of every form, what it leaves behind, and what it refuses."""

import json
import shutil

import jax
import numpy as np
import pytest

from jaxrl4lm import models
from jaxrl4lm.cli.options import from_json, to_json
from jaxrl4lm.cli.sft import SftArguments
from jaxrl4lm.models.huggingface import flatten
from tests.cli.conftest import TEXTS
from tests.model_folders import byte_tokenizer, make_folder, prefixing_tokenizer
from tests.selection import slow_but


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_run_folder(text_run):
    names = {
        "config.json",
        "metrics.jsonl",
        "samples.txt",
        "learning_curve.png",
        "checkpoints",
        "model",
        "best",
    }
    assert {p.name for p in text_run.iterdir()} == names
    seen = records(text_run)
    assert [(r["stage"], r["step"]) for r in seen] == [("supervised", i) for i in range(5)]
    assert [r["step"] for r in seen if "held_out/loss" in r] == [0, 2, 4]
    assert seen[-1]["held_out/loss"] < seen[0]["held_out/loss"]
    config = json.loads((text_run / "config.json").read_text())
    assert config["command"] == "sft"
    del config["version"], config["digests"], config["command"]
    assert json.loads(json.dumps(to_json(from_json(SftArguments, config)))) == config
    assert (text_run / "samples.txt").read_text().startswith("# before supervised")


@pytest.mark.slow
def test_evaluate_and_generate(cli, text_run):
    result = cli("evaluate", text_run, "--json")
    assert result.code == 0, result.err
    record, last = json.loads(result.out), records(text_run)[-1]
    assert (record["stage"], record["step"]) == ("supervised", 4)
    assert (record["held_out"], record["held_out/loss"]) == (last["held_out"], last["held_out/loss"])
    shown = cli("evaluate", text_run)
    assert f"held-out token accuracy: {last['held_out']:.3f}, supervised 4/4" in shown.out
    prompts = [sample["prompt"] for sample in record["samples"]]
    options = ["--greedy", "--json", "--max-new-tokens", "6", "--prompt", *prompts]
    said = [json.loads(line)["completion"] for line in cli("generate", text_run, *options).out.splitlines()]
    assert said == [sample["completion"] for sample in record["samples"]]


def test_a_finished_run_can_be_resumed(cli, text_run, tmp_path):
    run = shutil.copytree(text_run, tmp_path / "run")
    shutil.rmtree(run / "model")
    assert cli("sft", "--resume", run).code == 0
    weights = "model/model.safetensors"
    assert (run / weights).read_bytes() == (text_run / weights).read_bytes()
    refused = cli("sft", "--resume", run, "--steps", 9)
    assert refused.code == 2
    assert "takes the options of that run: give no other option" in refused.err


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["line", "file"])
def test_plain_texts(cli, files, tmp_path, unit):
    text = files / "text.txt"
    if unit == "file":  # longer than ten rows: a stream, cut into rows
        text = tmp_path / "long.txt"
        text.write_text("ab ba\n" * 40)
    options = ["--dataset", text, "--text-unit", unit, "--context", 16, "--max-new-tokens", 6]
    result = cli("sft", *TEXTS, *options, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert ("9 texts to imitate" if unit == "line" else "15 texts to imitate") in result.out
    assert records(tmp_path / "run")[-1]["held_out/loss"] > 0
    assert models.load(tmp_path / "run" / "model")[0].config.context == 16


def chat_folder(path):
    """As Llama 3: a token before every text, and no padding token."""
    backend = byte_tokenizer(["<bos>", "<eos>"], begin="<bos>")
    template = "<bos>{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": template}
    return make_folder(path, backend, config, {"eos_token_id": 257})


FOLDERS = {
    "no padding": chat_folder,
    "padding ends": lambda path: make_folder(
        path,
        byte_tokenizer(["<eot>", "<im_start>", "<im_end>"]),
        {"eos_token": "<im_end>", "pad_token": "<eot>"},
        {"eos_token_id": [258, 256]},
    ),
    "prefixing": lambda path: make_folder(path, prefixing_tokenizer(), {"eos_token": "</s>"}),
}
SHORT = ["--steps", 2, "--batch", 2, "--max-new-tokens", 6]


@pytest.fixture(scope="module", params=slow_but(FOLDERS, ["padding ends"]))
def base(request, tmp_path_factory):
    """A folder, and rows to imitate."""
    folder = tmp_path_factory.mktemp("base") / "model"
    FOLDERS[request.param](folder)
    rows = [{"prompt": "Good mor", "completion": "ning"}] * 10
    (folder.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_published_folders_are_taught_and_trained(cli, base, tmp_path):
    """Whatever their special tokens: by sft, and then by train from what sft left."""
    rows = base.parent / "rows.jsonl"
    result = cli("sft", "--model", base, "--dataset", rows, *SHORT, "--out", tmp_path / "sft")
    assert result.code == 0, result.err
    seen = records(tmp_path / "sft")
    assert np.isfinite([seen[1]["loss"], seen[-1]["held_out/loss"]]).all()
    _, _, tokenizer = models.load(tmp_path / "sft" / "model")
    _, _, before = models.load(base)
    assert tokenizer is not None
    assert before is not None
    assert (tokenizer.encode("Good"), tokenizer.eos_ids) == (before.encode("Good"), before.eos_ids)
    options = ["--prompts-per-update", 2, "--completions", 2, "--updates", 2, "--max-new-tokens", 6]
    data = ["--prompts", rows, "--reward", "regex:.*", "--algorithm", "grpo", "--learning-rate", 0.01]
    model = tmp_path / "sft" / "model"
    result = cli("train", "--model", model, *data, *options, "--out", tmp_path / "train")
    assert result.code == 0, result.err
    # The reward is always 1: there is nothing to learn, whatever the divergence costs.
    assert [r["advantage/std"] for r in records(tmp_path / "train")[1:]] == [0, 0]


@pytest.mark.slow
def test_train_takes_messages(cli, tmp_path):
    """Rendered by the model's template; the reward gets them as they are in the file."""
    model = chat_folder(tmp_path / "model")
    rows = [
        {"prompt": [{"role": "user", "content": "hi"}], "wanted": "x"},
        {"prompt": "<bos>hi", "wanted": "y"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "chat.py").write_text(
        "def reward(prompts, completions, wanted, **columns):\n"
        "    for p, c, w in zip(prompts, completions, wanted):\n"
        "        if w == 'x':\n"
        "            assert p == [{'role': 'user', 'content': 'hi'}], p\n"
        "            assert c[0]['role'] == 'assistant', c\n"
        "        else:\n"
        "            assert p == '<bos>hi' and isinstance(c, str)\n"
        "    return [1.0] * len(completions)\n"
    )
    options = ["--prompts-per-update", 2, "--completions", 2, "--updates", 1, "--max-new-tokens", 4]
    data = ["--prompts", tmp_path / "rows.jsonl", "--reward", f"{tmp_path}/chat.py:reward", "--held-out", 0]
    result = cli("train", "--model", model, *data, *options, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert "at most 9 tokens long" in result.out  # <bos>user:hi; — its begin token once
    samples = (tmp_path / "run" / "samples.txt").read_text()
    assert "'<bos>user:hi;' ->" in samples
    result = cli("evaluate", tmp_path / "run", "--json")
    assert json.loads(result.out)["held_out"] == 1.0
    refused = cli("train", *data, *options, "--minibatches", 1, "--out", tmp_path / "new")
    assert refused.code == 2
    assert "rows.jsonl, line 1: a new model has no chat template" in refused.err


@pytest.mark.parametrize(
    "command, change",
    [
        ("sft", "edited"),
        pytest.param("train", "deleted", marks=pytest.mark.slow),
        pytest.param("sft", "replaced", marks=pytest.mark.slow),
        pytest.param("sft", "deleted", marks=pytest.mark.slow),
        pytest.param("train", "edited", marks=pytest.mark.slow),
        pytest.param("train", "replaced", marks=pytest.mark.slow),
    ],
)
def test_a_base_that_changes(cli, tmp_path, command, change):
    """It is named when the run is to go on; what the run has saved can be evaluated without it."""
    base = make_folder(
        tmp_path / "base", byte_tokenizer(["<eos>"]), {"eos_token": "<eos>"}, {"eos_token_id": 256}
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "ab", "completion": "ba"}) + "\n")
    if command == "sft":
        options = ["--dataset", rows, *SHORT]
    else:
        options = ["--prompts", rows, "--reward", "length:3", "--prompts-per-update", 1, "--updates", 1]
        options += ["--completions", 2, "--max-new-tokens", 4, "--evaluate-by", "greedy"]
    run = tmp_path / "run"
    result = cli(command, "--model", base, *options, "--out", run)
    assert result.code == 0, result.err
    before = json.loads(cli("evaluate", run, "--json").out)
    if change == "edited":
        (base / "generation_config.json").write_text('{"eos_token_id": 65}')
    else:
        shutil.rmtree(base)
        if change == "replaced":
            make_folder(base, byte_tokenizer(["<eos>", "<pad>"]), {"eos_token": "<eos>"})
    refused = cli(command, "--resume", run)
    assert refused.code == 2
    assert refused.err.count("\n") == 1
    assert str(base) in refused.err
    assert ("is gone since" if change == "deleted" else "since the run") in refused.err
    evaluated = cli("evaluate", run, "--json")
    assert evaluated.code == 0, evaluated.err
    assert json.loads(evaluated.out) == before
    rows.write_text(rows.read_text() * 2)  # beside the base: that is no longer the same evaluation
    refused = cli("evaluate", run)
    assert refused.code == 2
    assert f"{rows} has changed since" in refused.err
    shutil.rmtree(run / "model")
    assert cli("evaluate", run).code == 2


CHAT = (
    "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}{{ m.content }}<eos>"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.slow
def test_an_adapter_of_conversations(cli, tmp_path):
    """Several files of columns of their own, packed, a template, a part of the model, micro-batches, another optimizer."""
    base = make_folder(
        tmp_path / "base", byte_tokenizer(["<eos>"]), {"eos_token": "<eos>"}, {"eos_token_id": 256}
    )
    chats = [
        [{"from": "human", "value": "ab" * (1 + i % 3)}, {"from": "gpt", "value": "ba" * (1 + i % 4)}]
        for i in range(12)
    ]
    for name, part in (("a.jsonl", chats[:5]), ("b.jsonl", chats[5:])):
        (tmp_path / name).write_text("".join(json.dumps({"talk": chat}) + "\n" for chat in part))
    (tmp_path / "chat.jinja").write_text(CHAT)
    options = ["--dataset", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--columns", "conversations=talk"]
    options += [
        "--model",
        base,
        "--chat-template",
        tmp_path / "chat.jinja",
        "--assistant-only",
        "--packing",
        "bfd",
    ]
    options += [
        "--lora-rank",
        2,
        "--lora-targets",
        "q_proj",
        "up",
        "--lora-dropout",
        0.1,
        "--learning-rate",
        0.01,
    ]
    options += ["--optimizer", "muon", "--schedule", "wsd", "--epochs", 3, "--batch", 2, "--micro-batches", 2]
    options += ["--remat", "full", "--max-new-tokens", 6, "--z-loss", 1e-4, "--held-out", 2]
    run = tmp_path / "run"
    result = cli("sft", *options, "--out", run)
    assert result.code == 0, result.err
    assert "user: abassistant: ⟦ba<eos>⟧" in result.out
    assert "10 texts to imitate; 2 held out" in result.out
    policy, params, tokenizer = models.load(run / "model")
    assert tokenizer.chat_template == CHAT
    _, before, _ = models.load(base)
    changed = {path for path, x in flatten(params).items() if not np.array_equal(x, flatten(before)[path])}
    assert changed == {f"layer_0/{name}/kernel" for name in ("attention/query", "mlp/up")}
    adapters, scale = models.lora.load(run / "adapter", policy)
    merged = flatten(models.lora.merge(before, adapters, scale))
    for path, x in flatten(params).items():
        np.testing.assert_allclose(merged[path], x, atol=1e-6)
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (config["lora_dropout"], config["base_model_name_or_path"]) == (0.1, str(base))
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 32.0, ["q_proj", "up_proj"])
    card = (run / "model" / "README.md").read_text()
    for said in (
        "# run\n",
        "- a.jsonl\n- b.jsonl",
        "| schedule | wsd |",
        "| optimizer | muon |\n| loss | negative_log_likelihood |\n| rank | 2 |\n",
        "| held_out/loss at the start |",
        '"sft"',
    ):
        assert said in card
    assert str(tmp_path) not in card
    trained = json.loads((run / "config.json").read_text())
    assert trained["data"]["dataset"] == [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    # A part of the model, and an adapter of no steps.
    plain = ["--dataset", tmp_path / "a.jsonl", *options[3:10]]
    result = cli(
        *("sft", *plain, "--train", "final_norm", "--steps", 2, "--batch", 2),
        *("--eval-dataset", tmp_path / "b.jsonl", "--out", tmp_path / "part"),
    )
    assert "5 texts to imitate; 7 held out" in result.out
    assert result.code == 0, result.err
    _, part, _ = models.load(tmp_path / "part" / "model")
    moved = [path for path, x in flatten(part).items() if not np.array_equal(x, flatten(before)[path])]
    assert moved == ["final_norm/scale"]
    assert not (tmp_path / "part" / "adapter").exists()
    result = cli("sft", *plain, "--lora-rank", 2, "--steps", 0, "--out", tmp_path / "none")
    assert result.code == 0, result.err
    _, same, _ = models.load(tmp_path / "none" / "model")
    jax.tree.map(np.testing.assert_array_equal, same, before)


REFUSED = [
    ([], "--dataset is missing"),
    (["--dataset", "none.txt"], "none.txt does not exist"),
    (["--dataset", "empty.txt"], "empty.txt is empty"),
    (["--dataset", "rows.jsonl", "--columns", "completion=answer"], "rows.jsonl, line 1: no column 'answer'"),
    (["--dataset", "rows.jsonl", "--columns", "answer"], "--columns answer: write it as prompt=question"),
    (
        ["--dataset", "rows.jsonl", "--assistant-only"],
        "rows.jsonl, line 1: loss on the assistant only needs messages",
    ),
    (["--dataset", "text.txt", "rows.jsonl"], "rows.jsonl, line 1: a row of format prompt_completion"),
    (["--dataset", "text.txt", "--fractions", "0.5", "0.5"], "--fractions has 2 numbers for 1 datasets"),
    (["--dataset", "text.txt", "--batch", "4", "--micro-batches", "3"], "--batch 4 must be a multiple of"),
    (["--dataset", "text.txt", "--train", "nothing"], "--train: no parameter is trained by this rule"),
    (["--dataset", "text.txt", "--train", "("], "--train: "),
    (
        ["--dataset", "text.txt", "--lora-rank", "2", "--lora-targets", "q_proj"],
        "--lora-targets: 'q_proj' names no",
    ),
    (["--dataset", "text.txt", "--lora-rank", "2", "--train", "norm"], "give one of them"),
    (["--dataset", "text.txt", "--loss", "dft", "--label-smoothing", "0.1"], "--label-smoothing belongs to"),
    (["--dataset", "text.txt", "--chat-template", "none.jinja"], "none.jinja does not exist"),
    (["--dataset", "text.txt", "--held-out", "3"], "--held-out 3 leaves nothing of 3 texts"),
    (["--dataset", "text.txt", "--steps", "-1"], "--steps must not be negative, not -1"),
    (["--dataset", "text.txt", "--learning-rate", "0"], "--learning-rate"),
    (["--dataset", "text.txt", "--width", "15"], "the model cannot be built"),
    (["--dataset", "text.txt", "--seed", str(2**31)], "--seed must lie in"),
    (["--dataset", "text.txt", "--model", "none"], "none"),
    (["--dataset", "text.txt", "--mesh", "3", "1", "1"], "--mesh: a mesh of 3 x 1 x 1 needs 3 devices"),
    (["--resume", "none"], "none is not a run folder"),
]


@pytest.mark.parametrize("arguments, said", REFUSED, ids=[said for _, said in REFUSED])
def test_bad_input(cli, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "text.txt").write_text("ab\nba\nbb\n")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    before = sorted(tmp_path.rglob("*"))
    result = cli("sft", *arguments)
    assert result.code == 2, result.out
    assert said in result.err
    assert result.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_of_another_command_is_refused(cli, text_run, task_run):
    for command, run in (("train", text_run), ("sft", task_run)):
        result = cli(command, "--resume", run)
        assert result.code == 2
        assert result.err.count("\n") == 1


def test_help(cli):
    text = " ".join(cli("sft", "--help").out.split())
    for option in ("--dataset", "--steps", "--held-out", "--model", "--max-new-tokens", "--mesh", "--log"):
        assert option in text
