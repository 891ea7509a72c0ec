"""The policy gradient that an episode estimates, and how estimates lie to the exact one."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm import losses, returns
from jaxrl4lm.cli.tour.small_worlds import Episodes, play
from jaxrl4lm.mdp import FiniteMDP
from jaxrl4lm.types import Array, Key, ScalarLike

Credit = Callable[[Episodes, Array, ScalarLike], Array]
"""(one episode `[T]`, values `[S]`, γ) → what each action is given credit for, `[T]`."""


def from_returns(episode: Episodes, values: Array, discount: ScalarLike) -> Array:
    """Gₜ − V(Sₜ): the Monte-Carlo form; REINFORCE, where V is 0."""
    gains = returns.discounted_returns(
        episode.rewards, episode.terminated, discount=discount, mask=episode.mask
    )
    return gains - values[episode.states]


def from_one_step(episode: Episodes, values: Array, discount: ScalarLike) -> Array:
    """Rₜ₊₁ + γ V(Sₜ₊₁) − V(Sₜ): the one-step form. What an end is worth is in the reward already."""
    return losses.td_error(
        values[episode.states],
        episode.rewards,
        values[episode.following],
        episode.terminated,
        discount=discount,
        mask=episode.mask,
    )


@partial(jax.jit, static_argnames=("credit", "count", "steps"))
def sample_gradients(
    key: Key, world: FiniteMDP, logits: Array, credit: Credit, values: Array, *, count: int, steps: int
) -> Array:
    """Σₜ γᵗ credit ∇log π of each of `count` episodes, `[count, S, A]`."""
    episodes = play(key, world, jax.nn.softmax(logits), count=count, steps=steps)

    def gradient(episode: Episodes) -> Array:
        earned = credit(episode, values, world.discount) * world.discount ** jnp.arange(steps)

        def loss(logits: Array) -> Array:
            log_probs = jax.nn.log_softmax(logits)[episode.states, episode.actions]
            return losses.reinforce(log_probs, earned, mask=episode.mask).sum()

        return -jax.grad(loss)(logits)

    return jax.vmap(gradient)(episodes)


class Estimate(NamedTuple):
    """How sampled gradients lie to the exact one."""

    angle: float
    """Degrees between the mean and the exact one."""
    deviation: float
    """Standard deviation of one episode's gradient, in units of the length of the exact one."""


def measure(gradients: Array, exact: Array) -> Estimate:
    """How gradients `[N, ...]` lie to the exact one."""
    mean = gradients.mean(0)
    cosine = jnp.vdot(mean, exact) / (jnp.linalg.norm(mean) * jnp.linalg.norm(exact))
    variance = jnp.square(gradients - mean[None]).sum(tuple(range(1, gradients.ndim))).mean()
    length = jnp.linalg.norm(exact)
    return Estimate(
        float(jnp.degrees(jnp.arccos(jnp.clip(cosine, -1, 1)))), float(jnp.sqrt(variance) / length)
    )
