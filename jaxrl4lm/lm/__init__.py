"""Training language models: teacher forcing and reinforcement learning."""

from jaxrl4lm.lm import algorithms, reinforcement, supervised, trainable
from jaxrl4lm.lm.config import ReinforcementConfig, SupervisedConfig, TextConfig
from jaxrl4lm.lm.rollouts import Rollout, rollout

__all__ = [
    "ReinforcementConfig",
    "Rollout",
    "SupervisedConfig",
    "TextConfig",
    "algorithms",
    "reinforcement",
    "rollout",
    "supervised",
    "trainable",
]
