"""Bandit algorithms as pure (init, select, update). Hyper-parameters may be traced; ties go to the first arm.

Arms are the first axis of every array and R independent runs the last, so that short loops over arms vectorise over
runs. The chosen arm is read by a gather, whose time does not grow with K, and written through a mask over all K,
because masks vectorise and a scatter does not. A quantity that changes only for the chosen arm (a rate, a width, a
posterior) is kept in the state, so that it is not computed for all arms at every step.

An `optimization_barrier` stands where the compiler would otherwise compute a chain again for each of its consumers.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.bandits import noise as draw
from jaxrl4lm.bandits.arms import first_argmax, is_arm, take_arm
from jaxrl4lm.types import Array, Key, ScalarLike


def draw_uniform(key: Key, num_steps: int, num_arms: int, num_runs: int) -> Array:
    """One uniform number for each decision, `[T, R]`."""
    return draw.uniform(key, (num_steps, num_runs))


def draw_nothing(key: Key, num_steps: int, num_arms: int, num_runs: int) -> Array:
    """Nothing, `[T, 0]`, for choices without chance."""
    return jnp.zeros((num_steps, 0))


def draw_normal(key: Key, num_steps: int, num_arms: int, num_runs: int) -> Array:
    """K normal numbers for each decision, `[T, K, R]`."""
    return draw.normal(key, (num_steps, num_arms, num_runs))


def draw_keys(key: Key, num_steps: int, num_arms: int, num_runs: int) -> Key:
    """One key for each step, `[T]`, for draws whose distribution depends on the state."""
    return jax.random.split(key, num_steps)


SHARE = "in [0, 1]", lambda x: (x >= 0) & (x <= 1)
POSITIVE = "positive", lambda x: x > 0
NOT_NEGATIVE = "at least 0", lambda x: x >= 0


def _check(
    rule: tuple[str, Callable[[np.ndarray], np.ndarray]], **hyperparameters: ScalarLike | None
) -> None:
    """Refuses numbers that break the rule. Traced numbers are not checked."""
    words, holds = rule
    for name, value in hyperparameters.items():
        known = value is not None and not isinstance(value, jax.core.Tracer)
        if known and not np.all(holds(np.asarray(value, float))):
            raise ValueError(f"{name} must be {words}, not {value}")


class BanditAlgorithm(NamedTuple):
    """A learner. Its random numbers are an input, `noise`, so that those of a whole run can be drawn at once."""

    init: Callable[[int, int], Any]
    """(K, R) → state."""
    select: Callable[[Any, Any, Array | None], Array]
    """(state, noise of one step, context `[d, R]`) → arms `[R]`."""
    update: Callable[[Any, Array, Array, Array | None], Any]
    """(state, arms `[R]`, rewards `[R]`, context) → state."""
    noise: Callable[[Key, int, int, int], Any] = draw_uniform
    """(key, T, K, R) → what `select` reads, with T on the first axis."""
    unit_rewards: bool = False
    """Whether it means anything for rewards in [0, 1] only."""


class Estimates(NamedTuple):
    """What value-based algorithms remember, `[K, R]` each."""

    values: Array
    """Estimated value of each arm, Q(a)."""
    counts: Array
    """How often each arm was chosen, N(a)."""


def epsilon_greedy(
    epsilon: ScalarLike = 0.1,
    *,
    step_size: ScalarLike | None = None,
    initial_value: ScalarLike = 0.0,
    random_ties: bool = False,
) -> BanditAlgorithm:
    """Choose the arm of the best estimate, or with probability ε any arm.

    ε = 0 with a high `initial_value` is optimistic initialisation.

    Args:
      epsilon: ε in [0, 1].
      step_size: constant α, for worlds that drift; None averages the samples (1/N).
      initial_value: Q₁, the estimate before the first sample.
      random_ties: choose among equal estimates by chance; otherwise the first of them, which is faster. It matters where
        rewards are often equal: an arm that pays 0 and 1 stays the first of many zeros until it has paid once.
    Raises:
      ValueError: if ε is outside of [0, 1] or α negative, unless they are traced. All algorithms here check so.
    Reference: Sutton & Barto 2018, sections 2.4 to 2.6.
    """
    _check(SHARE, epsilon=epsilon)
    _check(NOT_NEGATIVE, step_size=step_size)

    def greedy(state: Estimates, _: Array, context: Array | None) -> Array:
        return first_argmax(state.values)

    def select(state: Estimates, uniform: Array, context: Array | None) -> Array:
        # One number decides both whether to explore and where.
        num_arms = state.values.shape[0]
        explores = jnp.asarray(epsilon)
        scaled = jnp.where(explores > 0, uniform / jnp.where(explores > 0, explores, 1), 1)
        anywhere = jnp.minimum((scaled * num_arms).astype(jnp.int32), num_arms - 1)
        if random_ties:
            left = jnp.maximum(uniform - explores, 0) / jnp.where(explores < 1, 1 - explores, 1)
            best = state.values == state.values.max(axis=0, keepdims=True)
            return jnp.where(
                uniform < explores, anywhere, _invert(left, best / best.sum(axis=0, keepdims=True))
            )
        return jnp.where(uniform < explores, anywhere, first_argmax(state.values))

    # A Python 0 never explores, and needs no random numbers.
    never = isinstance(epsilon, float | int) and epsilon == 0 and not random_ties
    noise = draw_nothing if never else draw_uniform
    init = functools.partial(_init_estimates, initial_value=initial_value)
    choose = greedy if noise is draw_nothing else select
    return BanditAlgorithm(init=init, select=choose, update=_make_learner(step_size), noise=noise)


def softmax(temperature: ScalarLike = 0.2, *, step_size: ScalarLike | None = None) -> BanditAlgorithm:
    """Boltzmann exploration, π(a) ∝ exp(Q(a)/τ), τ > 0. Reference: Sutton & Barto 1998, section 2.3."""
    _check(POSITIVE, temperature=temperature)  # epsilon_greedy(0) is the greedy rule
    _check(NOT_NEGATIVE, step_size=step_size)

    def select(state: Estimates, uniform: Array, context: Array | None) -> Array:
        return _draw(uniform, state.values / temperature)

    return BanditAlgorithm(init=_init_estimates, select=select, update=_make_learner(step_size))


class Optimism(NamedTuple):
    """What UCB remembers."""

    estimates: Estimates
    widths: Array
    """`[K, R]`: 1/√N(a); inf for untried arms."""
    time: Array
    """Choices made, a scalar."""


def ucb(c: ScalarLike = 2.0, *, step_size: ScalarLike | None = None) -> BanditAlgorithm:
    """Choose argmax Q(a) + c √(ln t / N(a)), untried arms first; c = √2 is UCB1, for rewards in [0, 1].

    Reference: Auer, Cesa-Bianchi & Fischer 2002; Sutton & Barto 2018, eq. 2.10.
    """
    _check(NOT_NEGATIVE, c=c, step_size=step_size)
    learn = _make_learner(step_size)

    def init(num_arms: int, num_runs: int) -> Optimism:
        return Optimism(
            _init_estimates(num_arms, num_runs), jnp.full((num_arms, num_runs), jnp.inf), jnp.int32(0)
        )

    def select(state: Optimism, _: Array, context: Array | None) -> Array:
        factor = c * jnp.sqrt(jnp.log(state.time + 1.0))
        bonus = jnp.where(state.widths == jnp.inf, jnp.inf, factor * state.widths)
        return first_argmax(state.estimates.values + bonus)

    def update(state: Optimism, arm: Array, reward: Array, context: Array | None) -> Optimism:
        estimates = learn(state.estimates, arm, reward, context)
        width = jax.lax.optimization_barrier(1 / jnp.sqrt(take_arm(state.estimates.counts, arm) + 1))
        widths = jnp.where(is_arm(state.widths, arm), width[None], state.widths)
        return Optimism(estimates, widths, state.time + 1)

    return BanditAlgorithm(init=init, select=select, update=update, noise=draw_nothing)


class KLBounds(NamedTuple):
    """What KL-UCB remembers."""

    estimates: Estimates
    bounds: Array
    """`[K, R]`: u(a) = −ln(1 − q(a)), where q(a) is the bound that the next choice compares; inf for untried arms."""
    entropies: Array
    """`[K, R]`: Q ln Q + (1 − Q) ln(1 − Q). Kept, because its two logarithms change only for the chosen arm."""
    time: Array
    """Choices made, a scalar."""


def kl_ucb(c: ScalarLike = 0.0) -> BanditAlgorithm:
    """Choose the arm with the largest q such that N(a) kl(Q(a), q) ≤ ln t + c ln ln t; for rewards in [0, 1].

    The bound of the chosen arm is solved for anew. Those of the other arms hardly move from one choice to the next: one
    step of Chebyshev's third-order iteration follows them (to 2e-3 in q in the first five steps, 2e-5 later).
    Reference: Garivier & Cappé 2011, arXiv:1102.2490.
    """
    _check(NOT_NEGATIVE, c=c)
    learn = _make_learner(None)

    def init(num_arms: int, num_runs: int) -> KLBounds:
        shape = (num_arms, num_runs)
        return KLBounds(_init_estimates(*shape), jnp.full(shape, jnp.inf), jnp.zeros(shape), jnp.int32(0))

    def select(state: KLBounds, _: Array, context: Array | None) -> Array:
        return first_argmax(state.bounds)

    def update(state: KLBounds, arm: Array, reward: Array, context: Array | None) -> KLBounds:
        estimates, time = learn(state.estimates, arm, reward, context), state.time + 1
        log = jnp.log(time + 1.0)
        level = log + c * jnp.log(jnp.maximum(log, 1))
        chosen = is_arm(state.bounds, arm)
        mean = jnp.clip(take_arm(estimates.values, arm), 0, 1)
        entropy = _negative_entropy(mean)
        entropies = jnp.where(chosen, entropy[None], state.entropies)
        anew = _kl_bound(mean, entropy, level / take_arm(estimates.counts, arm))
        followed = _follow_kl_bound(state.bounds, estimates.values, entropies, level / estimates.counts)
        bounds = jnp.where(chosen, anew[None], followed)
        return KLBounds(estimates, bounds, entropies, time)

    return BanditAlgorithm(init=init, select=select, update=update, noise=draw_nothing, unit_rewards=True)


def kl_upper_bound(mean: Array, level: Array) -> Array:
    """The largest q in [mean, 1] with Bernoulli kl(mean, q) ≤ level, of any shape; to 2e-4 in float32."""
    p = jnp.clip(mean, 0, 1)
    return jnp.maximum(1 - jnp.exp(-_kl_bound(p, _negative_entropy(p), level)), p)


class Preferences(NamedTuple):
    """What gradient bandits remember."""

    preferences: Array
    """`[K, R]`: H, the logits of the choice."""
    baseline: Array
    """`[R]`: mean of the rewards so far."""
    time: Array
    """Choices made, a scalar."""


def gradient(step_size: ScalarLike = 0.1, *, baseline: bool = True) -> BanditAlgorithm:
    """Stochastic gradient ascent on preferences: H ← H + α (R − R̄)(1[a] − π), π = softmax(H).

    R̄ is the mean of the rewards up to and including the present one; without `baseline` it is 0.
    Reference: Sutton & Barto 2018, eq. 2.12.
    """
    _check(NOT_NEGATIVE, step_size=step_size)

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

    return BanditAlgorithm(init=init, select=select, update=update)


class Posterior(NamedTuple):
    """The posterior N(mean, scale²) of each arm's value in Thompson sampling, `[K, R]` each."""

    means: Array
    scales: Array


def thompson_gaussian(
    *, prior_mean: ScalarLike = 0.0, prior_scale: ScalarLike = 1.0, noise: ScalarLike = 1.0
) -> BanditAlgorithm:
    """Thompson sampling: draw each arm's value from its posterior, choose the best.

    The model: values ~ N(prior_mean, prior_scale²), rewards ~ N(value, noise²).

    Reference: Thompson 1933; Russo et al. 2018, arXiv:1707.02038.
    """
    _check(POSITIVE, prior_scale=prior_scale, noise=noise)

    def init(num_arms: int, num_runs: int) -> Posterior:
        shape = (num_arms, num_runs)
        return Posterior(jnp.full(shape, prior_mean, float), jnp.full(shape, prior_scale, float))

    def select(state: Posterior, normal: Array, context: Array | None) -> Array:
        return first_argmax(state.means + normal * state.scales)

    def update(state: Posterior, arm: Array, reward: Array, context: Array | None) -> Posterior:
        mean, scale = take_arm(state.means, arm), take_arm(state.scales, arm)
        precision = jnp.asarray(noise) ** 2.0 + scale**2  # of both, times the product of the variances
        step = jax.lax.optimization_barrier(scale**2 / precision * (reward - mean))
        new_scale = jax.lax.optimization_barrier(scale * noise / jnp.sqrt(precision))
        chosen = is_arm(state.means, arm)
        return Posterior(
            state.means + jnp.where(chosen, step[None], 0), jnp.where(chosen, new_scale[None], state.scales)
        )

    return BanditAlgorithm(init=init, select=select, update=update, noise=draw_normal)


def thompson_beta(*, successes: ScalarLike = 1.0, failures: ScalarLike = 1.0) -> BanditAlgorithm:
    """Thompson sampling for rewards of 0 or 1 under a Beta(successes, failures) prior.

    Reference: Chapelle & Li 2011.
    """
    _check(POSITIVE, successes=successes, failures=failures)

    def select(state: Estimates, key: Key, context: Array | None) -> Array:
        won = state.counts * state.values
        return first_argmax(draw.beta(key, successes + won, failures + state.counts - won))

    learn = _make_learner(None)
    return BanditAlgorithm(_init_estimates, select, learn, noise=draw_keys, unit_rewards=True)


class Weights(NamedTuple):
    """What EXP3 remembers: log-weights `[K, R]`."""

    log_weights: Array


def exp3(gamma: ScalarLike = 0.1) -> BanditAlgorithm:
    """EXP3, for adversarial rewards in [0, 1]: w ← w exp(γ r̂/K), r̂ = r/π(a), π = (1−γ) w/Σw + γ/K.

    Reference: Auer et al. 2002, "The nonstochastic multiarmed bandit problem", fig. 1.
    """
    _check(SHARE, gamma=gamma)

    def mix(state: Weights) -> Array:
        num_arms = state.log_weights.shape[0]
        share = jnp.asarray(gamma)
        return (1 - share) * jax.nn.softmax(state.log_weights, axis=0) + share / num_arms

    def select(state: Weights, uniform: Array, context: Array | None) -> Array:
        return _invert(uniform, mix(state))

    def update(state: Weights, arm: Array, reward: Array, context: Array | None) -> Weights:
        num_arms = state.log_weights.shape[0]
        chosen = is_arm(state.log_weights, arm)
        step = jax.lax.optimization_barrier(gamma / num_arms * reward / take_arm(mix(state), arm))
        log_weights = state.log_weights + jnp.where(chosen, step[None], 0)
        return Weights(log_weights - log_weights.max(axis=0, keepdims=True))

    def init(num_arms: int, num_runs: int) -> Weights:
        return Weights(jnp.zeros((num_arms, num_runs)))

    return BanditAlgorithm(init=init, select=select, update=update, unit_rewards=True)


class Ridge(NamedTuple):
    """What LinUCB remembers of each arm."""

    inverse: Array
    """`[K, d, d, R]`: (λI + Σ x xᵀ)⁻¹."""
    moment: Array
    """`[K, d, R]`: Σ r x."""


def lin_ucb(dimension: int, alpha: ScalarLike = 1.0, *, ridge: ScalarLike = 1.0) -> BanditAlgorithm:
    """LinUCB: choose argmax θ̂_a·x + α √(xᵀ A_a⁻¹ x); one ridge regression per arm, updated by Sherman–Morrison.

    Args:
      dimension: d, of the contexts x.
      alpha: how much uncertainty counts, at least 0.
      ridge: λ > 0.
    Raises:
      ValueError: for a problem without contexts.
    Reference: Li et al. 2010, arXiv:1003.0146, algorithm 1.
    """
    _check(NOT_NEGATIVE, alpha=alpha)
    _check(POSITIVE, dimension=dimension, ridge=ridge)

    def init(num_arms: int, num_runs: int) -> Ridge:
        eye = jnp.eye(dimension)[None, :, :, None] / ridge
        return Ridge(jnp.tile(eye, (num_arms, 1, 1, num_runs)), jnp.zeros((num_arms, dimension, num_runs)))

    def apply_inverse(state: Ridge, context: Array) -> Array:
        """A⁻¹ x, `[K, d, R]`."""
        terms = [state.inverse[:, :, i] * context[i][None, None] for i in range(dimension)]
        return functools.reduce(jnp.add, terms)

    def select(state: Ridge, _: Array, context: Array | None) -> Array:
        if context is None:
            raise ValueError("lin_ucb needs contexts: give it a contextual problem, such as linear()")
        direction = apply_inverse(state, context)
        mean = jnp.sum(direction * state.moment, axis=1)
        width = jnp.sum(direction * context[None], axis=1)
        return first_argmax(mean + alpha * jnp.sqrt(width))

    def update(state: Ridge, arm: Array, reward: Array, context: Array | None) -> Ridge:
        assert context is not None
        direction = apply_inverse(state, context)
        width = jnp.sum(direction * context[None], axis=1, keepdims=True)
        chosen = is_arm(state.moment[:, 0], arm)[:, None]
        change = direction[:, :, None] * (direction / (1 + width))[:, None]
        inverse = state.inverse - jnp.where(chosen[:, None], change, 0)
        return Ridge(inverse, state.moment + jnp.where(chosen, (reward[None] * context)[None], 0))

    return BanditAlgorithm(init=init, select=select, update=update, noise=draw_nothing)


def _init_estimates(num_arms: int, num_runs: int, initial_value: ScalarLike = 0.0) -> Estimates:
    shape = (num_arms, num_runs)
    return Estimates(jnp.full(shape, initial_value, float), jnp.zeros(shape, jnp.int32))


def _make_learner(
    step_size: ScalarLike | None,
) -> Callable[[Estimates, Array, Array, Array | None], Estimates]:
    def update(state: Estimates, arm: Array, reward: Array, context: Array | None) -> Estimates:
        chosen = is_arm(state.values, arm)
        counts = state.counts + chosen
        # R divisions, one for each chosen arm, not K·R: a division costs as much as all the rest.
        rate = 1 / take_arm(counts, arm) if step_size is None else jnp.asarray(step_size)
        step = rate * (reward - take_arm(state.values, arm))
        return Estimates(state.values + jnp.where(chosen, step[None], 0), counts)

    return update


def _kl_bound(p: Array, entropy: Array, level: Array) -> Array:
    """u = −ln(1 − q) for the q of `kl_upper_bound`, at most −ln(eps), given a mean p in [0, 1] and its negative entropy.

    Newton's method from above: f(q) = kl(p, q) − level is convex, so the iterates descend to the root and
    each one is an upper bound. In terms of u, where f is nearly linear, four steps reach float32's rounding.
    """
    tiny = float(jnp.finfo(p.dtype).eps)
    # kl ≥ entropy + (1 − p) u, because −p ln q ≥ 0: this u is too large, and Pinsker's is too.
    pinsker = -jnp.log(jnp.maximum(1 - jnp.minimum(p + jnp.sqrt(level / 2), 1), tiny))
    u = jnp.minimum((level - entropy) / jnp.maximum(1 - p, tiny), pinsker)

    def newton(step: int, u: Array) -> Array:
        del step
        f, slope, _ = _kl_excess(u, p, entropy, level)
        return jnp.where(slope > tiny, u - jnp.maximum(f, 0) / jnp.where(slope > tiny, slope, 1), u)

    # A loop, not four copies: the compiler would duplicate them into every consumer of the arm.
    return jax.lax.fori_loop(0, 4, newton, u)


def _follow_kl_bound(u: Array, mean: Array, entropy: Array, level: Array) -> Array:
    """`_kl_bound`, from its value u at a slightly lower level, by one step of third order; inf stays inf."""
    p = jnp.clip(mean, 0, 1)
    f, slope, curvature = _kl_excess(u, p, entropy, level)
    tiny = jnp.finfo(p.dtype).eps
    per_slope = jnp.where(slope > tiny, 1 / jnp.maximum(slope, tiny), 0)  # p = 1 stays where it is
    newton = f * per_slope
    bend = jnp.maximum(1 + 0.5 * newton * curvature * per_slope, 0.5)
    return jnp.where(u == jnp.inf, u, jnp.minimum(u - newton * bend, -jnp.log(tiny)))


def _negative_entropy(p: Array) -> Array:
    """p ln p + (1 − p) ln(1 − p)."""
    tiny = jnp.finfo(p.dtype).eps
    return p * jnp.log(jnp.maximum(p, tiny)) + (1 - p) * jnp.log(jnp.maximum(1 - p, tiny))


def _kl_excess(u: Array, p: Array, entropy: Array, level: Array) -> tuple[Array, Array, Array]:
    """kl(p, q) − level at q = 1 − exp(−u), and its first two derivatives by u."""
    complement = jnp.exp(-u)
    q = jnp.maximum(1 - complement, jnp.finfo(p.dtype).eps)
    per_q = 1 / q
    odds = p * complement * per_q
    value = entropy - p * jnp.log(q) + (1 - p) * u - level
    return value, (1 - p) - odds, odds * per_q


def _draw(uniform: Array, logits: Array) -> Array:
    """A sample from softmax(logits) by one uniform number: `[R]`, `[K, R]` → `[R]`."""
    return _invert(uniform, jax.nn.softmax(logits, axis=0))


def _invert(uniform: Array, probabilities: Array) -> Array:
    """A sample by inversion: the first arm whose cumulative probability exceeds u."""
    num_arms = probabilities.shape[0]
    below = jnp.tril(jnp.ones((num_arms - 1, num_arms), probabilities.dtype))
    return jnp.sum(uniform[None] >= below @ probabilities, axis=0, dtype=jnp.int32)
