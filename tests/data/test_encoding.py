"""What carries loss, what is dropped and why, and what cannot be encoded; equality with TRL is tested beside."""

import pytest

from jaxrl4lm import data
from jaxrl4lm.data.encoding import CUT, NOTHING
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxrl4lm.types import InputError
from tests.model_folders import byte_tokenizer, prefixing_tokenizer

BYTES = data.ByteTokenizer()
USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }};{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


def rows_of(*columns):
    return [data.Row(line, row, "rows.jsonl") for line, row in enumerate(columns, start=1)]


def chat_tokenizer(template):
    return HuggingFaceTokenizer(byte_tokenizer(["</s>"]), 0, 256, eos_ids=(256,), chat_template=template)


def test_what_the_example_shows_is_what_is_learned():
    pairs = rows_of({"prompt": "1+2=", "completion": "3"}, {"prompt": "é", "completion": " 日本"})
    shown = [data.show_example(example, BYTES) for example in data.encode(pairs, BYTES).examples]
    assert shown == ["<bos>1+2=⟦3<eos>⟧", "<bos>é⟦ 日本<eos>⟧"]
    [whole] = data.encode(rows_of({"text": "abc"}), data.CharacterTokenizer("abc")).examples
    assert data.show_example(whole, data.CharacterTokenizer("abc")) == "<bos>⟦abc<eos>⟧"
    pytest.importorskip("jinja2")
    chat = rows_of({"messages": [USER, ANSWER, USER, ANSWER]})
    tokenizer = chat_tokenizer(MARKED)
    encoded = data.encode(chat, tokenizer, assistant_only=True)
    assert data.show_example(encoded.examples[0], tokenizer) == "hi⟦ho;⟧hi⟦ho;⟧"
    assert encoded.warnings[0].startswith("no example teaches an end token (256)")
    ended = chat_tokenizer(MARKED.replace(";", "</s>"))
    encoded = data.encode(chat, ended, assistant_only=True)
    assert data.show_example(encoded.examples[0], ended) == "hi⟦ho</s>⟧hi⟦ho</s>⟧"
    assert not encoded.warnings


def test_spaces_stand_where_they_were_in_what_is_shown():
    tokenizer = HuggingFaceTokenizer(prefixing_tokenizer(), 0, 2, begin_ids=(1,), eos_ids=(2,))
    [example] = data.encode(rows_of({"prompt": "God", "completion": " mor"}), tokenizer).examples
    assert data.show_example(example, tokenizer) == "<s> God⟦ mor</s>⟧"


def test_rows_with_nothing_to_learn_are_dropped_and_counted():
    rows = rows_of(
        {"prompt": "abc", "completion": "d"},
        {"prompt": "abcdefgh", "completion": "i"},
        {"prompt": "ab", "completion": "cdefghij"},
        {"prompt": "abcdefghi", "completion": ""},
    )
    encoded = data.encode(rows, BYTES, max_length=6)
    assert [BYTES.decode(tokens) for tokens, _ in encoded.examples] == ["abcd", "abcde"]
    assert (encoded.dropped, encoded.cut, encoded.warnings) == ({CUT: [2, 4]}, 1, [])
    [warning] = data.encode(rows, BYTES, max_length=5).warnings
    assert warning.startswith("no example teaches an end token (1)")
    masked = rows_of(
        {"input_ids": [1, 2, 3], "labels": [1, -100, -100]}, {"input_ids": [1, 2]}, {"input_ids": []}
    )
    assert data.encode(masked, BYTES).dropped == {NOTHING: [1, 3]}
    for chosen, reason in ((rows, CUT), (masked, NOTHING)):
        with pytest.raises(InputError, match=rf"^rows.jsonl, line [12]: {reason}, with"):
            data.encode(chosen, BYTES, max_length=6, strict=True)


def test_preferences_whose_prompt_is_too_long_are_dropped():
    rows = rows_of(
        {"prompt": "abcd", "chosen": "efg", "rejected": "e"},
        {"prompt": "abcde", "chosen": "f", "rejected": ""},
    )
    pairs = data.encode_pairs(rows, BYTES, max_length=6)
    assert [[BYTES.decode(ids) for ids in pair[:3]] for pair in pairs.examples] == [["abcd", "e", "e"]]
    assert (pairs.dropped, pairs.cut) == ({CUT: [2]}, 1)
    with pytest.raises(InputError, match=r"line 2: .* the prompt has 6 tokens"):
        data.encode_pairs(rows, BYTES, max_length=6, strict=True)
    ids = {"chosen_ids": [1, 2], "rejected_ids": [3]}
    assert data.encode_pairs(rows_of(ids), BYTES).examples == [data.Pair([], [1, 2], [3])]
    for encode in (data.encode_pairs, data.encode_judged):
        with pytest.raises(InputError, match="line 1: this is text"):
            encode(rows_of({"text": "a"}), BYTES)


def test_prompts_that_are_tokenized_otherwise_alone_are_named():
    backend = prefixing_tokenizer()  # "mor" and "ning" are tokens
    tokenizer = HuggingFaceTokenizer(backend, 0, 2, begin_ids=(1,), eos_ids=(2,))
    rows = rows_of({"prompt": "God", "completion": " mor"}, *[{"prompt": "God mo", "completion": "r"}] * 7)
    encoded = data.encode(rows, tokenizer)
    assert len(encoded.examples) == 8
    [warning] = encoded.warnings
    assert warning.startswith("7 prompts have other tokens alone")
    assert "rows.jsonl, line 2 ('mo'), rows.jsonl, line 3 ('mo')" in warning
    assert "line 6 ('mo'), ...." in warning
    tokens, targets = encoded.examples[1]
    assert [backend.id_to_token(i) for i, on in zip(tokens, targets, strict=True) if on] == ["mor", "</s>"]
    judged = [{**row.columns, "label": True} for row in rows]
    assert data.encode_judged(rows_of(*judged), tokenizer).warnings == encoded.warnings


def test_an_end_token_of_the_text_is_the_end():
    tokenizer = HuggingFaceTokenizer(byte_tokenizer(["<a>", "<b>"]), 0, 256, eos_ids=(256, 257))
    for text, end in (("x", 256), ("x<a>", 256), ("x<b>", 257)):
        [(tokens, targets)] = data.encode(rows_of({"text": text}), tokenizer).examples
        assert tokens == [*tokenizer.encode("x"), end]
        assert targets == [False, True]
    # What only begins with an end token (which some models have as begin token too) has not ended.
    tokenizer = HuggingFaceTokenizer(byte_tokenizer(["<a>"], "<a>"), 0, 256, begin_ids=(256,), eos_ids=(256,))
    [(tokens, _)] = data.encode(rows_of({"text": ""}), tokenizer).examples
    assert tokens == [256, 256]


@pytest.mark.parametrize(
    "columns, options, said",
    [
        ({"prompt": "a"}, {}, "rows of format prompt are no documents"),
        (
            {"prompt": "a", "completion": "b", "label": True},
            {},
            "format unpaired_preference are no documents",
        ),
        ({"text": "a"}, {"completion_only": True}, "needs `prompt` and `completion`, this is text"),
        ({"text": "a"}, {"assistant_only": True}, "needs messages, this is text"),
        ({"input_ids": [1, 2]}, {"assistant_only": True}, "needs a column `assistant_masks`"),
        ({"input_ids": [1, 2.5]}, {}, "'input_ids' holds no list of whole numbers"),
        ({"input_ids": [[1], [2, 3]]}, {}, "'input_ids' holds no list of whole numbers"),
        ({"input_ids": [1, -2]}, {}, "'input_ids' has the number -2, less than 0"),
        ({"input_ids": [1, 2], "labels": [2]}, {}, "'labels' has 1 numbers for 2 tokens"),
        ({"input_ids": [1, 2], "labels": [2, -100]}, {}, "label 0 is 2 where the token is 1"),
        ({"text": "a", "tools": "["}, {}, "column 'tools' is no JSON"),
        ({"text": "a"}, {"embeddings": 50}, "the model has 50 tokens, its tokenizer gave number 100"),
        ({"messages": [USER, ANSWER]}, {}, "a new model has no chat template"),
    ],
)
def test_rows_that_cannot_be_encoded(columns, options, said):
    with pytest.raises(InputError) as error:
        data.encode(rows_of(columns), BYTES, **options)
    assert str(error.value).startswith("rows.jsonl, line 1: ")
    assert said in str(error.value)


def test_other_mistakes():
    with pytest.raises(InputError, match="line 2: the character 'x' is not in the vocabulary"):
        data.encode(rows_of({"text": "a"}, {"text": "x"}), data.CharacterTokenizer("abc"))
    with pytest.raises(InputError, match="max_length 1"):
        data.encode(rows_of({"text": "a"}), BYTES, max_length=1)


@pytest.mark.parametrize(
    "template, said",
    [
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}",
            "nothing is marked as the assistant's: leave the row out",
        ),
        (MARKED.replace("assistant", "nobody"), "nothing is marked as the assistant's: leave the row out"),
        (
            "{% set said %}{% generation %} a {% endgeneration %}{% endset %}{{ said | trim | length }}",
            "changes what it marks",
        ),
    ],
)
def test_templates_that_do_not_say_what_the_assistant_says(template, said):
    pytest.importorskip("jinja2")
    with pytest.raises(InputError) as error:
        data.encode(rows_of({"messages": [USER, ANSWER]}), chat_tokenizer(template), assistant_only=True)
    assert str(error.value).startswith("rows.jsonl, line 1: ")
    assert said in str(error.value)
