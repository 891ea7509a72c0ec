"""`jaxrl4lm generate` on folders whose special tokens are laid out as those of published models."""

import json
import shutil

import numpy as np
import pytest

from jaxrl4lm.models.tensor_files import Tensor, read_tensors, write_tensors
from tests.model_folders import byte_tokenizer, make_folder
from tests.selection import slow_but

QWEN = ["<eot>", "<im_start>", "<im_end>"]
QWEN_CONFIG = {"eos_token": "<im_end>", "pad_token": "<eot>"}


def completions(result):
    assert result.code == 0, result.err
    return [json.loads(line)["completion"] for line in result.out.splitlines()]


@pytest.fixture(scope="module")
def no_pad(tmp_path_factory):
    """As Llama 3: a token before every text, and no padding token."""
    backend = byte_tokenizer(["<bos>", "<eos>"], begin="<bos>")
    return make_folder(
        tmp_path_factory.mktemp("llama"), backend, {"bos_token": "<bos>", "eos_token": "<eos>"}
    )


@pytest.fixture(scope="module")
def pad_ends(tmp_path_factory):
    """As Qwen2.5-Instruct: the padding token is one of the end tokens."""
    generation = {"eos_token_id": [258, 256]}
    return make_folder(tmp_path_factory.mktemp("qwen"), byte_tokenizer(QWEN), QWEN_CONFIG, generation)


@pytest.mark.parametrize("prompt", slow_but(["hi", "<bos>hi<eos>"], 1))
def test_a_tokenizer_without_padding(cli, no_pad, prompt):
    options = ["--greedy", "--json", "--max-new-tokens", "6"]
    assert len(completions(cli("generate", no_pad, "--prompt", prompt, "longer than that", *options))) == 2


@pytest.mark.parametrize("prompt", slow_but(["a<im_end>b", "<im_start>user\nhi<im_end>", "<eot>"], 1))
def test_padding_among_the_ends(cli, pad_ends, prompt):
    options = ["--greedy", "--json", "--max-new-tokens", "6"]
    assert len(completions(cli("generate", pad_ends, "--prompt", prompt, *options))) == 1


def test_what_a_template_has_begun_is_completed_the_same(cli, no_pad):
    """A prompt that begins with what the tokenizer puts before every text, and one that does not."""
    options = ["--greedy", "--json", "--max-new-tokens", "9"]
    bare, begun = completions(cli("generate", no_pad, "--prompt", "hi", "<bos>hi", *options))
    assert bare == begun


@pytest.mark.slow
def test_messages_are_completed_under_the_template(cli, pad_ends, tmp_path):
    """A file of them, without --chat; its rows go out as they came in."""
    template = "{% for m in messages %}<im_start>{{ m.role }}:{{ m.content }}<im_end>{% endfor %}{{ tools }}"
    config = json.loads((pad_ends / "tokenizer_config.json").read_text()) | {"chat_template": template}
    model = shutil.copytree(pad_ends, tmp_path / "model")
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    rows = [{"prompt": [{"role": "user", "content": "hi"}], "tools": [{}]}, {"prompt": "hi"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--greedy", "--max-new-tokens", "9"]
    result = cli("generate", model, "--prompts", tmp_path / "rows.jsonl", "--json", *options)
    assert [json.loads(line)["prompt"] for line in result.out.splitlines()] == [row["prompt"] for row in rows]
    written = "<im_start>user:hi<im_end>[{}]"
    asked = cli("generate", model, "--prompt", written, "hi", "--json", *options)
    assert completions(result) == completions(asked)
    shown = cli("generate", model, "--prompts", tmp_path / "rows.jsonl", *options)
    assert shown.out.startswith(written + completions(result)[0])
    chat = cli(
        "generate", model, "--chat", "--system", "s", "--prompts", tmp_path / "rows.jsonl", "--json", *options
    )
    said = [f"<im_start>system:s<im_end><im_start>user:hi<im_end>{tools}" for tools in ("[{}]", "None")]
    assert completions(chat) == completions(cli("generate", model, "--prompt", *said, "--json", *options))
    assert [json.loads(line)["prompt"] for line in chat.out.splitlines()] == [row["prompt"] for row in rows]


def test_messages_without_a_template(cli, pad_ends, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": [{"role": "user", "content": "hi"}]}))
    result = cli("generate", pad_ends, "--prompts", tmp_path / "rows.jsonl")
    assert result.code == 2
    assert "rows.jsonl, line 1: this tokenizer has no chat template" in result.err
    assert result.err.count("\n") == 1


def test_a_token_that_the_model_has_no_embedding_for(cli, tmp_path):
    model = make_folder(
        tmp_path / "model", byte_tokenizer(QWEN), QWEN_CONFIG | {"pad_token": None}, vocab=259
    )
    backend = byte_tokenizer([*QWEN, "<new>"])
    backend.save(str(model / "tokenizer.json"))
    result = cli("generate", model, "--prompt", "hi", "a<new>")
    assert result.code == 2
    assert "--prompt, line 2: the model has 259 tokens, its tokenizer gave number 259" in result.err
    assert len(completions(cli("generate", model, "--prompt", "hi", "--json", "--max-new-tokens", "3"))) == 1


def test_weights_that_are_not_numbers(cli, no_pad, tmp_path):
    model = shutil.copytree(no_pad, tmp_path / "model")
    tensors = {name: tensor.copy() for name, tensor in read_tensors(no_pad).items()}
    name = next(name for name in tensors if "down_proj" in name)
    tensors[name][3, 5] = np.nan
    write_tensors(model, {n: Tensor(x.shape, x.dtype, lambda x=x: x) for n, x in tensors.items()})
    result = cli("generate", model, "--prompt", "hi")
    assert (result.code, result.out) == (2, "")
    assert f"the tensor {name} holds nan or an infinity" in result.err
    assert result.err.count("\n") == 1
