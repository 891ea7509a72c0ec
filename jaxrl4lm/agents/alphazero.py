"""AlphaZero: a search through the environment itself decides what to play, and two networks learn from the search.

    a tree of `simulations` steps, guided by the policy and valued by the critic → play the action that it proposes
    → λ-returns of what was played → epochs × minibatches of KL(search ‖ policy) + value loss

The search knows the rules: it steps copies of the environment from where each is. What follows an end is worth nothing; what
follows a time limit is worth what the critic says of the observation that it cut off, and is not searched. Chance falls once
for each action of a tree: plans are exact where nothing is left to chance, and count on the luck they drew where something is.

The agent is judged by the likeliest actions of its policy alone, as its siblings are: they need no environment to search in.
The metric `return` is of episodes that were played by the search.

Reference: Silver et al. 2018, arXiv:1712.01815; the search: Danihelka et al. 2022, "Policy improvement by planning with Gumbel",
as `mctx` has it. As there, and unlike Silver et al., what was played is learnt from at once and then forgotten.

Shapes: `N` copies of the environment, `A` actions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.agents import environment as env
from jaxrl4lm.agents import on_policy
from jaxrl4lm.agents.agent import Agent
from jaxrl4lm.agents.normalization import scale
from jaxrl4lm.agents.on_policy import Batch, EpochConfig, Learner, LossConfig, State
from jaxrl4lm.fields import number, size
from jaxrl4lm.models import Network
from jaxrl4lm.types import Array, InputError, Key, Metrics, Params, ScalarLike


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AlphaZeroConfig(EpochConfig, LossConfig):
    """Of AlphaZero."""

    simulations: int = size(16)
    """Steps of the environment that are searched before each step that is played."""
    gumbel_scale: ScalarLike = number(1.0, least=0)
    """How noisy the choice of an action is: 0 plays what the search finds best. The search by PUCT does not read it."""


class Node(NamedTuple):
    """A place in a search tree, `[N]`."""

    place: env.Place
    over: Array
    """bool: the episode has ended, or was cut; nothing is played from here, and `place` is that of another episode."""
    value: Array
    """What is expected from here: 0 after an end."""


Search = Callable[[Key, Any, Any, AlphaZeroConfig], Any]
"""(key, `mctx.RootFnOutput`, its recurrent function, config) → `mctx.PolicyOutput`."""


def gumbel(key: Key, root: Any, expand: Any, config: AlphaZeroConfig) -> Any:
    """Sequential halving of actions drawn without replacement: it improves the policy, however few the simulations.

    Reference: Danihelka et al. 2022, "Policy improvement by planning with Gumbel", alg. 2.
    """
    return import_mctx().gumbel_muzero_policy(
        (), key, root, expand, config.simulations, gumbel_scale=config.gumbel_scale
    )


def puct(
    key: Key,
    root: Any,
    expand: Any,
    config: AlphaZeroConfig,
    *,
    dirichlet_fraction: ScalarLike = 0.25,
    dirichlet_alpha: ScalarLike = 0.3,
    temperature: ScalarLike = 1.0,
) -> Any:
    """The search of AlphaZero itself: a bound on each value, Dirichlet noise at the root, actions as often as they were visited.

    Args:
      dirichlet_fraction: the share of noise in the root's policy; 0: none.
      dirichlet_alpha: its concentration.
      temperature: an action is drawn by visits^(1 / temperature).
    Reference: Silver et al. 2018, arXiv:1712.01815, methods.
    """
    return import_mctx().muzero_policy(
        (),
        key,
        root,
        expand,
        config.simulations,
        dirichlet_fraction=dirichlet_fraction,
        dirichlet_alpha=dirichlet_alpha,
        temperature=temperature,
    )


def import_mctx() -> Any:
    """The package `mctx`, which only this agent needs.

    Raises:
      InputError: if it is not installed.
    """
    try:
        import mctx
    except ImportError:
        raise InputError("the search needs the package mctx: pip install 'jaxrl4lm[planning]'") from None
    return mctx


def make(
    environment: Any,
    params: Any,
    *,
    actor: Network | None = None,
    critic: Network | None = None,
    search: Search = gumbel,
) -> Agent:
    """AlphaZero on an environment with numbered actions. Other arguments as of `on_policy.make_agent`.

    Args:
      search: `gumbel`, `puct`, or one of your own.
    Raises:
      InputError: if the actions are vectors, or mctx is not installed.
    """
    import_mctx()
    agent = on_policy.make_agent(
        "alphazero", partial(update, search=search), environment, params, (actor, critic)
    )
    if not agent.spec.actions.discrete:
        raise InputError(f"the actions of {environment.name} are vectors: the search needs numbers")
    return agent


def update(
    state: State, config: AlphaZeroConfig, learner: Learner, params: Any, search: Search = gumbel
) -> tuple[State, Metrics]:
    """A rollout that the search plays, and what is learned from it."""
    now = state.step

    def choose(key: Key, place: env.Place) -> tuple[Array, Array]:
        found = plan(key, place, state, config, learner, params, search)
        return found.action, jnp.log(found.action_weights)

    state, batch, metrics = on_policy.collect(state, config, learner, params, choose=choose)
    state, told = on_policy.improve(state, batch, partial(loss, config=config, learner=learner), config, now)
    return state, {**metrics, **told}


def plan(
    key: Key,
    place: env.Place,
    state: State,
    config: AlphaZeroConfig,
    learner: Learner,
    params: Any,
    search: Search = gumbel,
) -> Any:
    """A search from where each copy of the environment is, by the networks of a state.

    Args:
      place: where they are, which need not be where `state` is.
      params: of the environment.
    Returns:
      `mctx.PolicyOutput`: `action` `[N]`, the `action_weights` `[N, A]` that the policy learns, and `search_tree`.
    """
    mctx = import_mctx()

    def look(observations: Array) -> tuple[Array, Array]:
        seen = on_policy.see(learner.spec, state.statistics, observations, config.normalize_observations)
        return on_policy.act(learner, state.params, seen), on_policy.value(learner, state.params, seen)

    def expand(_: tuple, key: Key, action: Array, node: Node) -> tuple[Any, Node]:
        keys = jax.random.split(key, action.shape[0])
        following, step = env.step(keys, learner.spec, params, node.place, action)
        logits, values = look(step.final_observation)
        values = jnp.where(node.over, node.value, jnp.where(step.terminated, 0, values))
        reward = scale(state.return_statistics, step.reward) if config.normalize_rewards else step.reward
        output = mctx.RecurrentFnOutput(
            reward=jnp.where(node.over, 0, reward),
            discount=jnp.where(node.over, 1, config.discount),
            prior_logits=logits,
            value=values,
        )
        return output, Node(following, node.over | step.terminated | step.truncated, values)

    logits, values = look(place.observation)
    start = Node(place, jnp.zeros(values.shape, bool), values)
    root = mctx.RootFnOutput(prior_logits=logits, value=values, embedding=start)
    return search(key, root, expand, config)


def loss(networks: Params, part: Batch, config: AlphaZeroConfig, learner: Learner) -> tuple[Array, Metrics]:
    """KL(search ‖ policy) + c_v · value loss − c_H · entropy, and metrics. The gradient of the first is that of cross-entropy."""
    outputs = on_policy.act(learner, networks, part.observation)
    policy = learner.spec.actions.kl(part.outputs, outputs).mean()
    total, told = on_policy.add_critic(policy, networks, part, outputs, config, learner)
    # What is played is not drawn from the weights of the search: an estimate of its KL by samples would be of nothing.
    return total, {**told, "kl": policy}
