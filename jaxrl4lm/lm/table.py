"""A language model that is a table: a row of logits and a value for each text, after one prompt.

It has as many parameters as there are choices, so nothing that a transformer could learn is beyond it.
"""

from typing import NamedTuple

import jax.numpy as jnp

from jaxrl4lm import distributions
from jaxrl4lm.envs.token_tree import TokenTree
from jaxrl4lm.types import Array, Key, Params, ScalarLike


class Said(NamedTuple):
    """Of each token, in nats."""

    log_probs: Array
    entropies: Array


class TablePolicy(NamedTuple):
    """A policy of `{"logits": [S, V], "values": [S + L]}`, for what scores given completions.

    It has the methods of `models.LanguagePolicy` that scoring calls, and does not generate.
    """

    tree: TokenTree

    def init(self, key: Key) -> Params:
        """Logits and values of 0."""
        del key
        shapes = {"logits": self.tree.successors.shape, "values": self.tree.texts.shape[:1]}
        return {name: jnp.zeros(shape) for name, shape in shapes.items()}

    def completion_hidden(
        self, params: Params, prompts: Array, prompt_mask: Array, completions: Array
    ) -> Array:
        """Logits and the value `[B, T, V + 1]` before each token."""
        del prompts, prompt_mask
        before = [jnp.zeros(completions.shape[:1], jnp.int32)]
        for column in completions.T[:-1]:
            following = self.tree.successors[jnp.minimum(before[-1], len(self.tree.successors) - 1), column]
            before.append(jnp.maximum(following, 0))  # what follows an end is masked
        states = jnp.stack(before, axis=1)
        rest = ((0, len(self.tree.texts) - len(self.tree.successors)), (0, 0))  # nothing follows a full text
        logits = jnp.pad(params["logits"], rest)
        return jnp.concatenate([logits, params["values"][:, None]], axis=1)[states]

    def logits(self, params: Params, hidden: Array) -> Array:
        """The logits `[..., V]` in hidden states."""
        del params
        return hidden[..., :-1]

    def values(self, params: Params, hidden: Array) -> Array:
        """The values `[...]` in hidden states."""
        del params
        return hidden[..., -1]

    def token_log_probs(
        self, params: Params, hidden: Array, tokens: Array, *, temperature: ScalarLike = 1.0
    ) -> Said:
        """As of `LanguagePolicy`."""
        logits = self.logits(params, hidden) / temperature
        return Said(
            distributions.categorical_log_prob(logits, tokens), distributions.categorical_entropy(logits)
        )
