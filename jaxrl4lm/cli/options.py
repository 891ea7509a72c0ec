"""What options are made of: groups that several commands share, their ranges, and their way to JSON and back.

Hyper-parameters are declared once, in `lm.config`: the commands embed those records, and their docstrings are the help.
"""

import dataclasses
import inspect
import math
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, StructConstructorSpec

from jaxrl4lm.cli.config_file import fill, revive, take_files
from jaxrl4lm.data import Tokenizer
from jaxrl4lm.decoding import Sampling, min_new_tokens, min_p, repetition_penalty, top_k, top_p
from jaxrl4lm.decoding.processors import Penalty, Truncation
from jaxrl4lm.fields import find_out_of_range, number, size
from jaxrl4lm.lm import ReinforcementConfig
from jaxrl4lm.types import InputError, ScalarLike

LARGEST_SEED = 2**31
Group = tyro.conf.OmitArgPrefixes
REGISTRY = ConstructorRegistry()


@REGISTRY.primitive_rule
def _parse_scalar(info: Any) -> PrimitiveConstructorSpec | None:
    """A hyper-parameter that may be traced is a number here."""
    may_be_left_out = info.type == ScalarLike | None
    if info.type != ScalarLike and not may_be_left_out:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{None}|FLOAT" if may_be_left_out else "FLOAT",
        instance_from_str=lambda words: None if may_be_left_out and words[0] == "None" else float(words[0]),
        is_instance=lambda value: isinstance(value, int | float) or (may_be_left_out and value is None),
        str_from_instance=lambda value: [str(value)],
    )


@REGISTRY.struct_rule
def _leave_sampling_out(info: Any) -> StructConstructorSpec | None:
    """A `Sampling` has functions as parts: the options of `SamplingOptions` make it."""
    if info.type is not Sampling:
        return None
    return StructConstructorSpec(instantiate=lambda: ReinforcementConfig.sampling, fields=())


def parse(kind: Any, words: list[str], command: str, default: Any = None) -> Any:
    """The options of a command, from the words on its command line and the files that --config names.

    Raises:
      InputError: if such a file cannot be used.
    """
    files, words = take_files(words)
    for file in files:
        default = fill(kind, default, file, command)
    help_text = f"{inspect.cleandoc(kind.__doc__)}\n\n--config FILE.yaml: a file of options, which words here override."
    with REGISTRY:
        given = {} if default is None else {"default": default}
        return tyro.cli(kind, args=words, prog=f"jaxrl4lm {command}", description=help_text, **given)


@dataclass(frozen=True)
class ModelOptions:
    """The policy: a new transformer, or a Hugging Face folder."""

    model: Path | None = None
    """Folder with config.json, model.safetensors and tokenizer.json to start from; the sizes below are then its own."""
    style: Literal["llama", "gpt2"] = "gpt2"
    """Of a new model: gpt2 (learned positions, GELU), or llama (rotary positions, gated SiLU, RMS norms)."""
    layers: int = size(2)
    """Blocks of attention and MLP."""
    width: int = size(64)
    """Of the residual stream; a multiple of --heads."""
    heads: int = size(8)
    """Attention heads of a block."""
    context: int | None = size(None)
    """Longest prompt and completion together, in tokens; what the data need (texts: at most 512), if not given."""
    tokenizer: Literal["character", "byte"] | None = None
    """Of a new model: characters of the texts and prompts, or bytes. Characters if there are at most 256, if not given."""
    chat_template: Path | None = None
    """File with a Jinja template that writes conversations as text, in place of the model's own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products; parameters and statistics stay float32."""
    remat: Literal["none", "full", "dots"] = "none"
    """What the backward pass computes again instead of keeping it: nothing, all of a block, or all but its products."""


@dataclass(frozen=True)
class AdaptationOptions:
    """What of the model learns: everything, if nothing is given."""

    lora_rank: int | None = size(None)
    """Train low-rank adapters of this rank; the model itself is left as it is, and is the reference."""
    lora_alpha: float = number(32.0, above=0)
    """Adapters are scaled by this over their rank."""
    lora_targets: tuple[str, ...] = ("all-linear",)
    """Dense layers that get an adapter: all-linear, names (q_proj v_proj, query value), or patterns of paths."""
    lora_dropout: float = number(0.0, least=0, most=1)
    """Share of an adapter's inputs that a training step leaves out."""
    train: tuple[str, ...] = ()
    """Train the parameters whose path one of these patterns matches (layer_11/ final_norm), and no others."""


@dataclass(frozen=True)
class SamplingOptions:
    """How a completion is drawn. Reinforcement learning learns from the probabilities of this distribution."""

    max_new_tokens: int | None = size(None)
    """Longest completion, in tokens. If not given: what the task needs, or 64."""
    temperature: float = number(1.0, above=0)
    """Below 1 likely tokens become likelier."""
    top_k: int | None = size(None)
    """Draw from the k most likely tokens."""
    top_p: float | None = number(None, above=0, most=1)
    """Draw from the fewest tokens that have this probability together."""
    min_p: float | None = number(None, above=0, most=1)
    """Draw from tokens at least this many times as likely as the most likely."""
    repetition_penalty: float | None = number(None, above=0)
    """Above 1: tokens of the text so far become less likely."""
    min_new_tokens: int = size(0, least=0)
    """Tokens before a completion may end."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion, as tokens of the model's tokenizer."""

    def make(self, tokenizer: Tokenizer, max_new_tokens: int | None = None) -> Sampling:
        """The settings as the decoding room takes them.

        Raises:
          InputError: if a stop text is empty, or unknown to the tokenizer.
        """
        penalties = make_penalties(self)
        if self.min_new_tokens:
            penalties = (*penalties, min_new_tokens(self.min_new_tokens, tokenizer.eos_ids))
        return Sampling(
            self.max_new_tokens or max_new_tokens,
            tokenizer.eos_ids,
            tokenizer.pad_id,
            temperature=self.temperature,
            penalties=penalties,
            truncations=make_truncations(self),
            stop_sequences=_encode_stops(self.stop, tokenizer),
        )


def make_penalties(options: Any) -> tuple[Penalty, ...]:
    """Of options with `repetition_penalty`."""
    penalty = options.repetition_penalty
    return () if penalty is None else (repetition_penalty(penalty),)


def make_truncations(options: Any) -> tuple[Truncation, ...]:
    """Of options with `top_k`, `top_p` and `min_p`."""
    given = {top_k: options.top_k, top_p: options.top_p, min_p: options.min_p}
    return tuple(make(setting) for make, setting in given.items() if setting is not None)


def _encode_stops(stops: tuple[str, ...], tokenizer: Tokenizer) -> Any:
    """Stop texts as int32 `[N, M]`, -1 on the left of shorter ones."""
    from jaxrl4lm.data.corpus import pad

    if not stops:
        return None
    if "" in stops:
        raise InputError("--stop '' would end every completion at once: give a text")
    try:
        rows = [tokenizer.encode(text) for text in stops]
    except ValueError as error:
        raise InputError(f"--stop: {error}") from None
    return pad(rows, max(map(len, rows)), -1, left=True)[0]


@dataclass(frozen=True)
class RunOptions:
    """Where the run goes, and what decides it."""

    out: Path | None = None
    """Run folder, which must not exist; runs/NAME-seedN and a free number, if not given."""
    resume: Path | None = None
    """Go on with the run in this folder; takes no other option."""
    seed: int = size(0, least=0, most=math.inf)
    """Decides everything: the same seed gives the same bits on the same machine."""
    evaluate_every: int | None = size(None)
    """Steps between evaluations on what is held out, of agents updates. If not given: 10; 50 of texts and preferences; of agents
    a twentieth of the run."""
    save_interval: float = number(15.0, least=0, most=math.inf)
    """Seconds between checkpoints, at least; a run also saves when it is interrupted and when it ends."""
    mesh: tuple[int, int, int] | None = None
    """Devices along the axes data, fsdp, tensor: copies of the model, shards of its parameters, shards of its products."""
    log: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] = ()
    """Also log there (install the extra of that name)."""


def name_option(name: str, prefix: str = "") -> str:
    """The option of a field."""
    return f"--{prefix}{name.replace('_', '-')}"


def name_options(error: InputError, *names: str) -> InputError:
    """The same error in the words of the command line, where it speaks of these fields."""
    text = str(error)
    for name in names:
        text = re.sub(rf"(?<![\w-]){name}(?![\w-])", name_option(name), text)
    return InputError(text)


def check_numbers(arguments: Any, prefixes: typing.Mapping[str, str]) -> None:
    """Raises InputError, naming the option, where a number of a group is out of its range.

    Args:
      prefixes: what stands before the names of a group's options.
    """
    for group in dataclasses.fields(arguments):
        record = getattr(arguments, group.name)
        if dataclasses.is_dataclass(record) and (found := find_out_of_range(record)):
            name, problem = found
            raise InputError(f"{name_option(name, prefixes.get(group.name, ''))} {problem}")


def check_seeds(seed: int, seeds: int = 1) -> None:
    """Raises InputError where a seed does not fit into 32 bits."""
    if seed + seeds > LARGEST_SEED:
        raise InputError(f"--seed must lie in 0..{LARGEST_SEED - seeds}, not {seed}")


def to_json(arguments: Any) -> dict[str, Any]:
    """Plain data, of which `from_json` makes the same arguments."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, tuple):
            return [plain(each) for each in value]
        return str(value) if isinstance(value, Path) else value

    def groups() -> typing.Iterator[tuple[str, dict[str, Any]]]:
        for group in dataclasses.fields(arguments):
            record = getattr(arguments, group.name)
            yield (
                group.name,
                {
                    f.name: getattr(record, f.name)
                    for f in dataclasses.fields(record)
                    if f.type is not Sampling
                },
            )

    return plain(dict(groups()))


def from_json(kind: type, data: typing.Mapping[str, Any]) -> Any:
    """The arguments of that kind that `to_json` wrote.

    Raises:
      KeyError, TypeError: if it did not.
    """

    def revive_group(annotation: Any, values: dict[str, Any]) -> Any:
        group = (
            typing.get_args(annotation)[0]
            if typing.get_origin(annotation) is typing.Annotated
            else annotation
        )
        hints = typing.get_type_hints(group)
        return group(**{name: revive(name, value, hints[name]) for name, value in values.items()})

    hints = typing.get_type_hints(kind, include_extras=True)
    return kind(**{f.name: revive_group(hints[f.name], data[f.name]) for f in dataclasses.fields(kind)})
