"""`jaxrl4lm tour`: a walk through the lecture, in its order, a screen and a picture a topic."""

import contextlib
import dataclasses
import pathlib
import time

from jaxrl4lm.cli.options import parse
from jaxrl4lm.types import InputError

PICTURES = "tour"
"""The folder of the pictures and of index.html, in the run folder."""


@dataclasses.dataclass(frozen=True)
class TourArguments:
    """Walks through reinforcement learning and language models in the order of the lecture: from agent and environment
    to PPO on a transformer. Each topic is computed when it is shown, in seconds, and names the functions that it calls.

    Everything is also in RUN/tour/index.html, which a browser opens, with a picture a topic, and in RUN/tour.md.
    """

    only: tuple[str, ...] = ()
    """Topics to show: agent returns worlds sweeps restaurant map theorem reinforce a2c trpo ppo language-model decoding
    in-context heads trajectories main-job. All, if not given."""
    out: pathlib.Path | None = None
    """Run folder, which must not exist; runs/tour and a free number, if not given."""
    pause: bool = False
    """Wait for Enter before the next topic."""


def main(arguments: list[str]) -> int:
    """Runs the command."""
    return _walk(parse(TourArguments, arguments, "tour"))


def _walk(arguments: TourArguments) -> int:
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.markup import escape

    from jaxrl4lm.cli.compilation_cache import enable_compilation_cache
    from jaxrl4lm.cli.run_folder import choose_folder
    from jaxrl4lm.cli.tour.chapter import write_chapter
    from jaxrl4lm.cli.tour.contents import choose_chapters
    from jaxrl4lm.cli.tour.page import write_pages
    from jaxrl4lm.plots.panels import draw_panels

    topics = choose_chapters(arguments.only)
    if arguments.out is not None and arguments.out.exists():
        raise InputError(f"--out {arguments.out} exists: name another folder.")
    path = choose_folder(arguments.out, "tour")
    try:
        (path / PICTURES).mkdir(parents=True)
    except OSError as error:
        raise InputError(f"--out {path} cannot be made ({error}): name another folder.") from None
    enable_compilation_cache()
    console, done, begun = Console(), {}, time.perf_counter()
    for number, topic in enumerate(topics, start=1):
        if arguments.pause and number > 1:
            with contextlib.suppress(EOFError):  # nobody is there to press it
                console.input("[dim]Enter: the next topic[/]")
        place, started = f"{number}/{len(topics)}", time.perf_counter()
        with console.status(f"{place} {escape(topic.title)}: computing"):
            findings = topic.compute()
            draw_panels(findings.panels, path / PICTURES / f"{topic.name}.png", columns=findings.columns)
        done[topic] = findings
        write_pages(path, PICTURES, done)
        console.print(Markdown(write_chapter(topic, findings)))
        seconds = time.perf_counter() - started
        picture = path / PICTURES / f"{topic.name}.png"
        console.print(
            f"[dim]{place}, {seconds:.0f} s. Picture: {escape(str(picture))}[/]\n",
            soft_wrap=True,
            highlight=False,
        )
    seconds = time.perf_counter() - begun
    console.print(
        f"{len(topics)} topics in {seconds:.0f} s; look at {path / PICTURES / 'index.html'}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    return 0
