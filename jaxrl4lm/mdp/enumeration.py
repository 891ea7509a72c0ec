"""A finite MDP from any small environment with discrete states, by visiting every state and action."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.mdp.finite_mdp import FiniteMDP, MDPError, from_successors

TRIES = 128
"""How many draws (and times) must agree before one of them stands for all."""
BLOCK = 64
"""States expanded at once: one compiled shape, the last block is padded."""


def from_environment(
    environment: Any,
    params: Any,
    *,
    discount: float,
    samples: int = 1,
    max_states: int = 10_000,
    clock: bool = False,
    key: jax.Array | None = None,
) -> FiniteMDP:
    """A finite MDP from a gymnax-1.0 environment, by breadth-first search through `reset_env` and `step_env`.

    Exact (with `samples` = 1) where transitions are deterministic; otherwise probabilities are frequencies
    over `samples` draws, with a standard error of √(p(1−p)/samples). State leaves called `time` are set to 0, and a time
    limit is no end; but with `clock` the time is a part of the state, and the limit (`is_truncated`) is an end. All ends
    lead to one terminal state, the last, worth 0. States are numbered as they are met. Observations are not used.

    Args:
      environment: has `reset_env(key, params)`, `step_env(key, state, action, params)` and `num_actions`.
      params: the environment's parameters.
      discount: γ of the MDP.
      samples: draws per state and action, and (at least 256) of the first state.
      max_states: raise an error beyond so many states.
      clock: whether the time decides what happens; then it is a part of the state.
      key: for the draws; `jax.random.key(0)` by default.
    Raises:
      MDPError: if more than `max_states` states are met; if `samples` is 1 and chance decides what follows; if the
        time decides it and `clock` is False. The last two are tested on the first states only.
    """
    if samples < 1:
        raise MDPError(f"samples is {samples}: give at least 1.")
    key = jax.random.key(0) if key is None else key
    key_reset, key_step = jax.random.split(key)
    starts = jax.vmap(lambda k: _set_time(environment.reset_env(k, params)[1], None if clock else 0))(
        jax.random.split(key_reset, max(samples, 256))
    )
    treedef = jax.tree.structure(starts)
    expand = _make_expansion(environment, params, samples, clock)
    found = _Numbering()
    first = [found.number(row) for row in _split_rows(starts)]
    outcomes: list[list[dict[int, list[float]]]] = []  # [S][A]: successor (−1: the end) → rewards met
    while len(outcomes) < len(found.states):
        if len(found.states) > max_states:
            raise MDPError(
                f"more than max_states = {max_states} states: raise it, or the states are not discrete."
            )
        todo = found.states[len(outcomes) : len(outcomes) + BLOCK]
        padded = todo + [todo[0]] * (BLOCK - len(todo))
        stacked = jax.tree.unflatten(treedef, [np.stack(leaf) for leaf in zip(*padded, strict=True)])
        if not outcomes:
            _check(environment, params, stacked, samples, clock, key_step)
        new, reward, ended = expand(stacked, jax.random.fold_in(key_step, len(outcomes)))
        rows, reward, ended = _split_rows(new), np.asarray(reward), np.asarray(ended)
        if not np.isfinite(reward).all():
            s, a, i = np.argwhere(~np.isfinite(reward))[0]
            raise MDPError(
                f"action {a} pays {reward[s, a, i]} in state {len(outcomes) + s}: mend the environment."
            )
        for s in range(len(todo)):
            outcomes.append([{} for _ in range(environment.num_actions)])
            for a, i in np.ndindex(environment.num_actions, samples):
                place = np.ravel_multi_index((s, a, i), ended.shape)
                after = -1 if ended[s, a, i] else found.number(rows[place])
                outcomes[-1][a].setdefault(after, []).append(float(reward[s, a, i]))
    return _tabulate(outcomes, first, samples, discount)


class _Numbering:
    """Numbers states in the order in which they are met. States are equal if their bytes are."""

    def __init__(self) -> None:
        self.states: list[list[np.ndarray]] = []
        self._numbers: dict[bytes, int] = {}

    def number(self, leaves: list[np.ndarray]) -> int:
        """The number of a state; a state not seen before gets the next number."""
        name = b"".join(leaf.tobytes() for leaf in leaves)
        if name not in self._numbers:
            self._numbers[name] = len(self.states)
            self.states.append(leaves)
        return self._numbers[name]


def _make_expansion(environment: Any, params: Any, samples: int, clock: bool) -> Any:
    """(`BLOCK` states, key) → what follows: states `[BLOCK · A · samples]`, rewards and ends `[BLOCK, A, samples]`."""
    actions = jnp.arange(environment.num_actions, dtype=jnp.int32)

    def step(state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        _, new, reward, terminated, _ = environment.step_env(key, state, action, params)
        if clock and hasattr(environment, "is_truncated"):
            terminated |= environment.is_truncated(new, params)
        return _set_time(new, None if clock else 0), jnp.asarray(reward, float), terminated

    @jax.jit
    def expand(states: Any, key: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        keys = jax.random.split(key, (len(actions), samples))
        over_draws = jax.vmap(step, in_axes=(None, None, 0))
        over_actions = jax.vmap(over_draws, in_axes=(None, 0, 0))
        new, reward, ended = jax.vmap(over_actions, in_axes=(0, None, None))(states, actions, keys)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), new), reward, ended

    return expand


def _check(environment: Any, params: Any, states: Any, samples: int, clock: bool, key: jax.Array) -> None:
    """Raises if one draw, or one time, cannot stand for all: other draws and times must give the same outcome."""
    actions = jnp.arange(environment.num_actions, dtype=jnp.int32)

    @jax.jit
    def try_actions(times: jax.Array, keys: jax.Array) -> Any:
        """What every action leads to, for each time and key; the time has no effect where it is a part of the state."""

        def step(time: jax.Array, key: jax.Array, state: Any, action: jax.Array) -> Any:
            at = state if clock else _set_time(state, time)
            _, new, reward, terminated, _ = environment.step_env(key, at, action, params)
            # What follows an end is of no interest: one environment begins anew there, another does not.
            new = jax.tree.map(lambda x: jnp.where(terminated, jnp.zeros_like(x), x), _set_time(new, 0))
            return new, reward, terminated

        over_actions = jax.vmap(step, in_axes=(None, None, None, 0))
        over_states = jax.vmap(over_actions, in_axes=(None, None, 0, None))
        return jax.vmap(over_states, in_axes=(0, 0, None, None))(times, keys, states, actions)

    def differ(found: Any) -> bool:
        leaves = map(np.asarray, jax.tree.leaves(found))
        return any(bool(((x != x[:1]) & ((x == x) | (x[:1] == x[:1]))).any()) for x in leaves)  # nan is nan

    keys, zeros = jax.random.split(key, TRIES), jnp.zeros((TRIES,), jnp.int32)
    if samples == 1 and differ(try_actions(zeros, keys)):
        raise MDPError(
            "chance decides what follows, and samples is 1: give the number of draws, such as 1000."
        )
    if not clock and differ(try_actions(jnp.arange(TRIES, dtype=jnp.int32), keys[zeros])):
        raise MDPError("the time decides what follows: give clock=True, which makes it a part of the state.")


def _tabulate(
    outcomes: list[list[dict[int, list[float]]]], first: list[int], samples: int, discount: float
) -> FiniteMDP:
    num_states, num_actions = len(outcomes) + 1, len(outcomes[0])
    width = max(len(successors) for row in outcomes for successors in row)
    states = np.zeros((num_states, num_actions, width), np.int32)
    chances, rewards = np.zeros(states.shape), np.zeros(states.shape)
    for s, row in enumerate(outcomes):
        for a, successors in enumerate(row):
            for k, (after, met) in enumerate(successors.items()):
                states[s, a, k] = after % num_states  # −1 is the last: the terminal state
                chances[s, a, k] = len(met) / samples
                rewards[s, a, k] = np.mean(met)
    initial = np.bincount(first, minlength=num_states) / len(first)
    return from_successors(
        states, chances, rewards, discount, terminal=np.arange(num_states) == num_states - 1, initial=initial
    )


def _set_time(state: Any, time: jax.Array | int | None) -> Any:
    """The state with its leaves called `time` set; None leaves them."""

    def put(path: Any, leaf: Any) -> jax.Array:
        named = getattr(path[-1], "name", getattr(path[-1], "key", None)) if path else None
        leaf = jnp.asarray(leaf)
        return leaf if time is None or named != "time" else jnp.full_like(leaf, time)

    return jax.tree_util.tree_map_with_path(put, state)


def _split_rows(stacked: Any) -> list[list[np.ndarray]]:
    """A pytree with a leading axis → its leaves, row by row."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(stacked)]
    return [list(row) for row in zip(*leaves, strict=True)]
