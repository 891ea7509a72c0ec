"""Stages that are no language models: a regression, and an agent with a table."""

import os
import signal
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl4lm import mdp
from jaxrl4lm.agents import tabular
from jaxrl4lm.envs import finite_mdp
from jaxrl4lm.training import Sample, Stage

SLOPE = jnp.array([2.0, -1.0, 0.5])
TX = optax.adam(0.05)


class Regression(NamedTuple):
    """A state of a linear regression."""

    params: Any
    opt_state: Any
    key: jax.Array


def _measure(params):
    x = jax.random.normal(jax.random.key(9), (64, 3))
    return jnp.square(x @ params["slope"] + params["offset"] - x @ SLOPE).mean()


def _regress(state: Regression, _: Any) -> tuple[Regression, dict[str, jax.Array]]:
    key, sub = jax.random.split(state.key)
    x = jax.random.normal(sub, (8, 3))

    def loss(params):
        return jnp.square(x @ params["slope"] + params["offset"] - x @ SLOPE).mean()

    value, grads = jax.value_and_grad(loss)(state.params)
    updates, opt_state = TX.update(grads, state.opt_state)
    return Regression(optax.apply_updates(state.params, updates), opt_state, key), {"loss": value}


_regress_chunk = jax.jit(lambda state, count: jax.lax.scan(_regress, state, length=count), static_argnums=1)
_evaluate = jax.jit(_measure)


def make_regression(steps: int = 8, chunk: int = 2, name: str = "regression", **changes: Any) -> Stage:
    """Least squares by Adam on fresh numbers."""

    def init(params):
        return Regression(jax.tree.map(jnp.copy, params), TX.init(params), jax.random.key(1))

    stage = Stage(
        name=name,
        steps=steps,
        chunk=chunk,
        init=init,
        advance=lambda state, done, count: _regress_chunk(state, count),
        evaluate=lambda params: {"held_out": _evaluate(params)},
        samples=lambda params: [Sample("slope", repr(np.asarray(params["slope"]).tolist()), None)],
        exports={"model": lambda folder, state, scores: np.save(folder / "slope.npy", state.params["slope"])},
        panels={"loss": "squared error", "held_out": "held-out"},
    )
    return stage._replace(**changes)


def make_agent(steps: int = 6, chunk: int = 4) -> Stage:
    """Q-learning in a small world; a step of the stage is fifty of the agent's, and its table the parameters."""
    kernel = np.array([[[0.9, 0.1], [0.1, 0.9]], [[0.1, 0.9], [0.9, 0.1]]])
    world = mdp.from_arrays(kernel, np.array([[0.0, 0.0], [1.0, 1.0]]), discount=0.5)
    env, env_params = finite_mdp.as_environment(world, max_steps=20)
    algorithm, numbers = tabular.q_learning(), tabular.Hyperparameters(discount=0.5)

    def init(params):
        state = tabular.init(jax.random.key(3), env, env_params, algorithm, numbers)
        return state._replace(tables=jnp.copy(params))

    @partial(jax.jit, static_argnums=1)
    def advance(state, count):
        def step(state, _):
            state, metrics = tabular.update(state, env, env_params, algorithm, numbers)
            return state, metrics["reward"]

        state, rewards = jax.lax.scan(step, state, length=50 * count)
        return state, {"reward": rewards.reshape(count, 50).mean(-1)}

    return Stage(
        name="agent",
        steps=steps,
        chunk=chunk,
        init=init,
        advance=lambda state, done, count: advance(state, count),
        params_of=lambda state: state.tables,
    )


def make_params() -> dict[str, jax.Array]:
    return {"slope": jnp.zeros(3), "offset": jnp.zeros(())}


def interrupt_at(stage: Stage, step: int, number: int = signal.SIGTERM) -> Stage:
    """The stage, with a signal while the chunk runs that begins at a step."""

    def advance(state, done, count):
        if done == step:
            os.kill(os.getpid(), number)
        return stage.advance(state, done, count)

    return stage._replace(advance=advance)
