"""The metrics file, and what the terminal shows."""

import io
import json

import pytest
from rich.console import Console

from jaxrl4lm.cli.progress import ProgressLine
from jaxrl4lm.metrics import JsonLines, check_sinks
from jaxrl4lm.types import InputError


def test_every_record_is_on_disk_at_once(tmp_path):
    sink = JsonLines(tmp_path / "m.jsonl", keep=0)
    sink.write({"stage": "a", "step": 1, "x": [0.1, 2.0]})
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"stage": "a", "step": 1, "x": [0.1, 2.0]}
    sink.close()


@pytest.mark.parametrize("keep, expected", [(0, [9]), (2, [0, 1, 9]), (3, [0, 1, 2, 9])])
def test_lines_that_the_state_does_not_know_are_cut(tmp_path, keep, expected):
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"step": i}) + "\n" for i in range(3)) + '{"st')
    sink = JsonLines(path, keep=keep)
    assert [r["step"] for r in sink.records] == expected[:-1]
    sink.write({"step": 9})
    sink.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == expected
    assert [r["step"] for r in sink.records] == expected


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "m.jsonl").write_text("{}\nx\n")
    with pytest.raises(InputError, match=r"m.jsonl is damaged"):
        JsonLines(tmp_path / "m.jsonl", keep=2)
    assert (tmp_path / "m.jsonl").read_text() == "{}\nx\n"


def shown(terminal: bool, width: int = 80) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, color_system=None, legacy_windows=False)
    with ProgressLine(console) as progress:
        for name in ("supervised", "reinforcement"):
            progress.begin(name, 0, 1000)
            for done in (10, 20, 1000):
                text = f"reward 0.123  held-out 0.456  {'KL 12.34  ' * 6}123,456 tokens/s"
                progress.show(done, text, done == 1000)
    return out.getvalue()


def test_plain_lines_where_there_is_no_terminal():
    lines = shown(
        terminal=False, width=20
    ).splitlines()  # the first of a phase, and its last: neither is wrapped
    assert [line.split("  ")[0] for line in lines] == [
        "supervised 10/1000",
        "supervised 1000/1000",
        "reinforcement 10/1000",
        "reinforcement 1000/1000",
    ]
    assert all(line.endswith("tokens/s") for line in lines)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_live_display_is_two_rows_at_any_width(width):
    text = shown(terminal=True, width=width)
    assert "supervised 1000/1000" in text  # stays when the phase has ended
    bars = [line for line in text.replace("\r", "\n").splitlines() if "━" in line]
    assert bars
    assert all("tokens/s" not in line for line in bars)
    assert all("0:00:0" in line and ("left" in line or "compiling" in line) for line in bars)


def test_a_log_needs_its_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(
        InputError, match=r"--log wandb needs the package wandb: pip install 'jaxrl4lm\[wandb\]'"
    ):
        check_sinks(["wandb"])
    check_sinks([])
