"""Does PPO against a learned reward raise the true one, and what does it cost to go on where the KL is free?

    taskset -c 0 python benchmarks/overoptimisation.py [--seeds 3] [--updates 200]

The world: a prompt names a letter. The gold reward pays for that letter in the completion, with falling returns (four are best),
and takes something for the letter after it. A proxy, a reward model of one layer, is learned from pairs of completions of the
untrained policy, labelled by the gold reward as Bradley and Terry have it. Then PPO learns from the proxy: once with a price of
the KL that adapts to a target, once with a price of 0. Rewards are in deviations of the untrained policy's. The best of m of
its completions, chosen by the proxy, is drawn beside them. All seeds are one program. It writes results/overoptimisation.json
and docs/overoptimisation.png.
"""

import argparse
import dataclasses
import json
import pathlib
import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np

from jaxrl4lm import models, reduce, tasks
from jaxrl4lm.data.tokenizer import SPECIAL, CharacterTokenizer
from jaxrl4lm.decoding import Sampling
from jaxrl4lm.lm import ReinforcementConfig, RewardConfig, algorithms, reinforcement, reward
from jaxrl4lm.lm.rollouts import rollout, score
from jaxrl4lm.lm.supervised import Texts
from jaxrl4lm.models import LanguagePolicy, TransformerConfig
from jaxrl4lm.training.candidates import expected_best, kl_of_best

HERE = pathlib.Path(__file__).parent
RESULTS, PICTURE = HERE / "results" / "overoptimisation.json", HERE.parent / "docs" / "overoptimisation.png"
LETTERS, TOKENS = "abcdefgh", 10
TOKENIZER = CharacterTokenizer(LETTERS + "=", bos_id=None)
EQUALS = TOKENIZER.encode("=")[0]
LIKED, FALLING, DISLIKED = 2.0, 0.5, 0.5
"""Gold: 2 c - ½ ½ c² for c letters that are liked, best at 4, and - ½ for each of the letter after it."""
PAIRS, STEPS, BATCH = 2048, 400, 64
EVERY = 5
"""Updates between two looks."""
TARGET = 3.0
"""Nats a completion that the adaptive price holds."""
SAMPLING = Sampling(TOKENS, TOKENIZER.eos_id, TOKENIZER.pad_id)
CONFIG = ReinforcementConfig(
    learning_rate=1e-3,
    final_learning_rate_share=0.1,
    kl_target=TARGET,
    kl_horizon=640.0,
    prompts_per_update=32,
    completions=4,
    epochs=2,
    minibatches=2,
    truncation="terminal",
    sampling=SAMPLING,
)


def make_policy(layers: int) -> LanguagePolicy:
    sizes = {"layers": layers, "width": 32, "heads": 4, "context": 16}
    return LanguagePolicy(TransformerConfig.gpt2(TOKENIZER.vocab_size, **sizes))


POLICY, JUDGE = make_policy(2), make_policy(1)


def sample(key, n: int) -> tasks.Prompts:
    """A letter and "=": what a completion should have."""
    letters = jax.random.randint(key, (n, 1), SPECIAL, SPECIAL + len(LETTERS))
    tokens = jnp.concatenate([letters, jnp.full((n, 1), EQUALS)], 1).astype(jnp.int32)
    nothing = jnp.zeros((n, TOKENS), jnp.int32)
    return tasks.Prompts(tokens, jnp.ones(tokens.shape, bool), nothing, nothing.astype(bool))


def gold(prompts: tasks.Prompts, completions, mask):
    liked = prompts.tokens[:, :1]
    after = (liked - SPECIAL + 1) % len(LETTERS) + SPECIAL
    count, others = (((completions == letter) & mask).sum(-1) for letter in (liked, after))
    return LIKED * count - FALLING / 2 * count**2 - DISLIKED * others


class Proxy(NamedTuple):
    """A reward model, and the scale of its scores and of gold's on the untrained policy's completions."""

    params: dict
    mean: jax.Array
    deviation: jax.Array
    gold_mean: jax.Array
    gold_deviation: jax.Array
    accuracy: jax.Array


def read(params, prompts: tasks.Prompts, completions, mask):
    tokens = jnp.concatenate([prompts.tokens, completions], 1)
    mask = jnp.concatenate([prompts.mask, mask], 1)
    hidden = JUDGE.hidden(params["backbone"], tokens, mask)
    return models.sequence_outputs(params["head"], hidden, mask)[:, 0]


def complete(params, key, count: int, copies: int):
    """(prompts, one for each completion; the rollout)."""
    prompts = sample(key, count)
    sampling = dataclasses.replace(SAMPLING, copies=copies)
    drawn = rollout(POLICY, params, prompts.tokens, prompts.mask, key, sampling, final_values=False)
    return jax.tree.map(lambda x: jnp.repeat(x, copies, 0), prompts), drawn


def learn_proxy(key, params) -> Proxy:
    """From pairs of completions of one prompt."""
    keys = jax.random.split(key, 5)
    prompts, drawn = complete(params, keys[0], PAIRS + 512, 2)
    values = gold(prompts, drawn.completions, drawn.mask)
    scaled = ((values - values.mean()) / values.std()).reshape(-1, 2)
    first = jax.random.bernoulli(keys[1], jax.nn.sigmoid(2 * (scaled[:, 0] - scaled[:, 1])))
    order = jnp.where(first[:, None], jnp.array([[0, 1]]), jnp.array([[1, 0]]))

    def arrange(x):
        return jnp.take_along_axis(x.reshape(-1, 2, x.shape[-1]), order[..., None], 1)

    tokens = arrange(jnp.concatenate([prompts.tokens, drawn.completions], 1))
    mask = arrange(jnp.concatenate([prompts.mask, drawn.mask], 1))
    pairs = reward.RatedPairs(Texts(tokens, mask, mask), jnp.zeros(len(tokens)))
    config = RewardConfig(learning_rate=2e-3, steps=STEPS, batch=BATCH, warmup=10)
    learner = reward.Learner(JUDGE)
    state = reward.init(keys[2], config, learner, reward.add_head(keys[3], JUDGE, JUDGE.init(keys[2])))

    def step(state, key):
        rows = jax.random.randint(key, (BATCH,), 0, PAIRS)
        return reward.update(state, jax.tree.map(lambda x: x[rows], pairs), config, learner)

    state, _ = jax.lax.scan(step, state, jax.random.split(keys[4], STEPS))
    said = read(state.params, prompts, drawn.completions, drawn.mask)
    right = (said.reshape(-1, 2)[:, 0] > said.reshape(-1, 2)[:, 1]) == (scaled[:, 0] > scaled[:, 1])
    told_apart = scaled[:, 0] != scaled[:, 1]
    accuracy = reduce.masked_mean(right[PAIRS:].astype(jnp.float32), told_apart[PAIRS:])
    return Proxy(state.params, said.mean(), said.std(), values.mean(), values.std(), accuracy)


def judge(proxy: Proxy, prompts, drawn):
    """(proxy, gold) of completions, in deviations."""
    said = read(proxy.params, prompts, drawn.completions, drawn.mask)
    true = gold(prompts, drawn.completions, drawn.mask)
    return (said - proxy.mean) / proxy.deviation, (true - proxy.gold_mean) / proxy.gold_deviation


def optimise(kl_coef, key, params, proxy: Proxy, updates: int):
    """PPO against the proxy, from a price of the KL that adapts, and stays 0 if it is 0; (KL, proxy, gold) `[looks]`."""

    def paid(prompts, completions, mask):
        return (read(proxy.params, prompts, completions, mask) - proxy.mean) / proxy.deviation

    task = tasks.Task("letters", TOKENIZER, 2, TOKENS, sample, sample, paid)
    adaptive = algorithms.PPO.kl._replace(controller=algorithms.adapt_price)
    learner = reinforcement.Learner(POLICY, algorithms.PPO._replace(kl=adaptive))
    config = CONFIG.replace(kl_coef=kl_coef, updates=updates)

    def look(state):
        prompts, drawn = complete(state.params, jax.random.fold_in(key, state.update), 32, 16)
        ref = score(POLICY, params, drawn, SAMPLING).log_probs
        kl = jnp.where(drawn.mask, drawn.log_probs - ref, 0).sum(-1).mean()
        return jnp.array([kl, *(x.mean() for x in judge(proxy, prompts, drawn))])

    def advance(state, _):
        seen = look(state)
        return reinforcement.run(state, config, learner, task, EVERY)[0], seen

    state = reinforcement.init(key, config, learner, params)
    state, seen = jax.lax.scan(advance, state, length=updates // EVERY)
    return jnp.concatenate([seen, look(state)[None]])


def draw_many(key, params, proxy: Proxy):
    """(proxy, gold) `[128, 128]` of completions of the untrained policy."""
    prompts, drawn = complete(params, key, 128, 128)
    return jnp.stack(judge(proxy, prompts, drawn)).reshape(2, 128, 128)


def run_seed(key, updates: int):
    keys = jax.random.split(key, 4)
    params = POLICY.init(keys[0])
    proxy = learn_proxy(keys[1], params)
    both = jax.vmap(lambda kl_coef: optimise(kl_coef, keys[2], params, proxy, updates))
    held, free = both(jnp.array([0.3, 0.0]))
    return {
        "held": held,
        "free": free,
        "drawn": draw_many(keys[3], params, proxy),
        "accuracy": proxy.accuracy,
    }


def summarize(found: dict, ms: list[int]) -> dict:
    """What the picture shows and the page says."""
    held, free = found["held"], found["free"]
    late = held[:, -len(held[0]) // 5 :].mean(1)
    best = {
        "m": ms,
        "proxy": [[expected_best(p, m) for m in ms] for p, _ in found["drawn"]],
        "gold": [[expected_best(p, m, values=g) for m in ms] for p, g in found["drawn"]],
    }
    return {
        "pair_accuracy": found["accuracy"].tolist(),
        "held": {
            "kl": late[:, 0].tolist(),
            "proxy": late[:, 1].tolist(),
            "gold_start": held[:, 0, 2].tolist(),
            "gold": late[:, 2].tolist(),
        },
        "free": {
            "kl": free[:, -1, 0].tolist(),
            "proxy": free[:, -1, 1].tolist(),
            "gold": free[:, -1, 2].tolist(),
            "gold_highest": free[:, :, 2].max(1).tolist(),
            "kl_at_highest": [float(run[run[:, 2].argmax(), 0]) for run in free],
        },
        "best_of": best,
    }


def draw(found: dict, best: dict, path: pathlib.Path) -> None:
    figure = matplotlib.figure.Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = {"gold": ("C1", "-", 2), "proxy": ("C0", "--", 1)}
    for name, (color, line, column) in styles.items():
        for i, run in enumerate(found["free"]):
            root = np.sqrt(np.maximum(run[:, 0], 0))
            left.plot(
                root, run[:, column], color=color, linestyle=line, alpha=0.8, label=name if i == 0 else None
            )
        late = found["held"][:, -len(found["held"][0]) // 5 :].mean(1)
        label = f"{name}, KL held at {TARGET:g}" if name == "gold" else None
        left.scatter(
            np.sqrt(late[:, 0]), late[:, column], color=color, edgecolor="black", zorder=3, label=label
        )
        root = [kl_of_best(m) ** 0.5 for m in best["m"]]
        left.plot(root, np.mean(best[name], 0), color=color, linestyle=":", label=f"{name} of the best of m")
        for i, run in enumerate(found["held"]):
            steps = EVERY * np.arange(len(run))
            right.plot(steps, run[:, column], color=color, linestyle=line, label=name if i == 0 else None)
    for i, run in enumerate(found["held"]):
        right.plot(
            EVERY * np.arange(len(run)),
            run[:, 0],
            color="C2",
            alpha=0.6,
            label="KL (nats)" if i == 0 else None,
        )
    right.axhline(TARGET, color="C2", linestyle=":", label="its target")
    left.set_xlabel("√KL to the untrained policy (√nats)")
    left.set_ylabel("reward (deviations of the untrained policy's)")
    left.set_title("PPO where the KL is free", fontsize=10)
    right.set_xlabel("update")
    right.set_title("PPO with an adaptive price", fontsize=10)
    for ax in (left, right):
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument(
        "--draft", type=pathlib.Path, help="folder for the picture and the figures, in place of their own"
    )
    args = parser.parse_args()
    began = time.perf_counter()
    keys = jax.random.split(jax.random.key(0), args.seeds)
    found = jax.device_get(jax.jit(jax.vmap(partial(run_seed, updates=args.updates)))(keys))
    ms = [2**i for i in range(8)]
    record = {"device": jax.devices()[0].device_kind, "seconds": round(time.perf_counter() - began, 1)}
    record |= {"seeds": args.seeds, "updates": args.updates, "kl_target": TARGET, **summarize(found, ms)}
    results, picture = RESULTS, PICTURE
    if args.draft:
        results, picture = args.draft / RESULTS.name, args.draft / PICTURE.name
    results.write_text(json.dumps(record, indent=1, default=float) + "\n")
    draw(found, record["best_of"], picture)
    print(json.dumps({k: record[k] for k in ("seconds", "pair_accuracy", "held", "free")}, indent=1))


if __name__ == "__main__":
    main()
