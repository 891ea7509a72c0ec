"""Which prompts come next: a pool weighted by how hard they proved, a pure function of the record.

Shapes: `P` prompts of the file, `G` of an update, `n` completions of each.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.types import Array, Key

MEMORY = 0.5
"""Share of what is known of a prompt that a further look at it keeps: the policy has changed since."""
LEAST = 0.05
"""The weight of a prompt that says nothing, beside 1 for one that says most: it may do so again."""


class Record(NamedTuple):
    """What was seen of each prompt, float32 `[P]`."""

    seen: Array
    """How often it was drawn."""
    score: Array
    """Its mean reward, recent ones counting most."""
    spread: Array
    """The standard deviation of the rewards of its completions, likewise."""


Curriculum = Callable[[Record], Array]
"""From the record to the weights `[P]`, not negative."""


def empty_record(prompts: int) -> Record:
    """Of so many prompts, of which nothing is known."""
    return Record(*(jnp.zeros(prompts, jnp.float32) for _ in range(3)))


def remember(record: Record, rows: Array, scores: Array) -> Record:
    """The record after some prompts were drawn.

    Args:
      rows: which, int `[G]`.
      scores: what their completions earned, `[G, n]`.
    """
    keep = jnp.where(record.seen[rows] > 0, MEMORY, 0.0)

    def mix(known: Array, fresh: Array) -> Array:
        return known.at[rows].set(keep * known[rows] + (1 - keep) * fresh)

    return Record(
        seen=record.seen.at[rows].add(1.0),
        score=mix(record.score, scores.mean(-1)),
        spread=mix(record.spread, scores.std(-1)),
    )


def prefer_informative(record: Record) -> Array:
    """Prompts whose completions differ in reward, and those not yet seen."""
    most = jnp.maximum(record.spread.max(), 1e-6)
    return jnp.where(record.seen > 0, LEAST + (1 - LEAST) * record.spread / most, 1.0)


def prefer_hard(record: Record) -> Array:
    """Prompts of low mean reward, and those not yet seen."""
    seen = record.seen > 0
    lowest = jnp.min(record.score, where=seen, initial=jnp.inf)
    highest = jnp.max(record.score, where=seen, initial=-jnp.inf)
    share = (highest - record.score) / jnp.where(highest > lowest, highest - lowest, 1.0)
    return jnp.where(seen, LEAST + (1 - LEAST) * share, 1.0)


def draw_rows(key: Key, weights: Array, count: int) -> Array:
    """`count` different prompts, int32: one after another, each by its share of the weights that are left.

    Reference: the exponential race (Gumbel-top-k), Kool et al. 2019, arXiv:1903.06059.
    """
    race = jnp.log(weights) + jax.random.gumbel(key, weights.shape)
    return jax.lax.top_k(race, count)[1]


CURRICULA: Mapping[str, Curriculum] = {"informative": prefer_informative, "hard": prefer_hard}
"""The command line's words."""
