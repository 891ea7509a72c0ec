"""`jaxrl4lm best-of-n`: completions of prompts, of which the best are kept; and rounds of it with fine-tuning on them."""

import dataclasses
import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxrl4lm.cli import run_folder, sft
from jaxrl4lm.cli.compilation_cache import enable_compilation_cache
from jaxrl4lm.cli.generate import Option, find_model
from jaxrl4lm.cli.language_data import DataOptions
from jaxrl4lm.cli.load_model import load_model
from jaxrl4lm.cli.options import (
    AdaptationOptions,
    Group,
    ModelOptions,
    RunOptions,
    SamplingOptions,
    check_numbers,
    check_seeds,
    parse,
)
from jaxrl4lm.cli.report import exit_code_of_interrupt
from jaxrl4lm.cli.session import drive
from jaxrl4lm.cli.train import make_rewards, make_task, read_prompts
from jaxrl4lm.cli.train_options import PromptOptions, join_repeats, name_from_anywhere
from jaxrl4lm.data import Tokenizer
from jaxrl4lm.data.corpus import PromptSet, encode_prompts, pad
from jaxrl4lm.data.files import Row
from jaxrl4lm.data.rewards import RewardSet, gather_rewards
from jaxrl4lm.fields import number, size
from jaxrl4lm.lm import SupervisedConfig
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.plots.best_of import draw_best_of
from jaxrl4lm.tasks import Task, token_rewards
from jaxrl4lm.training.candidates import (
    Candidates,
    NothingKept,
    check_kept,
    choose_batch,
    draw_batches,
    keep_best,
    kl_of_best,
    summarize_candidates,
)
from jaxrl4lm.training.folder import CONFIG, MODEL, FolderExists, create
from jaxrl4lm.training.hosted_updates import fill_columns, hide_column
from jaxrl4lm.training.loop import drop_non_finite
from jaxrl4lm.training.reinforcement_stage import LONGEST_COMPLETION
from jaxrl4lm.types import InputError

ALL, KEPT, REPORT, PICTURE, TAUGHT = (
    "completions.jsonl",
    "kept.jsonl",
    "report.json",
    "best_of_n.png",
    "sft",
)


@dataclass(frozen=True)
class BestOptions:
    """What is sampled, and what is kept of it."""

    model: Path | None = None
    """Folder of a run that has finished, or of a Hugging Face model."""
    n: Annotated[int, Option(aliases=["-n"])] = size(8)
    """Completions of each prompt."""
    keep: int | None = size(None)
    """So many of each prompt are kept, the best, of different text. If not given: 1, or with --least all that reach it."""
    least: float | None = number(None)
    """The lowest score that is kept."""
    keep_unended: bool = False
    """Also keep completions that were cut at the length limit. To imitate one is to learn to end there."""
    problems: int = size(256)
    """Prompts, of a built-in task."""
    rounds: int = size(0, least=0)
    """Expert iteration: so many times the model is fine-tuned on what was kept, and sampled again. 0: nothing learns."""
    from_base: bool = False
    """Each round fine-tunes the model that was given, not that of the round before it."""


FEW_EPOCHS = SupervisedConfig(epochs=3.0, batch=32)


@dataclass(frozen=True)
class BestArguments:
    """Sample n completions of each prompt, score them, keep the best; in rounds, fine-tune on those and sample again.

    The folder keeps completions.jsonl (all, with their scores), kept.jsonl (prompt, completion: what jaxrl4lm sft and TRL read),
    report.json and best_of_n.png; with --rounds one such folder a round, and in it the run sft/. A killed command goes on by
    --resume FOLDER.
    """

    best: Annotated[BestOptions, Group] = field(default_factory=BestOptions)
    world: Annotated[PromptOptions, Group] = field(default_factory=PromptOptions)
    sampling: Annotated[SamplingOptions, Group] = field(default_factory=SamplingOptions)
    sft: SupervisedConfig = FEW_EPOCHS
    adaptation: Annotated[AdaptationOptions, Group] = field(default_factory=AdaptationOptions)
    run: Annotated[RunOptions, Group] = field(default_factory=RunOptions)


class World(NamedTuple):
    """What is completed, and what scores it."""

    prompts: PromptSet
    rewards: RewardSet
    length: int
    """Tokens of the longest completion."""


def main(words: list[str]) -> int:
    """Runs the command."""
    given = parse(BestArguments, join_repeats(words), "best-of-n")
    if given.run.resume is None:
        check(given)
        given = _make_paths_absolute(given)
    arguments = run_folder.take_up("best-of-n", given, check)
    enable_compilation_cache()
    path = arguments.run.resume
    if path is None:
        source = arguments.world.prompts
        name = f"{source.stem if source else arguments.world.task}-best-of-{arguments.best.n}"
        path = run_folder.choose_folder(arguments.run.out, f"{name}-seed{arguments.run.seed}")
        create(path, run_folder.describe_run("best-of-n", arguments))
    try:
        return _run(arguments, path)
    except (FolderExists, NothingKept):  # to go on would end there again
        raise
    except InputError as error:
        if not any(path.rglob(ALL)):
            shutil.rmtree(path)
            raise
        raise InputError(f"{error}; {_say_how(path)}") from error
    except KeyboardInterrupt:
        print(_say_how(path), file=sys.stderr)
        return exit_code_of_interrupt()


def _say_how(path: Path) -> str:
    return f"go on with: jaxrl4lm best-of-n --resume {path}"


def check(arguments: BestArguments) -> None:
    """Raises InputError where an option is missing, contradicts another, or a number is out of range."""
    check_numbers(arguments, {"sft": "sft."})
    check_seeds(arguments.run.seed)
    if arguments.best.model is None:
        raise InputError("--model is missing: name the folder of a run or of a Hugging Face model")
    world = arguments.world
    if world.reward and world.prompts is None:
        raise InputError("--reward needs --prompts: name a JSONL file")
    if world.prompts and not world.reward:
        raise InputError(
            "--prompts needs a --reward (a task has its own prompts): name a built-in one or FILE.py:function"
        )
    best = arguments.best
    if best.keep is not None and best.keep > best.n:
        raise InputError(f"--keep {best.keep}: of {best.n} completions of a prompt, keep at most {best.n}")
    if best.from_base and not best.rounds:
        raise InputError("--from-base says where each round begins: give --rounds, or leave it out")
    find_model(arguments.best.model)


def _make_paths_absolute(arguments: BestArguments) -> BestArguments:
    """The same files, named so that the command can go on from another folder."""
    best, world = arguments.best, arguments.world
    assert best.model is not None
    return dataclasses.replace(
        arguments,
        best=dataclasses.replace(best, model=best.model.absolute()),
        world=dataclasses.replace(
            world,
            prompts=world.prompts and world.prompts.absolute(),
            reward=tuple(map(name_from_anywhere, world.reward)),
        ),
    )


def _run(arguments: BestArguments, path: Path) -> int:
    """Samples; in each round fine-tunes and samples again."""
    best, console = arguments.best, Console()
    assert best.model is not None
    base = model = find_model(best.model)
    reports: list[dict[str, Any]] = []
    for done in range(best.rounds + 1):
        folder = path / f"round-{done}" if best.rounds else path
        folder.mkdir(exist_ok=True)
        reports.append(_sample(arguments, model, folder, done))
        if done == best.rounds:
            break
        if code := _teach(arguments, base if best.from_base else model, folder):
            return code
        model = folder / TAUGHT / MODEL
    curves = {f"round {i}": report["best"] for i, report in enumerate(reports)}
    draw_best_of(curves, f"best of {best.n}", path / PICTURE)
    _show(console, reports)
    where = (
        f"the model is {model}"
        if best.rounds
        else f"learn from it with: jaxrl4lm sft --dataset {path / KEPT}"
    )
    console.print(f"{path}; {where}", soft_wrap=True, highlight=False, markup=False)
    return 0


def _sample(arguments: BestArguments, model: Path, folder: Path, done: int) -> dict[str, Any]:
    """Draws what is still to be drawn in a folder, and writes what follows from it; the report."""
    if (folder / REPORT).exists():
        return json.loads((folder / REPORT).read_text())
    policy, params, tokenizer = load_model(model)
    world = _read_world(arguments, policy, tokenizer)
    sampling = arguments.sampling.make(tokenizer, world.length)
    n = arguments.best.n
    candidates = _read_candidates(folder / ALL, choose_batch(n), len(world.prompts.rows))
    key = jax.random.fold_in(jax.random.key(arguments.run.seed), done)
    batches = draw_batches(
        policy,
        params,
        tokenizer,
        world.prompts,
        world.rewards,
        n,
        sampling,
        key,
        first=len(candidates),
    )
    with (folder / ALL).open("a", encoding="utf-8") as file:
        for batch in batches:
            file.writelines(json.dumps(each._asdict(), ensure_ascii=False) + "\n" for each in batch)
            file.flush()
            candidates += batch
            print(
                f"\r{len(candidates)} of {len(world.prompts.rows)} prompts",
                end="",
                file=sys.stderr,
                flush=True,
            )
    print(file=sys.stderr)
    best = arguments.best
    kept = keep_best(candidates, top=best.keep, least=best.least, unended=best.keep_unended)
    if done < best.rounds or not best.rounds:
        check_kept(kept, candidates)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in kept]
    _write_whole(folder / KEPT, "".join(lines))
    report = drop_non_finite({**summarize_candidates(candidates), "kept": len(kept)})
    _write_whole(folder / REPORT, json.dumps(report, indent=2) + "\n")
    return report


def _write_whole(path: Path, text: str) -> None:
    """A file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _read_candidates(path: Path, batch: int, total: int) -> list[Candidates]:
    """The whole batches that a file holds, after cutting off what comes behind them: a command may have been killed."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    whole = len(lines) if len(lines) == total else len(lines) // batch * batch
    _write_whole(path, "".join(f"{line}\n" for line in lines[:whole]))
    return [Candidates(**json.loads(line)) for line in lines[:whole]]


def _teach(arguments: BestArguments, model: Path, folder: Path) -> int:
    """Fine-tunes a model on what a folder keeps; the exit code."""
    out = folder / TAUGHT
    if (out / MODEL).is_dir():
        return 0
    resume = out if (out / CONFIG).is_file() else None
    if resume is None:
        shutil.rmtree(out, ignore_errors=True)  # it was killed while it began
    options = sft.SftArguments(
        data=DataOptions(dataset=(folder.absolute() / KEPT,)),
        model=ModelOptions(model=model.absolute()),
        supervised=arguments.sft,
        adaptation=arguments.adaptation,
        sampling=arguments.sampling,
        run=dataclasses.replace(arguments.run, out=None if resume else out, resume=None),
    )
    if resume:
        options = run_folder.take_up("sft", sft.SftArguments(run=RunOptions(resume=resume)), sft.check)
    return drive("sft", sft.build(options), options, folder.name)


def _read_world(arguments: BestArguments, policy: LanguagePolicy, tokenizer: Tokenizer) -> World:
    """The prompts and rewards that the options name."""
    world, length = arguments.world, arguments.sampling.max_new_tokens
    if world.prompts:
        rows, source = fill_columns(read_prompts(world.prompts, world.prompt_column)), str(world.prompts)
        rewards = make_rewards(world, [name for name in rows[0].columns if name != "prompt"])
        length = length or LONGEST_COMPLETION
    else:
        task = make_task(world, length)
        rows, rewards = _ask_task(task, arguments.best.problems, arguments.run.seed, tokenizer)
        source, length = task.name, task.completion_length
    sizes = policy.config
    prompts = encode_prompts(
        rows,
        "prompt",
        tokenizer,
        source,
        length,
        sizes.context,
        embeddings=sizes.vocab_size,
        strict=world.strict or not world.reward,
    )
    return World(hide_column(prompts, "prompt"), rewards, length)


def _ask_task(task: Task, count: int, seed: int, tokenizer: Tokenizer) -> tuple[list[Row], RewardSet]:
    """Training problems of a task as rows, and its reward as a function of them."""
    problems = jax.device_get(task.sample(jax.random.key(seed), count))
    rows = [
        Row(i + 1, {"prompt": task.tokenizer.decode(ids[real].tolist()), "problem": i})
        for i, (ids, real) in enumerate(zip(problems.tokens, problems.mask, strict=True))
    ]
    text = rows[0].columns["prompt"]
    try:
        same = (
            tokenizer.encode(text) == task.tokenizer.encode(text)
            and task.tokenizer.eos_id in tokenizer.eos_ids
        )
    except ValueError:
        same = False
    if not same:
        raise InputError(
            f"the model reads {text!r} as other ids than the task {task.name}: take a model that was trained on it"
        )

    def reward(prompts: Any, completions: Any, completion_ids: Any, problem: Any) -> list[float]:
        asked = jax.tree.map(lambda x: x[np.array(problem)], problems)
        padded = pad(completion_ids, task.completion_length, task.tokenizer.pad_id, left=False)
        said, mask = map(jnp.asarray, padded)
        return token_rewards(task.reward(asked, said, mask), mask).sum(-1).tolist()

    return rows, gather_rewards({task.name: reward})


def _show(console: Console, reports: list[dict[str, Any]]) -> None:
    """A table of what the best of m scores, and how far it is from the policy."""
    n = reports[0]["n"]
    heads = [f"round {i}" for i in range(len(reports))] if len(reports) > 1 else ["expected score"]
    table = Table(
        "best of", "KL at most (nats)", *heads, title=f"{reports[0]['prompts']} prompts", title_justify="left"
    )
    for m in sorted({2**i for i in range(n.bit_length())} | {n}):
        scores = [report["best"][m - 1] for report in reports]
        table.add_row(str(m), f"{kl_of_best(m):.2f}", *("" if s is None else f"{s:.3f}" for s in scores))
    for name in ("ended", "kept"):
        table.add_row(name, "", *(f"{report[name]:.3g}" for report in reports))
    console.print(table)
