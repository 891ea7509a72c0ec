"""Options of TRL (and of Transformers' `TrainingArguments`) in a configuration file, and ours that mean the same.

`NAMES` and `REFUSED` are the whole of it: the page docs/trl-names.md is checked against them.
"""

from collections.abc import Mapping
from typing import Any

NAMES: Mapping[str, Mapping[str, Any]] = {}


def translate(command: str, entries: Mapping[str, Any], options: set[str]) -> Mapping[str, Any]:
    return entries
