"""Pictures of one episode: a strip of its moments, and an animation."""

import pathlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import matplotlib.backends.backend_agg
import matplotlib.colors
import matplotlib.figure
import matplotlib.patches
import numpy as np
import PIL.Image

STRIP, ANIMATION = "filmstrip.png", "animation.gif"
"""The files of an episode."""
MOMENTS, COLUMNS = 10, 5
"""Moments of a strip, and of a row of it."""
FRAMES, SECONDS = 60, 6.0
"""The most frames of an animation, and how long it lasts if it has so many."""
COLOURS = 48
"""Of an animation's palette."""
CHANNELS = np.array(
    [matplotlib.colors.to_rgb(c) for c in ("#ffd24a", "#f4f4f4", "#4fa3ff", "#ff6b5e", "#58c472", "#c08cff", "#ff9f3f",
                                          "#5fd7d7", "#ff8ad0", "#a9a9a9")]
)  # fmt: skip
"""Colours of an observation's channels, on black."""

Draw = Callable[[Any, np.ndarray], None]
"""(axes, an observation) → nothing: draws it."""


class Episode(NamedTuple):
    """What was seen and earned, on the host."""

    observations: np.ndarray | Mapping[int, np.ndarray]
    """`[T + 1, ...]`: before each step, and after the last; or those of `list_moments`, by their times."""
    rewards: np.ndarray
    """`[T]`."""


def find_drawing(environment: Any, shape: tuple[int, ...]) -> Draw | None:
    """How to draw the observations of an environment; None where nobody knows.

    The classic ones are known by their names, grids by the map that they hold, and images `[H, W]` or `[H, W, C]` by their shape.

    Args:
      environment: with a name; of Gymnasium or gymnax, where the observations are the same.
      shape: of an observation.
    """
    name = getattr(environment, "name", "")
    if (name, shape) in CLASSIC:
        return CLASSIC[name, shape]
    if name == "FourRooms-misc" and shape == (4,):
        return _rooms(np.asarray(environment.occupied_map))
    if name == "FrozenLake-misc" and shape == ():
        return _lake(np.asarray(environment.desc))
    if len(shape) in (2, 3) and min(shape[:2]) > 1:
        return draw_image
    return None


def draw_episode(draw: Draw, episode: Episode, title: str, path: pathlib.Path) -> None:
    """Draws an episode into a folder: `filmstrip.png` and `animation.gif`.

    Args:
      draw: as `find_drawing` gives it.
      title: of the strip; the return and the number of steps are told after it.
      path: of the folder.
    """
    steps = len(episode.rewards)
    told = f"{title}: return {_say(episode.rewards.sum())} in {steps} step{'s' * (steps != 1)}"
    _draw_strip(draw, episode, told, path / STRIP)
    _draw_animation(draw, episode, path / ANIMATION)


def choose_moments(steps: int, most: int) -> np.ndarray:
    """Times from 0 to `steps`, both among them, at equal distances; all of them if they are at most `most`."""
    return np.unique(np.linspace(0, steps, min(most, steps + 1)).round().astype(int))


def list_moments(steps: int) -> list[int]:
    """The times at which an episode of so many steps is drawn."""
    return np.union1d(choose_moments(steps, MOMENTS), choose_moments(steps, FRAMES)).tolist()


def _draw_strip(draw: Draw, episode: Episode, title: str, path: pathlib.Path) -> None:
    moments = choose_moments(len(episode.rewards), MOMENTS)
    columns = min(COLUMNS, len(moments))
    rows = -(-len(moments) // columns)
    # A title has room beside one frame, too.
    size = max(2.1 * columns, 4.5), 2.15 * rows + 0.4
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[len(moments) :]:
        ax.set_axis_off()
    for ax, time in zip(axes, moments, strict=False):
        _draw_frame(ax, draw, episode, time)
    figure.suptitle(title, fontsize=10, parse_math=False)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=100)
    temporary.replace(path)


def _draw_animation(draw: Draw, episode: Episode, path: pathlib.Path) -> None:
    moments = choose_moments(len(episode.rewards), FRAMES)
    figure = matplotlib.figure.Figure(figsize=(2.8, 2.6), dpi=100)
    canvas = matplotlib.backends.backend_agg.FigureCanvasAgg(figure)
    ax = figure.add_axes((0.04, 0.03, 0.92, 0.86))
    frames = []
    for time in moments:
        ax.clear()
        _draw_frame(ax, draw, episode, time)
        canvas.draw()
        drawn = PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        frames.append(drawn.quantize(COLOURS, dither=PIL.Image.Dither.NONE))
    temporary = path.with_suffix(".tmp.gif")
    pause = round(1000 * SECONDS / FRAMES)
    pauses = [pause] * (len(frames) - 1) + [10 * pause]  # the end is worth a look
    first, *others = frames
    first.save(temporary, save_all=True, append_images=others, duration=pauses, loop=0)
    temporary.replace(path)


def _draw_frame(ax: Any, draw: Draw, episode: Episode, time: int) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    draw(ax, episode.observations[time])
    ax.set_title(f"t = {time}   return {_say(episode.rewards[:time].sum())}", fontsize=8)


def _say(reward: float) -> str:
    return f"{reward:.4g}"


def draw_image(ax: Any, observation: np.ndarray) -> None:
    """Shades of one number a cell, an image of three bytes, or else the colour of the first channel that a cell has."""
    if observation.ndim == 2 or observation.shape[-1] == 1:
        shade = observation.reshape(observation.shape[:2]).astype(float)
        ax.imshow(shade, cmap="magma", vmin=min(0, shade.min()), vmax=max(1, shade.max()))
    elif observation.dtype == np.uint8 and observation.shape[-1] == 3:
        ax.imshow(observation)
    elif observation.dtype == np.uint8:  # images of several moments, along the shorter end: the last one
        last = observation[-1] if len(observation) < observation.shape[-1] else observation[..., -1]
        ax.imshow(last, cmap="gray", vmin=0, vmax=255)
    else:
        ax.imshow(colour_channels(observation))


def colour_channels(observation: np.ndarray) -> np.ndarray:
    """Colours `[H, W, 3]` of a grid `[H, W, C]`: that of the first channel which is not 0 in a cell, black where all are."""
    present = observation != 0
    first = present.argmax(-1)
    return np.where(present.any(-1, keepdims=True), CHANNELS[first % len(CHANNELS)], 0.0)


def _draw_cart_pole(ax: Any, observation: np.ndarray) -> None:
    """Position, speed, angle from upright, its speed; the cart leaves the picture where the episode ends."""
    x, _, angle, _ = observation
    _set_scene(ax, (-2.6, 2.6), (-1.5, 2.2))
    ax.axhline(0, color="0.6", linewidth=1)
    for end in (-2.4, 2.4):
        ax.plot([end, end], [-0.12, 0.12], color="0.6", linewidth=1)
    ax.add_patch(matplotlib.patches.Rectangle((x - 0.3, -0.15), 0.6, 0.3, color="0.2"))
    _draw_rod(ax, (x, 0.15), (x + 1.2 * np.sin(angle), 0.15 + 1.2 * np.cos(angle)), "C1")


def _draw_acrobot(ax: Any, observation: np.ndarray) -> None:
    """Cosine and sine of the first angle, from hanging, and of the second, from the first; speeds. The line is the goal."""
    cos, sin, cos_second, sin_second, *_ = observation
    elbow = np.array([sin, -cos])
    both = np.array([sin * cos_second + cos * sin_second, -(cos * cos_second - sin * sin_second)])
    _set_scene(ax, (-2.3, 2.3), (-2.3, 2.3))
    ax.axhline(1, color="0.6", linewidth=1, linestyle="--")
    _draw_rod(ax, (0, 0), elbow, "C0")
    _draw_rod(ax, elbow, elbow + both, "C1")


def _draw_pendulum(ax: Any, observation: np.ndarray) -> None:
    """Cosine and sine of the angle from upright, and its speed."""
    cos, sin, _ = observation
    _set_scene(ax, (-1.3, 1.3), (-1.3, 1.3))
    _draw_rod(ax, (0, 0), (-sin, cos), "C3")


def _draw_mountain_car(goal: float, ax: Any, observation: np.ndarray) -> None:
    """Position and speed, on the hill sin 3x. The flag is the goal."""
    position, _ = observation
    places = np.linspace(-1.2, 0.6, 100)
    _set_scene(ax, (-1.25, 0.7), (-1.25, 1.6))
    ax.fill_between(places, np.sin(3 * places), -1.25, color="0.85", linewidth=0)
    ax.plot(places, np.sin(3 * places), color="0.4", linewidth=1)
    top = np.sin(3 * goal)
    ax.plot([goal, goal], [top, top + 0.4], color="0.3", linewidth=1.2)
    ax.add_patch(
        matplotlib.patches.Polygon(
            [(goal, top + 0.4), (goal, top + 0.2), (goal + 0.12, top + 0.3)], color="C2"
        )
    )
    ax.plot([position], [np.sin(3 * position) + 0.1], "o", color="C1", markersize=9)


CLASSIC: dict[tuple[str, tuple[int, ...]], Draw] = {
    ("CartPole-v1", (4,)): _draw_cart_pole,
    ("Acrobot-v1", (6,)): _draw_acrobot,
    ("Pendulum-v1", (3,)): _draw_pendulum,
    ("MountainCar-v0", (2,)): partial(_draw_mountain_car, 0.5),
    ("MountainCarContinuous-v0", (2,)): partial(_draw_mountain_car, 0.45),
}
"""By name and shape of an observation."""


def _set_scene(ax: Any, x_limits: tuple[float, float], y_limits: tuple[float, float]) -> None:
    ax.set_xlim(x_limits)
    ax.set_ylim(y_limits)
    ax.set_aspect("equal", adjustable="box")


def _draw_rod(ax: Any, begin: Any, end: Any, colour: str) -> None:
    ax.plot(*zip(begin, end, strict=True), color=colour, linewidth=4, solid_capstyle="round")
    ax.plot(*begin, "o", color="0.2", markersize=4)


def _rooms(walls: np.ndarray) -> Draw:
    """Observations are the row and the column of the agent, and those of the goal."""

    def draw(ax: Any, observation: np.ndarray) -> None:
        row, column, goal_row, goal_column = observation
        ax.imshow(np.where(walls[..., None] != 0, 0.25, 1.0) * np.ones(3))
        ax.plot([goal_column], [goal_row], "*", color="C2", markersize=10)
        ax.plot([column], [row], "o", color="C1", markersize=6)

    return draw


def _lake(tiles: np.ndarray) -> Draw:
    """An observation is the number of the agent's cell, row by row. Holes are dark; 0 is the start, 3 the goal."""
    colours = np.array([[0.8, 0.9, 0.8], [0.85, 0.93, 1.0], [0.15, 0.25, 0.4], [0.55, 0.85, 0.55]])

    def draw(ax: Any, observation: np.ndarray) -> None:
        row, column = divmod(int(observation), tiles.shape[1])
        ax.imshow(colours[tiles])
        ax.plot([column], [row], "o", color="C1", markersize=9)

    return draw
