"""What `train` drives: phases over a state, an evaluation and samples, whatever the model learns from.

A session with several seeds holds states whose leaves have a leading axis of seeds, and reports one number a seed.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl4lm import models
from jaxrl4lm.cli.machine_errors import check_memory
from jaxrl4lm.cli.train_arguments import Model, Reinforcement
from jaxrl4lm.data import Tokenizer
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxrl4lm.lm import ReinforcementConfig, algorithms
from jaxrl4lm.losses import kl as estimators
from jaxrl4lm.models import LanguagePolicy, TransformerConfig
from jaxrl4lm.types import InputError, Params


class Phase(NamedTuple):
    """A number of steps over a state that has `params`."""

    name: str
    total: int
    chunk: int
    """Steps between evaluations."""
    init: Callable[[Params], Any]
    run: Callable[[Any, int, int], tuple[Any, Mapping[str, np.ndarray]]]
    """(state, steps done, steps to do) → state, metrics with a leading axis of steps. May raise `StepFailed`."""
    until: float | None = None
    """The held-out score (of several seeds: their mean) at which the phase ends before `total`."""


class StepFailed(InputError):
    """A step failed, as a user's reward may; the state and the metrics `[steps]` of those before it are whole."""

    def __init__(self, reason: str, state: Any, metrics: Mapping[str, np.ndarray]):
        super().__init__(reason)
        self.state, self.metrics = state, metrics


class Sample(NamedTuple):
    """A completion to look at."""

    prompt: str
    completion: str
    score: float


class Session(NamedTuple):
    """One run, ready to be driven."""

    title: str
    score_name: str
    """What the held-out score is."""
    policy: LanguagePolicy
    tokenizer: Tokenizer
    seeds: int
    start: Callable[[], Params]
    """The parameters before the first phase."""
    phases: tuple[Phase, ...]
    evaluate: Callable[[Params], np.ndarray]
    """Held-out score, `[]` or `[seeds]`."""
    samples: Callable[[Params], list[Sample]]
    """Completions of a few held-out prompts, the same each time."""
    notes: tuple[str, ...] = ()
    """What the user should know before it starts."""


def transformer(model: Model, vocab_size: int, context: int) -> TransformerConfig:
    """The configuration of a new transformer."""
    # Either style has about 12 width² parameters a block.
    least = model.layers * 12 * model.width**2
    check_memory(least, f"--layers {model.layers} --width {model.width}")
    make = TransformerConfig.gpt2 if model.style == "gpt2" else TransformerConfig
    try:
        return make(
            vocab_size,
            layers=model.layers,
            width=model.width,
            heads=model.heads,
            context=context,
            dtype=model.dtype,
        )
    except ValueError as error:
        raise InputError(f"the model cannot be built: {error}") from None


def load_model(model: Model, dtype: str = "float32") -> tuple[LanguagePolicy, Params, HuggingFaceTokenizer]:
    """The policy (of the tokenizer's tokens), parameters (of that dtype) and tokenizer of a Hugging Face folder."""
    try:
        policy, params, tokenizer = models.load(model.model, dtype=dtype, compute_dtype=model.dtype)  # pyright: ignore
    except InputError:
        raise
    except Exception as error:  # the readers of JSON, tensors and tokenizers raise many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            f"{model.model} cannot be loaded ({reason}): mend or replace the folder's files"
        ) from error
    if tokenizer is None:
        raise InputError(f"{model.model} has no tokenizer.json: save the tokenizer beside the model")
    _check_vocabulary(model.model, tokenizer, policy.config.vocab_size)
    if tokenizer.vocab_size < policy.config.vocab_size:
        policy = dataclasses.replace(policy, tokens=tokenizer.vocab_size)
    return policy, params, tokenizer


def _check_vocabulary(folder: pathlib.Path | None, tokenizer: HuggingFaceTokenizer, size: int) -> None:
    """Raises InputError where the tokenizer writes ids that the model has no embedding for.

    Tokens that were added later may lie beyond it: some published folders have a pad token there, which is masked.
    """
    known = tokenizer.backend.get_vocab(with_added_tokens=False).values()
    largest = max(*known, *tokenizer.eos_ids)
    if largest >= size:
        raise InputError(
            f"{folder}: the tokenizer has ids up to {largest}, the model {size} embeddings: put the tokenizer and the "
            "model of one training together"
        )


ALGORITHMS = {
    "ppo": algorithms.PPO,
    "reinforce": algorithms.REINFORCE,
    "grpo": algorithms.GRPO,
    "rloo": algorithms.RLOO,
}
KL_PLACEMENTS = {
    "reward": algorithms.KL(reward=estimators.k1),
    "k2": algorithms.KL(loss=estimators.k2),
    "k3": algorithms.KL(loss=estimators.k3),
    "sequence_k2": algorithms.KL(loss=estimators.sequence_k2, of_sequence=True),
    "sequence_ratio": algorithms.KL(loss=estimators.sequence_ratio_k1, of_sequence=True),
}


def algorithm(rl: Reinforcement) -> algorithms.Algorithm:
    """The composition that the options name."""
    kl = KL_PLACEMENTS[rl.kl]
    if rl.kl_target is not None:
        kl = kl._replace(controller=algorithms.adaptive)
    return ALGORITHMS[rl.algorithm]._replace(kl=kl)


def reinforcement_config(rl: Reinforcement) -> ReinforcementConfig:
    """The options as a checked configuration."""
    config = ReinforcementConfig(
        learning_rate=rl.learning_rate,
        final_learning_rate=rl.final_learning_rate,
        clip_eps=rl.clip_eps,
        kl_coef=rl.kl_coef,
        kl_target=rl.kl_target or 6.0,
        discount=rl.discount,
        gae_lambda=rl.gae_lambda,
        temperature=rl.temperature,
        entropy_coef=rl.entropy_coef,
        updates=rl.updates,
        warmup=rl.warmup,
        prompts=rl.prompts_per_update,
        completions=rl.completions_per_prompt,
        epochs=rl.epochs,
        minibatches=rl.minibatches or 1,
        micro_batches=rl.micro_batches,
        truncation=rl.truncation or "bootstrap",
    )
    try:
        config.check()
    except ValueError as error:
        raise InputError(str(error)) from None
    return config


def host(metrics: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """Metrics as NumPy arrays, fetched together."""
    return {name: np.asarray(value) for name, value in jax.device_get(dict(metrics)).items()}
