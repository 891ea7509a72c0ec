"""The one LM-RL iteration: prompts → generate → reward → KL → advantages → epochs x minibatches → update → metrics.

Two drivers share its halves. *Compiled*: the reward is a JAX function, and K iterations are one `lax.scan` (`run`), or a
whole run one function of a key (`train`), which vmaps over keys and over the leaves of the configuration. *Host*: the
reward is a Python function, called between the jitted `sample` and `learn`.

Shapes: `G` prompts, `B` completions, `T` completion tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl4lm import diagnostics, reduce
from jaxrl4lm.diagnostics import Diagnostics
from jaxrl4lm.lm.algorithms import Algorithm
from jaxrl4lm.lm.config import ReinforcementConfig
from jaxrl4lm.lm.optimizer import adam, apply_if_finite
from jaxrl4lm.lm.rollouts import Rollout, rollout, score
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.tasks import Task, token_rewards
from jaxrl4lm.types import Array, Key, Metrics, Params


class Learner(NamedTuple):
    """What is trained and how: the parts of the program that are functions or sizes."""

    policy: LanguagePolicy
    algorithm: Algorithm
    completion_length: int
    eos_id: int | tuple[int, ...]
    """The token (or tokens) that ends a completion."""
    pad_id: int


class State(NamedTuple):
    """Everything that a run is at one moment: arrays only, no two of which share memory."""

    params: Params
    ref_params: Params
    """The frozen reference."""
    opt_state: optax.OptState
    key: Key
    update: Array
    """int32: updates done."""
    kl_coef: Array
    """β, as the controller left it."""
    skipped: Array
    """int32: optimizer steps not applied because the gradient was not finite."""


class Batch(NamedTuple):
    """What a minibatch learns from; leading axes [G, ...] or [B, ...]."""

    rollout: Rollout
    ref_log_probs: Array
    advantages: Array
    targets: Array


def init(key: Key, config: ReinforcementConfig, learner: Learner, params: Params) -> State:
    """The state before the first update; both policies are copies of `params`."""
    return State(
        params=jax.tree.map(jnp.copy, params),
        ref_params=jax.tree.map(jnp.copy, params),
        opt_state=_optimizer(config, jnp.int32(0)).init(params),
        key=jnp.copy(key),
        update=jnp.int32(0),
        kl_coef=jnp.array(learner.algorithm.kl.controller(config).init(), jnp.float32),
        skipped=jnp.int32(0),
    )


def _optimizer(config: ReinforcementConfig, update: Array) -> optax.GradientTransformation:
    progress = jnp.minimum(update / max(config.updates - 1, 1), 1.0)
    share = 1 + (config.final_learning_rate - 1) * progress
    rising = jnp.minimum((update + 1) / (config.warmup + 1), 1.0)
    return adam(config.learning_rate * share * rising, config.max_grad_norm)


def sample(
    state: State, prompts: Array, prompt_mask: Array, config: ReinforcementConfig, learner: Learner
) -> Rollout:
    """The first half: completions of the prompts `[G, P]`, from this update's own key."""
    return rollout(
        learner.policy,
        state.params,
        prompts,
        prompt_mask,
        _keys(state)[1],
        completions=config.completions,
        length=learner.completion_length,
        eos_id=learner.eos_id,
        pad_id=learner.pad_id,
        temperature=config.temperature,
        final_values=learner.algorithm.value_loss is not None and config.truncation == "bootstrap",
    )


def _keys(state: State) -> tuple[Key, Key, Key]:
    """This update's keys for prompts, sampling and shuffling: functions of the run's key and the update alone."""
    prompts, sampling, shuffle = jax.random.split(jax.random.fold_in(state.key, state.update), 3)
    return prompts, sampling, shuffle


def learn(
    state: State, trajectories: Rollout, rewards: Array, config: ReinforcementConfig, learner: Learner
) -> tuple[State, Metrics]:
    """The second half: credit, then epochs x minibatches of optimizer steps.

    Args:
      trajectories: as `sample` gives them.
      rewards: a score a completion `[B]`, or a reward a token `[B, T]`.
    Returns:
      The state after the update; metrics, scalars.
    """
    mask, kl = trajectories.mask, learner.algorithm.kl
    ref = score(learner.policy, state.ref_params, trajectories, config.temperature).log_probs
    rewards = token_rewards(rewards, mask)
    penalized = rewards
    if kl.reward is not None:
        penalized = rewards - state.kl_coef * kl.reward(trajectories.log_probs, ref, mask=mask)
    credit = learner.algorithm.credit(penalized, trajectories, config)
    batch = Batch(trajectories, ref, credit.advantages, credit.targets)
    tx = _optimizer(config, state.update)

    def epoch(carry, key):
        return jax.lax.scan(minibatch, carry, _shuffled(key, batch, config.minibatches))

    def minibatch(carry, part: Batch):
        params, opt_state = carry
        grads, seen = _gradient(params, part, state.kl_coef, config, learner)
        params, opt_state, norm, applied = apply_if_finite(tx, grads, opt_state, params)
        return (params, opt_state), (seen, norm, applied)

    keys = jax.random.split(_keys(state)[2], config.epochs)
    (params, opt_state), (seen, norms, applied) = jax.lax.scan(epoch, (state.params, state.opt_state), keys)
    seen = _pool(seen) | _rollout_diagnostics(trajectories, rewards, ref)
    metrics = diagnostics.finish(seen)
    count = jnp.float32(mask.shape[0])
    state = state._replace(
        params=params,
        opt_state=opt_state,
        update=state.update + 1,
        skipped=state.skipped + (~applied).sum(dtype=jnp.int32),
        kl_coef=kl.controller(config).update(state.kl_coef, metrics["kl/ref_sequence"], count),
    )
    metrics |= {"policy/grad_norm": norms.mean(), "skipped_updates": state.skipped, "kl/coef": state.kl_coef}
    return state, metrics


def _pool(seen: Diagnostics) -> Diagnostics:
    """Diagnostics that gained leading axes in a scan, as those of the union."""
    return {
        name: jax.tree.map(jnp.sum if isinstance(entry, reduce.Fraction) else jnp.max, entry)
        for name, entry in seen.items()
    }


def _rollout_diagnostics(trajectories: Rollout, rewards: Array, ref_log_probs: Array) -> Diagnostics:
    scores = rewards.sum(-1).reshape(trajectories.prompts.shape[0], -1)
    return {
        **diagnostics.rewards(scores),
        **diagnostics.reference_kl(trajectories.log_probs, ref_log_probs, mask=trajectories.mask),
        **diagnostics.completions(trajectories.mask, ~trajectories.truncated),
        "completion/tokens": reduce.Fraction(trajectories.mask.sum(dtype=jnp.float32), jnp.float32(1)),
    }


def _shuffled(key: Key, batch: Batch, minibatches: int) -> Batch:
    """The batch with its prompts in random order, whole groups kept together, and a leading axis of minibatches."""
    G = batch.rollout.prompts.shape[0]
    order = jax.random.permutation(key, G) if minibatches > 1 else jnp.arange(G)

    def arrange(x: Array) -> Array:
        grouped = x.reshape(G, -1, *x.shape[1:])[order]
        return grouped.reshape(minibatches, x.shape[0] // minibatches, *x.shape[1:])

    # One minibatch is the whole update: its order does not matter to the gradient, so spare the copy.
    return jax.tree.map(arrange if minibatches > 1 else lambda x: x[None], batch)


def _gradient(
    params: Params, batch: Batch, kl_coef: Array, config: ReinforcementConfig, learner: Learner
) -> tuple[Params, Diagnostics]:
    """Gradient of the loss of one minibatch, computed in micro-batches that share its denominators."""
    mask = batch.rollout.mask
    tokens = learner.algorithm.reduction(jnp.zeros(mask.shape), mask).denominator
    denominators = (jnp.maximum(tokens, 1.0), jnp.float32(mask.shape[0]))

    def part_gradient(part: Batch) -> tuple[Params, Diagnostics]:
        return jax.grad(_loss, has_aux=True)(params, part, denominators, kl_coef, config, learner)

    if config.micro_batches == 1:
        return part_gradient(batch)

    def add(total: Params, part: Batch) -> tuple[Params, Diagnostics]:
        grads, seen = part_gradient(part)
        return jax.tree.map(jnp.add, total, grads), seen

    parts = jax.tree.map(lambda x: x.reshape(config.micro_batches, -1, *x.shape[1:]), batch)
    grads, seen = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)
    return grads, _pool(seen)


def _loss(
    params: Params,
    batch: Batch,
    denominators: tuple[Array, Array],
    kl_coef: Array,
    config: ReinforcementConfig,
    learner: Learner,
) -> tuple[Array, Diagnostics]:
    """What a micro-batch contributes to its minibatch's loss, and diagnostics."""
    mask, old = batch.rollout.mask, batch.rollout
    algorithm = learner.algorithm
    now = score(learner.policy, params, batch.rollout, config.temperature)
    surrogate = algorithm.surrogate(now.log_probs, old.log_probs, batch.advantages, mask, config)
    per_token = surrogate - config.entropy_coef * jnp.where(mask, now.entropy, 0.0)
    seen = diagnostics.policy(
        now.log_probs,
        old.log_probs,
        batch.advantages,
        clip_eps=config.clip_eps,
        entropies=now.entropy,
        loss=surrogate,
        mask=mask,
    )
    if algorithm.value_loss is not None:
        value_loss = algorithm.value_loss(now.values, old.values, batch.targets, mask, config)
        per_token += config.value_coef * value_loss
        seen |= diagnostics.value(now.values, batch.targets, loss=value_loss, mask=mask)
    tokens, sequences = denominators
    loss = algorithm.reduction(per_token, mask).total / tokens
    if algorithm.kl.loss is not None:
        penalty = algorithm.kl.loss(now.log_probs, batch.ref_log_probs, mask=mask)
        if algorithm.kl.of_sequence:
            loss += kl_coef * reduce.sequence_mean_fraction(penalty, mask).total / sequences
        else:
            loss += kl_coef * algorithm.reduction(penalty, mask).total / tokens
    return loss, seen


def iterate(state: State, config: ReinforcementConfig, learner: Learner, task: Task) -> tuple[State, Metrics]:
    """One whole iteration on a task: sample problems, complete them, score them, learn."""
    prompts = task.sample(_keys(state)[0], config.prompts)
    trajectories = sample(state, prompts.tokens, prompts.mask, config, learner)
    problems = jax.tree.map(lambda x: jnp.repeat(x, config.completions, axis=0), prompts)
    rewards = task.reward(problems, trajectories.completions, trajectories.mask)
    return learn(state, trajectories, rewards, config, learner)


def run(
    state: State, config: ReinforcementConfig, learner: Learner, task: Task, updates: int
) -> tuple[State, Metrics]:
    """The compiled driver: `updates` iterations in one scan. Metrics gain a leading axis `[updates]`."""
    return jax.lax.scan(lambda s, _: iterate(s, config, learner, task), state, length=updates)


def train(
    key: Key, config: ReinforcementConfig, *, learner: Learner, task: Task, params: Params | None = None
) -> tuple[State, Metrics]:
    """A whole run as a pure function of a key.

    `jax.jit(jax.vmap(partial(train, learner=..., task=..., params=...), in_axes=(0, axes)))` trains a population, where
    `axes` is a configuration whose leaves are 0 or None.

    Args:
      key: decides everything.
      config: hyper-parameters (leaves may be traced) and sizes.
      params: where to start, and the reference; None for a new initialisation from the key.
    Returns:
      The last state; metrics `[updates]`.
    """
    key_params, key_run = jax.random.split(key)
    params = learner.policy.init(key_params) if params is None else params
    return run(init(key_run, config, learner, params), config, learner, task, config.updates)
