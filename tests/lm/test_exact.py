"""Exact answers on enumerable language models: against brute force, the exact solvers, the environment; and what algorithms'
gradients are on average."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import mdp, returns, tasks
from jaxrl4lm.arguments import last_token
from jaxrl4lm.decoding import Sampling
from jaxrl4lm.envs.token import TokenEnvironment, TokenState
from jaxrl4lm.envs.token_tree import as_finite_mdp, grow
from jaxrl4lm.lm import algorithms, estimators, exact, gap, reinforcement
from jaxrl4lm.lm.rollouts import Rollout, score
from jaxrl4lm.lm.table import TablePolicy
from jaxrl4lm.models import LanguagePolicy, TransformerConfig
from jaxrl4lm.tasks import Prompts
from jaxrl4lm.types import InputError
from tests.selection import slow_but

TASK = tasks.lottery(4, 2, seed=3)
TREE = grow(TASK, TASK.sample(jax.random.key(0), 1))
DENSE_TASK = tasks.Task(
    **{
        **TASK._asdict(),
        "reward": lambda prompts, completions, mask: (completions * 0.1 + prompts.tokens[:, :1] * 0.2) * mask,
    }
)
TWO = Prompts(
    jnp.array([[0, 2], [2, 3]]),
    jnp.array([[False, True], [True, True]]),
    jnp.zeros((2, 2), jnp.int32),
    jnp.zeros((2, 2), bool),
)
DENSE = grow(DENSE_TASK, TWO)
POLICY = LanguagePolicy(TransformerConfig.gpt2(4, layers=1, width=16, heads=2, context=6))


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 3 * x, jax.jit(POLICY.init)(jax.random.key(0)))


def random_logits(tree, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=tree.rewards.shape))


# ── all completions ──────────────────────────────────────────────────────────────────────────────────────


def test_every_completion_is_there_once_with_its_probability(params):
    """Two prompts of different length, at a temperature, by one pass; beside the scores of rollouts."""
    found = {tuple(c[m]) for c, m in zip(np.asarray(DENSE.completions), np.asarray(DENSE.mask), strict=True)}
    cut = {text[: text.index(1) + 1] if 1 in text else text for text in itertools.product(range(4), repeat=2)}
    assert found == cut
    assert len(DENSE.completions) == len(cut) == 13
    sampling = Sampling(2, 1, 0, temperature=0.7)
    both = [jnp.tile(x, (2, 1)) for x in (DENSE.completions, DENSE.mask)]
    nothing = (jnp.zeros((26, 2)),) * 2 + (jnp.zeros(26),) * 2
    scores = jax.jit(lambda p: score(POLICY, p, Rollout(TWO.tokens, TWO.mask, *both, *nothing), sampling))(
        params
    )
    logits = jax.jit(lambda p: exact.read_logits(POLICY, p, DENSE, 0.7))(params)
    values = jax.jit(lambda p: exact.read_values(POLICY, p, DENSE))(params)
    expected = np.where(both[1], scores.log_probs, 0).reshape(2, 13, 2)
    np.testing.assert_allclose(exact.token_log_probs(DENSE, logits), expected, atol=1e-5)
    np.testing.assert_allclose(np.exp(exact.log_probs(DENSE, logits)).sum(-1), 1, atol=1e-5)
    before = np.where(DENSE.mask, values[:, DENSE.states], 0)
    np.testing.assert_allclose(before, np.where(both[1], scores.values, 0).reshape(2, 13, 2), atol=1e-5)
    rewards = DENSE_TASK.reward(jax.tree.map(lambda x: jnp.repeat(x, 13, 0), TWO), *both).reshape(2, 13, 2)
    np.testing.assert_allclose(DENSE.token_rewards(), rewards, atol=1e-6)


def test_too_many_completions_are_refused():
    with pytest.raises(InputError, match="22,222,222,222 completions of 10 tokens out of 11"):
        grow(tasks.lottery(11, 1)._replace(completion_length=10), TWO)


# ── the exact solvers ────────────────────────────────────────────────────────────────────────────────────


def test_soft_value_iteration_finds_the_closed_form(x64):
    """π* = π_ref exp(R/β)/Z: of completions here, of tokens there. Its value is β log Z, and nothing is left to gain."""
    tree = DENSE._replace(rewards=jnp.asarray(DENSE.rewards, float))
    world, beta = as_finite_mdp(tree), 0.3
    ref_logits = random_logits(tree, 0)
    best, log_z = exact.tilt(tree, exact.log_probs(tree, ref_logits), beta)
    reference = jax.nn.softmax(ref_logits.reshape(-1, 4))
    reference = jnp.concatenate([reference, jnp.full((1, 4), 0.25)])
    solution = mdp.soft_value_iteration(world, temperature=beta, reference=reference, tolerance=1e-12)
    soft = jnp.log(solution.policy[:-1]).reshape(ref_logits.shape)
    np.testing.assert_allclose(exact.log_probs(tree, soft), best, atol=1e-8)
    np.testing.assert_allclose(solution.values[:-1:4], beta * log_z, atol=1e-8)
    at_best = exact.evaluate(tree, soft, ref_logits, beta)
    np.testing.assert_allclose([at_best.value, at_best.gap], [at_best.best, 0], atol=1e-8)
    slope = jax.grad(lambda logits: exact.evaluate(tree, logits, ref_logits, beta).value)
    np.testing.assert_allclose(slope(soft), 0, atol=1e-8)
    other = jax.jit(jax.vmap(lambda b: exact.evaluate(tree, random_logits(tree, 1), ref_logits, b)))(
        jnp.array([0.1, 0.3])
    )
    np.testing.assert_allclose(other.gap * jnp.array([0.1, 0.3]), other.best - other.value, atol=1e-10)
    assert other.gap.min() > 0.1
    assert abs(other.kl - other.forward_kl).min() > 0.01


def test_the_policy_gradient_theorem_passes_through_the_transformer(params):
    """∂J/∂θ by the MDP's visits and advantages, pulled back through the logits, is the gradient of J itself."""
    world = as_finite_mdp(DENSE)

    def read(params):
        return exact.read_logits(POLICY, params, DENSE)

    def gain(logits):
        return exact.evaluate(DENSE, logits, logits, 1.0).reward

    @jax.jit
    def both(params):
        logits, pull = jax.vjp(read, params)
        rows = jnp.concatenate([logits.reshape(-1, 4), jnp.zeros((1, 4))])
        theorem = mdp.policy_gradient(world, rows)[:-1].reshape(logits.shape)
        return (theorem, pull(theorem)[0]), (
            jax.grad(gain)(logits),
            jax.grad(lambda p: gain(read(p)))(params),
        )

    theorem, direct = both(params)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), theorem, direct)
    assert max(abs(x).max() for x in jax.tree.leaves(direct[1])) > 1e-2


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95])
def test_gae_with_the_exact_critic_is_the_exact_advantage(gae_lambda):
    """Of each prefix and token: the mean of what follows. At λ = 0 nothing is left to chance."""
    logits = random_logits(DENSE, 2).astype(jnp.float32)
    world, policy = as_finite_mdp(DENSE), jax.nn.softmax(jnp.pad(logits.reshape(-1, 4), ((0, 1), (0, 0))))
    values = mdp.policy_values(world, policy)
    advantages = (mdp.policy_action_values(world, policy) - values[:, None])[:-1].reshape(logits.shape)
    before = jnp.where(DENSE.mask[None], values[:-1].reshape(2, 4)[:, DENSE.states], 0)
    last = last_token(DENSE.mask)
    estimate = returns.generalized_advantage_estimation(
        DENSE.token_rewards()[1],
        before[1],
        jnp.pad(before[1, :, 1:], ((0, 0), (0, 1))),
        last,
        last,
        discount=1.0,
        gae_lambda=gae_lambda,
        mask=DENSE.mask,
        axis=1,
    )[0]
    chances = np.exp(exact.log_probs(DENSE, logits))[1]
    for s, a in np.ndindex(4, 4):
        here = np.asarray((DENSE.states == s) & (DENSE.completions == a) & DENSE.mask)
        weights = (chances[:, None] * here) / (chances[:, None] * here).sum()
        np.testing.assert_allclose((weights * estimate).sum(), advantages[1, s, a], atol=1e-5)
        if gae_lambda == 0:
            np.testing.assert_allclose(estimate[here], advantages[1, s, a], atol=1e-5)


def test_the_environment_takes_the_same_steps():
    """Every token after every prefix: reward, end and what follows."""
    environment = TokenEnvironment(DENSE_TASK)
    env_params = environment.default_params
    S, V = DENSE.successors.shape
    first = jax.tree.map(lambda x: x[:1], TWO)
    lengths = jnp.repeat(jnp.arange(2), np.array(DENSE.level_sizes[:2]), total_repeat_length=S)

    def step(text, time, action):
        state = TokenState(prompts=first, completion=text, time=time)
        _, state, reward, terminated, _ = environment.step_env(jax.random.key(0), state, action, env_params)
        return reward, terminated, environment.is_truncated(state, env_params), state.completion

    over_tokens = jax.vmap(step, (None, None, 0))
    found = jax.jit(jax.vmap(over_tokens, (0, 0, None)))(DENSE.texts[:S], lengths, jnp.arange(V))
    reward, terminated, truncated, text = found
    np.testing.assert_allclose(reward, DENSE.rewards[0], atol=1e-6)
    np.testing.assert_array_equal(terminated, DENSE.successors < 0)
    np.testing.assert_array_equal(truncated & ~terminated, DENSE.successors >= S)
    going = np.asarray(DENSE.successors >= 0)
    np.testing.assert_array_equal(text[going], DENSE.texts[DENSE.successors[going]])


def test_the_best_of_n_is_what_drawing_says():
    log_p = exact.log_probs(TREE, random_logits(TREE, 4))
    scores = np.asarray(TREE.token_rewards().sum(-1)[0])
    members = np.array(list(itertools.product(range(13), repeat=3)))
    chances = np.exp(np.asarray(log_p)[0])[members].prod(-1)
    winners = np.take_along_axis(members, scores[members].argmax(-1)[:, None], -1)[:, 0]
    expected = np.bincount(winners, chances, minlength=13)
    np.testing.assert_allclose(np.exp(exact.best_of(TREE, log_p, 3))[0], expected, atol=1e-6)


# ── what gradients are on average ────────────────────────────────────────────────────────────────────────

TABLE = TablePolicy(TREE)
A2C = algorithms.A2C._replace(reduction=algorithms.RLOO.reduction)
SEQUENCES = ("sequence_k2", "sequence_ratio", "reward")


def weigh_sequences(scores, old_log_probs, advantages, mask, config):
    ratios = jnp.where(mask, scores.log_probs - old_log_probs, 0.0).sum(-1, keepdims=True)
    return jax.lax.stop_gradient(jnp.broadcast_to(jnp.exp(ratios), mask.shape))


def make_point(off_policy=False):
    empty = TABLE.init(jax.random.key(0))
    learning, reference, other = (random_logits(TREE, i)[0].astype(jnp.float32) for i in range(3))
    old = other if off_policy else learning
    values = jax.random.normal(jax.random.key(2), empty["values"].shape)
    return estimators.Point(*({"logits": logits, "values": values} for logits in (learning, reference, old)))


def configure(algorithm, **changes):
    sampling = Sampling(2, 1, 0, temperature=changes.pop("temperature", 1.0))
    free = {
        "kl_coef": 0.3,
        "value_coef": 0.0,
        "entropy_coef": 0.0,
        "truncation": "terminal",
        "completions": 2,
    }
    return algorithm.configure(**free | {"prompts_per_update": 1, "sampling": sampling} | changes)


def find_bias(algorithm, off_policy=False, **changes):
    learner = reinforcement.Learner(TABLE, algorithm)  # pyright: ignore[reportArgumentType]
    config, point = configure(algorithm, **changes), make_point(off_policy)

    @jax.jit
    def find():
        estimate = estimators.enumerate_updates(TREE, learner, config, point)
        true = estimators.find_gradient(TREE, learner, config, point)
        return estimators.measure_bias(estimate, true), estimate, true

    return find()


FREE = algorithms.RLOO._replace(kl=algorithms.KL())
UNBIASED = {
    **{
        f"RLOO, KL: {kl}": (algorithms.RLOO._replace(kl=algorithms.KL_PLACEMENTS[kl]), {}, 1)
        for kl in SEQUENCES
    },
    "RLOO, four, cool": (algorithms.RLOO, {"completions": 4, "temperature": 0.7}, 1),
    "A2C, any critic, KL in the reward": (A2C, {"entropy_coef": 0.0}, 1),
    "Dr.GRPO: (n − 1)/n, over the longest": (algorithms.DR_GRPO, {"kl_coef": 0.0}, 1 / 4),
    "off-policy, weighed by completions": (
        FREE._replace(weights=(weigh_sequences,)),
        {"kl_coef": 0.0, "off_policy": True},
        1,
    ),
}


@pytest.mark.parametrize(
    "case", slow_but(UNBIASED, ["RLOO, KL: reward", "A2C, any critic, KL in the reward"])
)
def test_unbiased_estimators(case):
    algorithm, changes, scale = UNBIASED[case]
    bias, _, _ = find_bias(algorithm, **changes)
    np.testing.assert_allclose([bias.scale, bias.angle], [scale, 0], atol=2e-2 * scale)
    np.testing.assert_allclose(bias.distance, abs(1 - scale), atol=1e-3)


BIASED = {
    "token k3": (algorithms.RLOO._replace(kl=algorithms.KL_PLACEMENTS["k3"]), {}, 5),
    "token k2": (algorithms.RLOO._replace(kl=algorithms.KL_PLACEMENTS["k2"]), {}, 5),
    "scaled by the group's deviation": (algorithms.GRPO._replace(kl=algorithms.KL()), {"kl_coef": 0.0}, 5),
    "truncation bootstrapped, though scored": (A2C, {"truncation": "bootstrap"}, 5),
    "truncated completions left out": (A2C, {"truncation": "mask"}, 5),
    "off-policy, not corrected": (FREE, {"kl_coef": 0.0, "off_policy": True}, 5),
    "off-policy, ratios of tokens": (
        FREE._replace(surrogate=algorithms.surrogates.free_ratio),
        {"kl_coef": 0.0, "off_policy": True},
        5,
    ),
}


@pytest.mark.parametrize("case", slow_but(BIASED, ["truncation bootstrapped, though scored"]))
def test_biased_estimators(case):
    """A warning kept true: docs/exact.md says so, with numbers."""
    algorithm, changes, degrees = BIASED[case]
    assert find_bias(algorithm, **changes)[0].angle > degrees


def test_drawn_updates_agree_with_all_of_them():
    """Two prompts of an update halve the variance; a mean over draws is as near as its error says."""
    _, whole, _ = find_bias(algorithms.RLOO)
    learner = reinforcement.Learner(TABLE, algorithms.RLOO)  # pyright: ignore[reportArgumentType]
    config = configure(algorithms.RLOO, prompts_per_update=2)
    sample = jax.jit(lambda k: estimators.sample_updates(k, TREE, learner, config, make_point(), 3000))
    drawn = sample(jax.random.key(5))
    distance = jnp.linalg.norm(drawn.mean["logits"] - whole.mean["logits"])
    assert 0 < distance < 3 * drawn.error
    np.testing.assert_allclose(drawn.variance, whole.variance / 2, rtol=0.05)


def test_what_cannot_be_enumerated_is_refused():
    learner = reinforcement.Learner(TABLE, algorithms.RLOO)  # pyright: ignore[reportArgumentType]
    for changes, words in (
        ({"prompts_per_update": 2}, "prompts_per_update is 2"),
        ({"completions": 16}, "completions is 16, and 13 completions make 30,421,755 groups"),
        ({"sampling": Sampling(2, 1, 0, stop_sequences=jnp.array([[2]]))}, "plain temperature sampling"),
    ):
        with pytest.raises(InputError, match=words):
            estimators.enumerate_updates(TREE, learner, configure(algorithms.RLOO, **changes), make_point())


@pytest.mark.slow
def test_where_an_algorithm_must_end():
    """RLOO at the optimum; GRPO, whose rewards are scaled and whose KL is another, elsewhere; experts at certainty."""
    contest = gap.open_contest(tasks.lottery(3, 2, highest=4.0), completions=2)
    rloo, grpo = (
        jax.jit(partial(gap.settle, contest, algorithm=algorithms.ALGORITHMS[name]))(1.0)
        for name in ("rloo", "grpo")
    )
    assert 0 <= rloo < 1e-5
    assert grpo > 0.05
    ref = exact.log_probs(contest.tree, contest.ref_logits)
    certain = jnp.full_like(ref, -jnp.inf).at[0, contest.tree.token_rewards().sum(-1)[0].argmax()].set(0.0)
    collapsed = exact.compare(contest.tree, certain, ref, 1.0)
    np.testing.assert_allclose(gap.find_collapse(contest, 1.0), collapsed.gap, rtol=1e-5)
    np.testing.assert_allclose(collapsed.best - collapsed.value, collapsed.gap, rtol=1e-5)
