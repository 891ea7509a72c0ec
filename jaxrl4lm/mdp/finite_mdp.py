"""A finite Markov decision process as a pytree of arrays, and its checked constructors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxrl4lm.mdp.transitions import Dense, Kernel, Sparse, to_banded, to_dense, to_sparse
from jaxrl4lm.types import Array, InputError


class MDPError(InputError):
    """The arrays do not describe an MDP; the message names the first bad state and action."""


class FiniteMDP(NamedTuple):
    """(S, A, T, R, γ), and what an episode needs. Stack several with `jax.tree.map`, then `vmap` over them.

    A terminal state s has no successors (a row of zeros in T), so that V(s) = R(s, ·), the same for every action: its
    reward is its value. Terminal states worth nothing have R(s, ·) = 0.
    """

    transitions: Kernel
    rewards: Array
    """`[S, A]`: r(s, a), expected over s′; −inf for an action that the state does not have."""
    discount: Array
    """γ in [0, 1]; 1 needs terminal states, or a finite horizon."""
    terminal: Array
    """`[S]` bool."""
    initial: Array
    """`[S]`: the distribution of the first state."""
    horizon: Array | None = None
    """Length limit of an episode; None for no limit. Environments read it."""
    outcome_rewards: Array | None = None
    """r(s, a, s′), where it depends on s′, in the layout of the kernel's probabilities. Only sampling reads it."""

    @property
    def feasible(self) -> Array:
        """`[S, A]` bool: the actions that a state has."""
        return self.rewards > -jnp.inf

    @property
    def num_states(self) -> int:
        """S."""
        return self.rewards.shape[0]

    @property
    def num_actions(self) -> int:
        """A."""
        return self.rewards.shape[1]


def from_arrays(
    transitions: ArrayLike,
    rewards: ArrayLike,
    discount: ArrayLike,
    *,
    terminal: ArrayLike | None = None,
    initial: ArrayLike | None = None,
    horizon: int | None = None,
    feasible: ArrayLike | None = None,
) -> FiniteMDP:
    """An MDP from a dense kernel.

    At discount 1 a state that every action leaves where it is, for no reward, is an end: it becomes terminal.

    Args:
      transitions: `[S, A, S′]`, or A SciPy sparse matrices `[S, S′]`; row-stochastic, except at terminal states and
        infeasible actions, whose rows are ignored.
      rewards: `[S]`, `[S, A]` or `[S, A, S′]`; at a terminal state, its value; −inf where an action is infeasible.
      discount: γ in [0, 1]; 1 needs terminal states or a horizon.
      terminal: `[S]` bool; none by default.
      initial: `[S]` distribution of the first state; uniform over the non-terminal states by default.
      horizon: length limit of an episode.
      feasible: `[S, A]` bool: the actions that a state has; all by default.
    Raises:
      MDPError: naming the first bad state and action.
    """
    if isinstance(transitions, list | tuple) and all(
        hasattr(of_action, "tocoo") for of_action in transitions
    ):
        found = _list_successors([of_action.tocoo() for of_action in transitions])
        options = {"terminal": terminal, "initial": initial, "horizon": horizon, "feasible": feasible}
        if np.ndim(rewards) == 3:
            raise MDPError(
                "rewards has shape [S, A, S]: give expected rewards, [S, A], with sparse matrices."
            )
        return from_successors(*found, rewards, discount, **options)
    probabilities = _to_floats(transitions, "transitions")
    if probabilities.ndim != 3 or probabilities.shape[0] != probabilities.shape[2] or not probabilities.size:
        raise MDPError(f"transitions has shape {probabilities.shape}: give [S, A, S].")
    num_states = probabilities.shape[0]
    ends = _to_terminal_mask(terminal, num_states)
    successors = np.arange(num_states)
    probabilities, expected, outcome, ends = _clean(
        probabilities, rewards, feasible, ends, successors, discount
    )
    return FiniteMDP(
        Dense(jnp.asarray(probabilities)),
        jnp.asarray(expected),
        _to_discount(discount, ends, expected.dtype, horizon),
        jnp.asarray(ends),
        _to_initial(initial, ends, expected.dtype),
        _to_horizon(horizon),
        None if outcome is None else jnp.asarray(outcome),
    )


def from_successors(
    successors: ArrayLike,
    probabilities: ArrayLike,
    rewards: ArrayLike,
    discount: ArrayLike,
    *,
    terminal: ArrayLike | None = None,
    initial: ArrayLike | None = None,
    horizon: int | None = None,
    feasible: ArrayLike | None = None,
) -> FiniteMDP:
    """An MDP from lists of successors. If they lie on few diagonals its kernel is `Banded`.

    Args:
      successors: `[S, A, K]` integers in [0, S).
      probabilities: `[S, A, K]`; 0 in unused places, ignored at terminal states.
      rewards: `[S]`, `[S, A]` or `[S, A, K]`.
      discount, terminal, initial, horizon, feasible: as in `from_arrays`.
    Raises:
      MDPError: naming the first bad state and action.
    """
    chances, states = _to_floats(probabilities, "probabilities"), np.asarray(successors)
    if chances.ndim != 3 or chances.shape != states.shape or not chances.size:
        raise MDPError(
            f"successors has shape {states.shape} and probabilities {chances.shape}: give [S, A, K] twice."
        )
    if not np.issubdtype(states.dtype, np.integer):
        raise MDPError(f"successors has dtype {states.dtype}: give integers.")
    num_states = chances.shape[0]
    ends = _to_terminal_mask(terminal, num_states)
    wrong = (states < 0) | (states >= num_states)
    if wrong.any():
        s, a, k = np.argwhere(wrong)[0]
        raise MDPError(f"successors[{s}, {a}, {k}] is {states[s, a, k]}: give a state in [0, {num_states}).")
    chances, expected, outcome, ends = _clean(chances, rewards, feasible, ends, states, discount)
    kernel: Kernel = Sparse(_put_states_last(states.astype(np.int32)), _put_states_last(chances))
    return FiniteMDP(
        kernel if outcome is not None else to_banded(kernel),
        jnp.asarray(expected),
        _to_discount(discount, ends, expected.dtype, horizon),
        jnp.asarray(ends),
        _to_initial(initial, ends, expected.dtype),
        _to_horizon(horizon),
        None if outcome is None else _put_states_last(outcome),
    )


def as_dense(mdp: FiniteMDP) -> FiniteMDP:
    """The same MDP with a `Dense` kernel; rewards by outcome become expected ones."""
    return mdp._replace(transitions=to_dense(mdp.transitions), outcome_rewards=None)


def as_sparse(mdp: FiniteMDP) -> FiniteMDP:
    """The same MDP with a `Sparse` kernel; rewards by outcome become expected ones. Concrete arrays only."""
    return mdp._replace(transitions=to_sparse(mdp.transitions), outcome_rewards=None)


def _to_floats(values: ArrayLike, name: str) -> np.ndarray:
    """As NumPy, in the precision that JAX would give."""
    array = np.asarray(values)
    if not (np.issubdtype(array.dtype, np.integer) or jnp.issubdtype(array.dtype, np.floating)):
        raise MDPError(f"{name} has dtype {array.dtype}: give real numbers.")
    return array.astype(jax.dtypes.canonicalize_dtype(np.result_type(array.dtype, np.float32)), copy=False)


def _put_states_last(per_state: np.ndarray) -> Array:
    return jnp.asarray(np.ascontiguousarray(np.moveaxis(per_state, 0, -1)))


def _to_terminal_mask(terminal: ArrayLike | None, num_states: int) -> np.ndarray:
    ends = np.zeros(num_states, bool) if terminal is None else np.asarray(terminal)
    if ends.shape != (num_states,) or ends.dtype != bool:
        raise MDPError(
            f"terminal has shape {ends.shape} and dtype {ends.dtype}: give one bool for each of the {num_states} states."
        )
    return ends


def _list_successors(matrices: list) -> tuple[np.ndarray, np.ndarray]:
    """Successors and probabilities `[S, A, K]` of A matrices `[S, S]` in SciPy's COO form."""
    num_states = matrices[0].shape[0]
    for matrix in matrices:
        if matrix.shape != (num_states, num_states):
            raise MDPError(
                f"transitions hold a matrix of shape {matrix.shape}: give {(num_states,) * 2} each."
            )
    width = max(1, *(np.bincount(matrix.row, minlength=1).max() for matrix in matrices))
    states = np.zeros((num_states, len(matrices), width), np.int32)
    chances = np.zeros(states.shape, np.result_type(*(matrix.dtype for matrix in matrices)))
    for a, matrix in enumerate(matrices):
        order = np.argsort(matrix.row, kind="stable")
        row = matrix.row[order]
        place = (row, a, np.arange(len(row)) - np.searchsorted(row, row))
        states[place], chances[place] = matrix.col[order], matrix.data[order]
    return states, chances


def _clean(
    probabilities: np.ndarray,
    rewards: ArrayLike,
    feasible: ArrayLike | None,
    ends: np.ndarray,
    successors: np.ndarray,
    discount: ArrayLike,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
    """Checked probabilities `[S, A, K]`, expected rewards `[S, A]`, rewards by outcome, and terminal states `[S]`.

    Rows of terminal states and of infeasible actions are 0; expected rewards of the latter are −inf.
    """
    given, shape = _to_floats(rewards, "rewards"), probabilities.shape
    if given.shape not in (shape[:1], shape[:2], shape):
        raise MDPError(f"rewards has shape {given.shape}: give {shape[:1]}, {shape[:2]} or {shape}.")
    allowed = _find_feasible(given, probabilities, feasible, ends)
    gone = ends[:, None] | ~allowed
    probabilities = _normalise_rows(np.where(gone[..., None], 0, probabilities), gone)
    if not allowed.all():
        paid = given.reshape(len(ends), -1) if given.ndim < 3 else given
        given = np.where(allowed if given.ndim < 3 else allowed[..., None], paid, 0).astype(given.dtype)
    expected, outcome = _split_rewards(given, probabilities, ends)
    expected = np.where(allowed, expected, -np.inf).astype(expected.dtype)
    if np.ndim(discount) == 0 and discount == 1:
        moves = (probabilities != 0) & (successors != np.arange(len(ends))[:, None, None])
        ends = ends | (~moves.any(axis=(1, 2)) & (np.where(allowed, expected, 0) == 0).all(axis=1))
        probabilities = np.where(ends[:, None, None], 0, probabilities)
        # A terminal state is held at one value.
        expected = np.where(ends[:, None] & ~allowed, expected.max(axis=1, keepdims=True), expected)
    return probabilities, expected, outcome, ends


def _find_feasible(
    rewards: np.ndarray, probabilities: np.ndarray, feasible: ArrayLike | None, ends: np.ndarray
) -> np.ndarray:
    """The feasible actions `[S, A]`: those of the mask whose rewards are above −inf. Terminal states have all."""
    shape = probabilities.shape[:2]
    mask = np.ones(shape, bool) if feasible is None else np.asarray(feasible)
    if mask.shape != shape or mask.dtype != bool:
        raise MDPError(f"feasible has shape {mask.shape} and dtype {mask.dtype}: give {shape} bools.")
    if rewards.ndim == 3:
        mask = mask & ~((rewards == -np.inf) & (probabilities != 0)).any(axis=-1)
    else:
        mask = mask & (rewards.reshape(shape[0], -1) != -np.inf)
    mask = mask | ends[:, None]
    if not mask.any(axis=1).all():
        s = int(np.argmin(mask.any(axis=1)))
        raise MDPError(f"state {s} has no feasible action: give it one, or mark the state terminal.")
    return mask


def _normalise_rows(probabilities: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """Checks signs, finiteness and row sums (to 1e-5 in float32, 1e-9 in float64), and divides each row by its sum.

    Negative numbers within the same tolerance are roundings of 0. Rows `gone`, `[S, A]`, are 0.

    A row that sums to 1 + ε changes values by ε/(1 − γ)², and every error bound assumes rows that sum to 1.
    """
    tolerance = 1e-5 if probabilities.dtype == np.float32 else 1e-9
    bad = ~np.isfinite(probabilities) | (probabilities < -tolerance)
    if bad.any():
        s, a, k = np.argwhere(bad)[0]
        value = probabilities[s, a, k]
        raise MDPError(f"transitions of state {s}, action {a} hold {value}: give probabilities.")
    probabilities = np.maximum(probabilities, 0)
    sums = probabilities.sum(axis=-1)
    wrong = (np.abs(sums - 1) > tolerance) & ~gone
    if wrong.any():
        s, a = np.argwhere(wrong)[0]
        raise MDPError(
            f"transitions of state {s}, action {a} sum to {sums[s, a]:.9g}: give 1, or mark the state"
            " terminal."
        )
    exact = probabilities.astype(np.float64)
    sums = np.where(gone, 1, exact.sum(axis=-1))
    return (exact / sums[..., None]).astype(probabilities.dtype)


def _split_rewards(
    given: np.ndarray, probabilities: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Expected rewards `[S, A]`, and the rewards by outcome where they depend on it."""
    if not np.isfinite(given).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(given))[0])
        named = ", ".join(
            f"{name} {i}" for name, i in zip(("state", "action", "outcome"), where, strict=False)
        )
        raise MDPError(f"rewards of {named} is {given[where]}: give a finite number.")
    if given[ends].size and np.ptp(given[ends].reshape(ends.sum(), -1), axis=-1).any():
        s = np.flatnonzero(ends)[np.ptp(given[ends].reshape(ends.sum(), -1), axis=-1) != 0][0]
        raise MDPError(f"rewards of terminal state {s} differ: it takes no action and is held at one value.")
    if given.ndim == 1:
        return np.broadcast_to(given[:, None], probabilities.shape[:2]), None
    if given.ndim == 2:
        return given, None
    expected = np.where(ends[:, None], given[..., 0], (probabilities * given).sum(axis=-1))
    return expected.astype(given.dtype), given


def _to_discount(discount: ArrayLike, ends: np.ndarray, dtype: np.dtype, horizon: int | None) -> Array:
    gamma = np.asarray(discount)
    if gamma.ndim or gamma.dtype.kind not in "fiu" or not 0 <= gamma <= 1:
        raise MDPError(f"discount is {gamma}: give a number in [0, 1].")
    if gamma == 1 and not ends.any() and horizon is None:
        raise MDPError(
            "discount is 1 and no state is terminal: values are infinite, give terminal states or a horizon"
            " (relative_value_iteration, for the average reward, reads no discount: give any below 1)."
        )
    if gamma < 1 and gamma.astype(dtype) == 1:
        raise MDPError(
            f"discount is {gamma}, which is 1 in {dtype}: set jax_enable_x64, or give a smaller one."
        )
    return jnp.asarray(gamma, dtype)


def _to_horizon(horizon: int | None) -> Array | None:
    if horizon is None:
        return None
    if np.asarray(horizon).dtype.kind not in "iu" or np.ndim(horizon) or not 1 <= int(horizon) < 2**31:
        raise MDPError(f"horizon is {horizon}: give a whole number of steps from 1, or None for no limit.")
    return jnp.asarray(horizon, jnp.int32)


def _to_initial(initial: ArrayLike | None, ends: np.ndarray, dtype: np.dtype) -> Array:
    if initial is None:
        free = ~ends if not ends.all() else np.ones_like(ends)
        return jnp.asarray(free / free.sum(), dtype)
    start = _to_floats(initial, "initial")
    if start.shape != ends.shape or (start < 0).any() or not np.isclose(start.sum(), 1, atol=1e-5):
        raise MDPError(
            f"initial has shape {start.shape} and sum {start.sum():.6g}: give a distribution over states."
        )
    return jnp.asarray(start, dtype)
