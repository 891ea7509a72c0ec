"""How many more updates a second does `--staleness 1` make, where a reward is as slow as drawing the completions?

    python benchmarks/staleness.py [--tokens 192] [--updates 10] [--rounds 3]

The reward sleeps for as long as the completions of an update take to be drawn, which is measured before each round. Both ways are
timed in turn; the first updates of each, which compile, are left out. Where drawing takes G and learning L seconds, the most that
can be won is (2G + L) / (G + L).
"""

import argparse
import json
import pathlib
import platform
import sys
import time

from lm_rl_gpt2 import spread
from lm_rl_step import versions

RESULTS = pathlib.Path(__file__).parent / "results" / "staleness.json"
WARM = 3
"""Updates that are left out."""


def main() -> None:
    import jax

    from jaxrl4lm import decoding, lm, models, training
    from jaxrl4lm.data import ByteTokenizer

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--completions", type=int, default=2)
    args = parser.parse_args()
    tokenizer = ByteTokenizer()  # of so many tokens that completions rarely end early
    config = models.TransformerConfig.gpt2(
        tokenizer.vocab_size, layers=2, width=64, heads=4, context=args.tokens + 8
    )
    policy = models.LanguagePolicy(config)
    params = jax.jit(policy.init)(jax.random.key(0))
    pause = 0.0

    def sleep(prompts, completions):
        time.sleep(pause)
        return [float(text.count("a")) for text in completions]

    def make(staleness: int) -> training.Stage:
        numbers = lm.ReinforcementConfig(
            kl_coef=0.0,
            updates=WARM + args.updates * args.rounds,
            prompts_per_update=args.prompts,
            completions=args.completions,
            staleness=staleness,
            sampling=decoding.Sampling(args.tokens),
        )
        algorithm = lm.algorithms.GRPO
        return training.reinforcement(
            policy, tokenizer, list("abcdefgh"), rewards=sleep, algorithm=algorithm, config=numbers
        )

    stages = [make(0), make(1)]
    states = [jax.jit(stage.init)(params) for stage in stages]
    states = [stage.advance(state, 0, WARM)[0] for stage, state in zip(stages, states, strict=True)]
    pauses: list[float] = []
    seconds: list[list[float]] = [[], []]
    for number in range(args.rounds):
        pause = measure_drawing(stages[0], states[0], args.updates)
        pauses.append(pause)
        for way, stage in enumerate(stages):
            began = time.perf_counter()
            states[way], _ = stage.advance(states[way], WARM + number * args.updates, args.updates)
            seconds[way].append((time.perf_counter() - began) / args.updates)
    record = vars(args) | {
        "seconds of drawing, and of the reward": spread(pauses),
        "seconds an update": {f"staleness {way}": spread(each) for way, each in enumerate(seconds)},
        "updates/s of staleness 1 / 0": spread([a / b for a, b in zip(*seconds, strict=True)]),
        "processor": platform.processor() or platform.machine(),
    }
    record |= {"versions": versions(sys.executable, ("jax", "numpy")), "python": platform.python_version()}
    print(record["updates/s of staleness 1 / 0"], record["seconds of drawing, and of the reward"])
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


def measure_drawing(stage, state, times: int) -> float:
    """Seconds that the completions of an update take, the mean of so many."""
    import jax

    host, began = stage.advance.__self__, time.perf_counter()
    for update in range(times):
        jax.block_until_ready(host._draw(state, WARM + update, 0))
    return (time.perf_counter() - began) / times


if __name__ == "__main__":
    main()
