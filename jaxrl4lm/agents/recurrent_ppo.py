"""Proximal policy optimisation with a memory, for worlds whose observations do not tell all.

    play a rollout, with a memory that is empty where an episode begins → advantages by GAE
    → epochs × minibatches of whole sequences: clipped surrogate + value loss − entropy

A minibatch is the rollouts of some copies of the environment; each is gone through again from the memory with which it began.
The memory is a gated recurrent unit's, or whatever another `models.MemoryPolicy` remembers, as a transformer its KV cache.

Reference: Schulman et al. 2017, arXiv:1707.06347; Hausknecht & Stone 2015, arXiv:1507.06527, sec. 6, for the sequences.

Shapes: `T` time, `N` copies of the environment.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.agents import environment as env
from jaxrl4lm.agents import on_policy, ppo
from jaxrl4lm.agents.agent import Agent
from jaxrl4lm.agents.on_policy import Batch, State
from jaxrl4lm.agents.ppo import PPOConfig
from jaxrl4lm.models import MemoryPolicy, RecurrentPolicy
from jaxrl4lm.types import Array, InputError, Key, Metrics, Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RecurrentPPOConfig(PPOConfig):
    """Of PPO with a memory."""

    def check(self) -> None:
        """Raises InputError, naming the field, its value and the fix, where a number does not fit."""
        super().check()
        if self.environments % self.minibatches:
            more = -(-self.environments // self.minibatches) * self.minibatches
            raise InputError(
                f"environments {self.environments} is no multiple of the {self.minibatches} minibatches, "
                f"which are of whole sequences: give {more}"
            )


class Learner(NamedTuple):
    """An environment and the networks that learn to play it; static."""

    spec: env.Spec
    actor: MemoryPolicy
    """Its outputs are those that `spec.actions` reads."""
    critic: MemoryPolicy
    """One output, the value."""


class Memory(NamedTuple):
    """What the networks remember of the episodes under way; `extra` of the state."""

    actor: Any
    """`[N, ...]`, as `start` of the network gives it."""
    critic: Any
    """The same of the critic."""
    begins: Array
    """bool `[N]`: an episode begins with the next observation."""


class Sequences(NamedTuple):
    """What is learnt from."""

    batch: Batch
    """`[T, N, ...]`."""
    begins: Array
    """bool `[T, N]`: an episode begins here."""
    memory: Memory
    """Before the first observation."""


def make(
    environment: Any,
    params: Any,
    *,
    actor: MemoryPolicy | None = None,
    critic: MemoryPolicy | None = None,
) -> Agent:
    """PPO with a memory on an environment.

    Args:
      params: the environment's; only shapes, the action space and the time limit are read here.
      actor: with outputs that the actions of the environment read. None: a recurrent unit of width 64.
      critic: with one output. None: the same.
    Raises:
      InputError: if one has another number of outputs, or is made for other observations.
    """
    spec = env.describe(environment, params)
    actions = spec.actions
    learner = Learner(
        spec,
        actor or RecurrentPolicy(actions.outputs, spec.shape, gain=0.01, constants=actions.constants),
        critic or RecurrentPolicy(1, spec.shape),
    )
    check_policy(learner.actor, spec, actions.outputs + actions.constants, "actor")
    check_policy(learner.critic, spec, 1, "critic")

    def recall(known: Any, memory: Any, key: Key, observations: Array) -> tuple[Array, Any]:
        seen = on_policy.see_known(spec, known, observations)
        going_on = jnp.zeros(seen.shape[0], bool)
        outputs, memory = learner.actor.step(known["params"]["actor"], memory, seen, going_on)
        return actions.mode(outputs), memory

    def value(known: Any, observations: Array) -> Array:
        seen = on_policy.see_known(spec, known, observations)
        start = learner.critic.start(seen.shape[0]), seen, jnp.ones(seen.shape[0], bool)
        return learner.critic.step(known["params"]["critic"], *start)[0][..., 0]

    return Agent(
        name="recurrent-ppo",
        spec=spec,
        init=lambda key, config, params: init(key, config, learner, params),
        update=lambda state, config, params: update(state, config, learner, params),
        act=lambda known, key, observations: recall(
            known, learner.actor.start(observations.shape[0]), key, observations
        )[0],
        value=value,
        start=learner.actor.start,
        recall=recall,
    )


def check_policy(policy: MemoryPolicy, spec: env.Spec, outputs: int, name: str) -> None:
    """Raises InputError unless it is a policy with a memory that reads such observations and has so many outputs."""
    if missing := [each for each in ("init", "start", "step", "apply") if not hasattr(policy, each)]:
        raise InputError(
            f"the {name} has no {missing[0]}: give a models.MemoryPolicy, as models.RecurrentPolicy"
        )
    shape = getattr(policy, "shape", spec.shape)
    if tuple(shape) != tuple(spec.shape):
        raise InputError(f"the {name} reads observations {tuple(shape)}, here they are {spec.shape}")

    def act(key: Key) -> Array:
        start = policy.start(1), jnp.zeros((1, *spec.shape)), jnp.ones(1, bool)
        return policy.step(policy.init(key), *start)[0]

    on_policy.check_outputs(act, outputs, name)


def init(key: Key, config: RecurrentPPOConfig, learner: Learner, params: Any) -> State:
    """The state before the first update; `extra` is a `Memory`."""
    count = config.environments
    memory = Memory(learner.actor.start(count), learner.critic.start(count), jnp.ones(count, bool))
    key_actor, key_critic, key_place, key = jax.random.split(key, 4)
    networks: Params = {"actor": learner.actor.init(key_actor), "critic": learner.critic.init(key_critic)}
    state = on_policy.begin(key_place, key, networks, config, learner.spec, params)
    return state._replace(extra=memory)


def update(state: State, config: RecurrentPPOConfig, learner: Learner, params: Any) -> tuple[State, Metrics]:
    """A rollout, and what is learned from it."""
    now = state.step
    state, sequences, metrics = collect(state, config, learner, params)
    state, told = on_policy.improve(
        state, sequences, partial(loss, config=config, learner=learner), config, now, shuffle_sequences
    )
    return state, {**metrics, **told}


def collect(
    state: State, config: RecurrentPPOConfig, learner: Learner, params: Any
) -> tuple[State, Sequences, Metrics]:
    """Plays a rollout, and says how much better than expected each action was.

    A time limit bootstraps from the observation that it cut off, seen with the memory of the episode before it.
    """
    key, key_play = jax.random.split(state.key)
    before: Memory = state.extra

    def see(observations: Array) -> Array:
        return on_policy.see(learner.spec, state.statistics, observations, config.normalize_observations)

    def once(carry: tuple[env.Place, Any, Array], keys: tuple[Key, Key]) -> tuple[Any, env.Transition]:
        place, memory, begins = carry
        key_choose, keys_step = keys
        outputs, memory = learner.actor.step(state.params["actor"], memory, see(place.observation), begins)
        action = learner.spec.actions.sample(key_choose, outputs)
        place, step = env.step(keys_step, learner.spec, params, place, action, (outputs, begins))
        return (place, memory, step.terminated | step.truncated), step

    start = state.place, before.actor, before.begins
    keys = env.split_keys(key_play, config.rollout, config.environments)
    (place, memory, begins), steps = jax.lax.scan(once, start, keys)
    outputs, begun = steps.extra
    seen, after = see(steps.observation), see(steps.final_observation)
    critic = state.params["critic"]
    values, memories = learner.critic.apply(critic, before.critic, seen, begun)
    next_values, _ = jax.vmap(partial(learner.critic.step, critic))(memories, after, jnp.zeros_like(begun))
    last = jax.tree.map(lambda x: x[-1], memories)
    state = state._replace(place=place, extra=Memory(memory, last, begins), key=key)
    state, batch, metrics = on_policy.conclude(
        state,
        steps._replace(extra=outputs),
        seen,
        values[..., 0],
        next_values[..., 0],
        config,
        learner.spec,
    )
    return state, Sequences(batch, begun, before), metrics


def shuffle_sequences(key: Key, sequences: Sequences, minibatches: int) -> Sequences:
    """Whole sequences as minibatches, leaves `[minibatches, T, N / minibatches, ...]`, in random order."""
    order = jax.random.permutation(key, sequences.begins.shape[1])

    def divide(x: Array) -> Array:
        """`[..., N, ...]` of a time axis and copies: `[minibatches, T, N / minibatches, ...]`."""
        parts = x[:, order].reshape(x.shape[0], minibatches, -1, *x.shape[2:])
        return jnp.moveaxis(parts, 1, 0)

    return Sequences(
        batch=jax.tree.map(divide, sequences.batch),
        begins=divide(sequences.begins),
        memory=jax.tree.map(lambda x: divide(x[None])[:, 0], sequences.memory),
    )


def loss(
    networks: Params, part: Sequences, config: RecurrentPPOConfig, learner: Learner
) -> tuple[Array, Metrics]:
    """Clipped surrogate + c_v · value loss − c_H · entropy, and metrics; gradients flow through whole sequences."""
    seen = part.batch.observation
    outputs, _ = learner.actor.apply(networks["actor"], part.memory.actor, seen, part.begins)
    values, _ = learner.critic.apply(networks["critic"], part.memory.critic, seen, part.begins)
    policy = ppo.surrogate(part.batch, outputs, config, learner.spec)
    return on_policy.add_value_loss(policy, values[..., 0], part.batch, outputs, config, learner.spec)
