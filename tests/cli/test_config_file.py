"""`--config FILE.yaml`: options from a file."""

import json
from pathlib import Path

import pytest
import yaml

from jaxrl4lm.cli.bandit import BanditArguments
from jaxrl4lm.cli.config_file import Loader, fill, list_options
from jaxrl4lm.cli.distill import DistillArguments
from jaxrl4lm.cli.evaluate import EvaluateArguments
from jaxrl4lm.cli.gap import GapArguments
from jaxrl4lm.cli.generate import GenerateArguments
from jaxrl4lm.cli.options import parse
from jaxrl4lm.cli.preference import PreferenceArguments
from jaxrl4lm.cli.reward import RewardArguments
from jaxrl4lm.cli.sft import SftArguments
from jaxrl4lm.cli.solve import SolveArguments
from jaxrl4lm.cli.tour import TourArguments
from jaxrl4lm.cli.train_options import TrainArguments, parse_train
from jaxrl4lm.types import InputError

KINDS = {
    "train": TrainArguments,
    "sft": SftArguments,
    "preference": PreferenceArguments,
    "distill": DistillArguments,
    "reward": RewardArguments,
    "generate": GenerateArguments,
    "evaluate": EvaluateArguments,
    "solve": SolveArguments,
    "bandit": BanditArguments,
    "gap": GapArguments,
    "tour": TourArguments,
}


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "options.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


TRAIN = """
learning-rate: 1e-6
kl_coef: 1                      # a whole number where any will do
pretrain: {steps: 3, learning_rate: 2.5E-3}
pretrain.batch: 16
stop: ["a b", "5"]
lora_targets: query
lora_rank: 2
mesh: [1, 2, 1]
temperature: .5
"""
WORDS = [
    *(
        "--learning-rate",
        "1e-6",
        "--kl-coef",
        "1",
        "--pretrain.steps",
        "3",
        "--pretrain.learning-rate",
        "2.5e-3",
    ),
    *("--pretrain.batch", "16", "--stop", "a b", "5", "--lora-targets", "query", "--lora-rank", "2"),
    *("--mesh", "1", "2", "1", "--temperature", "0.5"),
]


def test_a_file_says_what_words_say(write):
    file, words = parse_train(["--config", write(TRAIN)]), parse_train(WORDS)
    assert file == words
    assert isinstance(
        file.reinforcement.kl_coef, float
    )  # of a whole number another program would be compiled
    as_json = write(json.dumps(yaml.load(TRAIN, Loader), indent="\t"), "options.json")
    assert parse_train([f"--config={as_json}"]) == words


def test_words_override_the_file_and_later_files_earlier_ones(write):
    first, second = write(TRAIN), write("lora_rank: 4\nstop: []", "second.yaml")
    words = ["--config", first, "--stop", "z", "--pretrain.steps", "5", "--no-strict", "--config", second]
    found = parse(SftArguments, ["--config", write("strict: true\nsteps: 4", "3"), "--no-strict"], "sft")
    assert (found.texts.strict, found.supervised.steps) == (False, 4)
    words.remove("--no-strict")
    found = parse_train(words)
    assert (found.sampling.stop, found.pretrain.steps, found.adaptation.lora_rank) == (("z",), 5, 4)
    assert found.pretrain.batch == 16


def test_defaults_follow_what_the_file_names(write, tmp_path):
    """With a model in the file the defaults are those of a given model."""
    given = parse_train(["--config", write(f"model: {tmp_path}\nreward: exact_match\nprompts: p.jsonl")])
    assert given.reinforcement.updates == 100
    assert given == parse_train(["--model", str(tmp_path), "--reward", "exact_match", "--prompts", "p.jsonl"])


@pytest.mark.parametrize("command", KINDS)
def test_every_option_of_every_command_can_stand_in_a_file(write, command):
    """What `config.json` says of the defaults is a file of options that changes nothing."""
    kind = KINDS[command]
    default = kind(Path("folder")) if command == "evaluate" else kind()
    values = {}
    for name, (path, _) in list_options(kind):
        value = default
        for each in path:
            value = getattr(value, each)
        values[name] = value
    plain = json.loads(json.dumps(values, default=str))
    assert len(plain) == len(values) > 1
    assert fill(kind, None, Path(write(yaml.dump(plain))), command) == default


def test_a_required_word_can_stand_in_the_file(write):
    assert str(parse(EvaluateArguments, ["--config", write("run: here")], "evaluate").run) == "here"
    with pytest.raises(SystemExit):
        parse(EvaluateArguments, ["--config", write("json: true")], "evaluate")


REFUSED = {
    "a: [1": r"options.yaml, line 1 is not YAML \(expected ',' or '\]'",
    "\nstepz: 1": r"options.yaml, line 2: stepz is no option of jaxrl4lm sft: did you mean steps",
    "zzzz: 1": "zzzz is no option of jaxrl4lm sft: jaxrl4lm sft --help lists them",
    "steps: many": "line 1: steps must be a whole number, not 'many'",
    "steps: 1.5": "steps must be a whole number, not 1.5",
    "steps: true": "steps must be a whole number, not True",
    "strict: 1": "strict must be true or false, not 1",
    "learning_rate: [1]": r"learning_rate must be a number, not \[1\]",
    "out: 5": "out must be text or null, in quotes, not 5",
    "loss: mse": "loss must be one of nll, dft, not 'mse'",
    "mesh: [1, 2]": "mesh must be a list of 3 values, each a whole number or null",
    "columns: [1]": "columns must be a list of values, each text",
    "steps: 1\nsteps: 2": "line 2: steps is given twice",
    "- steps": "options.yaml must hold options and their values",
    "supervised: {steps: 1}": "supervised.steps is no option of jaxrl4lm sft: did you mean steps",
    "sampling: 1": "sampling is no option",
    "steps: !!python/name:os.system": "is not YAML",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_wrong_with_a_file_is_one_sentence(write, text):
    with pytest.raises(InputError, match=REFUSED[text]):
        parse(SftArguments, ["--config", write(text)], "sft")


def test_a_file_must_be_there(cli, tmp_path):
    missing = cli("sft", "--config", tmp_path / "none.yaml")
    assert (missing.code, missing.err.count("\n")) == (2, 1)
    assert "none.yaml cannot be read: No such file" in missing.err
    assert "--config names no file" in cli("bandit", "--config").err
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8 text" in cli("solve", "--config", tmp_path / "b").err


def test_a_run_keeps_the_options_and_resumes_without_the_file(cli, text_run, text_options, write, tmp_path):
    words = zip(text_options[::2], text_options[1::2], strict=True)
    config = write(yaml.dump({name[2:]: yaml.load(value, Loader) for name, value in words}))
    run = tmp_path / "run"
    assert cli("sft", "--config", config, "--out", run).code == 0
    kept = [json.loads((each / "config.json").read_text()) for each in (text_run, run)]
    for each in kept:
        each["run"].pop("out")
    assert kept[0] == kept[1]
    Path(config).unlink()
    assert cli("sft", "--resume", run).code == 0
    assert "give no other option" in cli("sft", "--resume", run, "--config", write("steps: 5")).err


def test_help_names_the_file(cli):
    assert "--config FILE.yaml" in cli("generate", "--help").out
