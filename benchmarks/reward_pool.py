"""How close do rewards in a pool of processes come to the ideal: their seconds, divided by the processes?

    python benchmarks/reward_pool.py [--workers 2] [--completions 32] [--seconds 0.2] [--rounds 5]

The reward sleeps, so the processes need no core of their own; the first batch, which starts them, is left out. A round's ratio is
its seconds over completions x seconds / workers.
"""

import argparse
import json
import pathlib
import platform
import sys
import time

from lm_rl_gpt2 import spread
from lm_rl_step import versions

RESULTS = pathlib.Path(__file__).parent / "results" / "reward_pool.json"


def sleep(completions, seconds):
    """A slow reward."""
    time.sleep(seconds[0])
    return [float(len(text)) for text in completions]


def main() -> None:
    from jaxrl4lm.data import rewards
    from jaxrl4lm.data.reward_pool import RewardPool

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--completions", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    count = args.completions
    texts = [f"completion {i}" for i in range(count)]
    batch = rewards.Batch(["prompt"] * count, texts, [[1]] * count, {"seconds": [args.seconds] * count})
    pool = RewardPool(f"{pathlib.Path(__file__).absolute()}:sleep", args.workers)
    ratios = []
    try:
        for number in range(args.rounds + 1):
            began = time.perf_counter()
            rewards.judge({"sleep": pool}, batch)
            if number:
                ratios.append((time.perf_counter() - began) * args.workers / (count * args.seconds))
    finally:
        pool.close()
    record = vars(args) | {
        "seconds / ideal": spread(ratios),
        "processor": platform.processor() or platform.machine(),
    }
    record |= {"versions": versions(sys.executable, ("jax", "numpy")), "python": platform.python_version()}
    print(record["seconds / ideal"])
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
