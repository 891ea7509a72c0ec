"""`jaxrl4lm generate`: completions from a run's model, or from any Hugging Face folder."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from jaxrl4lm.cli.compilation_cache import enable_compilation_cache
from jaxrl4lm.cli.completions import Completer, Report, converse, print_completions
from jaxrl4lm.cli.load_model import load_model
from jaxrl4lm.cli.options import LARGEST_SEED, make_penalties, make_truncations, parse
from jaxrl4lm.data.corpus import encode_prompts
from jaxrl4lm.data.files import Message, Row, read_jsonl, read_text
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxrl4lm.decoding import Sampling
from jaxrl4lm.training import folder as run_folder
from jaxrl4lm.types import InputError

INTERRUPTED = 130
Option = tyro.conf.arg


@dataclass(frozen=True)
class GenerateArguments:
    """Complete prompts, or chat, with the model of a run or of a Hugging Face folder; the text comes as it is made.

    Bytes that are no UTF-8 text become replacement characters. --json holds the same text that is shown without it.
    """

    folder: Annotated[Path | None, tyro.conf.Positional, Option(metavar="MODEL")] = None
    """Folder of a run that has finished, or one with config.json, model.safetensors and tokenizer.json."""
    model: Path | None = None
    """The same folder, as an option."""
    prompt: tuple[str, ...] = ()
    """Prompts, one after another."""
    prompts: Path | None = None
    """JSONL with a column `prompt` (text, or messages for the model's chat template), or a text file with a prompt a line."""
    chat: bool = False
    """Prompts are messages under the model's chat template; without any, talk: a message a line of standard input."""
    system: str | None = None
    """The system message of --chat."""
    n: Annotated[int, Option(aliases=["-n"])] = 1
    """How many completions of each prompt."""
    max_new_tokens: int | None = None
    """Longest completion: 64 (in a chat 256), or what the model's context leaves, if not given."""
    temperature: float = 1.0
    """0: always the most likely token."""
    greedy: bool = False
    """Always the most likely token."""
    top_k: int | None = None
    """Draw from the k most likely tokens."""
    top_p: float | None = None
    """Draw from the fewest tokens that have this probability together."""
    min_p: float | None = None
    """Draw from tokens at least this many times as likely as the most likely."""
    repetition_penalty: float | None = None
    """Above 1: tokens of the text so far become less likely."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion; they are not printed. A stop text counts where it lies wholly in the completion."""
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the parameters and the matrix products."""
    json: bool = False
    """Print one JSON object a completion."""


def main(arguments: list[str]) -> int:
    """Runs the command."""
    parsed = parse(GenerateArguments, arguments, "generate")
    folder = _model_folder(parsed)
    _check(parsed)
    enable_compilation_cache()
    report = Report()
    try:
        _run(parsed, folder, report)
    except KeyboardInterrupt:
        print()
        return INTERRUPTED
    finally:
        print(report, end="", file=sys.stderr)
    return 0


def _run(parsed: GenerateArguments, folder: Path, report: Report) -> None:
    policy, params, tokenizer = load_model(folder, parsed.dtype, parsed.dtype)
    rows, source = _rows(parsed)
    given = [row.columns["prompt"] for row in rows]
    system = [] if parsed.system is None else [{"role": "system", "content": parsed.system}]
    if parsed.chat:
        rows = [
            Row(row.line, {**row.columns, "prompt": _address(row.columns["prompt"], system)}) for row in rows
        ]
    context, least = policy.config.context, parsed.max_new_tokens or 1
    embeddings = policy.config.vocab_size
    prompts = encode_prompts(rows, "prompt", tokenizer, source, least, context, embeddings=embeddings)
    prompts = prompts._replace(given=given)
    longest = max(map(len, prompts.ids), default=context // 2)
    length = parsed.max_new_tokens or min(256 if parsed.chat else 64, context - longest)
    sampling = _sampling(parsed, tokenizer, length)
    key = jax.random.key(parsed.seed)
    completer = Completer(policy, params, tokenizer, sampling, parsed.stop, key, report)
    if rows:
        print_completions(completer, prompts, as_json=parsed.json, echo=not parsed.chat)
    else:
        converse(completer, system)


def _check(parsed: GenerateArguments) -> None:
    """Raises InputError where an option is out of range or contradicts another."""
    for option, value in {
        "--n": parsed.n,
        "--max-new-tokens": parsed.max_new_tokens,
        "--top-k": parsed.top_k,
    }.items():
        if value is not None and value < 1:
            raise InputError(f"{option} must be at least 1, not {value}")
    for option, value in {"--top-p": parsed.top_p, "--min-p": parsed.min_p}.items():
        if value is not None and not 0 < value <= 1:
            raise InputError(f"{option} must lie above 0 and be at most 1, not {value}")
    if not (parsed.temperature == 0 or 1e-6 <= parsed.temperature < math.inf):
        raise InputError(
            f"--temperature must be 0 (the most likely token) or at least 1e-6, not {parsed.temperature}"
        )
    penalty = parsed.repetition_penalty
    if penalty is not None and not 0 < penalty < math.inf:
        raise InputError(f"--repetition-penalty must be a positive number, not {penalty}")
    if "" in parsed.stop:
        raise InputError("--stop '' would end every completion at once: give a text")
    if not 0 <= parsed.seed < LARGEST_SEED:
        raise InputError(f"--seed must lie in 0..{LARGEST_SEED - 1}, not {parsed.seed}")
    if parsed.system is not None and not parsed.chat:
        raise InputError("--system is a message of a chat: add --chat")
    for option, texts in {
        "--prompt": parsed.prompt,
        "--stop": parsed.stop,
        "--system": [parsed.system or ""],
    }.items():
        for text in texts:
            if any("\ud800" <= c <= "\udfff" for c in text):
                raise InputError(f"{option} {text!a} is not UTF-8: write it so, in a UTF-8 locale")
    if parsed.prompt and parsed.prompts:
        raise InputError("--prompt and --prompts both name what to complete: give one")
    if parsed.prompt or parsed.prompts:
        return
    if not parsed.chat:
        raise InputError("there is nothing to complete: give --prompt TEXT or --prompts FILE")
    if parsed.n > 1 or parsed.json:
        raise InputError(
            "a conversation has one answer, as text: give --prompt TEXT, or leave out -n and --json"
        )


def _address(prompt: str | list[Message], system: list[Message]) -> list[Message]:
    """A text as what a user says; before it, or before messages that are given, the system's message."""
    return [*system, *([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)]


def _rows(parsed: GenerateArguments) -> tuple[list[Row], str]:
    """Prompts by their number or line, and where they come from."""
    if parsed.prompts is None:
        return [Row(i, {"prompt": text}) for i, text in enumerate(parsed.prompt, start=1)], "--prompt"
    if parsed.prompts.suffix in (".jsonl", ".json"):
        return read_jsonl(parsed.prompts, ["prompt"], chats=True), str(parsed.prompts)
    lines = enumerate(read_text(parsed.prompts).split("\n"), start=1)
    return [Row(i, {"prompt": line}) for i, line in lines if line.strip()], str(parsed.prompts)


def _sampling(parsed: GenerateArguments, tokenizer: HuggingFaceTokenizer, length: int) -> Sampling:
    return Sampling(
        length,
        tokenizer.eos_ids,
        tokenizer.pad_id,
        copies=parsed.n,
        temperature=None if parsed.greedy else parsed.temperature or None,
        penalties=make_penalties(parsed),
        truncations=make_truncations(parsed),
    )


def _model_folder(parsed: GenerateArguments) -> Path:
    """The folder of the model that the options name."""
    if parsed.folder and parsed.model:
        raise InputError(f"two models are named, {parsed.folder} and {parsed.model}: name one")
    path = parsed.folder or parsed.model
    if path is None:
        raise InputError(
            "no model is named: jaxrl4lm generate MODEL, the folder of a run or of a Hugging Face model"
        )
    return find_model(path)


def find_model(path: Path) -> Path:
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
