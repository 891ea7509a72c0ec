"""A model and a reward of your own: a small model learns to write names that end in a vowel.

python own_reward.py [--small] [--out runs/names]
"""

import argparse
from typing import NamedTuple

import jax

from jaxrl4lm import data, decoding, lm, models, training
from jaxrl4lm.lm import algorithms

NAMES = "maria john anna peter julia mark elena paul sofia robert lara david mia simon nora thomas"


class Sizes(NamedTuple):
    width: int = 64
    updates: int = 100
    prompts: int = 32


SMALL = Sizes(width=16, updates=4, prompts=4)


def ends_in_a_vowel(prompts, completions, **columns):
    """1 for a completion that ends in a vowel, less a tenth for every letter beyond five."""
    return [float(c[-1:] in tuple("aeiou")) - 0.1 * max(len(c) - 5, 0) for c in completions]


def main(sizes: Sizes, out: str | None) -> training.Run:
    """Trains, and prints what the model wrote before and after."""
    tokenizer = data.CharacterTokenizer.from_texts([NAMES])
    config = models.TransformerConfig.gpt2(
        tokenizer.vocab_size, layers=2, width=sizes.width, heads=4, context=16
    )
    policy = models.LanguagePolicy(config)
    stage = training.reinforcement(
        policy,
        tokenizer,
        [name[:1] for name in NAMES.split()],  # the first letter; the model writes the rest
        rewards=ends_in_a_vowel,
        algorithm=algorithms.RLOO,
        config=lm.ReinforcementConfig(
            learning_rate=1e-3,
            updates=sizes.updates,
            prompts_per_update=sizes.prompts,
            completions=8,
            entropy_coef=0.01,
            sampling=decoding.Sampling(max_new_tokens=8),
        ),
    )
    params = jax.jit(policy.init)(jax.random.key(0))
    run = training.fit(
        [stage], params, out=out, on_progress=lambda report: print(report.headline or report.stage.name)
    )
    for before, after in zip(run.before, run.after, strict=True):
        print(f"{before.prompt}: {before.completion!r} before, {after.completion!r} after")
    return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    main(SMALL if arguments.small else Sizes(), arguments.out)
