"""The options of `jaxrl4lm train`: these records are the parser, the help and the run's `config.json`."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from jaxrl4lm.cli.options import (
    AdaptationOptions,
    Group,
    ModelOptions,
    RunOptions,
    SamplingOptions,
    check_numbers,
    check_seeds,
    name_option,
    parse,
)
from jaxrl4lm.lm import ReinforcementConfig, SupervisedConfig
from jaxrl4lm.lm.algorithms import ALGORITHMS, KL_PLACEMENTS, Algorithm, adapt_price
from jaxrl4lm.lm.config import number, size
from jaxrl4lm.types import InputError


@dataclass(frozen=True)
class WorldOptions:
    """What the model is to learn: a built-in task, or your prompts and your reward."""

    task: Literal["addition", "sort", "reverse", "copy"] = "addition"
    """Built-in task with a verifiable reward, used where no --reward is given."""
    digits: int | None = size(None)
    """Digits of each number (addition; 2 if not given) or of the string (other tasks; 5 if not given)."""
    prompts: Path | None = None
    """JSONL with a column `prompt`, text or messages; other columns go to the reward. Left out: every prompt is empty."""
    reward: str | None = None
    """exact_match, numeric_answer (both read the column `answer`), length:N, regex:PATTERN, or FILE.py:function with the
    signature reward(prompts, completions, **columns) -> list[float]."""
    prompt_column: str = "prompt"
    """Column of --prompts and of a JSONL --text that holds the prompt."""
    held_out: int | None = size(None, least=0)
    """Prompts kept back for evaluation: a tenth of them, at most 256, if not given; 0: evaluate on training prompts."""
    evaluate_by: Literal["greedy", "sampling"] | None = None
    """How held-out prompts are completed: greedy, unless all prompts are the same."""


@dataclass(frozen=True)
class TextOptions:
    """What is imitated before reinforcement learning; on a task its own solutions."""

    text: Path | None = None
    """Text to imitate: a plain file, or JSONL with prompt and completion columns."""
    text_unit: Literal["line", "file"] = "line"
    """What a document of a plain file is."""
    completion_column: str = "completion"
    """Column of a JSONL --text that holds what is to be imitated after the prompt."""
    pretrain_until: float | None = number(None, least=0)
    """Held-out score at which teacher forcing ends before its steps do. On a task 0.4 if neither is given: on purpose too
    early to master it."""


@dataclass(frozen=True)
class AlgorithmOptions:
    """How the model learns from scores."""

    algorithm: Literal["ppo", "reinforce", "grpo", "rloo"] = "ppo"
    """ppo: clipped ratio, GAE and a value head. reinforce: returns, their mean as baseline. grpo: clipped ratio, scores
    normalised within a group. rloo: scores less the mean of the rest of the group."""
    kl: Literal["reward", "k2", "k3", "sequence_k2", "sequence_ratio", "none"] | None = None
    """Where the KL enters: k1 in the reward, a token estimator as loss, a sequence form as loss, or nowhere. If not given:
    the algorithm's own (grpo: k3; the others: reward)."""
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """Keep the price --kl-coef, or adapt it so that a completion diverges by --kl-target nats."""
    seeds: int = size(1)
    """Train so many seeds at once, as one program (built-in tasks)."""

    def make(self) -> Algorithm:
        """The composition that the options name."""
        algorithm = ALGORITHMS[self.algorithm]
        kl = algorithm.kl if self.kl is None else KL_PLACEMENTS[self.kl]
        return algorithm._replace(
            kl=kl._replace(controller=adapt_price) if self.kl_controller == "adaptive" else kl
        )


TASK_TEACHING = SupervisedConfig(learning_rate=3e-3, adam_eps=1e-5, steps=800)
"""Teacher forcing of a small new model on a task."""
TEXT_TEACHING = TASK_TEACHING.replace(steps=1000)
NEW_MODEL = ReinforcementConfig(
    learning_rate=5e-4,
    final_learning_rate_share=0.2,
    entropy_coef=0.01,
    updates=500,
    warmup=10,
    prompts_per_update=256,
    completions=4,
    minibatches=4,
)
"""Reinforcement learning of a small new model. With --model the defaults are those of `lm.ReinforcementConfig`."""


@dataclass(frozen=True)
class TrainArguments:
    """Train a language model by reinforcement learning.

    With no options: a small transformer is taught two-digit addition a little, then PPO trains it on whether its answers
    are right, until nearly all of them are. The run folder keeps config.json, metrics.jsonl, learning_curve.png,
    samples.txt, checkpoints, and the model as a Hugging Face folder.
    """

    world: Annotated[WorldOptions, Group] = field(default_factory=WorldOptions)
    model: Annotated[ModelOptions, Group] = field(default_factory=ModelOptions)
    text: Annotated[TextOptions, Group] = field(default_factory=TextOptions)
    pretrain: SupervisedConfig = TASK_TEACHING
    algorithm: Annotated[AlgorithmOptions, Group] = field(default_factory=AlgorithmOptions)
    reinforcement: Annotated[ReinforcementConfig, Group] = NEW_MODEL
    adaptation: Annotated[AdaptationOptions, Group] = field(default_factory=AdaptationOptions)
    sampling: Annotated[SamplingOptions, Group] = field(default_factory=SamplingOptions)
    run: Annotated[RunOptions, Group] = field(default_factory=RunOptions)

    @property
    def on_task(self) -> bool:
        """Whether a built-in task is learned."""
        return self.world.reward is None


PREFIXES = {"pretrain": "pretrain."}


def parse_train(words: list[str]) -> TrainArguments:
    """The options, with the defaults that the others ask for, and paths absolute.

    Raises:
      InputError: where options contradict each other or a number is out of range.
    """
    first = parse(TrainArguments, words, "train")
    if first.run.resume:
        return first
    check_numbers(first, PREFIXES)
    second = parse(TrainArguments, words, "train", default=choose_defaults(first))
    check(second)
    return make_paths_absolute(second)


def choose_defaults(given: TrainArguments) -> TrainArguments:
    """The defaults that suit what is trained: a new model or a given one, a task or prompts, and the algorithm."""
    reinforcement = NEW_MODEL if given.model.model is None else ReinforcementConfig()
    if given.algorithm.algorithm in ("reinforce", "rloo"):  # on-policy: one step a round
        reinforcement = reinforcement.replace(minibatches=1)
    if given.on_task:
        # The verdict on a completion that ran out of room is final.
        reinforcement = reinforcement.replace(truncation="terminal")
        shortened = given.pretrain.steps != TASK_TEACHING.steps
        text = TextOptions(pretrain_until=None if shortened else 0.4)
        world = WorldOptions(digits=2 if given.world.task == "addition" else 5)
        return TrainArguments(world=world, text=text, reinforcement=reinforcement)
    teaching = TEXT_TEACHING if given.model.model is None else SupervisedConfig(steps=1000)
    if given.text.text is None:
        teaching = teaching.replace(steps=0)
    sampling = SamplingOptions(max_new_tokens=64)
    return TrainArguments(pretrain=teaching, reinforcement=reinforcement, sampling=sampling)


def make_paths_absolute(arguments: TrainArguments) -> TrainArguments:
    """The same files, named so that the run can go on from another folder."""
    world, model, text = arguments.world, arguments.model, arguments.text
    reward = world.reward
    if reward and ".py:" in reward:
        path, _, function = reward.rpartition(":")
        reward = f"{Path(path).absolute()}:{function}"

    def absolute(path: Path | None) -> Path | None:
        return path.absolute() if path else None

    return dataclasses.replace(
        arguments,
        world=dataclasses.replace(world, prompts=absolute(world.prompts), reward=reward),
        model=dataclasses.replace(
            model, model=absolute(model.model), chat_template=absolute(model.chat_template)
        ),
        text=dataclasses.replace(text, text=absolute(text.text)),
    )


def check(arguments: TrainArguments) -> None:
    """Raises InputError where options contradict each other or a number is out of range."""
    check_numbers(arguments, PREFIXES)
    check_seeds(arguments.run.seed, arguments.algorithm.seeds)
    _check_sources(arguments)
    if arguments.adaptation.lora_dropout:
        raise InputError(
            "--lora-dropout belongs to sft: in reinforcement learning ratios would be noise, drop it"
        )
    algorithm, config = arguments.algorithm, arguments.reinforcement
    if ALGORITHMS[algorithm.algorithm].compares_group and config.completions < 2:
        raise InputError(
            f"--algorithm {algorithm.algorithm} compares completions of one prompt: --completions must be at least 2, "
            f"not {config.completions}"
        )
    if config.prompts_per_update % (config.minibatches * config.micro_batches):
        raise InputError(
            f"--prompts-per-update {config.prompts_per_update} must be a multiple of --minibatches x --micro-batches "
            f"({config.minibatches} x {config.micro_batches}): every part takes as many whole prompts"
        )


def _check_sources(arguments: TrainArguments) -> None:
    """What is learned from must be named, and nothing beside it."""
    world, text = arguments.world, arguments.text.text
    if arguments.on_task:
        _refuse_options_of_prompts(arguments)
        return
    if world.prompts is None and text is None:
        raise InputError("--reward needs --prompts (or --text, to complete empty prompts): name a JSONL file")
    if arguments.pretrain.steps and text is None:
        raise InputError(
            f"--pretrain.steps {arguments.pretrain.steps} has nothing to imitate: give --text FILE"
        )
    if arguments.algorithm.seeds > 1:
        raise InputError(
            f"--seeds {arguments.algorithm.seeds} needs a built-in task (a Python reward cannot be compiled): drop --seeds"
        )


OF_PROMPTS: dict[str, tuple[str, ...]] = {
    "world": ("prompts", "prompt_column", "evaluate_by"),
    "model": ("model", "tokenizer", "chat_template"),
    "text": ("text", "text_unit", "completion_column"),
}
"""Options that say nothing of a built-in task, by their groups."""


def _refuse_options_of_prompts(arguments: TrainArguments) -> None:
    """Raises InputError where an option is given that nothing on a task reads."""
    plain = TrainArguments()
    for group, names in OF_PROMPTS.items():
        given, default = getattr(arguments, group), getattr(plain, group)
        for name in names:
            if getattr(given, name) != getattr(default, name):
                raise InputError(
                    f"{name_option(name)} needs a --reward (a task has its own prompts): name a built-in one or "
                    "FILE.py:function"
                )
