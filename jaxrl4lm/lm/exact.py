"""A language model small enough to be known: all completions with their probabilities, and what is best among them.

A policy is read once, as logits of every prefix of a `envs.token_tree.TokenTree`; all else is arithmetic on that table. It
jits, vmaps, and has exact gradients:

    tree = token_tree.grow(task, prompts)
    logits, ref_logits = (exact.read_logits(policy, p, tree) for p in (params, ref_params))
    exact.evaluate(tree, logits, ref_logits, beta=0.1).gap

Shapes: `G` prompts, `S` prefixes, `L` texts of full length, `N` completions, `T` tokens, `V` ids.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.envs.token_tree import TokenTree
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.types import Array, Params, ScalarLike


class Answers(NamedTuple):
    """Of a policy, means over the prompts; scalars."""

    reward: Array
    """J = E_π[R]."""
    kl: Array
    """KL(π‖π_ref) of completions, in nats."""
    forward_kl: Array
    """KL(π_ref‖π), in nats."""
    value: Array
    """J − β KL(π‖π_ref)."""
    best: Array
    """The largest value there is, β log Z = β log E_{π_ref}[exp(R/β)]."""
    gap: Array
    """KL(π‖π*), in nats: what the value lacks of the best, over β."""


def read_logits(
    policy: LanguagePolicy, params: Params, tree: TokenTree, temperature: ScalarLike = 1.0
) -> Array:
    """Logits over temperature `[G, S, V]` of the token after each prefix, by one pass over the longest prefixes."""
    depth = tree.texts.shape[1] - 1
    return policy.logits(params, _read_hidden(policy, params, tree, depth)) / temperature


def read_values(policy: LanguagePolicy, params: Params, tree: TokenTree) -> Array:
    """The critic's values `[G, S + L]` of all texts, those of full length included."""
    return policy.values(params, _read_hidden(policy, params, tree, tree.texts.shape[1]))


def _read_hidden(policy: LanguagePolicy, params: Params, tree: TokenTree, depth: int) -> Array:
    """Hidden states `[G, texts, D]` after the texts of at most `depth` tokens: those of the longest have all others in them."""
    G, sizes = tree.rewards.shape[0], tree.level_sizes[: depth + 1]
    rows = np.concatenate([np.arange(size) * (sizes[-1] // size) for size in sizes])
    places = np.repeat(np.arange(depth + 1), sizes)
    longest = tree.texts[sum(sizes) - sizes[-1] : sum(sizes), :depth]
    longest = jnp.tile(jnp.pad(longest, ((0, 0), (0, 1))), (G, 1))  # a last token, which nothing reads
    hidden = policy.completion_hidden(params, tree.prompts.tokens, tree.prompts.mask, longest)
    return hidden.reshape(G, sizes[-1], *hidden.shape[1:])[:, rows, places]


def token_log_probs(tree: TokenTree, logits: Array) -> Array:
    """Log-probabilities `[G, N, T]` of the tokens of all completions, from logits `[G, S, V]`; 0 where masked."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    return jnp.where(tree.mask[None], log_probs[:, tree.states, tree.completions], 0.0)


def log_probs(tree: TokenTree, logits: Array) -> Array:
    """Log-probabilities `[G, N]` of all completions."""
    return token_log_probs(tree, logits).sum(-1)


def tilt(tree: TokenTree, ref_log_probs: Array, beta: ScalarLike) -> tuple[Array, Array]:
    """The optimum π* = π_ref exp(R/β) / Z of J − β KL(π‖π_ref).

    Args:
      ref_log_probs: log π_ref `[G, N]`.
      beta: β > 0; may be traced.
    Returns:
      log π* `[G, N]`, and log Z `[G]`.
    Reference: Rafailov et al. 2023, arXiv:2305.18290, eq. 4.
    """
    tilted = ref_log_probs + tree.token_rewards().sum(-1) / beta
    log_z = jax.nn.logsumexp(tilted, axis=-1)
    return tilted - log_z[:, None], log_z


def divergence(log_p: Array, log_q: Array) -> Array:
    """KL(p‖q) in nats, the mean over the prompts, of log-probabilities `[G, N]`."""
    possible = log_p > -jnp.inf
    return jnp.where(possible, jnp.exp(log_p) * (jnp.where(possible, log_p, 0.0) - log_q), 0.0).sum(-1).mean()


def evaluate(tree: TokenTree, logits: Array, ref_logits: Array, beta: ScalarLike) -> Answers:
    """Everything that is asked of a policy, of its logits `[G, S, V]` and those of the reference. `jax.grad` is exact."""
    return compare(tree, log_probs(tree, logits), log_probs(tree, ref_logits), beta)


def compare(tree: TokenTree, log_p: Array, ref_log_probs: Array, beta: ScalarLike) -> Answers:
    """`evaluate` of a distribution of completions, given by its logarithm `[G, N]`."""
    best, log_z = tilt(tree, ref_log_probs, beta)
    reward = (jnp.exp(log_p) * tree.token_rewards().sum(-1)).sum(-1).mean()
    kl = divergence(log_p, ref_log_probs)
    return Answers(
        reward=reward,
        kl=kl,
        forward_kl=divergence(ref_log_probs, log_p),
        value=reward - beta * kl,
        best=beta * log_z.mean(),
        gap=divergence(log_p, best),
    )


def best_of(tree: TokenTree, log_p: Array, n: int) -> Array:
    """log π of the best of n completions drawn from p, `[G, N]`: of equal rewards the first drawn is taken.

    Reference: Beirami et al. 2024, arXiv:2401.01879, lemma 1.
    """

    def of_prompt(log_p: Array, scores: Array) -> Array:
        order = jnp.argsort(scores)
        below = jnp.pad(jnp.cumsum(jnp.exp(log_p)[order]), (1, 0))  # the mass of the first so many
        less, at_most = (
            below[jnp.searchsorted(scores[order], scores, side=side)] for side in ("left", "right")
        )
        # Of what its level gets, each completion has its share.
        return log_p + jnp.log(at_most**n - less**n) - jnp.log(at_most - less)

    return jax.vmap(of_prompt)(log_p, tree.token_rewards().sum(-1))
