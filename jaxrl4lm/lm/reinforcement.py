"""The one LM-RL iteration: prompts → generate → reward → KL → advantages → epochs x minibatches → update → metrics.

Two drivers share its halves. *Compiled*: the reward is a JAX function, and K iterations are one `lax.scan` (`run`), or a
whole run one function of a key (`train`), which vmaps over keys and over the leaves of the configuration. *Host*: the
reward is a Python function, called between the jitted `sample` and `learn`.

Shapes: `G` prompts, `B` completions, `T` completion tokens.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl4lm import diagnostics, losses, reduce
from jaxrl4lm.decoding import Sampling
from jaxrl4lm.diagnostics import Diagnostics
from jaxrl4lm.finite_step import step_if_finite
from jaxrl4lm.lm.algorithms import Algorithm, measure_old_kl
from jaxrl4lm.lm.config import ReinforcementConfig
from jaxrl4lm.lm.credit import shape_rewards
from jaxrl4lm.lm.critic import Critic
from jaxrl4lm.lm.curriculum import Record
from jaxrl4lm.lm.experience import Experience, shuffle
from jaxrl4lm.lm.optimizer import Optimizer, adam
from jaxrl4lm.lm.pool import Pool, begin_pool, keep_informative
from jaxrl4lm.lm.rollouts import Drawn, Rollout, diagnose, rollout, score
from jaxrl4lm.lm.trainable import ADAPTERS, Trainable, everything
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.tasks import Task, token_rewards
from jaxrl4lm.types import Array, Key, Metrics, Params


class Learner(NamedTuple):
    """What is trained and how: the parts of the program that are functions."""

    policy: LanguagePolicy
    algorithm: Algorithm
    optimizer: Optimizer = adam
    trainable: Trainable = everything()
    critic: Critic | None = None
    """A transformer of its own; `trainable` is then `lm.critic.beside_critic`. None: a head on the policy's trunk."""


class ReinforcementState(NamedTuple):
    """Everything that a run is at one moment: arrays only, no two of which share memory."""

    params: Params
    """What learns: all parameters, some of them, or adapters."""
    frozen: Params | None
    """The parameters that do not learn."""
    ref_params: Params | None
    """Where `params` began, of the reference. None where no divergence is priced, and where `frozen` is the reference."""
    opt_state: optax.OptState
    key: Key
    update: Array
    """int32: updates done."""
    kl_coef: Array
    """β, as the controller left it."""
    skipped: Array
    """int32: optimizer steps not applied because the gradient was not finite."""
    entropy_coef: Array | None = None
    """The price of entropy, as its controller left it; None without one."""
    record: Record | None = None
    """What was seen of each prompt; None without a curriculum."""
    mask_params: Params | None = None
    """`params` of the older policy that chooses the vocabulary; None without one."""
    pending: Drawn | None = None
    """Completions of the next update, drawn ahead; None where nothing may be stale."""


def init(key: Key, config: ReinforcementConfig, learner: Learner, params: Params) -> ReinforcementState:
    """The state before the first update, from copies of `params`."""
    copy = partial(jax.tree.map, jnp.copy)
    learning, frozen = learner.trainable.split(jax.random.fold_in(key, ADAPTERS), params)
    referred = learner.algorithm.kl.referred and not learner.trainable.frozen_is_reference
    entropy_price = learner.algorithm.entropy_price
    return ReinforcementState(
        params=copy(learning),
        frozen=copy(frozen),
        ref_params=copy(learner.trainable.refer(learning)) if referred else None,
        opt_state=_make_optimizer(config, jnp.int32(0), learner).init(learning),
        key=jnp.copy(key),
        update=jnp.int32(0),
        kl_coef=jnp.array(learner.algorithm.kl.controller(config).init(), jnp.float32),
        skipped=jnp.int32(0),
        mask_params=copy(learner.trainable.refer(learning))
        if learner.algorithm.vocabulary is not None
        else None,
        entropy_coef=None if entropy_price is None else jnp.array(entropy_price(config).init(), jnp.float32),
    )


def merge_params(state: ReinforcementState, learner: Learner) -> Params:
    """The parameters of the policy as it is now, in the plain form."""
    return learner.trainable.merge(state.params, state.frozen)


def _choose_vocabulary(
    state: ReinforcementState, config: ReinforcementConfig, learner: Learner
) -> ReinforcementConfig:
    """The configuration, whose sampling leaves out what the algorithm forbids."""
    if learner.algorithm.vocabulary is None:
        return config
    older = learner.trainable.merge(state.mask_params, state.frozen)  # pyright: ignore[reportArgumentType]
    penalty = learner.algorithm.vocabulary(learner.policy, older, config)
    return config.replace(sampling=replace(config.sampling, penalties=(*config.sampling.penalties, penalty)))


def _make_optimizer(
    config: ReinforcementConfig, update: Array, learner: Learner
) -> optax.GradientTransformation:
    progress = jnp.minimum(update / max(config.updates - 1, 1), 1.0)
    share = 1 + (config.final_learning_rate_share - 1) * progress
    rising = jnp.minimum((update + 1) / (config.warmup + 1), 1.0)
    return learner.optimizer(config.learning_rate * share * rising, config)


def sample(
    state: ReinforcementState,
    prompts: Array,
    prompt_mask: Array,
    config: ReinforcementConfig,
    learner: Learner,
    *,
    drawn: Array | None = None,
) -> Rollout:
    """The first half: completions of the prompts `[G, P]`, from the key of this update, and of the round `drawn` if given."""
    key, config = _split_keys(state)[1], _choose_vocabulary(state, config, learner)
    return rollout(
        learner.policy,
        merge_params(state, learner),
        prompts,
        prompt_mask,
        key if drawn is None else jax.random.fold_in(key, drawn),
        replace(config.sampling, copies=config.completions),
        final_values=learner.algorithm.value_loss is not None
        and learner.critic is None
        and config.truncation == "bootstrap",
    )


def sample_greedily(
    state: ReinforcementState,
    prompts: Array,
    prompt_mask: Array,
    config: ReinforcementConfig,
    learner: Learner,
) -> Rollout:
    """The most likely completion of each prompt, whose score is the baseline of ReMax."""
    params, key = merge_params(state, learner), _split_keys(state)[1]  # which nothing is drawn from
    greedy = replace(config.sampling, temperature=None)
    return rollout(learner.policy, params, prompts, prompt_mask, key, greedy, final_values=False)


def _score_reference(
    state: ReinforcementState, trajectories: Rollout, sampling: Sampling, learner: Learner
) -> Array | None:
    """Log-probabilities under the reference, where a divergence is priced.

    Without truncations: what they would remove of it is not infinitely far away.
    """
    if not learner.algorithm.kl.referred:
        return None
    params = state.frozen
    if not learner.trainable.frozen_is_reference:
        params = learner.trainable.merge(state.ref_params, state.frozen)
    return score(learner.policy, params, trajectories, replace(sampling, truncations=())).log_probs


def _split_keys(state: ReinforcementState) -> tuple[Key, Key, Key]:
    """This update's keys for prompts, sampling and shuffling: functions of the run's key and the update alone."""
    prompts, sampling, shuffle = jax.random.split(jax.random.fold_in(state.key, state.update), 3)
    return prompts, sampling, shuffle


def split_prompt_key(state: ReinforcementState, drawn: Array) -> Key:
    """The key for the prompts of a round of this update."""
    return jax.random.fold_in(_split_keys(state)[0], drawn)


def learn(
    state: ReinforcementState,
    trajectories: Rollout,
    rewards: Array,
    config: ReinforcementConfig,
    learner: Learner,
) -> tuple[ReinforcementState, Metrics]:
    """The second half: credit, then epochs x minibatches of optimizer steps.

    Args:
      trajectories: as `sample` gives them.
      rewards: a score a completion `[B]`, or a reward a token `[B, T]`.
    Returns:
      The state after the update; metrics, scalars.
    """
    whole, kl = trajectories, learner.algorithm.kl
    if whole.scored is not None:
        trajectories = whole._replace(mask=whole.mask & whole.scored[:, None], scored=None)
    if learner.critic is not None:
        trajectories = learner.critic.judge(state.params["critic"], trajectories)
    mask = trajectories.mask
    config = _choose_vocabulary(state, config, learner)
    ref = _score_reference(state, trajectories, config.sampling, learner)
    rewards = token_rewards(rewards, mask)
    kl_costs = jnp.zeros_like(rewards)
    if kl.reward is not None:
        kl_costs = state.kl_coef * kl.reward(trajectories.log_probs, ref, mask=mask)
    shaped = shape_rewards(rewards, trajectories, config)
    credit = learner.algorithm.credit(shaped, kl_costs, trajectories, config)
    learned = trajectories._replace(mask=_select_learned(trajectories, config), learned=None, baselines=None)
    experience = Experience(learned, ref, credit.advantages, credit.targets)
    advance = _descend if learner.algorithm.step is None else _step_once
    params, opt_state, (seen, norms, applied) = advance(state, experience, config, learner)
    seen = _pool(seen) | diagnose(whole, rewards, ref)
    metrics = diagnostics.to_numbers(seen)
    state = state._replace(
        params=params,
        opt_state=opt_state,
        update=state.update + 1,
        skipped=state.skipped + (~applied).sum(dtype=jnp.int32),
    )
    metrics |= {"policy/grad_norm": norms.mean(), "skipped_updates": state.skipped}
    if state.mask_params is not None:
        due = state.update % config.mask_interval == 0
        now = learner.trainable.refer(params)
        mask_params = jax.tree.map(lambda new, old: jnp.where(due, new, old), now, state.mask_params)
        state = state._replace(mask_params=mask_params)
    return _set_prices(state, learned, metrics, config, learner)


def _select_learned(trajectories: Rollout, config: ReinforcementConfig) -> Array:
    """The tokens `[B, T]` that are learned from."""
    mask = trajectories.mask
    if trajectories.learned is not None:
        mask = mask & trajectories.learned[:, None]
    return mask & ~trajectories.truncated[:, None] if config.truncation == "mask" else mask


def _set_prices(
    state: ReinforcementState,
    learned: Rollout,
    metrics: dict[str, Array],
    config: ReinforcementConfig,
    learner: Learner,
) -> tuple[ReinforcementState, Metrics]:
    """The prices that controllers ask for after an update: of the divergence, and of entropy."""
    kl, entropy_price = learner.algorithm.kl, learner.algorithm.entropy_price
    count = jnp.float32(learned.mask.shape[0])
    if kl.priced:
        if kl.from_old:
            metrics["kl/old"] = _measure_step(state, learned, config, learner)
        measured = metrics["kl/old" if kl.from_old else "kl/ref_sequence"]
        metrics["kl/coef"] = kl.controller(config).update(state.kl_coef, measured, count)
        state = state._replace(kl_coef=metrics["kl/coef"])
    if entropy_price is not None:
        coef = entropy_price(config).update(state.entropy_coef, metrics["policy/entropy"], count)  # pyright: ignore[reportArgumentType]
        metrics["policy/entropy_coef"] = coef
        state = state._replace(entropy_coef=coef)
    return state, metrics


def _measure_step(
    state: ReinforcementState, learned: Rollout, config: ReinforcementConfig, learner: Learner
) -> Array:
    """KL(π_old‖π) of the whole update, in nats a token."""
    now = score(learner.policy, merge_params(state, learner), learned, config.sampling)
    return reduce.token_mean(
        measure_old_kl(now.log_probs, learned.log_probs, mask=learned.mask), learned.mask
    )


Steps = tuple[Diagnostics, Array, Array]
"""Of each step of an update: diagnostics, norm of the gradient, whether it was applied."""


def _descend(
    state: ReinforcementState, experience: Experience, config: ReinforcementConfig, learner: Learner
) -> tuple[Params, optax.OptState, Steps]:
    """Epochs x minibatches of optimizer steps."""
    tx = _make_optimizer(config, state.update, learner)

    def epoch(carry, key):
        return jax.lax.scan(minibatch, carry, shuffle(key, experience, config.minibatches))

    def minibatch(carry, part: Experience):
        params, opt_state = carry
        grads, seen = _differentiate(params, part, state, config, learner)
        params, opt_state, norm, applied = step_if_finite(tx, grads, opt_state, params)
        return (params, opt_state), (seen, norm, applied)

    keys = jax.random.split(_split_keys(state)[2], config.epochs)
    (params, opt_state), steps = jax.lax.scan(epoch, (state.params, state.opt_state), keys)
    return params, opt_state, steps


def _step_once(
    state: ReinforcementState, experience: Experience, config: ReinforcementConfig, learner: Learner
) -> tuple[Params, optax.OptState, Steps]:
    """The algorithm's own step, on all completions at once."""
    assert learner.algorithm.step is not None
    denominators = _count(experience, learner)

    def loss(params: Params) -> Array:
        return _compute_loss(params, experience, denominators, state, config, learner)[0]

    def kl(params: Params) -> Array:
        return _measure_step(state._replace(params=params), experience.rollout, config, learner)

    params, info = learner.algorithm.step(loss, kl, state.params, config)
    one = jnp.float32(1)
    _, seen = _compute_loss(state.params, experience, denominators, state, config, learner)
    norm = optax.global_norm(jax.grad(loss)(state.params))
    seen["step/kl"] = reduce.Fraction(info.kl, one)
    seen["step/fraction"] = reduce.Fraction(info.fraction, one)
    # A refused step has moved nothing; it counts as skipped where there was no number to go by.
    return params, state.opt_state, (seen, norm, jnp.isfinite(norm))


def _pool(seen: Diagnostics) -> Diagnostics:
    """Diagnostics that gained leading axes in a scan, as those of the union."""
    return {
        name: jax.tree.map(jnp.sum if isinstance(entry, reduce.Fraction) else jnp.max, entry)
        for name, entry in seen.items()
    }


def _count(batch: Experience, learner: Learner) -> tuple[Array, Array]:
    """What the loss of the batch is divided by: of the reduction, and of a divergence of sequences."""
    mask = batch.rollout.mask
    tokens = learner.algorithm.reduction(jnp.zeros(mask.shape), mask).denominator
    return jnp.maximum(tokens, 1.0), jnp.float32(mask.shape[0])


def _differentiate(
    params: Params,
    batch: Experience,
    state: ReinforcementState,
    config: ReinforcementConfig,
    learner: Learner,
) -> tuple[Params, Diagnostics]:
    """Gradient of the loss of one minibatch, computed in micro-batches that share its denominators."""
    denominators = _count(batch, learner)

    def differentiate_part(part: Experience) -> tuple[Params, Diagnostics]:
        return jax.grad(_compute_loss, has_aux=True)(params, part, denominators, state, config, learner)

    if config.micro_batches == 1:
        return differentiate_part(batch)

    def add(total: Params, part: Experience) -> tuple[Params, Diagnostics]:
        grads, seen = differentiate_part(part)
        return jax.tree.map(jnp.add, total, grads), seen

    parts = jax.tree.map(lambda x: x.reshape(config.micro_batches, -1, *x.shape[1:]), batch)
    grads, seen = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)
    return grads, _pool(seen)


def _compute_loss(
    params: Params,
    batch: Experience,
    denominators: tuple[Array, Array],
    state: ReinforcementState,
    config: ReinforcementConfig,
    learner: Learner,
) -> tuple[Array, Diagnostics]:
    """What a micro-batch contributes to its minibatch's loss, and diagnostics."""
    mask, old = batch.rollout.mask, batch.rollout
    algorithm, kl_coef = learner.algorithm, state.kl_coef
    entropy_coef = config.entropy_coef if state.entropy_coef is None else state.entropy_coef
    # No dropout: the ratio to the policy that drew the tokens would be noise.
    whole = learner.trainable.join(params, state.frozen, None)
    now = score(learner.policy, whole, batch.rollout, config.sampling)
    if learner.critic is not None:
        now = now._replace(values=learner.critic.read(params["critic"], batch.rollout)[0])
    levelled = now.log_probs
    if algorithm.level is not None:
        levelled = algorithm.level(now.log_probs, old.log_probs, mask=mask)
    surrogate = algorithm.surrogate(levelled, old.log_probs, batch.advantages, mask, config)
    for weight in algorithm.weights:
        surrogate *= weight(now, old.log_probs, batch.advantages, mask, config)
    per_token = surrogate - entropy_coef * jnp.where(mask, now.entropy, 0.0)
    seen = diagnostics.policy(
        now.log_probs,
        old.log_probs,
        batch.advantages,
        clip_eps=config.clip_eps,
        clip_eps_high=config.clip_eps_high,
        clipped_log_probs=None if algorithm.level is None else levelled,
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
        anchor = old.log_probs if algorithm.kl.from_old else batch.ref_log_probs
        penalty = algorithm.kl.loss(now.log_probs, anchor, mask=mask)
        if algorithm.kl.times_ratio:
            penalty *= losses.probability_ratio(jnp.where(mask, levelled - old.log_probs, 0.0))
        if algorithm.kl.of_sequence:
            loss += kl_coef * reduce.sequence_mean_fraction(penalty, mask).total / sequences
        else:
            loss += kl_coef * algorithm.reduction(penalty, mask).total / tokens
    return loss, seen


def learn_from_pool(
    state: ReinforcementState, pool: Pool, config: ReinforcementConfig, learner: Learner
) -> tuple[ReinforcementState, Metrics]:
    """`learn` from the groups of a pool that say something; the mean reward is that of all that was drawn."""
    copies = pool.rollout.mask.shape[0] // pool.informative.shape[0]
    trajectories = pool.rollout._replace(learned=jnp.repeat(pool.informative, copies))
    state, metrics = learn(state, trajectories, pool.rewards, config, learner)
    return state, {
        **metrics,
        "reward/mean": pool.reward_sum / pool.rounds,
        "group/rounds": pool.rounds,
        "group/learned": pool.informative.mean(),
    }


def iterate(
    state: ReinforcementState, config: ReinforcementConfig, learner: Learner, task: Task
) -> tuple[ReinforcementState, Metrics]:
    """One whole iteration on a task: sample problems, complete them, score them, learn."""

    def draw(key: Key, drawn: Array | None) -> tuple[Rollout, Array]:
        prompts = task.sample(key, config.prompts_per_update)
        trajectories = sample(state, prompts.tokens, prompts.mask, config, learner, drawn=drawn)
        if learner.algorithm.greedy_baseline:
            greedy = sample_greedily(state, prompts.tokens, prompts.mask, config, learner)
            baselines = task.reward(prompts, greedy.completions, greedy.mask)
            trajectories = trajectories._replace(baselines=baselines)
        problems = jax.tree.map(lambda x: jnp.repeat(x, config.completions, axis=0), prompts)
        return trajectories, task.reward(problems, trajectories.completions, trajectories.mask)

    if config.sampling_rounds == 1:
        return learn(state, *draw(_split_keys(state)[0], None), config, learner)

    def draw_round(drawn: Array) -> Pool:
        return begin_pool(*draw(split_prompt_key(state, drawn), drawn))

    pool = jax.lax.while_loop(
        lambda pool: ~pool.informative.all() & (pool.rounds < config.sampling_rounds),
        lambda pool: keep_informative(pool, draw_round(pool.rounds)),
        draw_round(jnp.int32(0)),
    )
    return learn_from_pool(state, pool, config, learner)


def run(
    state: ReinforcementState, config: ReinforcementConfig, learner: Learner, task: Task, updates: int
) -> tuple[ReinforcementState, Metrics]:
    """The compiled driver: `updates` iterations in one scan. Metrics gain a leading axis `[updates]`."""
    return jax.lax.scan(lambda s, _: iterate(s, config, learner, task), state, length=updates)


def train(
    key: Key, config: ReinforcementConfig, *, learner: Learner, task: Task, params: Params | None = None
) -> tuple[ReinforcementState, Metrics]:
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
