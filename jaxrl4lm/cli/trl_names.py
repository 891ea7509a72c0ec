"""Options of TRL, and of Transformers' `TrainingArguments`, in a file of options: which of ours mean the same.

`NAMES` and `REFUSED` say it for the commands that have a trainer there. docs/trl-names.md shows these tables.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from jaxrl4lm.types import InputError


class Entry(NamedTuple):
    """A value of the file."""

    value: Any
    where: str
    """File, line and key."""


Values = Mapping[Any, Mapping[str, Any]]
"""What each value of theirs says in our options."""
Entries = dict[str, Entry]

BOTH: Mapping[str, str | Values] = {
    "adam_beta1": "adam_b1",
    "adam_beta2": "adam_b2",
    "adam_epsilon": "adam_eps",
    "bf16": {True: {"dtype": "bfloat16"}, False: {"dtype": "float32"}},
    "eval_steps": "evaluate_every",
    "eval_strategy": {"steps": {}},
    "gradient_checkpointing": {True: {"remat": "full"}, False: {"remat": "none"}},
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_r": "lora_rank",
    "lora_target_modules": "lora_targets",
    "max_grad_norm": "max_grad_norm",
    "model_name_or_path": "model",
    "output_dir": "out",
    "report_to": "log",
    "seed": "seed",
    "use_peft": {True: {"lora_rank": 16}, False: {}},
    "warmup_steps": "warmup",
    "weight_decay": "weight_decay",
}
SFT: Mapping[str, str | Values] = BOTH | {
    "assistant_only_loss": "assistant_only",
    "completion_only_loss": "completion_only",
    "dataset_name": "dataset",
    "label_smoothing_factor": "label_smoothing",
    "loss_type": {"nll": {"loss": "nll"}, "dft": {"loss": "dft"}},
    "lr_scheduler_type": {
        "linear": {"schedule": "linear", "final_learning_rate_share": 0.0},
        "cosine": {"schedule": "cosine", "final_learning_rate_share": 0.0},
        "constant": {"schedule": "constant", "warmup": 0},
        "constant_with_warmup": {"schedule": "constant"},
    },
    "max_length": "max_length",
    "max_steps": "steps",
    "num_train_epochs": "epochs",
    "optim": {
        "adamw_torch": {"optimizer": "adam"},
        "adamw_torch_fused": {"optimizer": "adam"},
        "adafactor": {"optimizer": "adafactor"},
    },
    "packing": {True: {"packing": "bfd"}, False: {"packing": "none"}},
}
TRAIN: Mapping[str, str | Values] = BOTH | {
    "beta": "kl_coef",
    "dataset_name": "prompts",
    "delta": "dual_clip",
    "entropy_coef_delta": "entropy_step",
    "epsilon": "clip_eps",
    "epsilon_high": "clip_eps_high",
    "log_completions": {True: {}, False: {"log_completions": 0}},
    "importance_sampling_level": {"token": {"ratio": "token"}, "sequence": {"ratio": "sequence"}},
    "loss_type": {
        "grpo": {"algorithm": "grpo"},
        "dapo": {"algorithm": "grpo", "reduction": "token_mean"},
        "bnpo": {"algorithm": "grpo", "reduction": "token_mean"},
        "dr_grpo": {"algorithm": "grpo", "reduction": "constant_length"},
        "sapo": {"algorithm": "sapo"},
        "luspo": {"algorithm": "luspo"},
        "vespo": {"algorithm": "vespo"},
    },
    "lr_scheduler_type": {
        "linear": {"final_learning_rate_share": 0.0},
        "constant": {"final_learning_rate_share": 1.0, "warmup": 0},
        "constant_with_warmup": {"final_learning_rate_share": 1.0},
    },
    "mask_truncated_completions": {True: {"truncation": "mask"}, False: {}},
    "max_completion_length": "max_new_tokens",
    "max_steps": "updates",
    "multi_objective_aggregation": {
        "sum_then_normalize": {},
        "normalize_then_sum": {"normalize_rewards": True},
    },
    "num_completions_to_print": "log_completions",
    "num_generations": "completions",
    "num_iterations": "epochs",
    "optim": {"adamw_torch": {}, "adamw_torch_fused": {}},
    "scale_rewards": {
        "group": {"scale": "group"},
        "batch": {"scale": "batch"},
        "none": {"scale": "none"},
        True: {"scale": "group"},
        False: {"scale": "none"},
    },
    "top_entropy_quantile": "top_entropy_share",
    "use_adaptive_entropy": {True: {"entropy_price": "adaptive"}, False: {}},
    "use_bias_correction_kl": {True: {"kl": "k3_ratio"}, False: {"kl": "k3"}},
}
DISTILL: Mapping[str, str | Values] = {
    **{name: SFT[name] for name in (*BOTH, "dataset_name", "lr_scheduler_type", "max_length", "max_steps")},
    **{name: SFT[name] for name in ("num_train_epochs", "optim")},
    "assistant_only_loss": {False: {}},
    "completion_only_loss": {True: {}},
    "lmbda": "on_policy_share",
    "max_completion_length": "max_new_tokens",
    "packing": {False: {}},
    "teacher_model_name_or_path": "teacher",
}
NAMES: Mapping[str, Mapping[str, str | Values]] = {"sft": SFT, "distill": DISTILL, "train": TRAIN}
"""By command and their name: our option, or what their values say."""
IMPLIED = ("final_learning_rate_share", "lora_rank", "minibatches")
"""Options that a value of theirs sets beside what it says; the file may say otherwise."""

BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
JOINED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "sft": {
        BATCH[0]: ("batch", "micro_batches"),
        BATCH[1]: ("batch", "micro_batches"),
        "packing_strategy": ("packing",),
    },
    "distill": {BATCH[0]: ("batch", "micro_batches"), BATCH[1]: ("batch", "micro_batches")},
    "train": {
        BATCH[0]: ("prompts_per_update", "micro_batches", "minibatches"),
        BATCH[1]: ("prompts_per_update", "micro_batches", "minibatches"),
    },
}
"""Names that say something of our options only together with others."""

REFUSED_BY_BOTH = {
    "attn_implementation": "attention is chosen for the device",
    "auto_find_batch_size": "the batch is what the options say: try a larger micro_batches",
    "data_seed": "seed decides everything",
    "dataloader_num_workers": "rows are made before the run",
    "dataset_config": "name a file or a folder by dataset or prompts",
    "dataset_test_split": "held_out says how many rows are kept back",
    "dataset_train_split": "name a file or a folder by dataset or prompts",
    "dataset_streaming": "data are read before the run",
    "ddp_backend": "mesh says how devices are used",
    "deepspeed": "mesh shards the model, as mesh: [1, 8, 1]",
    "do_eval": "evaluate_every says when to evaluate, held_out on how much",
    "do_train": "the command says what is done",
    "eval_accumulation_steps": "evaluation is split as memory asks for",
    "fp16": "half precision needs a loss scale, which there is none of: take dtype: bfloat16",
    "fsdp": "mesh shards the model, as mesh: [1, 8, 1]",
    "fsdp_config": "mesh shards the model, as mesh: [1, 8, 1]",
    "gradient_checkpointing_kwargs": "remat is none, full or dots",
    "hub_model_id": "nothing is uploaded: the run folder's model is a Hugging Face folder",
    "load_best_model_at_end": "the best model is kept beside the last one",
    "load_in_4bit": "weights are not quantized here",
    "load_in_8bit": "weights are not quantized here",
    "logging_steps": "every evaluation is logged: evaluate_every says how often",
    "logging_strategy": "every evaluation is logged: evaluate_every says how often",
    "logging_first_step": "every evaluation is logged: evaluate_every says how often",
    "lora_modules_to_save": "train: [PATTERN] trains whole parameters, without adapters",
    "lora_task_type": "it is always CAUSAL_LM",
    "model_revision": "model is a folder",
    "per_device_eval_batch_size": "evaluation is split as memory asks for",
    "push_to_hub": "nothing is uploaded: the run folder's model is a Hugging Face folder",
    "remove_unused_columns": "columns that nothing reads do no harm",
    "resume_from_checkpoint": "on the command line, --resume RUN goes on with a run, without other options",
    "run_name": "out names the run's folder",
    "save_steps": "save_interval counts seconds",
    "save_strategy": "save_interval says how many seconds lie between checkpoints",
    "save_total_limit": "a run keeps what it needs to go on",
    "tf32": "the device's default precision is used",
    "torch_compile": "everything is compiled",
    "torch_dtype": "dtype is float32 or bfloat16",
    "trust_remote_code": "no code of a model folder is run",
    "use_dora": "adapters are plain LoRA",
    "use_liger_kernel": "losses are computed in parts already",
    "use_rslora": "the scale is lora_alpha / lora_rank: give the lora_alpha that has the same quotient",
    "warmup_ratio": "warmup counts steps",
}
REFUSED_BY_TEXTS = REFUSED_BY_BOTH | {
    "chat_template_path": "chat_template is a Jinja file",
    "dataset_num_proc": "rows are made in one process",
    "dataset_text_field": "columns renames, as columns: [text=NAME]",
    "datasets": "dataset takes a list of files, fractions their shares",
    "eos_token": "the tokenizer of the model folder has it",
    "eval_packing": "held-out texts are packed as the others are",
    "neftune_noise_alpha": "embeddings get no noise here",
    "padding_free": "packing leaves no padding",
}
REFUSED: Mapping[str, Mapping[str, str]] = {
    "sft": REFUSED_BY_TEXTS,
    "distill": REFUSED_BY_TEXTS
    | {
        "disable_dropout": "models have no dropout here",
        "loss_type": "beta and objective choose the loss",
        "packing_strategy": "rows are not packed",
        "seq_kd": "let the teacher complete the prompts (jaxrl4lm generate), and imitate them (jaxrl4lm sft)",
        "teacher_model_revision": "teacher is a folder",
        "use_vllm": "completions are drawn by the model that learns",
        "vllm_mode": "completions are drawn by the model that learns",
    },
    "train": REFUSED_BY_BOTH
    | {
        "disable_dropout": "models have no dropout here",
        "generation_batch_size": "prompts_per_update x completions are drawn at once",
        "max_prompt_length": "prompts are never cut: those that leave no room for a completion are dropped",
        "num_train_epochs": "updates counts rounds of drawing and learning",
        "off_policy_mask_threshold": "give rejection_divergence the number, and correction: [rejected]",
        "reward_funcs": "reward names functions: exact_match, ..., or FILE.py:function",
        "steps_per_generation": "minibatches x epochs are the optimizer steps of an update",
        "sync_ref_model": "the reference is the model before the run",
        "use_vllm": "completions are drawn by the model that learns",
        "vllm_mode": "completions are drawn by the model that learns",
    },
}
"""By command and their name: why it is not taken, and what is said instead."""
OFF = frozenset(
    {
        *("auto_find_batch_size", "dataset_streaming", "disable_dropout", "fp16", "load_best_model_at_end"),
        *(
            "load_in_4bit",
            "load_in_8bit",
            "padding_free",
            "push_to_hub",
            "seq_kd",
            "sync_ref_model",
        ),
        *(
            "tf32",
            "torch_compile",
            "trust_remote_code",
            "use_dora",
            "use_liger_kernel",
            "use_rslora",
            "use_vllm",
        ),
    }
)
"""Names of `REFUSED` that may be false: it asks for nothing that is missing here. Any name of theirs may be null."""


def translate(command: str, entries: Mapping[str, Entry], options: Collection[str]) -> Entries:
    """The entries of a file with our names in place of TRL's.

    Args:
      options: names of the command's own options, which go first.
    Raises:
      InputError: if a name of TRL's is not taken, or two names say the same.
    """
    names, refused = NAMES.get(command, {}), REFUSED.get(command, {})
    given, joined = _join(command, dict(entries)) if names else (dict(entries), {})
    said: Entries = {}
    implied: Entries = dict(joined)
    for name, entry in given.items():
        meaning = names.get(name)
        own = name in options and not (isinstance(meaning, Mapping) and isinstance(entry.value, bool))
        theirs = not own and (name in refused or meaning is not None)
        if theirs and (entry.value is None or (entry.value is False and name in OFF)):
            continue
        if name in refused and not own:
            raise InputError(f"{entry.where} is not taken: {refused[name]}")
        if own or meaning is None:
            ours: Mapping[str, Any] = {name: entry.value}
        else:
            ours = {meaning: entry.value} if isinstance(meaning, str) else _look_up(entry, meaning)
        for option, value in ours.items():
            if option in IMPLIED and option not in (name, meaning):
                implied.setdefault(option, entry._replace(value=value))
                continue
            if option in said:
                raise InputError(
                    f"{entry.where} says {option}, as {said[option].where} does: drop one of them"
                )
            said[option] = entry._replace(value=value)
    return {**implied, **said}


def _look_up(entry: Entry, values: Values) -> Mapping[str, Any]:
    if not isinstance(entry.value, str | bool) or entry.value not in values:
        others = ", ".join(str(value).lower() for value in values)
        raise InputError(f"{entry.where} {entry.value!r} is not taken: it may be {others}")
    return values[entry.value]


def _join(command: str, given: Entries) -> tuple[Entries, Entries]:
    """The entries without the names of `JOINED`, and what these say together with others: ours, which the file may change.

    Of two that exclude each other there (steps and epochs), the one that is in force stays.
    """
    if "report_to" in given and given["report_to"].value in ("none", ["none"]):
        given["report_to"] = given["report_to"]._replace(value=[])
    if "use_peft" in given and given["use_peft"].value is False:
        for name in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"):
            given.pop(name, None)
    if "max_steps" in given:  # -1: not in force
        unused = "max_steps" if given["max_steps"].value == -1 else "num_train_epochs"
        given.pop(unused, None)
    strategy = given.pop("packing_strategy", None) if command == "sft" else None
    if strategy and "packing" in given and given["packing"].value is True:
        given["packing"] = strategy
    if "num_iterations" in given and given["num_iterations"].value != 1:
        for name in {"max_steps", "eval_steps", "warmup_steps"} & set(given):
            raise InputError(
                f"{given[name].where} counts optimizer steps, of which num_iterations makes several an update: "
                f"give {TRAIN[name]}, which counts updates"
            )
    return given, _join_batch(command, given)


def _join_batch(command: str, given: Entries) -> Entries:
    """Our batch and its parts. Takes the names of `BATCH` out of the entries."""
    parts = [given.pop(name, None) for name in BATCH]
    first, second = parts
    if first is None:
        if second is not None:
            raise InputError(f"{second.where} needs {BATCH[0]} beside it: their product is the batch")
        return {}
    second = second or first._replace(value=1)
    for part in (first, second):
        if type(part.value) is not int or part.value < 1:
            raise InputError(f"{part.where} must be a positive whole number, not {part.value!r}")
    batch = first.value * second.value
    if command != "train":
        return {"batch": first._replace(value=batch), "micro_batches": second}
    completions = given.get("num_generations") or given.get("completions")
    if completions is None:
        raise InputError(f"{first.where} counts completions: give num_generations, how many a prompt has")
    if type(completions.value) is not int or completions.value < 1 or batch % completions.value:
        raise InputError(
            f"{first.where} x {BATCH[1]} is {batch}, which must be a multiple of num_generations ({completions.value!r})"
        )
    return {
        "prompts_per_update": first._replace(value=batch // completions.value),
        "micro_batches": second,
        "minibatches": first._replace(value=1),
    }
