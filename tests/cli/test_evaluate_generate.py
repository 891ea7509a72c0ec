"""`jaxrl4lm evaluate` and `generate`; models of transformers in, and out again with the same logits."""

import json
import shutil

import numpy as np
import pytest

from tests.selection import slow_but


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("name", slow_but(["task_run", "prompt_run"], 1))
def test_evaluate_gives_what_training_saw(cli, request, name):
    run = request.getfixturevalue(name)
    before = sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*"))
    result = cli("evaluate", run, "--json")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    last = lines((run / "metrics.jsonl").read_text())[-1]
    assert (record["stage"], record["step"]) == ("reinforcement", 4)
    assert record["held_out"] == last["held_out"]
    samples = (run / "samples.txt").read_text(encoding="utf-8").split("# after")[1]
    for sample in record["samples"]:
        assert f"{sample['prompt']!r} -> {sample['completion']!r}" in samples
    shown = cli("evaluate", run)
    assert shown.code == 0
    assert f"{last['held_out']:.3f}, reinforcement 4/4" in shown.out
    assert sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*")) == before


@pytest.mark.parametrize("name", slow_but(["task_run", "prompt_run"], 1))
def test_evaluate_draws_several_completions(cli, request, name):
    run = request.getfixturevalue(name)
    words = ["evaluate", run, "--draws", "3", "--success", "0.2"]
    record = json.loads(cli(*words, "--json").out)
    draws = record["draws"]
    assert {"reward", "pass@1", "pass@2", "pass@3", "maj@3", "length", "ended"} == set(draws)
    assert draws["pass@1"] <= draws["pass@2"] <= draws["pass@3"]
    shown = cli(*words)
    assert f"{draws['pass@3']:.3f}" in shown.out
    assert "--draws must not be negative" in cli("evaluate", run, "--draws", "-1").err


@pytest.mark.slow
def test_evaluate_of_a_model_that_was_not_trained(cli, prompt_options, tmp_path):
    options = [*prompt_options, "--pretrain.steps", "0", "--updates", "0"]
    assert cli("train", *options, "--out", tmp_path / "run").code == 0
    result = cli("evaluate", tmp_path / "run", "--json")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert (record["stage"], record["step"]) == ("untrained", 0)
    samples = (tmp_path / "run" / "samples.txt").read_text(encoding="utf-8")
    assert all(f"{s['prompt']!r} -> {s['completion']!r}" in samples for s in record["samples"])


def test_a_tokenizer_of_another_model_is_refused(cli, prompt_run, task_run, files, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(prompt_run / "model", folder)  # a few letters
    shutil.copy(task_run / "model" / "tokenizer.json", folder)  # more digits than that
    for command in (
        ["train", "--model", folder, "--prompts", files / "prompts.jsonl", "--reward", "length:3"],
        ["generate", folder, "--prompt", "1"],
    ):
        result = cli(*command)
        assert result.code == 2, result.out
        assert "the tokenizer has ids up to 14, the model" in result.err
        assert len(result.err.strip().splitlines()) == 1


def test_generate_repeats_its_prompts_and_its_seed(cli, prompt_run, files):
    options = ["--prompt", "ab", "é→a", "--n", "3", "--json", "--max-new-tokens", "5"]
    first, again, other = (cli("generate", prompt_run, *options, "--seed", s) for s in (0, 0, 1))
    assert first.code == 0, first.err
    assert [row["prompt"] for row in lines(first.out)] == ["ab"] * 3 + ["é→a"] * 3
    assert all(len(row["completion"]) <= 5 for row in lines(first.out))
    assert first.out == again.out != other.out
    assert "tokens in" in first.err
    greedy = lines(cli("generate", prompt_run, *options, "--temperature", "0").out)
    assert len({(row["prompt"], row["completion"]) for row in greedy}) == 2
    plain = cli("generate", prompt_run, "--prompts", files / "prompts.jsonl", "--temperature", "0")
    assert plain.out.count("\n") >= 10


def test_greedy_completions_are_those_of_the_evaluation(cli, task_run):
    record = json.loads(cli("evaluate", task_run, "--json").out)
    prompts = [sample["prompt"] for sample in record["samples"]]
    generated = lines(cli("generate", task_run, "--temperature", "0", "--json", "--prompt", *prompts).out)
    assert [row["completion"] for row in generated] == [sample["completion"] for sample in record["samples"]]


def texts():
    return ["a bab", "the cat — é", "ab ba ab"]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def pretrained(request, tmp_path_factory):
    """A random model of transformers, with a byte-pair tokenizer.json of its own."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp(request.param)
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet
    )
    backend.train_from_iterator(texts() * 3, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    if request.param == "gpt2":
        config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=48, **sizes)
    else:
        widths = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 48}
        config = transformers.LlamaConfig(**widths, **heads, **sizes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch and transformers
def test_a_model_of_transformers_in_and_out(cli, pretrained, tmp_path, files):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from jaxrl4lm import models
    from jaxrl4lm.models import positions_of

    options = [
        "--prompts-per-update",
        "4",
        "--completions",
        "2",
        "--minibatches",
        "2",
        "--updates",
        "2",
        "--evaluate-every",
        "2",
    ]
    data = [
        "--prompts",
        files / "prompts.jsonl",
        "--reward",
        "regex:a",
        "--held-out",
        "3",
        "--max-new-tokens",
        "6",
    ]
    run = tmp_path / "run"
    result = cli("train", "--model", pretrained, *data, *options, "--learning-rate", "0.01", "--out", run)
    assert result.code == 0, result.err
    theirs = transformers.AutoModelForCausalLM.from_pretrained(run / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
    policy, params, ours = models.load(run / "model")
    before = transformers.AutoModelForCausalLM.from_pretrained(pretrained).eval()
    for text in texts():
        ids = tokenizer(text)["input_ids"]
        assert ours.encode(text) == ids
        tokens = np.array([ids], np.int32)
        hidden, _ = policy.encode(params, tokens, positions_of(np.ones_like(tokens, bool)))
        with torch.no_grad():
            expected, start = (m(torch.tensor([ids])).logits.numpy() for m in (theirs, before))
        np.testing.assert_allclose(policy.logits(params, hidden), expected, atol=1e-4, rtol=1e-4)
        assert np.abs(expected - start).max() > 1e-3  # it was trained
    generated = cli(
        "generate", run, "--prompt", *texts(), "!", "--temperature", "0", "--json", "--max-new-tokens", "4"
    )
    assert generated.code == 0, generated.err
    for row in lines(generated.out):
        ids = torch.tensor([tokenizer(row["prompt"])["input_ids"]])
        with torch.no_grad():
            whole = theirs.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
        assert row["completion"] == tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
