"""Five worlds whose values are known, each of which proves one more part of an agent; and tables as networks."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxrl4lm import mdp as M
from jaxrl4lm.envs.finite_mdp import as_environment


def build(kernel, rewards, initial):
    """Two states and a terminal one, two actions; `kernel[s, a]` is the state that follows."""
    transitions = np.eye(3)[np.array([*kernel, [2, 2]])]
    return M.from_arrays(
        transitions,
        np.array([*rewards, [0, 0]], float),
        0.5,
        terminal=np.array([False, False, True]),
        initial=np.array([*initial, 0], float),
    )


END = [[2, 2], [2, 2]]
PROBES = {
    "constant value": build(END, [[1, 1], [1, 1]], [1, 0]),
    "the observation decides": build(END, [[1, 1], [-1, -1]], [0.5, 0.5]),
    "a second step pays": build([[1, 1], [2, 2]], [[0, 0], [1, 1]], [1, 0]),
    "the action decides": build(END, [[-1, 1], [-1, 1]], [1, 0]),
    "both decide": build(END, [[1, -1], [-1, 1]], [0.5, 0.5]),
}
"""World by name: critic; input of the critic; discounting; actor; both together."""


def all_probes():
    """(environment, params with a leading axis of probes): one program solves them all."""
    pairs = [as_environment(world, one_hot=True, max_steps=20) for world in PROBES.values()]
    return pairs[0][0], jax.tree.map(lambda *x: jnp.stack(x), *(params for _, params in pairs))


class Table(nn.Module):
    """One number for each state and output; observations are one-hot."""

    outputs: int
    start: float = 0.0

    @nn.compact
    def __call__(self, observations):
        shape = (observations.shape[-1], self.outputs)
        table = self.param("table", lambda key: jnp.full(shape, self.start))
        return observations @ table


def optimal_values():
    """V* of the two states of each probe, `[5, 2]`."""
    return np.stack([M.value_iteration(world, tolerance=1e-6).values[:2] for world in PROBES.values()])
