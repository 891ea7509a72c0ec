"""Every task against plain Python: right answers, right rewards, and a split that never leaks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import tasks

TASKS = {
    "addition-1": (tasks.addition(1), lambda text: str(sum(map(int, text[:-1].split("+"))))),
    "addition-2": (tasks.addition(2), lambda text: str(sum(map(int, text[:-1].split("+"))))),
    "addition-4": (tasks.addition(4), lambda text: str(sum(map(int, text[:-1].split("+"))))),
    "sort": (tasks.sort(4), lambda text: "".join(sorted(text[:-1]))),
    "reverse": (tasks.reverse(4), lambda text: text[:-1][::-1]),
    "copy": (tasks.copy(4), lambda text: text[:-1]),
}


@pytest.fixture(params=TASKS, scope="module")
def case(request):
    task, solve = TASKS[request.param]
    sample = jax.jit(task.sample, static_argnums=1)(jax.random.key(0), 500)
    held_out = jax.jit(task.held_out, static_argnums=1)(jax.random.key(1), 500)
    return task, solve, sample, held_out


def texts(task, tokens):
    return [task.tokenizer.decode(row) for row in tokens.tolist()]


def test_answers_are_right(case):
    task, solve, *sides = case
    for prompts in sides:
        questions = texts(task, prompts.tokens)
        answers = texts(task, jnp.where(prompts.answer_mask, prompts.answers, 0))
        assert answers == [solve(q) for q in questions]
        ends = prompts.answers == task.tokenizer.eos_id
        np.testing.assert_array_equal(ends.argmax(-1), prompts.answer_mask.sum(-1) - 1)
        assert prompts.tokens.shape[1] == task.prompt_length
        assert prompts.answers.shape[1] == task.completion_length


def test_held_out_problems_are_never_sampled(case):
    task, _, sample, held_out = case
    seen, kept = set(texts(task, sample.tokens)), set(texts(task, held_out.tokens))
    assert not seen & kept
    assert len(kept) >= min(8, len(seen) // 10)


def test_the_answer_earns_everything_and_any_change_costs(case):
    task, _, prompts, _ = case
    full = tasks.token_rewards(
        task.reward(prompts, prompts.answers, prompts.answer_mask), prompts.answer_mask
    ).sum(-1)
    np.testing.assert_allclose(full, 1.0, rtol=1e-6)
    wrong = jnp.where(prompts.answers[:, :1] == 3, 4, 3)
    changed = prompts.answers.at[:, :1].set(wrong)
    less = tasks.token_rewards(task.reward(prompts, changed, prompts.answer_mask), prompts.answer_mask).sum(
        -1
    )
    assert (less < 1).all()
    # Without its end token an answer is not finished, even if every symbol is right.
    unfinished = jnp.where(prompts.answers == 1, 3, prompts.answers)
    everything = jnp.ones_like(prompts.answer_mask)
    assert (tasks.token_rewards(task.reward(prompts, unfinished, everything), everything).sum(-1) < 1).all()


def test_what_follows_the_end_does_not_count(case):
    task, _, prompts, _ = case
    noise = jnp.where(prompts.answer_mask, prompts.answers, 5)
    np.testing.assert_array_equal(
        task.reward(prompts, noise, prompts.answer_mask),
        task.reward(prompts, prompts.answers, prompts.answer_mask),
    )


def test_a_dense_reward_depends_on_nothing_later():
    task = tasks.copy(4)
    prompts = task.sample(jax.random.key(0), 20)
    mask = jnp.ones_like(prompts.answer_mask)
    first = task.reward(prompts, prompts.answers, mask)
    later = task.reward(prompts, prompts.answers.at[:, 3:].set(9), mask)
    np.testing.assert_array_equal(first[:, :3], later[:, :3])
    assert (first[:, 3:] != later[:, 3:]).any()


def test_token_rewards_puts_a_score_on_the_last_real_token():
    mask = jnp.array([[1, 1, 0], [1, 0, 1]], bool)
    np.testing.assert_array_equal(tasks.token_rewards(jnp.array([2.0, 3.0]), mask), [[0, 2, 0], [0, 0, 3]])


@pytest.mark.parametrize("make, size", [(tasks.addition, 0), (tasks.addition, 9), (tasks.sort, 1)])
def test_sizes_out_of_range_are_refused(make, size):
    with pytest.raises(ValueError, match=str(size)):
        make(size)
