"""How fast are finite MDPs solved, beside QuantEcon and mdpsolver on the same arrays, to the same verified
error?

    taskset -c 0 python benchmarks/mdp.py dense sparse batch bandwidth million

Each solver runs once untimed (compilation), then all alternate. What every solver returns is checked by one
sweep in
SciPy, outside the clock: the largest possible error of its values by MacQueen's bounds. Times are seconds
of the solve call on arrays that are already in each library's own form.
"""

import argparse
import functools
import itertools
import json
import pathlib
import platform
import resource
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from jaxrl4lm import mdp as M

jax.config.update("jax_enable_x64", True)
EPSILON = 1e-6


def problems(num_states: int, discount: float) -> dict[str, M.FiniteMDP]:
    """The four sparse worlds. The grid has 3 % traps, slip 0.1, and one goal in a corner."""
    side = round(num_states**0.5)
    cells = np.where(np.random.default_rng(0).random((side, side)) < 0.03, "-1", ".")
    cells[0, -1], cells[-1, 0] = "+1", "S"
    grid = M.grid_world("\n".join(map(" ".join, cells)), discount=discount, slip=0.1, living_reward=-0.01)
    return {
        "grid": grid.mdp,
        "queue": M.queue(num_states, discount=discount),
        "garnet": M.garnet(jax.random.key(0), num_states, 4, 5, discount=discount),
        "forest": M.forest(num_states, discount=discount),
    }


def state_action_matrix(world: M.FiniteMDP) -> tuple[scipy.sparse.csr_matrix, np.ndarray]:
    """T `[S·A, S]` and r `[S, A]` for libraries without terminal states: those become absorbing."""
    kernel = M.sparse(world).transitions
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
    """Modified policy iteration with its defaults; value iteration on dense kernels, which mix at once."""
    dense_kernel = isinstance(world.transitions, M.Dense)
    solver = M.value_iteration if dense_kernel else M.modified_policy_iteration
    solve = jax.jit(functools.partial(solver, tolerance=EPSILON))
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


def sparse(rounds: int) -> list[dict]:
    """S = 10⁵."""
    rows = []
    for discount in (0.99, 0.999):
        for name, world in problems(100_000, discount).items():
            matrix, rewards = state_action_matrix(world)
            peers = {"quantecon": quantecon_solver(matrix, rewards, discount, "mpi")}
            if discount < 0.995:  # beyond, it takes many minutes on the grid and the queue
                peers["mdpsolver"] = mdpsolver_solver(matrix, rewards, discount, "standard")
            rows.append(compare(name, world, matrix, rewards, peers, rounds))
        for who in ("quantecon", "mdpsolver"):
            measured = [row["ratios"] for row in rows if row["discount"] == discount]
            ratios = [row[who]["median"] for row in measured if who in row]
            if ratios:
                print(
                    f"geometric mean against {who} at γ={discount}: {statistics.geometric_mean(ratios):.2f}"
                )
    return rows


def batch(rounds: int) -> list[dict]:
    """4,096 random MDPs of 16, 32, 48 and 64 states as four vmapped solves, beside a loop over QuantEcon."""
    from quantecon.markov import DiscreteDP

    rng, discount, groups, peers = np.random.default_rng(0), 0.95, [], []
    for num_states in (16, 32, 48, 64):
        kernel = rng.random((1024, num_states, 4, num_states))
        kernel /= kernel.sum(axis=-1, keepdims=True)
        rewards = rng.random((1024, num_states, 4))
        worlds = [M.from_arrays(*arrays, discount) for arrays in zip(kernel, rewards, strict=True)]
        groups.append(jax.tree.map(lambda *leaves: jnp.stack(leaves), *worlds))
        peers += [DiscreteDP(r, k, discount) for r, k in zip(rewards, kernel, strict=True)]
    solve = jax.jit(jax.vmap(functools.partial(M.value_iteration, tolerance=EPSILON)))
    solvers = {
        "jaxrl4lm": lambda: [jax.block_until_ready(solve(group)) for group in groups],
        "quantecon pi": lambda: [peer.solve("pi") for peer in peers],
        "quantecon mpi": lambda: [peer.solve("mpi", epsilon=EPSILON) for peer in peers],
    }
    for call in solvers.values():
        call()
    times = alternate(solvers, rounds)
    row = {"problem": "batch", "discount": discount, "seconds": times}
    row["ratios"] = {
        who: summary([peer / own for peer, own in zip(times[who], times["jaxrl4lm"], strict=True)])
        for who in solvers
    }
    print(f"batch of 4096: {1e3 * statistics.median(times['jaxrl4lm']):.0f} ms; ratios {row['ratios']}")
    return [row]


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


def million(rounds: int) -> list[dict]:
    """S = 10⁶: time, bound and peak memory of the process."""
    rows = []
    for name in ("queue", "forest", "garnet", "grid"):
        solve = our_solver(problems(1_000_000, 0.99)[name])
        solve()
        start = time.perf_counter()
        solve()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name}, S=10⁶, γ=0.99: {seconds:.2f} s, peak memory so far {peak:.2f} GiB", flush=True)
        rows.append({"problem": name, "states": 10**6, "seconds": seconds, "peak_GiB": peak})
    return rows


def main() -> None:
    """Runs the named parts and writes results/mdp.json."""
    parts = {"dense": dense, "sparse": sparse, "batch": batch, "bandwidth": bandwidth, "million": million}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(parts), choices=list(parts))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    path = pathlib.Path(__file__).parent / "results" / "mdp.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    import quantecon

    results["versions"] = {
        "jax": jax.__version__, "quantecon": quantecon.__version__, "python": platform.python_version(),
        "device": jax.devices()[0].device_kind, "epsilon": EPSILON,
    }  # fmt: skip
    for part in arguments.parts:
        results[part] = parts[part](arguments.rounds)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
