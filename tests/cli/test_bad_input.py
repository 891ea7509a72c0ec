"""Bad input: one clear sentence on standard error, exit code 2, nothing overwritten, nothing left behind."""

import json
import pathlib
import shutil

import pytest

from jaxrl4lm.cli import train
from jaxrl4lm.cli.options import from_json, to_json
from jaxrl4lm.cli.train_options import TrainArguments, check, parse_train
from jaxrl4lm.training import loop
from tests.cli.conftest import without
from tests.selection import slow_but

PROMPTS = '{"prompt": "ab", "answer": "b"}\n' * 12


@pytest.fixture
def here(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def snapshot(folder: pathlib.Path) -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def refused(cli, here, arguments, said) -> None:
    """The command says so in one line, and the folder is as it was."""
    before = snapshot(here)
    result = cli(*arguments)
    assert result.code == 2, (result.out, result.err)
    assert said in result.err
    assert "Traceback" not in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert snapshot(here) == before


OPTIONS = [
    ("--layers 0", "--layers must be positive, not 0"),
    ("--width 18 --heads 4", "width"),
    (
        "--layers 10000000",
        "--layers 10000000 --width 64 is a model of 491,520,000,000 parameters, which take",
    ),
    ("--heads -1", "--heads must be positive, not -1"),
    ("--context 3", "--context 3: 2-digit addition needs 10 tokens"),
    ("--digits 9", "digits must lie in 1..8, not 9"),
    ("--digits 0", "--digits must be positive"),
    ("--task sort --digits 1", "--digits: length must be at least 2, not 1"),
    (
        "--prompts-per-update 6",
        "--prompts-per-update 6 must be a multiple of --minibatches x --micro-batches (4 x 1)",
    ),
    ("--prompts-per-update 6 --minibatches 2 --micro-batches 2", "(2 x 2)"),
    ("--prompts-per-update 0", "--prompts-per-update must be positive, not 0"),
    ("--completions 0", "--completions must be positive"),
    ("--algorithm grpo --completions 1", "--completions must be at least 2"),
    ("--algorithm rloo --completions 1", "--completions must be at least 2"),
    ("--updates -1", "--updates must not be negative, not -1"),
    ("--epochs 0", "--epochs must be positive"),
    ("--minibatches 0", "--minibatches must be positive"),
    ("--micro-batches 0", "--micro-batches must be positive"),
    ("--max-new-tokens 7", "--max-new-tokens 7: 2-digit addition is answered in 4 tokens"),
    ("--learning-rate 0", "--learning-rate must be positive, not 0.0"),
    ("--learning-rate nan", "--learning-rate must be a finite number, not nan"),
    ("--learning-rate 1e40", "--learning-rate must be at most 1e+30"),
    ("--updates 3000000000", "--updates must be at most 2147483647, not 3000000000"),
    ("--completions 3000000000", "--completions must be at most 2147483647"),
    ("--warmup -1", "--warmup must not be negative, not -1"),
    ("--pretrain-until nan", "--pretrain-until must be a finite number, not nan"),
    ("--final-learning-rate-share nan", "--final-learning-rate-share must be a finite number"),
    ("--final-learning-rate-share 2", "--final-learning-rate-share must lie in 0..1"),
    ("--pretrain.learning-rate inf", "--pretrain.learning-rate must be a finite number, not inf"),
    ("--temperature 0", "--temperature must be positive"),
    ("--temperature inf", "--temperature must be a finite number"),
    ("--clip-eps -0.1", "--clip-eps must be positive, not -0.1"),
    ("--kl-coef -1", "--kl-coef must not be negative"),
    ("--kl-coef nan", "--kl-coef must be a finite number"),
    ("--kl-target 0", "--kl-target must be positive"),
    ("--entropy-coef nan", "--entropy-coef must be a finite number"),
    ("--entropy-coef -1", "--entropy-coef must not be negative"),
    ("--discount 1.1", "--discount must lie in 0..1, not 1.1"),
    ("--gae-lambda -0.1", "--gae-lambda must not be negative"),
    ("--seed -1", "--seed must not be negative"),
    ("--seed 99999999999", "--seed must lie in 0.."),
    ("--seeds 0", "--seeds must be positive"),
    ("--evaluate-every 0", "--evaluate-every must be positive"),
    ("--save-interval nan", "--save-interval must be a finite number"),
    ("--held-out 0", "--held-out 0: a built-in task has held-out problems"),
    ("--held-out -1", "--held-out must not be negative"),
    ("--prompts p.jsonl", "--prompts needs a --reward"),
    ("--text p.jsonl", "--text needs a --reward"),
    ("--model m", "--model needs a --reward"),
    ("--staleness 1", "--staleness 1 needs a --reward"),
    ("--reward exact_match", "--reward needs --prompts"),
    ("--out file/run", "the run folder file/run cannot be written (Not a directory)"),
    ("--out full", "--out full exists: go on with it by --resume full, or name another folder"),
    ("--out file", "--out file exists"),
    ("--resume missing", "missing is not a run folder"),
    ("--resume full", "full is not a run folder (it has no config.json)"),
    ("--resume file", "file is not a run folder"),
]


@pytest.mark.parametrize("arguments, said", slow_but(OPTIONS, 18), ids=[a for a, _ in OPTIONS])
def test_options_of_train(cli, here, arguments, said):
    (here / "file").write_text("mine")
    (here / "full").mkdir()
    (here / "full" / "mine.txt").write_text("mine")
    defaults = (
        [] if "resume" in arguments else ["--updates", "0", "--pretrain.steps", "0"]
    )  # should nothing be refused
    refused(cli, here, ["train", *defaults, *arguments.split()], said)


def test_the_sizes_of_a_many_seeded_run_are_of_tasks(cli, here):
    (here / "p.jsonl").write_text(PROMPTS)
    arguments = ["train", "--prompts", "p.jsonl", "--reward", "exact_match", "--seeds", "2"]
    refused(cli, here, arguments, "--seeds 2 needs a built-in task")


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("train --algorithm dpo", "dpo"),
        ("train --nonsense 3", "--nonsense"),
        ("train --layers many", "many"),
        ("train --task chess", "chess"),
        ("evaluate", "RUN"),
        ("generate --top-k many", "many"),
    ],
)
def test_the_parser_names_what_it_does_not_know(cli, here, arguments, said):
    result = cli(*arguments.split())
    assert result.code == 2
    assert said in result.err
    assert "Traceback" not in result.err
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    "raised, code, said",
    slow_but(
        [
            (OSError(28, "No space left on device"), 2, "a file cannot be written (No space left on device)"),
            (
                PermissionError(13, "Permission denied", "run/x"),
                2,
                "run/x cannot be used (Permission denied)",
            ),
            (MemoryError(), 2, "the memory of this machine is too small (out of memory)"),
            (
                RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nx"),
                2,
                "(RESOURCE_EXHAUSTED: Out of memory x)",
            ),
            (KeyboardInterrupt(), 130, "interrupted"),
        ],
        2,
    ),
    ids=lambda x: type(x).__name__,
)
def test_what_the_machine_refuses(cli, here, monkeypatch, raised, code, said):
    """Before there is a run, and in the middle of one that has nothing to go on from."""

    def fail(*_):
        raise raised

    for room, place in ((train, "build"), (loop, "RunFolder")):
        with monkeypatch.context() as patch:
            patch.setattr(room, place, fail)
            result = cli("train", "--layers", 1, "--out", "run")
        assert result.code == code
        assert "Traceback" not in result.err
        assert len(result.err.strip().splitlines()) == 1
        if (place, code) != ("RunFolder", 130):
            assert said in result.err
            assert not list(here.iterdir())


@pytest.mark.slow
def test_a_run_that_fills_the_disk_says_how_to_go_on(cli, here, run, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop, "draw_learning_curve", fail)
    result = cli("train", "--resume", run)
    assert result.code == 2
    assert "No space left on device" in result.err
    assert f"go on from the last checkpoint with: jaxrl4lm train --resume {run}" in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_our_own_errors_keep_their_traceback(cli, here, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(train, "build", fail)
    with pytest.raises(ZeroDivisionError):
        cli("train")


def test_unknown_commands(cli, here):
    refused(
        cli, here, ["tarin"], "no command 'tarin'; there are train, sft, preference, distill, reward, head"
    )


FILES = [
    ("--prompts missing.jsonl", "missing.jsonl does not exist"),
    ("--prompts .", "is a folder"),
    ("--prompts empty.jsonl", "empty.jsonl is empty"),
    ("--prompts latin.jsonl", "latin.jsonl is not UTF-8 text (byte 12)"),
    ("--prompts torn.jsonl", "torn.jsonl, line 2: not JSON"),
    ("--prompts list.jsonl", "list.jsonl, line 1: a list"),
    ("--prompts other.jsonl", "other.jsonl, line 3: no column 'prompt'; its columns are 'text'"),
    ("--prompts number.jsonl", "number.jsonl, line 1: column 'prompt' holds a int"),
    ("--prompt-column question", "p.jsonl, line 1: no column 'question'"),
    ("--text missing.txt", "missing.txt does not exist"),
    ("--text empty.jsonl", "empty.jsonl is empty"),
    ("--text p.jsonl", "p.jsonl, line 1: rows of format prompt are no documents to imitate"),
    ("--pretrain.steps 10", "--pretrain.steps 10 has nothing to imitate: give --text"),
    ("--held-out 12", "--held-out 12 leaves nothing of 12 prompts"),
    (
        "--context 70 --prompts long.jsonl --reward length:3 --strict",
        "long.jsonl, line 2: the prompt has 31 tokens, which with 64 new ones exceeds",
    ),
    ("--reward bleu", "--reward bleu: not a reward"),
    ("--reward missing.py:f", "missing.py does not exist"),
    ("--reward r.py:nothing", "has no function 'nothing'"),
    ("--reward broken.py:f", "broken.py raised ModuleNotFoundError"),
    ("--reward numeric_answer --prompts long.jsonl", "missing a required argument: 'answer'"),
    ("--reward r.py:raises", "r.py:raises raised ValueError at r.py:1: no (first prompt of the batch: 'ab'"),
    ("--reward r.py:few", "r.py:few returned 1 scores for"),
    ("--reward r.py:nan", "r.py:nan returned nan for the prompt 'ab'"),
    ("--reward r.py:nothing_at_all", "returned a NoneType"),
    ("--reward r.py:bare", "r.py:bare cannot be called with 'answer' (missing a required argument: 'texts')"),
    ("--reward length:3 --reward length:3", "--reward length:3: another is called length:3, too"),
    ("--reward length:3 --reward-weights 1,.5", "--reward-weights has 2 numbers for 1 rewards"),
    ("--model missing", "missing/config.json is missing"),
    ("--model broken", "broken/config.json is not JSON (Expecting property name"),
    ("--model unknown", "unknown"),
]
BROKEN = (
    "def raises(**columns): raise ValueError('no')\n"
    "def few(**columns): return [1.0]\n"
    "def nan(completions, **columns): return [float('nan')] * len(completions)\n"
    "def nothing_at_all(**columns): pass\n"
    "def bare(prompts, texts): return [0.0] * len(prompts)\n"
)


@pytest.mark.parametrize("arguments, said", slow_but(FILES, 9), ids=[a for a, _ in FILES])
def test_files_of_train(cli, here, arguments, said):
    (here / "p.jsonl").write_text(PROMPTS)
    (here / "empty.jsonl").write_text("\n")
    (here / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}\n')
    (here / "torn.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b\n')
    (here / "list.jsonl").write_text('["a"]\n')
    (here / "other.jsonl").write_text('{"prompt": "a"}\n\n{"text": "a"}\n')
    (here / "number.jsonl").write_text('{"prompt": 1}\n')
    (here / "long.jsonl").write_text('{"prompt": "ab"}\n' + '{"prompt": "' + "ab" * 15 + '"}\n')
    (here / "r.py").write_text(BROKEN)
    (here / "broken.py").write_text("import nowhere_to_be_found\n")
    for name, content in (("broken", "{"), ("unknown", '{"model_type": "unknown"}')):
        (here / name).mkdir()
        (here / name / "config.json").write_text(content)
    defaults = {"--prompts": "p.jsonl", "--reward": "exact_match", "--held-out": "3", "--layers": "1"}
    defaults |= {"--width": "16", "--heads": "2"}
    given = arguments.split()
    rest = [part for option, value in defaults.items() if option not in given for part in (option, value)]
    refused(cli, here, ["train", *given, *rest, "--out", "run"], said)


def test_a_text_that_has_no_characters_for_a_model(cli, here):
    (here / "p.jsonl").write_text('{"prompt": ""}\n' * 2)
    arguments = ["train", "--prompts", "p.jsonl", "--reward", "length:3"]
    refused(cli, here, arguments, "there is no text to make a character tokenizer from")


@pytest.fixture
def run(task_run, here) -> pathlib.Path:
    """A copy of a finished run, to be damaged."""
    return pathlib.Path(shutil.copytree(task_run, here / "run")).relative_to(here)


def newest(run: pathlib.Path) -> pathlib.Path:
    return max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))


def truncate_state(run):
    for path in (newest(run) / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove_data(run):
    for path in (newest(run) / "state").rglob("d/*"):
        path.unlink()


def remove_notes(run):
    shutil.rmtree(newest(run) / "notes")


def damage_notes(run):
    (newest(run) / "notes" / "metadata").write_text("{")


def of_another_size(run):
    config = json.loads((run / "config.json").read_text())
    config["model"]["width"] = 32
    (run / "config.json").write_text(json.dumps(config))


@pytest.mark.slow
def test_a_run_whose_prompts_have_changed(cli, here, prompt_options):
    rows = here / "prompts.jsonl"
    rows.write_text("".join(f'{{"prompt": "{w}", "letter": "a"}}\n' for w in ("ab", "b", "abba", "bb", "a")))
    options = [*prompt_options, "--prompts", rows]
    assert cli("train", *options, "--pretrain.steps", 0, "--updates", 2, "--out", "run").code == 0
    original = rows.read_text()
    rows.write_text(original.replace("abba", "abbb"))
    for command in (["train", "--resume"], ["evaluate"]):
        refused(
            cli, here, [*command, "run"], f"{rows} has changed since the run run began: put the file back"
        )
    rows.write_text(original)
    assert cli("train", "--resume", "run").code == 0


@pytest.mark.slow
def test_a_terminal_that_cannot_show_a_name(spawn, task_options, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    process = spawn("train", *task_options, "--pretrain.steps", 0, "--updates", 0, "--out", tmp_path / "ünï")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert r"\xfcn\xef" in out


def test_a_refusal_leaves_no_empty_folder_of_runs(cli, here, prompt_options):
    (here / "wrong.py").write_text(
        "def reward(prompts, completions, **columns):\n    return [float('nan')]\n"
    )
    result = cli("train", *without(prompt_options, "--reward"), "--reward", here / "wrong.py:reward")
    assert result.code == 2
    assert "wrong.py:reward returned" in result.err
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    "damage",
    slow_but([truncate_state, remove_data, remove_notes, damage_notes, of_another_size], 2),
)
@pytest.mark.parametrize("command", [["train", "--resume"], ["evaluate"]], ids=["resume", "evaluate"])
def test_checkpoints_that_are_damaged(cli, here, run, command, damage):
    damage(run)
    result = cli(*command, run)
    assert result.code == 2, result
    assert f"{newest(run).absolute()} is damaged or of another run" in result.err
    assert "remove that folder to fall back" in result.err
    assert "Traceback" not in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert (run / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_falling_back_to_the_checkpoint_before(cli, here, run, task_run):
    truncate_state(run)
    shutil.rmtree(newest(run))
    assert cli("train", "--resume", run).code == 0
    assert (run / "model/model.safetensors").read_bytes() == (
        task_run / "model/model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"world": 3}',
        "\x00",
        "replace updates many",
        "replace updates 1.5",
        "replace kl k9",
    ],
)
def test_a_config_that_is_damaged(cli, here, run, content):
    if content.startswith("replace"):
        config = json.loads((run / "config.json").read_text())
        _, name, value = content.split()
        group = "algorithm" if name == "kl" else "reinforcement"
        config[group][name] = float(value) if value == "1.5" else value
        content = json.dumps(config)
    (run / "config.json").write_text(content)
    for command in (["train", "--resume"], ["evaluate"]):
        refused(cli, here, [*command, run], "config.json is damaged or of another version")


def test_a_config_with_numbers_out_of_range(cli, here, run):
    config = json.loads((run / "config.json").read_text())
    config["reinforcement"]["minibatches"] = 3
    (run / "config.json").write_text(json.dumps(config))
    refused(cli, here, ["train", "--resume", run], "must be a multiple of --minibatches")


def test_resume_takes_no_other_option(cli, here, run):
    refused(cli, here, ["train", "--resume", run, "--updates", "9"], "give no other option")


OTHERS = [
    ("evaluate missing", "missing is not a run folder"),
    ("evaluate .", "is not a run folder"),
    ("evaluate saved_nothing", "holds no checkpoint"),
    ("generate missing --prompt a", "missing does not exist"),
    ("generate . --prompt a", "config.json is missing"),
    ("generate", "no model is named: jaxrl4lm generate MODEL"),
    ("generate run", "there is nothing to complete"),
    ("generate run --prompt 1+2", None),
    (
        "generate run --prompt 1x2=",
        "--prompt, line 1: '1x2=' has characters that the model's tokenizer does not know",
    ),
    ("generate run --prompt 1+1=1+1=1+1=", "the prompt has 12 tokens"),
    (
        "evaluate run --success 0.5",
        "--success 0.5 is for pass@k and maj@k of draws: give --draws, or leave it out",
    ),
    ("generate run --prompt 1+1= --max-new-tokens 70", "exceeds the context"),
    ("generate run --prompt 1+1= --max-new-tokens 0", "--max-new-tokens must be at least 1, not 0"),
    ("generate run --prompt 1+1= --n 0", "--n must be at least 1, not 0"),
    ("generate run --prompt 1+1= --temperature nan", "--temperature must be 0 (the most likely token) or"),
    ("generate run --prompt 1+1= --temperature -1", "or at least 1e-6, not -1"),
    ("generate run --prompt 1+1= --temperature 1e-40", "or at least 1e-6, not 1e-40"),
    ("generate run --prompt caf\udce9", "--prompt 'caf\\udce9' is not UTF-8"),
    ("generate run --prompt 1+1= --prompts x.txt", "--prompt and --prompts both name"),
    ("generate run --prompt 1+1= --seed -1", "--seed must lie in"),
    ("generate run --prompts missing.jsonl", "missing.jsonl does not exist"),
    ("generate run --prompts empty.jsonl", "empty.jsonl is empty"),
    ("generate unfinished --prompt a", "unfinished has no model, which is written when"),
    ("generate torn --prompt a", "torn/model"),
]


@pytest.mark.parametrize("arguments, said", slow_but(OTHERS, 8), ids=[a for a, _ in OTHERS])
def test_evaluate_and_generate(cli, here, run, arguments, said):
    (here / "empty.jsonl").touch()
    for name in ("saved_nothing", "unfinished", "torn"):
        shutil.copytree(run, here / name)
    shutil.rmtree(here / "saved_nothing" / "checkpoints")
    shutil.rmtree(here / "unfinished" / "model")
    weights = here / "torn" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    if said is None:
        assert cli(*arguments.split()).code == 0
    else:
        refused(cli, here, arguments.split(), said)


def test_a_log_without_its_package(cli, here, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    refused(cli, here, ["train", "--log", "wandb"], "--log wandb needs the package wandb: pip install")


def test_defaults_are_valid():
    arguments = parse_train([])
    check(arguments)
    assert from_json(TrainArguments, json.loads(json.dumps(to_json(arguments)))) == arguments
