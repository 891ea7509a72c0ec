"""Generations as trajectories."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm import decoding, returns, tasks
from jaxrl4lm.cli.tour.chapter import Chapter, Findings, Table
from jaxrl4lm.cli.tour.main_job import Job, run_job
from jaxrl4lm.envs import token_tree
from jaxrl4lm.lm import exact, rollouts
from jaxrl4lm.plots.panels import Bars, Line, Panel

TEXT = """
A generation **is** an episode. The state is the text so far, the action is the next token, the policy is the model, and
the environment does nothing but append. A trajectory τ is a prompt with its completion; its probability is π(y|x); its
reward R(τ) is what the whole completion earns, paid with the last token. The goal is the old one: **J = E[R(τ)]**, and
everything that this tour has shown applies as it stands, REINFORCE and its baseline, advantages, PPO's clip.

The model is that of the main job below, as it was taught, before PPO. One-digit sums are so short that all completions
of a prompt can be written down: J of the prompt is known exactly, and 1/√m appears again.
"""
DRAWS, DISCOUNT = 4096, 0.9


def _compute() -> Findings:
    job = run_job()
    tokenizer = job.task.tokenizer
    problem = _choose_prompt(job)
    tree = token_tree.grow(job.task, problem)
    read = jax.jit(lambda params: exact.log_probs(tree, exact.read_logits(job.policy, params, tree))[0])
    before, after = (np.exp(np.asarray(read(run.params), float)) for run in (job.taught, job.learned))
    scores = np.asarray(tree.token_rewards().sum(-1)[0])
    J = float(before @ scores)
    draw = jax.jit(partial(rollouts.rollout, job.policy))
    sampling = decoding.Sampling(job.task.completion_length, tokenizer.eos_id, tokenizer.pad_id, copies=DRAWS)
    drawn = draw(job.taught.params, problem.tokens, problem.mask, jax.random.key(2), sampling)
    repeated = jax.tree.map(lambda x: jnp.repeat(x, DRAWS, 0), problem)
    earned = job.task.reward(repeated, drawn.completions, drawn.mask)
    rewards = tasks.token_rewards(earned, drawn.mask)
    gains = returns.discounted_returns(rewards, discount=DISCOUNT, mask=drawn.mask, axis=1)
    right = np.asarray(earned)
    shown = int(np.argmax(right))  # the first one that is right
    rows, state = [], tokenizer.decode(problem.tokens[0].tolist())
    for t in range(int(drawn.mask[shown].sum())):
        token = int(drawn.completions[shown, t])
        letter = "end" if token == tokenizer.eos_id else tokenizer.decode([token])
        numbers = drawn.log_probs[shown, t], rewards[shown, t], gains[shown, t]
        rows.append([str(t), f"`{state}`", f"`{letter}`", *(f"{float(x):.3f}" for x in numbers)])
        state += "" if letter == "end" else letter
    total = float(drawn.log_probs[shown].sum())
    sizes = 4 ** np.arange(6)
    errors = [float(np.sqrt(np.mean((right.reshape(-1, m).mean(1) - J) ** 2))) for m in sizes]
    spread = np.sqrt(before @ (scores - J) ** 2)
    top = np.argsort(-(before + after))[:7]
    names = [
        tokenizer.decode(np.asarray(tree.completions[i])[np.asarray(tree.mask[i])].tolist()) or "–"
        for i in top
    ]
    prompt = tokenizer.decode(problem.tokens[0].tolist())
    return Findings(
        panels=(
            Panel(
                f"completions of {prompt!r}, of {len(scores):,}",
                "the likeliest; – is an end at once",
                "probability",
                bars=(Bars(names, before[top], "taught"), Bars(names, after[top], "after PPO")),
            ),
            Panel(
                "error of the mean R(τ) of m draws",
                "m",
                "root mean square error",
                lines=(
                    Line(sizes, errors, "drawn"),
                    Line(sizes, spread / np.sqrt(sizes), "√Var R(τ) / √m", ":", "0.4"),
                ),
                log_x=True,
                log_y=True,
            ),
        ),
        tables=(
            Table(["t", "state Sₜ", "action Aₜ", "log π(Aₜ|Sₜ)", "Rₜ₊₁", f"Gₜ, γ = {DISCOUNT:g}"], rows),
        ),
        remarks=(
            f"The trajectory of the table has log π(τ) = {total:.3f} and R(τ) = {right[shown]:g}. Of this prompt J ="
            f" {J:.4f}, summed over all {len(scores):,} completions; {DRAWS:,} draws say {right.mean():.4f}. After"
            f" PPO J = {float(after @ scores):.4f}."
        ),
    )


def _choose_prompt(job: Job) -> tasks.Prompts:
    """One training problem, of those that PPO changed most."""
    problems = job.task.sample(jax.random.key(3), 64)
    ids = jnp.concatenate([problems.tokens, problems.answers], axis=1)
    mask = jnp.concatenate([problems.mask, problems.answer_mask], axis=1)
    score = jax.jit(partial(decoding.score, job.policy))

    def say(params):
        return score(params, ids, mask)[:, problems.tokens.shape[1] :].sum(-1)

    gained = jnp.exp(say(job.learned.params)) - jnp.exp(say(job.taught.params))
    best = int(jnp.argmax(gained))
    return jax.tree.map(lambda x: x[best : best + 1], problems)


CHAPTER = Chapter(
    name="trajectories",
    title="Generations are trajectories",
    text=TEXT,
    functions=(
        "lm.rollouts.rollout",
        "tasks.token_rewards",
        "returns.discounted_returns",
        "envs.token_tree.grow",
        "lm.exact.read_logits",
        "lm.exact.log_probs",
    ),
    picture="Probabilities of completions before and after PPO; error of the mean reward against the number of draws",
    compute=_compute,
)
