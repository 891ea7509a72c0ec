"""One step off-policy: completions are drawn while rewards score those before them."""

from functools import partial

import jax
import numpy as np

from jaxrl4lm import lm, training
from jaxrl4lm.data.corpus import encode_prompts, epoch_rows
from jaxrl4lm.data.files import Row
from jaxrl4lm.lm import algorithms, reinforcement
from jaxrl4lm.training.language_stage import choose_keys
from tests.training.test_reinforcement_stage import (
    CONFIG,
    PARAMS,
    POLICY,
    TASK,
    TOKENIZER,
    count_ones,
    reinforce,
)

STALE = CONFIG.replace(updates=3, minibatches=1, staleness=1, kl_coef=0.0)
ENCODED = encode_prompts(
    [Row(i, {"prompt": "1" * (1 + i) + "="}) for i in range(10)], "prompt", TOKENIZER, "rows", 3, 16
)
"""Of several lengths: one width serves all, as the state keeps what was drawn."""


def _run_by_hand(config: lm.ReinforcementConfig) -> tuple[reinforcement.ReinforcementState, list[float]]:
    """The run as a loop over `sample` and `learn`; how far the policy was from the one that drew, update by update."""
    learner = reinforcement.Learner(POLICY, algorithms.PPO._replace(kl=algorithms.KL()))
    sampling = config.sampling.complete(TASK.completion_length, TOKENIZER.eos_ids, TOKENIZER.pad_id)
    config = config.replace(sampling=sampling)
    sample = jax.jit(partial(reinforcement.sample, config=config, learner=learner))
    learn = jax.jit(partial(reinforcement.learn, config=config, learner=learner))
    state, count, moved = (
        reinforcement.init(choose_keys(0, 1, "reinforcement"), config, learner, PARAMS),
        4,
        [],
    )

    def draw(update):
        rows = epoch_rows(0, update * count, count, len(ENCODED.rows)).tolist()
        batch = ENCODED.batch(rows, TOKENIZER.pad_id, widest=True)
        return sample(state._replace(update=state.update + 1) if update else state, *batch)

    drawn = draw(0)
    for update in range(config.updates):
        following = draw(update + 1)
        ids = [row[real].tolist() for row, real in zip(*map(np.asarray, drawn[2:4]), strict=True)]
        texts = [TOKENIZER.decode([i for i in row if i not in TOKENIZER.eos_ids]) for row in ids]
        scored = drawn._replace(scored=np.ones(len(texts), bool))
        state, metrics = learn(state, scored, np.array(count_ones([], texts), np.float32))
        moved.append(float(metrics["policy/approx_kl"]))
        drawn = following
    return state, moved


def test_completions_are_those_of_the_policy_one_update_ago():
    """The next ones are drawn before the rewards are called; ratios are to the policy that drew, so only the first are 1."""
    expected, moved = _run_by_hand(STALE)
    events = []

    def reward(prompts, completions, **columns):
        events.append("score")
        return count_ones(prompts, completions)

    stage = reinforce(ENCODED, reward, config=STALE)
    host = stage.advance.__self__
    sample = host._sample
    host._sample = lambda *inputs: events.append("draw") or sample(*inputs)
    run = training.fit([stage], PARAMS)
    assert events == [
        "draw",
        "draw",
        "draw",
        "score",
        "draw",
        "score",
        "score",
    ]  # the first one is traced by `init`
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), run.params, expected.params)
    np.testing.assert_allclose(run.history["policy/approx_kl"], moved, atol=1e-6)
    assert moved[0] < 1e-9 < 1e-6 < min(moved[1:])
