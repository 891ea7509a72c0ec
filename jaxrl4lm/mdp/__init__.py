"""Finite Markov decision processes, solved exactly and fast, with stated error bounds."""

from jaxrl4lm.mdp.average import AverageSolution, relative_value_iteration
from jaxrl4lm.mdp.batch import solve_batch
from jaxrl4lm.mdp.bounds import span, supremum
from jaxrl4lm.mdp.enumeration import from_environment
from jaxrl4lm.mdp.exact import (
    objective,
    policy_action_values,
    policy_gradient,
    policy_matrix,
    policy_values,
    visitation,
)
from jaxrl4lm.mdp.finite_mdp import FiniteMDP, MDPError, as_dense, as_sparse, from_arrays, from_successors
from jaxrl4lm.mdp.modified import modified_policy_iteration
from jaxrl4lm.mdp.operators import (
    action_backup,
    action_values,
    backup,
    greedy,
    policy_backup,
    policy_chain,
    soft_backup,
)
from jaxrl4lm.mdp.solvers import (
    Plan,
    Solution,
    action_value_iteration,
    backward_induction,
    evaluate_policy,
    policy_iteration,
    soft_value_iteration,
    value_iteration,
)
from jaxrl4lm.mdp.transitions import Banded, Dense, Sparse
from jaxrl4lm.mdp.worlds import (
    ARROWS,
    GridWorld,
    MapError,
    chain,
    cliff,
    forest,
    garnet,
    grid_world,
    lecture,
    queue,
    russell_norvig,
)

__all__ = [
    "ARROWS",
    "AverageSolution",
    "Banded",
    "Dense",
    "FiniteMDP",
    "GridWorld",
    "MDPError",
    "MapError",
    "Plan",
    "Solution",
    "Sparse",
    "action_backup",
    "action_value_iteration",
    "action_values",
    "as_dense",
    "as_sparse",
    "backup",
    "backward_induction",
    "chain",
    "cliff",
    "evaluate_policy",
    "forest",
    "from_arrays",
    "from_environment",
    "from_successors",
    "garnet",
    "greedy",
    "grid_world",
    "lecture",
    "modified_policy_iteration",
    "objective",
    "policy_action_values",
    "policy_backup",
    "policy_chain",
    "policy_gradient",
    "policy_iteration",
    "policy_matrix",
    "policy_values",
    "queue",
    "relative_value_iteration",
    "russell_norvig",
    "soft_backup",
    "soft_value_iteration",
    "solve_batch",
    "span",
    "supremum",
    "value_iteration",
    "visitation",
]
