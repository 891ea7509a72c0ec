"""A run that is killed, stopped or let down by its reward goes on to the same bits as one that never was."""

import json
import os
import pathlib
import random
import shutil
import signal
import time

import pytest

from tests.cli.conftest import without
from tests.selection import slow_but

LONG = ["--updates", "10", "--evaluate-every", "2", "--save-interval", "0"]
TASK_STEPS, PROMPT_STEPS, TEXT_STEPS = 120, 150, 300
"""Several chunks of teacher forcing each."""


def bits(run: pathlib.Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def records(run: pathlib.Path) -> list[dict]:
    """All that was measured, the clock aside."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def same(run: pathlib.Path, whole: pathlib.Path) -> bool:
    assert records(run) == records(whole)
    assert (run / "samples.txt").read_text() == (whole / "samples.txt").read_text()
    return bits(run) == bits(whole)


def lines(run: pathlib.Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def saving(run: pathlib.Path) -> bool:
    """Whether a checkpoint is being written at this moment."""
    folder = run / "checkpoints"
    try:
        return folder.exists() and any("tmp" in path.name for path in folder.iterdir())
    except FileNotFoundError:
        return False


def moments(steps: int, kind: str) -> list:
    """When to kill: conditions on the run folder, of each stage and kind, with random numbers of lines."""
    first, second = random.randint(1, steps - 1), steps + random.randint(1, 9)
    if kind == "texts":  # one stage, saved after each of its chunks
        first, second = sorted(random.sample(range(1, steps), 2))
    return [
        lambda run: (run / "config.json").exists(),  # before there is anything to go on from
        lambda run: lines(run) >= first,
        lambda run: lines(run) > (first if kind == "texts" else steps) and saving(run),
        lambda run: lines(run) >= second,
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["task", "prompts", "stale", "texts"])
def test_killed_at_any_moment(kind, spawn, task_options, prompt_options, text_options, tmp_path):
    command, steps = {
        "task": ("train", TASK_STEPS),
        "prompts": ("train", PROMPT_STEPS),
        "stale": ("train", PROMPT_STEPS),
        "texts": ("sft", TEXT_STEPS),
    }[kind]
    options = {
        "task": [*task_options, *LONG, "--pretrain.steps", steps],
        "prompts": [*prompt_options, *LONG, "--pretrain.steps", steps],
        "stale": [*prompt_options, *LONG, "--staleness", 1, "--pretrain.steps", steps],
        "texts": [*text_options, "--steps", steps, "--evaluate-every", 50, "--save-interval", 0],
    }[kind]
    whole, run = tmp_path / "whole", tmp_path / "run"
    process = spawn(command, *options, "--out", whole)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    kills = 0
    for moment in moments(steps, kind):
        start = ["--resume", run] if run.exists() else [*options, "--out", run]
        process = spawn(command, *start)
        while process.poll() is None and not moment(run):
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.02))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    process = spawn(command, "--resume", run)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert kills >= (2 if kind == "texts" else 3)
    assert same(run, whole)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == sorted(
        p.name for p in (whole / "checkpoints").iterdir()
    )


UNSTEADY = """
import os, pathlib, signal
TROUBLE = pathlib.Path(__file__).with_name("trouble")
calls = 0


def reward(prompts, completions, letter, **columns):
    global calls
    calls += 1
    what, at = TROUBLE.read_text().split() if TROUBLE.exists() else ("none", "0")
    if calls == int(at):
        if what == "raise":
            raise RuntimeError("the verifier is down")
        for name in what.split("+") if what != "none" else []:
            os.kill(os.getpid(), getattr(signal, name))
    return [c.count(l) / (1 + len(c)) for c, l in zip(completions, letter)]
"""


@pytest.fixture(scope="module")
def unsteady(tmp_path_factory, prompt_options):
    """Options with a reward that does what the file `trouble` beside it says, and a run without trouble."""
    from jaxrl4lm.cli import main

    folder = tmp_path_factory.mktemp("unsteady")
    (folder / "unsteady.py").write_text(UNSTEADY)
    options = [*without(prompt_options, "--reward"), "--reward", f"{folder}/unsteady.py:reward"]
    options += ["--updates", "8"]
    options += ["--evaluate-every", "4", "--save-interval", "inf"]
    assert main(["train", *options, "--out", str(folder / "whole")]) == 0
    return folder, options


# Calls: 1 the start, 2 after teacher forcing, 3 samples, 4-7 updates 1-4, 8 evaluation, 9-12 updates 5-8, 13, 14 samples.
@pytest.mark.parametrize(
    "trouble, code, said, done",
    slow_but(
        [
            ("SIGTERM 5", 143, "go on with: jaxrl4lm train --resume", 2),
            ("SIGINT 5", 130, "go on with: jaxrl4lm train --resume", 2),
            ("SIGTERM 1", 143, "go on with: jaxrl4lm train --resume", 0),
            ("SIGINT+SIGINT 10", 130, "go on from the last checkpoint", None),
            ("raise 4", 2, "RuntimeError", 0),
            ("raise 6", 2, "RuntimeError", 2),
            ("raise 11", 2, "RuntimeError", 6),
            ("raise 8", 2, "RuntimeError", None),
            ("raise 14", 2, "RuntimeError", 8),
        ],
        1,
    ),
)
def test_stopped_or_let_down(cli, unsteady, tmp_path, trouble, code, said, done):
    """Signals finish the update; a reward that raises costs no update that was done. What is saved goes on to the same bits."""
    folder, options = unsteady
    run = tmp_path / "run"
    (folder / "trouble").write_text(trouble)
    result = cli("train", *options, "--out", run)
    (folder / "trouble").unlink()
    assert result.code == code, result.err
    assert said in result.out + result.err
    if done is None and not run.exists():  # it had not come to a checkpoint
        assert "removed" in result.err
        return
    assert f"--resume {run}" in result.out + result.err
    if done:
        seen = [r["step"] for r in records(run) if r["stage"] == "reinforcement"]
        assert seen == list(range(done + 1))
    resumed = cli("train", "--resume", run)
    assert resumed.code == 0, resumed.err
    if done:
        assert f"resumed at reinforcement {done}/8" in resumed.out
    assert same(run, folder / "whole")


def test_a_reward_that_never_worked_leaves_nothing(cli, unsteady, tmp_path):
    folder, options = unsteady
    (folder / "trouble").write_text("raise 1")
    result = cli("train", *options, "--out", tmp_path / "run")
    (folder / "trouble").unlink()
    assert result.code == 2
    assert "the verifier is down" in result.err
    assert not (tmp_path / "run").exists()


def test_a_finished_run_stays_as_it_is(cli, task_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(task_run, run)
    shutil.rmtree(run / "model")
    result = cli("train", "--resume", run)
    assert result.code == 0, result.err
    assert same(run, task_run)
    assert not list(run.glob("*.tmp*"))


@pytest.mark.slow
def test_lines_beyond_the_checkpoint_are_written_anew(cli, task_run, tmp_path):
    """As after a kill: the file of metrics is ahead of the state, its last line torn."""
    run = tmp_path / "run"
    shutil.copytree(task_run, run)
    newest = max((run / "checkpoints").iterdir(), key=lambda p: int(p.name))
    shutil.rmtree(newest)
    os.truncate(run / "metrics.jsonl", (run / "metrics.jsonl").stat().st_size - 10)
    assert cli("train", "--resume", run).code == 0
    assert same(run, task_run)
