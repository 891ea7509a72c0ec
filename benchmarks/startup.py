"""How long from the command to the first update, with nothing compiled before and with the compilation cache warm?

python benchmarks/startup.py
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

RESULTS = pathlib.Path(__file__).parent / "results" / "startup.json"
ONE_UPDATE = ("--pretrain-steps", "0", "--updates", "1", "--evaluate-every", "1")


def first_update(cache: str, out: pathlib.Path) -> float:
    """Seconds from the start of the process to the record of the first update, at the default size."""
    command = [sys.executable, "-m", "jaxrl4lm.cli", "train", *ONE_UPDATE, "--out", str(out)]
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, env={**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
    )
    metrics = out / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and '"reward/mean"' in metrics.read_text()):
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    process.wait()
    return seconds


def main() -> None:
    cold, warm = [], []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            cold.append(first_update(f"{folder}/cache", pathlib.Path(folder) / "cold"))
            warm.append(first_update(f"{folder}/cache", pathlib.Path(folder) / "warm"))
    for name, seconds in (("cold", cold), ("warm", warm)):
        print(f"{name}: {statistics.median(seconds):.1f} s [{min(seconds):.1f}, {max(seconds):.1f}]")
    versions = {p: importlib.metadata.version(p) for p in ("jax", "jaxlib", "flax", "optax")}
    record = {
        "cold": cold,
        "warm": warm,
        "versions": versions,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
