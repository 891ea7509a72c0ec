"""`jaxrl4lm preference`: learning from pairs of completions, or from completions that were liked or not."""

import dataclasses
import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from jaxrl4lm.cli import run_folder
from jaxrl4lm.cli.compilation_cache import enable_compilation_cache
from jaxrl4lm.cli.judgement_data import describe_judgements, load_judgements
from jaxrl4lm.cli.language_data import (
    DataOptions,
    StartingModel,
    check_data,
    choose_trainable,
    make_absolute,
    make_paths_absolute,
    make_samples,
    name_base,
)
from jaxrl4lm.cli.load_model import check_tokenizer, load_model
from jaxrl4lm.cli.options import (
    AdaptationOptions,
    Group,
    ModelOptions,
    RunOptions,
    SamplingOptions,
    check_numbers,
    check_seeds,
    name_options,
    parse,
)
from jaxrl4lm.cli.session import Session, drive, evaluation_of
from jaxrl4lm.lm import PairConfig, PreferenceConfig
from jaxrl4lm.lm.optimizer import OPTIMIZERS
from jaxrl4lm.lm.preference_losses import LOSSES, PreferenceLoss, mix
from jaxrl4lm.lm.preference_losses import check as check_loss
from jaxrl4lm.training import preference
from jaxrl4lm.training.judgements import list_texts
from jaxrl4lm.types import InputError, Params

REFERENCES = ("start", "once", "none")


@dataclass(frozen=True)
class JudgementOptions:
    """What is minimised, and what it compares with."""

    loss: str = "dpo"
    """Of pairs: dpo, robust, ipo, hinge, exo, nca, sppo, apo_zero, apo_down, bco_pair, aot, aot_unpaired, discopop, sigmoid_norm,
    orpo, cpo, simpo, sft; several with their weights are added: dpo:1,sft:.1. Of completions judged alone, or of pairs taken
    apart: kto, bco, apo_zero_unpaired."""
    reference: Path = Path("start")
    """start: the model at its start (under adapters their base); once: the same, its log-probabilities computed before the first
    step, so that no second model is held; a folder; none. Losses that have no reference (orpo, cpo, simpo, sft) read none."""
    optimizer: Literal["adam", "adafactor", "lion", "muon"] = "adam"
    """lion wants a learning rate of about a tenth of adam's; adafactor keeps hardly any state."""


@dataclass(frozen=True)
class PreferenceArguments:
    """Train a language model on preferences.

    The rows have `prompt`, `chosen` and `rejected`, or `prompt`, `completion` and `label`. The run folder keeps config.json,
    metrics.jsonl, learning_curve.png, samples.txt, checkpoints, the model as a Hugging Face folder, that of the best
    evaluation, and the adapter where one was trained.
    """

    data: Annotated[DataOptions, Group] = field(default_factory=DataOptions)
    pairs: Annotated[PairConfig, Group] = field(default_factory=PairConfig)
    model: Annotated[ModelOptions, Group] = field(default_factory=ModelOptions)
    preference: Annotated[PreferenceConfig, Group] = field(default_factory=PreferenceConfig)
    judgement: Annotated[JudgementOptions, Group] = field(default_factory=JudgementOptions)
    adaptation: Annotated[AdaptationOptions, Group] = field(default_factory=AdaptationOptions)
    sampling: Annotated[SamplingOptions, Group] = field(default_factory=SamplingOptions)
    run: Annotated[RunOptions, Group] = field(default_factory=RunOptions)


def main(words: list[str]) -> int:
    """Runs the command."""
    arguments = run_folder.take_up("preference", _parse(words), check)
    enable_compilation_cache()
    session = build(arguments)
    name = f"{arguments.data.dataset[0].stem}-{arguments.judgement.loss}-seed{arguments.run.seed}"
    return drive("preference", session, arguments, name.replace(":", "-").replace(",", "-"))


def _parse(words: list[str]) -> PreferenceArguments:
    parsed = parse(PreferenceArguments, words, "preference")
    if parsed.run.resume:
        return parsed
    check(parsed)
    judgement = dataclasses.replace(parsed.judgement, reference=make_absolute(parsed.judgement.reference))
    return make_paths_absolute(dataclasses.replace(parsed, judgement=judgement))


def check(arguments: PreferenceArguments) -> None:
    """Raises InputError where an option is missing or a number is out of range."""
    check_numbers(arguments, {})
    check_seeds(arguments.run.seed)
    if not arguments.data.dataset:
        raise InputError("--dataset is missing: name a file of preferences, or of judged completions")
    check_data(arguments.data)
    loss, reference = read_loss(arguments.judgement.loss), str(arguments.judgement.reference)
    try:
        check_loss(arguments.preference, loss)
    except ValueError as error:
        named = ("batch", "micro_batches", "label_smoothing", "policy_weights", "tail_weight", "divergence")
        raise name_options(InputError(str(error)), *named) from None
    if loss.referenced and reference == "none":
        raise InputError(
            f"--reference none: --loss {arguments.judgement.loss} compares with one: give start, once or a folder"
        )
    if not loss.referenced and reference not in ("start", "none"):
        raise InputError(
            f"--reference {reference}: --loss {arguments.judgement.loss} compares with none: leave it out"
        )
    if arguments.adaptation.lora_rank and reference not in REFERENCES:
        raise InputError(
            f"--reference {reference}: the reference of adapters is their base: leave it out, or drop --lora-rank"
        )


def read_loss(words: str) -> PreferenceLoss:
    """The loss, or the mixture, that is written as `dpo` or `dpo:1,sft:.1`.

    Raises:
      InputError: if there is no such loss, or a weight is no number.
    """
    parts = []
    for word in words.split(","):
        name, _, weight = word.strip().partition(":")
        if name not in LOSSES:
            close = difflib.get_close_matches(name, LOSSES, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(LOSSES)}"
            raise InputError(f"--loss {words}: there is no loss {name!r}; {hint}")
        try:
            parts.append((LOSSES[name], float(weight or 1)))
        except ValueError:
            raise InputError(f"--loss {words}: {weight!r} is no weight: write it as {name}:0.5") from None
    try:
        return mix(parts)
    except ValueError as error:
        raise InputError(f"--loss {words}: {error}") from None


def build(arguments: PreferenceArguments) -> Session:
    """The session that the options describe.

    Raises:
      InputError: where a file or a size cannot be used.
    """
    run, judgement = arguments.run, arguments.judgement
    loss = read_loss(judgement.loss)
    model, known = load_judgements(
        arguments.data, arguments.pairs, arguments.model, run.seed, paired=loss.paired
    )
    stage = preference(
        model.policy,
        model.tokenizer,
        known,
        loss=loss,
        config=arguments.preference,
        reference=_choose_reference(arguments, model) if loss.referenced else None,
        once=str(judgement.reference) == "once",
        samples=make_samples(
            arguments.sampling, model, [list_texts(example)[0] for example in known.held_out]
        ),
        optimizer=OPTIMIZERS[judgement.optimizer],
        trainable=choose_trainable(arguments.adaptation, model.policy, name_base(arguments.model)),
        seed=run.seed,
        **({} if run.evaluate_every is None else {"evaluate_every": run.evaluate_every}),
    )
    title = f"{', '.join(path.name for path in arguments.data.dataset)}, {judgement.loss}"
    what = "pairs" if loss.paired else "judged completions"
    notes = describe_judgements(known, model, what, stage.config["dataset"]["lengths"])
    return Session(
        title=title,
        policy=model.policy,
        start=model.start,
        stages=(stage,),
        evaluation=evaluation_of(stage),
        method=judgement.loss,
        base=name_base(arguments.model),
        data=tuple(map(str, arguments.data.dataset)),
        notes=notes,
    )


def _choose_reference(arguments: PreferenceArguments, model: StartingModel) -> Params:
    """The parameters of the reference."""
    path = arguments.judgement.reference
    if str(path) in REFERENCES:
        return model.start()
    policy, params, tokenizer = load_model(path, arguments.model.dtype)
    check_tokenizer(f"--reference {path}", tokenizer, model.tokenizer, "the policy")
    # How it runs, and who wrote its folder, may differ.
    ours = dataclasses.replace(model.policy.config, remat=policy.config.remat, family=policy.config.family)
    if policy.config != ours:
        raise InputError(
            f"--reference {path} is a model of another configuration than --model: give one of the same family and sizes"
        )
    return params
