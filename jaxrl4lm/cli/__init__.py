"""The command `jaxrl4lm`: each sub-command is a module with `main(arguments) -> exit code`, imported when it is named."""

import importlib
import io
import os
import signal
import sys

from jaxrl4lm import __version__
from jaxrl4lm.cli.machine_errors import explain_error
from jaxrl4lm.types import InputError

COMMANDS = {
    "train": "train a language model by reinforcement learning",
    "sft": "fine-tune a language model on texts",
    "preference": "train a language model on preferences: DPO and its family, KTO",
    "distill": "train a language model on what others say of completions",
    "reward": "train a reward model on preferences",
    "head": "train a task head: spans, classes or tags",
    "agent": "train control agents on an environment",
    "best-of-n": "sample completions, keep the best, and learn from them in rounds",
    "evaluate": "score a run on what it held out",
    "generate": "complete prompts with a run's model or a Hugging Face folder",
    "solve": "solve a grid world exactly and draw it",
    "bandit": "run the bandit testbed and draw it",
    "gap": "measure how far algorithms end from a known optimum",
    "tour": "walk through the lecture, a picture a topic",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command that the arguments name. Bad input is one sentence on standard error and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        print(f"jaxrl4lm {__version__}")
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        print(f"jaxrl4lm: no command {command!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(f"jaxrl4lm.cli.{command.replace('-', '_')}").main(rest)
    except (BrokenPipeError, SystemExit) as stopped:
        if isinstance(stopped, SystemExit) and not isinstance(stopped.__context__, BrokenPipeError):
            raise
        # The reader of our output has gone (`| head`; rich exits with 1 then): that is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        told = error if isinstance(error, InputError) else explain_error(error)
        if told is None:
            raise
        print(f"jaxrl4lm {command}: {told}", file=sys.stderr)
        return 2


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    return f"usage: jaxrl4lm COMMAND [options]\n\n{rows}\n\njaxrl4lm COMMAND --help lists the options of a command."
