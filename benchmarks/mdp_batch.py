"""How fast are 4,096 small MDPs solved at once, beside a loop over QuantEcon on the same arrays, to the same ε?

    taskset -c 0 python benchmarks/mdp_batch.py [dense garnet grid] [--rounds 5] [--float32]

1,024 worlds of each of four sizes from 16 to 64 states, four actions. `solve_batch` is one call a size. QuantEcon
solves one world after the other, by policy iteration and by modified policy iteration; the faster one counts, once
with and once without the construction of its `DiscreteDP` objects. Everything has run once before the clock starts;
then all alternate. `read` is one pass over the same kernels, which no solver can do without.
"""

import argparse
import functools
import json
import pathlib
import platform
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import quantecon
from mdp import EPSILON, alternate, summary

from jaxrl4lm import mdp as M

jax.config.update("jax_enable_x64", True)
EACH = 1024


def dense(states: int, rng: np.random.Generator) -> M.FiniteMDP:
    """Every successor possible, γ = 0.95."""
    kernel = rng.random((states, 4, states))
    return M.from_arrays(kernel / kernel.sum(axis=-1, keepdims=True), rng.random((states, 4)), 0.95)


def garnet(states: int, rng: np.random.Generator) -> M.FiniteMDP:
    """Four random successors each, γ = 0.95."""
    return M.garnet(jax.random.key(rng.integers(2**31)), states, 4, 4, discount=0.95)


def grid(states: int, rng: np.random.Generator) -> M.FiniteMDP:
    """A square with traps of −1 in a tenth of its cells, a goal of +1 in a corner, slip 0.1, γ = 0.99."""
    side = int(states**0.5)
    cells = np.where(rng.random((side, side)) < 0.1, "-1", ".")
    cells[0, -1], cells[-1, 0] = "+1", "S"
    text = "\n".join(map(" ".join, cells))
    return M.grid_world(text, discount=0.99, slip=0.1, living_reward=-0.02).mdp


FAMILIES = {
    "dense": (dense, (16, 32, 48, 64)),
    "garnet": (garnet, (16, 32, 48, 64)),
    "grid": (grid, (16, 36, 49, 64)),
}


def quantecon_arrays(world: M.FiniteMDP) -> tuple[np.ndarray, np.ndarray, float]:
    """Rewards `[S, A]` and kernel `[S, A, S]`: QuantEcon has no terminal states, so they become absorbing."""
    kernel = np.array(M.as_dense(world).transitions.probabilities)
    rewards, discount, ends = np.array(world.rewards), float(world.discount), np.asarray(world.terminal)
    kernel[ends, :, ends] = 1
    rewards[ends] *= 1 - discount
    return rewards, kernel, discount


def measure(family: str, states: int, rounds: int, dtype: np.dtype) -> dict:
    """One row: seconds of each side for 1,024 worlds."""
    make, _ = FAMILIES[family]
    rng = np.random.default_rng(states)
    worlds = [make(states, rng) for _ in range(EACH)]
    arrays = [quantecon_arrays(world) for world in worlds]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *worlds)
    stacked = jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, stacked)
    tolerance = EPSILON if dtype == np.float64 else 1e-2
    solve = jax.jit(functools.partial(M.solve_batch, tolerance=tolerance))
    vmapped = jax.jit(jax.vmap(functools.partial(M.value_iteration, tolerance=tolerance)))
    read = jax.jit(lambda mdps: jax.tree.map(lambda x: x.max(axis=tuple(range(1, x.ndim))), mdps.transitions))
    make_peer = quantecon.markov.DiscreteDP
    peers = [make_peer(*array) for array in arrays]
    calls = {
        "solve_batch": lambda: jax.block_until_ready(solve(stacked)),
        "vmap": lambda: jax.block_until_ready(vmapped(stacked)),
        "read": lambda: jax.block_until_ready(read(stacked)),
        "quantecon pi": lambda: [peer.solve("pi") for peer in peers],
        "quantecon mpi": lambda: [peer.solve("mpi", epsilon=EPSILON, max_iter=10_000) for peer in peers],
        "construction": lambda: [make_peer(*array) for array in arrays],
    }
    start = time.perf_counter()
    solution = calls["solve_batch"]()
    compilation = time.perf_counter() - start
    exact = np.stack([result.v for result in calls["quantecon pi"]()])
    for name in ("vmap", "read", "quantecon mpi", "construction"):
        calls[name]()
    times = alternate(calls, rounds)
    return {
        "family": family, "states": states, "dtype": str(np.dtype(dtype)), "compilation": compilation,
        "bound": float(solution.error_bound.max()), "error": float(np.abs(solution.values - exact).max()),
        "sweeps": float(solution.iterations.mean()), "seconds": times,
    }  # fmt: skip


def ratios(rows: list[dict]) -> dict[str, dict[str, float]]:
    """QuantEcon's best method, summed over the rows, over each of ours: median and range over rounds."""

    def total(name: str) -> np.ndarray:
        return np.sum([row["seconds"][name] for row in rows], axis=0)

    best = np.sum(
        [np.minimum(row["seconds"]["quantecon pi"], row["seconds"]["quantecon mpi"]) for row in rows], axis=0
    )
    own = total("solve_batch")
    compared = {
        "solve": best / own,
        "construct and solve": (best + total("construction")) / own,
        "vmap(value_iteration)": best / total("vmap"),
        "one pass over the kernels": best / total("read"),
    }
    return {name: summary(x.tolist()) for name, x in compared.items()}


def show(name: str, rows: list[dict]) -> dict:
    """Prints the sum over some rows."""
    found = ratios(rows)
    ours = sum(statistics.median(row["seconds"]["solve_batch"]) for row in rows)
    print(f"{name}: {1e6 * ours / (EACH * len(rows)):.1f} µs a world; QuantEcon over ours:", flush=True)
    for what, ratio in found.items():
        print(f"   {what}: {ratio['median']:.1f} ({ratio['min']:.1f} to {ratio['max']:.1f})", flush=True)
    return found


def main() -> None:
    """Runs the named families and writes results/mdp_batch.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", choices=list(FAMILIES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--float32", action="store_true", help="ours in single precision, to 1e-2")
    arguments = parser.parse_args()
    path = pathlib.Path(__file__).parent / "results" / "mdp_batch.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results["versions"] = {
        "jax": jax.__version__, "quantecon": quantecon.__version__, "python": platform.python_version(),
        "device": jax.devices()[0].device_kind, "epsilon": EPSILON,
    }  # fmt: skip
    dtype = np.dtype(np.float32 if arguments.float32 else np.float64)
    for family in arguments.families or FAMILIES:
        rows = []
        for states in FAMILIES[family][1]:
            rows.append(measure(family, states, arguments.rounds, dtype))
            last = rows[-1]
            last["ratios"] = show(f"{family} {dtype}, S={states}", [last])
            print(f"   bound {last['bound']:.1e}, error {last['error']:.1e}, {last['sweeps']:.0f} sweeps")
        together = show(f"{family} {dtype}, all {EACH * len(rows)}", rows)
        results[f"{family} {dtype}"] = {"rows": rows, "ratios": together}
        path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
