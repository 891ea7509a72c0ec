"""The main job, small: teacher forcing, then PPO on one-digit addition."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from jaxrl4lm import models, tasks, training
from jaxrl4lm.cli.tour.chapter import Chapter, Findings, Table
from jaxrl4lm.cli.tour.small_model import read_metric
from jaxrl4lm.cli.train_options import NEW_MODEL, TASK_TEACHING
from jaxrl4lm.decoding import Sampling
from jaxrl4lm.lm import algorithms
from jaxrl4lm.plots.panels import Line, Panel

TEXT = """
`jaxrl4lm train` does what this tour has come to: a new transformer is taught addition by teacher forcing until it
answers .4 of the held-out sums, and then trained by PPO on nothing but whether its own answers are right. Here are
one-digit sums and a smaller budget, so that it takes seconds. The command without options does two digits, and takes a
few minutes.

Watch three curves. The **reward** is the share of right answers among those drawn while learning. The **held-out**
score is of the likeliest answers to sums that are never trained on; of one-digit sums there are few. The **KL** says
how far the policy went from the model that was taught.
"""
REACHED, UPDATES = 0.4, 120


class Job(NamedTuple):
    """What the main job leaves."""

    task: tasks.Task
    policy: models.LanguagePolicy
    taught: training.Run
    """After teacher forcing."""
    learned: training.Run
    """After PPO, which began there."""
    sampling: Sampling


@functools.cache
def run_job() -> Job:
    """Both stages; a second call gives the same."""
    task = tasks.addition(1)
    context = task.prompt_length + task.completion_length
    sizes = models.TransformerConfig.gpt2(
        task.tokenizer.vocab_size, layers=2, width=64, heads=8, context=context
    )
    policy = models.LanguagePolicy(sizes)
    evaluation = training.evaluate_task(policy, task, count=200)
    teach = training.supervised(
        policy,
        task,
        TASK_TEACHING.replace(batch=64),
        evaluation=evaluation,
        until=lambda scores: scores["held_out"].mean() >= REACHED,
    )
    taught = training.fit([teach], jax.jit(policy.init)(jax.random.key(0)))
    sampling = Sampling(task.completion_length, task.tokenizer.eos_id, task.tokenizer.pad_id)
    reinforce = training.reinforcement(
        policy,
        task.tokenizer,
        task,
        algorithm=algorithms.PPO,
        config=NEW_MODEL.replace(
            updates=UPDATES,
            learning_rate=1e-3,
            prompts_per_update=64,
            truncation="terminal",
            sampling=sampling,
        ),
        evaluation=evaluation,
        evaluate_every=10,
    )
    return Job(task, policy, taught, training.fit([reinforce], taught.params), sampling)


def _compute() -> Findings:
    job = run_job()
    steps = read_metric(job.taught, "loss")[0][-1]
    taught, learned = (read_metric(run, "held_out") for run in (job.taught, job.learned))
    reward, kl = read_metric(job.learned, "reward/mean"), read_metric(job.learned, "kl/ref_sequence")
    rows = [
        [sample.prompt, before.completion, sample.completion]
        for before, sample in zip(job.learned.before, job.learned.after, strict=True)
    ]
    rows = [list(row) for row in dict.fromkeys(map(tuple, rows))]
    return Findings(
        panels=(
            Panel(
                "teacher forcing",
                "steps",
                "cross-entropy, nats a token",
                lines=(Line(*read_metric(job.taught, "loss")),),
            ),
            Panel(
                "PPO: right answers",
                "updates",
                "share of the answers",
                lines=(Line(*reward, "drawn while learning"), Line(*learned, "held out, likeliest", "--")),
                y_limits=(0, 1.05),
            ),
            Panel(
                "PPO: distance from the taught model", "updates", "KL, nats a completion", lines=(Line(*kl),)
            ),
        ),
        tables=(Table(["held-out prompt", "taught", "after PPO"], rows),),
        remarks=(
            f"After {steps} steps of teacher forcing {taught[1][-1]:.2f} of the held-out answers were right."
            f" {UPDATES} updates of PPO took the reward from {np.mean(reward[1][:5]):.2f} to"
            f" {np.mean(reward[1][-5:]):.2f}, and the held-out score to {learned[1][-1]:.2f}."
        ),
    )


CHAPTER = Chapter(
    name="main-job",
    title="The main job",
    text=TEXT,
    functions=(
        "tasks.addition",
        "training.supervised",
        "training.reinforcement",
        "training.fit",
        "training.evaluate_task",
        "lm.algorithms.PPO",
    ),
    picture="Loss of teacher forcing; reward and held-out score over updates of PPO; KL from the taught model",
    compute=_compute,
    commands=("jaxrl4lm train", "jaxrl4lm train --prompts FILE --reward FILE.py:function --model DIR"),
)
