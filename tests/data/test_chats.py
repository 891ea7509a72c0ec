"""Conversations as prompts: the text and the ids that transformers gives them, and what rewards see of them."""

import json

import pytest

from jaxrl4lm.data import ByteTokenizer, rewards
from jaxrl4lm.data.corpus import encode_prompts
from jaxrl4lm.data.files import Row, read_jsonl
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxrl4lm.types import InputError
from tests.data.judging import call
from tests.model_folders import byte_tokenizer, make_folder

pytest.importorskip("jinja2")
transformers = pytest.importorskip("transformers")

TEMPLATE = (
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ '!' if m.name is defined }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}{{ 'think' if enable_thinking }}"
)
USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "é"}
TOOL = {"type": "function", "function": {"name": "add", "description": "", "parameters": {}}}
ROWS = [
    {"prompt": [USER]},
    {"prompt": [{"role": "system", "content": "<s>"}, USER, ANSWER, USER | {"name": None}]},
    {"prompt": [USER], "tools": [TOOL], "chat_template_kwargs": {"enable_thinking": True}},
    {"prompt": [USER], "tools": json.dumps([TOOL])},
    {"prompt": [USER], "tools": None, "chat_template_kwargs": None},
]
BEGINNING = {"bos_token": "<bos>", "eos_token": "<eos>"}


@pytest.fixture(params=["written", "null", "missing", "older"])
def folder(request, tmp_path):
    """With a begin token that the template writes, or none; and as older folders have their special tokens."""
    begin = {"written": {"bos_token": "<bos>"}, "null": {"bos_token": None}}.get(request.param, {})
    config = begin | {"eos_token": "<eos>", "chat_template": TEMPLATE, "add_bos_token": True}
    if request.param == "older":
        del config["eos_token"]
    backend = byte_tokenizer(["<bos>", "<eos>"], "<bos>" if "bos_token" in config else "")
    folder = make_folder(tmp_path, backend, config)
    if request.param == "older":
        tokens = {"bos_token": "<bos>", "eos_token": {"content": "<eos>", "lstrip": False}}
        (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    return folder


def prompts_of(rows, tokenizer, **options):
    numbered = [Row(i, row) for i, row in enumerate(rows, start=1)]
    return encode_prompts(numbered, "prompt", tokenizer, "file.jsonl", 4, 500, **options)


def test_messages_are_rendered_as_transformers_does(folder):
    ours = HuggingFaceTokenizer.load(folder)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    prompts = prompts_of(ROWS, ours)
    assert prompts.given == [row["prompt"] for row in ROWS]
    for row, text, ids in zip(ROWS, prompts.texts, prompts.ids, strict=True):
        tools = json.loads(row["tools"]) if isinstance(row.get("tools"), str) else row.get("tools")
        options = {"tools": tools, "add_generation_prompt": True, **(row.get("chat_template_kwargs") or {})}
        assert text == theirs.apply_chat_template(row["prompt"], tokenize=False, **options)
        assert ids == theirs.apply_chat_template(row["prompt"], **options)["input_ids"]
    assert prompts.texts[0].count("<bos>") == ("bos_token" in json.dumps(theirs.special_tokens_map))


def test_older_special_tokens_are_kept_when_saved(folder, tmp_path):
    first = HuggingFaceTokenizer.load(folder)
    target = tmp_path / "saved"
    target.mkdir()
    (target / "special_tokens_map.json").write_text('{"eos_token": "a"}')  # of another model
    first.save(target)
    (target / "generation_config.json").write_text(json.dumps(first.describe_generation()))
    again = HuggingFaceTokenizer.load(target)
    assert again.eos_ids == first.eos_ids == (257,)
    assert again.chat([USER]) == first.chat([USER])


def test_texts_and_messages_may_stand_in_one_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [{"prompt": "hi"}, ROWS[0]]))
    tokenizer = HuggingFaceTokenizer.load(
        make_folder(
            tmp_path / "model", byte_tokenizer(["<eos>"]), {"eos_token": "<eos>", "chat_template": "a"}
        )
    )
    prompts = encode_prompts(read_jsonl(path, ["prompt"], chats=True), "prompt", tokenizer, "rows", 4, 500)
    assert prompts.texts == ["hi", "a"]
    assert prompts.select([1]).given == [[USER]]


@pytest.mark.parametrize(
    "prompt, said",
    [
        ([], "column 'prompt' holds no text and no messages"),
        ([USER, "hi"], "column 'prompt': message 2 is not of the form"),
        ([{"content": "hi"}], "column 'prompt': message 1 is not of the form"),
        ([USER, ANSWER], "column 'prompt' ends with the assistant's own message"),
        ({"role": "user"}, "column 'prompt' holds a dict where text is expected"),
    ],
)
def test_conversations_that_cannot_be_answered(tmp_path, prompt, said):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": prompt}))
    with pytest.raises(InputError) as error:
        read_jsonl(path, ["prompt"], chats=True)
    assert str(error.value).startswith(f"{path}, line 1: {said}")


@pytest.mark.parametrize(
    "template, row, said",
    [
        (None, {}, "this tokenizer has no chat template"),
        ("{{ raise_exception('not so') }}", {}, "the chat template refuses the conversation: not so"),
        ("{{ messages[9].role }}", {}, "list object has no element 9"),
        ("a", {"tools": "[{"}, "Expecting property name"),
        ("a", {"chat_template_kwargs": {"messages": []}}, "column 'chat_template_kwargs' sets 'messages'"),
        ("a", {"chat_template_kwargs": 3}, "argument after ** must be a mapping"),
        ("\ud800", {}, "surrogates not allowed"),
    ],
)
def test_templates_that_fail_are_one_sentence(template, row, said):
    tokenizer = HuggingFaceTokenizer(
        byte_tokenizer(["<eos>"]), 0, 256, eos_ids=(256,), chat_template=template
    )
    with pytest.raises(InputError) as error:
        prompts_of([{"prompt": "a"}, {"prompt": [USER], **row}], tokenizer)
    assert str(error.value).startswith("file.jsonl, line 2: ")
    assert said in str(error.value)
    with pytest.raises(InputError, match="line 1: a new model has no chat template"):
        prompts_of([{"prompt": [USER]}], ByteTokenizer())


def test_rewards_are_called_with_messages():
    def spy(prompts, completions, **columns):
        seen.append((prompts, completions))
        for prompt in prompts:  # what is given is the caller's to change
            prompt.clear() if isinstance(prompt, list) else None
        return [1.0] * len(prompts)

    seen = []
    chat = [USER]
    assert call(spy, "spy", [chat, "hi"], ["ab", "c"], {}) == [1.0, 1.0]
    assert seen[0][1] == [[{"role": "assistant", "content": "ab"}], "c"]
    assert chat == [USER]
    for name, expected in {"exact_match": 1, "numeric_answer": 1, "length:4": 0.5, "regex:^42$": 1}.items():
        assert call(rewards.parse(name), name, [chat], ["42"], {"answer": ["42"]}) == [expected]

    def fail(prompts, completions, **columns):
        return [float("nan")]

    with pytest.raises(InputError, match="returned nan for the prompt 'hi'"):
        call(fail, "fail", [chat], ["42"], {})


def test_tokens_that_a_model_has_no_embedding_for():
    tokenizer = HuggingFaceTokenizer(byte_tokenizer(["<eos>", "<new>"]), 0, 256, eos_ids=(256,))
    rows = [{"prompt": "hi"}, {"prompt": "a<new>"}]
    assert prompts_of(rows, tokenizer).ids[1][-1] == 257
    with pytest.raises(InputError, match=r"line 2: the model has 257 tokens, its tokenizer gave number 257"):
        prompts_of(rows, tokenizer, embeddings=257)
