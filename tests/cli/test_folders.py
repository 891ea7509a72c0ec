"""`jaxrl4lm generate` on folders whose special tokens are laid out as those of published models."""

import json

import pytest

from tests.model_folders import byte_tokenizer, make_folder

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


@pytest.mark.parametrize("prompt", ["hi", "<bos>hi<eos>"])
def test_a_tokenizer_without_padding(cli, no_pad, prompt):
    options = ["--greedy", "--json", "--max-new-tokens", "6"]
    assert len(completions(cli("generate", no_pad, "--prompt", prompt, "longer than that", *options))) == 2


@pytest.mark.parametrize("prompt", ["a<im_end>b", "<im_start>user\nhi<im_end>", "<eot>"])
def test_padding_among_the_ends(cli, pad_ends, prompt):
    options = ["--greedy", "--json", "--max-new-tokens", "6"]
    assert len(completions(cli("generate", pad_ends, "--prompt", prompt, *options))) == 1


def test_what_a_template_has_begun_is_completed_the_same(cli, no_pad):
    """A prompt that begins with what the tokenizer puts before every text, and one that does not."""
    options = ["--greedy", "--json", "--max-new-tokens", "9"]
    bare, begun = completions(cli("generate", no_pad, "--prompt", "hi", "<bos>hi", *options))
    assert bare == begun
