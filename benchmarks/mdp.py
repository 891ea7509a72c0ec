"""How fast are finite MDPs solved, beside QuantEcon and mdpsolver on the same arrays, to the same verified
error?

    taskset -c 0 python benchmarks/mdp.py dense sparse-0.99 sparse-0.999 bandwidth million bounds parts

Parts may run one by one: each replaces its own rows of the results. Each solver runs once untimed
(compilation), then all alternate. What every solver returns is checked by one sweep in SciPy, outside the
clock: the largest possible error of its values by MacQueen's bounds. Times are seconds of the solve call on
arrays that are already in each library's own form.
"""

import argparse
import functools
import itertools
import json
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from jaxrl4lm import mdp as M

jax.config.update("jax_enable_x64", True)
EPSILON = 1e-6


def problems(num_states: int, discount: float, only: str | None = None) -> dict[str, M.FiniteMDP]:
    """The four sparse worlds, or one. The grid has 3 % traps, slip 0.1, and one goal in a corner."""

    def grid() -> M.FiniteMDP:
        side = round(num_states**0.5)
        cells = np.where(np.random.default_rng(0).random((side, side)) < 0.03, "-1", ".")
        cells[0, -1], cells[-1, 0] = "+1", "S"
        text = "\n".join(map(" ".join, cells))
        return M.grid_world(text, discount=discount, slip=0.1, living_reward=-0.01).mdp

    makers = {
        "grid": grid,
        "queue": lambda: M.queue(num_states, discount=discount),
        "garnet": lambda: M.garnet(jax.random.key(0), num_states, 4, 5, discount=discount),
        "forest": lambda: M.forest(num_states, discount=discount),
    }
    return {name: make() for name, make in makers.items() if only in (None, name)}


def state_action_matrix(world: M.FiniteMDP) -> tuple[scipy.sparse.csr_matrix, np.ndarray]:
    """T `[S·A, S]` and r `[S, A]` for libraries without terminal states: those become absorbing."""
    kernel = M.as_sparse(world).transitions
    num_actions, width, num_states = kernel.probabilities.shape
    rows = (num_states * num_actions, width)
    data = np.moveaxis(np.asarray(kernel.probabilities), -1, 0).reshape(rows)
    columns = np.moveaxis(np.asarray(kernel.successors), -1, 0).reshape(rows)
    starts = np.arange(0, data.size + 1, width)
    matrix = scipy.sparse.csr_matrix((data.ravel(), columns.ravel(), starts), shape=(rows[0], num_states))
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    rewards, ends = np.asarray(world.rewards).copy(), np.flatnonzero(np.asarray(world.terminal))
    if len(ends):
        pairs = (ends[:, None] * num_actions + np.arange(num_actions)).ravel()
        loops = (np.ones(len(pairs)), (pairs, np.repeat(ends, num_actions)))
        matrix = (matrix + scipy.sparse.csr_matrix(loops, shape=matrix.shape)).tocsr()
        rewards[ends] *= 1 - float(world.discount)
    return matrix, rewards


def verified_error(matrix, rewards: np.ndarray, discount: float, values: np.ndarray) -> float:
    """The largest possible max |values − V*|: MacQueen's interval after one sweep, from the values given."""
    swept = (rewards + discount * (matrix @ values).reshape(rewards.shape)).max(axis=1)
    change = swept - values
    return float(max(-change.min(), change.max()) / (1 - discount))


def quantecon_solver(matrix, rewards, discount: float, method: str) -> Callable[[], np.ndarray]:
    """QuantEcon's solve in its state-action-pair form (sparse) or product form (dense)."""
    from quantecon.markov import DiscreteDP

    num_states, num_actions = rewards.shape
    if scipy.sparse.issparse(matrix):
        states, actions = np.divmod(np.arange(num_states * num_actions), num_actions)
        problem = DiscreteDP(rewards.ravel(), matrix, discount, states, actions)
    else:
        problem = DiscreteDP(rewards, matrix.reshape(num_states, num_actions, num_states), discount)
    return lambda: problem.solve(method=method, epsilon=EPSILON, max_iter=10**6).v


def mdpsolver_solver(matrix, rewards, discount: float, update: str) -> Callable[[], np.ndarray]:
    """mdpsolver's modified policy iteration, on one thread."""
    import mdpsolver

    model = mdpsolver.model()
    num_states, num_actions = rewards.shape
    sparse = scipy.sparse.csr_matrix(matrix)
    cut = sparse.indptr
    probabilities = [sparse.data[a:b].tolist() for a, b in itertools.pairwise(cut)]
    columns = [sparse.indices[a:b].tolist() for a, b in itertools.pairwise(cut)]
    by_state = [slice(s * num_actions, (s + 1) * num_actions) for s in range(num_states)]
    model.mdp(
        discount=discount,
        rewards=rewards.tolist(),
        tranMatProbs=[probabilities[s] for s in by_state],
        tranMatColumns=[columns[s] for s in by_state],
    )
    options = {"algorithm": "mpi", "tolerance": EPSILON, "update": update, "parallel": False}

    def solve() -> np.ndarray:
        model.solve(**options, initValueVector=[0.0] * num_states, makeFinalCheck=False)
        return np.asarray(model.getValueVector())

    return solve


def our_solver(world: M.FiniteMDP) -> Callable[[], np.ndarray]:
    """Modified policy iteration with its defaults."""
    solve = jax.jit(functools.partial(M.modified_policy_iteration, tolerance=EPSILON))
    return lambda: np.asarray(jax.block_until_ready(solve(world)).values)


def alternate(solvers: dict[str, Callable[[], np.ndarray]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, in alternation; each has been called before."""
    times: dict[str, list[float]] = {name: [] for name in solvers}
    for _ in range(rounds):
        for name, solve in solvers.items():
            start = time.perf_counter()
            solve()
            times[name].append(time.perf_counter() - start)
    return times


def compare(name: str, world: M.FiniteMDP, matrix, rewards: np.ndarray, peers, rounds: int) -> dict:
    """One row of the table."""
    discount = float(world.discount)
    solvers = {"jaxrl4lm": our_solver(world), **peers}
    exact = np.asarray(jax.jit(functools.partial(M.modified_policy_iteration, tolerance=1e-10))(world).values)
    slack = verified_error(matrix, rewards, discount, exact)
    errors, first = {}, {}
    for who, solve in solvers.items():
        start = time.perf_counter()
        errors[who] = float(np.abs(solve() - exact).max()) + slack
        first[who] = time.perf_counter() - start
    # A peer that takes longer than this is timed by its first call alone.
    slow = {who: [first[who]] * rounds for who in peers if first[who] > 15}
    times = alternate({who: solve for who, solve in solvers.items() if who not in slow}, rounds) | slow
    ours = times["jaxrl4lm"]
    row = {
        "problem": name,
        "discount": discount,
        "states": world.num_states,
        "seconds": times,
        "errors": errors,
    }
    row["ratios"] = {
        who: summary([peer / own for peer, own in zip(times[who], ours, strict=True)]) for who in peers
    }
    print(
        f"{name} γ={discount}: {1e3 * statistics.median(ours):.0f} ms, error ≤ {errors['jaxrl4lm']:.1e}",
        flush=True,
    )
    for who, ratio in row["ratios"].items():
        print(
            f"   {who} {1e3 * statistics.median(times[who]):.0f} ms (error ≤ {errors[who]:.1e}): "
            f"ratio {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})",
            flush=True,
        )
    return row


def summary(ratios: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def dense(rounds: int) -> list[dict]:
    """S = 1000, A = 10, every successor possible."""
    rng = np.random.default_rng(0)
    kernel, rewards = rng.random((1000, 10, 1000)), rng.random((1000, 10))
    kernel /= kernel.sum(axis=-1, keepdims=True)
    matrix = kernel.reshape(10_000, 1000)
    rows = []
    for discount in (0.95, 0.99):
        peers = {
            "quantecon mpi": quantecon_solver(kernel, rewards, discount, "mpi"),
            "quantecon pi": quantecon_solver(kernel, rewards, discount, "pi"),
            "mdpsolver": mdpsolver_solver(matrix, rewards, discount, "standard"),
        }
        rows.append(
            compare("dense", M.from_arrays(kernel, rewards, discount), matrix, rewards, peers, rounds)
        )
    return rows


def sparse(rounds: int, discount: float) -> list[dict]:
    """S = 10⁵."""
    rows = []
    for name, world in problems(100_000, discount).items():
        matrix, rewards = state_action_matrix(world)
        peers = {"quantecon": quantecon_solver(matrix, rewards, discount, "mpi")}
        # Near γ = 1 mdpsolver takes many minutes on the grid and the queue.
        if discount < 0.995 or name not in ("grid", "queue"):
            peers["mdpsolver"] = mdpsolver_solver(matrix, rewards, discount, "standard")
        rows.append(compare(name, world, matrix, rewards, peers, rounds))
    for who in ("quantecon", "mdpsolver"):
        medians = [row["ratios"][who]["median"] for row in rows if who in row["ratios"]]
        mean = statistics.geometric_mean(medians)
        print(f"geometric mean of {len(medians)} against {who} at γ={discount}: {mean:.2f}")
    return rows


def bandwidth(rounds: int) -> list[dict]:
    """Share of the memory bandwidth that an evaluation sweep over shifted diagonals reaches."""
    rows = []
    for num_states in (100_000, 1_000_000):
        world = problems(num_states, 0.99)["grid"]
        chain = jax.jit(M.policy_chain)(world, jnp.zeros(world.num_states, jnp.int32))
        values = jnp.zeros(world.num_states)
        sweep = jax.jit(lambda c, v: jax.lax.fori_loop(0, 50, lambda _, x: M.backup(c, x), v))
        moved = 50 * 8 * world.num_states * (chain.transitions.shape[2] + 3)  # T, r, v in, v out
        arrays = [jnp.ones(5 * world.num_states) for _ in range(3)]
        triad = jax.jit(lambda a, b, c: jax.lax.fori_loop(0, 20, lambda _, x: b + 0.5 * c, a))
        triad_moved = 20 * 8 * 5 * world.num_states * 3
        solvers = {
            "sweep": lambda s=sweep, c=chain, v=values: np.asarray(s(c, v)),
            "triad": lambda t=triad, a=arrays: np.asarray(t(*a)),
        }
        for call in solvers.values():
            call()
        times = alternate(solvers, rounds)
        speed = {"sweep": moved / min(times["sweep"]) / 1e9, "triad": triad_moved / min(times["triad"]) / 1e9}
        print(f"S={num_states}: GB/s {speed}, share {speed['sweep'] / speed['triad']:.2f}", flush=True)
        rows.append({"problem": "bandwidth", "states": num_states, "GB/s": speed})
    return rows


def parts(rounds: int) -> list[dict]:
    """What parts of modified policy iteration are worth, S = 10⁵: seconds without one over seconds with it.

    Policies are solved directly on birth-death chains, queue and forest, and by BiCGStab elsewhere; lists of successors
    (`as_sparse`) have no diagonals, so BiCGStab solves all of them.
    """
    rows = []
    for discount, (name, world) in itertools.product((0.99, 0.999), problems(100_000, 0.99).items()):
        world = world._replace(discount=jnp.asarray(discount))
        solve = functools.partial(M.modified_policy_iteration, tolerance=EPSILON)
        sweeps_alone = functools.partial(solve, krylov=0)
        calls = {
            "whole": (solve, world),
            "sweeps alone": (sweeps_alone, world),
            "lists": (solve, M.as_sparse(world)),
            "lists, sweeps alone": (sweeps_alone, M.as_sparse(world)),
        }
        compared = {
            "solved policies": ("sweeps alone", "whole"),
            "solved policies, lists": ("lists, sweeps alone", "lists"),
            "diagonals": ("lists", "whole"),
        }
        if discount == 0.99:  # minutes beyond
            calls["value iteration"] = (functools.partial(M.value_iteration, tolerance=EPSILON), world)
            compared["all of it"] = ("value iteration", "whole")
        calls = {what: (jax.jit(solver), where) for what, (solver, where) in calls.items()}
        solvers = {
            what: lambda c=call, w=where: np.asarray(c(w).values) for what, (call, where) in calls.items()
        }
        answers = {what: call() for what, call in solvers.items()}
        times = alternate(solvers, rounds)
        row = {"problem": name, "discount": discount, "states": world.num_states, "seconds": times}
        row["apart"] = max(float(np.abs(answer - answers["whole"]).max()) for answer in answers.values())
        row["ratios"] = {
            part: summary([a / b for a, b in zip(times[without], times[whole], strict=True)])
            for part, (without, whole) in compared.items()
        }
        medians = {part: round(ratio["median"], 2) for part, ratio in row["ratios"].items()}
        print(f"{name} γ={discount}: without it {medians} times as long", flush=True)
        rows.append(row)
    return rows


def million(rounds: int) -> list[dict]:
    """S = 10⁶, each in a process of its own: time, bound and peak memory."""
    rows = []
    for name in ("grid", "queue", "garnet", "forest"):
        for discount in (0.99, 0.999):
            command = [sys.executable, __file__, "one", "--world", name, "--discount", str(discount)]
            done = subprocess.run([*command, "--rounds", str(rounds)], capture_output=True, check=True)
            rows.append(json.loads(done.stdout))
            print(rows[-1], flush=True)
    return rows


def one(name: str, discount: float, rounds: int) -> dict:
    """One world of 10⁶ states."""
    world = problems(1_000_000, discount, name)[name]
    built = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    solve = jax.jit(functools.partial(M.modified_policy_iteration, tolerance=EPSILON))
    solution = jax.block_until_ready(solve(world))
    times = alternate({"jaxrl4lm": lambda: jax.block_until_ready(solve(world))}, rounds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "problem": name, "discount": discount, "states": world.num_states,
        "seconds": times["jaxrl4lm"], "iterations": int(solution.iterations),
        "error_bound": float(solution.error_bound), "converged": bool(solution.converged),
        "peak_GiB": peak, "peak_GiB_building": built,
    }  # fmt: skip


def bounds(rounds: int) -> list[dict]:
    """Stated bound and true error on 600 random worlds for each solver and precision."""
    del rounds  # nothing is timed
    solvers = (M.value_iteration, M.policy_iteration, M.modified_policy_iteration)
    rows = []
    for solver, precision in itertools.product(solvers, (np.float32, np.float64)):
        solve = jax.jit(solver)
        quotients, unreached = [], 0
        for seed in range(600):
            discount = (0.0, 0.5, 0.9, 0.99, 0.999)[seed % 5]
            tolerance = (1.0, 1e-3, 1e-6, 0.0)[seed // 5 % 4]
            kernel, rewards = random_arrays(seed)
            world = M.from_arrays(kernel.astype(precision), rewards.astype(precision), discount)
            world = world._replace(discount=world.discount.astype(precision))
            solution = solve(world, tolerance=tolerance)
            error = np.abs(np.asarray(solution.values, np.float64) - exact_values(world)).max()
            quotients.append(float(error) / float(solution.error_bound))
            unreached += not bool(solution.converged)
        row = {
            "solver": solver.__name__, "precision": np.dtype(precision).name, "worlds": len(quotients),
            "violations": sum(q > 1 for q in quotients), "tolerance_not_reached": unreached,
            "error_over_bound": {
                "median": statistics.median(quotients), "max": max(quotients),
                "p90": float(np.quantile(quotients, 0.9)),
            },
        }  # fmt: skip
        print(row, flush=True)
        rows.append(row)
    return rows


def random_arrays(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Twenty states, three actions; nearly deterministic rows to nearly uniform ones, rewards of any size."""
    rng = np.random.default_rng(seed)
    kernel = rng.dirichlet(np.full(20, rng.choice([0.01, 0.1, 1.0])) + 1e-3, (20, 3))
    return kernel, rng.normal(size=(20, 3)) * rng.choice([0.01, 1, 100])


def exact_values(world: M.FiniteMDP) -> np.ndarray:
    """V* by policy iteration in NumPy: float64, on the arrays as the solver sees them."""
    kernel, rewards = (np.asarray(x, np.float64) for x in (world.transitions.probabilities, world.rewards))
    discount, states = float(world.discount), np.arange(len(rewards))
    policy = np.zeros(len(rewards), int)
    while True:
        system = np.eye(len(rewards)) - discount * kernel[states, policy]
        values = np.linalg.solve(system, rewards[states, policy])
        q = rewards + discount * kernel @ values
        better = q.max(-1) > q[states, policy] + 1e-11 * np.abs(values).max()
        if not better.any():
            return values
        policy = np.where(better, q.argmax(-1), policy)


def main() -> None:
    """Runs the named parts and writes results/mdp.json."""
    known = {
        "dense": dense,
        "sparse-0.99": functools.partial(sparse, discount=0.99),
        "sparse-0.999": functools.partial(sparse, discount=0.999),
        "bandwidth": bandwidth,
        "million": million,
        "bounds": bounds,
        "parts": parts,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    # No default: Python 3.11 checks the list itself against the choices.
    parser.add_argument("parts", nargs="*", choices=[*known, "one"], help="all, if none is named")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--world", help="of `one`")
    parser.add_argument("--discount", type=float, help="of `one`")
    arguments = parser.parse_args()
    if arguments.parts == ["one"]:
        print(json.dumps(one(arguments.world, arguments.discount, arguments.rounds)))
        return
    path = pathlib.Path(__file__).parent / "results" / "mdp.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    import quantecon

    results["versions"] = {
        "jax": jax.__version__, "quantecon": quantecon.__version__, "python": platform.python_version(),
        "device": jax.devices()[0].device_kind, "epsilon": EPSILON,
    }  # fmt: skip
    for part in arguments.parts or known:
        results[part] = known[part](arguments.rounds)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
