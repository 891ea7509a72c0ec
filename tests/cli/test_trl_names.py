"""TRL's names in a file of options: those of the table mean what it says, and the page shows the table."""

import pathlib

import pytest

from jaxrl4lm.cli.config_file import list_options
from jaxrl4lm.cli.distill import DistillArguments
from jaxrl4lm.cli.options import parse
from jaxrl4lm.cli.sft import SftArguments
from jaxrl4lm.cli.train_options import TrainArguments
from jaxrl4lm.cli.trl_names import JOINED, NAMES, OFF, REFUSED
from jaxrl4lm.types import InputError

KINDS = {"sft": SftArguments, "distill": DistillArguments, "train": TrainArguments}
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "trl-names.md"


def show(value) -> str:
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def tell(command: str, name: str) -> str:
    """The cell of a name in the column of a command."""
    meaning = NAMES[command].get(name, JOINED[command].get(name))
    if meaning is None:
        return "refused" if name in REFUSED[command] else ""
    if isinstance(meaning, str | tuple):
        return ", ".join(map(show, [meaning] if isinstance(meaning, str) else meaning))
    values = []
    for value, ours in meaning.items():
        said = ", ".join(show(f"{option}: {each}") for option, each in ours.items())
        values.append(f"{show(value)}: {said or 'nothing to say'}")
    return "; ".join(values)


def list_names() -> list[str]:
    """Rows of the page's first table."""
    names = sorted({name for table in (*NAMES.values(), *JOINED.values()) for name in table})
    return [f"| `{name}` | {' | '.join(tell(command, name) for command in NAMES)} |" for name in names]


def list_refusals() -> list[str]:
    """Rows of its second table."""
    rows = {
        (name, why): [c for c in REFUSED if REFUSED[c].get(name) == why]
        for c in REFUSED
        for name, why in REFUSED[c].items()
    }
    return [f"| `{name}` | {', '.join(commands)} | {why} |" for (name, why), commands in sorted(rows.items())]


def test_the_page_shows_the_tables():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert rows == [*list_names(), *list_refusals()]


@pytest.mark.parametrize("command", NAMES)
def test_every_name_is_known_there_and_every_option_here(command):
    options = dict(list_options(KINDS[command]))
    for name, meaning in NAMES[command].items():
        ours = [meaning] if isinstance(meaning, str) else [o for said in meaning.values() for o in said]
        assert set(ours) <= set(options), name
        assert name not in options or name in ours, f"{name} is an option of another meaning"
    assert {option for said in JOINED[command].values() for option in said} <= set(options)
    assert not set(REFUSED[command]) & {*options, *NAMES[command], *JOINED[command]}


@pytest.mark.parametrize("command", NAMES)
def test_the_names_are_those_of_trl(command):
    trl = pytest.importorskip("trl")
    gkd = pytest.importorskip("trl.experimental.gkd")
    theirs = {
        "sft": [trl.SFTConfig],
        "distill": [gkd.GKDConfig, trl.DistillationConfig],
        "train": [trl.GRPOConfig],
    }[command]
    fields = {
        name
        for kind in (*theirs, trl.ModelConfig, trl.ScriptArguments, trl.DatasetMixtureConfig)
        for name in kind.__dataclass_fields__
    }
    earlier = {"reward_funcs", "warmup_ratio", "max_prompt_length", "torch_dtype"}
    assert {*NAMES[command], *JOINED[command], *REFUSED[command]} - fields <= earlier


@pytest.fixture
def read(tmp_path):
    def read(command: str, text: str):
        (tmp_path / "trl.yaml").write_text(text)
        return parse(KINDS[command], ["--config", str(tmp_path / "trl.yaml")], command)

    return read


SFT = """
model_name_or_path: folder
dataset_name: a.jsonl
output_dir: runs/x
per_device_train_batch_size: 4
gradient_accumulation_steps: 8
num_train_epochs: 2
max_steps: -1
learning_rate: 1e-5
lr_scheduler_type: cosine
warmup_steps: 5
weight_decay: 0.01
adam_beta1: 0.8
adam_beta2: 0.99
adam_epsilon: 1e-7
max_grad_norm: 0.5
max_length: 77
packing: true
packing_strategy: bfd_split
completion_only_loss: true
assistant_only_loss: false
loss_type: dft
optim: adafactor
use_peft: true
lora_alpha: 8
lora_target_modules: [q_proj, v_proj]
gradient_checkpointing: true
bf16: true
eval_strategy: steps
eval_steps: 9
report_to: none
seed: 3
"""
OURS = """
model: folder
dataset: [a.jsonl]
out: runs/x
batch: 32
micro_batches: 8
epochs: 2
learning_rate: 1e-5
schedule: cosine
final_learning_rate_share: 0
warmup: 5
weight_decay: 0.01
adam_b1: 0.8
adam_b2: 0.99
adam_eps: 1e-7
max_grad_norm: 0.5
max_length: 77
packing: bfd_split
completion_only: true
assistant_only: false
loss: dft
optimizer: adafactor
lora_rank: 16
lora_alpha: 8
lora_targets: [q_proj, v_proj]
remat: full
dtype: bfloat16
evaluate_every: 9
log: []
seed: 3
"""


def test_a_file_of_trl_says_what_ours_says(read):
    assert read("sft", SFT) == read("sft", OURS) != SftArguments()


def test_a_file_of_gkd(read):
    theirs = (
        "teacher_model_name_or_path: big\nlmbda: .5\nbeta: .5\ntemperature: .9\nmax_new_tokens: 128\nseq_kd: false\n"
        "per_device_train_batch_size: 4\ngradient_accumulation_steps: 2\nlearning_rate: 2e-5\npacking: false"
    )
    ours = (
        "teacher: [big]\non_policy_share: .5\nbeta: .5\ntemperature: .9\nmax_new_tokens: 128\nbatch: 8\nmicro_batches: 2\n"
        "learning_rate: 2e-5"
    )
    assert read("distill", theirs) == read("distill", ours) != DistillArguments()


def test_a_file_of_grpo(read):
    """4 completions, 8 times: 32 completions of 4 prompts, in 8 parts of one minibatch."""
    theirs = (
        "num_generations: 8\nper_device_train_batch_size: 4\ngradient_accumulation_steps: 8\nbeta: 0.04\nepsilon: 0.1\n"
        "max_completion_length: 33\nmax_steps: 7\nlr_scheduler_type: constant\noptim: adamw_torch\ndataset_name: p.jsonl\n"
        "loss_type: dr_grpo\nscale_rewards: false\ndelta: 3\nepsilon_high: .28\nimportance_sampling_level: sequence\n"
        "mask_truncated_completions: true\ntop_entropy_quantile: .2\nuse_bias_correction_kl: true"
    )
    ours = (
        "completions: 8\nprompts_per_update: 4\nmicro_batches: 8\nminibatches: 1\nkl_coef: 0.04\nclip_eps: 0.1\n"
        "max_new_tokens: 33\nupdates: 7\nfinal_learning_rate_share: 1\nwarmup: 0\nprompts: p.jsonl\n"
        "algorithm: grpo\nreduction: constant_length\nscale: none\ndual_clip: 3\nclip_eps_high: .28\nratio: sequence\n"
        "truncation: mask\ntop_entropy_share: .2\nkl: k3_ratio"
    )
    assert read("train", theirs) == read("train", ours) != TrainArguments()


@pytest.mark.parametrize(
    "text, expected",
    [
        ("max_steps: 5\nnum_train_epochs: 2", {"steps": 5, "epochs": None}),
        ("lr_scheduler_type: linear\nfinal_learning_rate_share: .5", {"final_learning_rate_share": 0.5}),
        ("per_device_train_batch_size: 4\nmicro_batches: 2", {"batch": 4, "micro_batches": 2}),
    ],
)
def test_names_together(read, text, expected):
    found = read("sft", text).supervised
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize("command", NAMES)
def test_what_is_off_there_is_no_matter(read, command):
    off = "".join(f"{name}: false\n" for name in OFF & set(REFUSED[command]))
    unset = "".join(f"{name}: null\n" for name in set(REFUSED[command]) - OFF)
    without = "use_peft: false\nlora_r: 8\nlora_dropout: .1\neval_steps: null\n"
    assert read(command, off + unset + without) == read(command, "")
    assert set().union(*REFUSED.values()) >= OFF
    for name in OFF & set(REFUSED[command]):
        with pytest.raises(InputError, match=f"{name} is not taken"):
            read(command, f"{name}: true")


def test_our_packing_and_theirs(read):
    for text, packing in (
        ("packing: wrapped", "wrapped"),
        ("packing: true", "bfd"),
        ("packing: false", "none"),
    ):
        assert read("sft", text).texts.packing == packing
    assert read("sft", "packing_strategy: bfd").texts.packing is None


WRONG: dict[str, list[tuple[str, str]]] = {
    "sft": [
        ("fp16: true", "line 1: fp16 is not taken: half precision .* dtype: bfloat16"),
        ("warmup_ratio: .1", "warmup_ratio is not taken: warmup counts steps"),
        ("max_length: many", "max_length must be a whole number"),
        ("optim: sgd", "optim 'sgd' is not taken: it may be adamw_torch, adamw_torch_fused, adafactor"),
        ("bf16: [1]", r"bf16 \[1\] is not taken: it may be true, false"),
        ("max_steps: 1\nsteps: 2", "line 2: steps says steps, as .*line 1: max_steps does"),
        (
            "lr_scheduler_type: constant\nwarmup_steps: 9",
            "warmup_steps says warmup, as .*lr_scheduler_type does",
        ),
        ("gradient_accumulation_steps: 2", "needs per_device_train_batch_size beside it"),
        ("per_device_train_batch_size: 0", "must be a positive whole number, not 0"),
        ("max_step: 3", "did you mean max_steps"),
        ("beta: 3", "beta is no option of jaxrl4lm sft"),
    ],
    "distill": [
        ("seq_kd: true", "seq_kd is not taken: let the teacher complete the prompts"),
        ("packing: true", "packing True is not taken: it may be false"),
    ],
    "train": [
        ("loss_type: cispo", "loss_type 'cispo' is not taken: it may be grpo, dapo"),
        ("off_policy_mask_threshold: .5", "give rejection_divergence the number"),
        ("per_device_train_batch_size: 4", "counts completions: give num_generations"),
        (
            "per_device_train_batch_size: 4\nnum_generations: 8",
            "is 4, which must be a multiple of num_generations",
        ),
        ("num_iterations: 2\nmax_steps: 4", "max_steps counts optimizer steps.* give updates"),
    ],
}


@pytest.mark.parametrize("command, text, message", [(c, *pair) for c in WRONG for pair in WRONG[c]])
def test_what_is_not_the_same_is_refused_by_name(read, command, text, message):
    with pytest.raises(InputError, match=message):
        read(command, text)


def test_the_example_of_the_page(read):
    (example,) = (part.split("```")[0] for part in PAGE.read_text().split("```yaml")[1:])
    found = read("sft", example)
    assert (found.supervised.batch, found.supervised.z_loss, found.model.dtype) == (32, 1e-4, "bfloat16")
