"""Rewards that misbehave, for `tests/data/test_reward_pool.py`."""

import os
import pathlib
import time


def length(prompts, completions, answer, trainer_state, log_metric, log_extra):
    """The length times the answer, and what else TRL's contract has; noisy."""
    print("chatter")
    log_metric("seen", trainer_state.global_step)
    log_extra("upper", [text.upper() for text in completions])
    return [None if text == "none" else len(text) * a for text, a in zip(completions, answer, strict=True)]


def misbehave(completions, **columns):
    """Does what the completion says; what is to be well the second time leaves a file."""
    [said] = completions
    name, _, path = said.partition(" ")
    if path and pathlib.Path(path).exists():
        return [5.0]
    if path:
        pathlib.Path(path).touch()
    if name == "raise":
        raise ValueError("no")
    if name == "hang":
        time.sleep(600)
    if name == "die":
        os._exit(3)
    return [float(len(said))]
