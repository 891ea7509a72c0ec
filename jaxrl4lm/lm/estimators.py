"""What an algorithm's gradient is on average, and how much it varies, at given parameters.

The gradient is that of `reinforcement.learn` itself, of one step on one update's completions. `enumerate_updates` weighs every
group of completions that one prompt may get by its probability: the answer is exact. `sample_updates` draws updates, where
there are too many of them.

Shapes: `G` prompts of the tree, `P` prompts of an update, `n` completions of each, `N` completions that there are, `M` updates.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxrl4lm.envs.token_tree import MOST, TokenTree
from jaxrl4lm.lm import exact, reinforcement
from jaxrl4lm.lm.config import ReinforcementConfig
from jaxrl4lm.lm.rollouts import Rollout
from jaxrl4lm.losses.trpo import StepInfo
from jaxrl4lm.types import Array, InputError, Key, Params, ScalarLike

BLOCK = 512
"""Updates that are differentiated together."""


class Point(NamedTuple):
    """Where an estimator is looked at."""

    params: Params
    """The policy that learns."""
    reference: Params
    """From which a divergence is priced."""
    behaviour: Params
    """The policy that drew the completions; its critic's values are the old ones."""


class Estimate(NamedTuple):
    """A gradient of the loss as a random variable."""

    mean: Params
    variance: Array
    """E|g − E[g]|², of all parameters together."""
    error: Array
    """How far `mean` is from the expectation, as a standard error; 0 where all updates were enumerated."""


class Bias(NamedTuple):
    """How an expected gradient lies to the true one."""

    scale: Array
    """Its length along the true gradient, in units of that: 1 if unbiased."""
    angle: Array
    """Degrees between the two: 0 where the difference is a matter of the learning rate alone."""
    distance: Array
    """Length of the difference, in units of that of the true one."""


class Draws(NamedTuple):
    """Updates, and how much each counts."""

    prompts: Array
    """int32 `[M, P]`: numbers of prompts."""
    members: Array
    """int32 `[M, P, n]`: numbers of completions."""
    weights: Array
    """`[M]`, of sum 1."""


def keep_gradient(loss, kl, params: Params, config: ReinforcementConfig) -> tuple[Params, StepInfo]:
    """A `Step` of an algorithm that leaves the gradient where parameters are, and the loss where the step's length is."""
    del kl, config
    value, gradient = jax.value_and_grad(loss)(params)
    return gradient, StepInfo(jnp.bool_(True), value, jnp.float32(0), jnp.float32(0))


def enumerate_updates(
    tree: TokenTree, learner: reinforcement.Learner, config: ReinforcementConfig, point: Point
) -> Estimate:
    """Mean and variance over all groups that one prompt may get.

    The order in a group does not matter to an algorithm, so that each multiset is taken once.

    Raises:
      InputError: if the tree or the update has more than one prompt, or there are more than `MOST` groups.
    """
    if (found := (len(tree.prompts.tokens), config.prompts_per_update)) != (1, 1):
        raise InputError(
            f"the tree has {found[0]} prompts and prompts_per_update is {found[1]}: enumeration needs one, sample_updates"
            " takes any number"
        )
    N, n = tree.completions.shape[0], config.completions
    count = math.comb(N + n - 1, n)
    if count > MOST:
        raise InputError(
            f"completions is {n}, and {N} completions make {count:,} groups: give fewer, or use sample_updates"
        )
    members = np.array(list(itertools.combinations_with_replacement(range(N), n)))
    # How often a member has stood there so far: over a group, their product is that of the factorials of its counts.
    runs = np.ones(members.shape)
    for i in range(1, n):
        runs[:, i] += runs[:, i - 1] * (members[:, i] == members[:, i - 1])
    orders = jnp.asarray(math.lgamma(n + 1) - np.log(runs).sum(-1), float)
    drawn_from = _read_behaviour(tree, learner, config, point)[0]
    weights = jnp.exp(orders + drawn_from.sum(-1)[0][members].sum(-1))
    prompts = jnp.zeros((count, 1), jnp.int32)
    return _average(tree, learner, config, point, Draws(prompts, jnp.asarray(members)[:, None], weights))


def sample_updates(
    key: Key,
    tree: TokenTree,
    learner: reinforcement.Learner,
    config: ReinforcementConfig,
    point: Point,
    updates: int,
) -> Estimate:
    """Mean and variance over so many updates, whose completions are drawn from the tree; `error` says how sure the mean is."""
    P, G = config.prompts_per_update, len(tree.prompts.tokens)
    key_prompts, key_members = jax.random.split(key)
    prompts = jax.random.randint(key_prompts, (updates, P), 0, G)
    drawn_from = _read_behaviour(tree, learner, config, point)[0].sum(-1)
    members = jax.random.categorical(
        key_members, drawn_from[prompts][:, :, None], shape=(updates, P, config.completions)
    )
    weights = jnp.full((updates,), 1 / updates)
    estimate = _average(tree, learner, config, point, Draws(prompts, members, weights))
    return estimate._replace(error=jnp.sqrt(estimate.variance / updates))


def measure_bias(estimate: Estimate, gradient: Params) -> Bias:
    """How the mean of an estimate of the loss's gradient lies to the true one."""
    ours, true = (ravel_pytree(x)[0] for x in (estimate.mean, gradient))
    squared = true @ true
    scale = ours @ true / squared
    across = jnp.linalg.norm(ours - scale * true)
    angle = jnp.degrees(jnp.arctan2(across, scale * jnp.sqrt(squared)))
    return Bias(scale, angle, jnp.linalg.norm(ours - true) / jnp.sqrt(squared))


def find_gradient(
    tree: TokenTree, learner: reinforcement.Learner, config: ReinforcementConfig, point: Point
) -> Params:
    """The true gradient of the loss, −∇(J − β KL(π‖π_ref)), β = `kl_coef`, of the policy at its temperature."""

    def loss(params: Params) -> Array:
        logits, ref = (
            exact.read_logits(learner.policy, p, tree, _find_temperature(config))
            for p in (params, point.reference)
        )
        return -exact.evaluate(tree, logits, ref, config.kl_coef).value

    return jax.grad(loss)(point.params)


def _find_temperature(config: ReinforcementConfig) -> ScalarLike:
    return 1.0 if config.sampling.temperature is None else config.sampling.temperature


def _read_behaviour(
    tree: TokenTree, learner: reinforcement.Learner, config: ReinforcementConfig, point: Point
) -> tuple[Array, Array]:
    """Log-probabilities `[G, N, T]` of the policy that draws, and what its greedy completion earns `[G]`."""
    if config.sampling.reshapes or config.sampling.stop_sequences is not None or learner.algorithm.vocabulary:
        raise InputError(
            "sampling has penalties, truncations, stop sequences or a masked vocabulary: exact answers are of plain"
            " temperature sampling, leave them out"
        )
    logits = exact.read_logits(learner.policy, point.behaviour, tree, _find_temperature(config))
    likeliest = logits.argmax(-1)[:, tree.states] == tree.completions[None]
    greedy = jnp.argmax((likeliest | ~tree.mask[None]).all(-1), axis=-1)
    scores = tree.token_rewards().sum(-1)
    return exact.token_log_probs(tree, logits), jnp.take_along_axis(scores, greedy[:, None], -1)[:, 0]


def _average(
    tree: TokenTree,
    learner: reinforcement.Learner,
    config: ReinforcementConfig,
    point: Point,
    draws: Draws,
) -> Estimate:
    """Weighted mean and variance of the gradients of updates, block by block."""
    learner = learner._replace(algorithm=learner.algorithm._replace(step=keep_gradient))
    state = reinforcement.init(jax.random.key(0), config, learner, point.reference)
    state = state._replace(params=point.params)
    log_probs, baselines = _read_behaviour(tree, learner, config, point)
    values = exact.read_values(learner.policy, point.behaviour, tree)
    bootstraps = config.truncation == "bootstrap" and learner.algorithm.value_loss is not None

    def differentiate(prompts: Array, members: Array) -> Params:
        g = jnp.repeat(prompts, members.shape[1])
        i = members.reshape(-1)
        mask, truncated = tree.mask[i], tree.truncated[i]
        after = tree.successors[tree.states[i, -1], tree.completions[i, -1]]
        rollout = Rollout(
            prompts=tree.prompts.tokens[prompts],
            prompt_mask=tree.prompts.mask[prompts],
            completions=tree.completions[i],
            mask=mask,
            log_probs=log_probs[g, i],
            values=jnp.where(mask, values[g[:, None], tree.states[i]], 0.0),
            final_values=jnp.where(truncated & bootstraps, values[g, after], 0.0),
            truncated=truncated,
            baselines=baselines[prompts],
        )
        return reinforcement.learn(state, rollout, tree.token_rewards()[g, i], config, learner)[0].params

    def add(totals: tuple[Params, Array], block: Draws) -> tuple[tuple[Params, Array], None]:
        gradients = jax.vmap(differentiate)(block.prompts, block.members)
        squares = sum(jnp.square(x).reshape(len(x), -1).sum(-1) for x in jax.tree.leaves(gradients))
        mean = jax.tree.map(lambda x: jnp.tensordot(block.weights, x, 1), gradients)
        return jax.tree.map(jnp.add, totals, (mean, block.weights @ squares)), None

    size = min(BLOCK, len(draws.weights))
    blocks = jax.tree.map(lambda x: _cut(x, size), draws)
    zero = (jax.tree.map(jnp.zeros_like, point.params), jnp.zeros(()))
    (mean, square), _ = jax.lax.scan(add, zero, blocks)
    length = sum(jnp.square(x).sum() for x in jax.tree.leaves(mean))
    return Estimate(mean, square - length, jnp.zeros(()))


def _cut(x: Array, size: int) -> Array:
    """`[M, ...]` in blocks `[blocks, size, ...]`, the last filled up with zeros, whose weight is 0."""
    rest = -len(x) % size
    return jnp.pad(x, ((0, rest), *((0, 0),) * (x.ndim - 1))).reshape(-1, size, *x.shape[1:])
