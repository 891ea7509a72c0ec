"""Reinforcement learning of a language model as a stage: a compiled task, or prompts and Python rewards."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax

from jaxrl4lm.data import Tokenizer
from jaxrl4lm.data.corpus import PromptSet
from jaxrl4lm.data.rewards import Reward, RewardSet, gather_rewards
from jaxrl4lm.lm import ReinforcementConfig, algorithms
from jaxrl4lm.lm import reinforcement as update_rule
from jaxrl4lm.lm.credit import best_of_credit
from jaxrl4lm.lm.critic import Critic, beside_critic
from jaxrl4lm.lm.curriculum import Curriculum
from jaxrl4lm.lm.optimizer import Optimizer, adam
from jaxrl4lm.lm.surrogates import score_function, truncate_weights
from jaxrl4lm.lm.trainable import Trainable, everything
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.tasks import Task
from jaxrl4lm.training.completion_table import CompletionLog
from jaxrl4lm.training.evaluation import Evaluation, evaluate_task
from jaxrl4lm.training.hosted_updates import HostedUpdates
from jaxrl4lm.training.language_stage import (
    check_config,
    choose_chunk,
    choose_keys,
    complete_stage,
    fetch,
    map_over_seeds,
)
from jaxrl4lm.training.stage import Numbers, Stage
from jaxrl4lm.types import InputError, Params

LONGEST_COMPLETION = 64
"""Tokens, where the configuration does not say."""
Rewards = Callable[..., Any] | Sequence[Reward] | Mapping[str, Reward] | RewardSet


def reinforcement(
    policy: LanguagePolicy,
    tokenizer: Tokenizer,
    prompts: Task | PromptSet | Sequence[Any],
    *,
    rewards: Rewards = (),
    algorithm: algorithms.Algorithm = algorithms.PPO,
    config: ReinforcementConfig = ReinforcementConfig(),  # noqa: B008 (immutable)
    evaluation: Evaluation | None = None,
    optimizer: Optimizer = adam,
    trainable: Trainable | None = None,
    seed: int = 0,
    seeds: int = 1,
    evaluate_every: int = 10,
    curriculum: Curriculum | None = None,
    log: CompletionLog = CompletionLog(),  # noqa: B008 (immutable)
    critic: Critic | None = None,
) -> Stage:
    """Completes prompts, scores the completions, learns from them.

    Args:
      prompts: a task, whose problems and reward are part of one compiled program; or texts, records with a `prompt`, text
        or messages (rows of `data.load`; their other columns go to the rewards), or an encoded `PromptSet`. Of texts and
        records a tenth is held out, 256 at most.
      rewards: one or several functions `reward(prompts, completions, **columns) -> list[float]`, whose sum is learned
        from, or a `RewardSet`, which has weights (`data.rewards.gather_rewards`); none with a task.
      algorithm: a composition, as `lm.algorithms` has them.
      config: its `sampling` may leave length and end tokens open: then they are the task's or the tokenizer's.
      evaluation: what is measured; greedy completions of the held-out prompts if None.
      optimizer: (learning rate, config) → an optax transformation.
      trainable: what learns (`lm.trainable`); everything if None. Under adapters the base is the reference.
      seed: decides everything.
      seeds: so many runs as one program, on a task; parameters have a leading axis then.
      evaluate_every: updates between evaluations.
      curriculum: which prompts come next, from what was seen of them (`lm.curriculum`); None: all in turn. Not with a task.
      log: which completions are kept to be read, in completions.jsonl; none on a task.
      critic: a transformer of its own that learns values (`lm.critic`, `training.load_critic`), where the algorithm has values;
        None: a head on the policy's trunk. It is part of the state, not of what the run exports.
    Raises:
      InputError: where sizes do not fit, or a prompt cannot be used.
    """
    longest = prompts.completion_length if isinstance(prompts, Task) else LONGEST_COMPLETION
    sampling = config.sampling.complete(longest, tokenizer.eos_ids, tokenizer.pad_id)
    config = config.replace(sampling=sampling)
    _check(config, algorithm, prompts, seeds)
    if curriculum is not None and isinstance(prompts, Task):
        raise InputError("a task makes its problems anew: a curriculum is for prompts")
    if critic is not None:
        _check_critic(critic, algorithm, config)
        trainable = beside_critic(trainable or everything(), critic)
    learner = update_rule.Learner(
        policy, _drop_free_kl(algorithm, config), optimizer, trainable or everything(), critic
    )
    keys = choose_keys(seed, seeds, "reinforcement")

    def init(params: Params) -> update_rule.ReinforcementState:
        state = map_over_seeds(lambda k, p: update_rule.init(k, config, learner, p), seeds)(keys, params)
        return part.complete(state)

    every = choose_chunk(evaluate_every, config.updates)
    if isinstance(prompts, Task):
        if rewards:
            raise InputError("a task has its own reward: give no rewards")
        part: _Compiled | HostedUpdates = _Compiled(config, learner, prompts, seeds)
        evaluation = evaluation or evaluate_task(policy, prompts, seeds=seeds)
    else:
        log.check()
        log = log._replace(every=log.every or every)
        judges = gather_rewards(rewards)
        part = HostedUpdates(config, learner, tokenizer, prompts, judges, seed, curriculum, log)
        evaluation = evaluation or part.make_evaluation()
    stage = Stage(
        name="reinforcement",
        steps=config.updates,
        chunk=every,
        init=init,
        advance=part.advance,
        headline=partial(_say, evaluation),
        prepare=lambda params: part.prepare(jax.eval_shape(init, params), every),
        panels=_choose_panels(learner),
        stride=part.stride,
    )
    settings = {
        "seed": seed,
        "seeds": seeds,
        "algorithm": learner.algorithm,
        "config": config,
        "prompts": part.description,
        "optimizer": optimizer,
        "trainable": trainable,
        "curriculum": curriculum,
        **({} if critic is None else {"critic": critic}),
    }
    return complete_stage(stage, policy, tokenizer, trainable, evaluation, seeds, settings)


def _check(config: ReinforcementConfig, algorithm: algorithms.Algorithm, prompts: Any, seeds: int) -> None:
    check_config(config)
    if algorithm.compares_group and config.completions < 2:
        raise InputError(
            f"completions must be at least 2, not {config.completions}: the algorithm compares completions of one prompt"
        )
    if config.sampling_rounds > 1 and config.completions < 2:
        raise InputError(
            f"sampling_rounds {config.sampling_rounds} looks for prompts whose completions differ in score: completions "
            f"must be at least 2, not {config.completions}"
        )
    if algorithm.credit is best_of_credit and config.best_of >= config.completions:
        raise InputError(
            f"best_of {config.best_of} must be below completions ({config.completions}): the baseline is of those without it"
        )
    parts = (config.epochs, config.minibatches, config.micro_batches)
    if algorithm.step is not None and parts != (1, 1, 1):
        raise InputError(
            f"epochs, minibatches, micro_batches {parts} must be 1: the algorithm takes one step of its own an update"
        )
    if config.staleness:
        _check_staleness(algorithm, prompts)
    if not isinstance(prompts, Task):
        if seeds > 1:
            raise InputError(
                f"seeds {seeds}: several seeds at once need a task (a Python reward cannot be compiled): train one at a time"
            )
    elif config.sampling.length != prompts.completion_length:
        raise InputError(
            f"max_new_tokens {config.sampling.length}: {prompts.name} is answered in {prompts.completion_length} tokens, "
            "leave it open"
        )


def _check_staleness(algorithm: algorithms.Algorithm, prompts: Any) -> None:
    if isinstance(prompts, Task):
        raise InputError(
            f"staleness 1 has no meaning on {prompts.name}: its reward is part of the compiled update, nothing waits for it"
        )
    if algorithm.step is not None:
        raise InputError(
            "staleness 1 does not go with an algorithm whose one step is measured from the policy that learns: leave it at 0"
        )
    if algorithm.surrogate is score_function and truncate_weights not in algorithm.weights:
        raise InputError(
            "staleness 1 needs a ratio of new to old probability, which the algorithm does not take: give it the weights "
            "surrogates.truncate_weights (--correction truncated)"
        )


def _check_critic(critic: Critic, algorithm: algorithms.Algorithm, config: ReinforcementConfig) -> None:
    if algorithm.value_loss is None:
        raise InputError("a critic is for an algorithm that learns values, such as PPO: leave it out")
    if not critic.policy.config.causal:
        raise InputError(
            "the critic is an encoder, which reads tokens that are still to come: take a decoder"
        )
    if config.sampling.length >= critic.policy.config.context:
        raise InputError(
            f"max_new_tokens {config.sampling.length} fills the critic's context of {critic.policy.config.context} tokens: "
            "lower it"
        )


def _drop_free_kl(algorithm: algorithms.Algorithm, config: ReinforcementConfig) -> algorithms.Algorithm:
    """Without a reference where its price is 0 for good."""
    fixed = algorithm.kl.controller is algorithms.keep_price
    free = isinstance(config.kl_coef, int | float) and config.kl_coef == 0
    return algorithm._replace(kl=algorithms.KL()) if fixed and free else algorithm


class _Compiled:
    """Updates on a task: a chunk of them is one program."""

    stride = None

    def __init__(self, config: ReinforcementConfig, learner: update_rule.Learner, task: Task, seeds: int):
        @partial(jax.jit, static_argnums=1, donate_argnums=0)
        def chunk(state: update_rule.ReinforcementState, updates: int):
            return map_over_seeds(lambda s: update_rule.run(s, config, learner, task, updates), seeds)(state)

        self._chunk, self._seeds, self.description = chunk, seeds, task.name

    def complete(self, state: update_rule.ReinforcementState) -> update_rule.ReinforcementState:
        return state

    def advance(self, state: Any, done: int, count: int) -> tuple[Any, Numbers]:
        del done  # the state knows
        state, metrics = self._chunk(state, count)
        return state, fetch(metrics, self._seeds)

    def prepare(self, state: Any, count: int) -> None:
        self._chunk.lower(state, count).compile()


def _choose_panels(learner: update_rule.Learner) -> dict[str, str]:
    panels = {"reward/mean": "mean reward of sampled completions"}
    if learner.algorithm.kl.referred:
        panels["kl/ref_sequence"] = "KL to the reference (nats a completion)"
    return panels


def _say(evaluation: Evaluation | None, metrics: Numbers) -> str:
    mean = {name: float(values.mean()) for name, values in metrics.items()}
    clip = mean["policy/clip_frac_low"] + mean["policy/clip_frac_high"]
    tokens = float(metrics["completion/tokens"].sum()) / max(mean["seconds"], 1e-9)
    parts = [f"reward {mean['reward/mean']:.3f}"]
    if evaluation:
        parts.append(evaluation.headline(metrics))
    if "kl/ref_sequence" in mean:
        parts.append(f"KL {mean['kl/ref_sequence']:z.2f}")
    parts += [f"entropy {mean['policy/entropy']:.2f}", f"clip {clip:.2f}", f"{tokens:,.0f} tokens/s"]
    return "  ".join(parts)
