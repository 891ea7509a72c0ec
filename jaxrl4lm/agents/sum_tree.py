"""A tree of sums, as pure functions: to draw in proportion to S weights, and to change some, reads a few numbers of each level.

A tree is a tuple of levels. The first holds the weights, and each other one the sums of `FAN` neighbours of the one before it,
up to a level of `FAN` numbers; zeros fill each level up. Sums are always computed anew from what they are of, so that no
rounding piles up.
"""

import jax
import jax.numpy as jnp

from jaxrl4lm.types import Array, Key

FAN = 16
"""Neighbours that a sum is of: fewer make more levels, more make each of them slower to read."""
BELOW_ONE = 1 - 2.0**-23

Tree = tuple[Array, ...]


def init(size: int) -> Tree:
    """Weights of 0."""
    levels = []
    while not levels or levels[-1].shape[0] > FAN:
        levels.append(jnp.zeros(-(-size // FAN) * FAN))
        size = levels[-1].shape[0] // FAN
    return tuple(levels)


def write(tree: Tree, index: Array, weights: Array) -> Tree:
    """The tree with weights `[B]` at `index` `[B]`; of the same index several times, any."""
    levels = [tree[0].at[index].set(weights)]
    for level in tree[1:]:
        index = index // FAN
        levels.append(level.at[index].set(levels[-1].reshape(-1, FAN)[index].sum(-1)))
    return tuple(levels)


def draw(key: Key, tree: Tree, count: int) -> tuple[Array, Array]:
    """Indices `[count]`, each drawn in proportion to the weights, and their probabilities `[count]`.

    One comes from each of `count` equal parts of the sum, so that their numbers vary less than those of independent draws. A
    weight of 0 is never drawn, unless all are.

    Reference: Schaul et al. 2016, arXiv:1511.05952, app. B.2.1.
    """
    total = tree[-1].sum()
    left = (jnp.arange(count) + jax.random.uniform(key, (count,))) * (total / count)
    index, weight = jnp.zeros(count, jnp.int32), left
    for level in reversed(tree):
        sums = jnp.cumsum(level.reshape(-1, FAN)[index], axis=-1)
        left = jnp.clip(left, 0, sums[:, -1] * BELOW_ONE)  # a sum in another order rounds differently
        child = (sums <= left[:, None]).sum(-1, dtype=jnp.int32)
        child = jnp.minimum(child, FAN - 1)  # where all are 0
        ends = jnp.pad(sums, ((0, 0), (1, 0)))
        before, after = (jnp.take_along_axis(ends, x[:, None], axis=1)[:, 0] for x in (child, child + 1))
        left, weight = left - before, after - before
        index = index * FAN + child
    # The weight is not read from the tree once more: that could be after `write`, for which XLA would keep a copy of the tree.
    return index, weight / total
