"""Transition kernels T(s′|s,a): one linear map, v ↦ E[v(s′) | s, a], in three layouts.

- `Dense` suits small or full kernels.
- `Sparse` lists K successors per state and action.
- `Banded` is for successors at a few fixed distances s′ − s (grids, queues), and possibly one state that may follow any
  other (a forest after a fire). Its sweep is shifted adds, without a gather.

The last two keep the states on the last axis, so that a sweep reads memory contiguously (measured: 3 times faster on a
CPU than `[S, A, K]`). A row of zeros ends the episode: that is what makes a state terminal.
"""

import dataclasses
import functools
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.types import Array

MAX_UNROLLED = 128
"""Up to this many terms A·K a sweep is written out, which XLA fuses into one pass; beyond, it is an einsum."""


class Dense(NamedTuple):
    """T as one array."""

    probabilities: Array
    """`[S, A, S′]`; rows sum to 1, or are 0 at terminal states."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(S, A, successors per state and action)."""
        num_states, num_actions, width = self.probabilities.shape
        return num_states, num_actions, width

    def expect(self, values: Array) -> Array:
        """E[v(s′) | s, a]: `[S′]` → `[S, A]`."""
        return self.probabilities @ values

    def expect_by_action(self, values: Array) -> Array:
        """E[v(s′) | s, a]: `[S′]` → `[A, S]`."""
        return self.expect(values).T

    def under(self, policy: Array) -> "Dense":
        """The chain of a policy, as a kernel with one action. `policy`: `[S]` actions or `[S, A]`."""
        if policy.ndim == 1:
            return Dense(jnp.take_along_axis(self.probabilities, policy[:, None, None], axis=1))
        return Dense(jnp.einsum("sat,sa->st", self.probabilities, policy)[:, None])


class Sparse(NamedTuple):
    """T as lists of successors."""

    successors: Array
    """`[A, K, S]` int32: the states that may follow."""
    probabilities: Array
    """`[A, K, S]`; 0 in unused places."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(S, A, successors per state and action)."""
        num_actions, width, num_states = self.probabilities.shape
        return num_states, num_actions, width

    def expect(self, values: Array) -> Array:
        """E[v(s′) | s, a]: `[S′]` → `[S, A]`."""
        return self.expect_by_action(values).T

    def expect_by_action(self, values: Array) -> Array:
        """E[v(s′) | s, a]: `[S′]` → `[A, S]`."""
        _, num_actions, width = self.shape
        if num_actions * width > MAX_UNROLLED:
            return jnp.sum(self.probabilities * _gather(values, self.successors), axis=1)
        ahead = _stack_actions(
            [
                [self.probabilities[a, k] * _gather(values, self.successors[a, k]) for k in range(width)]
                for a in range(num_actions)
            ]
        )
        # Stored action by action: fused into a maximum over actions, its A·K streams of memory are read side
        # by side, which takes twice as long (measured).
        return jax.lax.optimization_barrier(ahead) if num_actions > 1 else ahead

    def under(self, policy: Array) -> "Sparse":
        """The chain of a policy, as a kernel with one action. `policy`: `[S]` actions or `[S, A]`."""
        if policy.ndim == 1:
            return Sparse(_choose(self.successors, policy), _choose(self.probabilities, policy))
        num_states, num_actions, width = self.shape
        shape = (1, num_actions * width, num_states)
        return Sparse(self.successors.reshape(shape), (self.probabilities * policy.T[:, None]).reshape(shape))


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["probabilities"], meta_fields=["offsets", "hub"]
)
@dataclasses.dataclass(frozen=True)
class Banded:
    """T on few diagonals, s′ = s + offset; with a hub, also in the hub's column."""

    probabilities: Array
    """`[A, D, S]`: probability of moving by the d-th offset. With a hub `[A, D + 1, S]`, the last of moving to the hub."""
    offsets: tuple[int, ...]
    """D distances s′ − s; static."""
    hub: int | None = None
    """The state that may follow any other; static."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(S, A, successors per state and action)."""
        num_actions, width, num_states = self.probabilities.shape
        return num_states, num_actions, width

    def expect(self, values: Array) -> Array:
        """E[v(s′) | s, a]: `[S′]` → `[S, A]`."""
        return self.expect_by_action(values).T

    def expect_by_action(self, values: Array) -> Array:
        """E[v(s′) | s, a]: `[S′]` → `[A, S]`."""
        num_states, num_actions, width = self.shape
        reach = max(abs(offset) for offset in self.offsets)
        padded = jnp.pad(values, reach)
        moved = [padded[reach + offset : reach + offset + num_states] for offset in self.offsets]
        if self.hub is not None:
            moved.append(jnp.broadcast_to(values[self.hub], values.shape))
        if num_actions * width > MAX_UNROLLED:
            return jnp.einsum("ads,ds->as", self.probabilities, jnp.stack(moved))
        return _stack_actions(
            [[self.probabilities[a, d] * moved[d] for d in range(width)] for a in range(num_actions)]
        )

    def under(self, policy: Array) -> "Banded":
        """The chain of a policy, as a kernel with one action. `policy`: `[S]` actions or `[S, A]`."""
        if policy.ndim == 1:
            return dataclasses.replace(self, probabilities=_choose(self.probabilities, policy))
        mixed = jnp.einsum("ads,sa->ds", self.probabilities, policy)[None]
        return dataclasses.replace(self, probabilities=mixed)

    def successors(self, states: Array) -> Array:
        """The successors of some states `[N]`, clipped to the S states: `[D, N]`, with a hub `[D + 1, N]`."""
        moved = states[None] + jnp.asarray(self.offsets, jnp.int32)[:, None]
        moved = jnp.clip(moved, 0, self.shape[0] - 1).astype(jnp.int32)
        if self.hub is None:
            return moved
        return jnp.concatenate([moved, jnp.full_like(moved[:1], self.hub)])


Kernel: TypeAlias = Dense | Sparse | Banded


def to_dense(kernel: Kernel) -> Dense:
    """Any kernel as `Dense`."""
    if isinstance(kernel, Dense):
        return kernel
    num_states, num_actions, _ = kernel.shape
    successors, probabilities = as_lists(kernel)
    states = jnp.arange(num_states)[None, None, :]
    actions = jnp.arange(num_actions)[:, None, None]
    zeros = jnp.zeros((num_states, num_actions, num_states), probabilities.dtype)
    return Dense(zeros.at[states, actions, successors].add(probabilities))


def to_sparse(kernel: Kernel) -> Sparse:
    """Any kernel as `Sparse`, as narrow as its fullest row. Concrete arrays only: K depends on them."""
    if isinstance(kernel, Dense):
        dense = np.asarray(kernel.probabilities)
        width = max(1, int(np.count_nonzero(dense, axis=-1).max()))
        successors = np.argsort(dense == 0, axis=-1, kind="stable")[..., :width]
        probabilities = np.take_along_axis(dense, successors, axis=-1)
        return Sparse(_put_states_last(successors.astype(np.int32)), _put_states_last(probabilities))
    return Sparse(*as_lists(kernel))


def to_banded(kernel: Kernel, max_diagonals: int = 9) -> Kernel:
    """The kernel as `Banded` if its successors lie on at most `max_diagonals` diagonals, else as it is.

    A hub is used where one state follows at least S times and the rest lies on at most three diagonals. Concrete
    arrays only: the diagonals in use decide the program.
    """
    if not isinstance(kernel, Sparse):
        return kernel
    num_states = kernel.shape[0]
    successors, probabilities = np.asarray(kernel.successors), np.asarray(kernel.probabilities)
    distance = successors - np.arange(num_states)

    def find_diagonals(used: np.ndarray) -> np.ndarray:
        return np.flatnonzero(np.bincount(distance[used] + num_states, minlength=1)) - num_states

    used, hub, rest = probabilities != 0, None, probabilities
    offsets = find_diagonals(used)
    if len(offsets) > max_diagonals:
        follows = np.bincount(successors[used])
        hub = int(follows.argmax())
        to_hub = successors == hub
        offsets = find_diagonals(used & ~to_hub)
        if follows[hub] < num_states or len(offsets) > 3:
            return kernel
        probabilities, rest = np.where(to_hub, 0, probabilities), np.where(to_hub, probabilities, 0)
    if not len(offsets):
        return kernel
    bands = [np.where(distance == offset, probabilities, 0).sum(axis=1) for offset in offsets]
    if hub is not None:
        bands.append(rest.sum(axis=1))
    return Banded(jnp.asarray(np.stack(bands, axis=1)), tuple(int(offset) for offset in offsets), hub)


def as_lists(kernel: Sparse | Banded) -> tuple[Array, Array]:
    """Successors and probabilities, `[A, K, S]` each."""
    if isinstance(kernel, Sparse):
        return kernel.successors, kernel.probabilities
    successors = kernel.successors(jnp.arange(kernel.shape[0], dtype=jnp.int32))
    return jnp.broadcast_to(successors, kernel.probabilities.shape), kernel.probabilities


def _gather(values: Array, states: Array) -> Array:
    """values[states] without bounds checks: the constructors have checked (measured: 8 times faster)."""
    return values.at[states].get(mode="promise_in_bounds")


def _stack_actions(terms: list[list[Array]]) -> Array:
    """[A][K] summands of shape `[S]` → `[A, S]`."""
    return jnp.stack([functools.reduce(jnp.add, of_action) for of_action in terms])


def _choose(per_action: Array, policy: Array) -> Array:
    """`[A, K, S]` at a = policy[s] → `[1, K, S]`; by a chain of selects, which vectorises (a gather does not)."""
    chosen, policy = per_action[:1], policy[None, None]
    if per_action.shape[0] > MAX_UNROLLED:
        return jnp.take_along_axis(per_action, policy, axis=0)
    for action in range(1, per_action.shape[0]):
        chosen = jnp.where(policy == action, per_action[action : action + 1], chosen)
    return chosen


def _put_states_last(per_state: np.ndarray) -> Array:
    """`[S, A, K]` → `[A, K, S]`."""
    return jnp.asarray(np.ascontiguousarray(np.moveaxis(per_state, 0, -1)))
