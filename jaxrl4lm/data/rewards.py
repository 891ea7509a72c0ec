"""Rewards as Python functions with the signature `reward(prompts, completions, **columns) -> list[float]`."""

import copy
import importlib.util
import inspect
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxrl4lm.data.files import Message, find_last_text
from jaxrl4lm.types import InputError

Reward = Callable[..., Any]
"""Returns a list of floats, or whatever a user returns: `call` checks it."""

LARGEST = 3.4e38
"""Scores become float32."""
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def exact_match(prompts, completions, answer, **columns) -> list[float]:
    """1 where the completion is the column `answer`, white space around it aside."""
    texts = [find_last_text(c).strip() for c in completions]
    return [float(text == str(a).strip()) for text, a in zip(texts, answer, strict=True)]


def numeric_answer(prompts, completions, answer, **columns) -> list[float]:
    """1 where the last number in the completion equals the last number in the column `answer`."""

    def last(text: str) -> float | None:
        found = NUMBER.findall(str(text))
        return float(found[-1].replace(",", "")) if found else None

    said = [last(find_last_text(c)) for c in completions]
    return [float(number is not None and number == last(a)) for number, a in zip(said, answer, strict=True)]


def length(target: int) -> Reward:
    """1 at `target` characters, falling linearly to 0 at none and at twice as many."""

    def reward(prompts, completions, **columns) -> list[float]:
        return [max(0.0, 1 - abs(len(find_last_text(c)) - target) / target) for c in completions]

    return reward


def regex(pattern: str) -> Reward:
    """1 where the pattern is found in the completion."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"--reward regex:{pattern}: not a regular expression ({error})") from None

    def reward(prompts, completions, **columns) -> list[float]:
        return [float(compiled.search(find_last_text(c)) is not None) for c in completions]

    return reward


def parse(text: str) -> Reward:
    """The reward that an option names: `exact_match`, `numeric_answer`, `length:N`, `regex:PATTERN` or `FILE.py:function`.

    Raises:
      InputError: if there is no such reward.
    """
    name, _, argument = text.partition(":")
    if name in ("exact_match", "numeric_answer") and not argument:
        return {"exact_match": exact_match, "numeric_answer": numeric_answer}[name]
    if name == "length":
        if not argument.isdecimal() or int(argument) == 0:
            raise InputError(f"--reward {text}: say how many characters, as in length:20")
        return length(int(argument))
    if name == "regex":
        return regex(argument)
    path, _, function = text.rpartition(":")
    if not path.endswith(".py"):
        raise InputError(
            f"--reward {text}: not a reward; use exact_match, numeric_answer, length:N, regex:PATTERN or FILE.py:function"
        )
    return _load(pathlib.Path(path), function)


def _load(path: pathlib.Path, function: str) -> Reward:
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise InputError(f"--reward: {path} {what}: check the path")
    spec = importlib.util.spec_from_file_location(f"_reward_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up by its name; files beside this one may be imported by it.
    sys.modules[spec.name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    # Leave no __pycache__ beside the user's file.
    keep, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file does wrong
        raise InputError(f"--reward: importing {path} raised {_describe(error)}: mend the file") from error
    finally:
        sys.dont_write_bytecode = keep
    reward = getattr(module, function, None)
    if not callable(reward):
        raise InputError(f"--reward: {path} has no function {function!r}: name one that it defines")
    return reward


def check_columns(reward: Reward, name: str, columns: Sequence[str]) -> None:
    """Refuses a reward that cannot be called with these columns.

    Raises:
      InputError: naming the parameter.
    """
    try:
        signature = inspect.signature(reward)
    except (TypeError, ValueError):  # not every callable tells
        return
    others = {c: [] for c in columns if c not in ("prompts", "completions")}
    try:
        signature.bind(prompts=[], completions=[], **others)
    except TypeError as error:
        raise InputError(
            f"the reward {name} cannot be called with {', '.join(map(repr, others)) or 'no columns'} ({error}): "
            "its signature must be reward(prompts, completions, **columns)"
        ) from None


def call(
    reward: Reward,
    name: str,
    prompts: Sequence[str | list[Message]],
    completions: Sequence[str],
    columns: dict[str, list],
) -> list[float]:
    """Scores of the completions, checked.

    Args:
      reward: is given the completion of a text as text, and that of messages as a list of one message of the assistant.
      prompts: as the file has them (`PromptSet.given`), one for each completion.
    Raises:
      InputError: naming the reward and the prompt, if it raises, returns the wrong number of scores, or one that is not a
        finite number.
    """
    said = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, completions, strict=True)
    ]
    columns = {k: v for k, v in columns.items() if k not in ("prompts", "completions")}
    first = f"first prompt of the batch: {_shorten(prompts[0])}"
    try:
        scores = reward(prompts=copy.deepcopy(list(prompts)), completions=said, **columns)
        if isinstance(scores, Iterator):  # it runs the user's code only now
            scores = list(scores)
    except (Exception, SystemExit) as error:  # whatever the user's function does wrong
        raise InputError(
            f"the reward {name} raised {_describe(error)} ({first}): mend the function"
        ) from error
    try:
        if isinstance(scores, str | bytes | dict):
            raise TypeError
        scores = list(scores)
    except TypeError:
        raise InputError(
            f"the reward {name} returned a {type(scores).__name__} ({first}): return a list of floats"
        ) from None
    if len(scores) != len(completions):
        raise InputError(
            f"the reward {name} returned {len(scores)} scores for {len(completions)} completions "
            f"({first}): return one for each"
        )
    for score, prompt in zip(scores, prompts, strict=True):
        try:
            finite = not isinstance(score, str) and abs(float(score)) <= LARGEST
        except Exception:  # whatever the conversion of a user's object does wrong
            finite = False
        if not finite:
            raise InputError(
                f"the reward {name} returned {score!r} for the prompt {_shorten(prompt)}: return a finite number"
            )
    return [float(score) for score in scores]


_MACHINERY = (__file__, "<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")


def _describe(error: BaseException) -> str:
    """An exception on one line, with the line of code that raised it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename not in _MACHINERY]
    where = f" at {pathlib.Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}: {' '.join(str(error).split()) or 'no message'}"


def _shorten(prompt: str | Sequence[Message]) -> str:
    text = find_last_text(prompt)
    return repr(text if len(text) <= 60 else text[:57] + "...")
