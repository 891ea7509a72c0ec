"""What every loss and every return promises, from one table: formula, masks, dtypes, gradients, jit and vmap."""

import functools
import inspect
import re
import typing

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import losses, returns
from tests.losses.table import TABLE, B, T, draw
from tests.selection import slow_but

MASK = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]], bool)
GARBAGE = np.array([np.nan, np.inf, -np.inf])

ROWS = {row.name: row for row in TABLE}
rows = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
# For what is hardly ever wrong of a single row: each tenth row every time, the others with the slow tests.
tenth = pytest.mark.parametrize("row", slow_but(TABLE, len(TABLE) // 10), ids=lambda row: row.name)


def as_tuple(x):
    return x if isinstance(x, tuple) else (x,)


@functools.cache
def arguments(name):
    rng = np.random.default_rng(len(name))
    return {key: draw(kind, rng) for key, kind in ROWS[name].arguments.items()}


def per_token(values):
    """The names of the arguments that hold something for each token."""
    return [name for name, x in values.items() if x.shape[:2] == (B, T)]


def cast(values, dtype=np.float32):
    return {k: jnp.asarray(x, dtype if x.dtype == np.float64 else None) for k, x in values.items()}


def plant(values):
    """Garbage in every masked slot: nan and infinities, ids far out of range, flipped flags."""
    planted = dict(values)
    for name in per_token(values):
        planted[name] = x = values[name].copy()
        slots = x[~MASK]
        if x.dtype == bool:
            x[~MASK] = ~slots
        elif x.dtype == np.float64:
            x[~MASK] = np.resize(GARBAGE, slots.shape)
        else:
            x[~MASK] = np.resize([10**6, -100, -1], slots.shape)
    return planted


def weigh(outputs):
    """A sum in which every element has a weight of its own."""
    return sum((out * np.cos(np.arange(out.size).reshape(out.shape))).sum() for out in as_tuple(outputs))


def evaluate(row):
    """(arguments, hyper, mask) ↦ (gradients of the floating arguments of a weighted sum, values)."""

    def weighted(floats, others, hyper, mask):
        outputs = as_tuple(row.function(**floats, **others, **hyper, mask=mask))
        return weigh(outputs), outputs

    def both(values, hyper, mask):
        floats = {k: x for k, x in values.items() if jnp.issubdtype(x.dtype, jnp.floating)}
        others = {k: x for k, x in values.items() if k not in floats}
        return jax.grad(weighted, has_aux=True)(floats, others, hyper, mask)

    return both


@functools.cache
def compiled(name):
    return jax.jit(evaluate(ROWS[name]))


def hyper_arrays(row):
    return {k: jnp.float32(v) for k, v in row.hyper.items()}


def assert_close(a, b, atol=2e-6):
    chex.assert_trees_all_close(a, b, rtol=2e-5, atol=atol)


@rows
def test_value_is_the_formula(row):
    values = arguments(row.name)
    _, outputs = compiled(row.name)(cast(values), hyper_arrays(row), np.ones_like(MASK))
    for out, expected in zip(outputs, as_tuple(row.formula(*values.values(), **row.hyper)), strict=True):
        assert out.shape == (B, T)
        np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-6)


@rows
@pytest.mark.parametrize("length", [1, 3])
def test_a_padded_sequence_is_the_shorter_one(row, length):
    """What is averaged or summed over a sequence counts the tokens that exist, and divides by their number."""
    values = arguments(row.name)
    short = {k: x[:, :length] if k in per_token(values) else x for k, x in values.items()}
    _, outputs = compiled(row.name)(cast(values), hyper_arrays(row), np.arange(T) < length + np.zeros((B, 1)))
    for out, expected in zip(outputs, as_tuple(row.formula(*short.values(), **row.hyper)), strict=True):
        np.testing.assert_allclose(out[:, :length], expected, rtol=2e-5, atol=2e-6)


@rows
def test_masked_slots_are_never_read(row):
    assert_unread(row, compiled(row.name), atol=0)


@tenth
def test_masked_slots_are_never_read_outside_of_jit(row):
    assert_unread(row, evaluate(row), atol=2e-6)


def assert_unread(row, run, atol):
    values, hyper = arguments(row.name), hyper_arrays(row)
    clean = compiled(row.name)(cast(values), hyper, MASK)
    grads, outputs = run(cast(plant(values)), hyper, MASK)
    for out in outputs:
        assert (np.asarray(out)[~MASK] == 0).all()
    for name in per_token(grads):
        assert (np.asarray(grads[name])[~MASK] == 0).all(), name
    assert_close((grads, outputs), clean, atol=atol)


@rows
def test_gradients_flow_only_where_documented(row):
    grads, _ = compiled(row.name)(cast(arguments(row.name)), hyper_arrays(row), MASK)
    for name, grad in grads.items():
        assert (np.abs(grad).max() > 0) == (name in row.flows), name


def numerical_gradient(function, x):
    grad = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = 1e-6
        grad[i] = (function(x + step) - function(x - step)) / 2e-6
    return grad


FLOWS = [(row, name) for row in TABLE for name in row.flows]


@pytest.mark.parametrize(
    "row, name", slow_but(FLOWS, len(FLOWS) // 9), ids=[f"{row.name}-{name}" for row, name in FLOWS]
)
def test_the_gradient_is_the_derivative_of_the_surrogate(row, name, x64):
    """By finite differences, element by element, in double precision: what counts is exactly what moves."""
    values = arguments(row.name)
    grads, _ = double(row.name)(cast(values, np.float64), row.hyper, MASK)
    at = next(iter(values.values()))
    if row.surrogate is None:
        surrogate = functools.partial(jitted(row.name), mask=MASK)
    else:
        formula = row.surrogate(at, MASK)

        def surrogate(*, hyper, **moved):
            return np.where(MASK, formula(*moved.values(), **hyper), 0)

    def total(x):
        return weigh(jax.tree.map(np.asarray, surrogate(**(values | {name: x}), hyper=row.hyper)))

    expected = numerical_gradient(total, values[name])
    np.testing.assert_allclose(grads[name], expected, rtol=1e-5, atol=1e-7)


@functools.cache
def double(name):
    """As `compiled`, to be called in double precision."""
    return jax.jit(evaluate(ROWS[name]))


@functools.cache
def jitted(name):
    return jax.jit(lambda hyper, mask, **values: ROWS[name].function(**values, **hyper, mask=mask))


@tenth
def test_vmap_is_a_loop_and_leading_axes_are_free(row):
    values, hyper = cast(arguments(row.name)), hyper_arrays(row)
    in_axes = {k: 0 if k in per_token(values) else None for k in values}

    def apply(values, mask):
        return as_tuple(row.function(**values, **hyper, mask=mask))

    _, whole = compiled(row.name)(values, hyper, MASK)
    assert_close(jax.jit(jax.vmap(apply, in_axes=(in_axes, 0)))(values, MASK), whole)
    deeper = {k: x[None] if in_axes[k] == 0 else x for k, x in values.items()}
    assert_close(apply(deeper, MASK[None]), tuple(out[None] for out in whole))


@tenth
def test_a_second_call_does_not_trace_again(row):
    chex.clear_trace_counter()  # chex takes each row's function for the same

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(values, hyper, mask):
        return row.function(**values, **hyper, mask=mask)

    values, hyper = cast(arguments(row.name)), hyper_arrays(row)
    run(values, hyper, MASK)
    run(
        {k: x[::-1] if x.ndim else x for k, x in values.items()}, {k: 1.1 * x for k, x in hyper.items()}, MASK
    )


@tenth
def test_lists_and_masks_of_numbers_are_arrays(row):
    values = arguments(row.name)
    lists = {k: x.tolist() for k, x in values.items()}
    together = as_tuple(row.function(**lists, **row.hyper, mask=MASK.astype(np.float32).tolist()))
    _, outputs = compiled(row.name)(cast(values), hyper_arrays(row), MASK)
    assert_close(together, tuple(outputs))


TUNED_ROWS = [row for row in TABLE if row.hyper]
tuned = pytest.mark.parametrize("row", TUNED_ROWS, ids=lambda row: row.name)
fifth_tuned = pytest.mark.parametrize(
    "row", slow_but(TUNED_ROWS, len(TUNED_ROWS) // 5), ids=lambda row: row.name
)


@fifth_tuned
def test_masked_slots_do_not_reach_the_gradient_of_a_hyper_parameter(row):
    def total(hyper, values):
        return weigh(row.function(**values, **hyper, mask=MASK))

    values, hyper = cast(arguments(row.name)), hyper_arrays(row)
    gradient = jax.jit(jax.grad(total))
    assert_close(gradient(hyper, cast(plant(arguments(row.name)))), gradient(hyper, values))


@fifth_tuned
def test_hyper_parameters_are_mapped(row):
    values, hyper = cast(arguments(row.name)), hyper_arrays(row)
    pair = {k: jnp.stack([x, 1.05 * x]) for k, x in hyper.items()}
    both = jax.jit(jax.vmap(evaluate(row), in_axes=(None, 0, None)))(values, pair, MASK)
    for i in range(2):
        single = compiled(row.name)(values, jax.tree.map(lambda x, i=i: x[i], pair), MASK)
        assert_close(jax.tree.map(lambda x, i=i: x[i], both), single)


@fifth_tuned
def test_hyper_parameters_may_differ_by_sequence(row):
    values = cast(arguments(row.name))
    columns = {k: jnp.float32(v) * jnp.array([[1.0], [1.05], [1.1]]) for k, v in row.hyper.items()}
    together = as_tuple(row.function(**values, **columns, mask=MASK))
    for i in range(B):
        alone = jitted(row.name)({k: x[i, 0] for k, x in columns.items()}, MASK, **values)
        assert_close(tuple(x[i] for x in together), tuple(x[i] for x in as_tuple(alone)))


@tenth
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_dtypes(row, dtype):
    """Losses are float32 or wider, whatever a hyper-parameter is; a gradient has the dtype of its argument."""
    with jax.enable_x64(True):
        values = cast(arguments(row.name), dtype)
        hyper = {k: jnp.float64(v) for k, v in row.hyper.items()}
        grads, outputs = jax.eval_shape(evaluate(row), values, hyper, MASK)
    for out in outputs:
        assert out.dtype == jnp.promote_types(dtype, jnp.float32)
    for name, grad in grads.items():
        assert grad.dtype == values[name].dtype, name


@tenth
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_strict_promotion_is_respected(row, dtype):
    """For users who set `jax_numpy_dtype_promotion`: nothing in here relies on an implicit promotion."""
    with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(evaluate(row), cast(arguments(row.name), dtype), hyper_arrays(row), MASK)


def assert_named(row, wrong, name):
    with pytest.raises(ValueError) as error:
        row.function(**wrong)
    assert re.search(rf"\b{name}( has shape)? \({str(wrong[name].shape)[1:-1]}\)", str(error.value))


@rows
def test_an_argument_of_a_wrong_shape_is_named(row):
    values = cast(arguments(row.name))
    for name in per_token(values)[1:]:
        for wrong in (values[name][:2], values[name][0], values[name][None]):
            assert_named(row, values | row.hyper | {name: wrong}, name)


@rows
def test_one_category_does_not_stand_for_all(row):
    """[..., 1] would broadcast to [..., A], and a divergence of it is below 0. A single sample of a return is a target."""
    if row.function is losses.quantile_huber:
        return
    values = cast(arguments(row.name))
    for name in [name for name in list(values)[1:] if values[name].ndim == 3]:
        assert_named(row, values | row.hyper | {name: values[name][..., :1]}, name)


@tuned
def test_a_hyper_parameter_of_a_wrong_shape_is_named(row):
    """None of these may widen a loss of [3, 4], though NumPy would broadcast them."""
    values = cast(arguments(row.name))
    for name, value in row.hyper.items():
        for shape in ((2, 1, 1), (T,), (1,), (B, T + 1)):
            assert_named(row, values | row.hyper | {name: np.full(shape, value)}, name)


ELSEWHERE = {
    "adaptive_controller": "test_details.py",
    "clip_range": "the bounds of every clip above",
    "clipped_surrogate": "what ppo_clip, gspo and gspo_token do with their ratios",
    "conjugate_gradient": "test_trpo.py",
    "doubling_controller": "test_details.py",
    "fisher_vector_product": "test_trpo.py",
    "fixed_controller": "test_details.py",
    "binary_kl": "tests/lm/test_algorithms.py",
    "binary_tv": "tests/lm/test_algorithms.py",
    "kto_reference_kl": "test_details.py, a mean",
    "line_search": "test_trpo.py",
    "log1mexp": "test_details.py",
    "log_probs_by_chunks": "tests/models/test_token_log_probs.py; what chunked_token_log_probs does",
    "next_token_cross_entropy": "test_details.py, one element shorter",
    "project_categorical": "test_value_distribution.py; no loss",
    "probability_ratio": "the ratio of every row above",
    "associative_recurrence": "tests/test_returns.py",
    "sequential_recurrence": "tests/test_returns.py",
    "step": "test_trpo.py",
}


def public_functions():
    members = {name: getattr(losses, name) for name in losses.__all__} | vars(returns)
    for name, member in members.items():
        ours = inspect.isfunction(member) and member.__module__.startswith(
            ("jaxrl4lm.losses", "jaxrl4lm.ret")
        )
        if ours and not name.startswith("_"):
            yield name, member


@pytest.mark.parametrize("name, function", public_functions(), ids=lambda x: x if isinstance(x, str) else "")
def test_the_table_is_complete(name, function):
    """Every function, and of it every hyper-parameter that may be traced, is in a row."""
    covered = [row for row in TABLE if getattr(row.function, "func", row.function) is function]
    assert bool(covered) != (name in ELSEWHERE)
    hints = typing.get_type_hints(function)
    for parameter in inspect.signature(function).parameters.values():
        hint = str(hints[parameter.name])
        may_be_traced = "Array" in hint and "Callable" not in hint and parameter.name != "mask"
        if covered and may_be_traced:
            assert any(parameter.name in row.hyper | row.arguments for row in covered), parameter.name
