"""How language models are looked at while they learn: held-out scores and samples, the same ones each time.

Shapes: `N` rows, `L` tokens, `B` rows of a batch.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm import reduce
from jaxrl4lm.data import Tokenizer
from jaxrl4lm.data.corpus import PromptSet
from jaxrl4lm.data.packing import Sequences
from jaxrl4lm.data.rewards import (
    Batch,
    Log,
    Reward,
    RewardSet,
    TrainerState,
    check_scores,
    gather_rewards,
    judge,
)
from jaxrl4lm.data.token_reward import TokenReward
from jaxrl4lm.decoding import Generation, Sampling, generate
from jaxrl4lm.lm import supervised
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.tasks import Prompts, Task, exact_match
from jaxrl4lm.training.draws import Draws
from jaxrl4lm.training.stage import Numbers, Sample
from jaxrl4lm.types import Array, Key, Params

AT_ONCE = 64
"""Rows of a batch of evaluation."""
TOKENS_AT_ONCE = 16_384
"""Tokens of a batch of texts that is evaluated."""
SHOWN = 8
"""Samples to look at."""


class Evaluation(NamedTuple):
    """What a stage measures once a chunk."""

    score: Callable[[Params], Numbers]
    """Metrics of parameters; `held_out` is the one that counts."""
    label: str
    """What that one is, in words."""
    headline: Callable[[Numbers], str]
    """Its part of the progress line."""
    samples: Callable[[Params], Sequence[Sample]] | None = None
    """Outputs for a few of the held-out inputs."""
    panels: Mapping[str, str] = {}
    """What the picture shows beside `held_out`: metrics, and their titles."""
    rank: Callable[[Numbers], float] = lambda metrics: float(np.mean(metrics["held_out"]))
    """How good the parameters are: higher is better."""
    draw: Callable[[Params, int], Draws] | None = None
    """So many sampled completions of each held-out prompt; None where nothing is sampled."""
    sets: Mapping[str, Any] = {}
    """The evaluations of further sets, by their names; `score` has their figures as well."""


def _say_held_out(metrics: Numbers) -> str:
    return f"held-out {float(np.mean(metrics['held_out'])):.3f}"


def evaluate_task(policy: LanguagePolicy, task: Task, *, count: int = 1000, seeds: int = 1) -> Evaluation:
    """Greedy answers to held-out problems of a task: the share that is right, end token and all.

    Args:
      count: problems.
      seeds: members of a population, whose parameters have a leading axis; samples are those of the first.
    """
    over_seeds = jax.vmap if seeds > 1 else lambda function: function
    answer = partial(_answer, task=task, policy=policy)
    evaluate = jax.jit(over_seeds(lambda params: answer(params, count)[2].mean()))
    answer_few = jax.jit(lambda params: answer(params, SHOWN))

    def samples(params: Params) -> list[Sample]:
        first = jax.tree.map(lambda x: x[0], params) if seeds > 1 else params
        prompts, completed, scores = jax.device_get(answer_few(first))
        decode = task.tokenizer.decode
        rows = zip(prompts.tokens.tolist(), completed.tokens.tolist(), scores.tolist(), strict=True)
        return [Sample(decode(prompt), decode(completion), score) for prompt, completion, score in rows]

    def draw(params: Params, n: int) -> Draws:
        first = jax.tree.map(lambda x: x[0], params) if seeds > 1 else params
        several = jax.jit(partial(_answer, task=task, policy=policy, copies=n), static_argnums=1)
        prompts, done, right = jax.device_get(several(first, count))
        texts = [task.tokenizer.decode(ids) for ids in prompts.tokens.tolist()]
        completions = decode_completions(task.tokenizer, done.tokens, done.mask, done.truncated)
        return _arrange_draws(texts, completions, np.asarray(right, float), {})

    return Evaluation(
        score=lambda params: {"held_out": jax.device_get(evaluate(params))},
        label="held-out exact match",
        headline=_say_held_out,
        samples=samples,
        draw=draw,
    )


def _answer(
    params: Params, count: int, *, task: Task, policy: LanguagePolicy, copies: int | None = None
) -> tuple[Prompts, Generation, Array]:
    """Greedy answers to `count` held-out problems, or so many sampled ones of each; whether each is right."""
    prompts = task.held_out(jax.random.key(0), count)
    ids = task.tokenizer.eos_id, task.tokenizer.pad_id
    temperature = None if copies is None else 1.0
    sampling = Sampling(task.completion_length, *ids, temperature=temperature, copies=copies or 1)
    key = jax.random.key(0)
    completed = generate(policy, params, prompts.tokens, prompts.mask, key, sampling, final_values=False)
    problems = jax.tree.map(lambda x: jnp.repeat(x, copies or 1, axis=0), prompts)
    return prompts, completed, exact_match(problems, completed.tokens, completed.mask)


def evaluate_prompts(
    policy: LanguagePolicy,
    tokenizer: Tokenizer,
    prompts: PromptSet,
    rewards: RewardSet | Mapping[str, Reward],
    sampling: Sampling,
    *,
    greedy: bool = True,
    sets: Mapping[str, PromptSet] = MappingProxyType({}),
    best_by: str | None = None,
) -> Evaluation:
    """One completion of each held-out prompt: the mean of the weighted sum of the rewards, and of each where they are several;
    mean length, and share that ended by itself.

    Args:
      sampling: whole: with its length and end tokens.
      greedy: take the most likely tokens, and leave penalties and truncations aside.
      sets: further prompts by names; their figures are NAME/reward, NAME/length, NAME/ended, and NAME/REWARD of each of several.
      best_by: the set by which evaluations are ranked; None: what is held out.
    """
    gathered = gather_rewards(rewards)
    complete = complete_prompts(policy, tokenizer, make_greedy(sampling) if greedy else sampling)

    @functools.cache
    def draw_each(n: int) -> Complete:
        return complete_prompts(policy, tokenizer, dataclasses.replace(sampling, copies=n))

    def evaluate(prompts: PromptSet, name: str) -> Evaluation:
        label = f"{name} mean reward ({'greedy' if greedy else 'sampled'})"
        judged = compile_rewards(gathered, tokenizer, prompts, sampling.length)
        judge_each = partial(judge_completions, judged, room=sampling.length)
        return _evaluate_set(prompts, judged, judge_each, complete, draw_each, label)

    each = {name: evaluate(those, name) for name, those in sets.items()}
    return _add_sets(evaluate(prompts, "held-out"), each, best_by)


def _evaluate_set(
    prompts: PromptSet,
    rewards: RewardSet,
    judge_each: Callable[..., np.ndarray],
    complete: "Complete",
    draw_each: "Callable[[int], Complete]",
    label: str,
) -> Evaluation:
    def evaluate(params: Params, judged: PromptSet) -> tuple[list[Completion], np.ndarray]:
        completions = complete(params, judged)
        return completions, judge_each(judged, range(len(completions)), completions)

    def score(params: Params) -> Numbers:
        completions, scores = evaluate(params, prompts)
        numbers = {
            "held_out": np.asarray(mean_of(rewards.add(scores))),
            "held_out/length": np.mean([len(each.ids) for each in completions]),
            "held_out/ended": np.mean([each.ended for each in completions]),
        }
        if len(scores) > 1:
            numbers |= {f"held_out/{n}": mean_of(x) for n, x in zip(rewards.functions, scores, strict=True)}
        return numbers

    def samples(params: Params) -> list[Sample]:
        completions, scores = evaluate(params, few)
        totals = [None if math.isnan(total) else float(total) for total in rewards.add(scores)]
        texts = [each.text for each in completions]
        return [Sample(*each) for each in zip(few.texts, texts, totals, strict=True)]

    def draw(params: Params, n: int) -> Draws:
        completions = draw_each(n)(params, prompts)
        scores = judge_each(prompts, range(len(prompts.rows)), completions, n)
        each = dict(zip(rewards.functions, scores, strict=True)) if len(scores) > 1 else {}
        return _arrange_draws(prompts.texts, completions, rewards.add(scores), each)

    few = prompts.select(range(min(SHOWN, len(prompts.rows))))
    return Evaluation(score=score, label=label, headline=_say_held_out, samples=samples, draw=draw)


def _add_sets(evaluation: Evaluation, sets: Mapping[str, Evaluation], best_by: str | None) -> Evaluation:
    """The evaluation of prompts with those of further sets, under their names."""
    if not sets:
        return evaluation

    def score(params: Params) -> Numbers:
        numbers = dict(evaluation.score(params))
        for name, each in sets.items():
            for key, value in each.score(params).items():
                numbers[f"{name}/{'reward' if key == 'held_out' else key.removeprefix('held_out/')}"] = value
        return numbers

    def say(metrics: Numbers) -> str:
        said = [f"{name} {float(metrics[f'{name}/reward']):.3f}" for name in sets]
        return "  ".join([evaluation.headline(metrics), *said])

    panels = {f"{name}/reward": each.label for name, each in sets.items()}
    changed = evaluation._replace(score=score, headline=say, panels=panels, sets=sets)
    if best_by is None:
        return changed
    return changed._replace(rank=lambda metrics: float(metrics[f"{best_by}/reward"]))


def _arrange_draws(
    prompts: Sequence[str],
    completions: Sequence["Completion"],
    totals: np.ndarray,
    each: Mapping[str, np.ndarray],
) -> Draws:
    """The completions of prompts, those of one after another, with their scores."""
    n = len(completions) // len(prompts)
    texts = [completion.text for completion in completions]
    lengths = np.array([len(completion.ids) for completion in completions])
    ended = np.array([completion.ended for completion in completions])
    return Draws(
        prompts,
        [texts[i : i + n] for i in range(0, len(texts), n)],
        totals.reshape(-1, n),
        lengths.reshape(-1, n),
        ended.reshape(-1, n),
        {name: scores.reshape(-1, n) for name, scores in each.items()},
    )


def mean_of(scores: np.ndarray) -> np.ndarray:
    """The mean of those that apply; nan if none does."""
    kept = scores[~np.isnan(scores)]
    return np.asarray(kept.mean() if len(kept) else math.nan)


def make_greedy(sampling: Sampling) -> Sampling:
    """The same lengths and ends, and always the most likely token."""
    return dataclasses.replace(sampling, temperature=None, penalties=(), truncations=(), copies=1)


def judge_completions(
    rewards: RewardSet,
    prompts: PromptSet,
    indices: Sequence[int],
    completions: Sequence["Completion"],
    copies: int = 1,
    state: TrainerState | None = None,
    log: Log | None = None,
    known: Mapping[str, np.ndarray] = MappingProxyType({}),
    room: int | None = None,
) -> np.ndarray:
    """Scores `[rewards, completions]`, the copies of a prompt being consecutive; nan where a reward does not apply.

    Args:
      known: the scores of rewards that have been called, by their names.
      room: the most tokens that a completion may have.
    """
    rows = [i for i in indices for _ in range(copies)]
    given, ids = [prompts.given[i] for i in rows], [each.ids for each in completions]
    said: dict[str, Any] = dict(known)
    for name, reward in rewards.functions.items():
        if name not in known and isinstance(reward, TokenReward):
            said[name] = reward([prompts.ids[i] for i in rows], ids, room)
    scores = {name: check_scores(np.asarray(each).tolist(), name, given) for name, each in said.items()}
    others = {name: reward for name, reward in rewards.functions.items() if name not in said}
    batch = Batch(given, [each.text for each in completions], ids, prompts.columns(indices, copies))
    scores |= zip(others, judge(others, batch, state, log), strict=True)
    return np.array([scores[name] for name in rewards.functions])


def compile_rewards(rewards: RewardSet, tokenizer: Tokenizer, prompts: PromptSet, room: int) -> RewardSet:
    """The rewards, with reward models that read the policy's own ids as functions of these: the same wherever they are asked.

    Args:
      tokenizer: of the policy.
      prompts: what is completed.
      room: the most tokens of a completion.
    Raises:
      InputError: if a reward of tokens cannot be called with such.
    """
    functions = {}
    for name, reward in rewards.functions.items():
        compile_for = getattr(reward, "compile_for", None)
        inside = compile_for(tokenizer, prompts, room) if compile_for else None
        functions[name] = inside or reward
        if isinstance(reward, TokenReward):
            reward.check(name, room)
    return rewards._replace(functions=functions)


class Completion(NamedTuple):
    """What a model said."""

    text: str
    """Without its end, and what follows it."""
    ids: list[int]
    """Its end included."""
    ended: bool
    """By itself, not at the length limit."""


Complete = Callable[..., list[Completion]]
"""(params, prompts[, key]) -> completions."""


def complete_prompts(policy: LanguagePolicy, tokenizer: Tokenizer, sampling: Sampling) -> Complete:
    """A function that completes each of a set of prompts, in batches of one size; with the copies that `sampling` asks for, one
    after another. It takes the parameters, the prompts, and maybe a key; one that is always the same if not."""

    @jax.jit
    def complete_batch(params: Params, tokens: Array, mask: Array, key: Key, offset: int):
        return generate(policy, params, tokens, mask, key, sampling, row_offset=offset, final_values=False)

    def complete(params: Params, prompts: PromptSet, key: Key | None = None) -> list[Completion]:
        key = jax.random.key(0) if key is None else key
        total, copies = len(prompts.rows), sampling.copies
        count = min(max(1, AT_ONCE // copies), total)
        completions: list[Completion] = []
        for first in range(0, total, count):
            # The last batch is filled up with its own last prompt, to keep the shape.
            indices = [min(i, total - 1) for i in range(first, first + count)]
            done = complete_batch(params, *prompts.batch(indices, tokenizer.pad_id), key, first * copies)
            completions += decode_completions(tokenizer, done.tokens, done.mask, done.truncated)
        return completions[: total * copies]

    return complete


def decode_completions(
    tokenizer: Tokenizer, tokens: Array, mask: Array, truncated: Array
) -> list[Completion]:
    """Completions `[B, T]` as text."""
    completions = []
    for ids, real, cut in zip(*jax.device_get((tokens, mask, truncated)), strict=True):
        kept = ids[real].tolist()
        text = tokenizer.decode([i for i in kept if i not in tokenizer.eos_ids])
        completions.append(Completion(text, kept, not cut))
    return completions


def evaluate_texts(
    policy: LanguagePolicy,
    sequences: Sequences,
    samples: Callable[[Params], Sequence[Sample]] | None = None,
    *,
    what: str = "held-out",
) -> Evaluation:
    """Cross-entropy (nats a token) and accuracy of the target tokens of texts.

    Args:
      sequences: texts as `data.pack` or `data.pad_examples` gives them.
      what: those texts are, in a word.
    """
    rows, length = sequences.tokens.shape
    count = max(1, min(AT_ONCE, TOKENS_AT_ONCE // length, rows))
    # Rows that fill the last batch have no target: they count for nothing.
    padded = (np.pad(x, ((0, -rows % count), (0, 0))) for x in sequences)
    tokens, segments, targets = (jnp.asarray(x.reshape(-1, count, length)) for x in padded)
    packed = bool((sequences.segments > 1).any())
    batches = supervised.Texts(
        tokens, (segments > 0).at[..., 0].set(True), targets, segments if packed else None
    )

    @jax.jit
    def measure(params: Params, batches: supervised.Texts) -> tuple[Array, Array]:
        parts = jax.lax.map(lambda texts: supervised.measure(params, texts, policy), batches)
        nats, right = (jax.tree.map(jnp.sum, part) for part in parts)
        return reduce.divide(nats), reduce.divide(right)

    def score(params: Params) -> Numbers:
        nats, right = jax.device_get(measure(params, batches))
        return {"held_out": right, "held_out/loss": nats}

    return Evaluation(
        score=score,
        label=f"{what} token accuracy",
        headline=lambda m: (
            f"{what} loss {float(m['held_out/loss']):.3f}, accuracy {float(m['held_out']):.3f}"
        ),
        samples=samples,
        panels={"held_out/loss": f"{what} loss (nats a token)"},
        rank=lambda m: -float(m["held_out/loss"]),
    )


def say_judgements(what: str) -> Callable[[Numbers], str]:
    """The progress line of preferences."""
    return lambda m: (
        f"{what} loss {float(m['held_out/loss']):.3f}, accuracy {float(m['held_out']):.3f}, "
        f"margin {float(m['held_out/margin']):.3f}"
    )
