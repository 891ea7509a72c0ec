"""Readers of text and JSONL: what they give, and the one sentence for each thing that can be wrong."""

import json

import pytest

from jaxrl4lm import data
from jaxrl4lm.data.files import read_jsonl, read_text
from jaxrl4lm.types import InputError


def test_text_is_read_whole(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffone\r\ntwo — drei\n".encode())
    assert read_text(path) == "one\ntwo — drei\n"


def test_rows_keep_their_lines_and_columns(tmp_path):
    path = tmp_path / "rows.jsonl"
    first = {"prompt": "a\u2028b\x85c", "n": 3, "nested": {"x": [None]}}
    path.write_text(json.dumps(first, ensure_ascii=False) + "\n\n   \n" + '{"prompt": ""}', encoding="utf-8")
    assert [row[:2] for row in read_jsonl(path, ["prompt"])] == [(1, first), (4, {"prompt": ""})]


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\xff\xfe{}", "not UTF-8 text (byte 0)"),
        (b'{"prompt": "a"}\n{"prompt": "b"', "line 2: not JSON"),
        (b'{"prompt": "a"} {"prompt": "b"}', "line 1: not JSON"),
        (b'\n{"prompt": "a",}', "line 2: not JSON"),
        (b'["a"]', "line 1: a list where an object is expected"),
        (b"null", "line 1: a NoneType"),
        (b'{"text": "a"}', "no column 'prompt'; its columns are 'text'"),
        (b"{}", "no column 'prompt'; its columns are none"),
        (b'{"prompt": 3}', "column 'prompt' holds a int where text is expected"),
        (b'{"prompt": null}', "column 'prompt' holds a NoneType"),
        (b'{"prompt": "\\ud83d"}', "half of a surrogate pair"),
        (b'{"prompt": ' + b"1" * 5000 + b"}", "line 1: unreadable JSON"),
        (b'{"prompt": ' + b"[" * 100000, "line 1: unreadable JSON"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_is_wrong_is_said(tmp_path, content, said):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_jsonl(path, ["prompt"])
    assert str(path) in str(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, said",
    [("missing", "does not exist"), ("", "is a folder"), ("file/below", "cannot be read (Not a dir")],
)
def test_what_cannot_be_opened(tmp_path, name, said):
    (tmp_path / "file").touch()
    with pytest.raises(InputError) as error:
        read_text(tmp_path / name)
    assert said in str(error.value)
    assert str(tmp_path / name) in str(error.value)


def test_rows_of_any_columns_are_loaded(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": 1}\n\n{"prompt": "b"}\n')
    assert data.load(tmp_path / "rows.jsonl") == [
        data.Row(1, {"prompt": "a", "answer": 1}, str(tmp_path / "rows.jsonl")),
        data.Row(3, {"prompt": "b"}, str(tmp_path / "rows.jsonl")),
    ]
