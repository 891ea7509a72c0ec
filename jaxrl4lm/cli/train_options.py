"""The options of `jaxrl4lm train`: these records are the parser, the help and the run's `config.json`."""

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from jaxrl4lm.cli.evaluation_sets import check_sets, make_absolute
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
from jaxrl4lm.fields import number, size
from jaxrl4lm.lm import ReinforcementConfig, SupervisedConfig
from jaxrl4lm.lm.algorithms import (
    ALGORITHMS,
    CORRECTIONS,
    KL_CONTROLLERS,
    KL_PLACEMENTS,
    LEVELS,
    REDUCTIONS,
    SCALES,
    SURROGATES,
    Algorithm,
    adapt_entropy_price,
)
from jaxrl4lm.lm.credit import penalize_length
from jaxrl4lm.lm.surrogates import select_top_entropy
from jaxrl4lm.types import InputError
from jaxrl4lm.user_file import name_absolutely


@dataclass(frozen=True)
class PromptOptions:
    """A built-in task, or your prompts and your reward."""

    task: Literal["addition", "sort", "reverse", "copy"] = "addition"
    """Built-in task with a verifiable reward, used where no --reward is given."""
    digits: int | None = size(None)
    """Digits of each number (addition; 2 if not given) or of the string (other tasks; 5 if not given)."""
    prompts: Path | None = None
    """JSONL, JSON, CSV or Parquet with a column `prompt`, text or messages; other columns go to the rewards. Left out: every
    prompt is empty."""
    strict: bool = False
    """Refuse a file with a prompt that leaves no room for a completion, instead of dropping it."""
    reward: tuple[str, ...] = ()
    """exact_match, numeric_answer (both read the column `answer`), length:N, regex:PATTERN, or FILE.py:function with the
    signature reward(prompts, completions, **columns) -> list[float], or the folder of a reward model. Several are added."""
    reward_weights: tuple[float, ...] = ()
    """One for each reward; all 1 if not given."""
    normalize_rewards: bool = False
    """Normalise each of several rewards in its group before they are added (GDPO)."""
    reward_workers: int | None = size(None)
    """Call rewards in so many processes, one completion at a time. If not given: in this one."""
    reward_timeout: float = number(60.0, above=0)
    """Seconds that a completion's reward may take in such a process."""
    prompt_column: str = "prompt"
    """Column of --prompts and of a JSONL --text that holds the prompt."""


@dataclass(frozen=True)
class WorldOptions(PromptOptions):
    """What the model is to learn: a built-in task, or your prompts and your reward."""

    held_out: int | None = size(None, least=0)
    """Prompts kept back for evaluation: a tenth of them, at most 256, if not given; 0: evaluate on training prompts."""
    evaluate_by: Literal["greedy", "sampling"] | None = None
    """How held-out prompts are completed: greedy, unless all prompts are the same."""
    eval_dataset: tuple[str, ...] = ()
    """Further sets of prompts to evaluate on, as NAME=FILE: their metrics are NAME/reward, NAME/length, ..."""
    best_by: str | None = None
    """Keep the best model by the reward of the set of that name. If not given: by what is held out."""
    log_completions: int = size(4, least=0)
    """Completions of an update that are written to completions.jsonl with their rewards, and shown at the next evaluation."""
    log_completions_every: int | None = size(None)
    """Updates from one such table to the next. If not given: each one before an evaluation has one."""


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

    algorithm: Literal[
        "ppo",
        "ppo_penalty",
        "nlpo",
        "a2c",
        "a2c_one_step",
        "trpo",
        "reinforce",
        "reinforce++",
        "reinforce++_baseline",
        "remax",
        "rloo",
        "opo",
        "gpg",
        "maxrl",
        "pass_at_k",
        "grpo",
        "dr_grpo",
        "dapo",
        "gspo",
        "gspo_token",
        "luspo",
        "gmpo",
        "cispo",
        "sapo",
        "vespo",
        "dppo",
    ] = "ppo"
    """A composition of the parts below, with the numbers of its paper: docs/algorithms.md is the table. ppo: clipped ratio,
    GAE and a value head. reinforce: returns, their mean as baseline. grpo: clipped ratio, scores normalised within a group.
    rloo: scores less the mean of the rest of the group."""
    advantage: (
        Literal[
            "ppo",
            "a2c",
            "a2c_one_step",
            "reinforce",
            "reinforce++_baseline",
            "remax",
            "rloo",
            "opo",
            "gpg",
            "maxrl",
            "pass_at_k",
            "grpo",
        ]
        | None
    ) = None
    """Take the advantages of another algorithm."""
    scale: Literal["group", "batch", "none"] | None = None
    """What divides scores less the mean of their group: its deviation, that of the batch, or nothing."""
    ratio: Literal["token", "sequence", "sequence_token"] | None = None
    """Whose ratio of new to old probability counts: each token's, the sequence's (GSPO), or its value with the gradient of
    the token's."""
    surrogate: Literal["clip", "free", "score", "cispo", "gmpo", "sapo", "vespo", "dppo"] | None = None
    """What is done with it: clipped, left free, not read (score), or as the algorithm of that name does."""
    reduction: Literal["token_mean", "sequence_mean", "sequence_sum", "constant_length"] | None = None
    """How the losses of tokens are averaged; constant_length divides each completion by the longest one allowed."""
    kl: (
        Literal[
            "reward", "k2", "k3", "k3_value_k2_gradient", "k3_ratio", "sequence_k2", "sequence_ratio", "none"
        ]
        | None
    ) = None
    """Where the KL enters: k1 in the reward, a token estimator as loss (k3_ratio: times the ratio, which takes its bias
    away), a sequence form as loss, or nowhere. If not given: the algorithm's own."""
    kl_controller: Literal["fixed", "adaptive", "doubling"] | None = None
    """Keep the price --kl-coef, or adapt it, slowly or by doubling, so that a completion diverges by --kl-target nats. If not
    given: the algorithm's own, which is fixed but for ppo_penalty."""
    critic: Path | None = None
    """A critic of its own, a second transformer (ppo, a2c, nlpo): the folder of a reward model to begin as, or the word policy,
    to begin as a copy of it. If not given: a value head on the policy's trunk."""
    entropy_price: Literal["fixed", "adaptive"] = "fixed"
    """Keep the price --entropy-coef, or move it by --entropy-step towards --entropy-target nats a token."""
    correction: tuple[Literal["truncated", "masked", "rejected"], ...] = ()
    """For completions that the policy has left behind (--epochs above 1): weigh by ratios up to --ratio-cap (for surrogates
    without a ratio), drop tokens outside --ratio-floor and --ratio-cap, drop bad completions by --rejection-divergence."""
    curriculum: Literal["informative", "hard"] | None = None
    """Which of --prompts come next: those whose completions differ in score, or those of low scores, and those not yet
    seen. If not given: all in turn."""
    seeds: int = size(1)
    """Train so many seeds at once, as one program (built-in tasks)."""

    def make(self, config: ReinforcementConfig) -> Algorithm:
        """The composition that the options name.

        Raises:
          InputError: where they do not fit together.
        """
        algorithm = ALGORITHMS[self.algorithm]
        if self.advantage is not None:
            other = ALGORITHMS[self.advantage]
            names = ("credit", "value_loss", "compares_group", "greedy_baseline")
            algorithm = algorithm._replace(**{name: getattr(other, name) for name in names})
        if self.scale is not None:
            if not algorithm.compares_group:
                raise InputError(
                    f"--scale {self.scale} is of scores in a group, which {self.algorithm} does not compare: take --advantage "
                    "grpo with it"
                )
            algorithm = algorithm._replace(credit=SCALES[self.scale])
        chosen = {"level": (LEVELS, self.ratio), "surrogate": (SURROGATES, self.surrogate)}
        chosen |= {"reduction": (REDUCTIONS, self.reduction), "kl": (KL_PLACEMENTS, self.kl)}
        algorithm = algorithm._replace(**{k: table[w] for k, (table, w) in chosen.items() if w is not None})
        if self.kl_controller is not None:
            if not algorithm.kl.priced:
                raise InputError(
                    f"--kl-controller {self.kl_controller} moves the price of a KL, and {self.algorithm} has none here: name its "
                    "place with --kl, or leave it out"
                )
            controller = KL_CONTROLLERS[self.kl_controller]
            algorithm = algorithm._replace(kl=algorithm.kl._replace(controller=controller))
        penalized = getattr(algorithm.credit, "func", None) is penalize_length
        if config.overlong_buffer and not penalized:
            algorithm = algorithm._replace(credit=partial(penalize_length, credit=algorithm.credit))
        if "truncated" in self.correction and algorithm.surrogate is not SURROGATES["score"]:
            raise InputError(
                "--correction truncated weighs by the ratio, which this surrogate has already: take --surrogate score, or "
                "--correction masked"
            )
        weights = tuple(CORRECTIONS[word] for word in self.correction)
        if config.top_entropy_share != 1:
            weights += (select_top_entropy,)
        price = adapt_entropy_price if self.entropy_price == "adaptive" else algorithm.entropy_price
        return algorithm._replace(weights=(*algorithm.weights, *weights), entropy_price=price)


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
        return not self.world.reward


PREFIXES = {"pretrain": "pretrain."}
COPY = "policy"
"""The critic that begins as a copy of the policy."""


def parse_train(words: list[str]) -> TrainArguments:
    """The options, with the defaults that the others ask for, and paths absolute.

    Raises:
      InputError: where options contradict each other or a number is out of range.
    """
    words = join_repeats(words)
    first = parse(TrainArguments, words, "train")
    if first.run.resume:
        return first
    check_numbers(first, PREFIXES)
    second = parse(TrainArguments, words, "train", default=choose_defaults(first))
    check(second)
    return make_paths_absolute(second)


def join_repeats(words: list[str]) -> list[str]:
    """The words with `--reward A --reward B` written as `--reward A B`, and `--reward-weights 1,.5` as `1 .5`."""
    joined: list[str] = []
    given: list[str] = []
    last = ""
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            last = name
        if last == "--reward":
            given += [value] if equals and word.startswith("--") else [] if word.startswith("--") else [word]
        elif last == "--reward-weights" and (equals or not word.startswith("--")):
            joined += [*([name] if equals else []), *(value if equals else word).split(",")]
        else:
            joined.append(word)
    return [*joined, "--reward", *given] if given else joined


def choose_defaults(given: TrainArguments) -> TrainArguments:
    """The defaults that suit what is trained: a new model or a given one, a task or prompts, and the algorithm."""
    reinforcement = NEW_MODEL if given.model.model is None else ReinforcementConfig()
    reinforcement = reinforcement.replace(**ALGORITHMS[given.algorithm.algorithm].defaults)
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
    critic = arguments.algorithm.critic

    def absolute(path: Path | None) -> Path | None:
        return path.absolute() if path else None

    return dataclasses.replace(
        arguments,
        world=dataclasses.replace(
            world,
            prompts=absolute(world.prompts),
            eval_dataset=make_absolute(world.eval_dataset),
            reward=tuple(map(name_from_anywhere, world.reward)),
        ),
        model=dataclasses.replace(
            model, model=absolute(model.model), chat_template=absolute(model.chat_template)
        ),
        text=dataclasses.replace(text, text=absolute(text.text)),
        algorithm=dataclasses.replace(
            arguments.algorithm, critic=critic if str(critic) == COPY else absolute(critic)
        ),
    )


def name_from_anywhere(reward: str) -> str:
    """The same reward, its file or folder named so that the run can go on from another folder."""
    return str(Path(reward).absolute()) if Path(reward).is_dir() else name_absolutely(reward)


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
    if algorithm.make(config).compares_group and config.completions < 2:
        raise InputError(
            f"--algorithm {algorithm.algorithm} compares completions of one prompt: --completions must be at least 2, "
            f"not {config.completions}"
        )
    if algorithm.make(config).value_loss is None:
        for name in ("value_clip", "whiten_rewards"):
            if getattr(config, name) != getattr(ReinforcementConfig, name):
                raise InputError(
                    f"{name_option(name)} is of learned values, and {algorithm.algorithm} learns none: take --advantage ppo, or "
                    "leave it out"
                )
    if config.staleness and arguments.on_task:
        raise InputError(
            f"--staleness {config.staleness} needs a --reward (that of a task is part of the compiled update, nothing waits "
            "for it): leave it out"
        )
    if algorithm.critic is not None:
        _check_critic(algorithm.critic, algorithm)
    if algorithm.curriculum and arguments.world.prompts is None:
        raise InputError(f"--curriculum {algorithm.curriculum} chooses among prompts: give --prompts FILE")
    if config.prompts_per_update % (config.minibatches * config.micro_batches):
        raise InputError(
            f"--prompts-per-update {config.prompts_per_update} must be a multiple of --minibatches x --micro-batches "
            f"({config.minibatches} x {config.micro_batches}): every part takes as many whole prompts"
        )


def _check_critic(critic: Path, algorithm: AlgorithmOptions) -> None:
    if str(critic) != COPY and not critic.is_dir():
        raise InputError(f"--critic {critic} is no folder: name that of a reward model, or say {COPY}")
    if ALGORITHMS[algorithm.advantage or algorithm.algorithm].value_loss is None:
        raise InputError(
            f"--critic {critic}: {algorithm.algorithm} learns no values: take --algorithm ppo, or drop --critic"
        )


def _check_sources(arguments: TrainArguments) -> None:
    """What is learned from must be named, and nothing beside it."""
    world, text = arguments.world, arguments.text.text
    if arguments.on_task:
        _refuse_options_of_prompts(arguments)
        return
    check_sets(world.eval_dataset, world.best_by)
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
    "world": (
        "prompts",
        "strict",
        "reward_weights",
        "normalize_rewards",
        "reward_workers",
        "reward_timeout",
        "prompt_column",
        "evaluate_by",
        "eval_dataset",
        "best_by",
        "log_completions",
        "log_completions_every",
    ),
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
