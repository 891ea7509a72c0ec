"""Tiny runs, made once."""

import json
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import pytest

from jaxrl4lm.cli import main

SIZES = [
    "--layers",
    "1",
    "--width",
    "16",
    "--heads",
    "2",
    "--prompts-per-update",
    "4",
    "--completions",
    "2",
    "--minibatches",
    "2",
]
SHORT = ["--updates", "4", "--evaluate-every", "2", "--held-out", "8", "--save-interval", "0"]
TASK = [*SIZES, *SHORT, "--digits", "1", "--pretrain.steps", "4", "--pretrain.batch", "4"]

REWARD = '''
"""Pays for the letter that a row asks for."""
from dataclasses import dataclass


@dataclass
class Wanted:
    letter: "str"


def reward(prompts, completions, letter, **columns):
    wanted = [Wanted(each) for each in letter]
    return [c.count(w.letter) / (1 + len(c)) for c, w in zip(completions, wanted)]
'''


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys):
    """The command, in this process: its exit code and what it wrote."""

    def run(*arguments) -> Result:
        capsys.readouterr()  # what fixtures have written
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stopped:  # the parser's
            code = stopped.code
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def spawn(programs):
    """The command as a process of its own, with programs of its own: a kill may tear one."""
    running = []

    def start(*arguments) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxrl4lm.cli", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{programs}-alone"},
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> pathlib.Path:
    """A folder with prompts (ragged, not only ASCII), a text to imitate and a reward."""
    folder = tmp_path_factory.mktemp("files")
    words = ["ab", "bab", "a", "bbba", "ba" * 9, "é→a", "abba", "aab", "b\nb", "bb"]
    rows = [{"prompt": w, "letter": "ab"[i % 2], "line": i} for i, w in enumerate(words)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "text.txt").write_text("".join(f"{w}{w}\n".replace("b\nb", "bb") for w in words))
    (folder / "reward.py").write_text(REWARD)
    return folder


@pytest.fixture(scope="session")
def prompt_options(files) -> list[str]:
    return [
        *SIZES,
        *SHORT,
        *("--prompts", f"{files}/prompts.jsonl", "--reward", f"{files}/reward.py:reward"),
        *("--text", f"{files}/text.txt", "--pretrain.steps", "4", "--pretrain.batch", "4"),
        *("--max-new-tokens", "6", "--held-out", "3"),
    ]


def without(options, name):
    """The options but one with its value, which others of that name would only add to."""
    at = options.index(name)
    return [*options[:at], *options[at + 2 :]]


TEXTS = [*("--layers", "1", "--width", "16", "--heads", "2"), *("--steps", "4", "--batch", "4")]


@pytest.fixture(scope="session")
def text_options(files) -> list[str]:
    """Of `sft`, on prompts and completions."""
    rows = [{"prompt": "ab" * i, "completion": "ba" + "b" * i} for i in range(1, 13)]
    (files / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    data = ["--dataset", f"{files}/pairs.jsonl", "--held-out", "3", "--max-new-tokens", "6"]
    return [*TEXTS, *data, "--evaluate-every", "2", "--save-interval", "0"]


@pytest.fixture(scope="session")
def text_run(tmp_path_factory, text_options) -> pathlib.Path:
    """A finished run of `sft`; not to be changed."""
    folder = tmp_path_factory.mktemp("texts") / "run"
    assert main(["sft", *text_options, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def task_run(tmp_path_factory) -> pathlib.Path:
    """A finished run on a task; not to be changed."""
    folder = tmp_path_factory.mktemp("task") / "run"
    assert main(["train", *TASK, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def prompt_run(tmp_path_factory, prompt_options) -> pathlib.Path:
    """A finished run on prompts; not to be changed."""
    folder = tmp_path_factory.mktemp("prompts") / "run"
    assert main(["train", *prompt_options, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def task_options() -> list[str]:
    return TASK
