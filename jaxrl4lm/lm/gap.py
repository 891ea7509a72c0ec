"""How near algorithms come to the best policy that there is, on a task whose optimum is known.

A contest is one small task, one transformer and its start, which is the reference. An entrant is a pure function (key, β) →
gaps, KL(π‖π*) in nats, so that all seeds and all β are one `vmap`. Where an entrant must end elsewhere, its `limit` says where,
by enumeration.

Shapes: `N` completions, `n` completions of a group.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from jaxrl4lm import losses
from jaxrl4lm.decoding import Sampling
from jaxrl4lm.envs.token_tree import TokenTree, grow
from jaxrl4lm.lm import algorithms, estimators, exact, preference, reinforcement, supervised
from jaxrl4lm.lm.algorithms import KL, Algorithm
from jaxrl4lm.lm.config import PreferenceConfig, SupervisedConfig
from jaxrl4lm.lm.preference_losses import LOSSES
from jaxrl4lm.lm.table import TablePolicy
from jaxrl4lm.models import LanguagePolicy, TransformerConfig
from jaxrl4lm.tasks import Task
from jaxrl4lm.types import Array, Key, Params, ScalarLike


class Contest(NamedTuple):
    """What all entrants share."""

    task: Task
    tree: TokenTree
    policy: LanguagePolicy
    params: Params
    """Where each begins, and the reference."""
    ref_logits: Array
    """`[1, S, V]`, of `params`."""
    updates: int = 200
    points: int = 20
    """How often the gap is measured; `updates` is a multiple."""
    groups: int = 64
    """Of an update."""
    completions: int = 4
    """n, of a group."""
    learning_rate: float = 1e-2
    """At its highest; it falls along a line to a fiftieth."""

    @property
    def samples(self) -> int:
        """Completions drawn between two measurements."""
        return self.updates // self.points * self.groups * self.completions


class Entrant(NamedTuple):
    """An algorithm in the contest."""

    label: str
    """What pictures and tables call it."""
    train: Callable[[Contest, Key, ScalarLike], Array]
    """(contest, key, β) → gaps `[points + 1]`."""
    limit: Callable[[Contest, ScalarLike], Array] | None = None
    """(contest, β) → the gap where it must end; None: 0."""


def open_contest(task: Task, *, width: int = 16, spread: float = 2.5, seed: int = 0, **sizes: int) -> Contest:
    """A contest on the first prompt of a task, from a small transformer whose random logits are `spread` times as large."""
    tree = grow(task, task.sample(jax.random.key(seed), 1))
    context = task.prompt_length + task.completion_length + 1
    shape = {"layers": 1, "width": width, "heads": 2, "context": context}
    # Learned positions: rotary ones cannot tell one token from the same token twice.
    policy = LanguagePolicy(TransformerConfig.gpt2(task.tokenizer.vocab_size, **shape))
    params = jax.tree.map(lambda x: spread * x, jax.jit(policy.init)(jax.random.key(seed)))
    ref_logits = jax.jit(lambda params: exact.read_logits(policy, params, tree))(params)
    return Contest(task, tree, policy, params, ref_logits, **sizes)


def _measure(contest: Contest, params: Params, beta: ScalarLike) -> Array:
    logits = exact.read_logits(contest.policy, params, contest.tree)
    return exact.evaluate(contest.tree, logits, contest.ref_logits, beta).gap


def _watch(contest: Contest, state: Any, update: Callable[[Any, None], Any], beta: ScalarLike) -> Array:
    """Gaps at the start and after each part of the updates."""

    def advance(state: Any, _: None) -> tuple[Any, Array]:
        state = jax.lax.scan(update, state, length=contest.updates // contest.points)[0]
        return state, _measure(contest, state.params, beta)

    gaps = jax.lax.scan(advance, state, length=contest.points)[1]
    start = exact.evaluate(contest.tree, contest.ref_logits, contest.ref_logits, beta).gap
    return jnp.concatenate([start[None], gaps])


def _configure(contest: Contest, algorithm: Algorithm, beta: ScalarLike, **changes: Any):
    ids = contest.task.tokenizer
    return algorithm.configure(
        kl_coef=beta,
        updates=contest.updates,
        prompts_per_update=contest.groups,
        completions=contest.completions,
        learning_rate=contest.learning_rate,
        final_learning_rate_share=0.02,
        truncation="terminal",  # a completion of full length has its whole reward
        sampling=Sampling(contest.task.completion_length, ids.eos_ids, ids.pad_id),
        **changes,
    )


def learn_online(
    contest: Contest, key: Key, beta: ScalarLike, *, algorithm: Algorithm, **changes: Any
) -> Array:
    """The gaps of `reinforcement.run`; β is `kl_coef`."""
    config = _configure(contest, algorithm, beta, **changes)
    learner = reinforcement.Learner(contest.policy, algorithm)
    start = reinforcement.init(key, config, learner, contest.params)

    def update(state: reinforcement.ReinforcementState, _: None):
        return reinforcement.iterate(state, config, learner, contest.task)[0], None

    return _watch(contest, start, update, beta)


def _draw_from_reference(contest: Contest, key: Key, groups: int, n: int) -> tuple[Array, Array]:
    """Numbers `[groups, n]` of completions drawn from the reference, and what they earn."""
    log_probs = exact.log_probs(contest.tree, contest.ref_logits)
    members = jax.random.categorical(key, log_probs[0], shape=(groups, n))
    return members, contest.tree.token_rewards().sum(-1)[0][members]


def _write_texts(contest: Contest, members: Array) -> supervised.Texts:
    """The prompt and these completions, `[*members.shape, P + T]`."""
    tree = contest.tree
    shape = (*members.shape, tree.prompts.tokens.shape[1])
    tokens = jnp.concatenate([jnp.broadcast_to(tree.prompts.tokens[0], shape), tree.completions[members]], -1)
    asked, given = jnp.broadcast_to(tree.prompts.mask[0], shape), tree.mask[members]
    mask = jnp.concatenate([asked, given], -1)
    return supervised.Texts(tokens, mask, jnp.concatenate([jnp.zeros_like(asked), given], -1))


def learn_preferences(contest: Contest, key: Key, beta: ScalarLike) -> Array:
    """The gaps of DPO on pairs drawn from the reference and judged by Bradley & Terry: P(a ≻ b) = σ(R(a) − R(b))."""
    pairs = contest.groups * contest.completions // 2
    config = PreferenceConfig(
        learning_rate=contest.learning_rate,
        final_learning_rate_share=0.02,
        beta=beta,
        steps=contest.updates,
        batch=pairs,
        warmup=0,
        schedule="linear",
    )
    learner = preference.Learner(contest.policy, LOSSES["dpo"])

    def update(state: preference.DescentState, _: None) -> tuple[preference.DescentState, None]:
        key_pairs, key_label = jax.random.split(jax.random.fold_in(state.key, state.step))
        members, scores = _draw_from_reference(contest, key_pairs, pairs, 2)
        first = jax.random.bernoulli(key_label, jax.nn.sigmoid(scores[:, 0] - scores[:, 1]))
        members = jnp.where(first[:, None], members, members[:, ::-1])
        judged = preference.Judgements(_write_texts(contest, members))
        return preference.update(state, judged, config, learner, contest.params)[0], None

    return _watch(contest, preference.init(key, config, learner, contest.params), update, beta)


def learn_best(contest: Contest, key: Key, beta: ScalarLike) -> Array:
    """The gaps of teacher forcing on the best of n completions drawn from the reference."""
    config = SupervisedConfig(
        learning_rate=contest.learning_rate,
        final_learning_rate_share=0.02,
        steps=contest.updates,
        warmup=0,
        schedule="linear",
    )
    teacher = supervised.Teacher(contest.policy)

    def update(state: supervised.SupervisedState, _: None) -> tuple[supervised.SupervisedState, None]:
        key = jax.random.fold_in(state.key, state.step)
        members, scores = _draw_from_reference(contest, key, contest.groups, contest.completions)
        best = jnp.take_along_axis(members, scores.argmax(-1)[:, None], -1)[:, 0]
        return supervised.update(state, _write_texts(contest, best), config, teacher)[0], None

    return _watch(contest, supervised.init(key, config, teacher, contest.params), update, beta)


def take_best(rewards: Array, mask: Array) -> Array:
    """1 for the best of each group, else 0: an estimator of `advantages` that makes expert iteration of the policy gradient."""
    del mask
    return jax.nn.one_hot(rewards.argmax(-1), rewards.shape[-1], dtype=rewards.dtype)


# ── where an algorithm must end ──────────────────────────────────────────────────────────────────────────


def settle(contest: Contest, beta: ScalarLike, *, algorithm: Algorithm, steps: int = 400) -> Array:
    """The gap where the expected gradient of one group vanishes, for a policy that can be anything.

    A table follows the expectation over all groups, without noise, by Adam with a falling learning rate.
    """
    tree = contest.tree
    learner = reinforcement.Learner(cast(LanguagePolicy, TablePolicy(tree)), algorithm)
    config = _configure(contest, algorithm, beta).replace(prompts_per_update=1)
    logits = contest.ref_logits[0]
    reference = {"logits": logits, "values": jnp.zeros(tree.texts.shape[0])}
    tx = optax.adam(optax.linear_schedule(0.1, 1e-3, steps))

    def step(carry: tuple[Params, optax.OptState], _: None) -> tuple[tuple[Params, optax.OptState], None]:
        params, opt_state = carry
        point = estimators.Point(params, reference, params)
        gradient = estimators.enumerate_updates(tree, learner, config, point).mean
        updates, opt_state = tx.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = jax.lax.scan(step, (reference, tx.init(reference)), length=steps)
    return exact.evaluate(tree, params["logits"][None], logits[None], beta).gap


def find_best_of(contest: Contest, beta: ScalarLike) -> Array:
    """The gap of the best of n completions of the reference."""
    ref = exact.log_probs(contest.tree, contest.ref_logits)
    found = exact.best_of(contest.tree, ref, contest.completions)
    return exact.compare(contest.tree, found, ref, beta).gap


def find_collapse(contest: Contest, beta: ScalarLike) -> Array:
    """The gap of a policy that always says what earns most: −log π* of it."""
    ref = exact.log_probs(contest.tree, contest.ref_logits)
    optimum, _ = exact.tilt(contest.tree, ref, beta)
    return -optimum[0, contest.tree.token_rewards().sum(-1)[0].argmax()]


def _online(label: str, algorithm: Algorithm, *, right: bool = True, **changes: Any) -> Entrant:
    return Entrant(
        label,
        partial(learn_online, algorithm=algorithm, **changes),
        None if right else partial(settle, algorithm=algorithm),
    )


EXPERT_ITERATION = algorithms.RLOO._replace(credit=algorithms.compare(take_best), kl=KL())
"""Imitates the best of each group that it draws (Anthony et al. 2017, arXiv:1705.08439), a step at a time."""
K1, K3 = KL(reward=losses.kl.k1), KL(loss=losses.kl.k3)
ENTRANTS: Mapping[str, Entrant] = {
    "ppo": _online("PPO", algorithms.PPO),
    "reinforce": _online("REINFORCE", algorithms.REINFORCE),
    "rloo": _online("RLOO", algorithms.RLOO),
    "trpo": _online("TRPO", algorithms.TRPO, trust_region=1e-3),
    "dpo": Entrant("DPO", learn_preferences),
    "rloo_k3": _online("RLOO, token k3", algorithms.RLOO._replace(kl=K3), right=False),
    "dr_grpo": _online("Dr.GRPO, k1 in the reward", algorithms.DR_GRPO._replace(kl=K1), right=False),
    "grpo_k1": _online("GRPO, k1 in the reward", algorithms.GRPO._replace(kl=K1), right=False),
    "grpo": _online("GRPO, token k3", algorithms.GRPO, right=False),
    "best_of_n": Entrant("best of n, imitated", learn_best, find_best_of),
    "expert_iteration": Entrant(
        "expert iteration", partial(learn_online, algorithm=EXPERT_ITERATION), find_collapse
    ),
}
"""The command line's words. Where no form of the KL is named, it is k1 in the reward."""
