"""The README.md of a saved model: what it came from, how it was trained, and what it reached."""

import json
import os
import pathlib
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from jaxrl4lm import __version__

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""An organisation's or a person's name, and one of theirs."""
FILES = (".json", ".jsonl", ".csv", ".parquet", ".txt", ".gz", ".zst", ".arrow")
"""Ends of names that are no name of the hub."""
MACHINE_PATH = re.compile(r"[/~\\]|\.\.?[/\\]|[A-Za-z]:[/\\]")
"""How a path begins that says where a file lies on this machine."""
PACKAGES = ("jax", "flax", "optax")


def write_model_card(
    folder: str | os.PathLike,
    *,
    name: str,
    base: str | None,
    data: Sequence[str],
    method: str,
    settings: Mapping[str, Any],
    figures: Mapping[str, float],
) -> None:
    """Writes README.md, whose first lines are what the Hugging Face hub reads.

    Names of the hub (`org/name`) stay whole; of a path only its last part is written, and no card tells of a folder.

    Args:
      folder: of the saved model.
      name: of the model.
      base: the model that it was trained from; None: a new one.
      data: names of what it was trained on.
      method: `sft`, `grpo` ...
      settings: hyper-parameters, plain data; None: not set, and not written.
      figures: what the model reached, by the name of the metric.
    """
    front = _describe_front(base, data, method)
    taught = [f"- {_strip_path(each)}" for each in data] or ["- none named"]
    chosen = {key: value for key, value in settings.items() if value is not None}
    sections = [
        f"# {_strip_path(name)}",
        f"## Base\n\n{'A new model.' if base is None else _strip_path(base)}",
        "## Data\n\n" + "\n".join(taught),
        f"## Method\n\n{method}\n\n{_draw_table(('setting', 'value'), chosen)}",
        f"## Figures\n\n{_draw_table(('metric', 'value'), figures)}" if figures else "",
        f"## Versions\n\n{_draw_table(('package', 'version'), _list_versions())}",
        LOADING,
    ]
    text = "\n".join(front) + "\n\n" + "\n\n".join(filter(None, sections)) + "\n"
    (pathlib.Path(folder) / "README.md").write_text(text, encoding="utf-8")


LOADING = """## Use

`DIR` is this folder.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("DIR"), AutoTokenizer.from_pretrained("DIR")
```

```python
from jaxrl4lm import models

policy, params, tokenizer = models.load("DIR")
```

```
jaxrl4lm generate DIR --prompt "..."
```"""


def _describe_front(base: str | None, data: Sequence[str], method: str) -> list[str]:
    """Lines of YAML between two rules. Words are quoted as JSON, which is YAML."""
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if base is not None and _is_hub_name(base):
        lines.append(f"base_model: {json.dumps(base)}")
    if datasets := [each for each in data if _is_hub_name(each)]:
        lines.append(f"datasets: {json.dumps(datasets)}")
    return [*lines, f"tags: {json.dumps(['jaxrl4lm', method])}", "---"]


def _is_hub_name(text: str) -> bool:
    """Whether it looks like one: `runs/model` does, too, unless there is such a file or folder."""
    path = pathlib.Path(text)
    return bool(HUB_NAME.fullmatch(text)) and path.suffix.lower() not in FILES and not path.exists()


def _strip_path(text: str) -> str:
    """A hub's name as it is; of a path its last part."""
    return text if _is_hub_name(text) else re.split(r"[/\\]", text.rstrip("/\\"))[-1]


def _write_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        return _strip_path(text) if MACHINE_PATH.match(text) else text
    if isinstance(value, list | tuple):
        return ", ".join(map(_write_value, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_write_value(each)}" for key, each in value.items()) or "none"
    return str(value)


def _draw_table(heads: tuple[str, str], rows: Mapping[str, Any]) -> str:
    cells = [heads, ("---", "---"), *((key, _write_value(value)) for key, value in rows.items())]
    return "\n".join(f"| {' | '.join(_escape(each) for each in row)} |" for row in cells)


def _escape(text: str) -> str:
    """In one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def _list_versions() -> dict[str, str]:
    ours = {"python": platform.python_version(), "jaxrl4lm": __version__}
    return ours | {name: version(name) for name in PACKAGES}
