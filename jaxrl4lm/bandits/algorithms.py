"""Bandit algorithms as pure (init, select, update). Hyper-parameters may be traced; ties go to the first arm.

Arms are the first axis of every array and R independent runs the last, so that the short loops over arms
vectorise over runs. The chosen arm is updated by a mask over all K, not by a scatter: K is small, and masks
vectorise too.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl4lm.bandits import noise as draw
from jaxrl4lm.types import Array, Key, ScalarLike


def uniform_noise(key: Key, num_steps: int, num_arms: int, num_runs: int) -> Array:
    """One uniform number a decision, `[T, R]`."""
    return draw.uniform(key, (num_steps, num_runs))


def normal_noise(key: Key, num_steps: int, num_arms: int, num_runs: int) -> Array:
    """K normal numbers a decision, `[T, K, R]`."""
    return draw.normal(key, (num_steps, num_arms, num_runs))


def keys_as_noise(key: Key, num_steps: int, num_arms: int, num_runs: int) -> Key:
    """One key a step, `[T]`, for draws whose distribution depends on the state."""
    return jax.random.split(key, num_steps)


class Algorithm(NamedTuple):
    """A learner. Its randomness comes in as `noise`, so that a whole run's can be drawn at once."""

    init: Callable[[int, int], Any]
    """(K, R) → state."""
    select: Callable[[Any, Any, Array | None], Array]
    """(state, noise of one step, context `[d, R]`) → arms `[R]`."""
    update: Callable[[Any, Array, Array, Array | None], Any]
    """(state, arms `[R]`, rewards `[R]`, context) → state."""
    noise: Callable[[Key, int, int, int], Any] = uniform_noise
    """(key, T, K, R) → what `select` reads, with T on the first axis."""


class Estimates(NamedTuple):
    """What value-based algorithms remember, `[K, R]` each."""

    values: Array
    counts: Array


def epsilon_greedy(
    epsilon: ScalarLike = 0.1, *, step_size: ScalarLike | None = None, initial_value: ScalarLike = 0.0
) -> Algorithm:
    """The best estimate, or with probability ε any arm. ε = 0 with a high `initial_value` is optimism.

    Args:
      epsilon: ε in [0, 1].
      step_size: constant α for worlds that drift; None averages the samples (1/N).
      initial_value: Q₁.
    Reference: Sutton & Barto 2018, sections 2.4 to 2.6.
    """

    def select(state: Estimates, uniform: Array, context: Array | None) -> Array:
        # One number decides both whether to explore and where.
        num_arms = state.values.shape[0]
        explores = jnp.asarray(epsilon)
        scaled = jnp.where(explores > 0, uniform / jnp.where(explores > 0, explores, 1), 1)
        anywhere = jnp.minimum((scaled * num_arms).astype(jnp.int32), num_arms - 1)
        return jnp.where(uniform < explores, anywhere, first_argmax(state.values))

    return Algorithm(lambda k, runs: _estimates(k, runs, initial_value), select, _learner(step_size))


def softmax(temperature: ScalarLike = 0.2, *, step_size: ScalarLike | None = None) -> Algorithm:
    """Boltzmann exploration, π(a) ∝ exp(Q(a)/τ). Reference: Sutton & Barto 1998, section 2.3."""

    def select(state: Estimates, uniform: Array, context: Array | None) -> Array:
        return _draw(uniform, state.values / temperature)

    return Algorithm(_estimates, select, _learner(step_size))


def ucb(c: ScalarLike = 2.0, *, step_size: ScalarLike | None = None) -> Algorithm:
    """argmax Q(a) + c √(ln t / N(a)), untried arms first; c = √2 is UCB1 for rewards in [0, 1].

    Reference: Auer, Cesa-Bianchi & Fischer 2002; Sutton & Barto 2018, eq. 2.10.
    """

    def select(state: Estimates, _: Array, context: Array | None) -> Array:
        time = state.counts.sum(axis=0, keepdims=True) + 1
        bonus = c * jnp.sqrt(jnp.log(time) / jnp.maximum(state.counts, 1))
        return first_argmax(jnp.where(state.counts == 0, jnp.inf, state.values + bonus))

    return Algorithm(_estimates, select, _learner(step_size))


def kl_ucb(c: ScalarLike = 0.0) -> Algorithm:
    """argmax of the largest q with N(a) kl(Q(a), q) ≤ ln t + c ln ln t, for rewards in [0, 1].

    Reference: Garivier & Cappé 2011, arXiv:1102.2490.
    """

    def select(state: Estimates, _: Array, context: Array | None) -> Array:
        time = state.counts.sum(axis=0, keepdims=True) + 1
        level = jnp.log(time) + c * jnp.log(jnp.maximum(jnp.log(time), 1))
        index = kl_upper_bound(state.values, level / jnp.maximum(state.counts, 1))
        return first_argmax(jnp.where(state.counts == 0, jnp.inf, index))

    return Algorithm(_estimates, select, _learner(None))


def kl_upper_bound(mean: Array, level: Array) -> Array:
    """The largest q in [mean, 1] with kl(mean, q) ≤ level, Bernoulli, any shape; to 2e-4 in float32.

    Newton's method from above: f(q) = kl(p, q) − level is convex, so the iterates descend to the root and
    each one is an upper bound. In terms of u = −ln(1 − q), where f is nearly linear, four steps reach
    float32's rounding.
    """
    p = jnp.clip(mean, 0, 1)
    tiny = jnp.finfo(p.dtype).eps
    entropy = jnp.where(p > 0, p * jnp.log(jnp.maximum(p, tiny)), 0)
    entropy = entropy + jnp.where(p < 1, (1 - p) * jnp.log(jnp.maximum(1 - p, tiny)), 0)
    # kl ≥ entropy + (1 − p) u, because −p ln q ≥ 0: this u is too large, and Pinsker's is too.
    pinsker = -jnp.log(jnp.maximum(1 - jnp.minimum(p + jnp.sqrt(level / 2), 1), tiny))
    u = jnp.minimum((level - entropy) / jnp.maximum(1 - p, tiny), pinsker)

    def newton(_: int, u: Array) -> Array:
        q = 1 - jnp.exp(-u)
        q_safe = jnp.maximum(q, tiny)
        f = entropy - p * jnp.log(q_safe) + (1 - p) * u - level
        slope = (1 - p) - p * (1 - q) / q_safe
        return jnp.where(slope > tiny, u - jnp.maximum(f, 0) / jnp.where(slope > tiny, slope, 1), u)

    # A loop, not four copies: the compiler would duplicate them into every consumer of the arm.
    u = jax.lax.fori_loop(0, 4, newton, u)
    return jnp.maximum(1 - jnp.exp(-u), p)


class Preferences(NamedTuple):
    """What gradient bandits remember."""

    preferences: Array
    """`[K, R]`."""
    baseline: Array
    """Mean of the rewards so far, `[R]`."""
    time: Array


def gradient(step_size: ScalarLike = 0.1, *, baseline: bool = True) -> Algorithm:
    """Stochastic gradient ascent on preferences: H ← H + α (R − R̄)(1[a] − π), π = softmax(H).

    R̄ averages the rewards up to and including the present one; without baseline it is 0.
    Reference: Sutton & Barto 2018, eq. 2.12.
    """

    def init(num_arms: int, num_runs: int) -> Preferences:
        return Preferences(jnp.zeros((num_arms, num_runs)), jnp.zeros(num_runs), jnp.int32(0))

    def select(state: Preferences, uniform: Array, context: Array | None) -> Array:
        return _draw(uniform, state.preferences)

    def update(state: Preferences, arm: Array, reward: Array, context: Array | None) -> Preferences:
        time = state.time + 1
        mean = state.baseline + (reward - state.baseline) / time
        advantage = reward - mean if baseline else reward
        chosen = is_arm(state.preferences, arm)
        step = step_size * advantage[None] * (chosen - jax.nn.softmax(state.preferences, axis=0))
        return Preferences(state.preferences + step, mean, time)

    return Algorithm(init, select, update)


def thompson_gaussian(
    *, prior_mean: ScalarLike = 0.0, prior_scale: ScalarLike = 1.0, noise: ScalarLike = 1.0
) -> Algorithm:
    """Sample each arm's value from its posterior under N(prior) values and N(·, noise²) rewards; take the
    best.

    Reference: Thompson 1933; Russo et al. 2018, arXiv:1707.02038.
    """

    def select(state: Estimates, normal: Array, context: Array | None) -> Array:
        prior_precision, noise_precision = jnp.asarray(prior_scale) ** -2.0, jnp.asarray(noise) ** -2.0
        precision = prior_precision + state.counts * noise_precision
        total = jnp.asarray(prior_mean) * prior_precision + state.counts * state.values * noise_precision
        variance = 1 / precision
        return first_argmax(total * variance + normal * jnp.sqrt(variance))

    return Algorithm(_estimates, select, _learner(None), normal_noise)


def thompson_beta(*, successes: ScalarLike = 1.0, failures: ScalarLike = 1.0) -> Algorithm:
    """Thompson sampling for rewards of 0 or 1 under a Beta(successes, failures) prior.

    Reference: Chapelle & Li 2011.
    """

    def select(state: Estimates, key: Key, context: Array | None) -> Array:
        won = state.counts * state.values
        return first_argmax(jax.random.beta(key, successes + won, failures + state.counts - won))

    return Algorithm(_estimates, select, _learner(None), keys_as_noise)


class Weights(NamedTuple):
    """What EXP3 remembers: log-weights `[K, R]`."""

    log_weights: Array


def exp3(gamma: ScalarLike = 0.1) -> Algorithm:
    """For adversarial rewards in [0, 1]: w ← w exp(γ r̂/K), r̂ = r/π(a), π = (1−γ) w/Σw + γ/K.

    Reference: Auer et al. 2002, "The nonstochastic multiarmed bandit problem", fig. 1.
    """

    def mixed(state: Weights) -> Array:
        num_arms = state.log_weights.shape[0]
        share = jnp.asarray(gamma)
        return (1 - share) * jax.nn.softmax(state.log_weights, axis=0) + share / num_arms

    def select(state: Weights, uniform: Array, context: Array | None) -> Array:
        return _inverse(uniform, mixed(state))

    def update(state: Weights, arm: Array, reward: Array, context: Array | None) -> Weights:
        num_arms = state.log_weights.shape[0]
        chosen = is_arm(state.log_weights, arm)
        step = gamma / num_arms * reward / of_arm(mixed(state), chosen)
        log_weights = state.log_weights + jnp.where(chosen, step[None], 0)
        return Weights(log_weights - log_weights.max(axis=0, keepdims=True))

    return Algorithm(lambda k, runs: Weights(jnp.zeros((k, runs))), select, update)


class Ridge(NamedTuple):
    """What LinUCB remembers of each arm."""

    inverse: Array
    """`[K, d, d, R]`: (λI + Σ x xᵀ)⁻¹."""
    moment: Array
    """`[K, d, R]`: Σ r x."""


def lin_ucb(dimension: int, alpha: ScalarLike = 1.0, *, ridge: ScalarLike = 1.0) -> Algorithm:
    """argmax θ̂_a·x + α √(xᵀ A_a⁻¹ x), one ridge regression per arm, updated by Sherman–Morrison.

    Reference: Li et al. 2010, arXiv:1003.0146, algorithm 1.
    """

    def init(num_arms: int, num_runs: int) -> Ridge:
        eye = jnp.eye(dimension)[None, :, :, None] / ridge
        return Ridge(jnp.tile(eye, (num_arms, 1, 1, num_runs)), jnp.zeros((num_arms, dimension, num_runs)))

    def towards(state: Ridge, context: Array) -> Array:
        """A⁻¹ x, `[K, d, R]`."""
        terms = [state.inverse[:, :, i] * context[i][None, None] for i in range(dimension)]
        return functools.reduce(jnp.add, terms)

    def select(state: Ridge, _: Array, context: Array | None) -> Array:
        assert context is not None
        direction = towards(state, context)
        mean = jnp.sum(direction * state.moment, axis=1)
        width = jnp.sum(direction * context[None], axis=1)
        return first_argmax(mean + alpha * jnp.sqrt(width))

    def update(state: Ridge, arm: Array, reward: Array, context: Array | None) -> Ridge:
        assert context is not None
        direction = towards(state, context)
        width = jnp.sum(direction * context[None], axis=1, keepdims=True)
        chosen = is_arm(state.moment[:, 0], arm)[:, None]
        change = direction[:, :, None] * (direction / (1 + width))[:, None]
        inverse = state.inverse - jnp.where(chosen[:, None], change, 0)
        return Ridge(inverse, state.moment + jnp.where(chosen, (reward[None] * context)[None], 0))

    return Algorithm(init, select, update)


def first_argmax(values: Array) -> Array:
    """argmax over arms, `[K, R]` → `[R]`; the first of equals.

    As two reductions: compilers vectorise these, and (unlike a chain of comparisons) compute them once, not
    once per consumer and arm.
    """
    arms = jax.lax.broadcasted_iota(jnp.int32, values.shape, 0)
    best = values.max(axis=0, keepdims=True)
    return jnp.where(values == best, arms, values.shape[0] - 1).min(axis=0)


def is_arm(like: Array, arm: Array) -> Array:
    """The mask of the chosen arms: `[K, R]` (its shape), `[R]` → `[K, R]`."""
    return jax.lax.broadcasted_iota(jnp.int32, like.shape, 0) == arm[None]


def of_arm(values: Array, chosen: Array) -> Array:
    """The chosen arms' elements: `[K, R]`, the mask of `is_arm` → `[R]`."""
    return jnp.sum(jnp.where(chosen, values, 0), axis=0)


def _estimates(num_arms: int, num_runs: int, initial_value: ScalarLike = 0.0) -> Estimates:
    shape = (num_arms, num_runs)
    return Estimates(jnp.full(shape, initial_value, float), jnp.zeros(shape, jnp.int32))


def _learner(step_size: ScalarLike | None) -> Callable[[Estimates, Array, Array, Array | None], Estimates]:
    def update(state: Estimates, arm: Array, reward: Array, context: Array | None) -> Estimates:
        chosen = is_arm(state.values, arm)
        counts = state.counts + chosen
        # Divided where the arms are chosen, R times and not K·R times: a division costs as much as all the rest.
        rate = 1 / of_arm(counts, chosen) if step_size is None else jnp.asarray(step_size)
        step = rate * (reward - of_arm(state.values, chosen))
        return Estimates(state.values + jnp.where(chosen, step[None], 0), counts)

    return update


def _draw(uniform: Array, logits: Array) -> Array:
    """A sample from softmax(logits) by one uniform number: `[R]`, `[K, R]` → `[R]`."""
    return _inverse(uniform, jax.nn.softmax(logits, axis=0))


def _inverse(uniform: Array, probabilities: Array) -> Array:
    """A sample by inversion: the first arm whose cumulated probability exceeds u."""
    num_arms = probabilities.shape[0]
    below = jnp.tril(jnp.ones((num_arms - 1, num_arms), probabilities.dtype))
    return jnp.sum(uniform[None] >= below @ probabilities, axis=0, dtype=jnp.int32)
