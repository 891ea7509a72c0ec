"""The metrics file, and what the terminal shows."""

import importlib
import io
import json
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from jaxrl4lm.cli.progress import ProgressLine
from jaxrl4lm.metrics import PACKAGES, SINKS, JsonLines, check_sinks
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


def test_completions_are_shown_as_a_table():
    """Where the line is due; what is in brackets is no markup, and long texts stay on their line."""
    out = io.StringIO()
    chat = [{"role": "user", "content": "[bold]why?"}]
    row = {"stage": "reinforcement", "step": 7, "prompt": chat, "completion": "a\nb" + "c" * 99}
    row |= {"reward": 0.123456, "reward/mine.py:own": None, "note": "[red]"}
    with ProgressLine(Console(file=out, width=140)) as progress:
        progress.begin("reinforcement", 0, 10)
        progress.show(7, "fine", False, [row])
        progress.show(8, "fine", False, [{**row, "step": 8}])  # too soon
    lines = out.getvalue().splitlines()
    assert lines[0].strip() == "completions of step 7"
    assert [cell.strip() for cell in lines[2].split("┃")[1:-1]] == [
        "prompt",
        "completion",
        "reward",
        "own",
        "note",
    ]
    cells = [cell.strip() for cell in lines[4].split("│")[1:-1]]
    assert cells == ["[bold]why?", "a\\nb" + "c" * 53 + "...", "0.1235", "", "[red]"]
    assert [line.split("  ")[0] for line in lines[6:]] == ["reinforcement 7/10"]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_live_display_is_two_rows_at_any_width(width):
    text = shown(terminal=True, width=width)
    assert "supervised 1000/1000" in text  # stays when the phase has ended
    bars = [line for line in text.replace("\r", "\n").splitlines() if "━" in line]
    assert bars
    assert all("tokens/s" not in line for line in bars)
    assert all("0:00:0" in line and ("left" in line or "compiling" in line) for line in bars)


@pytest.mark.parametrize("name", SINKS)
def test_a_log_needs_its_package(monkeypatch, name):
    monkeypatch.setitem(sys.modules, PACKAGES[name], None)
    message = rf"--log {name} needs the package {PACKAGES[name]}: pip install 'jaxrl4lm\[{name}\]'"
    with pytest.raises(InputError, match=message):
        check_sinks([name])
    check_sinks([])


class StandIn:
    """What the adapters call of wandb, trackio and mlflow; remembers it."""

    def __init__(self):
        self.begun, self.logged, self.ended = [], [], 0
        self.id = self.name = "run-1"
        self.info = SimpleNamespace(run_id=self.id)

    def init(self, **options):
        self.begun.append(options)
        return self

    start_run = init

    def set_experiment(self, name):
        assert name == "jaxrl4lm"

    def log(self, numbers, **options):
        self.logged.append((numbers, options))

    log_metrics = log

    def finish(self):
        self.ended += 1

    end_run = finish


BEGUN = {
    "wandb": lambda folder: (
        {"project": "jaxrl4lm", "name": "run", "dir": folder},
        {"id": "run-1", "resume": "allow"},
    ),
    "trackio": lambda folder: (
        {"project": "jaxrl4lm", "name": "run", "resume": "never", "embed": False},
        {"name": "run-1", "resume": "allow"},
    ),
    "mlflow": lambda folder: ({"run_id": None, "run_name": "run"}, {"run_id": "run-1"}),
}


@pytest.mark.parametrize("name", BEGUN)
def test_a_resumed_run_goes_on_in_the_trackers_run_and_tells_no_step_twice(monkeypatch, tmp_path, name):
    monkeypatch.setitem(sys.modules, PACKAGES[name], package := StandIn())
    folder = tmp_path / "run"
    folder.mkdir()
    for steps in (
        (("a", 0), ("a", 2), ("b", 1)),
        (("a", 2), ("b", 1), ("b", 3)),
    ):  # killed after b 1, resumed from a 1
        sink = SINKS[name](folder)
        for stage, step in steps:
            sink.write({"stage": stage, "step": step, "x": [1.0, 2.0], "nan": None, "seconds": 3})
        sink.close()
    first, changed = BEGUN[name](str(folder))
    assert package.begun == [first, first | changed]
    assert package.ended == 2
    sent = [("a", 0), ("a", 2), ("b", 1), ("b", 3)]
    if name == "wandb":  # which has one count of steps for everything
        assert package.logged == [({f"{s}/x": 1.5, f"{s}/step": n}, {}) for s, n in sent]
    else:
        assert package.logged == [({f"{s}/x": 1.5}, {"step": n}) for s, n in sent]


def test_trackio_itself(monkeypatch, tmp_path):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which it reads when it is imported
    trackio = pytest.importorskip("trackio")
    (tmp_path / "run").mkdir()
    for steps in (0, 1), (1, 2):
        sink = SINKS["trackio"](tmp_path / "run")
        for step in steps:
            sink.write({"stage": "a", "step": step, "x": 0.5})
        sink.close()
    (run,) = trackio.Api().runs("jaxrl4lm")
    logs = importlib.import_module("trackio.sqlite_storage").SQLiteStorage.get_logs("jaxrl4lm", run.name)
    assert [(each["step"], each["a/x"]) for each in logs] == [(0, 0.5), (1, 0.5), (2, 0.5)]


def test_mlflow_itself(monkeypatch, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    for steps in (0, 1), (1, 2):
        sink = SINKS["mlflow"](tmp_path)
        for step in steps:
            sink.write({"stage": "a", "step": step, "x": 0.5})
        sink.close()
    (run,) = mlflow.search_runs(experiment_names=["jaxrl4lm"], output_format="list")
    points = mlflow.MlflowClient().get_metric_history(run.info.run_id, "a/x")
    assert [(point.step, point.value) for point in points] == [(0, 0.5), (1, 0.5), (2, 0.5)]
