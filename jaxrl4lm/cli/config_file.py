"""Options from a YAML file: they stand in place of the defaults, and words on the command line override them.

A key is the name of an option, with - or _. Dotted options (`pretrain.steps`) may be groups: `pretrain: {steps: 10}`.
Repeated values are lists, flags are true or false. JSON is YAML. Names of TRL's options are read by `trl_names`.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import tyro
import yaml

from jaxrl4lm.cli.trl_names import JOINED, NAMES, Entry, translate
from jaxrl4lm.decoding import Sampling
from jaxrl4lm.types import InputError, ScalarLike

WORD = "--config"


class Loader(yaml.SafeLoader):
    """YAML 1.1, but 1e-6 is a number, and dates are text."""

    yaml_implicit_resolvers: typing.ClassVar = {
        first: [(tag, form) for tag, form in rules if not tag.endswith("timestamp")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def take_files(words: list[str]) -> tuple[list[Path], list[str]]:
    """The files that --config names, and the other words.

    Raises:
      InputError: if it names none.
    """
    files, others, left = [], [], iter(words)
    for word in left:
        name, equals, value = word.partition("=")
        if name != WORD:
            others.append(word)
            continue
        value = value if equals else next(left, "")
        if not value or value.startswith("--"):
            raise InputError(f"{WORD} names no file: write {WORD} FILE.yaml")
        files.append(Path(value))
    return files, others


def fill(kind: type, default: Any, file: Path, command: str) -> Any:
    """The options `default` (None: those of the kind) with the file's values in their place.

    Raises:
      InputError: naming file, line and key, if the file cannot be read, a key is no option, or a value does not fit it.
    """
    if default is None:
        required = [f.name for f in dataclasses.fields(kind) if _has_no_default(f)]
        default = kind(**dict.fromkeys(required, tyro.MISSING))
    options = dict(list_options(kind))
    changes: dict[tuple[str, ...], Any] = {}
    for name, entry in translate(command, _read(file), options).items():
        if name not in options:
            raise InputError(
                f"{entry.where} is no option of jaxrl4lm {command}: {_suggest(name, command, options)}"
            )
        path, hint = options[name]
        changes[path] = _take(entry, hint)
    return _replace(default, changes)


def _suggest(name: str, command: str, options: Mapping[str, Any]) -> str:
    known = {*options, *NAMES.get(command, ()), *JOINED.get(command, ())}
    near = difflib.get_close_matches(name, known) or difflib.get_close_matches(name.rsplit(".", 1)[-1], known)
    return f"did you mean {', '.join(near)}?" if near else f"jaxrl4lm {command} --help lists them"


def list_options(kind: type) -> Iterator[tuple[str, tuple[tuple[str, ...], Any]]]:
    """Name (`pretrain.steps`, with _), path of fields and annotation of every option of a command."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint, *marks = _split_annotation(hints[field.name])
        if hint is Sampling:  # `SamplingOptions` makes it
            continue
        if not dataclasses.is_dataclass(hint):
            yield field.name, ((field.name,), hint)
            continue
        prefix = "" if tyro.conf.OmitArgPrefixes in marks else f"{field.name}."
        for name, (path, inner) in list_options(typing.cast(type, hint)):
            yield prefix + name, ((field.name, *path), inner)


def revive(name: str, value: Any, hint: Any) -> Any:
    """The value of a field with that annotation, from plain data; raises TypeError if it is of another type."""
    options: tuple[Any, ...] = typing.get_args(hint)
    if hint == ScalarLike:
        return revive(name, value, float)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:  # X | None
        return None if value is None else revive(name, value, options[0])
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise TypeError(f"{name} is {value!r}")
        kinds = options if Ellipsis not in options else [options[0]] * len(value)
        return tuple(revive(name, v, each) for v, each in zip(value, kinds, strict=True))
    if typing.get_origin(hint) is Literal:
        fits = value in options
    elif hint is Path:
        return Path(value)
    else:
        fits = isinstance(value, int | float if hint is float else hint)
        fits = fits and isinstance(value, bool) == (hint is bool)
    if not fits:
        raise TypeError(f"{name} is {value!r}")
    return float(value) if hint is float else value


def _split_annotation(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)


def _has_no_default(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _take(entry: Entry, hint: Any) -> Any:
    """The value of an entry, as the option with that annotation takes it."""
    value = entry.value
    if _is_repeated(hint) and not isinstance(value, list) and value is not None:
        value = [value]
    try:
        return revive("", value, hint)
    except (TypeError, ValueError):
        quote = ", in quotes" if "text" in _describe(hint) and not isinstance(value, str) else ""
        raise InputError(f"{entry.where} must be {_describe(hint)}{quote}, not {entry.value!r}") from None


def _is_repeated(hint: Any) -> bool:
    return typing.get_origin(hint) is tuple and typing.get_args(hint)[-1] is Ellipsis


def _describe(hint: Any) -> str:
    """What a value of that annotation is called."""
    options = typing.get_args(hint)
    if hint == ScalarLike:
        return "a number"
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return f"{_describe(options[0])} or null"
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, options))}"
    if typing.get_origin(hint) is tuple:
        many = "" if Ellipsis in options else f" {len(options)}"
        return f"a list of{many} values, each {_describe(options[0])}"
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(hint, "text")


def _replace(record: Any, changes: Mapping[tuple[str, ...], Any]) -> Any:
    """The record with the values at these paths changed."""
    deeper: dict[str, dict[tuple[str, ...], Any]] = {}
    for (first, *rest), value in changes.items():
        deeper.setdefault(first, {})[tuple(rest)] = value
    return dataclasses.replace(
        record,
        **{
            name: inner[()] if () in inner else _replace(getattr(record, name), inner)
            for name, inner in deeper.items()
        },
    )


def _read(file: Path) -> dict[str, Entry]:
    """The file's values by their keys, dotted, with _ for -."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        # YAML indents by no tabs; JSON may, and has none inside of its strings.
        loader = Loader(text.replace("\t", " ") if file.suffix == ".json" else text)
        root = loader.get_single_node()
    except OSError as error:
        raise InputError(f"{WORD} {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{WORD} {file} is not UTF-8 text: name a YAML file") from None
    except yaml.YAMLError as error:
        raise InputError(f"{_explain(file, error)}: mend it, or name another file") from None
    if root is None:
        return {}
    entries: dict[str, Entry] = {}
    for key, value, line in _walk(file, root):
        where = f"{file}, line {line}: {key}"
        name = key.replace("-", "_")
        if name in entries:
            raise InputError(f"{where} is given twice: drop one of them")
        try:
            entries[name] = Entry(loader.construct_object(value, deep=True), where)
        except yaml.YAMLError as error:
            raise InputError(_explain(file, error)) from None
    return entries


def _walk(file: Path, node: yaml.Node, prefix: str = "") -> Iterator[tuple[str, yaml.Node, int]]:
    """Key, value and line of every leaf."""
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{file} must hold options and their values, as `learning_rate: 1e-4`, one a line")
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _walk(file, value, f"{name}.")
        else:
            yield name, value, key.start_mark.line + 1


def _explain(file: Path, error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    line = f", line {mark.line + 1}" if mark else ""
    return f"{file}{line} is not YAML ({problem or error})"
