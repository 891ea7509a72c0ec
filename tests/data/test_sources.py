"""Every form of file gives the same rows; what cannot be read is one sentence with the fix."""

import gzip
import importlib
import json
import sys

import numpy as np
import pytest

from jaxrl4lm import data
from jaxrl4lm.types import InputError

RECORDS = [
    {"prompt": 'é, "1"', "answer": "a\nb"},
    {"prompt": "", "answer": "日本"},
    {"prompt": "x", "answer": "y"},
]


def write_csv(delimiter):
    lines = [["prompt", "answer"], *([record["prompt"], record["answer"]] for record in RECORDS)]
    quoted = [delimiter.join('"' + cell.replace('"', '""') + '"' for cell in line) for line in lines]
    return "\r\n".join(quoted).encode("utf-8-sig")


def write_parquet(records=RECORDS):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(records), sink)
    return sink.getvalue().to_pybytes()


def pack_zst(raw):
    return pytest.importorskip("zstandard").ZstdCompressor().compress(raw)


JSONL = "\r\n".join(map(json.dumps, RECORDS)).encode("utf-8-sig")
FILES = {
    "rows.jsonl": lambda: JSONL,
    "rows.ndjson": lambda: JSONL,
    "rows.json": lambda: json.dumps(RECORDS, indent=1).encode(),
    "data.json": lambda: json.dumps({"version": 1, "data": RECORDS}).encode(),
    "really_lines.json": lambda: JSONL,
    "rows.csv": lambda: write_csv(","),
    "ROWS.JSONL.GZ": lambda: gzip.compress(JSONL),
    "rows.tsv": lambda: write_csv("\t"),
    "rows.parquet": write_parquet,
    "rows.jsonl.gz": lambda: gzip.compress(JSONL),
    "rows.jsonl.zst": lambda: pack_zst(JSONL[:50]) + pack_zst(JSONL[50:]),
    "rows.parquet.gz": lambda: gzip.compress(write_parquet()),
}


@pytest.mark.parametrize("name", FILES)
def test_every_form_gives_the_same_rows(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(FILES[name]())
    rows = data.load(path)
    assert [row.columns for row in rows] == RECORDS
    assert {row.source for row in rows} == {str(path)}
    expected = [2, 4, 5] if path.suffix in (".csv", ".tsv") else [1, 2, 3]  # a value has a line feed
    assert [row.line for row in rows] == expected
    renamed = data.load(path, columns={"prompt": "answer", "question": "prompt"})
    assert [row.columns for row in renamed] == [
        {"prompt": r["answer"], "question": r["prompt"]} for r in RECORDS
    ]


def test_parquet_adds_no_fields_to_nested_records(tmp_path):
    """A call's arguments are not taught with those of the calls of other rows, each null."""
    calls = [[{"arguments": {"a": 1}}], [{"arguments": {"b": 2}}]]
    path = tmp_path / "calls.parquet"
    path.write_bytes(write_parquet([{"calls": call, "tools": None} for call in calls]))
    assert [row.columns for row in data.load(path)] == [{"calls": call, "tools": None} for call in calls]


def test_text_by_lines_or_whole(tmp_path):
    path = tmp_path / "story.md"
    path.write_bytes("\ufeffone\r\n\r\n two\r\n".encode())
    assert data.load(path) == [
        data.Row(1, {"text": "one"}, str(path)),
        data.Row(3, {"text": " two"}, str(path)),
    ]
    assert data.load(str(path), unit="file") == [data.Row(1, {"text": "one\n\n two\n"}, str(path))]


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.jsonl", b'{"a": 1}\n[2]', "line 2: a list where an object is expected"),
        ("a.json", b'[{"a": 1}, 2]', "line 2: a int where an object"),
        ("a.json", b'[\n{"a": 1},\n{"a" 2}]', "line 3: not JSON"),
        ("a.json", b'"text"', "holds a str where a list of objects"),
        ("a.json", b'{"a": 1}\n{"a": }', "line 2: not JSON"),
        ("a.json", b"[" * 100000, "unreadable JSON"),
        ("a.json", b"[]", "is empty"),
        ("a.csv", b"a,b\n1,2\n3", "line 3: 1 values for 2 columns (a, b)"),
        ("a.csv", b'a,b\n1,"2', "line 2: no table"),
        ("a.csv", b"a,b\n", "is empty"),
        ("a.parquet", b"PAR1", "is no Parquet file"),
        ("a.jsonl.gz", b"{}", "cannot be unpacked"),
        ("a.jsonl.zst", b"{}", "cannot be unpacked"),
        ("a.jsonl.zst", b"(\xb5/\xfd\x04Xp\0\0", "cannot be unpacked (it breaks off)"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("a.txt", b"\xff", "not UTF-8"),
        ("a.jsonl", b'{"a": 1}\n{"b": 1}', "line 2: no column 'a'; its columns are 'b'"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, name, content, said):
    for package in ("zstandard", "pyarrow"):
        pytest.importorskip(package)
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        data.load(path, columns={"prompt": "a"})
    assert str(error.value).startswith(str(path))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, said",
    [
        ("missing.jsonl", "missing.jsonl does not exist: check the path"),
        ("./missing", "missing does not exist: check the path"),
        ("a/b/c", "a/b/c does not exist: check the path"),
        ("org/missing:x:y", "org/missing does not exist: check the path; or, if it names a data set"),
        (".", ". is a folder, and not one that"),
    ],
)
def test_what_is_not_there(tmp_path, monkeypatch, name, said):
    """The hub is asked for no file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError) as error:
        data.load(name)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "package, name, fix",
    [("pyarrow.parquet", "a.parquet", "jaxrl4lm[parquet]"), ("zstandard", "a.jsonl.zst", "zstandard")],
)
def test_packages_that_are_missing(tmp_path, monkeypatch, package, name, fix):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError) as error:
        data.load(tmp_path / name)
    assert f"pip install '{fix}'" in str(error.value)


def test_folders_that_datasets_saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    one, several = str(tmp_path / "one"), str(tmp_path / "several")
    whole = datasets.Dataset.from_list(RECORDS)
    whole.save_to_disk(one)
    datasets.DatasetDict({"test": whole.select([2]), "train": whole}).save_to_disk(several)
    assert [row.columns for row in data.load(one)] == RECORDS
    assert data.load(several, columns={"prompt": "answer"})[0].columns == {"prompt": "a\nb"}
    assert [row.columns for row in data.load(f"{several}::test")] == RECORDS[2:]
    with pytest.raises(InputError, match="no split 'valid': name one of test, train"):
        data.load(f"{several}::valid")


def test_data_sets_of_the_hub(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def answer(name, configuration, split):
        asked.append((name, configuration, split))
        if split == "dev":
            raise ValueError("no such\nsplit")
        return datasets.Dataset.from_list(RECORDS)

    monkeypatch.setattr(datasets, "load_dataset", answer)
    assert [row.columns for row in data.load("openai/gsm8k:main:test")] == RECORDS
    assert data.load("org/name")[2] == data.Row(3, RECORDS[2], "org/name")
    with pytest.raises(InputError, match=r"org/name is no file, nor .* \(no such split\)"):
        data.load("org/name::dev")
    assert asked == [("openai/gsm8k", "main", "test"), ("org/name", None, "train"), ("org/name", None, "dev")]


@pytest.mark.parametrize("fractions", [(1, 1, 1), (0.7, 0.2, 0.1), (2, 5, 1)])
def test_a_mixture_has_its_shares_and_no_row_twice(fractions):
    parts = [
        [data.Row(i, {}, name) for i in range(size)] for name, size in (("a", 100), ("b", 40), ("c", 70))
    ]
    mixture = data.mix(parts, fractions, seed=3)
    counts = np.array([sum(row.source == name for row in mixture) for name in "abc"])
    shares = np.array(fractions) / sum(fractions)
    assert len({(row.source, row.line) for row in mixture}) == len(mixture)
    assert abs(counts - shares * counts.sum()).max() <= 1
    assert (counts >= [100, 40, 70]).any()  # some part is used up: it cannot be larger
    assert mixture == data.mix(parts, fractions, seed=3) != data.mix(parts, fractions, seed=4)
    order = [row.source for row in mixture]
    assert order != sorted(order)


@pytest.mark.parametrize(
    "fractions, said", [((1,), "2 sources have 1"), ((1, 0), "above 0"), ((1, float("nan")), "above 0")]
)
def test_mixtures_that_make_no_sense(fractions, said):
    with pytest.raises(InputError, match=said):
        data.mix([[data.Row(1, {})], [data.Row(1, {})]], fractions)
