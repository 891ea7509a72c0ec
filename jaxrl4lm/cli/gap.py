"""`jaxrl4lm gap`: how many nats each algorithm ends from an optimum that is known."""

import dataclasses
import json
import pathlib
import time

from jaxrl4lm.cli.options import parse
from jaxrl4lm.fields import find_out_of_range, number, size
from jaxrl4lm.types import InputError


@dataclasses.dataclass(frozen=True)
class GapArguments:
    """Trains algorithms on a task so small that the best policy, π_ref exp(R/β) / Z, is known, and says how many nats each
    ends from it: a table, a picture (gap.png) and all numbers (gap.json).

    Every completion pays a number between 0 and 4 that was drawn for it. All seeds and all β of an algorithm are one program.
    Where an algorithm cannot reach the optimum, the point where it must end is computed by enumeration, and drawn as a dashed
    line.
    """

    only: tuple[str, ...] = ()
    """Algorithms to train: ppo reinforce rloo trpo dpo rloo_k3 dr_grpo grpo_k1 grpo best_of_n expert_iteration. All, if not
    given."""
    betas: tuple[float, ...] = (1.0, 2.0)
    """Prices of a nat of KL(π‖π_ref), a panel of the picture each."""
    seeds: int = size(3)
    """Runs of each algorithm and β."""
    seed: int = size(0, least=0)
    """The first of them; it also decides the reference and what completions pay."""
    updates: int = size(200)
    """Optimizer steps."""
    points: int = size(20)
    """How often the distance is measured; --updates is a multiple."""
    groups: int = size(64)
    """Groups of completions of an update."""
    completions: int = size(4, least=2)
    """Completions of a group."""
    vocabulary: int = size(3, least=3)
    """Ids, one of which ends a completion."""
    length: int = size(3)
    """The most tokens of a completion."""
    learning_rate: float = number(1e-2, above=0)
    """Of Adam, at its highest."""
    folder: pathlib.Path = pathlib.Path(".")
    """Where gap.png and gap.json are written."""


def main(arguments: list[str]) -> int:
    """Runs the command."""
    parsed = parse(GapArguments, arguments, "gap")
    if found := find_out_of_range(parsed):
        raise InputError(f"--{found[0].replace('_', '-')} {found[1]}")
    if not parsed.betas:
        raise InputError("--betas is missing its value: give at least one price")
    if wrong := [beta for beta in parsed.betas if not 0 < beta < float("inf")]:
        raise InputError(f"--betas has {wrong[0]:g}: a price is positive and finite.")
    if parsed.updates % parsed.points:
        raise InputError(f"--updates is {parsed.updates}: give a multiple of --points, {parsed.points}.")
    return _compare(parsed)


def _compare(arguments: GapArguments) -> int:
    import jax
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from jaxrl4lm import tasks
    from jaxrl4lm.cli.compilation_cache import enable_compilation_cache
    from jaxrl4lm.lm import gap
    from jaxrl4lm.plots.gap import GapCurve, draw_gaps

    names = arguments.only or tuple(gap.ENTRANTS)
    if wrong := [name for name in names if name not in gap.ENTRANTS]:
        raise InputError(f"--only has {wrong[0]!r}: there are {', '.join(gap.ENTRANTS)}.")
    enable_compilation_cache()
    console, started = Console(), time.perf_counter()
    sizes = ("updates", "points", "groups", "completions", "learning_rate")
    contest = gap.open_contest(
        tasks.lottery(arguments.vocabulary, arguments.length, arguments.seed, highest=4.0),
        seed=arguments.seed,
        **{name: getattr(arguments, name) for name in sizes},
    )
    try:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--folder {arguments.folder} cannot be made ({error}): name another one.") from None
    samples = contest.samples * np.arange(arguments.points + 1)
    settings = dataclasses.asdict(arguments) | {"only": names, "folder": str(arguments.folder)}
    told = {"settings": settings, "samples": samples.tolist()}
    table = Table("algorithm", *(f"β = {beta:g}: gap, must end at" for beta in arguments.betas), "seconds")
    curves, rows = {}, {}
    for name in names:
        entrant, begun = gap.ENTRANTS[name], time.perf_counter()
        with console.status(entrant.label):
            curve = GapCurve(*jax.tree.map(np.asarray, _train(contest, entrant, arguments)))
        curves[entrant.label] = curve
        seconds = time.perf_counter() - begun
        limits = np.zeros(len(arguments.betas)) if curve.limits is None else curve.limits
        ends = curve.gaps[:, :, -1].mean(1)
        table.add_row(
            entrant.label,
            *(f"{end:.4f}, {limit:.4f}" for end, limit in zip(ends, limits, strict=True)),
            f"{seconds:.0f}",
        )
        rows[name] = {"gaps": curve.gaps.round(6).tolist(), "limits": limits.round(6).tolist()}
        # Each is kept as soon as it is known, whatever stops the others.
        (arguments.folder / "gap.json").write_text(json.dumps(told | {"algorithms": rows}) + "\n")
    console.print(table)
    draw_gaps(curves, samples, arguments.betas, arguments.folder / "gap.png")
    seconds = time.perf_counter() - started
    count = (
        f"{len(contest.tree.completions)} completions, {arguments.seeds} seeds, {samples[-1]:,} draws a run"
    )
    console.print(
        f"{count}: {seconds:.0f} s; look at {arguments.folder / 'gap.png'}", soft_wrap=True, highlight=False
    )
    return 0


def _train(contest, entrant, arguments: GapArguments):
    """Gaps `[β, seeds, points + 1]`, and limits `[β]` or None: one program each."""
    import jax
    import jax.numpy as jnp

    betas = jnp.asarray(arguments.betas)
    keys = jax.vmap(jax.random.key)(arguments.seed + jnp.arange(arguments.seeds))
    over_seeds = jax.vmap(lambda key, beta: entrant.train(contest, key, beta), (0, None))
    gaps = jax.jit(jax.vmap(over_seeds, (None, 0)))(keys, betas)
    if entrant.limit is None:
        return gaps, None
    return gaps, jax.jit(jax.vmap(lambda beta: entrant.limit(contest, beta)))(betas)
