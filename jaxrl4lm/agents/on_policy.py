"""What on-policy agents share: a state, an actor and a critic, and rollouts with advantages."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl4lm import losses, returns
from jaxrl4lm.agents import environment as env
from jaxrl4lm.agents.agent import Agent
from jaxrl4lm.agents.config import AgentConfig, adam, check_minibatches, descend
from jaxrl4lm.agents.normalization import Statistics, add_batch, begin_statistics, scale, standardize
from jaxrl4lm.fields import number, size
from jaxrl4lm.models import Convolution, Network, Perceptron
from jaxrl4lm.types import Array, InputError, Key, Metrics, Params, ScalarLike


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OnPolicyConfig(AgentConfig):
    """Of agents that learn from what they have just done, and then forget it."""

    rollout: int = size(125)
    """Steps of each copy before an update."""
    normalize_observations: bool = size(False)
    """Standardise observations by running statistics."""
    normalize_rewards: bool = size(False)
    """Divide rewards by the running deviation of returns."""

    def steps_per_update(self) -> int:
        """Environment steps of an update, of all copies together."""
        return self.environments * self.rollout


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AdvantageConfig(OnPolicyConfig):
    """Of agents that say by GAE how much better than expected an action was."""

    gae_lambda: ScalarLike = number(0.95, least=0, most=1)
    """λ: from one-step advantages (0) to Monte-Carlo (1)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossConfig(OnPolicyConfig):
    """Of agents whose actor and critic go down one loss."""

    value_coef: ScalarLike = number(0.5, least=0)
    """Weight of the value loss."""
    entropy_coef: ScalarLike = number(0.0, least=0)
    """Price paid for a nat of entropy, against early certainty."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EpochConfig(AdvantageConfig):
    """Of agents that learn from a rollout more than once."""

    epochs: int = size(10)
    """Times that a rollout is learned from."""
    minibatches: int = size(4)
    """Parts of a rollout, an optimizer step each."""

    def check(self) -> None:
        """Raises InputError, naming the field, its value and the fix, where a number does not fit."""
        super().check()
        check_minibatches(self.steps_per_update(), self.minibatches)


class Learner(NamedTuple):
    """An environment and the networks that learn to play it; static."""

    spec: env.Spec
    actor: Network
    """Observations → outputs that `spec.actions` reads."""
    critic: Network
    """Observations → `[..., 1]`."""


class State(NamedTuple):
    """Everything that a run is at one moment; arrays only."""

    params: Params
    """`actor` and `critic`."""
    opt_state: optax.OptState
    place: env.Place
    statistics: Statistics
    """Of observations, which are standardised by those from before a rollout, in it and in learning from it."""
    discounted: Array
    """`[N]`: discounted sums of the rewards of the episodes so far."""
    return_statistics: Statistics
    """Of those sums."""
    extra: Any
    """What an algorithm carries besides."""
    step: Array
    """int32: updates done."""
    key: Key


class Batch(NamedTuple):
    """What is learnt from; leaves `[T, N, ...]`, or `[B, ...]` of a minibatch."""

    observation: Array
    """As networks see it."""
    action: Array
    outputs: Array
    """Of the actor that drew the action."""
    log_prob: Array
    advantage: Array
    target: Array
    """Of the value."""
    value: Array
    """Of the critic from before."""
    done: Array
    """The episode ended, or was cut."""


Update = Callable[[State, Any, Learner, Any], tuple[State, Metrics]]
"""(state, config, learner, params of the environment) → (state, metrics)."""


def make_agent(
    name: str,
    update: Update,
    environment: Any,
    params: Any,
    networks: tuple[Network | None, Network | None],
    start: Callable[..., State] | None = None,
) -> Agent:
    """An agent of this kind, judged by the likeliest actions.

    Args:
      params: the environment's; only shapes, the action space and the time limit are read here.
      networks: actor and critic. None: two small perceptrons, or convolutions of images `[H, W, C]`.
      start: makes the first state; `init` if None.
    """
    learner = make_learner(environment, params, *networks)
    actions = learner.spec.actions
    return Agent(
        name=name,
        spec=learner.spec,
        init=lambda key, config, params: (start or init)(key, config, learner, params),
        update=lambda state, config, params: update(state, config, learner, params),
        act=lambda known, key, observations: actions.mode(
            act(learner, known["params"], see_known(learner.spec, known, observations))
        ),
        value=lambda known, observations: value(
            learner, known["params"], see_known(learner.spec, known, observations)
        ),
    )


def make_learner(
    environment: Any, params: Any, actor: Network | None = None, critic: Network | None = None
) -> Learner:
    """The networks that are given, and small ones that fit in place of the others. Arguments as of `make_agent`."""
    spec = env.describe(environment, params)
    actions = spec.actions
    return Learner(
        spec,
        choose_network(spec, actions.outputs, actor, "actor", gain=0.01, constants=actions.constants),
        choose_network(spec, 1, critic, "critic"),
    )


def choose_network(
    spec: env.Spec, outputs: int, given: Network | None = None, name: str = "network", **settings: Any
) -> Network:
    """The network that is given; if None a convolution for images `[H, W, C]`, a perceptron for all else.

    Args:
      outputs: that it must have, besides `constants`.
      name: what it is, for the message.
      settings: of the network that is made.
    Raises:
      InputError: if the given one has another number of outputs.
    """
    if given is not None:
        check_network(given, jnp.zeros((1, *spec.shape)), outputs + settings.get("constants", 0), name)
        return given
    if len(spec.shape) == 3 and min(spec.shape[:2]) >= 3:
        return Convolution(outputs, **settings)
    return Perceptron(outputs, axes=len(spec.shape), **settings)


def check_network(network: Network, example: Array, outputs: int, name: str) -> None:
    """Raises InputError unless the network makes so many outputs of such observations."""
    check_outputs(lambda key: jnp.asarray(network.apply(network.init(key, example), example)), outputs, name)


def check_outputs(look: Callable[[Key], Array], outputs: int, name: str) -> None:
    """Raises InputError unless what a key gives has so many outputs: an action too many would be played all the same."""
    found = jax.eval_shape(look, jax.random.key(0)).shape[-1]
    if found != outputs:
        raise InputError(f"the {name} has {found} outputs, here it needs {outputs}")


def init(key: Key, config: OnPolicyConfig, learner: Learner, params: Any) -> State:
    """The state before the first update."""
    key_actor, key_critic, key_place, key = jax.random.split(key, 4)
    example = jnp.zeros((1, *learner.spec.shape))
    networks: Params = {
        "actor": learner.actor.init(key_actor, example).get("params", {}),
        "critic": learner.critic.init(key_critic, example).get("params", {}),
    }
    return begin(key_place, key, networks, config, learner.spec, params)


def begin(
    key_place: Key, key: Key, networks: Params, config: OnPolicyConfig, spec: env.Spec, params: Any
) -> State:
    """The state before the first update of those networks.

    Args:
      key_place: draws where the copies of the environment begin.
      key: of the run.
    """
    place = env.begin(key_place, spec, params, config.environments)
    statistics = begin_statistics(spec.shape)
    if config.normalize_observations:
        statistics = add_batch(statistics, spec.encode(place.observation))
    return State(
        params=networks,
        opt_state=adam(config).init(networks),
        place=place,
        statistics=statistics,
        discounted=jnp.zeros(config.environments),
        return_statistics=begin_statistics(()),
        extra=(),
        step=jnp.int32(0),
        key=key,
    )


def see(spec: env.Spec, statistics: Statistics, observations: Array, normalize: bool) -> Array:
    """Observations as networks see them."""
    seen = spec.encode(observations)
    return standardize(statistics, seen) if normalize else seen


def act(learner: Learner, params: Params, seen: Array) -> Array:
    """What the actor says of the actions."""
    return jnp.asarray(learner.actor.apply({"params": params["actor"]}, seen))


def value(learner: Learner, params: Params, seen: Array) -> Array:
    """What the critic expects, `[...]`."""
    return jnp.asarray(learner.critic.apply({"params": params["critic"]}, seen))[..., 0]


def see_known(spec: env.Spec, known: Any, observations: Array) -> Array:
    """Observations as networks see them, by what is known of a state.

    Statistics to which nothing was added standardise nothing.
    """
    seen, statistics = spec.encode(observations), known["statistics"]
    return jnp.where(statistics.count > 1, standardize(statistics, seen), seen)


Estimator = Callable[..., tuple[Array, Array]]
"""(rewards, values, next values, terminated, truncated, config) → advantages and targets of the values, `[T, N]`."""


def generalized(
    rewards: Array, values: Array, next_values: Array, terminated: Array, truncated: Array, config: Any
) -> tuple[Array, Array]:
    """GAE with `gae_lambda`."""
    return returns.generalized_advantage_estimation(
        rewards,
        values,
        next_values,
        terminated,
        truncated,
        discount=config.discount,
        gae_lambda=config.gae_lambda,
    )


def monte_carlo(
    rewards: Array, values: Array, next_values: Array, terminated: Array, truncated: Array, config: Any
) -> tuple[Array, Array]:
    """G − V, G the discounted sum of all rewards up to the end; where it is cut, a value stands for the rest."""
    targets = returns.discounted_returns(
        rewards, terminated, truncated, next_values, discount=config.discount
    )
    return targets - values, targets


def n_step(n: int) -> Estimator:
    """n rewards, then a value; n = 1 is the advantage r + γV(s′) − V(s)."""

    def estimate(
        rewards: Array, values: Array, next_values: Array, terminated: Array, truncated: Array, config: Any
    ) -> tuple[Array, Array]:
        targets = returns.n_step_returns(
            rewards, values, next_values, terminated, truncated, n=n, discount=config.discount
        )
        return targets - values, targets

    return estimate


def collect(
    state: State,
    config: OnPolicyConfig,
    learner: Learner,
    params: Any,
    estimate: Estimator = generalized,
    choose: env.Choose | None = None,
) -> tuple[State, Batch, Metrics]:
    """Plays a rollout, and says how much better than expected each action was.

    The critic is asked once, for the whole rollout. A time limit bootstraps from the observation that it cut off.

    Args:
      choose: decides what is played; it also gives outputs of which the action was drawn. None: the actor.
    """
    key, key_play = jax.random.split(state.key)
    normalize = config.normalize_observations

    def ask_actor(key: Key, place: env.Place) -> tuple[Array, Array]:
        seen = see(learner.spec, state.statistics, place.observation, normalize)
        outputs = act(learner, state.params, seen)
        return learner.spec.actions.sample(key, outputs), outputs

    place, steps = env.play(key_play, learner.spec, params, state.place, choose or ask_actor, config.rollout)
    seen, after = (
        see(learner.spec, state.statistics, x, normalize)
        for x in (steps.observation, steps.final_observation)
    )
    values, next_values = value(learner, state.params, seen), value(learner, state.params, after)
    state = state._replace(place=place, key=key)
    return conclude(state, steps, seen, values, next_values, config, learner.spec, estimate)


def conclude(
    state: State,
    steps: env.Transition,
    seen: Array,
    values: Array,
    next_values: Array,
    config: OnPolicyConfig,
    spec: env.Spec,
    estimate: Estimator = generalized,
) -> tuple[State, Batch, Metrics]:
    """What is learnt from a rollout that was just played, and the state after it but for the networks.

    Args:
      state: after the rollout, with the statistics from before it.
      steps: the rollout `[T, N, ...]`; `extra` is what the actor said.
      seen: its observations as networks see them.
      values: of the observations.
      next_values: of what followed, before any reset.
    """
    rewards, discounted, return_statistics = _scale_rewards(state, steps, config)
    advantages, targets = estimate(rewards, values, next_values, steps.terminated, steps.truncated, config)
    statistics = state.statistics
    if config.normalize_observations:
        statistics = add_batch(statistics, spec.encode(steps.observation))
    batch = Batch(
        observation=seen,
        action=steps.action,
        outputs=steps.extra,
        log_prob=spec.actions.log_prob(steps.extra, steps.action),
        advantage=advantages,
        target=targets,
        value=values,
        done=steps.terminated | steps.truncated,
    )
    state = state._replace(
        statistics=statistics,
        discounted=discounted,
        return_statistics=return_statistics,
        step=state.step + 1,
    )
    return state, batch, {"return": jnp.nanmean(state.place.episodes.last), "reward": steps.reward.mean()}


def _scale_rewards(
    state: State, steps: env.Transition, config: OnPolicyConfig
) -> tuple[Array, Array, Statistics]:
    """(rewards to learn from, discounted sums after them, statistics of those sums)."""
    if not config.normalize_rewards:
        return steps.reward, state.discounted, state.return_statistics

    def add(total: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, done = at
        total = total * config.discount + reward
        return jnp.where(done, 0, total), total

    done = steps.terminated | steps.truncated
    discounted, sums = jax.lax.scan(add, state.discounted, (steps.reward, done))
    statistics = add_batch(state.return_statistics, sums)
    return scale(statistics, steps.reward), discounted, statistics


def shuffle(key: Key, batch: Any, minibatches: int) -> Any:
    """A rollout `[T, N, ...]` as minibatches `[minibatches, B, ...]`, in random order.

    Raises:
      InputError: if they do not divide it.
    """
    total = jax.tree.leaves(batch)[0].shape[0] * jax.tree.leaves(batch)[0].shape[1]
    check_minibatches(total, minibatches)
    order = jax.random.permutation(key, total)
    return jax.tree.map(
        lambda x: x.reshape(total, *x.shape[2:])[order].reshape(minibatches, -1, *x.shape[2:]), batch
    )


def add_critic(
    policy: Array, networks: Params, part: Batch, outputs: Array, config: LossConfig, learner: Learner
) -> tuple[Array, Metrics]:
    """The loss of the policy + c_v · value loss − c_H · entropy, and metrics.

    Args:
      outputs: of the actor now.
    """
    values = value(learner, networks, part.observation)
    return add_value_loss(policy, values, part, outputs, config, learner.spec)


def add_value_loss(
    policy: Array, values: Array, part: Batch, outputs: Array, config: LossConfig, spec: env.Spec
) -> tuple[Array, Metrics]:
    """The same, of values that are known."""
    critic = losses.squared_value(values, part.target).mean()
    entropy = spec.actions.entropy(outputs).mean()
    total = policy + config.value_coef * critic - config.entropy_coef * entropy
    kl = losses.kl.k3(part.log_prob, spec.actions.log_prob(outputs, part.action)).mean()
    return total, {"loss/policy": policy, "loss/value": critic, "entropy": entropy, "kl": kl}


def improve(
    state: Any,
    batch: Any,
    loss: Callable[[Params, Any], tuple[Array, Metrics]],
    config: Any,
    update: Array,
    divide: Callable[[Key, Any, int], Any] = shuffle,
) -> tuple[Any, Metrics]:
    """A state after learning from a rollout, and mean metrics. Arguments as of `learn_in_epochs`."""
    key, key_learn = jax.random.split(state.key)
    start = state.params, state.opt_state
    networks, opt_state, told = learn_in_epochs(key_learn, start, batch, loss, config, update, divide)
    return state._replace(params=networks, opt_state=opt_state, key=key), told


def learn_in_epochs(
    key: Key,
    start: tuple[Params, optax.OptState],
    batch: Any,
    loss: Callable[[Params, Any], tuple[Array, Metrics]],
    config: Any,
    update: Array,
    divide: Callable[[Key, Any, int], Any] = shuffle,
) -> tuple[Params, optax.OptState, Metrics]:
    """`config.epochs` times over a rollout, in `config.minibatches` parts, an optimizer step each.

    Args:
      start: what learns, and the optimizer's state.
      loss: (what learns, minibatch) → (a number, metrics).
      config: of an agent, with `epochs` and `minibatches`.
      update: number of the update, which decides the learning rate.
      divide: (key, rollout, how many) → minibatches.
    Returns:
      What has learnt, the optimizer's state, mean metrics.
    """

    def learn(carry: tuple[Params, Any], part: Any) -> tuple[tuple[Params, Any], Metrics]:
        networks, opt_state = carry
        grads, told = jax.grad(loss, has_aux=True)(networks, part)
        return descend(config, update, grads, opt_state, networks), told

    def epoch(carry: tuple[Params, Any], key: Key) -> tuple[tuple[Params, Any], Metrics]:
        return jax.lax.scan(learn, carry, divide(key, batch, config.minibatches))

    (networks, opt_state), told = jax.lax.scan(epoch, start, jax.random.split(key, config.epochs))
    return networks, opt_state, {name: x.mean() for name, x in told.items()}
