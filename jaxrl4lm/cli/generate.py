"""`jaxrl4lm generate`: completions from a run's model, or from any Hugging Face folder."""

import json
import math
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import jax
import tyro

from jaxrl4lm.cli import run_folder
from jaxrl4lm.cli.compilation_cache import enable_compilation_cache
from jaxrl4lm.cli.prompt_session import decode
from jaxrl4lm.cli.session import load_model
from jaxrl4lm.cli.train_arguments import LARGEST_SEED, Model
from jaxrl4lm.data.corpus import PromptSet, encode_prompts
from jaxrl4lm.data.files import Row, read_jsonl
from jaxrl4lm.decoding import Sampling, generate
from jaxrl4lm.types import InputError

AT_ONCE = 32


@dataclass(frozen=True)
class GenerateArguments:
    """Complete prompts with the model of a run, or of a Hugging Face folder."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Folder of a run that has finished, or one with config.json, model.safetensors and tokenizer.json."""
    prompt: tuple[str, ...] = ()
    """Prompts, one after another."""
    prompts: Path | None = None
    """JSONL with a column `prompt`."""
    n: int = 1
    """How many completions of each prompt."""
    max_new_tokens: int | None = None
    """Longest completion: 64, or what the model's context leaves, if not given."""
    temperature: float = 1.0
    """0: always the most likely token."""
    seed: int = 0
    json: bool = False
    """Print one JSON object a completion."""


def main(arguments: list[str]) -> int:
    """Runs the command."""
    parsed = tyro.cli(GenerateArguments, args=arguments, prog="jaxrl4lm generate")
    for option, value in {"--n": parsed.n, "--max-new-tokens": parsed.max_new_tokens}.items():
        if value is not None and value < 1:
            raise InputError(f"{option} must be at least 1, not {value}")
    if not 0 <= parsed.temperature < math.inf:
        raise InputError(f"--temperature must be 0 or a positive number, not {parsed.temperature}")
    if not 0 <= parsed.seed < LARGEST_SEED:
        raise InputError(f"--seed must lie in 0..{LARGEST_SEED - 1}, not {parsed.seed}")
    enable_compilation_cache()
    policy, params, tokenizer = load_model(Model(model=_model_folder(parsed.model)))
    rows = [Row(i, {"prompt": text}) for i, text in enumerate(parsed.prompt, start=1)]
    source = "--prompt"
    if parsed.prompts is not None:
        rows, source = read_jsonl(parsed.prompts, ["prompt"]), str(parsed.prompts)
    if not rows:
        raise InputError("there is nothing to complete: give --prompt TEXT or --prompts FILE.jsonl")
    context = policy.config.context
    prompts = encode_prompts(rows, "prompt", tokenizer, source, parsed.max_new_tokens or 1, context)
    length = parsed.max_new_tokens or min(64, context - max(map(len, prompts.ids)))
    prompts = prompts._replace(longest=context - length)

    @jax.jit
    def complete(params, tokens, mask, key, temperature, first):
        sampling = Sampling(length, tokenizer.eos_id, tokenizer.pad_id, parsed.n, temperature)
        return generate(policy, params, tokens, mask, key, sampling, row_offset=first, final_values=False)

    temperature = parsed.temperature or None
    batch = partial(complete, params, key=jax.random.key(parsed.seed), temperature=temperature)
    _print_all(parsed, prompts, tokenizer, batch)
    return 0


def _print_all(parsed: GenerateArguments, prompts: PromptSet, tokenizer, batch) -> None:
    began, tokens = time.monotonic(), 0
    total = len(prompts.rows)
    size = min(AT_ONCE, total)
    for first in range(0, total, size):
        indices = [min(i, total - 1) for i in range(first, first + size)]
        done = batch(*prompts.batch(indices, tokenizer.pad_id), first=first * parsed.n)
        texts = decode(tokenizer, done.tokens, done.mask)
        tokens += int(done.mask.sum())
        for i in range(first, min(first + size, total)):
            for text in texts[(i - first) * parsed.n : (i - first + 1) * parsed.n]:
                record = {"prompt": prompts.texts[i], "completion": text}
                print(
                    json.dumps(record, ensure_ascii=False) if parsed.json else f"{prompts.texts[i]}{text}",
                    flush=True,
                )
    seconds = time.monotonic() - began
    print(f"{tokens} tokens in {seconds:.1f} s, compilation included", file=sys.stderr)


def _model_folder(path: Path) -> Path:
    """The exported model of a run, or the folder itself if it holds one."""
    exported = path / run_folder.MODEL
    if exported.is_dir():
        return exported
    if (path / run_folder.CHECKPOINTS).is_dir():
        raise InputError(
            f"{path} has no {run_folder.MODEL}, which is written when a run of one seed ends (several seeds write none): "
            f"go on with jaxrl4lm train --resume {path}"
        )
    if not path.is_dir():
        raise InputError(f"{path} does not exist: name the folder of a run or of a Hugging Face model")
    return path
