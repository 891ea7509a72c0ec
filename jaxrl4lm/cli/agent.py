"""`jaxrl4lm agent`: control agents on environments, over seeds and swept hyper-parameters."""

import ast
import dataclasses
import inspect
import itertools
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from jaxrl4lm.agents import (
    a2c,
    alphazero,
    c51,
    ddpg,
    dqn,
    ppo,
    ppo_kl,
    pqn,
    qr_dqn,
    recurrent_ppo,
    reinforce,
    sac,
    td3,
    trpo,
)
from jaxrl4lm.agents.agent import Agent
from jaxrl4lm.agents.config import AgentConfig
from jaxrl4lm.agents.environment import make_environment
from jaxrl4lm.agents.scores import bootstrap_interval, interquartile_mean
from jaxrl4lm.cli import run_folder
from jaxrl4lm.cli.compilation_cache import count_programs, enable_compilation_cache
from jaxrl4lm.cli.options import (
    Group,
    RunOptions,
    check_numbers,
    check_seeds,
    name_option,
    name_options,
    parse,
)
from jaxrl4lm.cli.progress import ProgressLine
from jaxrl4lm.cli.report import report
from jaxrl4lm.envs.gymnasium_bridge import PREFIX
from jaxrl4lm.fields import size
from jaxrl4lm.metrics import SINKS, check_sinks
from jaxrl4lm.plots.episode import ANIMATION, STRIP
from jaxrl4lm.training import Stage, fit, folder
from jaxrl4lm.training.agent_stage import agent, name_settings, start_agents
from jaxrl4lm.types import InputError, Params, ScalarLike
from jaxrl4lm.user_file import name_absolutely

ALGORITHMS = {
    "ppo": (ppo.make, ppo.PPOConfig),
    "ppo-kl": (ppo_kl.make, ppo_kl.PPOKLConfig),
    "trpo": (trpo.make, trpo.TRPOConfig),
    "a2c": (a2c.make, a2c.A2CConfig),
    "reinforce": (reinforce.make, reinforce.ReinforceConfig),
    "dqn": (dqn.make, dqn.DQNConfig),
    "qr-dqn": (qr_dqn.make, qr_dqn.QRDQNConfig),
    "c51": (c51.make, c51.C51Config),
    "pqn": (pqn.make, pqn.PQNConfig),
    "recurrent-ppo": (recurrent_ppo.make, recurrent_ppo.RecurrentPPOConfig),
    "sac": (sac.make, sac.SACConfig),
    "td3": (td3.make, td3.TD3Config),
    "ddpg": (ddpg.make, ddpg.DDPGConfig),
    "alphazero": (alphazero.make, alphazero.AlphaZeroConfig),
}


@dataclass(frozen=True)
class ProblemOptions:
    """What is learnt, by what, and how often."""

    env: str = "CartPole-v1"
    """A gymnax environment by its name; gym:ID or gym:ID:STEPS, one of Gymnasium, which is slow, with a limit of steps; or
    FILE.py:function, which returns one of your own and its parameters."""
    time_aware: bool = False
    """Observations tell the time that is left, as one number more of a flat vector, and the limit is an end like others
    (arXiv:1712.00378). Otherwise a limit cuts an episode whose values go on."""
    algorithm: Literal[
        "ppo",
        "ppo-kl",
        "trpo",
        "a2c",
        "reinforce",
        "recurrent-ppo",
        "dqn",
        "qr-dqn",
        "c51",
        "pqn",
        "sac",
        "td3",
        "ddpg",
        "alphazero",
    ] = "ppo"
    """Its hyper-parameters are the options below; --algorithm NAME --help shows those of another."""
    seeds: int = size(1)
    """Agents of each setting, trained side by side."""
    episodes: int = size(16)
    """Of an evaluation."""


def read_help(kind: type) -> dict[str, str]:
    """The docstring of each field of a dataclass and its bases."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for named, said in itertools.pairwise(body.body):
            if isinstance(named, ast.AnnAssign) and isinstance(named.target, ast.Name):
                text = (
                    said.value.value
                    if isinstance(said, ast.Expr) and isinstance(said.value, ast.Constant)
                    else ""
                )
                texts[named.target.id] = str(text)
    return texts


def _make_options(config: type[AgentConfig]) -> type:
    """The options of an algorithm: its configuration, whose numbers may be several, which is a sweep."""
    texts, fields = read_help(config), []
    for each in dataclasses.fields(config):
        swept = each.type == ScalarLike
        kind: Any = tuple[float, ...] if swept else each.type
        default = (each.default,) if swept else each.default
        help_text = tyro.conf.arg(help=texts[each.name] + (" Several: each in turn." if swept else ""))
        metadata = {} if swept else dict(each.metadata)
        fields.append((each.name, Annotated[kind, help_text], field(default=default, metadata=metadata)))
    made = dataclasses.make_dataclass("Hyperparameters", fields, frozen=True)
    made.__doc__ = "Numbers of the algorithm; several values of one are a sweep, trained as one program."
    return made


def _make_arguments(algorithm: str) -> type:
    """All options of a run of that algorithm."""
    options = _make_options(ALGORITHMS[algorithm][1])
    problem = ProblemOptions(algorithm=algorithm)  # pyright: ignore[reportArgumentType]
    fields = [
        ("problem", Annotated[ProblemOptions, Group], field(default=problem)),
        ("hyperparameters", Annotated[options, Group], field(default_factory=options)),
        ("run", Annotated[RunOptions, Group], field(default_factory=RunOptions)),
    ]
    made = dataclasses.make_dataclass("AgentArguments", fields, frozen=True)
    made.__doc__ = """Train agents on an environment: seeds and swept hyper-parameters are one program.

    The run folder keeps config.json, metrics.jsonl, learning_curve.png, checkpoints and, where the environment can be drawn,
    episode/ with a strip and an animation of an episode.
    """
    return made


ARGUMENTS = {name: _make_arguments(name) for name in ALGORITHMS}
"""The options by the name of the algorithm."""


class Training(NamedTuple):
    """A run, ready to begin."""

    title: str
    stage: Stage
    labels: list[str]
    """Of the settings."""
    seeds: int
    start: Params


def main(words: list[str]) -> int:
    """Runs the command."""
    arguments = parse(ARGUMENTS[_find_algorithm(words)], words, "agent")
    arguments = run_folder.take_up("agent", arguments, check)
    check(arguments)
    enable_compilation_cache()
    training, options = build(arguments), arguments.run
    problem = dataclasses.replace(arguments.problem, env=name_absolutely(arguments.problem.env))
    fresh = dataclasses.replace(arguments, problem=problem, run=dataclasses.replace(options, resume=None))
    name = f"{_name_folder(problem.env)}-{problem.algorithm}-seed{options.seed}"
    path = options.resume or run_folder.choose_folder(options.out, name)
    console = Console()
    members = training.seeds * len(training.labels)
    agents = f"{members} agent{'s' * (members != 1)}"
    console.print(f"[bold]{training.title}[/]: {agents} of {arguments.hyperparameters.steps:,} steps")
    console.print(f"seed {options.seed}; run folder {path}", highlight=False, markup=False, soft_wrap=True)
    with ProgressLine(console) as progress, count_programs() as programs:
        run = fit(
            training.stage,
            training.start,
            out=path,
            resume=options.resume is not None,
            title=training.title,
            config=run_folder.describe_run("agent", fresh),
            sinks=[SINKS[name] for name in options.log],
            on_progress=progress.tell,
            save_interval=options.save_interval,
        )
    if run.interrupted is None:
        console.print(tabulate(training, run.progress.scores[training.stage.name]["held_out"]))
    scores = run.progress._replace(scores={})  # the table above says them
    code = report(console, run._replace(progress=scores), "return", "agent", programs)
    if run.interrupted is None:
        _tell_of_pictures(console, training, path)
    return code


def _tell_of_pictures(console: Console, training: Training, path: Path) -> None:
    """Says where an episode can be looked at, if it can be."""
    if folder.EPISODE in training.stage.exports:
        label = f" ({training.labels[0]})" if training.labels[0] else ""
        line = f"an episode of the first agent{label}: {path / folder.EPISODE / STRIP} and {ANIMATION}"
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _name_world(env: str) -> str:
    """An environment's name without folders."""
    return env.split("/")[-1] if ".py:" in env else env


def _name_folder(env: str) -> str:
    """An environment's name as a part of a file's."""
    return _name_world(env).replace(".py:", "-").removeprefix(PREFIX).replace("/", "-").replace(":", "-")


def _find_algorithm(words: Sequence[str]) -> str:
    """The algorithm that the words name, or that of the run to go on with; its options are those to parse."""
    for option, following in itertools.pairwise(
        [*(part for word in words for part in word.split("=", 1)), ""]
    ):
        if option == "--algorithm" and following in ALGORITHMS:
            return following
        if option == "--resume" and following:
            return read_algorithm(Path(following))
    return "ppo"


def read_algorithm(path: Path) -> str:
    """The algorithm of a run.

    Raises:
      InputError: if the folder is not that of a run of this command.
    """
    if (made := run_folder.read_command(path)) != "agent":
        raise InputError(f"{path} is a run of {made}: jaxrl4lm {made} --resume {path}")
    problem = folder.read_config(path).get("problem", {})
    if problem.get("algorithm") not in ALGORITHMS:
        raise InputError(f"{path / folder.CONFIG} is damaged or of another version: start the run anew")
    return problem["algorithm"]


def check(arguments: Any) -> None:
    """Raises InputError where a number is out of range, or an option does not fit."""
    check_numbers(arguments, {})
    check_seeds(arguments.run.seed, arguments.problem.seeds)
    check_sinks(arguments.run.log)
    if arguments.run.mesh is not None:
        raise InputError("--mesh spreads a language model over devices: leave it out, an agent fits on one")
    for each in dataclasses.fields(arguments.hyperparameters):
        if getattr(arguments.hyperparameters, each.name) == ():
            raise InputError(f"{name_option(each.name)} is missing its value: give at least one")


def build(arguments: Any) -> Training:
    """The run that the options describe.

    Raises:
      InputError: where there is no such environment, or a number does not fit.
    """
    problem, run = arguments.problem, arguments.run
    make, kind = ALGORITHMS[problem.algorithm]
    try:
        environment, params = make_environment(problem.env, time_aware=problem.time_aware)
    except InputError as error:
        raise InputError(f"--env {error}") from None
    try:
        algorithm: Agent = make(environment, params)
    except InputError as error:
        raise InputError(f"--algorithm {problem.algorithm}: {error}") from None
    given = {
        each.name: getattr(arguments.hyperparameters, each.name)
        for each in dataclasses.fields(arguments.hyperparameters)
    }
    sweep = {name: values for name, values in given.items() if isinstance(values, tuple) and len(values) > 1}
    single = {name: value[0] if isinstance(value, tuple) else value for name, value in given.items()}
    config = kind(**single)
    members = {"seed": run.seed, "seeds": problem.seeds, "sweep": sweep}
    try:
        stage = agent(
            algorithm,
            config,
            params,
            **members,
            evaluate_every=run.evaluate_every,
            episodes=problem.episodes,
        )
        start = start_agents(algorithm, config, params, **members)
    except InputError as error:
        first, space, rest = str(error).partition(" ")
        said = InputError(f"{name_option(first) if first in given else first}{space}{rest}")
        # Of other words only those that are no English.
        raise name_options(said, *(name for name in given if "_" in name)) from None
    title = f"{_name_world(problem.env)}, {problem.algorithm}"
    return Training(title, stage, name_settings(sweep), problem.seeds, start)


def tabulate(training: Training, returns: Any) -> Table:
    """The final returns of each setting."""
    table = Table("setting", "IQM", "95 % interval", "worst", "best", title="return", title_justify="left")
    parts = np.reshape(np.array(returns, float), (len(training.labels), training.seeds))
    for label, scores in zip(training.labels, parts, strict=True):
        low, high = bootstrap_interval(scores)
        cells = (interquartile_mean(scores), scores.min(), scores.max())
        middle, worst, best = (f"{x:.1f}" for x in cells)
        table.add_row(
            label or f"{training.seeds} seed{'s' * (training.seeds != 1)}",
            middle,
            f"{low:.1f} to {high:.1f}",
            worst,
            best,
        )
    return table


def evaluate_run(path: Path, as_json: bool) -> int:
    """Scores the newest checkpoint of a run and draws its episode, as `jaxrl4lm evaluate` does."""
    arguments, changed = run_folder.read_arguments(path, ARGUMENTS[read_algorithm(path)])
    run_folder.refuse_changes(path, changed)
    training = build(arguments)
    state, progress = run_folder.restore_newest_state(path, (training.stage,), lambda: training.start)
    params = training.stage.params_of(state)
    returns = np.asarray(training.stage.evaluate(params)["held_out"]).tolist()
    if as_json:
        print(json.dumps({"stage": training.stage.name, "step": progress.done, "held_out": returns}))
        return 0
    drawn = _draw_again(training, state, path)
    console = Console()
    console.print(f"{training.title}, update {progress.done}/{training.stage.steps}", highlight=False)
    console.print(tabulate(training, returns))
    if drawn:
        _tell_of_pictures(console, training, path)
    return 0


def _draw_again(training: Training, state: Any, path: Path) -> bool:
    """Writes the pictures of an episode anew; whether that could be done: a folder that one may only read is left as it is."""
    try:
        for name, export in training.stage.exports.items():
            folder.replace_folder(path / name, lambda into, export=export: export(into, state, {}))
    except OSError:
        return False
    return True
