"""`jaxrl4lm solve`: prints the known answers, draws a picture, and refuses bad input with one sentence."""

import subprocess
import sys

import pytest

from jaxrl4lm.cli import solve
from jaxrl4lm.types import InputError
from tests.selection import slow_but


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments):
        return solve.main([str(a) for a in arguments]), capsys.readouterr().out

    return command


def test_russell_and_norvig_is_the_default(run, tmp_path):
    code, out = run()
    assert code == 0
    for value in ("0.812", "0.868", "0.918", "0.762", "0.660", "0.705", "0.655", "0.611", "0.388"):
        assert value in out
    assert "11 states" in out
    assert "every value within" in out
    assert (tmp_path / "solution.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "method", slow_but(["value-iteration", "policy-iteration", "modified-policy-iteration"], 1)
)
def test_a_map_with_options(run, tmp_path, method):
    path = tmp_path / "corridor.txt"
    path.write_text("S . +1\n# . -1\n")
    code, out = run(path, "--discount", 0.5, "--living-reward", -1, "--method", method, "--picture", "None")
    assert code == 0
    assert "-0.500" in out  # −1 + ½ · (+1)
    assert "-1.250" in out  # −1 + ½ · (−0.5)
    assert not (tmp_path / "solution.png").exists()


def test_a_map_may_begin_with_a_byte_order_mark(run, tmp_path):
    (tmp_path / "map.txt").write_bytes(b"\xef\xbb\xbfS . +1\n")
    assert run(tmp_path / "map.txt", "--picture", "None")[0] == 0


@pytest.mark.slow
def test_a_reader_that_goes_is_no_error():
    program = "import sys; from jaxrl4lm.cli import main; sys.stdin.read(); sys.exit(main(['solve', '--picture', 'None']))"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", program], **pipes)
    process.stdout.close()  # before anything is written
    process.stdin.close()
    assert process.wait() == 0


def test_a_malformed_map_names_line_and_column(run, tmp_path):
    path = tmp_path / "bad.txt"
    path.write_text(". . +1\n. ? .\n")
    with pytest.raises(InputError, match=r"Line 2, column 3: '\?'"):
        run(path)


def test_a_missing_map_and_a_bad_picture_are_refused(run, tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        run(tmp_path / "none.txt")
    with pytest.raises(InputError, match="cannot be written"):
        run("--picture", tmp_path / "picture.nonsense")


def test_a_short_line_names_line_and_column(run, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text(". . +1\n. .\n")
    with pytest.raises(InputError, match="Line 2, column 4: the line has 2 cells, line 1 has 3"):
        run(path)


@pytest.mark.parametrize(
    "option, value", [("--tolerance", "0"), ("--max-iterations", "0"), ("--max-iterations", "3000000000")]
)
def test_limits_that_make_no_sense_are_refused(run, option, value):
    with pytest.raises(InputError, match=f"{option} is {value}: give"):
        run(option, value)


def test_one_world_at_a_time(run, tmp_path):
    with pytest.raises(InputError, match=r"Both the map .* and --world cliff are given"):
        run(tmp_path / "map.txt", "--world", "cliff")


def test_a_world_too_wide_for_the_terminal_is_drawn_as_arrows(run, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    path = tmp_path / "wide.txt"
    path.write_text("S " + ". " * 18 + "+1\n" + "# " * 20)
    code, out = run(path, "--picture", "None")
    assert code == 0
    assert "→" * 19 + "*\n" + "#" * 20 in out
    assert "…" not in out


def test_an_endless_world_exits_with_1_and_says_so(run, tmp_path):
    path = tmp_path / "closed.txt"
    path.write_text(". # +1\n")
    code, out = run(
        path, "--discount", 1, "--living-reward", -1, "--max-iterations", 100, "--picture", "None"
    )
    assert code == 1
    assert "Not converged" in out


def test_help_explains_the_map(capsys):
    with pytest.raises(SystemExit) as stop:
        solve.main(["--help"])
    assert stop.value.code == 0
    assert "wall" in capsys.readouterr().out
