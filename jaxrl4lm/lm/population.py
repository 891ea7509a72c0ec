"""Populations larger than the cache: many whole runs in one program, some of them at a time.

On a CPU the runs of a `jax.vmap` advance together, and each step walks through the memory of them all. Beyond the
cache that costs more than it saves. A block of runs that fits finishes before the next begins.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SHARED = object()
"""Stands for the axis of an argument that all runs share."""


def map_population(train: Callable, batch_size: int, in_axes: Any = 0) -> Callable:
    """`jax.vmap(train, in_axes)`, in equal blocks of at most `batch_size` runs, one block after another.

        train = functools.partial(reinforcement.train, learner=learner, task=task)
        states, metrics = jax.jit(map_population(train, 16, in_axes=(0, None)))(keys, config)

    The blocks are one loop around one program, so compilation does not grow with their number. Where they do not
    divide the population, the last run is done again to fill its block: fewer times than there are blocks.

    Args:
      train: a pure function; of a whole run, so that a block stays in the cache from its first update to its last.
      batch_size: the most runs at a time; static.
      in_axes: as of `jax.vmap`: which axis of each argument (or of each of its leaves) counts the runs; None: shared.
    Returns:
      A function of the arguments of `train`, whose results have the runs as first axis.
    Raises:
      ValueError: if `batch_size` is below 1; the function, as `jax.vmap` does.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: a block needs at least one run")
    together = jax.vmap(train, in_axes)

    def run(*arguments: Any) -> Any:
        axes = in_axes if isinstance(in_axes, tuple | list) else (in_axes,) * len(arguments)
        # None is no leaf, of the axes as of the arguments: shared ones get a sign that is.
        signs = jax.tree.map(lambda a: SHARED if a is None else a, tuple(axes), is_leaf=lambda a: a is None)
        axes = jax.tree.leaves(jax.tree.broadcast(signs, arguments))
        leaves, structure = jax.tree.flatten(arguments)
        runs = max((np.shape(x)[a] for x, a in zip(leaves, axes, strict=True) if a is not SHARED), default=0)
        if runs <= batch_size:
            return together(*arguments)
        jax.eval_shape(together, *arguments)  # refuses arguments that differ in their number of runs
        blocks = -(-runs // batch_size)
        members = jnp.minimum(jnp.arange(blocks * -(-runs // blocks)), runs - 1).reshape(blocks, -1)

        def block(members: jax.Array) -> Any:
            own = [
                x if a is SHARED else jnp.take(x, members, axis=a) for x, a in zip(leaves, axes, strict=True)
            ]
            return together(*structure.unflatten(own))

        results = jax.lax.map(block, members)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:runs], results)

    return run
