"""The loop alone brings no language model, no environment and no terminal."""

import json
import subprocess
import sys

ABSENT = ("flax", "gymnax", "rich", "tyro", "transformers", "tokenizers")
ROOMS = ("lm", "models", "decoding", "tasks", "data", "losses", "agents", "envs", "cli")


def test_the_loop_comes_alone():
    code = "import json, sys, jaxrl4lm.training.loop; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = json.loads(result.stdout.splitlines()[-1])
    assert "jaxrl4lm.training.loop" in loaded
    assert not [name for name in loaded if name.split(".")[0] in ABSENT]
    ours = [name for name in loaded if name.startswith("jaxrl4lm.")]
    assert not [name for name in ours if name.split(".")[1] in ROOMS]
