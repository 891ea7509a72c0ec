"""Losses on log-probabilities, values and advantages: one value per element, averaged by `jaxrl4lm.reduce`.

Nothing here knows a model, a config or a trainer. Every loss is a pure function with these properties:

- unreduced: the shape of its first argument, in float32 (float64 for float64 input); arguments beside the
  first
  broadcast to it with equal rank;
- where `mask` is False the loss and its gradient are exactly 0, whatever stands there (nan, inf);
- gradients flow through the policy's or the prediction's argument only; advantages, targets, behaviour and
  reference log-probs are constants;
- hyper-parameters may be traced, and mapped over.
"""

from jaxrl4lm.losses import kl, language_model, policy_gradient, ppo, value
from jaxrl4lm.losses.language_model import cross_entropy, next_token_cross_entropy
from jaxrl4lm.losses.policy_gradient import reinforce
from jaxrl4lm.losses.ppo import ppo_clip
from jaxrl4lm.losses.value import clipped_value, squared_value

__all__ = [
    "clipped_value",
    "cross_entropy",
    "kl",
    "language_model",
    "next_token_cross_entropy",
    "policy_gradient",
    "ppo",
    "ppo_clip",
    "reinforce",
    "squared_value",
    "value",
]
