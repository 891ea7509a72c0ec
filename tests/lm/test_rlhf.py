"""The details of RLHF with PPO: what becomes of scores, whitened rewards, the horizon of the price, critics of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import models, training
from jaxrl4lm.arguments import last_token
from jaxrl4lm.lm import algorithms, reinforcement
from jaxrl4lm.lm.credit import actor_critic_credit, shape_rewards
from jaxrl4lm.lm.critic import begin_with_rewards, beside_critic, copy_policy
from jaxrl4lm.lm.trainable import adapters, everything
from jaxrl4lm.types import InputError
from tests.lm.frozen import MASK, REWARDS, ROLLOUT, TRUNCATED, VALUES, B, T, learn
from tests.lm.test_algorithms import COSTS, LAST, NET, configure
from tests.lm.test_reinforcement import CONFIG, INIT, POLICY, SAMPLING, TASK
from tests.training.stages import interrupt_at

SPREAD = jnp.where(last_token(MASK), jnp.asarray(REWARDS)[:, None], 0.0)


@pytest.mark.parametrize(
    "changes, score",
    [
        ({"score_clip": 0.5}, np.minimum(REWARDS, 0.5)),
        ({"missing_end_score": -1.0}, np.where(TRUNCATED, -1, REWARDS)),
        ({"missing_end_penalty": 0.25}, REWARDS - 0.25 * TRUNCATED),
        ({"score_clip": 0.5, "missing_end_score": -1.0}, np.where(TRUNCATED, -1, np.minimum(REWARDS, 0.5))),
    ],
)
def test_scores_are_clipped_and_a_missing_end_costs(changes, score):
    shaped = shape_rewards(SPREAD, ROLLOUT, configure("ppo", **changes))
    np.testing.assert_allclose(shaped, np.where(LAST, score[:, None], 0), rtol=1e-6)


def test_an_update_learns_from_the_shaped_score_and_reports_the_reward():
    config = configure("reinforce", missing_end_penalty=2.0)
    _, gradient, _, metrics = learn(algorithms.REINFORCE, config)
    plain, lowered = config.replace(missing_end_penalty=0.0), REWARDS - 2 * TRUNCATED
    _, same, _, _ = learn(algorithms.REINFORCE, plain, lowered)
    np.testing.assert_allclose(gradient, same, atol=1e-6)
    assert np.abs(gradient).max() > 0.01
    np.testing.assert_allclose(metrics["reward/mean"], REWARDS.mean(), rtol=1e-5)


def test_whitened_rewards_keep_their_mean_and_say_nothing_where_scores_are_equal():
    config = configure("ppo", whiten_rewards=True, whiten_advantages=False, gae_lambda=1.0)
    found = actor_critic_credit(SPREAD, jnp.asarray(COSTS), ROLLOUT, config)
    net = NET[MASK]
    whitened = np.where(MASK, (NET - net.mean()) / net.std() + net.mean(), 0)
    expected = np.cumsum(whitened[:, ::-1], 1)[:, ::-1] * MASK
    np.testing.assert_allclose(found.targets, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.advantages, expected - VALUES * MASK, rtol=1e-4, atol=1e-5)
    equal = jnp.where(last_token(MASK), 0.7, 0.0)
    plain = actor_critic_credit(equal, jnp.asarray(COSTS), ROLLOUT, config.replace(whiten_rewards=False))
    np.testing.assert_array_equal(
        actor_critic_credit(equal, jnp.asarray(COSTS), ROLLOUT, config).targets, plain.targets
    )


def test_the_horizon_sets_the_pace_of_the_price():
    config = configure("ppo", kl_target=1.0, kl_horizon=100.0)
    controller = algorithms.adapt_price(config)
    np.testing.assert_allclose(
        controller.update(jnp.float32(0.1), 9.0, 10), 0.1 * (1 + 0.2 * 10 / 100), rtol=1e-6
    )


def draw(params, learner):
    """A state, completions of four prompts, and the configuration."""
    config = CONFIG.replace(prompts_per_update=4, sampling=SAMPLING)

    @jax.jit
    def sample(params):
        prompts = TASK.sample(jax.random.key(1), 4)
        state = reinforcement.init(jax.random.key(2), config, learner, params)
        return state, reinforcement.sample(state, prompts.tokens, prompts.mask, config, learner)

    return *sample(params), config


def test_a_copied_critic_reads_what_the_head_on_the_trunk_reads():
    params = INIT(jax.random.key(0))
    params = {**params, "value_head": jax.random.normal(jax.random.key(3), (16,))}
    _, rollout, _ = draw(params, reinforcement.Learner(POLICY, algorithms.PPO))
    critic = copy_policy(POLICY)
    unjudged = rollout._replace(values=0 * rollout.values, final_values=jnp.ones(16))
    judged = jax.jit(lambda params, rollout: critic.judge(critic.start(params), rollout))(params, unjudged)
    np.testing.assert_allclose(judged.values * rollout.mask, rollout.values * rollout.mask, atol=1e-5)
    np.testing.assert_allclose(judged.final_values, rollout.final_values, atol=1e-5)
    assert rollout.truncated.any()
    assert np.abs(judged.values).max() > 0.1


def test_a_critic_learns_beside_a_policy_that_has_nothing_to_learn():
    critic = copy_policy(POLICY)
    learner = reinforcement.Learner(
        POLICY, algorithms.PPO, trainable=beside_critic(everything(), critic), critic=critic
    )
    state, rollout, config = draw(INIT(jax.random.key(0)), learner)
    assert set(state.ref_params) == {"policy"}
    config = config.replace(kl_coef=0.0)
    learn = jax.jit(lambda s, r: reinforcement.learn(s, r, jnp.ones(16), config, learner))
    after, metrics = learn(state._replace(kl_coef=jnp.float32(0)), rollout)
    jax.tree.map(np.testing.assert_array_equal, after.params["policy"], state.params["policy"])
    assert (after.params["critic"]["head"].kernel != 0).any()
    assert metrics["value/loss"] > 0


def test_a_reward_model_begins_as_a_critic_that_agrees_with_its_scores():
    params, head = INIT(jax.random.key(0)), models.init_head(jax.random.key(1), 16, 1)
    critic = begin_with_rewards(POLICY, lambda: (params, head), mean=0.5, deviation=2.0)
    tokens = jax.random.randint(jax.random.key(2), (B, T), 2, 8)
    rollout = ROLLOUT._replace(completions=tokens, mask=jnp.ones((B, T), bool), truncated=jnp.ones(B, bool))
    whole = jnp.concatenate([jnp.zeros((B, 1), jnp.int32), tokens], 1)

    @jax.jit
    def read(params, rollout):
        hidden = POLICY.hidden(params, whole)
        return models.sequence_outputs(head, hidden)[:, 0], critic.read(critic.start({}), rollout)[1]

    score, final = read(params, rollout)
    np.testing.assert_allclose(final, (score - 0.5) / 2, atol=1e-5)


@pytest.mark.slow
def test_a_run_with_a_critic_and_adapters_resumes_and_leaves_the_plain_model(tmp_path):
    params = INIT(jax.random.key(0))
    config = CONFIG.replace(updates=2, prompts_per_update=4, epochs=1)
    stage = training.reinforcement(
        POLICY,
        TASK.tokenizer,
        TASK,
        config=config,
        trainable=adapters(rank=2),
        critic=copy_policy(POLICY),
        evaluation=training.Evaluation(lambda params: {}, "nothing", lambda metrics: ""),
        evaluate_every=1,
    )
    whole = training.fit([stage], params)
    assert training.fit([interrupt_at(stage, 0)], params, out=tmp_path / "run").interrupted
    resumed = training.fit([stage], params, out=tmp_path / "run", resume=True)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    assert jax.tree.structure(resumed.params) == jax.tree.structure(params)
    assert {"model", "adapter"} <= {path.name for path in (tmp_path / "run").iterdir()}
    with pytest.raises(InputError, match="a critic is for an algorithm that learns values"):
        training.reinforcement(
            POLICY, TASK.tokenizer, TASK, config=config, algorithm=algorithms.GRPO, critic=copy_policy(POLICY)
        )
