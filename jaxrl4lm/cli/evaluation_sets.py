"""Further sets of prompts that `train` evaluates on, each by its name."""

import re
from collections.abc import Sequence
from pathlib import Path

from jaxrl4lm.data import load, rewards
from jaxrl4lm.data.files import Row, require_texts
from jaxrl4lm.training.hosted_updates import fill_columns
from jaxrl4lm.types import InputError

TAKEN = ("completion", "group", "held_out", "kl", "policy", "reward", "step", "value")
"""What other metrics of a record begin with."""


def name_files(words: Sequence[str]) -> dict[str, Path]:
    """The files by their names, of words NAME=FILE.

    Raises:
      InputError: if a word is none, or a name does not fit.
    """
    named: dict[str, Path] = {}
    for word in words:
        name, separator, file = word.partition("=")
        if not (separator and file and re.fullmatch(r"[\w.-]+", name)):
            raise InputError(
                f"--eval-dataset {word}: write it as NAME=FILE, the name of letters, digits and - . _"
            )
        if name in TAKEN or name in named:
            why = "other metrics have that name" if name in TAKEN else "another set has that name"
            raise InputError(f"--eval-dataset {word}: {why}, choose another")
        named[name] = Path(file)
    return named


def check_sets(words: Sequence[str], best_by: str | None) -> None:
    """Raises InputError where the names do not fit together."""
    names = name_files(words)
    if best_by is not None and best_by not in names:
        known = ", ".join(names) or "none, give --eval-dataset NAME=FILE"
        raise InputError(f"--best-by {best_by} names no evaluation set: there is {known}")


def load_sets(words: Sequence[str], column: str, judges: rewards.RewardSet) -> dict[str, list[Row]]:
    """The rows of sets by their names, of words NAME=FILE; prompts are in the column `prompt` then.

    Args:
      column: where the files have them.

    Raises:
      InputError: if the file cannot be used, or a reward cannot be called with its columns.
    """
    return {name: _load_set(path, column, judges) for name, path in name_files(words).items()}


def _load_set(path: Path, column: str, judges: rewards.RewardSet) -> list[Row]:
    rows = load(path)
    require_texts(rows, [column], chats=True)
    rows = fill_columns([rename_prompt(row, column) for row in rows])
    columns = [name for name in rows[0].columns if name != "prompt"]
    for name, reward in judges.functions.items():
        try:
            rewards.check_columns(reward, name, columns)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    return rows


def rename_prompt(row: Row, column: str) -> Row:
    """The row with its prompt in the column `prompt`."""
    columns = dict(row.columns)
    return row._replace(columns={"prompt": columns.pop(column), **columns})


def make_absolute(words: Sequence[str]) -> tuple[str, ...]:
    """The same files, named so that a run can go on from another folder."""
    return tuple(f"{name}={path.absolute()}" for name, path in name_files(words).items())
