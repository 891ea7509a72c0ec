"""A frozen rollout, and a policy whose parameters are what it says: what algorithms make of them, without a network."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.decoding import Sampling
from jaxrl4lm.lm import reinforcement
from jaxrl4lm.lm.estimators import keep_gradient
from jaxrl4lm.lm.rollouts import Rollout

G, N, T = 2, 4, 6
B = G * N
rng = np.random.default_rng(0)
LENGTHS = np.array([6, 3, 5, 2, 6, 1, 4, 6])
MASK = np.arange(T) < LENGTHS[:, None]
TRUNCATED = (LENGTHS == T) & (np.arange(B) > 0)
NEW, OLD, REF = (-0.3 - rng.random((3, B, T))).astype(np.float32)
ENTROPY = rng.random((B, T)).astype(np.float32)
REWARDS = rng.random(B).astype(np.float32)
VALUES = rng.random((B, T)).astype(np.float32)
ROLLOUT = Rollout(
    prompts=jnp.zeros((G, 1), jnp.int32),
    prompt_mask=jnp.ones((G, 1), bool),
    completions=jnp.zeros((B, T), jnp.int32),
    mask=jnp.asarray(MASK),
    log_probs=jnp.asarray(OLD),
    values=jnp.asarray(VALUES),
    final_values=jnp.zeros(B),
    truncated=jnp.asarray(TRUNCATED),
    baselines=jnp.array([0.3, 0.6]),
)
SIZES = {"prompts_per_update": G, "completions": N, "sampling": Sampling(T, -1, 0), "sampling_rounds": 1}


class Table:
    """A policy whose parameters are log-probabilities, entropies and values of the rollout's tokens."""

    def completion_hidden(self, params, prompts, prompt_mask, completions):
        return params

    def values(self, params, hidden):
        return params["values"]

    def token_log_probs(self, params, hidden, completions, *, temperature):
        return SimpleNamespace(log_probs=hidden["log_probs"], entropies=hidden["entropies"])


def learn(algorithm, config, rewards=REWARDS, rollout=ROLLOUT):
    """(loss, its gradient by the log-probabilities, state, metrics) of one update."""
    learner = reinforcement.Learner(Table(), algorithm._replace(step=keep_gradient))  # pyright: ignore[reportArgumentType]
    params = {
        name: jnp.asarray(x) for name, x in (("log_probs", NEW), ("entropies", ENTROPY), ("values", VALUES))
    }
    state = jax.jit(lambda params: reinforcement.init(jax.random.key(0), config, learner, params))(params)
    if state.ref_params is not None:
        state = state._replace(ref_params={**params, "log_probs": jnp.asarray(REF)})
    update = jax.jit(lambda s: reinforcement.learn(s, rollout, jnp.asarray(rewards), config, learner))
    after, metrics = update(state)
    return metrics["step/fraction"], after.params["log_probs"], after, metrics
