"""Networks with a memory: step by step they say what they say of whole sequences, and an episode knows nothing of the last."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxrl4lm.models import Convolution, RecurrentPolicy, Transformer, TransformerPolicy
from jaxrl4lm.types import InputError

POLICY = RecurrentPolicy(3, (2, 4), width=8, constants=2)
TRANSFORMER = TransformerPolicy(3, (2, 4), width=8, heads=2, constants=2)
POLICIES = {
    "recurrent": POLICY,
    "transformer": TRANSFORMER,
    "transformer of a short memory": dataclasses.replace(TRANSFORMER, span=2),
}
rng = np.random.default_rng(0)
OBSERVATIONS = jnp.asarray(rng.normal(size=(6, 5, 2, 4)), jnp.float32)
BEGINS = jnp.asarray(rng.random((6, 5)) < 0.3)
MEMORY = jnp.asarray(rng.normal(size=(5, 8)), jnp.float32)
BEFORE = jnp.asarray(rng.normal(size=(4, 5, 2, 4)), jnp.float32)


def begin(policy):
    """Parameters far from zero, and the memory after four moments of an episode."""
    params = jax.jit(policy.init)(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.2 * jnp.asarray(rng.normal(size=x.shape), x.dtype), params)
    begins = jnp.zeros((4, 5), bool).at[0].set(True)
    _, memories = jax.jit(policy.apply)(params, policy.start(5), BEFORE, begins)
    return params, jax.tree.map(lambda x: x[-1], memories)


def step_through(policy, params, memory, observations, begins):
    def once(memory, at):
        outputs, memory = policy.step(params, memory, *at)
        return memory, (outputs, memory)

    return jax.lax.scan(once, memory, (observations, begins))[1]


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_steps_are_the_sequence(policy):
    given = *begin(policy), OBSERVATIONS, BEGINS
    whole = jax.jit(policy.apply)(*given)
    parts = jax.jit(step_through, static_argnums=0)(policy, *given)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), whole, parts)


@pytest.mark.parametrize("span", [2, 64])
def test_a_transformer_plays_an_episode_as_it_reads_a_text(span):
    """What remembers and forgets says what the language model says of each episode alone, as one text."""
    policy = dataclasses.replace(TRANSFORMER, span=span)
    params, memory = begin(policy)
    outputs, _ = jax.jit(policy.apply)(params, memory, OBSERVATIONS, BEGINS)
    np.testing.assert_array_equal(outputs[..., 3:], np.broadcast_to(params["constants"], (6, 5, 2)))
    network = Transformer(policy.language.config)
    assert policy.language.config.windows == (span + 1,) * 2
    read = jax.jit(
        lambda text: network.apply({"params": params["transformer"]}, text, jnp.arange(10)[None])[0]
    )
    for copy in range(5):
        seen = np.concatenate([BEFORE[:, copy], OBSERVATIONS[:, copy]]).reshape(10, 8)
        weights = np.concatenate([seen, np.ones((10, 1))], 1)  # 1 for the bias
        begins = [0, *(4 + np.flatnonzero(BEGINS[:, copy])), 10]
        for first, end in itertools.pairwise(begins):
            text = np.zeros((1, 10, 9), np.float32)
            text[0, : end - first] = weights[first:end]
            shown = max(first, 4)
            said = read(text)[0, shown - first : end - first, :3]
            np.testing.assert_allclose(outputs[shown - 4 : end - 4, copy, :3], said, rtol=1e-4, atol=1e-5)


def test_the_unit_is_that_of_the_paper():
    """One step in NumPy: h′ = (1 − z)·n + z·h, n = tanh(W x + r·(U h))."""
    params = jax.tree.map(np.asarray, jax.jit(POLICY.init)(jax.random.key(0)))
    output, memory = map(
        np.asarray, jax.jit(POLICY.step)(params, MEMORY, OBSERVATIONS[0], jnp.zeros(5, bool))
    )

    def dense(name, x, parts=params["cell"]):
        return x @ parts[name]["kernel"] + parts[name].get("bias", 0)

    h = np.asarray(MEMORY)
    x = np.tanh(dense("embedding", np.asarray(OBSERVATIONS[0]).reshape(5, 8), params))
    r, z = (1 / (1 + np.exp(-dense(f"i{gate}", x) - dense(f"h{gate}", h))) for gate in "rz")
    n = np.tanh(dense("in", x) + r * dense("hn", h))
    np.testing.assert_allclose(memory, (1 - z) * n + z * h, rtol=1e-4, atol=1e-6)
    read = params["readout"]
    outputs = memory @ read["Dense_0"]["kernel"] + read["Dense_0"]["bias"]
    np.testing.assert_allclose(output[:, :3], outputs, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(output[:, 3:], np.broadcast_to(read["constants"], (5, 2)))


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_an_episode_knows_nothing_of_the_last_and_all_of_its_own(policy):
    """By gradients: of the outputs of a moment with respect to each observation, and to the memory from before."""
    params, memory = begin(policy)
    begins = jnp.zeros((6, 5), bool).at[3].set(True)
    numbers, structure = jax.tree.flatten(memory)
    floats = [x for x in numbers if jnp.issubdtype(x.dtype, jnp.floating)]

    def measure(t):
        def output(seen, floats):
            given = iter(floats)
            full = [next(given) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in numbers]
            memory = jax.tree.unflatten(structure, full)
            return policy.apply(params, memory, seen, begins)[0][t, :, :3].sum()

        seen, memory = jax.jit(jax.grad(output, (0, 1)))(OBSERVATIONS, floats)
        return np.abs(seen).sum((1, 2, 3)) > 0, any(bool(x.any()) for x in memory)

    seen, remembers = measure(5)
    np.testing.assert_array_equal(seen, [0, 0, 0, 1, 1, 1])
    assert not remembers
    seen, remembers = measure(2)
    np.testing.assert_array_equal(seen, [1, 1, 1, 0, 0, 0])
    assert remembers


@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
def test_a_dense_layer_of_windows_is_a_convolution(leading):
    images = jnp.asarray(rng.normal(size=(*leading, 7, 6, 4)), jnp.float32)
    network = Convolution(2, channels=3, width=8)
    params = jax.jit(network.init)(jax.random.key(0), images)["params"]
    first, second, last = (params[name] for name in ("Dense_0", "Dense_1", "_Readout_0"))
    first["bias"] += jnp.arange(3.0)
    known = {"kernel": first["kernel"].reshape(3, 3, 4, 3), "bias": first["bias"]}
    hidden = nn.relu(nn.Conv(3, (3, 3), padding="VALID").apply({"params": known}, images))
    hidden = nn.relu(hidden.reshape(*leading, -1) @ second["kernel"])
    outputs = network.apply({"params": params}, images)
    np.testing.assert_allclose(outputs, hidden @ last["Dense_0"]["kernel"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "sizes, words",
    [
        ({"span": 0}, "span must be a whole number, 1 or more, not 0"),
        ({"span": 2.5}, r"span must be a whole number, 1 or more, not 2\.5"),
        ({"span": "4"}, "span must be a whole number, 1 or more, not '4'"),
        ({"layers": True}, "layers must be a whole number, 1 or more, not True"),
        ({"constants": -1}, "constants must be a whole number, 0 or more, not -1"),
        ({"shape": 4}, r"shape must be that of an observation, as \(4,\), not 4"),
        ({"shape": (3, 0)}, "a size of shape must be a whole number, 1 or more, not 0"),
        ({"width": 32, "heads": 3}, "width 32 does not divide into the 3 heads: give a multiple"),
    ],
)
def test_a_transformer_that_cannot_be_is_refused(sizes, words):
    with pytest.raises(InputError, match=words):
        TransformerPolicy(2, **{"shape": (4,), **sizes})
