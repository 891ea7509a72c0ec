"""Rewards as Python functions: `reward(prompts, completions, **columns) -> list[float]`, called as TRL calls them.

Beside the columns of the prompts a reward may take `completion_ids`, `trainer_state`, `log_extra` and `log_metric`; it is given
what its signature names, or everything if it has `**`. It may be `async`, and may say None of what it does not apply to.
"""

import asyncio
import copy
import inspect
import math
import pathlib
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.advantages import normalize_then_sum
from jaxrl4lm.data.files import Message, find_last_text
from jaxrl4lm.data.token_reward import TokenReward
from jaxrl4lm.types import InputError
from jaxrl4lm.user_file import describe_error, load_function

Reward = Callable[..., Any]
"""Returns a list of floats, or whatever a user returns: `judge` checks it."""

LARGEST = 3.4e38
"""Scores become float32."""
ARGUMENTS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""What a reward may take beside columns."""
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
    return load_function(pathlib.Path(path), function, "--reward")


def check_columns(reward: Reward, name: str, columns: Sequence[str]) -> None:
    """Refuses a reward that cannot be called with these columns.

    Raises:
      InputError: naming the parameter.
    """
    if isinstance(reward, TokenReward):  # it reads no columns
        return
    others = _drop_reserved(dict.fromkeys(columns))
    try:
        signature = inspect.signature(reward)
    except (TypeError, ValueError):  # not every callable tells
        return
    try:
        signature.bind(**_choose_arguments(reward, dict.fromkeys(ARGUMENTS) | others))
    except TypeError as error:
        named = ", ".join(map(repr, others)) or "no columns"
        raise InputError(
            f"the reward {name} cannot be called with {named} ({error}): its signature must be "
            "reward(prompts, completions, **columns)"
        ) from None


def _drop_reserved(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns whose names mean nothing else."""
    reserved = (*ARGUMENTS, "prompt", "completion")
    return {name: value for name, value in columns.items() if name not in reserved}


def _choose_arguments(reward: Reward, offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the offered that the signature names; all if it has `**`, or does not tell."""
    try:
        parameters = inspect.signature(reward).parameters.values()
    except (TypeError, ValueError):
        return dict(offered)
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return dict(offered)
    return {each.name: offered[each.name] for each in parameters if each.name in offered}


class TrainerState(NamedTuple):
    """What a reward may know of the run, by TRL's names."""

    global_step: int = 0
    """Updates done."""
    max_steps: int = 0
    epoch: float = 0.0
    """Passes over the prompts."""


class Log:
    """What rewards say of a batch beside their scores."""

    def __init__(self):
        self._metrics: dict[str, list[float]] = {}
        self.columns: dict[str, list] = {}
        """A value for each completion, for tables that people read."""

    def log_metric(self, name: str, value: float) -> None:
        """Keeps a number; several of a batch are averaged."""
        self._metrics.setdefault(str(name), []).append(float(value))

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """Keeps a column."""
        self.columns[str(column)] = list(values)

    @property
    def metrics(self) -> dict[str, float]:
        """Means of the numbers."""
        return {name: float(np.mean(values)) for name, values in self._metrics.items()}


class Batch(NamedTuple):
    """Completions, and what came before them."""

    prompts: Sequence[str | list[Message]]
    """As the file has them (`PromptSet.given`), one for each completion."""
    completions: Sequence[str]
    completion_ids: Sequence[list[int]]
    columns: Mapping[str, list]


def judge(
    rewards: Mapping[str, Reward], batch: Batch, state: TrainerState | None = None, log: Log | None = None
) -> np.ndarray:
    """Scores `[rewards, completions]`, checked; nan where a reward said None. Those that are `async` wait together.

    A reward is given the completion of a text as text, and that of messages as a list of one message of the assistant.

    Raises:
      InputError: naming the reward and the prompt, if it raises, returns the wrong number of scores, or one that is not a
        finite number.
    """
    log = log or Log()
    said = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(batch.prompts, batch.completions, strict=True)
    ]
    answers: dict[str, Any] = {}
    for name, reward in rewards.items():
        offered = {
            **_drop_reserved(batch.columns),
            "prompts": copy.deepcopy(list(batch.prompts)),
            "completions": copy.deepcopy(said),
            "completion_ids": [list(ids) for ids in batch.completion_ids],
            "trainer_state": state or TrainerState(),
            "log_extra": log.log_extra,
            "log_metric": log.log_metric,
        }
        try:
            answer = reward(**_choose_arguments(reward, offered))
            answers[name] = list(answer) if isinstance(answer, Iterator) else answer  # it runs only now
        except (Exception, SystemExit) as error:  # whatever the user's function does wrong
            answers[name] = error
    waiting = {name: answer for name, answer in answers.items() if inspect.isawaitable(answer)}
    if waiting:
        answers |= zip(waiting, _wait(waiting.values()), strict=True)
    return np.array([check_scores(answer, name, batch.prompts) for name, answer in answers.items()])


def _wait(awaitables: Iterable[Awaitable]) -> list[Any]:
    """What they give, or raise. In a thread, which has no loop of its own yet, as that of a notebook has."""

    async def gather() -> list[Any]:
        return await asyncio.gather(*awaitables, return_exceptions=True)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, gather()).result()


def check_scores(scores: Any, name: str, prompts: Sequence[str | list[Message]]) -> list[float]:
    """What a reward returned as numbers, nan for None.

    Raises:
      InputError: as of `judge`.
    """
    first = f"first prompt of the batch: {_shorten(prompts[0])}"
    if isinstance(scores, InputError):  # one of ours, which says what to do
        raise scores
    if isinstance(scores, BaseException):
        raise InputError(
            f"the reward {name} raised {describe_error(scores)} ({first}): mend the function"
        ) from scores
    try:
        if isinstance(scores, str | bytes | dict):
            raise TypeError
        scores = list(scores)
    except TypeError:
        raise InputError(
            f"the reward {name} returned a {type(scores).__name__} ({first}): return a list of floats"
        ) from None
    if len(scores) != len(prompts):
        raise InputError(
            f"the reward {name} returned {len(scores)} scores for {len(prompts)} completions "
            f"({first}): return one for each"
        )
    for score, prompt in zip(scores, prompts, strict=True):
        try:
            finite = score is None or (not isinstance(score, str) and abs(float(score)) <= LARGEST)
        except Exception:  # whatever the conversion of a user's object does wrong
            finite = False
        if not finite:
            raise InputError(
                f"the reward {name} returned {score!r} for the prompt {_shorten(prompt)}: return a finite number, or None"
            )
    return [math.nan if score is None else float(score) for score in scores]


_normalize = jax.jit(normalize_then_sum)


class RewardSet(NamedTuple):
    """Several rewards as one."""

    functions: Mapping[str, Reward]
    weights: tuple[float, ...] | None = None
    """One for each; None: all 1."""
    normalized: bool = False
    """Each is normalised in its group before they are added, and their sum over the batch (`advantages.normalize_then_sum`): so
    the one with the largest spread does not drown the others."""

    def add(self, scores: np.ndarray, copies: int = 1) -> np.ndarray:
        """What is learned from: weighted sums `[completions]` of scores `[rewards, completions]` over the rewards that apply; nan
        where none does.

        Args:
          copies: completions of a prompt, which follow each other: the groups.
        """
        weights = np.ones(len(scores)) if self.weights is None else np.asarray(self.weights, float)
        if self.normalized and copies > 1:
            grouped = scores.reshape(len(scores), -1, copies)
            total = np.asarray(_normalize(jnp.asarray(grouped), jnp.asarray(weights))).reshape(-1)
        else:
            total = np.nansum(weights[:, None] * scores, 0)
        return np.where(np.isnan(scores).all(0), math.nan, total)


def gather_rewards(
    rewards: Reward | Sequence[Reward] | Mapping[str, Reward] | RewardSet,
    weights: Sequence[float] | None = None,
    *,
    normalized: bool = False,
) -> RewardSet:
    """One or several rewards, named for messages and metrics.

    Args:
      weights: one for each reward; all 1 if None.
      normalized: as of `RewardSet`.
    Raises:
      InputError: if there is none, one is no function, or the weights are not theirs.
    """
    if isinstance(rewards, RewardSet):
        return rewards
    named: dict[str, Reward] = {}
    if isinstance(rewards, Mapping):
        named.update(rewards)
    else:
        several: list[Any] = [rewards] if callable(rewards) or isinstance(rewards, str) else list(rewards)
        for reward in several:
            name = getattr(reward, "__name__", type(reward).__name__)
            named[name if name not in named else f"{name} ({len(named) + 1})"] = reward
    if not named:
        raise InputError(
            "there is no reward: give at least one function reward(prompts, completions, **columns)"
        )
    if wrong := [reward for reward in named.values() if not callable(reward)]:
        raise InputError(
            f"the reward {wrong[0]!r} is no function: give one, reward(prompts, completions, **columns)"
        )
    if weights is not None and len(weights) != len(named):
        raise InputError(
            f"reward_weights has {len(weights)} numbers for {len(named)} rewards: give one for each"
        )
    return RewardSet(named, None if weights is None else tuple(weights), normalized)


def _shorten(prompt: str | Sequence[Message]) -> str:
    text = find_last_text(prompt)
    return repr(text if len(text) <= 60 else text[:57] + "...")
