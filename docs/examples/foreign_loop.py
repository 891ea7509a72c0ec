"""One loss and one advantage in code of your own: a Flax network, an optax optimizer, a loop. A bandit with contexts.

The network sees eight numbers and picks one of four arms, which pays where its own hidden preference is highest. Each context
is played eight times; a play is judged by the mean of the others (leave one out), and PPO's clipped loss learns from
it. Of the library only `losses`, `advantages`, `distributions` and `reduce` are imported: functions of arrays.

    python foreign_loop.py [--small]
"""

import argparse
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from jaxrl4lm import advantages, distributions, losses, reduce


class Sizes(NamedTuple):
    updates: int = 200
    contexts: int = 64
    plays: int = 8
    epochs: int = 2


SMALL = Sizes(updates=60, contexts=16)
FEATURES, ARMS = 8, 4


class Network(nn.Module):
    """Logits over the arms."""

    @nn.compact
    def __call__(self, context):
        return nn.Dense(ARMS)(nn.tanh(nn.Dense(32)(context)))


def main(sizes: Sizes) -> list[float]:
    """Trains the network; the mean reward of every update."""
    key_world, key_params, key = jax.random.split(jax.random.key(0), 3)
    preferences = jax.random.normal(key_world, (FEATURES, ARMS))
    network, optimizer = Network(), optax.adam(1e-2)
    params = network.init(key_params, jnp.zeros((1, FEATURES)))
    opt_state = optimizer.init(params)

    def loss(params, contexts, arms, old_log_probs, credit):
        logits = network.apply(params, contexts)
        log_probs = distributions.categorical_log_prob(logits, arms)
        each = losses.ppo_clip(log_probs, old_log_probs, credit, clip_eps=0.2)  # one value a play
        return reduce.token_mean(each - 0.01 * losses.entropy(logits))

    @jax.jit
    def update(params, opt_state, key):
        key_contexts, key_arms = jax.random.split(key)
        contexts = jax.random.normal(key_contexts, (sizes.contexts, FEATURES))
        contexts = jnp.repeat(contexts, sizes.plays, axis=0)
        logits = network.apply(params, contexts)
        arms = distributions.categorical_sample(key_arms, logits)
        rewards = (arms == (contexts @ preferences).argmax(-1)).astype(jnp.float32)
        credit = advantages.leave_one_out(rewards.reshape(-1, sizes.plays)).reshape(-1)
        old_log_probs = distributions.categorical_log_prob(logits, arms)
        for _ in range(sizes.epochs):
            grads = jax.grad(loss)(params, contexts, arms, old_log_probs, credit)
            steps, opt_state = optimizer.update(grads, opt_state)
            params = optax.apply_updates(params, steps)
        return params, opt_state, rewards.mean()

    curve = []
    for subkey in jax.random.split(key, sizes.updates):
        params, opt_state, reward = update(params, opt_state, subkey)
        curve.append(float(reward))
    print(f"share of best arms: {curve[0]:.2f} at first, {sum(curve[-10:]) / 10:.2f} at last")
    return curve


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    main(SMALL if parser.parse_args().small else Sizes())
