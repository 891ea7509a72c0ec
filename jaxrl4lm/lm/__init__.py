"""Training language models: teacher forcing, preferences, distillation and reinforcement learning."""

from jaxrl4lm.lm import (
    algorithms,
    critic,
    distillation,
    heads,
    preference,
    reinforcement,
    reward,
    supervised,
    trainable,
)
from jaxrl4lm.lm.config import (
    DistillationConfig,
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
    "DistillationConfig",
    "HeadConfig",
    "PairConfig",
    "PreferenceConfig",
    "ReinforcementConfig",
    "RewardConfig",
    "Rollout",
    "SupervisedConfig",
    "TextConfig",
    "algorithms",
    "critic",
    "distillation",
    "heads",
    "preference",
    "reinforcement",
    "reward",
    "rollout",
    "supervised",
    "trainable",
]
