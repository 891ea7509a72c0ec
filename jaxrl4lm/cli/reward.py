"""`jaxrl4lm reward`: a reward model from pairs of completions."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from jaxrl4lm.cli import run_folder
from jaxrl4lm.cli.compilation_cache import enable_compilation_cache
from jaxrl4lm.cli.judgement_data import describe_judgements, load_judgements
from jaxrl4lm.cli.language_data import (
    DataOptions,
    check_data,
    choose_trainable,
    make_paths_absolute,
    name_base,
)
from jaxrl4lm.cli.options import (
    AdaptationOptions,
    Group,
    ModelOptions,
    RunOptions,
    check_numbers,
    check_seeds,
    name_options,
    parse,
)
from jaxrl4lm.cli.session import Session, drive, evaluation_of
from jaxrl4lm.lm import PairConfig, RewardConfig, reward
from jaxrl4lm.lm.optimizer import OPTIMIZERS
from jaxrl4lm.training import reward_model
from jaxrl4lm.training.language_stage import choose_keys
from jaxrl4lm.types import InputError, Params


@dataclass(frozen=True)
class DescentOptions:
    """How it is learned."""

    optimizer: Literal["adam", "adafactor", "lion", "muon"] = "adam"
    """lion wants a learning rate of about a tenth of adam's; adafactor keeps hardly any state."""


@dataclass(frozen=True)
class RewardArguments:
    """Train a reward model on pairs of completions.

    The rows have `prompt`, `chosen`, `rejected`, and maybe `margin`. The run folder keeps config.json, metrics.jsonl,
    learning_curve.png, checkpoints, the model as a Hugging Face folder for sequence classification, and that of the best
    evaluation, each with reward.json: mean and deviation of the held-out rewards.
    """

    data: Annotated[DataOptions, Group] = field(default_factory=DataOptions)
    pairs: Annotated[PairConfig, Group] = field(default_factory=PairConfig)
    model: Annotated[ModelOptions, Group] = field(default_factory=ModelOptions)
    reward: Annotated[RewardConfig, Group] = field(default_factory=RewardConfig)
    descent: Annotated[DescentOptions, Group] = field(default_factory=DescentOptions)
    adaptation: Annotated[AdaptationOptions, Group] = field(default_factory=AdaptationOptions)
    run: Annotated[RunOptions, Group] = field(default_factory=RunOptions)


def main(words: list[str]) -> int:
    """Runs the command."""
    arguments = run_folder.take_up("reward", _parse(words), check)
    enable_compilation_cache()
    session = build(arguments)
    return drive(
        "reward", session, arguments, f"{arguments.data.dataset[0].stem}-reward-seed{arguments.run.seed}"
    )


def _parse(words: list[str]) -> RewardArguments:
    parsed = parse(RewardArguments, words, "reward")
    if parsed.run.resume:
        return parsed
    check(parsed)
    return make_paths_absolute(parsed)


def check(arguments: RewardArguments) -> None:
    """Raises InputError where an option is missing or a number is out of range."""
    check_numbers(arguments, {})
    check_seeds(arguments.run.seed)
    if not arguments.data.dataset:
        raise InputError("--dataset is missing: name a file of pairs: prompt, chosen and rejected")
    check_data(arguments.data)
    try:
        arguments.reward.check()
    except ValueError as error:
        raise name_options(InputError(str(error)), "micro_batches") from None


def build(arguments: RewardArguments) -> Session:
    """The session that the options describe.

    Raises:
      InputError: where a file or a size cannot be used.
    """
    run = arguments.run
    model, known = load_judgements(arguments.data, arguments.pairs, arguments.model, run.seed, whole=True)
    policy = model.policy

    def start() -> Params:
        return reward.add_head(choose_keys(run.seed, 1, "reward"), policy, model.start())

    stage = reward_model(
        policy,
        model.tokenizer,
        known,
        config=arguments.reward,
        optimizer=OPTIMIZERS[arguments.descent.optimizer],
        trainable=choose_trainable(arguments.adaptation, policy, name_base(arguments.model)),
        seed=run.seed,
        **({} if run.evaluate_every is None else {"evaluate_every": run.evaluate_every}),
    )
    title = f"{', '.join(path.name for path in arguments.data.dataset)}, reward model"
    notes = describe_judgements(known, model, "pairs", stage.config["dataset"]["lengths"])
    return Session(
        title=title,
        policy=policy,
        start=start,
        stages=(stage,),
        evaluation=evaluation_of(stage),
        method="reward",
        base=name_base(arguments.model),
        data=tuple(map(str, arguments.data.dataset)),
        notes=notes,
    )
