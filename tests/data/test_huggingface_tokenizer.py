"""Hugging Face tokenizers against transformers, and our own tokenizers in their form."""

import json

import pytest

from jaxrl4lm.data import ByteTokenizer, CharacterTokenizer
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}\n"
    "<{{ m['role'] }}>{{ m['content'] | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize(
    "tokenizer, text",
    [
        (CharacterTokenizer("abc +=\n12"), "ab c+1=2\n c"),
        (ByteTokenizer(), "Ünïcode, 漢字 and\ttabs\n  spaces 🎉"),
    ],
)
def test_our_tokenizers_keep_their_ids_and_open_in_transformers(tokenizer, text, tmp_path):
    HuggingFaceTokenizer.of(tokenizer).save(tmp_path)
    loaded = HuggingFaceTokenizer.load(tmp_path)
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.decode([2, *loaded.encode(text), 1, 0]) == text
    for name in ("pad_id", "eos_id", "begin_ids", "vocab_size"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode(text) == [2, *tokenizer.encode(text)]
    assert theirs.decode(tokenizer.encode(text)) == text


def test_chat_template_is_rendered_as_transformers_does(tmp_path):
    pytest.importorskip("jinja2")
    transformers = pytest.importorskip("transformers")
    HuggingFaceTokenizer.of(CharacterTokenizer("abc")).save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    loaded = HuggingFaceTokenizer.load(tmp_path)
    messages = [{"role": "user", "content": " ab "}, {"role": "assistant", "content": "c"}]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for prompt in (True, False):
        expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        assert loaded.chat(messages, add_generation_prompt=prompt) == expected
    loaded.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"] == TEMPLATE
    # What an older model left there is read by nobody.
    (tmp_path / "chat_template.jinja").write_text("another")
    loaded.save(tmp_path)
    assert HuggingFaceTokenizer.load(tmp_path).chat_template == TEMPLATE


@pytest.mark.parametrize("in_files", [False, True])
def test_templates_with_a_name_are_kept(tmp_path, in_files):
    transformers = pytest.importorskip("transformers")
    named = {"default": "é{{ messages }}", "tool_use": "{{ tools }}"}
    HuggingFaceTokenizer.of(CharacterTokenizer("abc")).save(tmp_path)
    if in_files:
        (tmp_path / "chat_template.jinja").write_text(named["default"], encoding="utf-8")
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text(named["tool_use"])
    else:
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        records = [{"name": name, "template": text} for name, text in named.items()]
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": records}))
    loaded = HuggingFaceTokenizer.load(tmp_path)
    assert loaded.chat_template == named["default"]
    (tmp_path / "back" / "additional_chat_templates").mkdir(parents=True)
    (tmp_path / "back" / "additional_chat_templates" / "old.jinja").write_text("of another model")
    loaded.save(tmp_path / "back")
    for folder in (tmp_path, tmp_path / "back"):
        assert transformers.AutoTokenizer.from_pretrained(folder).chat_template == named


def write(folder, config, generation):
    HuggingFaceTokenizer.of(CharacterTokenizer("abc")).save(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(generation))


def test_several_end_tokens_and_a_pad_token_that_is_one_of_them(tmp_path):
    write(tmp_path, {"eos_token": {"content": "<eos>"}, "pad_token": "<eos>"}, {"eos_token_id": [4, 1]})
    loaded = HuggingFaceTokenizer.load(tmp_path)
    assert loaded.eos_ids == (1, 4)
    assert loaded.eos_id == 1
    assert loaded.pad_id not in loaded.eos_ids
    assert loaded.begin_ids == (2,)  # as the post-processor says, whatever the configuration names


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    write(tmp_path, {}, {})
    with pytest.raises(ValueError, match="no end token"):
        HuggingFaceTokenizer.load(tmp_path)
    with pytest.raises(ValueError, match="no chat template"):
        HuggingFaceTokenizer.of(CharacterTokenizer("abc")).chat([])
    with pytest.raises(ValueError, match="cannot write a str"):
        HuggingFaceTokenizer.of("abc")  # pyright: ignore
