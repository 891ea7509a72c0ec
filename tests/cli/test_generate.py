"""`jaxrl4lm generate` on a folder of a model: schemes, streams, chats, and what it refuses."""

import dataclasses
import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import models
from jaxrl4lm.data import ByteTokenizer
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxrl4lm.decoding import Sampling, generate

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content | tojson }}{% endfor %}"
    "{% if messages[0].content == 'no' %}{{ raise_exception('not so') }}{% endif %}"
    "{% generation %}{% if add_generation_prompt %}[assistant]{% endif %}{% endgeneration %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random byte model with a chat template, two end tokens and a vocabulary padded beyond its tokenizer's."""
    folder = tmp_path_factory.mktemp("model")
    config = models.TransformerConfig(300, layers=1, width=16, heads=2, kv_heads=1, mlp_width=24, context=96)
    policy = models.LanguagePolicy(config)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape, scale=0.5), jnp.float32), shapes)
    bytes_ = HuggingFaceTokenizer.of(ByteTokenizer())
    tokenizer = dataclasses.replace(bytes_, chat_template=TEMPLATE, eos_ids=(1, 3 + ord("%")))
    models.save(folder, policy, params, tokenizer)
    return folder


def completions(result):
    assert result.code == 0, result.err
    return [json.loads(line)["completion"] for line in result.out.splitlines()]


def reference(folder, text, length, begin=True):
    """The greedy completion of one prompt, by the library."""
    policy, params, tokenizer = models.load(folder)
    ids = [*tokenizer.begin_ids] * begin + tokenizer.encode(text)
    sampling = Sampling(length, tokenizer.eos_ids, tokenizer.pad_id, temperature=None)
    prompts = jnp.array([ids])
    out = generate(policy, params, prompts, jnp.ones(prompts.shape, bool), jax.random.key(0), sampling)
    ends = [i for i in out.tokens[0][out.mask[0]].tolist() if i not in tokenizer.eos_ids]
    return tokenizer.decode(ends)


def test_end_tokens_and_template_survive_saving(folder):
    tokenizer = models.load(folder)[2]
    assert tokenizer.eos_ids == (1, 3 + ord("%"))
    assert tokenizer.chat_template == TEMPLATE
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [1, 40]


def test_text_is_prompts_and_completions_and_nothing_else(cli, folder):
    options = [
        "--prompt",
        "ab",
        "é",
        "-n",
        "3",
        "--temperature",
        "0.9",
        "--top-p",
        "0.9",
        "--max-new-tokens",
        "20",
    ]
    shown = cli("generate", "--model", folder, *options)
    texts = completions(cli("generate", folder, *options, "--json"))
    assert shown.code == 0
    prompts = ["ab"] * 3 + ["é"] * 3
    assert shown.out == "".join(f"{p}{t}\n" for p, t in zip(prompts, texts, strict=True))
    assert len(set(texts)) == 6
    assert "tokens/s" in shown.err


@pytest.mark.slow
def test_schemes_that_leave_one_token_are_greedy(cli, folder):
    base = ["generate", folder, "--prompt", "ab", "--json", "--max-new-tokens", "12"]
    expected = [reference(folder, "ab", 12)]
    for scheme in (
        ["--greedy"],
        ["--temperature", "0"],
        ["--top-k", "1"],
        ["--top-p", "1e-6"],
        ["--min-p", "1"],
    ):
        assert completions(cli(*base, *scheme)) == expected, scheme
    assert completions(cli(*base, "--greedy", "--repetition-penalty", "1e4")) != expected
    assert completions(cli(*base, "--greedy", "--dtype", "bfloat16"))


@pytest.mark.slow
def test_a_file_of_more_prompts_than_a_batch(cli, folder, tmp_path):
    lines = [f"{i} " + "ab" * (i % 5) for i in range(35)]
    lines[7] += "\fab"  # only a line feed ends a line
    (tmp_path / "prompts.txt").write_text("\n\n".join(lines))
    options = ["--max-new-tokens", "4", "--json"]
    texts = completions(cli("generate", folder, "--prompts", tmp_path / "prompts.txt", *options))
    assert len(texts) == 35
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": line}) + "\n" for line in lines))
    assert completions(cli("generate", folder, "--prompts", tmp_path / "prompts.jsonl", *options)) == texts
    assert len(set(texts)) > 30  # no draw is used twice
    greedy = completions(cli("generate", folder, "--prompts", tmp_path / "prompts.txt", *options, "--greedy"))
    assert greedy[33] == reference(folder, lines[33], 4)


def test_stop_texts_end_a_completion_and_are_not_shown(cli, folder):
    base = ["generate", folder, "--prompt", "ab", "--json", "--max-new-tokens", "40", "--seed", "3"]
    (text,) = completions(cli(*base))
    stop = text[10:12]
    assert completions(cli(*base, "--stop", stop, "never")) == [text[: text.index(stop)]]


@pytest.mark.slow
def test_training_ends_at_every_end_token_and_takes_no_padding_for_a_token(cli, folder, tmp_path):
    policy, params, tokenizer = models.load(folder)
    # One of "a" and "%", which ends, is nearly always chosen; of the whole table it would be padding.
    aims = jnp.array([[9.0], [-9.0]])
    embedding = params["embedding"].at[jnp.array([3 + ord("%"), 3 + ord("a")])].set(aims)
    params["embedding"] = embedding.at[298:].set(9 * aims)
    models.save(tmp_path / "model", policy, params, tokenizer)
    (tmp_path / "spy.py").write_text(
        "def reward(prompts, completions, **columns):\n"
        "    assert not any('%' in c for c in completions), completions\n"
        "    return [float(len(c)) for c in completions]\n"
    )
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": c}) + "\n" for c in "abcdefghij"))
    options = ["--prompts", tmp_path / "prompts.jsonl", "--reward", f"{tmp_path}/spy.py:reward"]
    options += ["--updates", "2", "--prompts-per-update", "4", "--completions", "2"]
    options += ["--max-new-tokens", "6", "--evaluate-every", "2", "--held-out", "4"]
    result = cli("train", "--model", tmp_path / "model", *options, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["completion/eos_frac"] > 0 for row in rows if "completion/eos_frac" in row] == [True, True]


def test_a_chat_is_the_template_completed(cli, folder):
    options = ["--chat", "--system", "s", "--prompt", "<b>", "--greedy", "--max-new-tokens", "9"]
    result = cli("generate", folder, *options)
    assert result.out == reference(folder, '[system]"s"[user]"<b>"[assistant]', 9, begin=False) + "\n"


@pytest.mark.slow
def test_a_conversation_remembers_itself(cli, folder, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("a\n\nb\n"))
    result = cli("generate", folder, "--chat", "--greedy", "--max-new-tokens", "5")
    first = reference(folder, '[user]"a"[assistant]', 5, begin=False)
    text = f'[user]"a"[assistant]{json.dumps(first, ensure_ascii=False)}[user]"b"[assistant]'
    assert result.out == f"{first}\n{reference(folder, text, 5, begin=False)}\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("a" * 90))
    result = cli("generate", folder, "--chat", "--greedy", "--max-new-tokens", "5")
    assert result.code == 2
    assert "the conversation has 109 tokens" in result.err


REFUSED = [
    ("", "there is nothing to complete: give --prompt TEXT or --prompts FILE"),
    ("--model other --prompt a", "two models are named"),
    ("--prompt a --top-p 0", "--top-p must lie above 0 and be at most 1, not 0"),
    ("--prompt a --top-p nan", "--top-p must lie above 0"),
    ("--prompt a --min-p 1.5", "--min-p must lie above 0"),
    ("--prompt a --top-k 0", "--top-k must be at least 1, not 0"),
    ("--prompt a --repetition-penalty 0", "--repetition-penalty must be a positive number"),
    ("--prompt a --stop=", "--stop '' would end every completion"),
    ("--prompt a --system b", "--system is a message of a chat: add --chat"),
    ("--chat -n 2", "a conversation has one answer"),
    ("--chat --prompt no", "the chat template refuses the conversation: not so"),
    (f"--prompt {'a' * 96}", "the prompt has 97 tokens, which with 1 new ones exceeds the context of 96"),
    ("--prompts .", "is a folder"),
]


@pytest.mark.parametrize("arguments, said", REFUSED, ids=[a for a, _ in REFUSED])
def test_options_that_cannot_be_met(cli, folder, arguments, said):
    one_sentence(cli("generate", folder, *arguments.split()), said)


def one_sentence(result, said):
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("jaxrl4lm generate: ")
    assert said in result.err
    assert result.err.count("\n") == 1


def change(name, **keys):
    def spoil(folder):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))

    return spoil


def rewrite(name, content):
    return lambda folder: (folder / name).write_bytes(content)


SPOILED = [
    (change("config.json", model_type="mamba"), "model_type 'mamba' is not one of"),
    (change("config.json", num_hidden_layers=2), "the tensor model.layers.1."),
    (change("config.json", num_hidden_layers=0), "layers must be a whole number of at least 1"),
    (change("config.json", hidden_size=18), "has shape"),
    (change("config.json", hidden_size="big"), "config.json"),
    (rewrite("config.json", b"{"), "config.json"),
    (rewrite("config.json", b"[]"), "config.json"),
    (rewrite("model.safetensors", b"version https://git-lfs.github.com/spec/v1"), "is a Git LFS pointer"),
    (rewrite("model.safetensors", b""), "model.safetensors is cut short"),
    (lambda folder: (folder / "model.safetensors").unlink(), "holds neither model.safetensors nor"),
    (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
    (rewrite("tokenizer.json", b"version https://git-lfs.github.com/spec/v1"), "tokenizer.json"),
    (rewrite("tokenizer.json", b"{}"), "tokenizer.json"),
    (change("config.json", vocab_size=100), "has shape"),
]


@pytest.mark.parametrize("spoil, said", SPOILED)
def test_folders_that_hold_no_whole_model(cli, folder, tmp_path, spoil, said):
    shutil.copytree(folder, tmp_path / "model")
    spoil(tmp_path / "model")
    one_sentence(cli("generate", tmp_path / "model", "--prompt", "a"), said)


def test_a_chat_without_a_template_and_a_tokenizer_of_another_model(cli, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(config))
    one_sentence(cli("generate", tmp_path / "model", "--prompt", "a", "--chat"), "no chat template")
    config = models.TransformerConfig(90, layers=1, width=16, heads=2, context=96)
    policy = models.LanguagePolicy(config)
    models.save(tmp_path / "model", policy, policy.init(jax.random.key(0)))
    one_sentence(
        cli("generate", tmp_path / "model", "--prompt", "é"),
        "the tokenizer has ids up to 258, the model 90 embeddings",
    )
