"""The fast rollout against the token-level MDP, one gymnax step a token: the same texts, log-probs, rewards, returns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import returns, tasks
from jaxrl4lm.arguments import last_token
from jaxrl4lm.decoding import Sampling, draw, draw_row_uniforms
from jaxrl4lm.envs.token import TokenEnvironment
from jaxrl4lm.lm.rollouts import rollout
from jaxrl4lm.models import LanguagePolicy, TransformerConfig
from tests.selection import slow_but

ROWS, TEMPERATURE = 12, 0.9


@pytest.fixture(scope="module", params=slow_but(["sparse", "dense"], 1))
def both(request):
    """The same texts twice: the rollout's, and those of an agent in the environment with the same uniforms."""
    any_even = tasks.addition(1)._replace(
        reward=lambda prompts, completions, mask: (completions % 2 * mask).sum(-1) / 2
    )
    task = {"sparse": any_even, "dense": tasks.copy(2)}[request.param]
    tokenizer = task.tokenizer
    policy = LanguagePolicy(TransformerConfig(tokenizer.vocab_size, layers=1, width=16, heads=2, context=16))
    params = jax.tree.map(lambda x: 6 * x, policy.init(jax.random.key(0)))
    key, problems = jax.random.key(1), task.sample(jax.random.key(2), ROWS)
    fast = jax.jit(
        lambda: rollout(
            policy,
            params,
            problems.tokens,
            problems.mask,
            key,
            Sampling(task.completion_length, tokenizer.eos_id, tokenizer.pad_id, temperature=TEMPERATURE),
        )
    )()
    environment = TokenEnvironment(task)
    env_params = environment.default_params
    uniforms = draw_row_uniforms(key, jnp.arange(ROWS), task.completion_length)

    def episode(prompt, uniform):
        observation, state = environment.reset_to(jax.tree.map(lambda x: x[None], prompt), env_params)

        def step(carry, u):
            observation, state, alive = carry
            # Padding that is still to be written is masked, wherever it stands.
            logits, values = policy.apply(params, observation.tokens[None], observation.mask[None])
            here = observation.mask.sum() - 1
            logits = logits[0, here] / TEMPERATURE
            token = draw(logits[None], u[None])[0]
            observation, state, reward, terminated, info = environment.step_env(key, state, token, env_params)
            del info
            truncated = environment.is_truncated(state, env_params)
            out = (
                token,
                jax.nn.log_softmax(logits)[token],
                values[0, here],
                reward,
                terminated,
                truncated,
                alive,
            )
            return (observation, state, alive & ~terminated & ~truncated), out

        return jax.lax.scan(step, (observation, state, jnp.array(True)), uniform)[1]

    slow = jax.jit(jax.vmap(episode))(problems, uniforms)
    rewards = tasks.token_rewards(task.reward(problems, fast.completions, fast.mask), fast.mask)
    return fast, rewards, slow


def test_same_tokens_and_ends(both):
    fast, _, (tokens, _, _, _, terminated, truncated, alive) = both
    np.testing.assert_array_equal(fast.mask, alive)
    np.testing.assert_array_equal(jnp.where(fast.mask, fast.completions, 0), jnp.where(alive, tokens, 0))
    last = last_token(fast.mask)
    np.testing.assert_array_equal(fast.truncated, (last & truncated & ~terminated).any(-1))
    assert fast.truncated.any()
    assert not fast.truncated.all()


def test_same_log_probs_and_values(both):
    fast, _, (_, log_probs, values, *_) = both
    np.testing.assert_allclose(fast.log_probs, jnp.where(fast.mask, log_probs, 0), atol=1e-5)
    np.testing.assert_allclose(fast.values, jnp.where(fast.mask, values, 0), atol=1e-5)


def test_same_rewards_and_returns(both):
    fast, rewards, (_, _, _, slow_rewards, *_, alive) = both
    slow_rewards = jnp.where(alive, slow_rewards, 0)
    np.testing.assert_allclose(rewards, slow_rewards, atol=1e-6)
    assert (rewards != 0).any()
    np.testing.assert_allclose(
        returns.discounted_returns(rewards, discount=0.9, mask=fast.mask, axis=1),
        returns.discounted_returns(slow_rewards, discount=0.9, mask=alive, axis=1),
        atol=1e-6,
    )


def test_gymnax_contract():
    environment = TokenEnvironment(tasks.addition(1))
    params = environment.default_params
    observation, state = environment.reset(jax.random.key(0), params)
    assert environment.observation_space(params).contains(observation)
    eos = environment.task.tokenizer.eos_id
    _, _, reward, terminated, truncated, info = environment.step(
        jax.random.key(1), state, jnp.int32(eos), params
    )
    assert terminated
    assert not truncated
    assert reward == 0.0
    final = info["final_observation"]
    assert final.tokens[environment.task.prompt_length] == eos
    for _ in range(environment.task.completion_length):
        _, state, _, terminated, truncated, _ = environment.step(
            jax.random.key(1), state, jnp.int32(3), params
        )
    assert truncated
    assert not terminated
