"""A network with a memory: step by step it says what it says of whole sequences, and an episode knows nothing of the last."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm.models import RecurrentPolicy

POLICY = RecurrentPolicy(3, (2, 4), width=8, constants=2)
rng = np.random.default_rng(0)
OBSERVATIONS = jnp.asarray(rng.normal(size=(6, 5, 2, 4)), jnp.float32)
BEGINS = jnp.asarray(rng.random((6, 5)) < 0.3)
MEMORY = jnp.asarray(rng.normal(size=(5, 8)), jnp.float32)


def step_through(params, memory, observations, begins):
    outputs, memories = [], []
    for observation, begin in zip(observations, begins, strict=True):
        out, memory = POLICY.step(params, memory, observation, begin)
        outputs.append(out)
        memories.append(memory)
    return jnp.stack(outputs), jnp.stack(memories)


def test_steps_are_the_sequence():
    params = jax.jit(POLICY.init)(jax.random.key(0))
    given = params, MEMORY, OBSERVATIONS, BEGINS
    for whole, parts in zip(jax.jit(POLICY.apply)(*given), jax.jit(step_through)(*given), strict=True):
        np.testing.assert_allclose(whole, parts, rtol=1e-5, atol=1e-6)


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


def test_an_episode_knows_nothing_of_the_last_and_all_of_its_own():
    """By gradients: of the outputs of a moment with respect to each observation, and to the memory from before."""
    params = jax.jit(POLICY.init)(jax.random.key(0))
    begins = jnp.zeros((6, 5), bool).at[3].set(True)

    def measure(t):
        return jax.jit(
            jax.grad(lambda x, memory: POLICY.apply(params, memory, x, begins)[0][t, :, :3].sum(), (0, 1))
        )(OBSERVATIONS, MEMORY)

    seen, memory = measure(5)
    np.testing.assert_array_equal(np.abs(seen).sum((1, 2, 3)) > 0, [0, 0, 0, 1, 1, 1])
    assert not memory.any()
    seen, memory = measure(2)
    np.testing.assert_array_equal(np.abs(seen).sum((1, 2, 3)) > 0, [1, 1, 1, 0, 0, 0])
    assert memory.any()
