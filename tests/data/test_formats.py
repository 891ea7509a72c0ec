"""Rows are recognized by their columns, and come back in the columns that the library knows."""

import pytest

from jaxrl4lm import data
from jaxrl4lm.types import InputError

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
SHARED = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
TOOLS = [{"type": "function", "function": {"name": "add"}}]

# What is given, its format, and what comes back where that is something else.
KNOWN = [
    ({"text": "a", "source": "x"}, "text", None),
    ({"messages": [USER, ANSWER]}, "messages", None),
    ({"messages": [USER], "prompt": "hi", "text": None}, "messages", {"messages": [USER], "prompt": "hi"}),
    ({"conversations": SHARED}, "messages", {"messages": [USER, ANSWER]}),
    ({"conversations": [USER, ANSWER]}, "messages", {"messages": [USER, ANSWER]}),
    (
        {"conversations": [{"from": x, "value": x} for x in ("system", "bot", "observation", "critic")]},
        "messages",
        {
            "messages": [
                {"role": role, "content": content}
                for role, content in zip(
                    ("system", "assistant", "tool", "critic"),
                    ("system", "bot", "observation", "critic"),
                    strict=True,
                )
            ]
        },
    ),
    ({"prompt": "a", "completion": "b"}, "prompt_completion", None),
    (
        {
            "prompt": SHARED[:1],
            "completion": SHARED[1:],
            "tools": '[{"type": "function", "function": {"name": "add"}}]',
        },
        "prompt_completion",
        {"prompt": [USER], "completion": [ANSWER], "tools": TOOLS},
    ),
    (
        {"text": "a", "chat_template_kwargs": '{"x": 1}'},
        "text",
        {"text": "a", "chat_template_kwargs": {"x": 1}},
    ),
    ({"text": "a", "tools": ""}, "text", {"text": "a"}),
    ({"text": "a", "tools": ['{"name": "add"}']}, "text", {"text": "a", "tools": [{"name": "add"}]}),
    ({"prompt": "a", "completion": "b", "label": "physics"}, "prompt_completion", None),
    (
        {"prompt": "a", "completion": "b", "label": 0},
        "unpaired_preference",
        {"prompt": "a", "completion": "b", "label": False},
    ),
    (
        {"prompt": "a", "completion": "b", "label": "True"},
        "unpaired_preference",
        {"prompt": "a", "completion": "b", "label": True},
    ),
    ({"prompt": "a", "answer": 3}, "prompt", None),
    ({"prompt": [USER]}, "prompt", None),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": 0.5}, "preference", None),
    ({"chosen": "a b", "rejected": "a c"}, "preference", {"prompt": "a", "chosen": " b", "rejected": " c"}),
    ({"chosen": "b", "rejected": "c "}, "preference", {"prompt": "", "chosen": "b", "rejected": "c "}),
    (
        {"prompt": "hi", "chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "no"}]},
        "preference",
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "no"}]},
    ),
    (
        {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]},
        "preference",
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER]},
    ),
    ({"input_ids": [1, 2], "labels": [-100, 2], "text": "ab"}, "tokens", None),
    ({"chosen_ids": [1, 2], "rejected_ids": [1, 3]}, "preference_tokens", None),
]


@pytest.mark.parametrize("columns, kind, canonical", KNOWN)
def test_every_format_is_known_by_its_columns(columns, kind, canonical):
    expected = [data.Row(i, canonical or columns, "f") for i in (1, 2)]
    assert data.recognize([data.Row(i, columns, "f") for i in (1, 2)]) == (kind, expected)
    assert data.recognize(expected) == (kind, expected)


@pytest.mark.parametrize(
    "columns, said",
    [
        ({"question": "a", "answer": "b"}, "its columns are 'question', 'answer', none of a known format"),
        ({"prompt": "a"}, "a row of format prompt (its columns are 'prompt'), where the first is text"),
        ({"text": 3}, "column 'text' holds a int where text is expected"),
        ({"text": "\ud83d"}, "half of a surrogate pair"),
        ({"text": ["a"]}, "column 'text' holds a list where text"),
    ],
)
def test_rows_unlike_the_first(columns, said):
    with pytest.raises(InputError) as error:
        data.recognize([data.Row(1, {"text": "a"}, "one.jsonl"), data.Row(7, columns, "two.jsonl")])
    assert str(error.value).startswith("two.jsonl, line 7: ")
    assert said in str(error.value)


@pytest.mark.parametrize(
    "columns, said",
    [
        ({"messages": "hi"}, "column 'messages' holds text: call it `text`"),
        ({"messages": []}, "column 'messages' holds no text and no messages"),
        ({"messages": [{"content": "a"}]}, "column 'messages': message 1 is not of the form"),
        ({"conversations": [{"from": ["human"], "value": "a"}]}, "message 1 is not of the form"),
        ({"prompt": [USER], "completion": "ho"}, "'completion' holds text and column 'prompt' messages"),
        ({"prompt": [USER, ANSWER]}, "column 'prompt' ends with the assistant's own message"),
        ({"prompt": 3, "completion": "b"}, "column 'prompt' holds a int"),
        ({"chosen": "a", "rejected": [USER]}, "of 'chosen' and 'rejected' one is text"),
        ({"chosen": 1, "rejected": 2}, "column 'chosen' holds a int"),
        ({"chosen": [ANSWER], "rejected": [USER]}, "begin with no message in common"),
        ({"text": "a", "tools": "["}, "column 'tools' is no JSON"),
        ({"text": "a", "tools": "3"}, "column 'tools' is 3: write a list of schemas"),
        ({"text": "a", "chat_template_kwargs": ["x"]}, "is ['x']: write names with their values"),
    ],
)
def test_values_that_a_format_does_not_have(columns, said):
    with pytest.raises(InputError) as error:
        data.recognize([data.Row(3, columns)])
    assert str(error.value).startswith("the data, line 3: ")
    assert said in str(error.value)


def test_no_rows():
    with pytest.raises(InputError, match="no rows"):
        data.recognize([])
