"""A critic of its own: a second transformer with a head, beside the policy, where values do not share the policy's trunk.

What learns is then {"policy": what learns of the policy, "critic": {"backbone": ..., "head": ...}}.

Shapes: `G` prompts, `P` prompt tokens, `B` completions, `T` completion tokens, `D` width.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.lm.rollouts import Rollout
from jaxrl4lm.lm.trainable import Trainable
from jaxrl4lm.models import Head, LanguagePolicy, token_outputs
from jaxrl4lm.types import Array, Key, Params, ScalarLike


class Critic(NamedTuple):
    """A transformer that reads values, and where it begins."""

    policy: LanguagePolicy
    """The transformer."""
    start: Callable[[Params], Params]
    """(parameters of the policy) → its own `backbone` and `head` before the first update."""

    def read(self, params: Params, rollout: Rollout) -> tuple[Array, Array]:
        """Values `[B, T]` of the states before the tokens, and `[B]` of those after a truncated completion, else 0."""
        G, P = rollout.prompts.shape
        copies = rollout.completions.shape[0] // G
        prompts, prompt_mask = (jnp.repeat(x, copies, 0) for x in (rollout.prompts, rollout.prompt_mask))
        tokens = jnp.concatenate([prompts, rollout.completions], 1)
        mask = jnp.concatenate([prompt_mask, rollout.mask], 1)
        hidden = self.policy.hidden(params["backbone"], tokens, mask)
        values = token_outputs(params["head"], hidden[:, P - 1 :])[..., 0]
        return values[:, :-1], jnp.where(rollout.truncated, values[:, -1], 0.0)

    def judge(self, params: Params, rollout: Rollout) -> Rollout:
        """The rollout with this critic's values."""
        values, final_values = self.read(params, rollout)
        return rollout._replace(values=values, final_values=final_values)


def copy_policy(policy: LanguagePolicy) -> Critic:
    """A critic that begins as a copy of the policy and its value head, which is 0 where none was learned."""
    return Critic(
        policy, lambda params: {"backbone": params, "head": Head(params["value_head"][:, None], None)}
    )


def begin_with_rewards(
    policy: LanguagePolicy,
    load: Callable[[], tuple[Params, Head]],
    *,
    mean: ScalarLike = 0.0,
    deviation: ScalarLike = 1.0,
) -> Critic:
    """A critic that begins as a reward model: what it says of a prefix is what the model would, were it the whole text.

    Args:
      policy: the reward model's backbone, a decoder.
      load: gives its parameters and its head of one output; called when a run begins.
      mean, deviation: by which its rewards are normalised.
    """

    def start(params: Params) -> Params:
        del params
        with jax.ensure_compile_time_eval():  # files are read also where only shapes are asked for
            backbone, head = load()
        bias = jnp.zeros(1) if head.bias is None else head.bias
        normal = head._replace(kernel=head.kernel / deviation, bias=(bias - mean) / deviation)
        return {"backbone": backbone, "head": normal}

    return Critic(policy, start)


def beside_critic(trainable: Trainable, critic: Critic) -> Trainable:
    """The same of the policy, where the whole critic learns, too."""

    def split(key: Key, params: Params) -> tuple[Params, Params]:
        learning, frozen = trainable.split(key, params)
        return {"policy": learning, "critic": critic.start(params)}, frozen

    save = trainable.save
    return trainable._replace(
        split=split,
        join=lambda learning, frozen, key: trainable.join(learning["policy"], frozen, key),
        merge=lambda learning, frozen: trainable.merge(learning["policy"], frozen),
        refer=lambda learning: {"policy": trainable.refer(learning["policy"])},
        save=save and (lambda folder, policy, learning: save(folder, policy, learning["policy"])),
    )
