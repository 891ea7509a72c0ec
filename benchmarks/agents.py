"""How fast do control agents learn CartPole, beside rejax and Stable-Baselines3 on the same work?

    taskset -c 0 python benchmarks/agents.py [--rejax PYTHON] [--sb3 PYTHON] [--only ppo ...] [--rounds 5]

PYTHON is an interpreter of an environment with `rejax==0.1.3 gymnax==0.0.9`, or with `stable-baselines3`. All sides share one
core and alternate, round by round; a round's ratio is peer / ours, whole training runs with one evaluation at the end, without
compilation, which is said besides. Seconds are CPU seconds of the process: on one core those of the clock on an idle machine.
rejax and ours have rejax's own numbers and network sizes. Stable-Baselines3 trains one agent after another, so that 256 of them
(`--population`) take 256 times as long as one; ours, with its zoo's numbers, are one program.
"""

import argparse
import functools
import json
import pathlib
import platform
import statistics
import subprocess
import time
from collections.abc import Callable

import jax
import numpy as np
from flax import linen as nn

from jaxrl4lm.agents import dqn, on_policy, ppo, pqn
from jaxrl4lm.agents.agent import train
from jaxrl4lm.agents.config import descend
from jaxrl4lm.agents.environment import make_environment
from jaxrl4lm.models import Convolution, Perceptron
from jaxrl4lm.models.control import windows

RESULTS = pathlib.Path(__file__).parent / "results" / "agents.json"
MODES = ("ppo", "ppo16", "dqn", "sb3", "evaluation", "buffer", "step", "convolution", "game", "gymnasium")
EPISODES = 128
"""Of an evaluation, as rejax has it."""
PPO = ppo.PPOConfig(
    steps=100_000,
    environments=5,
    rollout=100,
    epochs=5,
    minibatches=5,
    learning_rate=7.5e-4,
    entropy_coef=0.01,
    value_coef=0.5,
    max_grad_norm=0.5,
)
REJAX_PPO = {
    "env": "CartPole-v1",
    "agent_kwargs": {"activation": "tanh"},
    "num_envs": 5,
    "num_steps": 100,
    "num_epochs": 5,
    "num_minibatches": 5,
    "learning_rate": 7.5e-4,
    "max_grad_norm": 0.5,
    "total_timesteps": 100_000,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip_eps": 0.2,
    "ent_coef": 0.01,
    "vf_coef": 0.5,
    "eval_freq": 100_000,
    "skip_initial_evaluation": True,
}
ZOO_PPO = ppo.PPOConfig(
    steps=99_840,  # 390 updates of 256 steps
    environments=8,
    rollout=32,
    epochs=20,
    minibatches=1,
    gae_lambda=0.8,
    discount=0.98,
    learning_rate=1e-3,
    final_learning_rate_share=0.0,
)
DQN = dqn.DQNConfig(
    steps=20_048,
    environments=1,
    rollout=1,
    gradient_steps=1,
    batch=256,
    buffer=50_000,
    warmup=2_048,
    learning_rate=3e-4,
    exploration_share=0.1,
    target_interval=100,  # rejax: a hundredth of the way each step
)
REJAX_DQN = {
    "env": "CartPole-v1",
    "total_timesteps": 20_000,
    "eval_freq": 20_000,
    "buffer_size": 50_000,
    "skip_initial_evaluation": True,
}


def make_ours(agent, params, config, *, seeds: int = 1, evaluations: int = 1, episodes: int = EPISODES):
    """A compiled run of all seeds, and how long compiling took."""
    config.check()

    def run(key):
        _, history = train(agent, key, config, params, evaluations=evaluations, episodes=episodes)
        return history["evaluation"] if evaluations else history["return"]

    keys = jax.random.split(jax.random.key(0), seeds)
    given = keys[0] if seeds == 1 else keys
    begun = time.process_time()
    compiled = jax.jit(run if seeds == 1 else jax.vmap(run)).lower(given).compile()
    compiling = time.process_time() - begun
    last: dict = {}

    def timed() -> float:
        begun = time.process_time()
        last["return"] = np.asarray(jax.block_until_ready(compiled(given)))[..., -1]
        return time.process_time() - begun

    return timed, compiling, last


class Worker:
    """A peer in a process of its own."""

    def __init__(self, python: str, task: dict):
        path = pathlib.Path(__file__).parent / "agents_worker.py"
        self.process = subprocess.Popen(
            [python, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.compiling = self.ask(json.dumps(task))["compile_seconds"]

    def ask(self, line: str) -> dict:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        while not (answer := self.process.stdout.readline()).startswith("{"):
            assert answer, "the worker ended"
        return json.loads(answer)

    def __call__(self) -> float:
        self.answer = self.ask("go")
        return self.answer["seconds"]

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def alternate(
    ours: Callable[[], float], other: Callable[[], float], rounds: int, *, warm_up: bool = True
) -> dict:
    """Seconds of both sides, in turn, and the ratios other / ours."""
    times: dict[str, list[float]] = {"ours": [], "other": []}
    for i in range(rounds + warm_up):
        sides = [("ours", ours), ("other", other)]
        for name, side in sides if i % 2 == 0 else sides[::-1]:
            times[name].append(side())
    times = {name: each[warm_up:] for name, each in times.items()}
    ratios = [b / a for a, b in zip(times["ours"], times["other"], strict=True)]
    spread = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return {
        "seconds": statistics.median(times["ours"]),
        "other_seconds": statistics.median(times["other"]),
        "ratio": {name: round(x, 3) for name, x in spread.items()},
    }


def beside_rejax(name: str, python: str, ours: tuple, task: dict, steps: int, rounds: int) -> dict:
    timed, compiling, last = ours
    worker = Worker(python, {"side": "rejax", **task})
    result = alternate(timed, worker, rounds)
    worker.end()
    return {
        **result,
        "steps_per_second": round(steps / result["seconds"]),
        "compile_seconds": round(compiling, 1),
        "other_compile_seconds": round(worker.compiling, 1),
        "return": round(float(last["return"].mean()), 1),
        "other_return": round(worker.answer["return"], 1),
        "other": "rejax",
    }


def time_once(run: Callable) -> float:
    """CPU seconds of what a run does."""
    begun = time.process_time()
    jax.block_until_ready(run())
    return time.process_time() - begun


def time_each(run: Callable, count: int, rounds: int) -> float:
    """Microseconds of each of the `count` things that a run does, the median."""
    times = [time_once(run) for _ in range(rounds + 1)]
    return round(1e6 * statistics.median(times[1:]) / count, 1)


class Windows(nn.Module):
    """The convolution of `models.Convolution`, alone."""

    @nn.compact
    def __call__(self, observations):
        return nn.Dense(16)(windows(observations))


class XlaConvolution(Convolution):
    """`models.Convolution` by XLA's operation."""

    @nn.compact
    def __call__(self, observations):
        x = nn.Conv(self.channels, (3, 3), padding="VALID")(observations)
        x = nn.relu(nn.LayerNorm()(x))
        x = nn.Dense(self.width)(x.reshape(*x.shape[:-3], -1))
        return nn.Dense(self.outputs)(nn.relu(nn.LayerNorm()(x)))


def measure_convolution(rounds: int) -> dict:
    """200 steps of gradient descent in a loop, on 128 observations of Breakout, by either convolution."""
    images = jax.random.bernoulli(jax.random.key(0), 0.1, (128, 10, 10, 4)).astype(jax.numpy.float32)

    def descending(network):
        def learn(params, scale):
            grads = jax.grad(lambda params: (network.apply(params, scale * images) ** 2).mean())(params)
            return jax.tree.map(lambda x, grad: x - 1e-4 * grad, params, grads), None

        params = network.init(jax.random.key(1), images)
        run = jax.jit(lambda params: jax.lax.scan(learn, params, jax.numpy.linspace(0.9, 1, 200))[0])
        return lambda: time_once(lambda: run(params))

    plain = nn.Conv(16, (3, 3), padding="VALID")
    return {**alternate(descending(Windows()), descending(plain), rounds), "other": "XLA's convolution"}


def measure_game(rounds: int) -> dict:
    """Four updates of PQN on Breakout, by either convolution."""
    environment, params = make_environment("Breakout-MinAtar")
    config = pqn.PQNConfig(steps=4 * 4096, environments=128, rollout=32, epochs=2, minibatches=32)
    theirs = pqn.make(environment, params, network=XlaConvolution(environment.num_actions))
    fast, _, _ = make_ours(pqn.make(environment, params), params, config, evaluations=0)
    slow, _, _ = make_ours(theirs, params, config, evaluations=0)
    return {**alternate(fast, slow, rounds), "other": "the same by XLA's convolution"}


def measure_step(environment, params, rounds: int) -> dict:
    """Microseconds of an optimizer step of PPO, whole and without its parts."""
    learner = on_policy.make_learner(environment, params)
    state = jax.jit(lambda key: on_policy.init(key, PPO, learner, params))(jax.random.key(0))
    state, batch, _ = jax.jit(lambda state: on_policy.collect(state, PPO, learner, params))(state)
    loss = functools.partial(ppo.loss, config=PPO, learner=learner)

    def adam(carry, part):
        grads, told = jax.grad(loss, has_aux=True)(carry[0], part)
        return descend(PPO, jax.numpy.int32(0), grads, carry[1], carry[0]), told

    def plain(carry, part):
        grads, _ = jax.grad(loss, has_aux=True)(carry[0], part)
        return (jax.tree.map(lambda x, g: x - 1e-4 * g, carry[0], grads), carry[1]), ()

    def in_order(key, batch, minibatches):
        del key
        return jax.tree.map(lambda x: x.reshape(minibatches, -1, *x.shape[2:]), batch)

    def time_epochs(learn, divide) -> float:
        keys = jax.random.split(jax.random.key(1), 1000)
        epochs = jax.jit(
            lambda carry: jax.lax.scan(
                lambda carry, key: jax.lax.scan(learn, carry, divide(key, batch, PPO.minibatches)),
                carry,
                keys,
            )[0]
        )
        return time_each(lambda: epochs((state.params, state.opt_state)), len(keys) * PPO.minibatches, rounds)

    width, rows = 64, PPO.environments * PPO.rollout // PPO.minibatches
    square = jax.numpy.full((width, width), 0.01)
    product = jax.jit(lambda x: jax.lax.scan(lambda x, _: (0.5 * (x @ square), ()), x, length=10_000)[0])
    return {
        "step": time_epochs(adam, on_policy.shuffle),
        "without Adam, clip and check": time_epochs(plain, on_policy.shuffle),
        "and without shuffle": time_epochs(plain, in_order),
        "one product": time_each(lambda: product(jax.numpy.ones((rows, width))), 10_000, rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rejax", help="python of an environment with rejax")
    parser.add_argument("--sb3", help="python of an environment with stable-baselines3")
    parser.add_argument("--only", nargs="*", help=", ".join(MODES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--population", type=int, default=256, help="agents beside Stable-Baselines3")
    options = parser.parse_args()
    environment, params = make_environment("CartPole-v1")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}

    def wanted(name: str) -> bool:
        return options.only is None or name in options.only

    def keep(name: str, result: dict) -> None:
        results[name] = result
        results["where"] = {
            "device": jax.devices()[0].device_kind,
            "processor": platform.machine(),
            "jax": jax.__version__,
        }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(name, result, flush=True)

    agent = ppo.make(environment, params)
    for name, seeds in (("ppo", 1), ("ppo16", 16)):
        if options.rejax and wanted(name):
            task = {"algorithm": "PPO", "config": REJAX_PPO, "seeds": seeds}
            ours = make_ours(agent, params, PPO, seeds=seeds)
            steps = PPO.steps * seeds
            keep(name, beside_rejax(name, options.rejax, ours, task, steps, options.rounds))
    if options.rejax and wanted("dqn"):
        task = {"algorithm": "DQN", "config": REJAX_DQN, "seeds": 1}
        plain = dqn.make(environment, params, network=Perceptron(environment.num_actions, activation="silu"))
        ours = make_ours(plain, params, DQN)
        keep("dqn", beside_rejax("dqn", options.rejax, ours, task, DQN.steps, options.rounds))
    if options.sb3 and wanted("sb3"):
        count = options.population
        timed, compiling, _ = make_ours(agent, params, ZOO_PPO, seeds=count)
        worker = Worker(options.sb3, {"side": "sb3", "steps": ZOO_PPO.steps})
        result = alternate(timed, lambda: count * worker(), 1, warm_up=False)  # minutes each
        worker.end()
        keep(
            "sb3", {**result, "compile_seconds": round(compiling, 1), "other": f"{count} × stable-baselines3"}
        )
    if wanted("evaluation"):
        often, _, _ = make_ours(agent, params, PPO, evaluations=20, episodes=16)  # as the command line
        never, _, _ = make_ours(agent, params, PPO, evaluations=0)
        keep(
            "evaluation",
            {**alternate(never, often, options.rounds), "other": "20 evaluations of 16 episodes"},
        )
    if wanted("step"):
        keep("step", measure_step(environment, params, options.rounds))
    if wanted("convolution"):
        keep("convolution", measure_convolution(options.rounds))
    if wanted("game"):
        keep("game", measure_game(options.rounds))
    if wanted("gymnasium"):
        bridged, limits = make_environment("gym:CartPole-v1")
        config = ppo.PPOConfig(steps=20_000)
        fast, _, _ = make_ours(agent, params, config, evaluations=0)
        slow, _, _ = make_ours(ppo.make(bridged, limits), limits, config, evaluations=0)
        keep("gymnasium", {**alternate(fast, slow, options.rounds), "other": "gym:CartPole-v1"})
    if wanted("buffer"):
        config = dqn.DQNConfig(steps=20_800)
        small, _, _ = make_ours(dqn.make(environment, params), params, config.replace(buffer=5_040))
        large, _, _ = make_ours(dqn.make(environment, params), params, config.replace(buffer=500_000))
        keep("buffer", {**alternate(small, large, options.rounds), "other": "a ring of 500,000, not 5,040"})


if __name__ == "__main__":
    main()
