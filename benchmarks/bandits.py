"""2,000 runs × 1,000 steps of ten bandit algorithms, beside a vectorised NumPy version of each.

    taskset -c 0 python benchmarks/bandits.py

Both sides return the mean reward of every step; NumPy advances all runs at once, in float32. Compilation is
excluded from the ratio and printed.
"""

import argparse
import json
import pathlib
import platform
import statistics
import time

import jax
import numpy as np

from jaxrl4lm import bandits as B

ARMS, RUNS, STEPS = 10, 2000, 1000
GAUSSIAN, BERNOULLI = B.gaussian(ARMS), B.bernoulli(ARMS)


class Values:
    """NumPy's action-value learners, all runs at once."""

    def __init__(self, step_size=None, initial=0.0):
        self.q = np.full((RUNS, ARMS), initial, np.float32)
        self.n = np.zeros((RUNS, ARMS), np.float32)
        self.step_size, self.time, self.rows = step_size, 0, np.arange(RUNS)

    def update(self, arm, reward):
        self.time += 1
        self.n[self.rows, arm] += 1
        rate = self.step_size or 1 / self.n[self.rows, arm]
        self.q[self.rows, arm] += rate * (reward - self.q[self.rows, arm])


class EpsilonGreedy(Values):
    def __init__(self, epsilon, **options):
        super().__init__(**options)
        self.epsilon = epsilon

    def select(self, rng):
        arm = self.q.argmax(axis=1)
        if self.epsilon:
            arm = np.where(rng.random(RUNS) < self.epsilon, rng.integers(0, ARMS, RUNS), arm)
        return arm


class Softmax(Values):
    def select(self, rng):
        return sample(rng, softmax(self.q / 0.2))


class UCB(Values):
    def select(self, rng):
        with np.errstate(divide="ignore", invalid="ignore"):
            bonus = 2 * np.sqrt(np.log(self.time + 1) / self.n)
        return np.where(self.n == 0, np.inf, self.q + bonus).argmax(axis=1)


class KLUCB(Values):
    """Newton's method in u = −ln(1 − q), from above: the same four steps as ours."""

    def select(self, rng):
        p, tiny = np.clip(self.q, 0, 1), np.float32(1.2e-7)
        level = np.float32(np.log(self.time + 1)) / np.maximum(self.n, 1)
        rest = 1 - p
        entropy = p * np.log(np.maximum(p, tiny)) + rest * np.log(np.maximum(rest, tiny))
        pinsker = -np.log(np.maximum(rest - np.sqrt(level / 2), tiny))
        u = np.minimum((level - entropy) / np.maximum(rest, tiny), pinsker)
        for _ in range(4):
            complement = np.exp(-u)
            q = np.maximum(1 - complement, tiny)
            excess = np.maximum(entropy - p * np.log(q) + rest * u - level, 0)
            u -= excess / np.maximum(rest - p * complement / q, tiny)
        return np.where(self.n == 0, np.inf, 1 - np.exp(-u)).argmax(axis=1)


class Thompson(Values):
    def select(self, rng):
        precision = 1 + self.n
        noise = rng.standard_normal((RUNS, ARMS), np.float32)
        return (self.n * self.q / precision + noise / np.sqrt(precision)).argmax(axis=1)


class Gradient:
    """NumPy's gradient bandit."""

    def __init__(self, baseline):
        self.h, self.mean, self.time = np.zeros((RUNS, ARMS), np.float32), np.zeros(RUNS, np.float32), 0
        self.baseline, self.rows = baseline, np.arange(RUNS)

    def select(self, rng):
        self.policy = softmax(self.h)
        return sample(rng, self.policy)

    def update(self, arm, reward):
        self.time += 1
        self.mean += (reward - self.mean) / self.time
        step = 0.1 * (reward - self.mean * self.baseline)
        self.h -= step[:, None] * self.policy
        self.h[self.rows, arm] += step


class Exp3:
    """NumPy's EXP3."""

    def __init__(self):
        self.w, self.rows = np.zeros((RUNS, ARMS), np.float32), np.arange(RUNS)

    def select(self, rng):
        self.policy = 0.9 * softmax(self.w) + 0.1 / ARMS
        return sample(rng, self.policy)

    def update(self, arm, reward):
        self.w[self.rows, arm] += 0.1 * reward / self.policy[self.rows, arm] / ARMS


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def sample(rng, probabilities):
    uniform = rng.random(RUNS, np.float32)[:, None]
    return np.minimum((uniform >= probabilities.cumsum(axis=1)).sum(axis=1), ARMS - 1)


PAIRS = {
    "greedy": (GAUSSIAN, B.epsilon_greedy(0.0), lambda: EpsilonGreedy(0.0)),
    "epsilon 0.01": (GAUSSIAN, B.epsilon_greedy(0.01), lambda: EpsilonGreedy(0.01)),
    "epsilon 0.1": (GAUSSIAN, B.epsilon_greedy(0.1), lambda: EpsilonGreedy(0.1)),
    "optimistic": (
        GAUSSIAN,
        B.epsilon_greedy(0.0, step_size=0.1, initial_value=5.0),
        lambda: EpsilonGreedy(0.0, step_size=0.1, initial=5.0),
    ),
    "softmax": (GAUSSIAN, B.softmax(0.2), Softmax),
    "UCB": (GAUSSIAN, B.ucb(2.0), UCB),
    "gradient": (GAUSSIAN, B.gradient(0.1), lambda: Gradient(1.0)),
    "Thompson": (GAUSSIAN, B.thompson_gaussian(), Thompson),
    "KL-UCB": (BERNOULLI, B.kl_ucb(), KLUCB),
    "EXP3": (BERNOULLI, B.exp3(0.1), Exp3),
}


def numpy_run(problem, make, seed):
    """Mean reward of every step."""
    rng, learner, rows = np.random.default_rng(seed), make(), np.arange(RUNS)
    gaussian = problem is GAUSSIAN
    means = (rng.standard_normal((RUNS, ARMS)) if gaussian else rng.random((RUNS, ARMS))).astype(np.float32)
    rewards = np.empty(STEPS)
    for t in range(STEPS):
        arm = learner.select(rng)
        mean = means[rows, arm]
        if gaussian:
            reward = mean + rng.standard_normal(RUNS, np.float32)
        else:
            reward = (rng.random(RUNS, np.float32) < mean).astype(np.float32)
        learner.update(arm, reward)
        rewards[t] = reward.mean()
    return rewards


def main() -> None:
    """Alternates both sides per algorithm and writes results/bandits.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    results, totals = {}, {"jax": [0.0] * rounds, "numpy": [0.0] * rounds, "compile": 0.0}
    for name, (problem, learner, make) in PAIRS.items():
        run = jax.jit(
            lambda key, p=problem, a=learner: B.run(key, p, a, STEPS, RUNS).rewards.mean(axis=1),
            compiler_options=B.compiler_options(),
        )
        start = time.perf_counter()
        jax.block_until_ready(run(jax.random.key(0)))
        compiling = time.perf_counter() - start
        times = {"jax": [], "numpy": []}
        for i in range(rounds):
            start = time.perf_counter()
            ours = np.asarray(run(jax.random.key(i + 1)))
            middle = time.perf_counter()
            theirs = numpy_run(problem, make, i)
            times["jax"].append(middle - start)
            times["numpy"].append(time.perf_counter() - middle)
        assert abs(ours[-200:].mean() - theirs[-200:].mean()) < 0.06, name  # they learn the same
        for side in ("jax", "numpy"):
            totals[side] = [a + b for a, b in zip(totals[side], times[side], strict=True)]
        totals["compile"] += compiling
        ratio = statistics.median(b / a for a, b in zip(times["jax"], times["numpy"], strict=True))
        results[name] = {**times, "ratio": ratio, "compile": compiling}
        print(f"{name}: {1e3 * statistics.median(times['jax']):.0f} ms, ratio {ratio:.1f}", flush=True)
    ratios = [b / a for a, b in zip(totals["jax"], totals["numpy"], strict=True)]
    spread = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    results["total"] = {**totals, "ratio": spread}
    results["versions"] = {
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
    }
    print(f"all ten: ratio {spread}, compilation {totals['compile']:.1f} s")
    path = pathlib.Path(__file__).parent / "results" / "bandits.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
