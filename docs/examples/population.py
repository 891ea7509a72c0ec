"""A population as one program: four seeds x three learning rates of GRPO on sorting digits; the best model is saved.

python population.py [--small] [--out best-model]
"""

import argparse
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm import decoding, lm, models, tasks
from jaxrl4lm.lm import algorithms, reinforcement, supervised


class Sizes(NamedTuple):
    digits: int = 3
    layers: int = 2
    width: int = 32
    seeds: int = 4
    supervised_steps: int = 50
    updates: int = 50
    prompts: int = 32
    completions: int = 8


SMALL = Sizes(digits=2, layers=1, width=16, seeds=2, supervised_steps=5, updates=2, prompts=4)
LEARNING_RATES = (3e-4, 1e-3, 3e-3)


def teach(key: jax.Array, policy: models.LanguagePolicy, task: tasks.Task, steps: int):
    """A little teacher forcing, so that some completions earn a reward: the start of every run."""
    config = lm.SupervisedConfig(learning_rate=1e-3, steps=steps, batch=64)
    teacher = supervised.Teacher(policy)
    state = supervised.init(key, config, teacher, policy.init(key))
    source = supervised.task_source(task, config.batch)
    return supervised.run(state, config, teacher, source, steps)[0].params


def main(sizes: Sizes, out: str) -> jax.Array:
    """Trains the population; the last mean reward `[seeds, learning rates]`."""
    task = tasks.sort(sizes.digits)
    policy = models.LanguagePolicy(
        models.TransformerConfig.gpt2(
            task.tokenizer.vocab_size, layers=sizes.layers, width=sizes.width, heads=4, context=16
        )
    )
    params = jax.jit(partial(teach, policy=policy, task=task, steps=sizes.supervised_steps))(
        jax.random.key(0)
    )
    learner = reinforcement.Learner(policy, algorithms.GRPO)
    config = lm.ReinforcementConfig(
        updates=sizes.updates,
        prompts_per_update=sizes.prompts,
        completions=sizes.completions,
        learning_rate=jnp.array(LEARNING_RATES),
        sampling=decoding.Sampling(task.completion_length, task.tokenizer.eos_id, task.tokenizer.pad_id),
    )

    # The leaves of the configuration that are arrays are mapped over; the others are the same for all.
    axes = jax.tree.map(lambda x: 0 if jnp.ndim(x) else None, config)
    train = partial(reinforcement.train, learner=learner, task=task, params=params)
    population = jax.jit(jax.vmap(jax.vmap(train, in_axes=(None, axes)), in_axes=(0, None)))
    states, metrics = population(jax.random.split(jax.random.key(1), sizes.seeds), config)

    last = metrics["reward/mean"][..., -10:].mean(-1)
    for rate, rewards in zip(LEARNING_RATES, last.T.tolist(), strict=True):
        print(f"learning rate {rate:.0e}: mean reward {', '.join(f'{r:.2f}' for r in rewards)}")
    seed, rate = divmod(int(last.argmax()), len(LEARNING_RATES))
    best = jax.tree.map(lambda x: x[seed, rate], states.params)
    models.save(out, policy, best, task.tokenizer)
    print(f"the best one, seed {seed} at {LEARNING_RATES[rate]:.0e}, is saved in {out}")
    return last


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", default="best-model")
    arguments = parser.parse_args()
    main(SMALL if arguments.small else Sizes(), arguments.out)
