"""Two stages, one run: a model imitates a few sums, then learns from whether its own answers are right.

python sft_then_rl.py [--small] [--out runs/sums]
"""

import argparse
from typing import NamedTuple

import jax

from jaxrl4lm import data, decoding, lm, models, training
from jaxrl4lm.data.rewards import exact_match
from jaxrl4lm.lm import algorithms


class Sizes(NamedTuple):
    width: int = 64
    steps: int = 300
    updates: int = 150


SMALL = Sizes(width=16, steps=4, updates=2)


def main(sizes: Sizes, out: str | None) -> training.Run:
    """Trains both stages, and prints the held-out score after each."""
    sums = [(f"{a}+{b}=", str(a + b)) for a in range(10) for b in range(10)]
    tokenizer = data.CharacterTokenizer("0123456789+=")
    config = models.TransformerConfig.gpt2(
        tokenizer.vocab_size, layers=2, width=sizes.width, heads=4, context=8
    )
    policy = models.LanguagePolicy(config)
    teaching = [{"prompt": prompt, "completion": answer} for prompt, answer in sums[::3]]  # a third of all
    imitate = training.supervised(
        policy,
        teaching,
        lm.SupervisedConfig(learning_rate=3e-3, steps=sizes.steps, batch=32),
        tokenizer=tokenizer,
    )
    reinforce = training.reinforcement(
        policy,
        tokenizer,
        [{"prompt": prompt, "answer": answer} for prompt, answer in sums],
        rewards=exact_match,
        algorithm=algorithms.GRPO,
        config=lm.ReinforcementConfig(
            learning_rate=1e-3,
            updates=sizes.updates,
            prompts_per_update=16,
            sampling=decoding.Sampling(max_new_tokens=3),
        ),
    )
    params = jax.jit(policy.init)(jax.random.key(0))
    run = training.fit([imitate, reinforce], params, out=out)
    held_out = run.history["held_out"]
    print(f"held-out answers right: {held_out[0]:.2f} after imitation, {held_out[-1]:.2f} at the end")
    return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    main(SMALL if arguments.small else Sizes(), arguments.out)
