"""Whatever users bring as rows: files of every usual form, data sets of the hub, and mixtures of several."""

import csv
import gzip
import importlib
import io
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, Literal

import numpy as np

from jaxrl4lm.data.files import Row, decode_text, list_columns, make_row, parse_jsonl, read_bytes
from jaxrl4lm.types import InputError

PACKED = (".gz", ".zst")

HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
"""NAME or OWNER/NAME."""


def load(
    source: str | os.PathLike,
    *,
    columns: Mapping[str, str] | None = None,
    unit: Literal["line", "file"] = "line",
) -> list[Row]:
    """The rows of a file or a data set, each with its columns and where it stands.

    The suffix says what a file is: `.jsonl` or `.ndjson`, `.json` (a list of objects, {"data": [...]} or JSONL),
    `.csv` or `.tsv`, `.parquet`; any other file is text. `.gz` or `.zst` after it: it is unpacked.

    Args:
      source: a file; a folder that `datasets` saved; or the name of a data set of the hub, where that package is
        there. Of a folder or a data set with several splits "train" is read: "NAME:CONFIGURATION:SPLIT" names others,
        and either may be empty.
      columns: the names that the library knows, each with what the source calls it: {"prompt": "question"}.
      unit: of text, whether each line that is not blank is a row, or the file as one. Its column is `text`.
    Raises:
      InputError: if the source, or a row of it, cannot be used.
    """
    path, name = pathlib.Path(source), str(source)
    place, _, part = (name, "", "") if path.exists() else name.partition(":")
    if os.path.isdir(place):
        rows = _read_saved(place, part.partition(":")[2])
    elif HUB_NAME.fullmatch(place) and not path.exists() and not path.suffix[1:].isalpha():
        rows = _read_dataset(place, part)
    else:
        rows = _read_file(path, unit)
    if not rows:
        raise InputError(f"{name} is empty: give it at least one row")
    return [_rename(row, columns) for row in rows] if columns else rows


def mix(parts: Sequence[Sequence[Row]], fractions: Sequence[float], *, seed: int = 0) -> list[Row]:
    """A mixture that has these shares of each part, as large as it can be without a row twice, in a shuffled order.

    >>> from jaxrl4lm.data import Row
    >>> a, b = ([Row(i, {}, name) for i in range(size)] for name, size in (("a", 30), ("b", 30)))
    >>> [row.source for row in mix([a, b], [3, 1])].count("b")
    10

    Args:
      parts: the rows of each source.
      fractions: the share of each part, in any unit: [3, 1] is [.75, .25].
      seed: decides which rows, and their order.
    """
    shares = np.asarray(fractions, float)
    if len(parts) != len(shares) or not len(parts):
        raise InputError(f"{len(parts)} sources have {len(shares)} fractions: give one fraction for each")
    if not (np.isfinite(shares) & (shares > 0)).all():
        raise InputError(f"fractions {list(fractions)}: each must be above 0, leave a source out instead")
    shares = shares / shares.sum()
    total = min(len(part) / share for part, share in zip(parts, shares, strict=True))
    generator = np.random.Generator(np.random.Philox(key=seed % 2**64))
    chosen = []
    for part, share in zip(parts, shares, strict=True):
        count = min(round(total * share), len(part))
        chosen += [part[i] for i in generator.permutation(len(part))[:count]]
    return [chosen[i] for i in generator.permutation(len(chosen))]


def _rename(row: Row, columns: Mapping[str, str]) -> Row:
    for theirs in columns.values():
        if theirs not in row.columns:
            raise InputError(f"{row.where}: no column {theirs!r}; {list_columns(row)}")
    renamed = {ours: row.columns[theirs] for ours, theirs in columns.items()}
    taken = {*columns, *columns.values()}
    return row._replace(columns=renamed | {k: v for k, v in row.columns.items() if k not in taken})


def _read_file(path: pathlib.Path, unit: str) -> list[Row]:
    raw, name, kind = read_bytes(path), str(path), path.suffix.lower()
    if kind in PACKED:
        raw, kind = _unpack(raw, kind, name), pathlib.Path(path.stem).suffix.lower()
    if kind == ".parquet":
        return _parse_parquet(raw, name)
    text = decode_text(raw, name)
    if kind in (".jsonl", ".ndjson"):
        return parse_jsonl(text, name)
    if kind == ".json":
        return _parse_json(text, name)
    if kind in (".csv", ".tsv"):
        return _parse_table(text, name, "," if kind == ".csv" else "\t")
    if unit == "file":
        return [Row(1, {"text": text}, name)]
    lines = enumerate(text.split("\n"), start=1)
    return [Row(number, {"text": line}, name) for number, line in lines if line.strip()]


def _unpack(raw: bytes, suffix: str, name: str) -> bytes:
    try:
        if suffix == ".gz":
            return gzip.decompress(raw)
        return _unpack_zst(raw, _need("zstandard", "zstandard", name))
    except InputError:
        raise
    except Exception as error:  # each package has errors of its own
        raise InputError(f"{name} cannot be unpacked ({error}): pack it anew") from None


def _unpack_zst(raw: bytes, zstandard: ModuleType) -> bytes:
    """All frames of a file. The package's own stream takes one that breaks off for the end of the file."""
    parts = []
    while raw:
        frame = zstandard.ZstdDecompressor().decompressobj()
        parts.append(frame.decompress(raw))
        if not frame.eof:
            raise EOFError("it breaks off")
        raw = frame.unused_data
    return b"".join(parts)


def _need(package: str, install: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise InputError(f"{name}: to read it, pip install '{install}'") from None


def _parse_json(text: str, name: str) -> list[Row]:
    """A list of objects, {"data": [...]}, one object, or, under the wrong suffix, JSONL."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # a whole value, then another
            return parse_jsonl(text, name)
        raise InputError(f"{name}, line {error.lineno}: not JSON ({error.msg}), mend the line") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: unreadable JSON ({error}), mend it") from None
    if isinstance(content, dict):
        content = content["data"] if isinstance(content.get("data"), list) else [content]
    if not isinstance(content, list):
        raise InputError(f"{name} holds a {type(content).__name__} where a list of objects is expected")
    return [make_row(number, columns, name) for number, columns in enumerate(content, start=1)]


def _parse_table(text: str, name: str, delimiter: str) -> list[Row]:
    """Rows of a table whose first line names the columns; every value is text."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    rows, names, line = [], None, 1
    try:
        for values in reader:
            first, line = line, reader.line_num + 1
            if not values:
                continue
            if names is None:
                names = values
                continue
            if len(values) != len(names):
                message = f"{len(values)} values for {len(names)} columns ({', '.join(names)})"
                raise InputError(f"{name}, line {first}: {message}: mend the line")
            rows.append(Row(first, dict(zip(names, values, strict=True)), name))
    except csv.Error as error:
        raise InputError(f"{name}, line {reader.line_num}: no table ({error}): mend the line") from None
    return rows


def _parse_parquet(raw: bytes, name: str) -> list[Row]:
    parquet = _need("pyarrow.parquet", "jaxrl4lm[parquet]", name)
    try:
        records = parquet.read_table(io.BytesIO(raw)).to_pylist()
    except Exception as error:  # pyarrow has many
        reason = " ".join(str(error).split())
        raise InputError(f"{name} is no Parquet file ({reason}): replace it") from None
    return _number(records, name)


def _number(records: Iterable[dict[str, Any]], name: str) -> list[Row]:
    """Rows of Arrow's records, in whose nested records no field is absent: what some other row has there is None."""
    return [
        Row(number, {key: _drop_empty(value) for key, value in record.items()}, name)
        for number, record in enumerate(records, start=1)
    ]


def _drop_empty(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _drop_empty(each) for key, each in value.items() if each is not None}
    return [_drop_empty(each) for each in value] if isinstance(value, list) else value


def _read_dataset(name: str, part: str) -> list[Row]:
    """A data set of the hub, of which CONFIGURATION:SPLIT is read."""
    configuration, _, split = part.partition(":")
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        fix = "check the path; or, if it names a data set of the hub, pip install 'jaxrl4lm[datasets]'"
        raise InputError(f"{name} does not exist: {fix}") from None
    try:
        content = datasets.load_dataset(name, configuration or None, split=split or "train")
        return _number(content, name)
    except Exception as error:  # it has many, some of many lines
        reason = " ".join(str(error).split())
        raise InputError(
            f"{name} is no file, nor can it be read from the hub ({reason}): check the name"
        ) from None


def _read_saved(folder: str, split: str) -> list[Row]:
    files = {path.name for path in pathlib.Path(folder).iterdir()}
    if not files & {"state.json", "dataset_dict.json"}:
        raise InputError(f"{folder} is a folder, and not one that `datasets` saved: name a file")
    datasets = _need("datasets", "jaxrl4lm[datasets]", folder)
    content = datasets.load_from_disk(folder)
    if isinstance(content, Mapping):  # splits by name
        wanted = split or ("train" if len(content) > 1 else next(iter(content)))
        if wanted not in content:
            raise InputError(
                f"{folder} has no split {wanted!r}: name one of {', '.join(content)}, as in {folder}::{next(iter(content))}"
            )
        content = content[wanted]
    return _number(content, folder)
