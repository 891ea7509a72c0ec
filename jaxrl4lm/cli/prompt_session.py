"""Your prompts and your reward: a Python function is called between two compiled halves of each update."""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import numpy as np

from jaxrl4lm.cli import session
from jaxrl4lm.cli.session import Phase, Sample, Session, StepFailed
from jaxrl4lm.cli.train_arguments import TrainArguments
from jaxrl4lm.data import ByteTokenizer, CharacterTokenizer, Tokenizer, rewards
from jaxrl4lm.data.corpus import (
    Corpus,
    Document,
    PromptSet,
    encode_documents,
    encode_prompt,
    encode_prompts,
    epoch_rows,
    read_documents,
)
from jaxrl4lm.data.files import Row, read_jsonl
from jaxrl4lm.decoding import Sampling, generate
from jaxrl4lm.lm import SupervisedConfig, reinforcement, supervised
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.types import Array, InputError, Key, Params

LONGEST_TEXT = 512
EVALUATED = 256
EVALUATED_AT_ONCE = 64
SHOWN = 8


def build(arguments: TrainArguments) -> Session:
    """The session of prompts and a reward.

    Raises:
      InputError: where a file, the reward or a size cannot be used.
    """
    world, pre, rl = arguments.world, arguments.pretraining, arguments.reinforcement
    name = world.reward or ""
    rows, documents = _read(arguments)
    reward = rewards.parse(name)
    rewards.check_columns(reward, name, [c for c in rows[0].columns if c != world.prompt_column])
    policy, tokenizer, loaded, context = _model(
        arguments, documents, [row.columns[world.prompt_column] for row in rows]
    )
    room = _room(arguments)
    source = str(world.prompts or "--prompts")
    prompts = encode_prompts(rows, world.prompt_column, tokenizer, source, room, context)
    training, held_out = _split(prompts, world.held_out)
    keys = jax.random.split(jax.random.key(arguments.run.seed), 3)
    notes = [
        f"{len(training.rows)} prompts to train on, {len(held_out.rows)} held out, at most "
        f"{max(map(len, prompts.ids))} tokens long"
    ]
    phases = []
    if documents and pre.pretrain_steps:
        corpus = encode_documents(documents, tokenizer, context)
        notes.append(_describe(corpus, context))
        phases.append(_supervised(arguments, corpus, policy, keys[1]))
    learner = reinforcement.Learner(policy, session.algorithm(rl), room, tokenizer.eos_ids, tokenizer.pad_id)
    score = partial(_score, reward, name, world.prompt_column)
    if rl.updates:
        phases.append(_reinforcement(arguments, training, tokenizer, learner, keys[2], score))
    distinct = len(set(held_out.texts))
    greedy = world.evaluate_by == "greedy" or (world.evaluate_by is None and distinct > 1)
    complete = _completer(policy, tokenizer, room, None if greedy else rl.temperature)
    if distinct == 1:  # many samples of the one prompt
        held_out = held_out.select([0] * EVALUATED)

    def start() -> Params:
        # The loaded parameters are copied, because training donates its state.
        return jax.jit(policy.init)(keys[0]) if loaded is None else jax.tree.map(jax.numpy.copy, loaded)

    return Session(
        title=f"{(world.prompts or pre.text).name}, {name.split('/')[-1]}, {rl.algorithm.upper()}",  # pyright: ignore
        score_name=f"held-out mean reward ({'greedy' if greedy else 'sampled'})",
        policy=policy,
        tokenizer=tokenizer,
        seeds=1,
        start=start,
        phases=tuple(phases),
        evaluate=lambda params: np.asarray(
            np.mean([s.score for s in _judge(params, held_out, complete, score)])
        ),
        samples=lambda params: _judge(
            params, held_out.select(range(min(SHOWN, len(held_out.rows)))), complete, score
        ),
        notes=tuple(notes),
    )


def _read(arguments: TrainArguments) -> tuple[list[Row], list[Document]]:
    """Prompts, one empty one where there is no file of them, and what is to be imitated."""
    world, pre = arguments.world, arguments.pretraining
    rows = [Row(0, {world.prompt_column: ""})]
    if world.prompts:
        rows = read_jsonl(world.prompts, [world.prompt_column])
    documents = []
    if pre.text:
        documents = read_documents(pre.text, world.prompt_column, pre.completion_column, pre.text_unit)
    names = dict.fromkeys(name for row in rows for name in row.columns)
    # Every row has every column, None where the file has none, so that the reward is always called with the same.
    return [Row(row.line, dict.fromkeys(names) | row.columns) for row in rows], documents


def _room(arguments: TrainArguments) -> int:
    """Tokens of the longest completion."""
    return arguments.reinforcement.max_new_tokens or 64


def _model(
    arguments: TrainArguments, documents: Sequence[Document], prompts: Sequence[str]
) -> tuple[LanguagePolicy, Tokenizer, Params | None, int]:
    """The policy and its tokenizer; its parameters if they are loaded; how many of its tokens are used."""
    options = arguments.model
    loaded = session.load_model(options) if options.model else None
    tokenizer = loaded[2] if loaded else _tokenizer(arguments, documents, prompts)
    texts = [document.prompt + document.completion for document in documents]
    try:
        longest_prompt = max(len(encode_prompt(tokenizer, text)) for text in prompts)
        longest_text = max((len(encode_prompt(tokenizer, text)) + 1 for text in texts), default=0)
    except ValueError as error:
        raise InputError(f"{error}: give --tokenizer byte") from None
    context = options.context or max(longest_prompt + _room(arguments), min(longest_text, LONGEST_TEXT))
    if not loaded:
        return (
            LanguagePolicy(session.transformer(options, tokenizer.vocab_size, context)),
            tokenizer,
            None,
            context,
        )
    policy, params, _ = loaded
    if (options.context or 0) > policy.config.context:
        raise InputError(f"--context {context} exceeds that of the model ({policy.config.context}): lower it")
    return policy, tokenizer, params, min(context, policy.config.context)


def _judge(params: Params, prompts: PromptSet, complete, score) -> list[Sample]:
    """One completion of each prompt, and what it is worth."""
    completions = complete(params, prompts)
    scores = score(prompts, range(len(completions)), completions, 1)
    return [Sample(*each) for each in zip(prompts.texts, completions, scores, strict=True)]


def _tokenizer(arguments: TrainArguments, documents: Sequence[Document], prompts: Sequence[str]) -> Tokenizer:
    """The one asked for; else characters, if there are few."""
    kind = arguments.model.tokenizer
    if kind == "byte":
        return ByteTokenizer()
    characters = CharacterTokenizer.from_texts([d.prompt + d.completion for d in documents] + list(prompts))
    if not characters.characters:
        raise InputError(
            "there is no text to make a character tokenizer from: give --text, or --tokenizer byte"
        )
    if kind is None and len(characters.characters) > 256:
        return ByteTokenizer()
    return characters


def _split(prompts: PromptSet, held_out: int | None) -> tuple[PromptSet, PromptSet]:
    """Training and held-out prompts, chosen by a fixed shuffle."""
    total = len(prompts.rows)
    count = min(EVALUATED, total // 10) if held_out is None else held_out
    if count >= total and count:
        raise InputError(f"--held-out {count} leaves nothing of {total} prompts to train on: lower it")
    if count == 0:
        return prompts, prompts.select(list(range(min(EVALUATED, total))))
    order = np.random.default_rng(0).permutation(total).tolist()
    return prompts.select(sorted(order[count:])), prompts.select(sorted(order[:count]))


def _describe(corpus: Corpus, context: int) -> str:
    cut = f", {corpus.cut} of them cut to the context of {context}" if corpus.cut else ""
    return f"{len(corpus.tokens)} texts to imitate{cut}"


def _supervised(arguments: TrainArguments, corpus: Corpus, policy: LanguagePolicy, key: Key) -> Phase:
    pre, seed = arguments.pretraining, arguments.run.seed
    total = pre.pretrain_steps or 0
    config = SupervisedConfig(learning_rate=pre.pretrain_learning_rate, steps=total, batch=pre.pretrain_batch)
    held = supervised.Batch(*(jax.numpy.asarray(x) for x in corpus[:3]))

    @partial(jax.jit, donate_argnums=0)
    def chunk(state, held, rows):
        return supervised.run(state, config, policy, supervised.row_source(held), len(rows), rows)

    def run(state, done: int, count: int):
        stream = epoch_rows(seed, done * pre.pretrain_batch, count * pre.pretrain_batch, len(corpus.tokens))
        state, metrics = chunk(state, held, stream.reshape(count, pre.pretrain_batch))
        return state, session.host(metrics)

    def init(params: Params) -> supervised.State:
        return supervised.init(key, config, params)

    return Phase("supervised", total, min(50, total), jax.jit(init), run, pre.pretrain_until)


def _score(
    reward: rewards.Reward,
    name: str,
    prompt_column: str,
    prompts: PromptSet,
    indices: Sequence[int],
    completions: Sequence[str],
    copies: int,
) -> list[float]:
    """Rewards of completions, the copies of a prompt being consecutive."""
    columns = prompts.columns(indices, copies)
    columns.pop(prompt_column, None)
    texts = [prompts.texts[i] for i in indices for _ in range(copies)]
    return rewards.call(reward, name, texts, completions, columns)


def _reinforcement(
    arguments: TrainArguments,
    prompts: PromptSet,
    tokenizer: Tokenizer,
    learner: reinforcement.Learner,
    key: Key,
    score,
) -> Phase:
    rl, seed = arguments.reinforcement, arguments.run.seed
    config = session.reinforcement_config(rl)
    sample = jax.jit(lambda state, tokens, mask: reinforcement.sample(state, tokens, mask, config, learner))
    learn = jax.jit(
        lambda state, trajectories, scores: reinforcement.learn(state, trajectories, scores, config, learner),
        donate_argnums=0,
    )

    def one(state, update: int):
        indices = epoch_rows(seed, update * config.prompts, config.prompts, len(prompts.rows)).tolist()
        trajectories = sample(state, *prompts.batch(indices, tokenizer.pad_id))
        completions = decode(tokenizer, trajectories.completions, trajectories.mask)
        scores = score(prompts, indices, completions, config.completions)
        return learn(state, trajectories, np.array(scores, np.float32))

    def run(state, done: int, count: int):
        rows = []
        for update in range(done, done + count):
            try:
                state, metrics = one(state, update)
            except InputError as error:
                raise StepFailed(str(error), state, _stack(rows)) from error
            rows.append(session.host(metrics))
        return state, _stack(rows)

    def init(params: Params) -> reinforcement.State:
        return reinforcement.init(key, config, learner, params)

    return Phase("reinforcement", rl.updates, arguments.run.evaluate_every, jax.jit(init), run)


def _stack(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}


def decode(tokenizer: Tokenizer, tokens: Array, mask: Array) -> list[str]:
    """Texts of completions, without their end and what follows it."""
    rows = zip(*jax.device_get((tokens, mask)), strict=True)
    texts = [[i for i in ids[real].tolist() if i not in tokenizer.eos_ids] for ids, real in rows]
    return [tokenizer.decode(ids) for ids in texts]


def _completer(policy: LanguagePolicy, tokenizer: Tokenizer, room: int, temperature: float | None):
    """A function that completes each of a set of prompts, in batches of one size."""

    @partial(jax.jit, static_argnums=4)
    def batch(params, tokens, mask, offset, sampled):
        drawn = temperature if sampled else None
        sampling = Sampling(room, tokenizer.eos_ids, tokenizer.pad_id, temperature=drawn)
        key = jax.random.key(0)
        return generate(policy, params, tokens, mask, key, sampling, row_offset=offset, final_values=False)

    def complete(params: Params, prompts: PromptSet) -> list[str]:
        total = len(prompts.rows)
        size = min(EVALUATED_AT_ONCE, total)
        texts: list[str] = []
        for first in range(0, total, size):
            # The last batch is filled up with its own last prompt, to keep the shape.
            indices = [min(i, total - 1) for i in range(first, first + size)]
            done = batch(params, *prompts.batch(indices, tokenizer.pad_id), first, temperature is not None)
            texts += decode(tokenizer, done.tokens, done.mask)
        return texts[:total]

    return complete
