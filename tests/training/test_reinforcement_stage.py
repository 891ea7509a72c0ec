"""Reinforcement learning as a stage: on a task, and on prompts with Python rewards."""

import json
import logging
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl4lm import decoding, lm, models, tasks, training
from jaxrl4lm.data import CharacterTokenizer
from jaxrl4lm.data.corpus import encode_prompts, epoch_rows
from jaxrl4lm.data.files import Row
from jaxrl4lm.data.rewards import RewardSet
from jaxrl4lm.data.token_reward import TokenReward
from jaxrl4lm.lm import algorithms
from jaxrl4lm.lm.curriculum import prefer_informative
from jaxrl4lm.lm.trainable import adapters, matching
from jaxrl4lm.training.candidates import draw_candidates
from jaxrl4lm.training.folder import COMPLETIONS
from jaxrl4lm.training.hosted_updates import split_prompts
from jaxrl4lm.training.language_stage import choose_keys, describe, init_params
from jaxrl4lm.types import InputError
from tests.selection import slow_but
from tests.training.stages import interrupt_at

TASK = tasks.copy(2)
TOKENIZER = TASK.tokenizer
ONE = TOKENIZER.encode("1")[0]
POLICY = models.LanguagePolicy(
    models.TransformerConfig.gpt2(TOKENIZER.vocab_size, layers=1, width=16, heads=2, context=16)
)
PARAMS = jax.jit(POLICY.init)(jax.random.key(0))
SAMPLING = decoding.Sampling(TASK.completion_length)
CONFIG = lm.ReinforcementConfig(
    learning_rate=0.01, updates=2, prompts_per_update=4, completions=2, minibatches=2, sampling=SAMPLING
)
STALE = CONFIG.replace(minibatches=1, staleness=1)
PROMPTS = [f"{i}{9 - i}=" for i in range(10)]
NOTHING = training.Evaluation(lambda params: {}, "nothing", lambda metrics: "")


def count_ones(prompts, completions, **columns):
    return [float(completion.count("1")) for completion in completions]


def reinforce(prompts=PROMPTS, rewards=count_ones, **options):
    options = {"config": CONFIG, "evaluation": NOTHING, **options}
    return training.reinforcement(POLICY, TOKENIZER, prompts, rewards=rewards, **options)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


@pytest.fixture(scope="module")
def plain():
    """The run that others are compared with."""
    return training.fit([reinforce()], PARAMS)


@pytest.mark.slow
def test_the_compiled_and_the_host_way_agree():
    """The same task, its reward written twice, on the prompts that the compiled program drew."""

    def reward(problems, completions, mask):
        return ((completions == ONE) & mask).sum(-1).astype(jnp.float32)

    compiled = training.fit([reinforce(TASK._replace(reward=reward), ())], PARAMS)
    key, count = choose_keys(0, 1, "reinforcement"), CONFIG.prompts_per_update
    drawn = []
    for update in range(CONFIG.updates):
        sub = jax.random.split(jax.random.fold_in(key, update), 3)[0]
        drawn += jax.device_get(TASK.sample(sub, count)).tokens.tolist()
    rows: list = [None] * len(drawn)
    for place, ids in zip(epoch_rows(0, 0, len(drawn), len(drawn)), drawn, strict=True):
        rows[place] = Row(int(place), {"prompt": TOKENIZER.decode(ids)})
    encoded = encode_prompts(rows, "prompt", TOKENIZER, "drawn", TASK.completion_length, 16)
    hosted = training.fit([reinforce(encoded)], PARAMS)
    assert compiled.history["reward/mean"].max() > 0
    for name in set(compiled.history) - {"seconds"}:
        np.testing.assert_allclose(
            hosted.history[name], compiled.history[name], rtol=1e-4, atol=1e-5, err_msg=name
        )
    # Adam divides by the size of a gradient that may be nothing but rounding.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), hosted.params, compiled.params)


@pytest.mark.slow
def test_the_next_stage_is_compiled_while_the_first_one_runs(caplog):
    """When its turn comes, the main thread compiles no update."""
    began = []

    def note(report):
        if report.stage.name == "reinforcement" and report.headline is None:
            began.append(len(caplog.records))

    teaching = training.supervised(POLICY, TASK, lm.SupervisedConfig(steps=2, batch=4), evaluation=NOTHING)
    for second, programs in ((reinforce(), ("sample", "learn")), (reinforce(TASK, ()), ("chunk",))):
        jax.clear_caches()
        caplog.clear()
        began.clear()
        with caplog.at_level(logging.WARNING):
            jax.config.update("jax_log_compiles", True)
            try:
                training.fit([teaching, second], PARAMS, on_progress=note)
            finally:
                jax.config.update("jax_log_compiles", False)
        compiled = [
            (i, record.threadName, record.getMessage())
            for i, record in enumerate(caplog.records)
            if record.getMessage().startswith("Finished XLA compilation")
        ]
        main = threading.main_thread().name
        late = [text for i, name, text in compiled if name == main and i >= began[0]]
        ahead = [text for _, name, text in compiled if name != main]
        for program in programs:
            assert any(program in text for text in ahead), ahead
            assert not any(program in text for text in late), late


@pytest.mark.parametrize("form", slow_but(["records", "rows"], 1))
def test_forms_of_prompts(plain, form):
    """Texts, records and rows of a file are the same; other columns go to the reward, that of the prompts does not."""
    seen = {}

    def reward(prompts, completions, **columns):
        seen.update(columns)
        assert all(prompt == f"{i}{9 - i}=" for prompt, i in zip(prompts, columns["number"], strict=True))
        return count_ones(prompts, completions)

    records = [{"prompt": prompt, "number": i} for i, prompt in enumerate(PROMPTS)]
    rows = [Row(i, record) for i, record in enumerate(records, start=1)]
    run = training.fit([reinforce(records if form == "records" else rows, reward)], PARAMS)
    assert_same(run, plain)
    assert set(seen) == {"number", "completion_ids", "trainer_state", "log_extra", "log_metric"}


@TokenReward
def count_ones_inside(prompts, prompt_mask, completions, mask):
    return ((completions == ONE) & mask).sum(-1).astype(jnp.float32)


@pytest.mark.parametrize(
    "options",
    slow_but(
        [
            {},
            {"config": STALE},
            {"config": CONFIG.replace(sampling_rounds=2)},
            {"algorithm": algorithms.REMAX},
        ],
        1,
    ),
    ids=["plain", "stale", "rounds", "remax"],
)
def test_a_compiled_reward_is_the_same_as_one_on_the_host(options):
    """Alone, and between others; the evaluation calls it as well."""
    alone = training.fit([reinforce(**{"evaluation": None, **options})], PARAMS)
    given = {"half": count_ones, "inside": count_ones_inside}
    mixed = RewardSet(given, (0.25, 0.75))
    for rewards in (count_ones_inside, mixed):
        run = training.fit([reinforce(rewards=rewards, **{"evaluation": None, **options})], PARAMS)
        assert_same(run, alone)
        np.testing.assert_array_equal(run.history["held_out"], alone.history["held_out"])
        np.testing.assert_array_equal(run.history["reward/mean"], alone.history["reward/mean"])
    np.testing.assert_array_equal(run.history["reward/inside"], run.history["reward/half"])


def test_a_compiled_reward_that_is_no_number_stops_the_run():
    @TokenReward
    def broken(prompts, prompt_mask, completions, mask):
        return jnp.full(len(mask), jnp.nan)

    with pytest.raises(InputError, match="the reward broken returned nan for the prompt '09='"):
        training.fit([reinforce(PROMPTS[:1] * 4, broken)], PARAMS)


def test_a_compiled_reward_sees_the_same_shapes_everywhere():
    """T is the most tokens that are drawn, whatever was drawn: in the update, when held out, and of candidates."""

    @TokenReward
    def width(prompts, prompt_mask, completions, mask):
        return jnp.full(len(mask), mask.shape[1], jnp.float32)

    run = training.fit([reinforce(rewards=width, evaluation=None)], PARAMS)
    length = CONFIG.sampling.length
    assert set(np.ravel(run.history["reward/mean"])) == {length}
    assert set(np.ravel(run.history["held_out"])) == {length}
    drawn = draw_candidates(POLICY, PARAMS, TOKENIZER, PROMPTS, rewards=width, n=2, sampling=SAMPLING)
    assert {score for each in drawn for score in each.scores} == {length}


@pytest.mark.parametrize(
    "score, words",
    [
        (lambda prompts, prompt_mask, completions, mask: 1 / 0, "raised ZeroDivisionError at test_"),
        (lambda prompts, completions: 0, "raised TypeError"),
        (lambda p, pm, c, mask: mask.sum(-1) if mask.any() else 0, "raised TracerBoolConversionError"),
        (lambda p, pm, completions, mask: mask, r"of 4 completions: return an array of shape \(4,\)"),
        (lambda p, pm, completions, mask: 1.0, r"gives 1.0 of 4 completions|gives ShapeDtype.* of 4"),
    ],
    ids=["raises", "signature", "branches", "shape", "scalar"],
)
def test_a_compiled_reward_that_cannot_be_traced_is_refused_before_the_run(score, words):
    with pytest.raises(InputError, match=rf"the reward broken .*{words}"):
        reinforce(rewards=TokenReward(score, name="broken"))


def test_normalised_rewards_are_told_as_they_were_given():
    """What is learned from has mean 0; the mean reward, pass@k and the table are of the plain sum."""
    plain = RewardSet({"a": count_ones, "b": lambda completions: [1.0] * len(completions)}, (1.0, 2.0))
    given = training.fit([reinforce(rewards=plain)], PARAMS)
    normalised = training.fit([reinforce(rewards=plain._replace(normalized=True))], PARAMS)
    for name in ("reward/mean", "reward/std", "pass_at_1", "pass_at_n"):
        np.testing.assert_allclose(normalised.history[name][0], given.history[name][0], rtol=1e-6)
    assert normalised.history["reward/mean"][0] >= 2


def test_completions_that_no_reward_applies_to_are_left_out():
    """Where no completion has a score nothing moves; where some have, those are learned from."""

    def some(prompts, completions):
        scores = count_ones(prompts, completions)
        return [score if share and i % share else None for i, score in enumerate(scores)]

    stage = reinforce(rewards=some, config=CONFIG.replace(updates=1))
    for share in (0, 2):
        run = training.fit([stage], PARAMS)
        assert (run.history["policy/grad_norm"][0] > 0) == (share > 0)
        assert np.isfinite(run.history["reward/mean"][0])
        same = jax.tree.map(np.array_equal, run.params, PARAMS)
        assert all(jax.tree.leaves(same)) != (share > 0)


@pytest.mark.slow
def test_records_tell_of_the_completions_that_are_learned_from():
    """Not of the greedy ones that ReMax compares with; what a reward calls as the run does keeps the run's number."""

    def spy(prompts, completions, log_metric):
        log_metric("completions", len(completions))
        log_metric("mean", 99)
        return count_ones(prompts, completions)

    config = CONFIG.replace(updates=1, minibatches=1)
    run = training.fit([reinforce(rewards=spy, algorithm=lm.algorithms.REMAX, config=config)], PARAMS)
    assert run.history["reward/completions"][0] == 8
    assert run.history["reward/mean"][0] < 9


@pytest.mark.slow
def test_rewards_are_summed(plain):
    def half(prompts, completions, **columns):
        return [0.5 * score for score in count_ones(prompts, completions)]

    for rewards in ([half, half], {"a": half, "b": half}):
        stage = reinforce(rewards=rewards)
        assert_same(training.fit([stage], PARAMS), plain)
        assert stage.config["prompts"]["rewards"] == (
            ["half", "half (2)"] if rewards == [half, half] else ["a", "b"]
        )


def test_a_tenth_is_held_out():
    stage = reinforce([f"{i}=" for i in range(45)], evaluation=None)
    assert stage.config["prompts"]["prompts"] == 41
    assert len(stage.samples(PARAMS)) == 4
    rows = [Row(i, {"prompt": f"{i}="}) for i in range(45)]
    encoded = encode_prompts(rows, "prompt", TOKENIZER, "rows", 3, 16)
    training_set, held_out = split_prompts(encoded, 5)
    assert sorted(training_set.texts + held_out.texts) == sorted(encoded.texts)
    assert len(held_out.texts) == 5
    same = split_prompts(encoded, 0)
    assert same[0].texts == same[1].texts == encoded.texts
    with pytest.raises(InputError, match="held_out 45 leaves nothing of 45 prompts"):
        split_prompts(encoded, 45)


def test_the_held_out_score_is_the_mean_reward_of_greedy_completions():
    stage = reinforce([f"{i}=" for i in range(45)], evaluation=None)
    samples = stage.samples(PARAMS)
    assert [s.score for s in samples] == [s.completion.count("1") for s in samples]
    assert stage.evaluate(PARAMS)["held_out"] == np.mean([s.score for s in samples])


@pytest.mark.slow
def test_a_reward_that_raises_costs_no_update(tmp_path):
    calls = []

    def unsteady(prompts, completions, **columns):
        calls.append(len(prompts))
        if len(calls) == 3:
            raise RuntimeError("no verifier")
        return count_ones(prompts, completions)

    config = CONFIG.replace(updates=4)
    with pytest.raises(training.StepFailed, match="the reward unsteady raised RuntimeError"):
        training.fit([reinforce(rewards=unsteady, config=config)], PARAMS, out=tmp_path / "run")
    resumed = training.fit(
        [reinforce(rewards=unsteady, config=config)], PARAMS, out=tmp_path / "run", resume=True
    )
    assert [r["step"] for r in resumed.records] == [0, 1, 2, 3, 4]
    assert_same(resumed, training.fit([reinforce(config=config)], PARAMS))


@pytest.mark.parametrize(
    "prompts, options, said",
    [
        ([], {}, "there are no prompts"),
        (["1="], {"rewards": ()}, "there is no reward"),
        ([{"question": "1="}], {}, "prompts, line 1: no column 'prompt'; its columns are 'question'"),
        (["1=", {"prompt": 7}], {}, "prompts, line 2: column 'prompt' holds no text and no messages"),
        ([{"prompt": [{"role": "user", "content": "1"}]}], {}, "a new model has no chat template"),
        (["1=é"], {}, "prompts, line 1:"),
        (["1" * 14], {}, "exceeds the context of 16"),
        (["1="], {"seeds": 2}, "several seeds at once need a task"),
        (["1="], {"config": CONFIG.replace(minibatches=3)}, "prompts_per_update"),
        (
            ["1="],
            {"config": CONFIG.replace(completions=1), "algorithm": algorithms.GRPO},
            "completions must be at least 2, not 1",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(prompts, options, said):
    with pytest.raises(InputError) as refused:
        reinforce(prompts, **options)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_price_of_nothing_keeps_no_reference():
    free = reinforce(TASK, (), config=CONFIG.replace(kl_coef=0.0))
    assert jax.eval_shape(free.init, PARAMS).ref_params is None
    assert "kl/ref_sequence" not in free.panels
    priced = reinforce(TASK, ())
    assert jax.eval_shape(priced.init, PARAMS).ref_params is not None
    assert "kl/ref_sequence" in priced.panels
    adaptive = algorithms.PPO._replace(kl=algorithms.PPO.kl._replace(controller=algorithms.adapt_price))
    kept = reinforce(TASK, (), config=CONFIG.replace(kl_coef=0.0), algorithm=adaptive)
    assert jax.eval_shape(kept.init, PARAMS).ref_params is not None


TRAINABLE = {
    "adapters": (adapters(rank=2), lambda path: "kernel" in path),
    "matching": (matching(models.match_paths("final_norm")), lambda path: "final_norm" in path),
}


@pytest.mark.filterwarnings("ignore")  # of torch and transformers
@pytest.mark.parametrize("name", slow_but(TRAINABLE, ["adapters"]))
def test_a_part_is_trained_exported_and_resumed(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    part, may_move = TRAINABLE[name]
    stage = reinforce(TASK, (), trainable=part, evaluate_every=1)
    whole = training.fit([stage], PARAMS)
    stopped = training.fit([interrupt_at(stage, 0)], PARAMS, out=tmp_path / "run")
    assert stopped.interrupted
    resumed = training.fit([stage], PARAMS, out=tmp_path / "run", resume=True)
    assert_same(resumed, whole)
    assert jax.tree.structure(resumed.params) == jax.tree.structure(PARAMS)
    for (keys, before), after in zip(
        jax.tree.leaves_with_path(PARAMS), jax.tree.leaves(resumed.params), strict=True
    ):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if not may_move(path):
            np.testing.assert_array_equal(before, after, err_msg=path)
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(PARAMS), jax.tree.leaves(resumed.params), strict=True)
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").eval()
    ids = TOKENIZER.encode("12=12")
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits.numpy()[0]
    logits, _ = jax.jit(POLICY.apply)(resumed.params, jnp.array([ids]))
    np.testing.assert_allclose(logits[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_what_is_trained_is_part_of_the_configuration(tmp_path):
    training.fit([reinforce(TASK, (), trainable=adapters(rank=2))], PARAMS, out=tmp_path / "run")
    stage = reinforce(TASK, (), trainable=adapters(rank=4))
    with pytest.raises(InputError, match=r"began with stages\[0\].trainable.*rank = 2, now it is 4"):
        training.fit([stage], PARAMS, out=tmp_path / "run", resume=True)


def test_descriptions_tell_settings_apart():
    """Functions that another one made are told apart by the numbers that they remember."""
    one, other = (
        describe(CONFIG.replace(sampling=decoding.Sampling(3, 1, 0, truncations=(decoding.top_k(k),))))
        for k in (2, 3)
    )
    assert one != other
    assert json.dumps(one) == json.dumps(json.loads(json.dumps(one)))
    assert describe(adapters(rank=2)) != describe(adapters(rank=3))


@pytest.mark.slow
def test_ones_own_optimizer_algorithm_and_evaluation():
    seen = []

    def surrogate(log_probs, old_log_probs, advantages, mask, config):
        seen.append("surrogate")
        return -jnp.where(mask, advantages * log_probs, 0.0)

    def sgd(learning_rate, config):
        seen.append("sgd")
        return optax.sgd(learning_rate)

    own = training.Evaluation(
        score=lambda params: {"held_out": np.float32(0.25), "mine": np.float32(2)},
        label="mine",
        headline=lambda metrics: f"mine {metrics['mine']:.0f}",
    )
    told = []
    stage = reinforce(
        TASK,
        (),
        algorithm=algorithms.REINFORCE._replace(surrogate=surrogate),
        optimizer=sgd,
        evaluation=own,
        config=CONFIG.replace(kl_coef=0.0),
    )
    run = training.fit([stage], PARAMS, on_progress=told.append)
    assert set(seen) == {"surrogate", "sgd"}
    assert run.history["mine"].tolist() == [2, 2]
    assert "mine 2" in told[-1].headline
    state, _ = stage.advance(jax.jit(stage.init)(PARAMS), 0, 1)
    assert not jax.tree.leaves(state.opt_state)  # SGD has none
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), PARAMS, run.params)))


@pytest.mark.slow
def test_several_seeds_are_as_many_runs():
    # A dense reward: where rewards hardly differ, whitened advantages are rounding, and runs follow it apart.
    evaluation = training.evaluate_task(POLICY, TASK, count=8, seeds=2)
    config = CONFIG.replace(prompts_per_update=16)
    both = training.fit(
        [reinforce(TASK, (), seeds=2, config=config, evaluation=evaluation)], init_params(POLICY, 0, 2)
    )
    assert both.history["reward/mean"].shape == both.history["held_out"].shape == (2, 2)
    for seed in (0, 1):
        alone = training.fit([reinforce(TASK, (), seed=seed, config=config)], init_params(POLICY, seed))
        for name in set(alone.history) - {"seconds"}:
            np.testing.assert_allclose(
                both.history[name][:, seed], alone.history[name], rtol=1e-3, atol=1e-4, err_msg=name
            )


def test_a_tokenizer_of_characters_is_enough():
    """Nothing but a policy, a tokenizer, prompts and a reward."""
    tokenizer = CharacterTokenizer.from_texts(["ab"])
    config = models.TransformerConfig(tokenizer.vocab_size, layers=1, width=16, heads=2, context=72)
    policy = models.LanguagePolicy(config)
    stage = training.reinforcement(
        policy, tokenizer, ["a", "b"], rewards=lambda prompts, completions: [1.0] * 2
    )
    assert stage.config["config"]["sampling"]["max_new_tokens"] == 64


@pytest.mark.parametrize("staleness, killed_after", slow_but([(1, 1), (0, 0), (0, 1), (0, 2), (1, 0)], 1))
def test_rounds_and_curricula_on_the_host_resume_bit_for_bit_with_the_same_programs(
    tmp_path, staleness, killed_after
):
    """Hard prompts come more often; each program is traced once, however many rounds there were. Tables are the same, too."""
    drawn = []

    def reward(prompts, completions, log_extra, **columns):
        drawn.append(list(prompts))
        log_extra("length", [np.int64(len(completion)) for completion in completions])
        return [0.9 if p[0] in "0123" else float("1" in c) for p, c in zip(prompts, completions, strict=True)]

    sizes = {"updates": 4, "sampling_rounds": 3, "minibatches": 1, "completions": 4}
    stage = reinforce(
        rewards=reward,
        config=CONFIG.replace(staleness=staleness, **sizes),
        algorithm=algorithms.DAPO._replace(greedy_baseline=True),
        curriculum=prefer_informative,
        evaluate_every=1,
        log=training.CompletionLog(count=3, every=2),
    )
    host, told = stage.advance.__self__, []
    programs = (host._sample, host._sample_greedily, host._begin, host._keep, host._learn, host._choose)
    before = [
        program._cache_size() for program in programs
    ]  # some are of functions that other stages run, too
    whole = training.fit([stage], PARAMS, out=tmp_path / "whole", on_progress=told.append)
    rounds = whole.history["group/rounds"]
    assert rounds.max() == 3
    assert len(drawn) == 2 * rounds.sum()  # completions, and the most likely one of each prompt
    assert all(p._cache_size() - b <= 1 for p, b in zip(programs, before, strict=True))
    assert (whole.history["group/frac_zero_std"] <= 1 - whole.history["group/learned"] + 1e-6).all()
    rows = [json.loads(line) for line in (tmp_path / "whole" / COMPLETIONS).read_text().splitlines()]
    assert [row["step"] for row in rows] == [2] * 3 + [4] * 3
    assert all(row["length"] == len(row["completion"]) and row["prompt"] in PROMPTS for row in rows)
    assert [report.table for report in told if report.table] == [rows[:3], rows[3:]]
    stopped = training.fit([interrupt_at(stage, killed_after)], PARAMS, out=tmp_path / "run")
    assert stopped.interrupted
    with (tmp_path / "run" / COMPLETIONS).open("a") as ahead:  # of the checkpoint, as after a kill
        ahead.write('{"step": 3}\n{"st')
    drawn.clear()
    resumed = training.fit([stage], PARAMS, out=tmp_path / "run", resume=True)
    assert_same(resumed, whole)
    assert drawn
    assert (tmp_path / "run" / COMPLETIONS).read_bytes() == (tmp_path / "whole" / COMPLETIONS).read_bytes()


def test_what_does_not_fit_an_algorithm_is_refused():
    for options, message in [
        (
            {"config": CONFIG.replace(sampling_rounds=2, completions=1), "algorithm": algorithms.PPO},
            "sampling_rounds 2",
        ),
        ({"algorithm": algorithms.PASS_AT_K}, "best_of 2 must be below completions"),
        ({"algorithm": algorithms.TRPO}, "one step of its own"),
        (
            {"curriculum": prefer_informative, "config": CONFIG.replace(prompts_per_update=32)},
            "among more prompts",
        ),
        ({"curriculum": prefer_informative, "prompts": TASK, "rewards": ()}, "a curriculum is for prompts"),
        ({"config": STALE, "prompts": TASK, "rewards": ()}, "staleness 1 has no meaning on copy"),
        ({"config": STALE, "algorithm": algorithms.RLOO}, "staleness 1 needs a ratio"),
        ({"config": STALE, "algorithm": algorithms.TRPO}, "staleness 1 does not go with"),
    ]:
        with pytest.raises(InputError, match=message):
            reinforce(**options)


def test_named_sets_have_their_own_figures_and_one_decides():
    """As if each were evaluated alone; the best is by the one that is named."""

    def half(prompts, completions, **columns):
        return [0.5 * score for score in count_ones(prompts, completions)]

    rewards = {"ones": count_ones, "half": half}
    sampling = SAMPLING.complete(3, TOKENIZER.eos_ids, TOKENIZER.pad_id)
    main, first, second = (
        encode_prompts([Row(i, {"prompt": f"{i}{j}="}) for i in range(4)], "prompt", TOKENIZER, "rows", 3, 16)
        for j in range(3)
    )
    both = training.evaluate_prompts(
        POLICY, TOKENIZER, main, rewards, sampling, sets={"a": first, "b": second}, best_by="b"
    )
    numbers = both.score(PARAMS)
    for name, prompts in {"a": first, "b": second}.items():
        alone = training.evaluate_prompts(POLICY, TOKENIZER, prompts, rewards, sampling)
        scores = alone.score(PARAMS)
        assert numbers[f"{name}/reward"] == scores.pop("held_out")
        for key, value in scores.items():
            assert numbers[f"{name}/{key.removeprefix('held_out/')}"] == value
        assert f"{name} {float(numbers[f'{name}/reward']):.3f}" in both.headline(numbers)
    assert {"a/half", "b/ones", "b/length", "b/ended", "held_out/ones"} < set(numbers)
    assert both.rank({**numbers, "b/reward": 7.0}) == 7
    assert set(both.panels) == {"a/reward", "b/reward"}
