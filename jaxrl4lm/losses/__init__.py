"""Losses on log-probabilities, values and advantages: one value per element, averaged by `jaxrl4lm.reduce`.

A loss is `losses.ppo_clip`, `losses.dpo`, ...; two subjects have namespaces of their own: `losses.kl` (estimators
of a divergence, and rules for its coefficient) and `losses.trpo` (parts of a trust-region step).

Nothing here knows a model, a config or a trainer. Every loss is a pure function with these properties:

- unreduced: the shape of its first argument, in float32 (float64 for float64 input); the other arguments
  broadcast to it with equal rank;
- where `mask` is False the loss and its gradient are exactly 0, whatever stands there (nan, inf);
- gradients flow through the policy's or the prediction's argument only; advantages, targets, behaviour and
  reference log-probs are constants;
- hyper-parameters are numbers or arrays that broadcast to the loss (any other shape is a ValueError that names
  it), and may be traced and mapped over;
- nothing relies on an implicit promotion (`jax_numpy_dtype_promotion="strict"` is fine);
- a token id or an action that counts but does not exist gives nan, also a negative one.
"""

from jaxrl4lm.losses import kl, trpo
from jaxrl4lm.losses.chunked import TokenStatistics, Unembedding, chunked_token_log_probs, log_probs_by_chunks
from jaxrl4lm.losses.divergence_scores import alpha_score, jensen_shannon_score
from jaxrl4lm.losses.importance import (
    MAX_LOG_RATIO,
    masked_importance_weights,
    near_policy_sequences,
    probability_ratio,
    truncated_importance_weights,
)
from jaxrl4lm.losses.language_model import (
    cross_entropy,
    forward_distillation,
    generalized_jsd,
    next_token_cross_entropy,
    reverse_distillation,
    z_loss,
)
from jaxrl4lm.losses.policy_gradient import a2c, cispo, entropy, gpg, reinforce
from jaxrl4lm.losses.ppo import (
    binary_kl,
    binary_tv,
    clip_range,
    clipped_surrogate,
    dppo,
    ppo_clip,
    ppo_kl_penalty,
    sapo,
)
from jaxrl4lm.losses.preference import (
    aot,
    aot_unpaired,
    apo_down,
    apo_zero,
    bco_pair,
    bradley_terry,
    cpo,
    discopop,
    dpo,
    exo,
    hinge,
    ipo,
    log1mexp,
    nca,
    orpo,
    robust_dpo,
    simpo,
    sppo,
)
from jaxrl4lm.losses.sequence_ratio import gmpo, gspo, gspo_token, sequence_log_probs, vespo
from jaxrl4lm.losses.soft import soft_policy, soft_td_error, soft_temperature
from jaxrl4lm.losses.unpaired import apo_zero_unpaired, bco, kto, kto_reference_kl
from jaxrl4lm.losses.value import (
    clipped_value,
    double_q_learning_error,
    expected_sarsa_error,
    huber_value,
    q_learning_error,
    sarsa_error,
    squared_value,
    td_error,
)
from jaxrl4lm.losses.value_distribution import categorical_value, project_categorical, quantile_huber

__all__ = [
    "MAX_LOG_RATIO",
    "TokenStatistics",
    "Unembedding",
    "a2c",
    "alpha_score",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "bco",
    "bco_pair",
    "binary_kl",
    "binary_tv",
    "bradley_terry",
    "categorical_value",
    "chunked_token_log_probs",
    "cispo",
    "clip_range",
    "clipped_surrogate",
    "clipped_value",
    "cpo",
    "cross_entropy",
    "discopop",
    "double_q_learning_error",
    "dpo",
    "dppo",
    "entropy",
    "exo",
    "expected_sarsa_error",
    "forward_distillation",
    "generalized_jsd",
    "gmpo",
    "gpg",
    "gspo",
    "gspo_token",
    "hinge",
    "huber_value",
    "ipo",
    "jensen_shannon_score",
    "kl",
    "kto",
    "kto_reference_kl",
    "log1mexp",
    "log_probs_by_chunks",
    "masked_importance_weights",
    "nca",
    "near_policy_sequences",
    "next_token_cross_entropy",
    "orpo",
    "ppo_clip",
    "ppo_kl_penalty",
    "probability_ratio",
    "project_categorical",
    "q_learning_error",
    "quantile_huber",
    "reinforce",
    "reverse_distillation",
    "robust_dpo",
    "sapo",
    "sarsa_error",
    "sequence_log_probs",
    "simpo",
    "soft_policy",
    "soft_td_error",
    "soft_temperature",
    "sppo",
    "squared_value",
    "td_error",
    "trpo",
    "truncated_importance_weights",
    "vespo",
    "z_loss",
]
