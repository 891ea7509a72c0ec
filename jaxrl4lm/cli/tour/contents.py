"""The chapters, in the order of the lecture."""

from jaxrl4lm.cli.tour import (
    a2c,
    agent,
    gains,
    in_context,
    language_model,
    main_job,
    map_of_algorithms,
    ppo,
    reinforce,
    restaurant,
    schemes,
    sweeps,
    task_heads,
    theorem,
    trajectories,
    trpo,
    worlds,
)
from jaxrl4lm.cli.tour.chapter import Chapter
from jaxrl4lm.types import InputError

CHAPTERS: dict[str, Chapter] = {
    module.CHAPTER.name: module.CHAPTER
    for module in (
        agent,
        gains,
        worlds,
        sweeps,
        restaurant,
        map_of_algorithms,
        theorem,
        reinforce,
        a2c,
        trpo,
        ppo,
        language_model,
        schemes,
        in_context,
        task_heads,
        trajectories,
        main_job,
    )
}


def choose_chapters(only: tuple[str, ...]) -> list[Chapter]:
    """The chapters of these names, in the order of the lecture; all, if none is named.

    Raises:
      InputError: if there is no such chapter.
    """
    if wrong := [name for name in only if name not in CHAPTERS]:
        raise InputError(f"--only has {wrong[0]!r}: there are {', '.join(CHAPTERS)}.")
    return [chapter for name, chapter in CHAPTERS.items() if not only or name in only]
