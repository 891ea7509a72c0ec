"""The loop around everything that learns, on stages that are no language models."""

import json
import pathlib
import signal
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import lm, models, tasks, training
from jaxrl4lm.training import Run, StepFailed, fit
from jaxrl4lm.types import InputError
from tests.selection import slow_but
from tests.training.stages import SLOPE, interrupt_at, make_agent, make_params, make_regression

pytestmark = pytest.mark.usefixtures("own_handlers")


@pytest.fixture
def own_handlers():
    """Whatever `fit` does with signals, afterwards they are as before."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def same_params(a: Run, b: Run) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a.params, b.params)))


def without_clock(run: Run) -> list[dict]:
    return [{name: value for name, value in record.items() if name != "seconds"} for record in run.records]


@pytest.fixture(scope="module")
def whole() -> Run:
    """A regression of eight steps, without a folder."""
    return fit([make_regression()], make_params())


def test_a_run_without_a_folder(whole):
    assert whole.folder is None
    assert whole.interrupted is None
    assert [(r["stage"], r["step"]) for r in whole.records] == [("regression", i) for i in range(9)]
    assert [r["step"] for r in whole.records if "held_out" in r] == [0, 2, 4, 6, 8]
    assert "loss" not in whole.records[0]
    assert whole.history["loss"].shape == (8,)
    assert whole.history["held_out"].shape == whole.history["seconds"].shape == (5,)
    assert whole.history["held_out"][-1] < whole.history["held_out"][0]
    assert whole.progress.scores["start"] == {"held_out": whole.history["held_out"][0]}
    assert whole.progress.scores["regression"] == {"held_out": whole.history["held_out"][-1]}
    assert [s.completion for s in whole.before] == ["[0.0, 0.0, 0.0]"]
    assert [s.completion for s in whole.after] == [repr(whole.params["slope"].tolist())]


def test_parameters_are_copied():
    params = make_params()
    fit([make_regression(2)], params)
    np.testing.assert_array_equal(params["slope"], np.zeros(3))


def test_python_numbers_are_parameters(whole):
    run = fit([make_regression()], {"slope": np.zeros(3, np.float32), "offset": 0.0})
    assert same_params(run, whole)


def test_an_agent_with_a_table():
    run = fit([make_agent()], jnp.zeros((1, 2, 2)))
    assert run.history["reward"].shape == (6,)  # chunks of four do not divide six steps
    assert [r["step"] for r in run.records] == list(range(7))
    np.testing.assert_array_equal(run.params[0].argmax(-1), [1, 0])  # to the second state, and stay there


@pytest.mark.parametrize("chunk", [3, 8, 100])
def test_chunks_decide_nothing(whole, chunk):
    run = fit([make_regression(chunk=chunk)], make_params())
    assert same_params(run, whole)
    np.testing.assert_array_equal(run.history["loss"], whole.history["loss"])


def test_stages_hand_their_parameters_on(whole):
    """A second stage of no steps evaluates; a third goes on from where the first ended."""
    between = make_regression(0, name="look", evaluate=lambda params: {"offset": params["offset"]})
    last = make_regression(4, name="again", evaluate=between.evaluate)
    run = fit([make_regression(), between, last], make_params())
    steps = [("regression", i) for i in range(9)] + [("look", 0)] + [("again", i) for i in range(5)]
    assert [(r["stage"], r["step"]) for r in run.records] == steps
    assert run.records[9]["offset"] == run.records[10]["offset"] == float(whole.params["offset"])
    assert [s.completion for s in run.before] == [s.completion for s in whole.after]
    expected = fit([make_regression(4)], whole.params)
    assert same_params(run, expected)


def test_a_stage_may_change_the_form_of_parameters(tmp_path):
    """As one that trains a part of a model: a resumed run knows what its stage began with."""
    widen = make_regression(2, params_of=lambda state: {**state.params, "extra": jnp.zeros(2)})
    seen = []
    last = make_regression(2, name="last", prepare=lambda shapes: seen.append(sorted(shapes)))
    expected = fit([widen, last], make_params())
    assert seen == [["extra", "offset", "slope"]]
    stopped = fit([widen, interrupt_at(last, 0)], make_params(), out=tmp_path / "run")
    assert stopped.progress.done == 2  # the chunk was finished: it was the last one
    stopped = fit([interrupt_at(widen, 0), last], make_params(), out=tmp_path / "other")
    assert (stopped.interrupted, stopped.progress.stage, stopped.progress.done) == (signal.SIGTERM, 1, 0)
    assert same_params(fit([widen, last], make_params(), out=tmp_path / "other", resume=True), expected)


def test_until_ends_a_stage_early(tmp_path):
    stage = make_regression(400, chunk=10, until=lambda metrics: metrics["held_out"] < 0.1)
    run = fit([stage, make_regression(2, name="after")], make_params(), out=tmp_path / "run")
    held_out = [r["held_out"] for r in run.records if r["stage"] == "regression" and "held_out" in r]
    assert held_out[-1] < 0.1 <= min(held_out[:-1])
    assert run.records[-1] == {**run.records[-1], "stage": "after", "step": 2}
    again = fit([stage, make_regression(2, name="after")], make_params(), out=tmp_path / "run", resume=True)
    assert same_params(again, run)
    assert again.records == run.records


def test_the_folder_of_a_run(tmp_path, whole):
    run = fit([make_regression()], make_params(), out=str(tmp_path / "a" / "run"), title="slopes")
    folder = tmp_path / "a" / "run"
    assert run.folder == folder
    names = ["checkpoints", "config.json", "learning_curve.png", "metrics.jsonl", "model", "samples.txt"]
    assert sorted(path.name for path in folder.iterdir()) == names
    stages = json.loads((folder / "config.json").read_text())["stages"]
    assert stages == [{"name": "regression", "steps": 8, "chunk": 2}]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert tuple(map(json.loads, lines)) == run.records
    assert without_clock(run) == without_clock(whole)
    np.testing.assert_array_equal(np.load(folder / "model" / "slope.npy"), run.params["slope"])
    assert (folder / "samples.txt").read_text().startswith("# before regression: score")
    assert run.before == whole.before
    assert (folder / "learning_curve.png").stat().st_size > 1000


def test_a_bare_stage_has_a_folder_too(tmp_path):
    run = fit([make_agent(2)], jnp.zeros((1, 2, 2)), out=tmp_path / "run")
    assert run.progress.done == 2
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "checkpoints",
        "config.json",
        "learning_curve.png",
        "metrics.jsonl",
    }


def test_a_folder_that_exists_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match="exists: resume it, or name another folder"):
        fit([make_regression()], make_params(), out=tmp_path / "run")
    with pytest.raises(InputError, match="is not a run folder"):
        fit([make_regression()], make_params(), out=tmp_path / "run", resume=True)
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
@pytest.mark.parametrize("step", slow_but([0, 3, 6, 9], 2))
def test_interrupted_at_every_chunk(tmp_path, step, number):
    """Two stages, the signal in any chunk of the second or in the last of the first; saved now and then, or only then."""
    first, second = make_regression(4, chunk=4), make_regression(10, chunk=3, name="second")
    expected = fit([first, second], make_params())
    interrupted = interrupt_at(second, step, number)
    interval = 0 if number == signal.SIGTERM else float("inf")
    run = fit([first, interrupted], make_params(), out=tmp_path / "run", save_interval=interval)
    if step < 9:
        assert (run.interrupted, run.progress.stage, run.progress.done) == (number, 1, step + 3)
        assert not run.after
        assert not (tmp_path / "run" / "model").exists()
        assert (tmp_path / "run" / "learning_curve.png").exists()
    resumed = fit([first, second], make_params(), out=tmp_path / "run", resume=True)
    assert resumed.interrupted is None
    assert same_params(resumed, expected)
    assert without_clock(resumed) == without_clock(expected)
    assert (resumed.before, resumed.after) == (expected.before, expected.after)
    for name, column in expected.history.items():
        if name != "seconds":
            np.testing.assert_array_equal(resumed.history[name], column)


@pytest.mark.parametrize("step", [1, 2, 5])
def test_calls_shorter_than_a_chunk_decide_nothing(tmp_path, whole, step):
    """A signal is obeyed after a call; what is evaluated when is the same."""
    stage = make_regression(stride=1)
    assert without_clock(fit([stage], make_params())) == without_clock(whole)
    stopped = fit([interrupt_at(stage, step)], make_params(), out=tmp_path / "run")
    assert (stopped.interrupted, stopped.progress.done) == (signal.SIGTERM, step + 1)
    resumed = fit([stage], make_params(), out=tmp_path / "run", resume=True)
    assert without_clock(resumed) == without_clock(whole)
    assert same_params(resumed, whole)


@pytest.mark.parametrize("interval", [0, float("inf")])
def test_the_best_evaluation_is_kept(tmp_path, interval):
    """Killed after it, too. Where it begins is no evaluation of what was learnt."""
    scores = {0: 9.0, 2: 3.0, 4: 5.0, 6: float("nan"), 8: 4.0}
    done = iter(sorted(scores))
    stage = make_regression(
        evaluate=lambda params: {"held_out": jnp.float32(scores[next(done)])},
        rank=lambda m: float(m["held_out"]),
    )
    run = fit([stage], make_params(), out=tmp_path / "run", save_interval=interval)
    assert run.progress.best == {"step": 4, "rank": 5.0}
    best = np.load(tmp_path / "run" / "best" / "slope.npy")
    early = fit([make_regression(steps=4)], make_params())
    np.testing.assert_array_equal(best, early.params["slope"])
    np.testing.assert_array_equal(np.load(tmp_path / "run" / "model" / "slope.npy"), run.params["slope"])
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.name[0] == ".") == []


def test_an_export_that_fails_leaves_the_older_one(tmp_path):
    def fail(folder, state, scores):
        (folder / "half").touch()
        raise OSError(28, "No space left on device")

    folder = fit([make_regression()], make_params(), out=tmp_path / "run").folder
    with pytest.raises(OSError, match="No space"):
        fit([make_regression(exports={"model": fail})], make_params(), out=tmp_path / "run", resume=True)
    assert [path.name for path in (folder / "model").iterdir()] == ["slope.npy"]
    fit([make_regression()], make_params(), out=tmp_path / "run", resume=True)
    assert not (folder / ".model").exists()


def test_a_second_signal_stops_at_once(tmp_path):
    twice = interrupt_at(interrupt_at(make_regression(), 4, signal.SIGINT), 4, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit([twice], make_params(), out=tmp_path / "run", save_interval=0)
    resumed = fit([make_regression()], make_params(), out=tmp_path / "run", resume=True)
    assert same_params(resumed, fit([make_regression()], make_params()))


def test_a_run_that_was_never_saved_starts_again(tmp_path, whole):
    def fail(*_):
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fit([make_regression(advance=fail)], make_params(), out=tmp_path / "run")
    assert same_params(fit([make_regression()], make_params(), out=tmp_path / "run", resume=True), whole)


@pytest.mark.parametrize(
    "change, said",
    slow_but(
        [
            ({"steps": 9}, "began with stages[0].steps = 8, now it is 9"),
            ({"name": "other"}, "began with stages[0].name = 'regression', now it is 'other'"),
            ({"config": {"rate": 0.2, "f": fit}}, "began with stages[0].rate = 0.1, now it is 0.2"),
            ({"config": {"rate": 0.1, "f": StepFailed}}, "stages[0].f = 'fit', now it is 'StepFailed'"),
        ],
        2,
    ),
)
def test_another_configuration_is_refused(tmp_path, change, said):
    stage = make_regression(config={"rate": 0.1, "f": fit, "none": np.float32("nan")})
    fit([stage], make_params(), out=tmp_path / "run")
    fit([stage], make_params(), out=tmp_path / "run", resume=True)
    with pytest.raises(InputError) as refused:
        fit([stage._replace(**change)], make_params(), out=tmp_path / "run", resume=True)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def fail_at(step: int, stage: training.Stage) -> training.Stage:
    """The stage, one step of which fails: those of the chunk before it are done."""

    def advance(state, done, count):
        if done <= step < done + count:
            metrics = {}
            if step > done:
                state, metrics = stage.advance(state, done, step - done)
            raise StepFailed("the verifier is down", state, metrics)
        return stage.advance(state, done, count)

    return stage._replace(advance=advance)


@pytest.mark.parametrize("interval", [0, pytest.param(float("inf"), marks=pytest.mark.slow)])
@pytest.mark.parametrize("step", slow_but([0, 1, 4, 7], 2))
def test_what_was_done_before_a_failure_is_saved(tmp_path, whole, step, interval):
    with pytest.raises(StepFailed, match="the verifier is down"):
        fit(
            [fail_at(step, make_regression())],
            make_params(),
            out=tmp_path / "run",
            save_interval=interval,
        )
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(step + 1))
    told = []
    resumed = fit(
        [make_regression()], make_params(), out=tmp_path / "run", resume=True, on_progress=told.append
    )
    assert (told[0].resumed, told[0].progress.done) == (True, step)
    assert same_params(resumed, whole)
    assert without_clock(resumed) == without_clock(whole)


def test_progress_is_told():
    told = []
    stages = [
        make_regression(4, chunk=3),
        make_regression(2, name="b", headline=lambda m: f"{m['loss'][-1]:.9f}"),
    ]
    run = fit(stages, make_params(), on_progress=told.append)
    assert [(r.stage.name, r.progress.done, r.ended, r.resumed) for r in told] == [
        ("regression", 0, False, False),
        ("regression", 3, False, False),
        ("regression", 4, True, False),
        ("b", 0, False, False),
        ("b", 2, True, False),
    ]
    assert [r.headline for r in told] == [None, "", "", None, f"{run.history['loss'][-1]:.9f}"]


def test_parameters_that_are_not_finite_are_named(tmp_path):
    params = {"layer": {"slope": jnp.array([0.0, jnp.nan, 0.0])}, "offset": jnp.zeros(())}
    with pytest.raises(InputError, match="the parameter layer/slope holds numbers that are not finite"):
        fit([make_regression()], params, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_numbers_that_are_not_finite_are_null(tmp_path):
    """JSON has no nan: null in the file, nan in the history."""

    def advance(state, done, count):
        values = np.array([np.nan, np.inf, -np.inf, 1.0])[done : done + count]
        return state, {"odd": values, "several": np.stack([values, np.ones(count)], 1)}

    stage = make_regression(4, advance=advance, evaluate=lambda params: {"held_out": jnp.nan})
    run = fit([stage], make_params(), out=tmp_path / "run")

    def refuse(constant):
        raise AssertionError(constant)

    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    records = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    assert [r["odd"] for r in records[1:]] == [None, None, None, 1.0]
    assert [r["several"] for r in records[1:]] == [[None, 1.0]] * 3 + [[1.0, 1.0]]
    np.testing.assert_array_equal(run.history["odd"], [np.nan] * 3 + [1.0])
    assert run.history["several"].shape == (4, 2)
    assert np.isnan(run.history["held_out"]).all()
    assert fit([stage], make_params(), out=tmp_path / "run", resume=True).records == run.records


def test_metrics_of_any_form(tmp_path):
    """None at all, of the device, of half precision, and of another shape in the next stage."""

    def advance(state, done, count):
        return state, {"loss": jnp.ones((count, 2), jnp.bfloat16), "right": jnp.ones(count, bool)}

    silent = make_regression(4, chunk=4, advance=lambda state, done, count: (state, {}))
    run = fit(
        [silent, make_regression(2, name="b"), make_regression(3, name="c", advance=advance)],
        make_params(),
        out=tmp_path / "run",
    )
    assert [r["step"] for r in run.records] == [0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3]
    assert [np.shape(each) for each in run.history["loss"]] == [(), (), (2,), (2,), (2,)]
    assert run.records[-1]["right"] is True
    np.testing.assert_array_equal(run.history["right"], np.ones(3))


class Listening:
    """A sink that remembers."""

    def __init__(self, folder: pathlib.Path):
        assert (folder / "config.json").exists()
        self.records, self.closed = [], 0

    def write(self, record):
        self.records.append(record)

    def close(self):
        self.closed += 1


@pytest.mark.parametrize("fails", [False, True])
def test_sinks_are_written_and_closed(tmp_path, fails):
    sinks = []

    def listen(folder):
        sinks.append(Listening(folder))
        return sinks[-1]

    stage = fail_at(3, make_regression()) if fails else make_regression()
    try:
        fit([stage], make_params(), out=tmp_path / "run", sinks=[listen, listen])
    except StepFailed:
        assert fails
    assert [sink.closed for sink in sinks] == [1, 1]
    assert [r["step"] for r in sinks[0].records] == list(range(4 if fails else 9))
    assert sinks[0].records == sinks[1].records


def test_a_sink_that_cannot_be_made_closes_those_before_it(tmp_path):
    sinks = []

    def listen(folder):
        sinks.append(Listening(folder))
        return sinks[-1]

    def refuse(folder):
        raise InputError("no such service")

    with pytest.raises(InputError, match="no such service"):
        fit([make_regression()], make_params(), out=tmp_path / "run", sinks=[listen, refuse])
    assert [sink.closed for sink in sinks] == [1]


def test_a_preparation_that_fails_is_no_failure(whole):
    threads = []

    def prepare(shapes):
        threads.append(threading.current_thread())
        raise RuntimeError("out of memory")

    run = fit([make_regression(), make_regression(0, name="next", prepare=prepare)], make_params())
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()
    assert not threads[0].is_alive()
    assert same_params(run, whole)


def test_outside_of_the_main_thread(whole):
    runs = []
    thread = threading.Thread(target=lambda: runs.append(fit([make_regression()], make_params())))
    thread.start()
    thread.join()
    assert same_params(runs[0], whole)


@pytest.mark.parametrize(
    "stages, said",
    [
        ([], "there are no stages"),
        ([make_regression(), make_regression()], "two stages are called 'regression'"),
        ([make_regression(chunk=0)], "8 steps in chunks of 0"),
        ([make_regression(-1)], "-1 steps in chunks of 2"),
    ],
)
def test_stages_that_cannot_be_run(tmp_path, stages, said):
    with pytest.raises(InputError, match=said):
        fit(stages, make_params(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_skipped_steps_are_counted_over_the_stages():
    def count_skipped(by):
        return lambda state, done, count: (
            state,
            {"skipped_updates": by * np.arange(done + 1, done + count + 1)},
        )

    stages = [make_regression(3, name=str(by), advance=count_skipped(by)) for by in (1, 2)]
    assert fit(stages, make_params()).skipped == 3 + 6


def test_the_slope_is_found():
    run = fit([make_regression(300, chunk=100)], make_params())
    np.testing.assert_allclose(run.params["slope"], SLOPE, atol=0.05)


@pytest.fixture(scope="module")
def transformer():
    """A stage of a small transformer, and its parameters."""
    task = tasks.copy(2)
    policy = models.LanguagePolicy(
        models.TransformerConfig(task.tokenizer.vocab_size, layers=1, width=16, heads=2, context=8)
    )
    config = lm.SupervisedConfig(learning_rate=0.01, steps=6, batch=8)
    evaluation = training.evaluate_task(policy, task, count=16)
    stage = training.supervised(policy, task, config, evaluation=evaluation, evaluate_every=2)
    return stage, jax.jit(policy.init)(jax.random.key(0))


@pytest.mark.slow
def test_on_a_mesh(tmp_path, transformer):
    """The same numbers as on one device; a resumed run is laid out as it was, and ends with the same bits."""
    stage, params = transformer
    place = partial(models.shardings, mesh=models.make_mesh(fsdp=2))
    alone = fit([stage], params)
    together = fit([stage], params, place=place)
    np.testing.assert_allclose(together.history["loss"], alone.history["loss"], rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), together.params, alone.params)

    def laid_out(params):
        return jax.tree.map(lambda x: x.sharding, params)

    assert laid_out(together.params) == place(params)
    assert any(not sharding.is_fully_replicated for sharding in jax.tree.leaves(place(params)))
    fit([interrupt_at(stage, 2)], params, place=place, out=tmp_path / "run")
    resumed = fit([stage], params, place=place, out=tmp_path / "run", resume=True)
    assert same_params(resumed, together)
    assert laid_out(resumed.params) == place(params)
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
