"""Reinforcement learning of a language model as a stage: a compiled task, or prompts and Python rewards."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxrl4lm.data import Tokenizer
from jaxrl4lm.data.corpus import PromptSet, encode_prompts, epoch_rows
from jaxrl4lm.data.files import Row, check_messages
from jaxrl4lm.data.rewards import Reward
from jaxrl4lm.lm import ReinforcementConfig, algorithms
from jaxrl4lm.lm import reinforcement as update_rule
from jaxrl4lm.lm.credit import best_of_credit
from jaxrl4lm.lm.curriculum import Curriculum, draw_rows, empty_record, remember
from jaxrl4lm.lm.optimizer import Optimizer, adam
from jaxrl4lm.lm.pool import Pool, begin_pool, keep_informative
from jaxrl4lm.lm.trainable import Trainable, everything
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.tasks import Task
from jaxrl4lm.training.evaluation import (
    Evaluation,
    decode_completions,
    evaluate_prompts,
    evaluate_task,
    sum_rewards,
)
from jaxrl4lm.training.language_stage import (
    check_config,
    choose_chunk,
    choose_keys,
    complete_stage,
    digest,
    fetch,
    make_rows,
    map_over_seeds,
    split_indices,
)
from jaxrl4lm.training.stage import Numbers, Stage, StepFailed
from jaxrl4lm.types import InputError, Params

LONGEST_COMPLETION = 64
"""Tokens, where the configuration does not say."""
Rewards = Callable[..., Any] | Sequence[Reward] | Mapping[str, Reward]


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
) -> Stage:
    """Completes prompts, scores the completions, learns from them.

    Args:
      prompts: a task, whose problems and reward are part of one compiled program; or texts, records with a `prompt`, text
        or messages (rows of `data.load`; their other columns go to the rewards), or an encoded `PromptSet`. Of texts and
        records a tenth is held out, 256 at most.
      rewards: one or several functions `reward(prompts, completions, **columns) -> list[float]`, whose sum is learned
        from; none with a task.
      algorithm: a composition, as `lm.algorithms` has them.
      config: its `sampling` may leave length and end tokens open: then they are the task's or the tokenizer's.
      evaluation: what is measured; greedy completions of the held-out prompts if None.
      optimizer: (learning rate, config) → an optax transformation.
      trainable: what learns (`lm.trainable`); everything if None. Under adapters the base is the reference.
      seed: decides everything.
      seeds: so many runs as one program, on a task; parameters have a leading axis then.
      evaluate_every: updates between evaluations.
      curriculum: which prompts come next, from what was seen of them (`lm.curriculum`); None: all in turn. Not with a task.
    Raises:
      InputError: where sizes do not fit, or a prompt cannot be used.
    """
    longest = prompts.completion_length if isinstance(prompts, Task) else LONGEST_COMPLETION
    sampling = config.sampling.complete(longest, tokenizer.eos_ids, tokenizer.pad_id)
    config = config.replace(sampling=sampling)
    _check(config, algorithm, prompts, seeds)
    if curriculum is not None and isinstance(prompts, Task):
        raise InputError("a task makes its problems anew: a curriculum is for prompts")
    learner = update_rule.Learner(
        policy, _drop_free_kl(algorithm, config), optimizer, trainable or everything()
    )
    keys = choose_keys(seed, seeds, "reinforcement")

    def init(params: Params) -> update_rule.ReinforcementState:
        state = map_over_seeds(lambda k, p: update_rule.init(k, config, learner, p), seeds)(keys, params)
        return part.complete(state)

    every = choose_chunk(evaluate_every, config.updates)
    if isinstance(prompts, Task):
        if rewards:
            raise InputError("a task has its own reward: give no rewards")
        part: _Compiled | _Hosted = _Compiled(config, learner, prompts, seeds)
        evaluation = evaluation or evaluate_task(policy, prompts, seeds=seeds)
    else:
        part = _Hosted(config, learner, tokenizer, prompts, name_rewards(rewards), seed, curriculum)
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


def _drop_free_kl(algorithm: algorithms.Algorithm, config: ReinforcementConfig) -> algorithms.Algorithm:
    """Without a reference where its price is 0 for good."""
    fixed = algorithm.kl.controller is algorithms.keep_price
    free = isinstance(config.kl_coef, int | float) and config.kl_coef == 0
    return algorithm._replace(kl=algorithms.KL()) if fixed and free else algorithm


def name_rewards(rewards: Rewards) -> dict[str, Reward]:
    """Rewards by name, for messages.

    Raises:
      InputError: if there is none.
    """
    if isinstance(rewards, Mapping):
        several: list[Any] = list(rewards.values())
    else:
        several = [rewards] if callable(rewards) or isinstance(rewards, str) else list(rewards)
    if not several:
        raise InputError(
            "there is no reward: give at least one function reward(prompts, completions, **columns)"
        )
    if wrong := [reward for reward in several if not callable(reward)]:
        raise InputError(
            f"the reward {wrong[0]!r} is no function: give one, reward(prompts, completions, **columns)"
        )
    if isinstance(rewards, Mapping):
        return dict(rewards)
    named: dict[str, Reward] = {}
    for reward in several:
        name = getattr(reward, "__name__", type(reward).__name__)
        named[name if name not in named else f"{name} ({len(named) + 1})"] = reward
    return named


def _encode(
    prompts: Sequence[Any], tokenizer: Tokenizer, policy: LanguagePolicy, room: int
) -> tuple[PromptSet, PromptSet]:
    """(to train on, held out) of texts or records."""
    rows = make_rows(prompts, "prompts", "prompt")
    for row in rows:
        if "prompt" not in row.columns:
            found = ", ".join(map(repr, row.columns)) or "none"
            raise InputError(f"prompts, line {row.line}: no column 'prompt'; its columns are {found}")
        if not isinstance(row.columns["prompt"], str):
            check_messages(row.columns["prompt"], f"prompts, line {row.line}: column 'prompt'")
    rows = fill_columns(rows)
    sizes = policy.config
    encoded = encode_prompts(
        rows, "prompt", tokenizer, "prompts", room, sizes.context, embeddings=sizes.vocab_size
    )
    return split_prompts(hide_column(encoded, "prompt"), None)


def fill_columns(rows: Sequence[Row]) -> list[Row]:
    """The rows with the columns of all, None where one has it not: a reward is always called with the same."""
    names = dict.fromkeys(name for row in rows for name in row.columns)
    return [Row(row.line, dict.fromkeys(names) | row.columns) for row in rows]


def hide_column(prompts: PromptSet, column: str) -> PromptSet:
    """The prompts without the column that holds them: rewards get it as `prompts`."""
    rows = [
        row._replace(columns={k: v for k, v in row.columns.items() if k != column}) for row in prompts.rows
    ]
    return prompts._replace(rows=rows)


def split_prompts(prompts: PromptSet, held_out: int | None) -> tuple[PromptSet, PromptSet]:
    """(to train on, held out), chosen by a fixed shuffle. None: a tenth, 256 at most; 0: evaluate on what is trained on.

    Raises:
      InputError: if nothing is left to train on.
    """
    training, kept_back = split_indices(len(prompts.rows), held_out, "prompts")
    return prompts.select(training), prompts.select(kept_back)


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


def _name_kind(value: Any) -> str:
    return type(value).__name__


class _Hosted:
    """Updates on prompts: the rewards are called between two compiled halves."""

    stride = 1

    def __init__(
        self,
        config: ReinforcementConfig,
        learner: update_rule.Learner,
        tokenizer: Tokenizer,
        prompts: PromptSet | Sequence[Any],
        rewards: Mapping[str, Reward],
        seed: int,
        curriculum: Curriculum | None,
    ):
        self._held_out = None
        if not isinstance(prompts, PromptSet):
            prompts, self._held_out = _encode(prompts, tokenizer, learner.policy, config.sampling.length)
        self._config, self._tokenizer, self._prompts, self._rewards = config, tokenizer, prompts, rewards
        self._policy, self._seed = learner.policy, seed

        self._learner, self._curriculum = learner, curriculum
        count = config.prompts_per_update
        if curriculum is not None and count > len(prompts.rows):
            raise InputError(
                f"prompts_per_update {count}: a curriculum chooses among more prompts than that, there are {len(prompts.rows)}"
            )

        @jax.jit
        def sample(state: update_rule.ReinforcementState, tokens: jax.Array, mask: jax.Array, drawn: Any):
            return update_rule.sample(state, tokens, mask, config, learner, drawn=drawn)

        @jax.jit
        def sample_greedily(state: update_rule.ReinforcementState, tokens: jax.Array, mask: jax.Array):
            return update_rule.sample_greedily(state, tokens, mask, config, learner)

        @partial(jax.jit, donate_argnums=0)
        def learn(state: update_rule.ReinforcementState, pool: Pool):
            if config.sampling_rounds == 1:
                return update_rule.learn(state, pool.rollout, pool.rewards, config, learner)
            return update_rule.learn_from_pool(state, pool, config, learner)

        @jax.jit
        def choose(state: update_rule.ReinforcementState, drawn: Any):
            assert curriculum is not None
            key = update_rule.split_prompt_key(state, drawn)
            return draw_rows(key, curriculum(state.record), count)  # pyright: ignore[reportArgumentType]

        self._sample, self._sample_greedily, self._learn = sample, sample_greedily, learn
        self._choose, self._remember = choose, jax.jit(remember)
        self._begin, self._keep = jax.jit(begin_pool), jax.jit(keep_informative)
        ids = [i for row in prompts.ids for i in (*row, -1)]
        others = json.dumps([row.columns for row in prompts.rows], sort_keys=True, default=_name_kind)
        self.description = {
            "prompts": len(prompts.rows),
            "digest": digest(ids, bytearray(others.encode())),
            "rewards": list(rewards),
        }

    def make_evaluation(self) -> Evaluation | None:
        """Of what was held out; None where all prompts came encoded, to train on."""
        if self._held_out is None:
            return None
        sampling = self._config.sampling
        return evaluate_prompts(self._policy, self._tokenizer, self._held_out, self._rewards, sampling)

    def complete(self, state: update_rule.ReinforcementState) -> update_rule.ReinforcementState:
        """The state with what the host's side remembers."""
        if self._curriculum is None:
            return state
        return state._replace(record=empty_record(len(self._prompts.rows)))

    def _choose_rows(self, state: update_rule.ReinforcementState, update: int, drawn: int) -> list[int]:
        count, total = self._config.prompts_per_update, len(self._prompts.rows)
        if self._curriculum is not None:
            return np.asarray(self._choose(state, np.int32(drawn))).tolist()
        turn = update * self._config.sampling_rounds + drawn
        return epoch_rows(self._seed, turn * count, count, total).tolist()

    def advance(self, state: Any, done: int, count: int) -> tuple[Any, Numbers]:
        rows: list[Numbers] = []
        for update in range(done, done + count):
            try:
                state, metrics = self._update(state, update)
            except InputError as error:
                raise StepFailed(str(error), state, _stack(rows)) from error
            rows.append(fetch(metrics))
        return state, _stack(rows)

    def _update(self, state: Any, update: int) -> tuple[Any, Mapping[str, jax.Array]]:
        state, pool = self._draw(state, update, 0)
        for drawn in range(1, self._config.sampling_rounds):
            if bool(pool.informative.all()):
                break
            state, fresh = self._draw(state, update, drawn)
            pool = self._keep(pool, fresh)
        return self._learn(state, pool)

    def _draw(self, state: Any, update: int, drawn: int) -> tuple[Any, Pool]:
        """One round: the completions of further prompts, and their scores."""
        indices = self._choose_rows(state, update, drawn)
        batch = self._prompts.batch(indices, self._tokenizer.pad_id)
        copies, several = self._config.completions, self._config.sampling_rounds > 1
        trajectories = self._sample(state, *batch, np.int32(drawn) if several else None)
        scores = self._score(trajectories, indices, copies)
        if self._learner.algorithm.greedy_baseline:
            baselines = self._score(self._sample_greedily(state, *batch), indices, 1)
            trajectories = trajectories._replace(baselines=baselines)
        if state.record is not None:
            by_prompt = scores.reshape(len(indices), copies)
            state = state._replace(record=self._remember(state.record, np.array(indices), by_prompt))
        if several:
            return state, self._begin(trajectories, scores)
        return state, Pool(trajectories, scores, *[None] * 3)  # pyright: ignore[reportArgumentType]

    def _score(self, trajectories: Any, indices: Sequence[int], copies: int) -> np.ndarray:
        completions = decode_completions(self._tokenizer, trajectories.completions, trajectories.mask)
        scores = sum_rewards(self._rewards, self._prompts, indices, completions, copies)
        return np.array(scores, np.float32)

    def prepare(self, state: Any, count: int) -> None:
        del count
        several = self._config.sampling_rounds > 1
        indices = list(range(min(self._config.prompts_per_update, len(self._prompts.rows))))
        indices += [0] * (self._config.prompts_per_update - len(indices))
        batch = self._prompts.batch(indices, self._tokenizer.pad_id)
        arguments = (state, *batch, np.int32(0) if several else None)
        self._sample.lower(*arguments).compile()
        trajectories = jax.eval_shape(self._sample, *arguments)
        scores = jax.ShapeDtypeStruct(trajectories.completions.shape[:1], np.float32)
        if self._learner.algorithm.greedy_baseline:
            self._sample_greedily.lower(state, *batch).compile()
            baselines = jax.ShapeDtypeStruct((len(indices),), np.float32)
            trajectories = trajectories._replace(baselines=baselines)
        pool = Pool(trajectories, scores, *[None] * 3)  # pyright: ignore[reportArgumentType]
        if several:
            pool = jax.eval_shape(begin_pool, trajectories, scores)
        self._learn.lower(state, pool).compile()


def _stack(rows: Sequence[Numbers]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}


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
