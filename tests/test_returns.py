"""Returns against loops over lists of the steps that exist, and the identities between them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import returns
from tests.selection import slow_but

T, B = 12, 7
DISCOUNT, LAMBDA = 0.9, 0.7


@functools.cache
def steps(gaps: bool):
    rng = np.random.default_rng(3)
    values = rng.normal(size=(T, B))
    next_values = np.concatenate([values[1:], rng.normal(size=(1, B))])
    terminated = rng.random((T, B)) < 0.15
    truncated = ~terminated & (rng.random((T, B)) < 0.15)
    # What follows a cut is the value of an observation that is not in the array.
    next_values = np.where(terminated | truncated, rng.normal(size=(T, B)), next_values)
    mask = rng.random((T, B)) < 0.6 if gaps else np.ones((T, B), bool)
    mask[:, -1] = not gaps  # a sequence that does not exist at all
    log_ratios = rng.normal(size=(T, B)) * 0.5
    arrays = [rng.normal(size=(T, B)), values, next_values, terminated, truncated]
    return arrays, mask, log_ratios


def loop(kind, column, gaps, **kwargs):
    """The definition, by recursion over the list of the steps that exist."""
    arrays, mask, log_ratios = steps(gaps)
    r, v, nv, term, trunc = (x[:, column] for x in arrays)
    rho = np.exp(log_ratios[:, column])
    exist = np.flatnonzero(mask[:, column])
    out = np.zeros(T), np.zeros(T)

    def after(i):
        """(value after step i, the position in the list of the next step, None if the return ends here)."""
        t = exist[i]
        last = term[t] or trunc[t] or i + 1 == len(exist)
        bridged = v[exist[i + 1]] if not last and exist[i + 1] > t + 1 else nv[t]
        return (0.0 if term[t] else bridged), (None if last else i + 1)

    for i in reversed(range(len(exist))):
        t = exist[i]
        value, following = after(i)
        u = None if following is None else exist[following]
        if kind == "lambda":
            blend = value if u is None else (1 - LAMBDA) * value + LAMBDA * out[0][u]
            out[0][t] = r[t] + DISCOUNT * blend
        elif kind == "gae":
            ahead = 0.0 if u is None else out[0][u]
            out[0][t] = r[t] + DISCOUNT * value - v[t] + DISCOUNT * LAMBDA * ahead
            out[1][t] = out[0][t] + v[t]
        elif kind == "n_step":
            total, weight, j = 0.0, 1.0, i
            for _ in range(kwargs["n"]):
                total += weight * r[exist[j]]
                weight *= DISCOUNT
                value, j = after(j)
                if j is None:
                    break
            out[0][t] = total + weight * value
        else:
            delta = min(rho[t], 1.1) * (r[t] + DISCOUNT * value - v[t])
            # v_{t+1} − V(s_{t+1}), and across the future the target itself.
            ahead = 0.0 if u is None else out[1][u] - v[u]
            out[1][t] = v[t] + delta + DISCOUNT * LAMBDA * min(rho[t], 0.8) * ahead
            blend = value if u is None else LAMBDA * out[1][u] + (1 - LAMBDA) * value
            out[0][t] = min(rho[t], 1.1) * (r[t] + DISCOUNT * blend - v[t])
    return out


KINDS = {
    "lambda": functools.partial(returns.lambda_returns, lambda_=LAMBDA),
    "gae": functools.partial(returns.generalized_advantage_estimation, gae_lambda=LAMBDA),
    "n_step": functools.partial(returns.n_step_returns, n=3),
    "vtrace": functools.partial(returns.vtrace, lambda_=LAMBDA, clip_rho=1.1, clip_c=0.8),
}


@pytest.mark.parametrize("gaps", [False, True], ids=["whole", "gaps"])
@pytest.mark.parametrize("axis", slow_but([0, 1, -1], [1]))
@pytest.mark.parametrize("recurrence", [returns.sequential_recurrence, returns.associative_recurrence])
@pytest.mark.parametrize("kind", KINDS)
def test_against_the_loop(kind, recurrence, axis, gaps):
    arrays, mask, log_ratios = steps(gaps)
    if axis != 0:
        arrays, mask, log_ratios = [x.T for x in arrays], mask.T, log_ratios.T
    run = functools.partial(KINDS[kind], axis=axis)
    rest = {"log_ratios": log_ratios} if kind == "vtrace" else {}
    if kind == "n_step":
        if recurrence is returns.associative_recurrence:
            pytest.skip("n-step returns have no recurrence")
    else:
        run = functools.partial(run, recurrence=recurrence)
    masked = {"mask": mask} if gaps else {}
    results = jax.jit(run)(*arrays, discount=DISCOUNT, **rest, **masked)
    results = results if isinstance(results, tuple) else (results,)
    expected = [loop(kind, column, gaps, n=3) for column in range(B)]
    for i, result in enumerate(results):
        rows = np.asarray(result).T if axis == 0 else np.asarray(result)
        np.testing.assert_allclose(rows, np.stack([e[i] for e in expected]), rtol=1e-5, atol=1e-5)


def gae(gae_lambda, discount=DISCOUNT):
    arrays, _, _ = steps(False)
    return returns.generalized_advantage_estimation(*arrays, discount=discount, gae_lambda=gae_lambda)


def consistent():
    """The same steps with next values that are the values of the next step: what the identities need."""
    return steps(False)[0]


def assert_same(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_gae_limits():
    rewards, values, next_values, terminated, truncated = consistent()
    one_step = rewards + DISCOUNT * np.where(terminated, 0, next_values)
    assert_same(gae(0.0)[0], one_step - values)
    # λ=1 telescopes: advantage plus value is the Monte-Carlo return, the bootstrap counted once.
    monte_carlo = returns.discounted_returns(rewards, terminated, truncated, next_values, discount=DISCOUNT)
    assert_same(gae(1.0)[1], monte_carlo)
    assert_same(returns.lambda_returns(*consistent(), discount=DISCOUNT, lambda_=0.0), one_step)
    assert_same(returns.lambda_returns(*consistent(), discount=DISCOUNT, lambda_=1.0), monte_carlo)
    assert_same(returns.n_step_returns(*consistent(), n=1, discount=DISCOUNT), one_step)
    assert_same(returns.n_step_returns(*consistent(), n=10 * T, discount=DISCOUNT), monte_carlo)
    assert_same(gae(LAMBDA)[1], returns.lambda_returns(*consistent(), discount=DISCOUNT, lambda_=LAMBDA))


def test_vtrace_on_policy_is_the_lambda_return():
    _, targets = returns.vtrace(*consistent(), log_ratios=np.zeros((T, B)), discount=DISCOUNT, lambda_=LAMBDA)
    assert_same(targets, returns.lambda_returns(*consistent(), discount=DISCOUNT, lambda_=LAMBDA))


def test_a_time_limit_is_not_a_death():
    one = np.ones(1)
    step = functools.partial(
        returns.generalized_advantage_estimation, one, 0 * one, 10 * one, discount=0.5, gae_lambda=1.0
    )
    assert step(terminated=one, truncated=0 * one)[0] == 1
    assert step(terminated=0 * one, truncated=one)[0] == 6
    assert step(terminated=0 * one)[0] == 6


def test_what_follows_a_termination_is_not_read():
    one = np.ones(1)
    advantages, _ = returns.generalized_advantage_estimation(
        one, one, np.nan * one, one, discount=0.5, gae_lambda=1.0
    )
    assert advantages == 0


def test_discounts_and_lambdas_may_vary_by_step():
    arrays = consistent()
    discount = np.random.default_rng(0).random((T, B))
    for column in (0, 3):
        x = [a[:, column] for a in arrays]
        expected = returns.generalized_advantage_estimation(
            *x, discount=discount[:, column], gae_lambda=discount[:, column]
        )
        whole = returns.generalized_advantage_estimation(*arrays, discount=discount, gae_lambda=discount)
        assert_same(whole[0][:, column], expected[0])
    per_row = jnp.linspace(0.5, 0.99, B)[None]
    mapped = jax.vmap(
        lambda g, *x: returns.generalized_advantage_estimation(*x, discount=g, gae_lambda=0.9),
        in_axes=(0, *[1] * 5),
    )(per_row[0], *arrays)
    assert_same(
        returns.generalized_advantage_estimation(*arrays, discount=per_row, gae_lambda=0.9)[0], mapped[0].T
    )


def test_long_horizons_stay_finite():
    """Dividing by γ^t, the trick of a cumulative sum, is not finite here."""
    result = returns.discounted_returns(np.ones(20_000, np.float32), discount=0.99)
    np.testing.assert_allclose(result[0], 100, rtol=1e-5)


def test_padding_changes_nothing():
    arrays, mask, _ = steps(True)
    run = functools.partial(returns.generalized_advantage_estimation, discount=DISCOUNT, gae_lambda=LAMBDA)
    short = run(*arrays, mask=mask)[0]
    padded = [np.concatenate([x, np.full_like(x[:5], np.nan if x.dtype == float else True)]) for x in arrays]
    longer = run(*padded, mask=np.concatenate([mask, np.zeros_like(mask[:5])]))[0]
    np.testing.assert_array_equal(longer[:T], short)
    assert (longer[T:] == 0).all()


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"values": np.ones(B)}, r"values has shape \(7,\)"),
        ({"axis": 2}, "axis is 2"),
        ({"mask": np.ones((T, 2))}, r"mask has shape \(12, 2\)"),
        ({"discount": np.ones(T)}, r"discount has shape \(12,\)"),
    ],
)
def test_errors_name_the_argument(bad, message):
    names = ["rewards", "values", "next_values", "terminated", "truncated"]
    good = dict(zip(names, consistent(), strict=True)) | {"discount": 0.9, "gae_lambda": 0.9}
    with pytest.raises(ValueError, match=message):
        returns.generalized_advantage_estimation(**(good | bad))


def test_n_must_be_positive():
    with pytest.raises(ValueError, match="n is 0"):
        returns.n_step_returns(*consistent(), n=0, discount=0.9)


def test_returns_read_the_next_value_only_where_cut():
    """With λ = 1 the weight of the others is 0, and 0 · nan would be nan."""
    result = returns.discounted_returns(
        np.ones(4), False, np.array([0, 1, 0, 0]), np.array([np.nan, 2.0, np.inf, 4.0]), discount=0.5
    )
    np.testing.assert_allclose(result, [2.0, 2.0, 2.5, 3.0])


@pytest.mark.parametrize("recurrence", [returns.sequential_recurrence, returns.associative_recurrence])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
@pytest.mark.parametrize("masked", slow_but([False, True], [True]))
def test_no_steps(recurrence, shape, masked):
    x = np.zeros(shape, np.float32)
    options = {"discount": 0.9, "mask": np.ones(shape, bool) if masked else None}
    chosen = {"recurrence": recurrence}
    gae = returns.generalized_advantage_estimation(x, x, x, False, gae_lambda=0.9, **options, **chosen)
    vtrace = returns.vtrace(x, x, x, False, log_ratios=x, **options, **chosen)
    plain = returns.discounted_returns(x, **options, **chosen)
    n_step = returns.n_step_returns(x, x, x, False, n=2, **options)
    assert all(y.shape == shape for y in (*gae, *vtrace, plain, n_step))


@pytest.mark.parametrize("gap", [1e3, -1e3])
def test_vtrace_of_extreme_ratios_is_finite(gap):
    """Where exp(log ρ) is infinite, or 0, neither the value nor the gradient in log ρ is a nan."""

    def total(log_ratios):
        advantages, targets = returns.vtrace(
            jnp.ones(3), 0.5, 0.5, False, log_ratios=log_ratios, discount=0.9, clip_rho=1e3
        )
        return advantages.sum() + targets.sum()

    value, grad = jax.value_and_grad(total)(jnp.array([0.0, gap, 0.0]))
    assert np.isfinite(value)
    assert np.isfinite(grad).all()
