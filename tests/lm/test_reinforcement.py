"""The LM-RL iteration: identities that must hold, the two drivers, populations, and the optimum that is known."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl4lm import decoding, losses, models, tasks
from jaxrl4lm.lm import ReinforcementConfig, algorithms, credit, gap, reinforcement, trainable
from jaxrl4lm.lm.rollouts import score
from jaxrl4lm.models import LanguagePolicy, TransformerConfig
from tests.selection import slow_but

# Anybody can learn to say "7" twice and stop.
SEVEN = 10
TASK = tasks.addition(1)._replace(
    reward=lambda prompts, completions, mask: (completions == jnp.array([[SEVEN, SEVEN, 1]])).mean(-1)
)
POLICY = LanguagePolicy(TransformerConfig(TASK.tokenizer.vocab_size, layers=1, width=16, heads=2, context=16))
INIT = jax.jit(POLICY.init)
SAMPLING = decoding.Sampling(TASK.completion_length, eos_id=1, pad_id=0)
CONFIG = ReinforcementConfig(
    learning_rate=3e-3,
    prompts_per_update=8,
    completions=4,
    epochs=2,
    minibatches=2,
    updates=3,
    sampling=SAMPLING,
)
ALGORITHMS = {
    "ppo": algorithms.PPO,
    "reinforce": algorithms.REINFORCE,
    "grpo": algorithms.GRPO,
    "rloo": algorithms.RLOO,
}


def learner_of(algorithm):
    return reinforcement.Learner(POLICY, algorithm)


def start(config=CONFIG, algorithm=algorithms.PPO, seed=0):
    begin = jax.jit(lambda key, params: reinforcement.init(key, config, learner_of(algorithm), params))
    return begin(jax.random.key(seed), INIT(jax.random.key(7)))


def assert_trees_close(a, b, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=0), a, b)


@pytest.mark.parametrize("name", slow_but(ALGORITHMS, ["grpo"]))
def test_first_step_is_on_policy_and_learning_raises_the_reward(name):
    config = CONFIG.replace(updates=40, epochs=1, minibatches=1, learning_rate=1e-2)
    learner = learner_of(ALGORITHMS[name])
    state = start(config, ALGORITHMS[name])
    _, metrics = jax.jit(lambda s: reinforcement.run(s, config, learner, TASK, config.updates))(state)
    np.testing.assert_allclose(metrics["policy/ratio_mean"], 1.0, atol=1e-5)
    assert metrics["mismatch/logprob_diff_max"].max() < 1e-5
    assert abs(metrics["kl/ref_sequence"][0]) < 1e-5
    assert (metrics["kl/ref"] >= 0).all()
    early, late = metrics["reward/mean"][:3].mean(), metrics["reward/mean"][-3:].mean()
    assert late > early + 0.4


@pytest.fixture(scope="module")
def halves():
    """A rollout, and the two jitted halves that a host driver calls."""
    learner = learner_of(algorithms.PPO)
    state = start()
    prompts = jax.jit(lambda key: TASK.sample(key, CONFIG.prompts_per_update))(jax.random.key(3))
    sample = jax.jit(lambda s, p: reinforcement.sample(s, p.tokens, p.mask, CONFIG, learner))
    learn = jax.jit(lambda s, t, r: reinforcement.learn(s, t, r, CONFIG, learner))
    return state, sample(state, prompts), learn, sample


def test_any_end_token_ends_and_padding_of_the_vocabulary_is_no_token():
    known, ends = TASK.tokenizer.vocab_size, (1, 5, SEVEN)
    policy = LanguagePolicy(dataclasses.replace(POLICY.config, vocab_size=known + 2), tokens=known)
    learner = reinforcement.Learner(policy, algorithms.PPO)
    config = CONFIG.replace(sampling=decoding.Sampling(8, ends, 0))
    params = jax.jit(policy.init)(jax.random.key(7))
    # Rows that would be chosen before all others: opposite ones, so that one of them always is.
    params["embedding"] = params["embedding"].at[known:].set(9 * jnp.array([[1.0], [-1.0]]))

    @jax.jit
    def draw(params):
        state = reinforcement.init(jax.random.key(0), config, learner, params)
        prompts = TASK.sample(jax.random.key(3), config.prompts_per_update)
        return reinforcement.sample(state, prompts.tokens, prompts.mask, config, learner)

    rollout = draw(params)
    tokens, mask = np.asarray(rollout.completions), np.asarray(rollout.mask)
    assert tokens.max() < known
    ended = np.isin(tokens, ends)
    np.testing.assert_array_equal(mask, np.cumsum(ended & mask, -1) - (ended & mask) == 0)
    np.testing.assert_array_equal(rollout.truncated, ~(ended & mask).any(-1))
    assert set(tokens[ended & mask]) == set(ends)
    assert rollout.truncated.any()
    scores = jax.jit(lambda p: score(policy, p, rollout, config.sampling))(params)
    np.testing.assert_allclose(np.where(mask, scores.log_probs, 0), rollout.log_probs, atol=1e-5)
    assert scores.entropy.max() <= np.log(known) + 1e-5


def test_compiled_and_host_drivers_agree(halves):
    learner = learner_of(algorithms.PPO)
    compiled, together = jax.jit(lambda s: reinforcement.run(s, CONFIG, learner, TASK, 2))(start())
    state = start()
    _, _, learn, sample = halves
    choose = jax.jit(
        lambda state: TASK.sample(
            jax.random.split(jax.random.fold_in(state.key, state.update), 3)[0], CONFIG.prompts_per_update
        )
    )
    for i in range(2):
        prompts = choose(state)
        trajectories = sample(state, prompts)
        problems = jax.tree.map(lambda x: np.repeat(x, CONFIG.completions, axis=0), prompts)
        rewards = np.asarray(TASK.reward(problems, trajectories.completions, trajectories.mask))
        state, metrics = learn(state, trajectories, rewards)
        np.testing.assert_allclose(metrics["reward/mean"], together["reward/mean"][i], atol=1e-6)
    assert_trees_close(state.params, compiled.params, atol=1e-5)


@pytest.mark.slow
def test_a_population_is_its_members_and_compiles_once():
    traces = []
    learner = learner_of(algorithms.PPO)

    def train(key, config):
        traces.append(1)
        return reinforcement.train(key, config, learner=learner, task=TASK)

    keys = jax.random.split(jax.random.key(0), 3)
    config = CONFIG.replace(
        learning_rate=jnp.array([1e-3, 3e-3, 1e-2]),
        kl_coef=jnp.array([0.0, 0.1, 0.5]),
        clip_eps=jnp.array([0.1, 0.2, 0.3]),
    )
    nothing = jax.tree.map(lambda _: None, CONFIG)
    axes = nothing.replace(learning_rate=0, kl_coef=0, clip_eps=0)
    population = jax.jit(jax.vmap(train, in_axes=(0, axes)))
    states, metrics = population(keys, config)
    population(keys, config)
    assert len(traces) == 1
    single = jax.jit(train)
    for i in range(3):
        member = CONFIG.replace(
            **{n: getattr(config, n)[i] for n in ("learning_rate", "kl_coef", "clip_eps")}
        )
        state, alone = single(keys[i], member)
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a, b[i], atol=1e-4), state.params, states.params
        )
        np.testing.assert_allclose(alone["reward/mean"], metrics["reward/mean"][i], atol=1e-4)
    assert len(traces) == 2


@pytest.mark.slow
def test_micro_batches_change_nothing(halves):
    state, trajectories, learn, _ = halves
    rewards = jnp.arange(32.0) % 5
    whole, _ = learn(state, trajectories, rewards)
    config = CONFIG.replace(micro_batches=2)
    parts, metrics = jax.jit(
        lambda: reinforcement.learn(state, trajectories, rewards, config, learner_of(algorithms.PPO))
    )()
    assert_trees_close(whole.params, parts.params, atol=2e-6)
    assert np.isfinite(metrics["policy/ratio_max"])


def test_what_is_masked_changes_nothing(halves):
    state, trajectories, learn, _ = halves
    rewards = np.arange(32, dtype=np.float32) % 3
    noise = trajectories._replace(
        completions=np.where(trajectories.mask, trajectories.completions, 5),
        log_probs=np.where(trajectories.mask, trajectories.log_probs, np.float32(np.nan)),
        values=np.where(trajectories.mask, trajectories.values, np.float32(np.inf)),
    )
    assert (~trajectories.mask).any()
    for a, b in zip(learn(state, trajectories, rewards), learn(state, noise, rewards), strict=True):
        a, b = (x.params if isinstance(x, reinforcement.ReinforcementState) else x for x in (a, b))
        assert_trees_close(a, b, atol=1e-6)


def test_a_non_finite_update_is_skipped_and_counted(halves):
    state, trajectories, learn, _ = halves
    after, metrics = learn(state, trajectories, np.full(32, np.nan, np.float32))
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, state.opt_state)
    assert after.skipped == metrics["skipped_updates"] == CONFIG.epochs * CONFIG.minibatches
    assert after.update == 1


@pytest.mark.slow
def test_groups_without_information_give_no_gradient():
    learner = learner_of(algorithms.GRPO._replace(kl=algorithms.KL()))
    state = start(algorithm=learner.algorithm)
    prompts = TASK.sample(jax.random.key(3), CONFIG.prompts_per_update)
    trajectories = jax.jit(
        lambda: reinforcement.sample(state, prompts.tokens, prompts.mask, CONFIG, learner)
    )()
    after, metrics = jax.jit(lambda r: reinforcement.learn(state, trajectories, r, CONFIG, learner))(
        jnp.full(32, 0.7)
    )
    assert metrics["policy/grad_norm"] == 0
    assert metrics["group/frac_zero_std"] == 1
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)


@pytest.mark.parametrize("name", slow_but(ALGORITHMS, ["grpo"]))
@pytest.mark.parametrize("kl_coef", slow_but([0.02, 1.0], 1))
def test_equal_rewards_teach_a_group_nothing_whatever_the_price(name, kl_coef):
    """From the rounding of log-probabilities no group algorithm makes a step: the KL is not part of what is scaled."""
    learner = learner_of(ALGORITHMS[name])
    config = CONFIG.replace(kl_coef=kl_coef, learning_rate=1e-4, updates=3)
    same = TASK._replace(reward=lambda prompts, completions, mask: jnp.ones(mask.shape[0]))
    _, metrics = jax.jit(lambda s: reinforcement.run(s, config, learner, same, 3))(
        start(config, ALGORITHMS[name])
    )
    assert (metrics["group/frac_zero_std"] == 1).all()
    if name == "grpo":
        np.testing.assert_array_equal(metrics["advantage/std"], 0)
    if name == "rloo":  # its KL is in the reward: what is left is the divergence itself
        assert metrics["advantage/std"].max() < 1e-2 * kl_coef
        assert metrics["advantage/std"][0] < 1e-6


SHAPED = {
    "top_p": {"truncations": (decoding.top_p(0.7),), "temperature": 0.7},
    "repetition": {"penalties": (decoding.repetition_penalty(1.5), decoding.frequency_penalty(0.3))},
    "top_k": {"truncations": (decoding.top_k(3),)},
    "min_p": {"truncations": (decoding.min_p(0.97),)},
    "min_new_tokens": {"penalties": (decoding.min_new_tokens(2, (1,)),)},
}


@pytest.fixture(scope="module")
def run_plainly():
    """Metrics of one step without shapes."""
    plain, learner = CONFIG.replace(epochs=1, minibatches=1, learning_rate=3e-2), learner_of(algorithms.PPO)
    return jax.jit(lambda s: reinforcement.run(s, plain, learner, TASK, 1))(start(plain))[1]


@pytest.mark.parametrize("shape", slow_but(SHAPED, ["repetition"]))
def test_what_is_learned_from_is_the_distribution_that_was_drawn_from(shape, run_plainly):
    """The ratio is 1 before the first step, and the parameters stay finite after many."""
    sampling = dataclasses.replace(SAMPLING, **SHAPED[shape])
    config = CONFIG.replace(sampling=sampling, updates=4, learning_rate=3e-2)
    learner = learner_of(algorithms.PPO)
    once = config.replace(epochs=1, minibatches=1)
    _, metrics = jax.jit(lambda s: reinforcement.run(s, once, learner, TASK, 1))(start(once))
    np.testing.assert_allclose(metrics["policy/ratio_max"], 1, atol=1e-5)
    assert metrics["mismatch/logprob_diff_max"].max() < 1e-5
    assert metrics["policy/entropy"][0] != run_plainly["policy/entropy"][0]
    state, metrics = jax.jit(lambda s: reinforcement.run(s, config, learner, TASK, 4))(start(config))
    assert metrics["skipped_updates"][-1] == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


@pytest.mark.slow
def test_stop_sequences_end_completions_in_training():
    stops = jnp.array([[SEVEN, SEVEN]])
    config = CONFIG.replace(sampling=dataclasses.replace(SAMPLING, stop_sequences=stops, temperature=5.0))
    learner = learner_of(algorithms.PPO)
    prompts = TASK.sample(jax.random.key(3), 64)
    trajectories = jax.jit(lambda s: reinforcement.sample(s, prompts.tokens, prompts.mask, config, learner))(
        start(config)
    )
    tokens, lengths = np.asarray(trajectories.completions), np.asarray(trajectories.mask).sum(-1)
    begins = (tokens[:, :2] == SEVEN).all(-1)
    assert begins.any()
    assert (lengths[begins] == 2).all()


PARTS = {
    "everything": trainable.everything(),
    "rule": trainable.matching(models.match_paths("final_norm", "mlp")),
    "adapters": trainable.adapters(rank=2, alpha=4.0),
}


@pytest.mark.parametrize("part", slow_but(PARTS, ["adapters"]))
def test_what_is_frozen_has_no_gradient_no_moments_and_no_copy(part):
    learner = reinforcement.Learner(POLICY, algorithms.PPO, trainable=PARTS[part])
    params = INIT(jax.random.key(7))
    state = jax.jit(lambda p: reinforcement.init(jax.random.key(0), CONFIG, learner, p))(params)
    count = sum(x.size for x in jax.tree.leaves(params))
    learning = sum(x.size for x in jax.tree.leaves(state.params))
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
    assert moments == 2 * sum(x.size for x in jax.tree.leaves(state.params) if x.ndim)
    assert (learning == count) == (part == "everything")
    assert (state.ref_params is None) == (part == "adapters")
    merge = jax.jit(lambda s: reinforcement.merge_params(s, learner))
    assert_trees_close(merge(state), params, atol=0)  # ranks of 0 steps change nothing
    after, metrics = jax.jit(lambda s: reinforcement.run(s, CONFIG, learner, TASK, 2))(state)
    assert abs(metrics["kl/ref_sequence"][0]) < 1e-5
    assert np.isfinite(metrics["policy/grad_norm"]).all()
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), params, merge(after))
    moved = {
        jax.tree_util.keystr(k, simple=True, separator="/"): m for k, m in jax.tree.leaves_with_path(moved)
    }
    assert any(moved.values())
    if part == "rule":
        assert all(("final_norm" in path or "mlp" in path) for path, m in moved.items() if m)
    if part == "adapters":
        assert all(path.endswith("kernel") for path, m in moved.items() if m)


@pytest.mark.parametrize("kl", slow_but([algorithms.KL(), None], 1), ids=["unpriced", "priced"])
def test_a_reference_is_kept_and_scored_only_where_a_divergence_is_priced(kl):
    algorithm = algorithms.PPO if kl is None else algorithms.PPO._replace(kl=kl)
    learner, state = learner_of(algorithm), start(algorithm=algorithm)
    assert (state.ref_params is None) == (kl is not None)
    text = str(jax.make_jaxpr(lambda s: reinforcement.iterate(s, CONFIG, learner, TASK))(state))
    with_reference = str(
        jax.make_jaxpr(lambda s: reinforcement.iterate(s, CONFIG, learner_of(algorithms.PPO), TASK))(start())
    )
    assert (text.count("dot_general") < with_reference.count("dot_general")) == (kl is not None)


@pytest.mark.slow  # a stage with an optimizer of its own is trained each time
def test_an_optimizer_of_ones_own_takes_traced_hyper_parameters():
    learner = reinforcement.Learner(POLICY, algorithms.PPO, optimizer=lambda rate, config: optax.sgd(rate))
    train = partial(reinforcement.train, learner=learner, task=TASK)
    rates = jnp.array([1e-3, 1e-1])
    axes = jax.tree.map(lambda _: None, CONFIG).replace(learning_rate=0)
    config = CONFIG.replace(learning_rate=rates)
    states, _ = jax.jit(jax.vmap(train, in_axes=(None, axes)))(jax.random.key(0), config)
    slow, fast = (jax.tree.map(lambda x, i=i: x[i], states.params) for i in range(2))
    first = jax.jit(POLICY.init)(jax.random.split(jax.random.key(0))[0])
    distances = [
        float(optax.global_norm(jax.tree.map(jnp.subtract, params, first))) for params in (slow, fast)
    ]
    assert 0 < 10 * distances[0] < distances[1]
    assert not [x for x in jax.tree.leaves(states.opt_state) if x.ndim > 1]  # no moments


def test_truncation_continues_with_the_value_or_ends():
    mask = jnp.array([[True, True], [True, True]])
    zeros = jnp.zeros((2, 2))
    trajectories = reinforcement.Rollout(
        prompts=jnp.zeros((2, 1), jnp.int32),
        prompt_mask=jnp.ones((2, 1), bool),
        completions=jnp.zeros((2, 2), jnp.int32),
        mask=mask,
        log_probs=zeros,
        values=zeros + 0.5,
        final_values=jnp.array([3.0, 0.0]),
        truncated=jnp.array([True, False]),
    )
    rewards = jnp.array([[0.0, 1.0], [0.0, 1.0]])
    config = CONFIG.replace(gae_lambda=1.0)
    free = jnp.zeros((2, 2))
    terminal = config.replace(truncation="terminal")
    give_credit = jax.jit(credit.actor_critic_credit)
    bootstrap = give_credit(rewards, free, trajectories, config)
    terminal = give_credit(rewards, free, trajectories, terminal)
    np.testing.assert_allclose(bootstrap.targets, [[4, 4], [1, 1]])
    np.testing.assert_allclose(terminal.targets, [[1, 1], [1, 1]])


KLS = {
    "reward": algorithms.KL(reward=losses.kl.k1),
    "sequence_k2": algorithms.KL(loss=losses.kl.sequence_k2, of_sequence=True),
    "sequence_ratio": algorithms.KL(loss=losses.kl.sequence_ratio_k1, of_sequence=True),
}


@pytest.mark.slow  # three hundred updates each
@pytest.mark.parametrize("kl", KLS)
def test_training_finds_the_known_optimum(kl):
    """On an enumerable model: π* ∝ π_ref·e^{R/β}, the optimum under KL regularisation."""
    contest = gap.open_contest(tasks.lottery(4, 2), updates=150, points=1, groups=64)
    algorithm = algorithms.RLOO._replace(kl=KLS[kl])
    train = partial(gap.learn_online, contest, beta=0.3, algorithm=algorithm)
    gaps = jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(0), 2))
    assert (gaps[:, 0] > 0.2).all()
    assert (gaps[:, -1] < 0.01).all()


@pytest.mark.slow
def test_an_adaptive_price_moves_towards_its_target():
    algorithm = algorithms.RLOO._replace(
        kl=algorithms.KL(reward=losses.kl.k1, controller=algorithms.adapt_price)
    )
    config = CONFIG.replace(kl_target=50.0, kl_coef=0.1, updates=3)
    state, metrics = jax.jit(partial(reinforcement.train, learner=learner_of(algorithm), task=TASK))(
        jax.random.key(0), config
    )
    assert (jnp.diff(metrics["kl/coef"]) < 0).all()
    np.testing.assert_allclose(metrics["kl/coef"][0], 0.1 * (1 - 0.2 * 32 / 10_000), rtol=1e-6)
    assert state.kl_coef == metrics["kl/coef"][-1]


@pytest.mark.slow
def test_no_two_leaves_share_memory():
    state = start()
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state) if x.dtype != state.key.dtype]
    assert len(set(pointers)) == len(pointers)
    step = jax.jit(
        lambda s: reinforcement.run(s, CONFIG, learner_of(algorithms.PPO), TASK, 1)[0], donate_argnums=0
    )
    step(step(state))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"prompts_per_update": 6, "minibatches": 4}, ["prompts_per_update", "6", "4"]),
        ({"sampling": decoding.Sampling(copies=2)}, ["sampling.copies", "2", "completions"]),
        ({"final_learning_rate_share": 1.5}, ["final_learning_rate_share", "0..1", "1.5"]),
        ({"kl_coef": float("nan")}, ["kl_coef", "finite", "nan"]),
        ({"epochs": 0}, ["epochs", "0"]),
        ({"learning_rate": -1.0}, ["learning_rate", "-1"]),
        ({"updates": -2}, ["updates", "-2"]),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError) as error:
        CONFIG.replace(**changes).check()
    assert all(word in str(error.value) for word in words)
