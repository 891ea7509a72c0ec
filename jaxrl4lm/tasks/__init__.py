"""Prompts with verifiable rewards, as pure JAX functions."""

from jaxrl4lm.tasks.arithmetic import addition
from jaxrl4lm.tasks.random_scores import lottery
from jaxrl4lm.tasks.sequences import copy, reverse, sort
from jaxrl4lm.tasks.task import Prompts, Task, exact_match, token_rewards

__all__ = [
    "Prompts",
    "Task",
    "addition",
    "copy",
    "exact_match",
    "lottery",
    "reverse",
    "sort",
    "token_rewards",
]
