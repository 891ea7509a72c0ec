"""The options of `jaxrl4lm train`: these dataclasses are the parser, the help and the run's `config.json`."""

import dataclasses
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxrl4lm.types import InputError

LARGEST = 1e30
"""Numbers beyond it overflow in float32 arithmetic."""
LARGEST_COUNT = 2**31 - 1
"""Counters are int32."""
LARGEST_SEED = 2**31
MAY_BE_ZERO = {
    "held_out",
    "pretrain_steps",
    "pretrain_until",
    "updates",
    "warmup",
    "final_learning_rate",
    "kl_coef",
    "entropy_coef",
    "discount",
    "gae_lambda",
    "seed",
    "save_interval",
}
AT_MOST_ONE = {"discount", "gae_lambda", "final_learning_rate"}


@dataclass(frozen=True)
class World:
    """What the model is to learn: a built-in task, or your prompts and your reward."""

    task: Literal["addition", "sort", "reverse", "copy"] = "addition"
    """Built-in task with a verifiable reward, used where no --reward is given."""
    digits: int | None = None
    """Digits of each number (addition; 2 if not given) or of the string (other tasks; 5 if not given)."""
    prompts: Path | None = None
    """JSONL with a text column `prompt`; other columns go to the reward. Left out: every prompt is empty."""
    reward: str | None = None
    """exact_match, numeric_answer (both read the column `answer`), length:N, regex:PATTERN, or FILE.py:function with the
    signature reward(prompts, completions, **columns) -> list[float]."""
    prompt_column: str = "prompt"
    """Column of --prompts and of a JSONL --text that holds the prompt."""
    held_out: int | None = None
    """Prompts kept back for evaluation: a tenth of them, at most 256, if not given; 0: evaluate on training prompts."""
    evaluate_by: Literal["greedy", "sampling"] | None = None
    """How held-out prompts are completed: greedy, unless all prompts are the same."""


@dataclass(frozen=True)
class Model:
    """The policy: a new transformer, or a Hugging Face folder."""

    model: Path | None = None
    """Folder with config.json, model.safetensors and tokenizer.json to start from; the sizes below are then its own."""
    style: Literal["llama", "gpt2"] = "gpt2"
    """Of a new model: gpt2 (learned positions, GELU), or llama (rotary positions, gated SiLU, RMS norms)."""
    layers: int = 2
    """Blocks of attention and MLP."""
    width: int = 64
    """Of the residual stream; a multiple of --heads."""
    heads: int = 8
    """Attention heads of a block."""
    context: int | None = None
    """Longest prompt and completion together, in tokens; what the data need (texts: at most 512), if not given."""
    tokenizer: Literal["character", "byte"] | None = None
    """Of a new model: characters of --text and --prompts, or bytes. Characters if there are at most 256, if not given."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products; parameters and statistics stay float32."""


@dataclass(frozen=True)
class Pretraining:
    """Teacher forcing before reinforcement learning."""

    text: Path | None = None
    """Text to imitate: a plain file, or JSONL with prompt and completion columns."""
    text_unit: Literal["line", "file"] = "line"
    """What a document of a plain file is."""
    completion_column: str = "completion"
    """Column of a JSONL --text that holds what is to be imitated after the prompt."""
    pretrain_steps: int | None = None
    """Optimizer steps. If not given: 0 where there is nothing to imitate; 800 at most on a task; else 1000."""
    pretrain_until: float | None = None
    """Held-out score at which teacher forcing ends before its steps do. On a task 0.4 if neither is given: on purpose too
    early to master it."""
    pretrain_batch: int = 128
    """Texts of a step."""
    pretrain_learning_rate: float = 3e-3
    """Of Adam, at its highest; it rises over 20 steps and falls to a tenth along a cosine."""


@dataclass(frozen=True)
class Reinforcement:
    """The algorithm. One update completes and scores prompts-per-update x completions-per-prompt texts."""

    algorithm: Literal["ppo", "reinforce", "grpo", "rloo"] = "ppo"
    """ppo: clipped ratio, GAE and a value head. reinforce: returns, their mean as baseline. grpo: clipped ratio, scores
    normalised within a group. rloo: scores less the mean of the rest of the group."""
    updates: int = 500
    """Rounds of generating and learning; 0: only teacher forcing."""
    prompts_per_update: int = 256
    """Prompts of an update."""
    completions_per_prompt: int = 4
    """Completions of each prompt of an update: the group of grpo and rloo."""
    epochs: int = 1
    """Passes over the completions of an update."""
    minibatches: int | None = None
    """Optimizer steps a pass. If not given: 4 for ppo and grpo, 1 for reinforce and rloo."""
    micro_batches: int = 1
    """Parts of a minibatch, to save memory; the result is the same."""
    learning_rate: float = 5e-4
    """Of Adam, at the start."""
    final_learning_rate: float = 0.2
    """Share of the learning rate that is left at the end; it falls linearly."""
    warmup: int = 10
    """Updates over which the learning rate rises."""
    max_new_tokens: int | None = None
    """Longest completion, in tokens. If not given: what the task needs, or 64."""
    temperature: float = 1.0
    """Of sampling, and of every probability that is learned from."""
    clip_eps: float = 0.2
    """How far the ratio of new to old probability may move from 1 before its gradient is cut (ppo, grpo)."""
    kl_coef: float = 0.02
    """Price of a nat of divergence from the reference, which is the model before reinforcement learning."""
    kl: Literal["reward", "k2", "k3", "sequence_k2", "sequence_ratio"] = "reward"
    """Where the KL enters: k1 in the reward, a token estimator as loss (k3: GRPO's own), or a sequence form as loss."""
    kl_target: float | None = None
    """Adapt the price so that a completion diverges by this many nats."""
    entropy_coef: float = 0.01
    """Price that is paid for a nat of entropy of a token, against early certainty."""
    discount: float = 1.0
    """Of later rewards, a token (ppo, reinforce)."""
    gae_lambda: float = 0.95
    """Between one-step values (0) and whole returns (1) in the advantages (ppo)."""
    truncation: Literal["bootstrap", "terminal"] | None = None
    """A completion cut by the length limit: its return continues with the value estimate (ppo), or ends there. Terminal for
    built-in tasks, whose verdict on a completion that ran out of room is final; else bootstrap."""


@dataclass(frozen=True)
class Run:
    """Where the run goes, and what decides it."""

    out: Path | None = None
    """Run folder, which must not exist; runs/NAME-ALGORITHM-seedN and a free number, if not given."""
    resume: Path | None = None
    """Go on with the run in this folder; takes no other option."""
    seed: int = 0
    """Decides everything: the same seed gives the same bits on the same machine."""
    seeds: int = 1
    """Train so many seeds at once, as one program (built-in tasks)."""
    evaluate_every: int = 10
    """Updates between evaluations on held-out prompts."""
    save_interval: float = 15.0
    """Seconds between checkpoints, at least; a run also saves when it is interrupted and when it ends."""
    log: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Also log there (install the extra of that name)."""


Group = tyro.conf.OmitArgPrefixes


@dataclass(frozen=True)
class TrainArguments:
    """Train a language model by reinforcement learning.

    With no options: a small transformer is taught two-digit addition a little, then PPO trains it on whether its answers
    are right, until nearly all of them are. The run folder keeps config.json, metrics.jsonl, learning_curve.png,
    samples.txt, checkpoints, and the model as a Hugging Face folder.
    """

    world: Annotated[World, Group] = field(default_factory=World)
    model: Annotated[Model, Group] = field(default_factory=Model)
    pretraining: Annotated[Pretraining, Group] = field(default_factory=Pretraining)
    reinforcement: Annotated[Reinforcement, Group] = field(default_factory=Reinforcement)
    run: Annotated[Run, Group] = field(default_factory=Run)


def resolve(arguments: TrainArguments) -> TrainArguments:
    """The arguments with every default that depends on another one filled in, and paths absolute.

    Raises:
      InputError: where options contradict each other or a number is out of range.
    """
    world, model, pre, rl, run = (getattr(arguments, f.name) for f in dataclasses.fields(arguments))
    check(arguments)
    on_task = world.reward is None
    if world.digits is None:
        world = dataclasses.replace(world, digits=2 if world.task == "addition" else 5)
    if pre.pretrain_steps is None:
        steps = 800 if on_task else 1000 if pre.text else 0
        until = 0.4 if on_task and pre.pretrain_until is None else pre.pretrain_until
        pre = dataclasses.replace(pre, pretrain_steps=steps, pretrain_until=until)
    rl = dataclasses.replace(
        rl,
        minibatches=_minibatches(rl),
        truncation=rl.truncation or ("terminal" if on_task else "bootstrap"),
        max_new_tokens=rl.max_new_tokens or (None if on_task else 64),
    )
    reward = world.reward
    if reward and ".py:" in reward:
        path, _, function = reward.rpartition(":")
        reward = f"{Path(path).absolute()}:{function}"
    absolute = {
        name: p.absolute() if p else None for name, p in (("prompts", world.prompts), ("text", pre.text))
    }
    world = dataclasses.replace(world, prompts=absolute["prompts"], reward=reward)
    pre = dataclasses.replace(pre, text=absolute["text"])
    model = dataclasses.replace(model, model=model.model.absolute() if model.model else None)
    return TrainArguments(world, model, pre, rl, run)


def check(arguments: TrainArguments) -> None:
    """Raises InputError where options contradict each other or a number is out of range."""
    world, model, pre, rl, run = (getattr(arguments, f.name) for f in dataclasses.fields(arguments))
    if world.reward is None:
        given = [
            f"--{name}"
            for name, value in (("prompts", world.prompts), ("text", pre.text), ("model", model.model))
            if value
        ]
        if given:
            raise InputError(f"{given[0]} needs a --reward: name a built-in one or FILE.py:function")
    elif world.prompts is None and pre.text is None:
        raise InputError("--reward needs --prompts (or --text, to complete empty prompts): name a JSONL file")
    if pre.pretrain_steps and world.reward is not None and pre.text is None:
        raise InputError(f"--pretrain-steps {pre.pretrain_steps} has nothing to imitate: give --text FILE")
    if run.seeds > 1 and world.reward is not None:
        raise InputError(
            f"--seeds {run.seeds} needs a built-in task (a Python reward cannot be compiled): drop --seeds"
        )
    _check_numbers(arguments)
    if rl.algorithm in ("grpo", "rloo") and rl.completions_per_prompt < 2:
        raise InputError(
            f"--algorithm {rl.algorithm} compares completions of one prompt: --completions-per-prompt must be at least 2, "
            f"not {rl.completions_per_prompt}"
        )
    parts = _minibatches(rl) * rl.micro_batches
    if rl.prompts_per_update % parts:
        raise InputError(
            f"--prompts-per-update {rl.prompts_per_update} must be a multiple of --minibatches x --micro-batches "
            f"({_minibatches(rl)} x {rl.micro_batches}): every part takes as many whole prompts"
        )


def _check_numbers(arguments: TrainArguments) -> None:
    """Every number in its range, each named by its option."""
    for group in dataclasses.asdict(arguments).values():
        for name, value in group.items():
            if not isinstance(value, int | float) or isinstance(value, bool):
                continue
            option = f"--{name.replace('_', '-')}"
            if (name, value) == ("save_interval", math.inf):  # save at the end only
                continue
            if not math.isfinite(value):
                raise InputError(f"{option} must be a finite number, not {value}")
            if name not in MAY_BE_ZERO and value <= 0:
                raise InputError(f"{option} must be positive, not {value}")
            if value < 0:
                raise InputError(f"{option} must not be negative, not {value}")
            if name in AT_MOST_ONE and value > 1:
                raise InputError(f"{option} must lie in 0..1, not {value}")
            largest = LARGEST_COUNT if isinstance(value, int) and name != "seed" else LARGEST
            if value > largest:
                raise InputError(f"{option} must be at most {largest}, not {value}")
    run = arguments.run
    if run.seed + run.seeds > LARGEST_SEED:
        raise InputError(f"--seed must lie in 0..{LARGEST_SEED - run.seeds}, not {run.seed}")


def _minibatches(rl: Reinforcement) -> int:
    return rl.minibatches or (4 if rl.algorithm in ("ppo", "grpo") else 1)


def to_json(arguments: TrainArguments) -> dict[str, Any]:
    """Plain data, of which `from_json` makes the same arguments."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return str(value) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(arguments))


def from_json(data: dict[str, Any]) -> TrainArguments:
    """The arguments that `to_json` wrote.

    Raises:
      KeyError, TypeError: if it did not.
    """

    def group(kind: type, values: dict[str, Any]) -> Any:
        hints = typing.get_type_hints(kind)
        return kind(**{name: _revive(name, value, hints[name]) for name, value in values.items()})

    kinds = {f.name: f.type for f in dataclasses.fields(TrainArguments)}
    classes = dict(zip(kinds, (World, Model, Pretraining, Reinforcement, Run), strict=True))
    return TrainArguments(**{name: group(kind, data[name]) for name, kind in classes.items()})


def _revive(name: str, value: Any, hint: Any) -> Any:
    """The value of a field with that annotation, from JSON; raises TypeError if it is of another type."""
    options = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return tuple(_revive(name, v, options[0]) for v in value)
    if typing.get_origin(hint) is Literal:
        fits = value in options
    elif options:  # X | None
        return None if value is None else _revive(name, value, options[0])
    elif hint is Path:
        return Path(value)
    else:
        fits = isinstance(value, int | float if hint is float else hint) and not isinstance(value, bool)
    if not fits:
        raise TypeError(f"{name} is {value!r}")
    return value
