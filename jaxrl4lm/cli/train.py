"""`jaxrl4lm train`: a little teacher forcing, then reinforcement learning on a task, or on your prompts and your reward."""

import atexit
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxrl4lm import tasks
from jaxrl4lm.cli import run_folder
from jaxrl4lm.cli.compilation_cache import enable_compilation_cache
from jaxrl4lm.cli.evaluation_sets import load_sets, rename_prompt
from jaxrl4lm.cli.language_data import (
    StartingModel,
    build_model,
    build_transformer,
    choose_trainable,
    describe_texts,
    describe_too_long,
    list_texts,
    measure_texts,
    name_base,
)
from jaxrl4lm.cli.options import name_options
from jaxrl4lm.cli.session import Session, drive
from jaxrl4lm.cli.train_options import COPY, PromptOptions, TrainArguments, check, parse_train
from jaxrl4lm.data import Tokenizer, load, recognize, rewards
from jaxrl4lm.data.corpus import PromptSet, encode_prompts, encode_row
from jaxrl4lm.data.files import Row, require_texts
from jaxrl4lm.data.reward_pool import RewardPool
from jaxrl4lm.data.token_reward import TokenReward
from jaxrl4lm.lm import TextConfig
from jaxrl4lm.lm.critic import Critic, copy_policy
from jaxrl4lm.lm.curriculum import CURRICULA
from jaxrl4lm.lm.trainable import Trainable
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.training import (
    CompletionLog,
    Evaluation,
    ModelReward,
    Stage,
    evaluate_prompts,
    evaluate_task,
    load_critic,
    prepare_texts,
    reinforcement,
    supervised,
)
from jaxrl4lm.training.folder import ADAPTER
from jaxrl4lm.training.hosted_updates import fill_columns, hide_column, split_prompts
from jaxrl4lm.training.language_stage import init_params
from jaxrl4lm.training.reinforcement_stage import LONGEST_COMPLETION
from jaxrl4lm.training.texts import TextSet
from jaxrl4lm.types import InputError

TASKS = {"addition": tasks.addition, "sort": tasks.sort, "reverse": tasks.reverse, "copy": tasks.copy}
EVALUATED_PROBLEMS = 1000
EVALUATED_SAMPLES = 256
"""Samples of the one prompt where all are the same."""


def main(words: list[str]) -> int:
    """Runs the command."""
    arguments = run_folder.take_up("train", parse_train(words), check)
    enable_compilation_cache()
    source = arguments.world.prompts or arguments.text.text
    name = arguments.world.task if arguments.on_task or source is None else source.stem
    name = f"{name}-{arguments.algorithm.algorithm}-seed{arguments.run.seed}"
    return drive("train", build(arguments), arguments, name)


def build(arguments: TrainArguments, more_sets: Sequence[str] = ()) -> Session:
    """The session that the options describe.

    Args:
      more_sets: NAME=FILE of prompts that are evaluated on as well, and decide nothing else.
    Raises:
      InputError: where a file, the reward or a size cannot be used.
    """
    return _build_task(arguments) if arguments.on_task else _build_prompts(arguments, more_sets)


def _build_task(arguments: TrainArguments) -> Session:
    """A built-in task: its reward is part of the compiled program."""
    world, run, seeds = arguments.world, arguments.run, arguments.algorithm.seeds
    task = make_task(world, arguments.sampling.max_new_tokens)
    needed = task.prompt_length + task.completion_length
    if (arguments.model.context or needed) < needed:
        raise InputError(f"--context {arguments.model.context}: {task.name} needs {needed} tokens, raise it")
    context = arguments.model.context or needed
    policy = LanguagePolicy(build_transformer(arguments.model, task.tokenizer.vocab_size, context))
    count = EVALUATED_PROBLEMS if world.held_out is None else world.held_out
    if count == 0:
        raise InputError(
            "--held-out 0: a built-in task has held-out problems to spare, give a number of them"
        )
    evaluation = evaluate_task(policy, task, count=count, seeds=seeds)
    config = arguments.reinforcement.replace(sampling=arguments.sampling.make(task.tokenizer))
    trainable = choose_trainable(arguments.adaptation, policy, name_base(arguments.model))
    stages = [
        supervised(
            policy,
            task,
            arguments.pretrain,
            evaluation=evaluation,
            until=_reach(arguments.text.pretrain_until),
            trainable=trainable,
            seed=run.seed,
            seeds=seeds,
            evaluate_every=run.evaluate_every,
        ),
        reinforcement(
            policy,
            task.tokenizer,
            task,
            algorithm=arguments.algorithm.make(arguments.reinforcement),
            config=config,
            evaluation=evaluation,
            trainable=trainable,
            seed=run.seed,
            seeds=seeds,
            evaluate_every=run.evaluate_every or 10,
            critic=_choose_critic(arguments, policy, task.tokenizer),
        ),
    ]
    return Session(
        title=f"{task.name}, {arguments.algorithm.algorithm.upper()}",
        policy=policy,
        start=lambda: init_params(policy, run.seed, seeds),
        stages=_keep_stages(stages),
        evaluation=evaluation,
        method=arguments.algorithm.algorithm,
        data=(task.name,),
        seeds=seeds,
    )


def make_task(world: PromptOptions, length: int | None) -> tasks.Task:
    """The built-in task that the options name, and the length of its answers."""
    try:
        task = TASKS[world.task](world.digits or 2)
    except ValueError as error:
        raise InputError(f"--digits: {error}") from None
    if length not in (None, task.completion_length):
        raise InputError(
            f"--max-new-tokens {length}: {task.name} is answered in {task.completion_length} tokens, drop it"
        )
    return task


def _reach(score: float | None):
    """Whether the held-out score (of several seeds: their mean) has come so far."""
    return None if score is None else lambda metrics: metrics["held_out"].mean() >= score


def _keep_stages(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Those that have steps; if none has, the last one, which evaluates the model as it is."""
    kept = [stage for stage in stages if stage.steps] or list(stages[-1:])
    if len(kept) > 1:  # an adapter of the last is one of a model that is not saved
        exports = {name: export for name, export in kept[-1].exports.items() if name != ADAPTER}
        kept[-1] = kept[-1]._replace(exports=exports)
    return tuple(kept)


def _build_prompts(arguments: TrainArguments, more_sets: Sequence[str]) -> Session:
    """Your prompts and your reward: a Python function is called between two compiled halves of each update."""
    world, run = arguments.world, arguments.run
    rows, documents = _read(arguments)
    judges = make_rewards(world, [c for c in rows[0].columns if c != "prompt"])
    room = arguments.sampling.max_new_tokens or LONGEST_COMPLETION
    source = str(world.prompts or "--prompts")
    sets = load_sets(world.eval_dataset, world.prompt_column, judges)
    everything = [*rows, *(row for each in sets.values() for row in each)]
    model = build_model(
        arguments.model,
        [*list_texts(documents), *list_texts(everything)],
        lambda tokenizer: _measure(everything, documents, tokenizer, source, room),
        run.seed,
    )
    policy, tokenizer, embeddings = model.policy, model.tokenizer, model.policy.config.vocab_size
    trainable = choose_trainable(arguments.adaptation, policy, name_base(arguments.model))
    prompts = encode_prompts(
        rows, "prompt", tokenizer, source, room, model.context, embeddings=embeddings, strict=world.strict
    )
    training, held_out = _split(hide_column(prompts, "prompt"), world.held_out)
    notes = [
        f"{len(training.rows)} prompts to train on, {len(held_out.rows)} held out, at most "
        f"{max(map(len, prompts.ids))} tokens long",
        *describe_too_long(prompts.too_long),
    ]
    config = arguments.reinforcement.replace(sampling=arguments.sampling.make(tokenizer, room))
    sets |= load_sets(more_sets, world.prompt_column, judges)
    evaluation = _evaluate(arguments, model, held_out, sets, judges)
    stages: list[Stage] = []
    if documents and arguments.pretrain.steps:
        texts = prepare_texts(
            documents, tokenizer, TextConfig(held_out=0), context=model.context, embeddings=embeddings
        )
        notes += describe_texts(texts)
        stages.append(_teach_first(arguments, model, texts, trainable, evaluation))
    stages.append(
        reinforcement(
            policy,
            tokenizer,
            training,
            rewards=judges,
            algorithm=arguments.algorithm.make(arguments.reinforcement),
            config=config,
            evaluation=evaluation,
            trainable=trainable,
            seed=run.seed,
            evaluate_every=run.evaluate_every or 10,
            curriculum=CURRICULA[arguments.algorithm.curriculum] if arguments.algorithm.curriculum else None,
            log=CompletionLog(world.log_completions, world.log_completions_every),
            critic=_choose_critic(arguments, policy, tokenizer),
        )
    )
    return Session(
        title=_name_run(arguments),
        policy=policy,
        start=model.start,
        stages=_keep_stages(stages),
        evaluation=evaluation,
        method=arguments.algorithm.algorithm,
        base=name_base(arguments.model),
        data=tuple(str(path) for path in (world.prompts, arguments.text.text) if path),
        notes=tuple(notes),
    )


def _choose_critic(arguments: TrainArguments, policy: LanguagePolicy, tokenizer: Tokenizer) -> Critic | None:
    """The critic of its own that the options name; None: a head on the policy's trunk."""
    named = arguments.algorithm.critic
    if named is None:
        return None
    return copy_policy(policy) if str(named) == COPY else load_critic(named, tokenizer)


def _teach_first(
    arguments: TrainArguments,
    model: StartingModel,
    texts: TextSet,
    trainable: Trainable | None,
    evaluation: Evaluation,
) -> Stage:
    """Teacher forcing on the texts, before reinforcement learning."""
    return supervised(
        model.policy,
        texts,
        arguments.pretrain,
        tokenizer=model.tokenizer,
        trainable=trainable,
        evaluation=evaluation,
        until=_reach(arguments.text.pretrain_until),
        seed=arguments.run.seed,
        evaluate_every=arguments.run.evaluate_every,
    )


def _name_run(arguments: TrainArguments) -> str:
    """The title of a run on prompts: their file, the rewards, the algorithm."""
    source = arguments.world.prompts or arguments.text.text
    assert source is not None  # `check` has seen to it
    named = ", ".join(name.split("/")[-1] for name in arguments.world.reward)
    return f"{source.name}, {named}, {arguments.algorithm.algorithm.upper()}"


def make_rewards(world: PromptOptions, columns: list[str]) -> rewards.RewardSet:
    """The rewards that the options name, in processes of their own where they say so."""
    named: dict[str, rewards.Reward] = {}
    short = ["/".join(name.split("/")[-2 if Path(name).is_dir() else -1 :]) for name in world.reward]
    for full, name in zip(world.reward, short, strict=True):
        if name in named:
            raise InputError(
                f"--reward {full}: another is called {name}, too; one is weighed by --reward-weights"
            )
        if Path(full).is_dir():
            named[name] = ModelReward(Path(full))
            continue
        reward = rewards.parse(full)
        rewards.check_columns(reward, name, columns)
        if world.reward_workers is not None and not isinstance(reward, TokenReward):
            reward = RewardPool(full, world.reward_workers, limit=world.reward_timeout, name=name)
            atexit.register(reward.close)
        named[name] = reward
    weights = world.reward_weights or None
    try:
        return rewards.gather_rewards(named, weights, normalized=world.normalize_rewards)
    except InputError as error:
        raise name_options(error, "reward_weights") from None


def _split(prompts: PromptSet, held_out: int | None) -> tuple[PromptSet, PromptSet]:
    try:
        return split_prompts(prompts, held_out)
    except InputError as error:
        raise name_options(error, "held_out") from None


def _evaluate(
    arguments: TrainArguments,
    model: StartingModel,
    held_out: PromptSet,
    sets: Mapping[str, list[Row]],
    named: rewards.RewardSet,
) -> Evaluation:
    """Greedy completions of held-out prompts, and of those of the sets; where all held out are the same, many samples of it."""
    world, distinct = arguments.world, len(set(held_out.texts))
    greedy = world.evaluate_by == "greedy" or (world.evaluate_by is None and distinct > 1)
    if distinct == 1:
        held_out = held_out.select([0] * EVALUATED_SAMPLES)
    room = arguments.sampling.max_new_tokens or LONGEST_COMPLETION
    sizes = {"embeddings": model.policy.config.vocab_size, "strict": world.strict}
    encoded = {
        name: encode_prompts(rows, "prompt", model.tokenizer, name, room, model.context, **sizes)
        for name, rows in sets.items()
    }
    return evaluate_prompts(
        model.policy,
        model.tokenizer,
        held_out,
        named,
        arguments.sampling.make(model.tokenizer, room),
        greedy=greedy,
        sets={name: hide_column(prompts, "prompt") for name, prompts in encoded.items()},
        best_by=world.best_by,
    )


def _read(arguments: TrainArguments) -> tuple[list[Row], list[Row]]:
    """Prompts, one empty one where there is no file of them, and what is to be imitated."""
    world, text = arguments.world, arguments.text
    rows = read_prompts(world.prompts, world.prompt_column) if world.prompts else [Row(0, {"prompt": ""})]
    documents: list[Row] = []
    if text.text:
        columns = {"prompt": world.prompt_column, "completion": text.completion_column}
        renamed = {ours: theirs for ours, theirs in columns.items() if ours != theirs}
        _, documents = recognize(load(text.text, columns=renamed, unit=text.text_unit))
    return fill_columns(rows), documents


def read_prompts(file: Path, column: str) -> list[Row]:
    """The rows of a file, their prompts in the column `prompt`."""
    rows = load(file)
    require_texts(rows, [column], chats=True)
    return [rename_prompt(row, column) for row in rows]


def _measure(rows: list[Row], documents: list[Row], tokenizer: Tokenizer, source: str, room: int) -> int:
    """How many tokens of context the prompts with their completions need, and the texts."""
    prompts = (len(encode_row(row, "prompt", tokenizer, source)[1]) for row in rows)
    return max(max(prompts) + room, measure_texts(documents, tokenizer) if documents else 1)
