"""Trust-region policy optimisation.

    play a rollout → advantages by GAE → natural gradient, line search within KL ≤ δ → the critic by Adam

Reference: Schulman et al. 2015, arXiv:1502.05477.
"""

from dataclasses import dataclass
from typing import Any

import jax

from jaxrl4lm import losses, reduce
from jaxrl4lm.agents import on_policy
from jaxrl4lm.agents.agent import Agent
from jaxrl4lm.agents.config import adam
from jaxrl4lm.agents.on_policy import Batch, EpochConfig, Learner, State
from jaxrl4lm.fields import number, size
from jaxrl4lm.models import Network
from jaxrl4lm.types import Array, Key, Metrics, Params, ScalarLike


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TRPOConfig(EpochConfig):
    """Of TRPO. The learning rate, epochs and minibatches are those of the critic."""

    trust_region: ScalarLike = number(0.01, above=0)
    """δ: nats that an update may move the policy, on average over states."""
    damping: ScalarLike = number(0.1, least=0)
    """Added to the diagonal of the Fisher information."""
    cg_iterations: int = size(10)
    """Of the conjugate gradient."""


def make(
    environment: Any, params: Any, *, actor: Network | None = None, critic: Network | None = None
) -> Agent:
    """TRPO on an environment. Arguments as of `on_policy.make_agent`."""
    return on_policy.make_agent("trpo", update, environment, params, (actor, critic), start=init)


def init(key: Key, config: TRPOConfig, learner: Learner, params: Any) -> State:
    """The state before the first update; only the critic has an optimizer."""
    state = on_policy.init(key, config, learner, params)
    return state._replace(opt_state=adam(config).init(state.params["critic"]))


def update(state: State, config: TRPOConfig, learner: Learner, params: Any) -> tuple[State, Metrics]:
    """A rollout, a step of the actor within the trust region, and epochs of the critic."""
    now = state.step
    state, batch, metrics = on_policy.collect(state, config, learner, params)
    key, key_learn = jax.random.split(state.key)
    actor, info = improve(state.params["actor"], batch, config, learner)

    def loss_of_critic(critic: Params, part: Batch) -> tuple[Array, Metrics]:
        expected = on_policy.value(learner, {"critic": critic}, part.observation)
        loss = losses.squared_value(expected, part.target).mean()
        return loss, {"loss/value": loss}

    critic, opt_state, told = on_policy.learn_in_epochs(
        key_learn, (state.params["critic"], state.opt_state), batch, loss_of_critic, config, now
    )
    state = state._replace(params={"actor": actor, "critic": critic}, opt_state=opt_state, key=key)
    return state, {**metrics, **told, "kl": info.kl, "accepted": info.accepted.astype(float)}


def improve(
    actor: Params, batch: Batch, config: TRPOConfig, learner: Learner
) -> tuple[Params, losses.trpo.StepInfo]:
    """The actor after one step, or the same where none was accepted."""
    actions, advantages = learner.spec.actions, reduce.whiten(batch.advantage)

    def look(actor: Params) -> Array:
        return on_policy.act(learner, {"actor": actor}, batch.observation)

    def surrogate(actor: Params) -> Array:
        log_probs = actions.log_prob(look(actor), batch.action)
        return losses.trpo.surrogate(log_probs, batch.log_prob, advantages).mean()

    return losses.trpo.step(
        surrogate,
        lambda actor: actions.kl(batch.outputs, look(actor)).mean(),
        actor,
        max_kl=config.trust_region,
        damping=config.damping,
        cg_iterations=config.cg_iterations,
    )
