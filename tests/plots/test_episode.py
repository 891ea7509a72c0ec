"""Pictures of an episode, by what is drawn in them."""

import gymnax
import jax
import matplotlib.figure
import numpy as np
import PIL.Image
import pytest

from jaxrl4lm.plots.episode import CHANNELS, Episode, choose_moments, draw_episode, find_drawing

DRAWN = {
    *("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"),
    *("Asterix-MinAtar", "Breakout-MinAtar", "Freeway-MinAtar", "Seaquest-MinAtar", "SpaceInvaders-MinAtar"),
    *("Catch-bsuite", "DeepSea-bsuite", "FourRooms-misc", "Pong-misc", "FrozenLake-misc"),
}
OFFLINE = [name for name in gymnax.registered_envs if name != "MNISTBandit-bsuite"]
rng = np.random.default_rng(0)


def look(name):
    """(an environment, the shape and the dtype of its observations)"""
    environment, params = gymnax.make(name)
    return environment, jax.eval_shape(environment.reset, jax.random.key(0), params)[0]


def draw(name, observation):
    """The axes in which it is drawn."""
    ax = matplotlib.figure.Figure().subplots()
    environment, seen = look(name)
    find_drawing(environment, seen.shape)(ax, np.asarray(observation, np.float32))
    return ax


@pytest.mark.parametrize("name", OFFLINE)
def test_which_environments_are_drawn(name):
    environment, seen = look(name)
    found = find_drawing(environment, seen.shape)
    assert (found is not None) == (name in DRAWN)
    if found is not None:
        ax = matplotlib.figure.Figure().subplots()
        found(ax, rng.integers(0, 2, seen.shape).astype(seen.dtype))
        assert ax.lines or ax.images


def test_a_pole_leans_as_its_angle_says():
    ax = draw("CartPole-v1", [1.5, 0, 0.2, 0])
    rod = ax.lines[-2].get_xydata()
    lean = rod[1] - rod[0]
    assert np.arctan2(lean[0], lean[1]) == pytest.approx(0.2)
    (cart,) = ax.patches
    assert cart.get_x() + cart.get_width() / 2 == pytest.approx(1.5)


@pytest.mark.parametrize("angles", [(0.0, 0.0), (np.pi, 0.0), (2.0, 0.7), (1.0, -2.5)])
def test_the_tip_of_an_acrobot_is_above_the_line_where_its_episode_ends(angles):
    first, second = angles
    seen = np.cos(first), np.sin(first), np.cos(second), np.sin(second), 0, 0
    ax = draw("Acrobot-v1", seen)
    line, upper, _, lower, _ = ax.lines
    height = -np.cos(first) - np.cos(second + first)  # gymnax ends where it is above 1
    np.testing.assert_allclose(upper.get_xydata(), [[0, 0], [np.sin(first), -np.cos(first)]], atol=1e-6)
    np.testing.assert_allclose(lower.get_ydata()[1], height, atol=1e-6)
    np.testing.assert_allclose(np.diff(lower.get_xydata(), axis=0)[0] @ np.diff(upper.get_xydata(), axis=0)[0],
                               np.cos(second), atol=1e-6)  # fmt: skip
    assert set(line.get_ydata()) == {1}


def test_pendulum_and_car_are_where_they_say():
    upright = draw("Pendulum-v1", [1, 0, 0]).lines[0].get_xydata()
    np.testing.assert_allclose(upright, [[0, 0], [0, 1]], atol=1e-6)
    car = draw("MountainCar-v0", [0.3, 0]).lines[-1].get_xydata()[0]
    np.testing.assert_allclose(car, [0.3, np.sin(0.9) + 0.1], atol=1e-6)


def test_channels_are_colours():
    seen = rng.integers(0, 2, (5, 4, 12))
    ax = draw("Breakout-MinAtar", seen)
    shown = ax.images[0].get_array()
    for row in range(5):
        for column in range(4):
            there = np.flatnonzero(seen[row, column])
            colour = CHANNELS[there[0] % 10] if there.size else np.zeros(3)
            np.testing.assert_array_equal(shown[row, column], colour)
    assert len(np.unique(CHANNELS, axis=0)) == 10
    photo = rng.integers(0, 256, (5, 4, 3)).astype(np.uint8)
    ax = matplotlib.figure.Figure().subplots()
    find_drawing(None, photo.shape)(ax, photo)
    np.testing.assert_array_equal(ax.images[0].get_array(), photo)
    for stack, last in ((photo[..., [0, 1, 2, 2]], photo[..., 2]), (photo.swapaxes(0, 2), photo[..., 2].T)):
        ax = matplotlib.figure.Figure().subplots()
        find_drawing(None, stack.shape)(ax, stack)
        np.testing.assert_array_equal(ax.images[0].get_array(), last)


def test_agent_and_goal_stand_in_their_rooms():
    star, agent = draw("FourRooms-misc", [4, 1, 8, 9]).lines
    assert (*agent.get_xydata()[0], *star.get_xydata()[0]) == (1, 4, 9, 8)
    (agent,) = draw("FrozenLake-misc", 6).lines
    assert tuple(agent.get_xydata()[0]) == (2, 1)


@pytest.mark.parametrize("steps", [1, 3, 9, 200, 2500])
def test_moments_are_even_and_the_ends_are_among_them(steps):
    moments = choose_moments(steps, 10)
    assert (moments[0], moments[-1], len(moments)) == (0, steps, min(10, steps + 1))
    assert np.ptp(np.diff(moments)) <= 1


@pytest.mark.parametrize("steps", [1, 70])
def test_the_files_are_a_strip_and_an_animation(steps, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxrl4lm.plots.episode.FRAMES", 6)
    environment, seen = look("Catch-bsuite")
    shades = np.tile(np.arange(steps + 1)[:, None, None] / steps, (1, *seen.shape))
    titles = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *a, **k: (titles.append(self), save(self, *a, **k))
    )
    episode = Episode(shades, np.full(steps, 0.5))
    draw_episode(find_drawing(environment, seen.shape), episode, "$a_{$, mine", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"filmstrip.png", "animation.gif"}
    with PIL.Image.open(tmp_path / "filmstrip.png") as strip:
        strip.verify()
    with PIL.Image.open(tmp_path / "animation.gif") as animation:
        assert (animation.format, animation.n_frames) == ("GIF", min(6, steps + 1))
        middle = []
        for frame in range(animation.n_frames):
            animation.seek(frame)
            middle.append(
                sum(animation.convert("RGB").getpixel((animation.width // 2, animation.height // 2)))
            )
        assert middle == sorted(middle)
        assert middle[0] < middle[-1]
    assert all((tmp_path / name).stat().st_size < 1e6 for name in ("filmstrip.png", "animation.gif"))
    (figure,) = titles
    assert figure.get_suptitle() == f"$a_{{$, mine: return {steps / 2:g} in {steps} step{'s' * (steps > 1)}"
    told = [ax.get_title() for ax in figure.axes if ax.images]
    assert told[-1] == f"t = {steps}   return {steps / 2:g}"
    assert len(told) == min(10, steps + 1)
