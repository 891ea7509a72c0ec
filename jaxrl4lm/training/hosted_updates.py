"""Updates on prompts: Python rewards are called between two compiled halves, drawing and learning.

Rewards that are JAX functions of tokens, and reward models that read the policy's ids, are part of the first.
"""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm import diagnostics
from jaxrl4lm.data import Tokenizer
from jaxrl4lm.data.corpus import PromptSet, encode_prompts, epoch_rows
from jaxrl4lm.data.files import Row, check_messages
from jaxrl4lm.data.rewards import Log, RewardSet, TrainerState
from jaxrl4lm.data.token_reward import TokenReward
from jaxrl4lm.lm import ReinforcementConfig
from jaxrl4lm.lm import reinforcement as update_rule
from jaxrl4lm.lm.curriculum import Curriculum, draw_rows, empty_record, remember
from jaxrl4lm.lm.pool import Pool, begin_pool, keep_informative
from jaxrl4lm.lm.rollouts import Drawn, Rollout
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.training.completion_table import CompletionLog, tabulate
from jaxrl4lm.training.evaluation import (
    Evaluation,
    compile_rewards,
    decode_completions,
    evaluate_prompts,
    judge_completions,
    mean_of,
)
from jaxrl4lm.training.language_stage import digest, fetch, make_rows, split_indices
from jaxrl4lm.training.stage import TABLES, Numbers, StepFailed
from jaxrl4lm.types import InputError


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


def _name_kind(value: Any) -> str:
    return type(value).__name__


class _Scored(NamedTuple):
    """What rewards say of the completions of a round."""

    totals: np.ndarray
    """float32 `[completions]`, what is learned from; nan where no reward applies."""
    metrics: Numbers
    plain: Numbers
    """Of the weighted sums, where something else is learned from: the same rewards normalised."""
    table: list[dict[str, Any]]
    """For people to read; empty where the log asks for none."""


class HostedUpdates:
    """Updates on prompts: the rewards are called between two compiled halves.

    Where a step of staleness is allowed, the first half of the next update is set going before the rewards are called, and what
    it gives is part of the state: a resumed run learns from the same completions.
    """

    stride = 1

    def __init__(
        self,
        config: ReinforcementConfig,
        learner: update_rule.Learner,
        tokenizer: Tokenizer,
        prompts: PromptSet | Sequence[Any],
        rewards: RewardSet,
        seed: int,
        curriculum: Curriculum | None,
        log: CompletionLog,
    ):
        self._held_out = None
        if not isinstance(prompts, PromptSet):
            prompts, self._held_out = _encode(prompts, tokenizer, learner.policy, config.sampling.length)
        self._config, self._tokenizer, self._prompts, self._given = config, tokenizer, prompts, rewards
        self._rewards = rewards = compile_rewards(rewards, tokenizer, prompts, config.sampling.length)
        self._policy, self._seed, self._log = learner.policy, seed, log

        self._learner, self._curriculum = learner, curriculum
        self._inside = {
            name: each for name, each in rewards.functions.items() if isinstance(each, TokenReward)
        }
        self._inside_params = {name: reward.params for name, reward in self._inside.items()}
        count = config.prompts_per_update
        if curriculum is not None and count > len(prompts.rows):
            raise InputError(
                f"prompts_per_update {count}: a curriculum chooses among more prompts than that, there are {len(prompts.rows)}"
            )

        @jax.jit
        def sample(
            state: update_rule.ReinforcementState, tokens: jax.Array, mask: jax.Array, params: Any, drawn: Any
        ):
            drawn = update_rule.sample(state, tokens, mask, config, learner, drawn=drawn)
            return drawn, self._score_inside(params, drawn)

        @jax.jit
        def sample_greedily(
            state: update_rule.ReinforcementState, tokens: jax.Array, mask: jax.Array, params: Any
        ):
            drawn = update_rule.sample_greedily(state, tokens, mask, config, learner)
            return drawn, self._score_inside(params, drawn)

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
            "rewards": list(rewards.functions),
        }

    def make_evaluation(self) -> Evaluation | None:
        """Of what was held out; None where all prompts came encoded, to train on."""
        if self._held_out is None:
            return None
        sampling = self._config.sampling
        return evaluate_prompts(self._policy, self._tokenizer, self._held_out, self._given, sampling)

    def complete(self, state: update_rule.ReinforcementState) -> update_rule.ReinforcementState:
        """The state with what the host's side remembers."""
        if self._curriculum is not None:
            state = state._replace(record=empty_record(len(self._prompts.rows)))
        if self._config.staleness:
            shapes = jax.eval_shape(
                lambda s: self._sample_both(s, [0] * self._config.prompts_per_update, 0), state
            )
            state = state._replace(pending=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
        return state

    def _choose_rows(self, state: update_rule.ReinforcementState, update: int, drawn: int) -> list[int]:
        count, total = self._config.prompts_per_update, len(self._prompts.rows)
        if self._curriculum is not None:
            return np.asarray(self._choose(state, np.int32(drawn))).tolist()
        turn = update * self._config.sampling_rounds + drawn
        return epoch_rows(self._seed, turn * count, count, total).tolist()

    def advance(self, state: Any, done: int, count: int) -> tuple[Any, Numbers]:
        rows: list[Numbers] = []
        tables = np.empty(count, object)
        for update in range(done, done + count):
            try:
                state, metrics, table = self._update(state, update)
            except InputError as error:
                known = {TABLES: tables[: len(rows)]}
                raise StepFailed(str(error), state, _stack(rows) | known) from error
            tables[len(rows)] = table
            rows.append(fetch(metrics))
        return state, _stack(rows) | {TABLES: tables}

    def _update(self, state: Any, update: int) -> tuple[Any, Mapping[str, Any], list[dict[str, Any]]]:
        """The state after the update, its metrics, and a table of its first round."""
        state, drawn = self._take(state, update)
        state, pool, first = self._judge(state, drawn, update)
        rounds = [first]
        for number in range(1, self._config.sampling_rounds):
            if bool(pool.informative.all()):
                break
            state, fresh, scored = self._judge(state, self._draw(state, update, number), update)
            pool = self._keep(pool, fresh)
            rounds.append(scored)
        pending = state.pending
        state, metrics = self._learn(state._replace(pending=None), pool)
        means, plain = (
            {name: mean_of(values) for name, values in _stack(each).items()}
            for each in zip(*((one.metrics, one.plain) for one in rounds), strict=True)
        )
        return state._replace(pending=pending), {**means, **metrics, **plain}, first.table

    def _take(self, state: Any, update: int) -> tuple[Any, Drawn]:
        """What this update learns from; with staleness those of the next one are on their way then."""
        if not self._config.staleness:
            return state, self._draw(state, update, 0)
        drawn = state.pending if update else self._draw(state, update, 0)
        if update + 1 < self._config.updates:
            ahead = state._replace(update=state.update + 1)
            state = state._replace(pending=self._draw(ahead, update + 1, 0))
        return state, drawn

    def _draw(self, state: Any, update: int, number: int) -> Drawn:
        """Has completions of further prompts drawn, and does not wait for them."""
        state = state._replace(pending=None)
        return self._sample_both(state, self._choose_rows(state, update, number), number)

    def _sample_both(self, state: Any, rows: Sequence[int], number: int) -> Drawn:
        batch = self._prompts.batch(rows, self._tokenizer.pad_id, widest=bool(self._config.staleness))
        given, drawn = (state, *batch, self._inside_params), None
        if self._config.sampling_rounds > 1:
            drawn = np.int32(number)
        greedy, greedy_scores = None, {}
        rollout, scores = self._sample(*given, drawn)
        if self._learner.algorithm.greedy_baseline:
            greedy, greedy_scores = self._sample_greedily(*given)
        return Drawn(jnp.asarray(rows, jnp.int32), rollout, greedy, scores, greedy_scores)

    def _score_inside(self, params: Mapping[str, Any], drawn: Rollout) -> dict[str, jax.Array]:
        """What the compiled rewards say of completions."""
        if not self._inside:
            return {}
        copies = len(drawn.completions) // len(drawn.prompts)
        prompts, prompt_mask = jnp.repeat(drawn.prompts, copies, 0), jnp.repeat(drawn.prompt_mask, copies, 0)
        return {
            name: reward.score(params[name], prompts, prompt_mask, drawn.completions, drawn.mask)
            for name, reward in self._inside.items()
        }

    def _judge(self, state: Any, drawn: Drawn, update: int) -> tuple[Any, Pool, _Scored]:
        """The completions of a round with their scores, and what rewards say of them."""
        rows, trajectories, copies = np.asarray(drawn.rows), drawn.rollout, self._config.completions
        scored = self._score(trajectories, drawn.scores, rows.tolist(), copies, update)
        scores = scored.totals
        if drawn.greedy is not None:
            baselines = self._score(drawn.greedy, drawn.greedy_scores, rows.tolist(), 1, update).totals
            scores = scores + np.repeat(np.where(np.isnan(baselines), np.nan, 0), copies)
            trajectories = trajectories._replace(baselines=np.nan_to_num(baselines))
        trajectories = trajectories._replace(scored=~np.isnan(scores))
        if state.record is not None:
            by_prompt = _fill(scores.reshape(len(rows), copies))
            state = state._replace(record=self._remember(state.record, rows, by_prompt))
        scores = np.nan_to_num(scores)
        if self._config.sampling_rounds > 1:
            return state, self._begin(trajectories, scores), scored
        return state, Pool(trajectories, scores, *[None] * 3), scored  # pyright: ignore[reportArgumentType]

    def _score(
        self,
        trajectories: Rollout,
        known: Mapping[str, Any],
        indices: Sequence[int],
        copies: int,
        update: int,
    ) -> _Scored:
        completions = decode_completions(
            self._tokenizer, trajectories.completions, trajectories.mask, trajectories.truncated
        )
        seen = update * self._config.prompts_per_update / len(self._prompts.rows)
        state, log = TrainerState(update, self._config.updates, seen), Log()
        known = jax.device_get(dict(known))
        each = judge_completions(
            self._rewards, self._prompts, indices, completions, copies, state, log, known=known
        )
        totals = self._rewards.add(each, copies).astype(np.float32)
        shown, plain = totals, {}
        if self._rewards.normalized and copies > 1:
            shown = self._rewards._replace(normalized=False).add(each).astype(np.float32)
            plain = jax.device_get(
                _describe_scores(_fill(shown.reshape(-1, copies)), ~np.isnan(shown).reshape(-1, copies))
            )
        named = zip(self._rewards.functions, each, strict=True) if len(each) > 1 else ()
        scores = {f"reward/{name}": said for name, said in named}
        metrics = {name: mean_of(said) for name, said in scores.items()}
        metrics |= {f"reward/{name}": np.asarray(value) for name, value in log.metrics.items()}
        chosen = self._log.choose(update + 1, self._config.updates, len(indices), copies)
        table = tabulate(
            chosen,
            [self._prompts.given[i] for i in indices],
            [completion.text for completion in completions],
            {"reward": shown, **scores},
            log.columns,
        )
        return _Scored(totals, metrics, plain, table)

    def prepare(self, state: Any, count: int) -> None:
        del count
        rows = [i % len(self._prompts.rows) for i in range(self._config.prompts_per_update)]
        state = state._replace(pending=None)
        batch = self._prompts.batch(rows, self._tokenizer.pad_id, widest=bool(self._config.staleness))
        given, drawn = (state, *batch, self._inside_params), None
        if self._config.sampling_rounds > 1:
            drawn = np.int32(0)
        self._sample.lower(*given, drawn).compile()
        if self._learner.algorithm.greedy_baseline:
            self._sample_greedily.lower(*given).compile()
        trajectories = jax.eval_shape(lambda s: self._sample_both(s, rows, 0), state).rollout
        scores = jax.ShapeDtypeStruct(trajectories.completions.shape[:1], np.float32)
        if self._learner.algorithm.greedy_baseline:
            trajectories = trajectories._replace(baselines=jax.ShapeDtypeStruct((len(rows),), np.float32))
        trajectories = trajectories._replace(scored=jax.ShapeDtypeStruct(scores.shape, bool))
        pool = Pool(trajectories, scores, *[None] * 3)  # pyright: ignore[reportArgumentType]
        if self._config.sampling_rounds > 1:
            pool = jax.eval_shape(begin_pool, trajectories, scores)
        self._learn.lower(state, pool).compile()


@jax.jit
def _describe_scores(scores: jax.Array, scored: jax.Array) -> dict[str, jax.Array]:
    """The metrics of scores `[G, n]`, some of which do not apply."""
    seen = diagnostics.to_numbers(diagnostics.rewards(scores, scored))
    return {
        name: value for name, value in seen.items() if name != "group/frac_zero_std"
    }  # of what is learned from


def _fill(scores: np.ndarray) -> np.ndarray:
    """Scores `[G, n]` with the mean of their prompt in place of nan; 0 if it has none."""
    known = ~np.isnan(scores)
    means = np.where(known, scores, 0).sum(-1, keepdims=True) / np.maximum(known.sum(-1, keepdims=True), 1)
    return np.where(known, scores, means).astype(np.float32)


def _stack(rows: Sequence[Numbers]) -> dict[str, np.ndarray]:
    """Metrics `[updates]`; nan where an update does not have one, as what a reward logs now and then."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.stack([row.get(name, np.asarray(math.nan)) for row in rows]) for name in names}
