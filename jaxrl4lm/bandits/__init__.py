"""Bandit problems and algorithms as pure functions."""

from jaxrl4lm.bandits.algorithms import (
    BanditAlgorithm,
    epsilon_greedy,
    exp3,
    gradient,
    kl_ucb,
    kl_upper_bound,
    lin_ucb,
    softmax,
    thompson_beta,
    thompson_gaussian,
    ucb,
)
from jaxrl4lm.bandits.bounds import lai_robbins
from jaxrl4lm.bandits.problems import (
    RESTAURANTS,
    Problem,
    bernoulli,
    fixed_bernoulli,
    gaussian,
    linear,
    restaurants,
)
from jaxrl4lm.bandits.simulation import History, compiler_options, run

__all__ = [
    "RESTAURANTS",
    "BanditAlgorithm",
    "History",
    "Problem",
    "bernoulli",
    "compiler_options",
    "epsilon_greedy",
    "exp3",
    "fixed_bernoulli",
    "gaussian",
    "gradient",
    "kl_ucb",
    "kl_upper_bound",
    "lai_robbins",
    "lin_ucb",
    "linear",
    "restaurants",
    "run",
    "softmax",
    "thompson_beta",
    "thompson_gaussian",
    "ucb",
]
