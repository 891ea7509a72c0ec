"""Built-in tasks: the reward is a JAX function, so each chunk of updates is one compiled program, for one seed or many."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxrl4lm import tasks
from jaxrl4lm.cli import session
from jaxrl4lm.cli.session import Phase, Sample, Session
from jaxrl4lm.cli.train_arguments import TrainArguments
from jaxrl4lm.decoding import Sampling, generate
from jaxrl4lm.lm import SupervisedConfig, reinforcement, supervised
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.types import Array, InputError, Params

TASKS = {"addition": tasks.addition, "sort": tasks.sort, "reverse": tasks.reverse, "copy": tasks.copy}
EVALUATED = 1000
SHOWN = 8


def build(arguments: TrainArguments) -> Session:
    """The session of a built-in task.

    Raises:
      InputError: where sizes do not fit.
    """
    world, rl, run = arguments.world, arguments.reinforcement, arguments.run
    try:
        task = TASKS[world.task](world.digits)
    except ValueError as error:
        raise InputError(f"--digits: {error}") from None
    length = rl.max_new_tokens or task.completion_length
    if length != task.completion_length:
        raise InputError(
            f"--max-new-tokens {length}: {task.name} is answered in {task.completion_length} tokens, drop it"
        )
    needed = task.prompt_length + length
    if arguments.model.context is not None and arguments.model.context < needed:
        raise InputError(f"--context {arguments.model.context}: {task.name} needs {needed} tokens, raise it")
    tokenizer = task.tokenizer
    policy = LanguagePolicy(
        session.transformer(arguments.model, tokenizer.vocab_size, arguments.model.context or needed)
    )
    learner = reinforcement.Learner(policy, session.algorithm(rl), length, tokenizer.eos_id, tokenizer.pad_id)
    over_seeds = jax.vmap if run.seeds > 1 else lambda function: function
    seeds = run.seed + jnp.arange(run.seeds) if run.seeds > 1 else run.seed
    # One key a purpose, the same whether a seed is trained alone or with others.
    keys = over_seeds(lambda seed: jax.random.split(jax.random.key(seed), 3))(seeds)
    keys = jnp.moveaxis(keys, -1, 0)

    answer = partial(_answer, task=task, policy=policy)
    count = EVALUATED if world.held_out is None else world.held_out
    if count == 0:
        raise InputError(
            "--held-out 0: a built-in task has held-out problems to spare, give a number of them"
        )
    evaluate = jax.jit(over_seeds(lambda params: answer(params, count)[2].mean()))
    first = (lambda tree: jax.tree.map(lambda x: x[0], tree)) if run.seeds > 1 else (lambda tree: tree)

    def samples(params: Params) -> list[Sample]:
        prompts, tokens, scores = jax.device_get(jax.jit(answer, static_argnums=1)(first(params), SHOWN))
        decode = tokenizer.decode
        rows = zip(prompts.tokens.tolist(), tokens.tolist(), scores.tolist(), strict=True)
        return [Sample(decode(prompt), decode(completion), score) for prompt, completion, score in rows]

    phases = (
        _supervised(arguments, task, policy, keys[1], over_seeds),
        _reinforcement(arguments, task, learner, keys[2], over_seeds),
    )
    return Session(
        title=f"{task.name}, {rl.algorithm.upper()}",
        score_name="held-out exact match",
        policy=policy,
        tokenizer=tokenizer,
        seeds=run.seeds,
        start=lambda: jax.jit(over_seeds(policy.init))(keys[0]),
        phases=tuple(phase for phase in phases if phase.total),
        evaluate=lambda params: jax.device_get(evaluate(params)),
        samples=samples,
    )


def _answer(
    params: Params, count: int, *, task: tasks.Task, policy: LanguagePolicy
) -> tuple[tasks.Prompts, Array, Array]:
    """Greedy answers `[count, T]` to held-out problems, and whether each is right."""
    prompts = task.held_out(jax.random.key(0), count)
    ids = task.tokenizer.eos_id, task.tokenizer.pad_id
    sampling = Sampling(task.completion_length, *ids, temperature=None)
    key = jax.random.key(0)
    completed = generate(policy, params, prompts.tokens, prompts.mask, key, sampling, final_values=False)
    return prompts, completed.tokens, tasks.exact_match(prompts, completed.tokens, completed.mask)


def _supervised(
    arguments: TrainArguments, task: tasks.Task, policy: LanguagePolicy, keys: Array, over_seeds
) -> Phase:
    pre = arguments.pretraining
    total = pre.pretrain_steps or 0
    config = SupervisedConfig(learning_rate=pre.pretrain_learning_rate, steps=total, batch=pre.pretrain_batch)
    source = supervised.task_source(task, pre.pretrain_batch)

    @partial(jax.jit, static_argnums=1, donate_argnums=0)
    def run(state, steps):
        return over_seeds(lambda state: supervised.run(state, config, policy, source, steps))(state)

    return _phase(
        "supervised",
        total,
        10,
        lambda params: over_seeds(lambda k, p: supervised.init(k, config, p))(keys, params),
        run,
        pre.pretrain_until,
    )


def _reinforcement(
    arguments: TrainArguments, task: tasks.Task, learner: reinforcement.Learner, keys: Array, over_seeds
) -> Phase:
    rl = arguments.reinforcement
    config = session.reinforcement_config(rl)

    @partial(jax.jit, static_argnums=1, donate_argnums=0)
    def run(state, updates):
        return over_seeds(lambda state: reinforcement.run(state, config, learner, task, updates))(state)

    def init(params: Params) -> reinforcement.State:
        return over_seeds(lambda k, p: reinforcement.init(k, config, learner, p))(keys, params)

    return _phase("reinforcement", rl.updates, arguments.run.evaluate_every, init, run)


def _phase(name: str, total: int, chunk: int, init, run, until: float | None = None) -> Phase:
    def steps(state, done: int, count: int):
        del done  # the state knows
        state, metrics = run(state, count)
        # Steps lead, seeds follow.
        return state, {name: value.T for name, value in session.host(metrics).items()}

    return Phase(name, total, chunk, jax.jit(init), steps, until)
