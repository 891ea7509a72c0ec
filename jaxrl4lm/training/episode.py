"""The picture of an episode that a trained agent plays."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.agents.agent import Agent, film, view
from jaxrl4lm.envs.gymnasium_bridge import Bridge
from jaxrl4lm.envs.time_aware import TimeAware
from jaxrl4lm.plots.episode import Episode, draw_episode, draw_image, find_drawing, list_moments
from jaxrl4lm.training.folder import EPISODE
from jaxrl4lm.types import Params

LONGEST = 2500
"""Steps that are filmed of an episode, however long it is: all observations are held at once."""


def make_exports(
    algorithm: Agent, params: Any, *, seed: int, episodes: int
) -> dict[str, Callable[[pathlib.Path, Any, Any], None]]:
    """What the run of an agent leaves (`Stage.exports`): the pictures, where there are any. Arguments as of `make_picture`."""
    picture = make_picture(algorithm, params, seed=seed, episodes=episodes)
    return {} if picture is None else {EPISODE: lambda path, states, scores: picture(path, view(states))}


def make_picture(
    algorithm: Agent, params: Any, *, seed: int, episodes: int
) -> Callable[[pathlib.Path, Params], None] | None:
    """How to draw the first episode of an evaluation, played by the first agent.

    Args:
      algorithm: as `agents.ppo.make` and its siblings give it.
      params: of the environment.
      seed: of the evaluation's episodes.
      episodes: of an evaluation.
    Returns:
      A function of (an empty folder, what `agents.agent.view` gives of each agent) that writes the pictures there; None where
      the environment cannot be drawn.
    """
    environment = algorithm.spec.environment
    shown = environment.inner if isinstance(environment, TimeAware) else environment
    observation, _ = jax.eval_shape(shown.reset, jax.random.key(0), params)
    # Environments of Gymnasium may draw themselves.
    camera = shown.find_camera() if isinstance(shown, Bridge) else None
    draw = find_drawing(shown, observation.shape) if camera is None else draw_image
    if draw is None:
        return None

    @jax.jit
    def play(seen: Params) -> Any:
        key = jax.random.key(seed)
        return jax.vmap(lambda one: film(algorithm, one, key, params, episodes, LONGEST))(seen)

    def write(path: pathlib.Path, seen: Params) -> None:
        # One agent, mapped over as in evaluation: its program rounds alike.
        shot = jax.tree.map(lambda x: np.asarray(x[0]), play(jax.tree.map(lambda x: x[:1], seen)))
        steps = int(shot.alive.sum())
        if camera is None:
            moments = np.concatenate([shot.observation[:steps], shot.final_observation[steps - 1 : steps]])
            if isinstance(environment, TimeAware):
                moments = np.asarray(environment.without_time(jnp.asarray(moments)))
        else:
            moments = camera(shot.begun, shot.action[:steps], list_moments(steps))
        begins = ", the beginning" if steps == LONGEST < algorithm.spec.horizon else ""
        title = f"{shown.name}, {algorithm.name}{begins}"
        draw_episode(draw, Episode(moments, shot.reward[:steps]), title, path)

    return write
