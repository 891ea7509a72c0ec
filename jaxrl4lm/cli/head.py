"""`jaxrl4lm head`: a task head on a frozen backbone, or with a part of it or the whole."""

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import jax

from jaxrl4lm import models
from jaxrl4lm.cli import run_folder
from jaxrl4lm.cli.compilation_cache import enable_compilation_cache
from jaxrl4lm.cli.language_data import (
    DataOptions,
    check_data,
    describe_texts,
    give_once,
    load_rows,
    make_paths_absolute,
)
from jaxrl4lm.cli.load_model import load_model
from jaxrl4lm.cli.options import Group, RunOptions, check_numbers, check_seeds, name_options, parse
from jaxrl4lm.cli.session import Session, drive, evaluation_of
from jaxrl4lm.lm import HeadConfig, PairConfig
from jaxrl4lm.lm.optimizer import OPTIMIZERS
from jaxrl4lm.models.families import write_config
from jaxrl4lm.models.head_files import check_head
from jaxrl4lm.training import freeze, head, init_parameters, prepare_labelled
from jaxrl4lm.types import InputError


@dataclass(frozen=True)
class BackboneOptions:
    """What the head reads."""

    model: Path | None = None
    """Folder of an encoder or a decoder, with config.json, model.safetensors and tokenizer.json; a head that it has is left
    out."""
    freeze: tuple[str, ...] = ("backbone",)
    """What does not learn: backbone, none, or parameters whose path one of these patterns matches (embedding layer_0/)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products; parameters and statistics stay float32."""
    remat: Literal["none", "full", "dots"] = "none"
    """What the backward pass computes again instead of keeping it: nothing, all of a block, or all but its products."""


@dataclass(frozen=True)
class TaskOptions:
    """What the head is for."""

    kind: Literal["span", "sequence", "token"] | None = None
    """span: where the answer to a question stands (context, question, answers). sequence: the class of a text, or of sentence1
    and sentence2 (label). token: a tag for each word (tokens, tags)."""
    optimizer: Literal["adam", "adafactor", "lion", "muon"] = "adam"
    """lion wants a learning rate of about a tenth of adam's; adafactor keeps hardly any state."""


@dataclass(frozen=True)
class HeadArguments:
    """Train a task head on a frozen backbone, or fine-tune a part of it or the whole.

    The run folder keeps config.json, metrics.jsonl, learning_curve.png, samples.txt, checkpoints, the model with its head as a
    Hugging Face folder, and that of the best evaluation.
    """

    data: Annotated[DataOptions, Group] = field(default_factory=DataOptions)
    pairs: Annotated[PairConfig, Group] = field(default_factory=PairConfig)
    model: Annotated[BackboneOptions, Group] = field(default_factory=BackboneOptions)
    task: Annotated[TaskOptions, Group] = field(default_factory=TaskOptions)
    head: Annotated[HeadConfig, Group] = field(default_factory=HeadConfig)
    run: Annotated[RunOptions, Group] = field(default_factory=RunOptions)


def main(words: list[str]) -> int:
    """Runs the command."""
    arguments = run_folder.take_up("head", _parse(words), check)
    enable_compilation_cache()
    session = build(arguments)
    name = f"{arguments.data.dataset[0].stem}-{arguments.task.kind}-seed{arguments.run.seed}"
    return drive("head", session, arguments, name)


def _parse(words: list[str]) -> HeadArguments:
    parsed = parse(HeadArguments, words, "head")
    if parsed.run.resume:
        return parsed
    check(parsed)
    return make_paths_absolute(parsed)


def check(arguments: HeadArguments) -> None:
    """Raises InputError where an option is missing or a number is out of range."""
    check_numbers(arguments, {})
    check_seeds(arguments.run.seed)
    if not arguments.data.dataset:
        raise InputError("--dataset is missing: name a file of labelled rows")
    check_data(arguments.data)
    if arguments.task.kind is None:
        raise InputError("--kind is missing: give span, sequence or token")
    if arguments.model.model is None:
        raise InputError("--model is missing: name the folder of an encoder or a decoder")
    config = arguments.head
    if config.batch % config.micro_batches:
        raise InputError(
            f"--batch {config.batch} must be a multiple of --micro-batches ({config.micro_batches}): every part takes as many"
        )


def build(arguments: HeadArguments) -> Session:
    """The session that the options describe.

    Raises:
      InputError: where a file or a size cannot be used.
    """
    given, run, kind = arguments.model, arguments.run, arguments.task.kind
    assert kind is not None
    assert given.model is not None
    rows, evaluation_rows = load_rows(arguments.data)
    load = partial(load_model, given.model, given.dtype, load=models.load_backbone)
    policy, backbone, tokenizer = load()
    policy = dataclasses.replace(policy, config=dataclasses.replace(policy.config, remat=given.remat))
    sizes = policy.config
    try:
        dataset = prepare_labelled(
            rows,
            tokenizer,
            kind,
            arguments.pairs,
            context=sizes.context,
            embeddings=sizes.vocab_size,
            evaluation_rows=evaluation_rows,
        )
        trainable = freeze(*given.freeze)
        params = init_parameters(policy, backbone, dataset, run.seed)
        learning, _ = jax.eval_shape(trainable.split, jax.random.key(0), params)
    except InputError as error:
        raise name_options(error, "held_out", "max_length", "freeze") from None
    check_head(write_config(sizes), params["head"], kind)

    stage = head(
        policy,
        tokenizer,
        dataset,
        config=arguments.head,
        trainable=trainable,
        optimizer=OPTIMIZERS[arguments.task.optimizer],
        seed=run.seed,
        **({} if run.evaluate_every is None else {"evaluate_every": run.evaluate_every}),
    )
    lengths = ", ".join(map(str, stage.config["dataset"]["lengths"]))
    labels = f"{len(dataset.labels)} labels, " if dataset.labels else ""
    notes = (
        *describe_texts(dataset, "labelled rows"),
        f"{labels}rows of {lengths} tokens; {models.parameter_count(learning):,} parameters learn",
    )
    title = f"{', '.join(path.name for path in arguments.data.dataset)}, {kind} head on {given.model.name}"
    return Session(
        title=title,
        policy=policy,
        start=give_once(params, lambda: init_parameters(policy, load()[1], dataset, run.seed)),
        stages=(stage,),
        evaluation=evaluation_of(stage),
        method=f"{kind} head",
        base=str(given.model),
        data=tuple(map(str, arguments.data.dataset)),
        notes=notes,
    )
