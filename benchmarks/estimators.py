"""What does each algorithm's gradient estimate? Its expectation and variance beside the true gradient, by enumeration.

    python benchmarks/estimators.py [--only algorithms kl group credit large truncation temperature off_policy]

A table of logits, 3 ids and at most 3 tokens (15 completions, each with a reward of its own), groups of 4 completions of one
prompt. Every group that can be drawn is weighed by its probability, so there is no sampling error; updates of 64 groups are
drawn. Prints Markdown.
"""

import argparse
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm import losses, tasks
from jaxrl4lm.decoding import Sampling
from jaxrl4lm.envs.token_tree import as_finite_mdp, grow
from jaxrl4lm.lm import algorithms, estimators, reinforcement
from jaxrl4lm.lm.algorithms import KL, Algorithm
from jaxrl4lm.lm.table import TablePolicy
from jaxrl4lm.mdp import policy_values

RESULTS = pathlib.Path(__file__).parent / "results" / "estimators.json"
TASK = tasks.lottery(3, 3)
TREE = grow(TASK, TASK.sample(jax.random.key(0), 1))
SHORT_TASK = tasks.lottery(3, 2)
SHORT = grow(SHORT_TASK, SHORT_TASK.sample(jax.random.key(0), 1))
"""With 7 completions, of which even groups of 16 can be enumerated."""
DRAWN = 1000
"""Updates, where they cannot be enumerated."""


class Row(NamedTuple):
    """One line of a table."""

    label: str
    algorithm: Algorithm
    changes: dict[str, Any] = {}  # noqa: RUF012 - never changed
    tree: Any = TREE
    critic: str = "wrong"
    """exact: the value of the policy that draws; wrong: random numbers."""
    off_policy: bool = False
    """Whether an older policy drew the completions."""


def make_point(row: Row) -> estimators.Point:
    """Random logits; the reference and an older policy are others."""
    keys = jax.random.split(jax.random.key(1), 4)
    policy = TablePolicy(row.tree)
    shape = row.tree.successors.shape
    learning, reference, step = (jax.random.normal(key, shape) for key in keys[:3])
    old = learning + 0.5 * step if row.off_policy else learning
    values = jax.random.normal(keys[3], row.tree.texts.shape[:1])
    if row.critic == "exact":
        known = policy_values(as_finite_mdp(row.tree), jax.nn.softmax(jnp.pad(old, ((0, 1), (0, 0)))))
        values = jnp.zeros_like(values).at[: shape[0]].set(known[:-1])
    empty = policy.init(keys[0])
    return estimators.Point(
        *(empty | {"logits": logits, "values": values} for logits in (learning, reference, old))
    )


def measure(row: Row) -> dict[str, float]:
    """Scale, angle and standard deviation of the gradient of one group."""
    tree, length = row.tree, row.tree.texts.shape[1]
    changes = {
        "kl_coef": 0.0,
        "value_coef": 0.0,
        "entropy_coef": 0.0,
        "completions": 4,
        "truncation": "terminal",
        "sampling_rounds": 1,
        "sampling": Sampling(length, 1, 0),
    }
    sizes = {"prompts_per_update": 1, "epochs": 1, "minibatches": 1}
    config = row.algorithm.configure(**changes | sizes | row.changes)
    learner = reinforcement.Learner(TablePolicy(tree), row.algorithm)  # pyright: ignore[reportArgumentType]
    point = make_point(row)

    @jax.jit
    def find():
        if config.prompts_per_update == 1:
            estimate = estimators.enumerate_updates(tree, learner, config, point)
        else:
            estimate = estimators.sample_updates(jax.random.key(2), tree, learner, config, point, DRAWN)
        gradient = estimators.find_gradient(tree, learner, config, point)
        length = jnp.linalg.norm(gradient["logits"])
        return estimators.measure_bias(estimate, gradient), jnp.sqrt(estimate.variance) / length

    bias, deviation = find()
    return {
        "scale": round(float(bias.scale), 4),
        "angle": round(float(bias.angle), 2),
        # At the size that the mean has along the gradient: what a learning rate cannot change.
        "deviation": round(float(deviation / abs(bias.scale)), 2) if abs(bias.scale) > 1e-3 else None,
    }


def weigh_sequences(scores, old_log_probs, advantages, mask, config):
    """π/π_old of the whole completion."""
    ratios = jnp.where(mask, scores.log_probs - old_log_probs, 0.0).sum(-1, keepdims=True)
    return jax.lax.stop_gradient(jnp.broadcast_to(jnp.exp(ratios), mask.shape))


def list_rows() -> dict[str, list[Row]]:
    """The tables."""
    a, free = algorithms, KL()
    rloo, grpo, dr_grpo = a.RLOO._replace(kl=free), a.GRPO._replace(kl=free), a.DR_GRPO
    plain = {name: x for name, x in a.ALGORITHMS.items() if name not in ("nlpo", "ppo_penalty")}
    unpaid = TREE._replace(rewards=0 * TREE.rewards)
    kls = a.KL_PLACEMENTS | {
        "k1 as a loss": KL(loss=losses.kl.k1),
        "k3 in the reward": KL(reward=losses.kl.k3),
    }
    a2c_exact = {"critic": "exact"}
    weighed = rloo._replace(weights=(a.surrogates.truncate_weights,))
    return {
        "algorithms": [Row(name, x._replace(kl=free)) for name, x in plain.items()],
        "kl": [
            Row(name, rloo._replace(kl=kl), {"kl_coef": 1.0}, unpaid)
            for name, kl in kls.items()
            if kl != free
        ],
        "group": [
            Row(f"{name}, n = {n}", x, {"completions": n}, SHORT)
            for name, x in (("RLOO", rloo), ("Dr.GRPO", dr_grpo), ("GRPO", grpo))
            for n in (2, 4, 8, 16)
        ],
        "credit": [
            Row("returns (A2C, λ = 1), a wrong critic", a.A2C._replace(kl=free)),
            Row("returns (A2C, λ = 1), the exact critic", a.A2C._replace(kl=free), **a2c_exact),
            Row("one step (λ = 0), a wrong critic", a.A2C_ONE_STEP._replace(kl=free)),
            Row("one step (λ = 0), the exact critic", a.A2C_ONE_STEP._replace(kl=free), **a2c_exact),
            Row("PPO (λ = .95, whitened), a wrong critic", a.PPO._replace(kl=free)),
            Row("PPO (λ = .95, whitened), the exact critic", a.PPO._replace(kl=free), **a2c_exact),
            Row("REINFORCE, whitened by the group", a.REINFORCE._replace(kl=free)),
            Row("the same, not whitened, no baseline", a.REINFORCE._replace(kl=free, credit=keep_returns)),
        ],
        "large": [
            Row(name, algorithm._replace(kl=free), {"prompts_per_update": 64}, critic="exact")
            for name, algorithm in (
                ("RLOO", rloo),
                ("REINFORCE, whitened", a.REINFORCE),
                ("PPO, the exact critic, whitened", a.PPO),
                ("GRPO", grpo),
                ("DAPO", a.DAPO),
            )
        ],
        "truncation": [
            Row(f"A2C, {how}", a.A2C._replace(kl=free, reduction=sum_sequences), {"truncation": how})
            for how in ("terminal", "bootstrap", "mask")
        ],
        "temperature": [
            Row(f"RLOO, τ = {t}", rloo, {"sampling": Sampling(3, 1, 0, temperature=t)})
            for t in (0.7, 1.0, 1.5)
        ],
        "off_policy": [
            Row("log π · A, no correction", rloo, off_policy=True),
            Row("ratio of the token, capped at 2, as a weight", weighed, off_policy=True),
            Row("ratio of the token", rloo._replace(surrogate=a.surrogates.free_ratio), off_policy=True),
            Row(
                "the same, clipped at ±.2", rloo._replace(surrogate=a.surrogates.clip_ratio), off_policy=True
            ),
            Row("geometric mean of the ratios (GSPO), clipped", a.GSPO, off_policy=True),
            Row(
                "ratio of the completion, as a weight",
                rloo._replace(weights=(weigh_sequences,)),
                off_policy=True,
            ),
        ],
    }


def keep_returns(rewards, kl_costs, rollout, config):
    """Returns-to-go as they are."""
    return algorithms.credit.Credit(
        jnp.flip(jnp.cumsum(jnp.flip(rewards - kl_costs, 1), 1), 1) * rollout.mask, jnp.zeros_like(rewards)
    )


sum_sequences = algorithms.RLOO.reduction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tables = list_rows()
    parser.add_argument("--only", nargs="*", default=list(tables))
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in parser.parse_args().only:
        print(f"\n{name}\n\n| | scale | angle, degrees | deviation |\n|---|---|---|---|")
        results[name] = {}
        for row in tables[name]:
            found = results[name][row.label] = measure(row)
            deviation = "" if found["deviation"] is None else f"{found['deviation']:.1f}"
            angle = f"{found['angle']:.1f}"
            print(f"| {row.label} | {found['scale']:.3f} | {angle} | {deviation} |", flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
