"""Training language models: teacher forcing, preferences and reinforcement learning."""

from jaxrl4lm.lm import algorithms, heads, preference, reinforcement, reward, supervised, trainable
from jaxrl4lm.lm.config import (
    HeadConfig,
    PairConfig,
    PreferenceConfig,
    ReinforcementConfig,
    RewardConfig,
    SupervisedConfig,
    TextConfig,
)
from jaxrl4lm.lm.rollouts import Rollout, rollout

__all__ = [
    "HeadConfig",
    "PairConfig",
    "PreferenceConfig",
    "ReinforcementConfig",
    "RewardConfig",
    "Rollout",
    "SupervisedConfig",
    "TextConfig",
    "algorithms",
    "heads",
    "preference",
    "reinforcement",
    "reward",
    "rollout",
    "supervised",
    "trainable",
]
