"""rejax or Stable-Baselines3 at the other end of a pipe: runs in an environment of its own, started by benchmarks/agents.py.

Reads one JSON line, {"side": "rejax", "algorithm": "PPO", "config": {...}, "seeds": 1} or {"side": "sb3", "steps": 100000};
answers with the seconds of compilation, and then to every line that it reads with the seconds of a whole training run.
"""

import json
import sys
import time

task = json.loads(sys.stdin.readline())


def make_rejax():
    """A compiled run of all seeds, and how long compiling took."""
    import jax
    import rejax

    learner = getattr(rejax, task["algorithm"]).create(**task["config"])
    keys = jax.random.split(jax.random.PRNGKey(0), task["seeds"])
    one = task["seeds"] == 1
    train = jax.jit(learner.train) if one else jax.jit(jax.vmap(learner.train))
    begun = time.process_time()
    compiled = train.lower(keys[0] if one else keys).compile()
    compiling = time.process_time() - begun

    def run():
        _, (_, returns) = jax.block_until_ready(compiled(keys[0] if one else keys))
        return float(returns[..., -1, :].mean())

    return run, compiling


def make_sb3():
    """A run of PPO with the numbers of its zoo."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)

    def run():
        model = PPO(
            "MlpPolicy",
            make_vec_env("CartPole-v1", 8, seed=0),
            n_steps=32,
            batch_size=256,
            gae_lambda=0.8,
            gamma=0.98,
            n_epochs=20,
            ent_coef=0.0,
            learning_rate=lambda left: 1e-3 * left,
            clip_range=lambda left: 0.2 * left,
            seed=0,
            device="cpu",
        )
        model.learn(task["steps"])

    return run, 0.0


run, compiling = {"rejax": make_rejax, "sb3": make_sb3}[task["side"]]()
print(json.dumps({"compile_seconds": compiling}), flush=True)
for _ in sys.stdin:
    begun = time.process_time()
    score = run()
    print(json.dumps({"seconds": time.process_time() - begun, "return": score}), flush=True)
