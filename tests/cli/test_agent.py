"""The command `agent`: a swept run, its table, its score, going on with it, and what it refuses."""

import json

import pytest

from jaxrl4lm.cli import main
from jaxrl4lm.cli.agent import ALGORITHMS
from jaxrl4lm.plots import episode
from jaxrl4lm.training import folder

SMALL = ["--env", "Catch-bsuite", "--steps", "64", "--environments", "2", "--rollout", "8", "--episodes", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, what was printed) of a run over two learning rates and two seeds."""
    path = tmp_path_factory.mktemp("agent") / "run"
    words = [*SMALL, "--algorithm", "a2c", "--seeds", "2", "--learning-rate", "1e-3", "3e-3"]
    assert main(["agent", *words, "--out", str(path)]) == 0
    return path


def test_a_run_leaves_its_records_and_is_scored(run, capsys):
    assert (run / "learning_curve.png").exists()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 4
    assert len(records[-1]["held_out"]) == 4
    drawn = (run / "episode").stat()
    assert main(["evaluate", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["held_out"] == records[-1]["held_out"]
    assert (run / "episode").stat() == drawn
    assert main(["evaluate", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "learning_rate=0.001" in shown
    assert "IQM" in shown


def test_a_run_leaves_an_episode_to_look_at(run, capsys, monkeypatch):
    """`evaluate` draws it again, and scores the run also where it cannot be drawn."""
    strip, animation = run / "episode" / "filmstrip.png", run / "episode" / "animation.gif"
    before = strip.read_bytes(), animation.read_bytes()
    strip.unlink()
    assert main(["evaluate", str(run)]) == 0
    shown = capsys.readouterr().out
    assert f"an episode of the first agent (learning_rate=0.001): {strip} and animation.gif" in shown
    assert (strip.read_bytes(), animation.read_bytes()) == before
    assert sorted(path.name for path in run.iterdir() if "episode" in path.name) == ["episode"]

    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(strip))

    monkeypatch.setattr(folder, "replace_folder", refuse)
    assert main(["evaluate", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "IQM" in shown
    assert "an episode" not in shown


def test_a_finished_run_has_nothing_to_go_on_with(run, capsys):
    before = (run / "metrics.jsonl").read_text()
    assert main(["agent", "--resume", str(run)]) == 0
    assert (run / "metrics.jsonl").read_text() == before
    assert "learning_rate=0.003" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, said",
    [
        (["--env", "Go"], "--env Go is no environment: name gym:ID, FILE.py:function or one of CartPole-v1"),
        (["--env", "gym:Go-v0"], "--env gym:Go-v0 is no environment of Gymnasium"),
        (["--steps", "1001"], "--steps 1001 is no whole number of updates of 1000 steps: give 1000"),
        (["--learning-rate", "0.1", "-1"], "--learning-rate must be positive, not -1.0"),
        (
            ["--learning-rate", "0.1", "0.2", "0.1000000001"],
            "--learning-rate has 0.1000000001 twice, as numbers of 32 bits: leave one out",
        ),
        (["--minibatches", "7"], "--minibatches 7 does not divide the 1000 steps of an update: give 8"),
        (
            ["--algorithm", "c51", "--least-return", "200"],
            "--least-return 200.0 is not below --largest-return 100.0: give the range",
        ),
        (["--seeds", "0"], "--seeds must be positive, not 0"),
        (
            ["--algorithm", "dqn", "--n-step", "200", "--buffer", "800"],
            "--n-step 200 is more than the buffer holds of a copy: give at most 100",
        ),
        (["--env", "none.py:make"], "--env none.py:make: none.py does not exist: check the path"),
        (
            ["--algorithm", "sac"],
            "--algorithm sac: the actions of CartPole-v1 are numbers, sac needs vectors",
        ),
        (
            ["--algorithm", "dqn", "--env", "Pendulum-v1"],
            "--algorithm dqn: the actions of Pendulum-v1 are vectors",
        ),
        (
            ["--algorithm", "td3", "--env", "Pendulum-v1", "--gradient-steps", "3"],
            "--gradient-steps 3 is no multiple of the --policy-delay 2: give 4",
        ),
        (
            ["--algorithm", "alphazero", "--env", "Pendulum-v1"],
            "--algorithm alphazero: the actions of Pendulum-v1 are vectors: the search needs numbers",
        ),
        (["--algorithm", "alphazero", "--simulations", "0"], "--simulations must be positive, not 0"),
        (["--mesh", "1", "1", "1"], "--mesh spreads a language model over devices"),
    ],
)
def test_bad_options_are_one_sentence(words, said, tmp_path, capsys):
    assert main(["agent", *words, "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_vectors_of_actions_are_learnt_swept_and_scored(tmp_path, capsys):
    words = [
        "--env",
        "Pendulum-v1",
        "--algorithm",
        "sac",
        "--steps",
        "96",
        "--warmup",
        "80",
        "--buffer",
        "96",
    ]
    words += ["--target-entropy=-2", "-1", "--seeds", "2", "--episodes", "2"]
    assert main(["agent", *words, "--out", str(tmp_path / "run")]) == 0
    assert "target_entropy=-1" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    returns = json.loads(capsys.readouterr().out)["held_out"]
    assert len(returns) == 4
    assert max(returns) < 0


def test_a_world_of_ones_own_that_tells_the_time(tmp_path, monkeypatch, capsys):
    """Its run goes on, and is scored, from another folder."""
    monkeypatch.setattr(episode, "FRAMES", 2)
    monkeypatch.setattr(episode, "MOMENTS", 2)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.py").write_text(
        "import gymnax\n\ndef make():\n    world, params = gymnax.make('CartPole-v1')\n"
        "    return world, params.replace(max_steps_in_episode=6)\n"
    )
    monkeypatch.chdir(tmp_path / "here")
    words = ["--env", "mine.py:make", "--time-aware", *SMALL[2:], "--algorithm", "a2c", "--out", "run"]
    assert main(["agent", *words]) == 0
    assert "mine.py:make, a2c: 1 agent of" in capsys.readouterr().out
    assert (tmp_path / "here" / "run" / "episode" / "filmstrip.png").exists()
    config = json.loads((tmp_path / "here" / "run" / "config.json").read_text())
    assert config["problem"]["env"] == f"{tmp_path}/here/mine.py:make"
    monkeypatch.chdir(tmp_path)
    assert main(["agent", "--resume", "here/run"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "here/run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["held_out"] == [6.0]
    mine = tmp_path / "here" / "mine.py"
    mine.write_text(mine.read_text().replace("=6", "=7"))
    for command in (["agent", "--resume"], ["evaluate"]):
        assert main([*command, "here/run"]) == 2
        assert (
            f"{mine} has changed since the run here/run began: put the file back" in capsys.readouterr().err
        )


FAULTY = """
import gymnasium
import numpy as np
from jaxrl4lm.envs.gymnasium_bridge import wrap

class Faulty(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.left = 5
        return np.zeros(2), {}

    def step(self, action):
        self.left -= 1
        if not self.left:
            raise RuntimeError("no power")
        return np.zeros(2), 0.0, False, False, {}

def make():
    return wrap(Faulty, limit=8)
"""


@pytest.mark.slow
def test_an_environment_of_gymnasium(tmp_path, monkeypatch, capsys):
    """It is played, drawn and scored as those of gymnax are; what goes wrong in one is a sentence."""
    monkeypatch.chdir(tmp_path)
    words = ["--algorithm", "a2c", *SMALL[2:]]
    assert main(["agent", "--env", "gym:CartPole-v1:12", *words]) == 0
    assert "gym:CartPole-v1:12, a2c: 1 agent of" in capsys.readouterr().out
    run = tmp_path / "runs" / "CartPole-v1-12-a2c-seed0"
    assert (run / "episode" / "filmstrip.png").exists()
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert main(["evaluate", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["held_out"] == last["held_out"]
    (tmp_path / "faulty.py").write_text(FAULTY)
    assert main(["agent", "--env", "faulty.py:make", *words]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert (
        said
        == "jaxrl4lm agent: Faulty, as it was played, raised RuntimeError at faulty.py:17: no power: mend it"
    )


def test_the_defaults_of_every_algorithm_fit():
    for _, config in ALGORITHMS.values():
        config().check()


def test_help_shows_the_options_of_the_algorithm(capsys):
    for algorithm, option in (("ppo", "--clip-eps"), ("trpo", "--trust-region")):
        with pytest.raises(SystemExit):
            main(["agent", "--algorithm", algorithm, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        assert option in shown
        assert "γ, of later rewards" in shown
