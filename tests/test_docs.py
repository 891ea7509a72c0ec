"""What the README and the pages show runs as shown, links lead somewhere, and tables and lists are complete."""

import ast
import importlib.util
import inspect
import pathlib
import pkgutil
import re

import numpy as np
import pytest

import jaxrl4lm
from jaxrl4lm import advantages, data, losses, models, reduce, returns
from tests.selection import slow_but

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
MADE = {"_build", "generated"}
PAGES = [*ROOT.glob("*.md"), *(path for path in DOCS.rglob("*.md") if not MADE & set(path.parts))]
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in sorted(PAGES)}


def python_blocks(page):
    return re.findall(r"(?ms)^```python\n(.*?)^```", PAGES[page])


def losses_learned(scope):
    mean = reduce.token_mean(scope["loss"], scope["mask"])
    return scope["curve"][0] < 0.2 and scope["curve"][-1] > 0.7 and np.isclose(scope["mean"], mean)


def first_run_learned(scope):
    rewards = scope["metrics"]["reward/mean"]
    return rewards.shape == (100,) and rewards[-5:].mean() > 0.9


def agents_trained(scope):
    learned = scope["scores"].shape == (2, 2, 1) and scope["scores"].mean() > 100
    planned = np.isclose(scope["learnt"].learner.tables[0, 0].max(), 0.9**5, atol=1e-2)
    return learned and planned and scope["history"].score.shape == (5, 8)


def reward_judges(scope):
    fitted = scope["run"].history["loss"].shape == (60,) and scope["run"].history["distance"][-1] < 1e-2
    vowels = scope["vowel"]([], ["Maria", "Al", "Robert"]) == [1.0, 0.0, 0.0]
    return fitted and vowels and scope["brevity"]([[5]], [[1, 2]]) == [0.75]  # of a bucket of 8


def population_ranked(scope):
    return scope["metrics"]["reward/mean"].shape == (4, 3, 20) and scope["score"].shape == (3,)


def worlds_solved(scope):
    solution, values = scope["solution"], scope["values"]
    solved = solution.converged and abs(solution.values[0] - 0.812) < 5e-4  # Russell & Norvig's
    return solved and len(values) == 3 and scope["slope"].shape == scope["logits"].shape


def bandits_played(scope):
    history = scope["history"]
    good = history.optimal[-100:].mean() > 0.8 and (scope["curve"] > 0.5).all()
    return good and history.rewards.shape == (1000, 2000)


def models_trained(scope):
    """Only layer 1 and the last norm were trained, and the files of model and adapters are there."""
    trained = {path for path, x in models.huggingface.flatten(scope["trained"]).items() if x is not None}
    written = pathlib.Path("my-model/model.safetensors"), pathlib.Path("my-adapters/adapter_config.json")
    return all(file.exists() for file in written) and all(
        path.startswith(("layer_1/", "final_norm")) for path in trained
    )


def rows_batched(scope):
    shown = data.show_example(scope["encoded"].examples[0], scope["tokenizer"]) == "<bos>0+0=⟦0<eos>⟧"
    mixed = len(scope["mixture"]) == 64 and len(scope["groups"].widths) <= 6
    return shown and mixed and (scope["packed"].segments > 0).mean() > 0.9


def preferences_learned(scope):
    history = scope["run"].history
    return history["loss"][-1] < history["loss"][0] and history["held_out/margin"][-1] > 0


def decoding_completed(scope):
    out, best = scope["out"], scope["best"]
    return out.tokens.shape == (8, 16) and len(scope["texts"]) == 8 and best.tokens.shape == (2, 16)


# What holds of the names that each page leaves behind.
HOLDS = {
    "docs/agents.md": agents_trained,
    "docs/algorithms.md": lambda scope: (
        (scope["config"].clip_eps, scope["mine"].compares_group) == (0.2, True)
    ),
    "README.md": lambda scope: scope["run"].history["reward/mean"].shape == (20,),
    "docs/bandits.md": bandits_played,
    "docs/data.md": rows_batched,
    "docs/decoding.md": decoding_completed,
    "docs/distill.md": lambda scope: np.diff(scope["run"].history["held_out/reverse_kl"][[0, -1]]) < 0,
    "docs/exact.md": lambda scope: abs(scope["solution"].values[0] - scope["answers"].best) < 1e-3,
    "docs/getting-started.md": first_run_learned,
    "docs/heads.md": lambda scope: set(scope["run"].params) == {"backbone", "head"},
    "docs/losses.md": losses_learned,
    "docs/models.md": models_trained,
    "docs/populations.md": population_ranked,
    "docs/preference.md": preferences_learned,
    "docs/rlhf.md": lambda scope: scope["means"][-1] > scope["means"][0] + 0.5,
    "docs/sft.md": lambda scope: scope["run"].history["loss"].shape == (20,),
    "docs/train.md": reward_judges,
    "docs/worlds.md": worlds_solved,
}


@pytest.mark.parametrize("page", slow_but(filter(python_blocks, PAGES), ["README.md"]))
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    """All blocks in order, in an empty folder, with nothing given."""
    monkeypatch.chdir(tmp_path)
    scope = {}
    for code in python_blocks(page):
        exec(compile(code, page, "exec"), scope)
    assert HOLDS[page](scope)


def test_code_to_copy_is_short():
    """A training step of one's own, and a whole run in Python."""
    steps = [
        node
        for code in python_blocks("docs/losses.md")
        for node in ast.walk(ast.parse(code))
        if getattr(node, "name", "") == "train_step"
    ]
    assert len(steps) == 1
    assert steps[0].end_lineno - steps[0].lineno < 15
    _, whole_run = python_blocks("README.md")  # the first makes what a reader may have already
    statements = ast.parse(whole_run).body
    assert len(statements) <= 10
    assert len(PAGES["README.md"].split("\n")) <= 150


def anchors(text):
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?ms)^```.*?^```", "", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(path.read_text()), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page):
    """A path of the repository that the text names is there."""
    for name in re.findall(r"`((?:jaxrl4lm|tests|docs|benchmarks|\.ci|\.github)/[\w./-]*)`", PAGES[page]):
        assert (ROOT / name).exists() or name == "docs/_build", f"{page} names {name}"


def small(name):
    """An example's `main`, and what it is called with at its small size."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main, module.SMALL


@pytest.mark.slow
def test_example_of_a_own_reward(tmp_path):
    main, sizes = small("own_reward")
    run = main(sizes, str(tmp_path / "run"))
    assert run.history["reward/mean"].shape == (sizes.updates,)
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_example_of_a_sft_then_rl():
    main, sizes = small("sft_then_rl")
    run = main(sizes, None)
    assert run.history["loss"].shape == (sizes.steps,)
    assert run.history["reward/mean"].shape == (sizes.updates,)


@pytest.mark.slow
def test_example_of_a_population(tmp_path):
    main, sizes = small("population")
    last = main(sizes, str(tmp_path / "best"))
    assert last.shape == (sizes.seeds, 3)
    policy, _, tokenizer = models.load(tmp_path / "best")
    assert policy.config.width == sizes.width
    assert tokenizer.decode(tokenizer.encode("21")) == "21"


def test_example_of_a_foreign_loop():
    main, sizes = small("foreign_loop")
    curve = main(sizes)
    assert curve[0] < 0.5
    assert sum(curve[-10:]) > 7


def test_every_example_is_shown_and_tested():
    examples = {path.stem for path in (DOCS / "examples").glob("*.py")}
    assert set(re.findall(r"literalinclude\} examples/(\w+)\.py", PAGES["docs/examples.md"])) == examples
    assert {
        name.removeprefix("test_example_of_a_") for name in globals() if "example_of_a" in name
    } == examples


def test_every_room_is_in_the_reference():
    listed = set(re.findall(r"(?m)^ +jaxrl4lm\.(\w+)", PAGES["docs/reference/index.md"]))
    rooms = {module.name for module in pkgutil.iter_modules(jaxrl4lm.__path__)}
    assert listed == rooms - {"arguments", "cli", "fields", "user_file"}


def test_every_listed_name_is_in_the_reference(monkeypatch):
    """Also names that a room loads on first use."""
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(DOCS)
    spec = importlib.util.spec_from_file_location("conf", DOCS / "conf.py")
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    described = {
        page: {name for kind in conf.public_members(page).values() for name in kind} for page in conf.PAGES
    }
    for page, names in described.items():
        module = importlib.import_module(page)
        for name in getattr(module, "__all__", ()):
            member = getattr(module, name)
            elsewhere = getattr(member, "__module__", None) in set(described) - {page}
            if inspect.isfunction(member) or inspect.isclass(member):
                assert name in names or elsewhere, f"{page} leaves {name} out"
    assert {"fit", "reinforcement", "supervised"} <= described["jaxrl4lm.training"]


def functions_of_the_table():
    """`module.name`, and names after it of the same module; `name(arguments)` and `name(_suffix)` as well."""
    table = PAGES["docs/losses.md"].split("## Which function is which paper", 1)[1].split("\n## ", 1)[0]
    rooms = {"losses": losses, "losses.kl": losses.kl, "losses.trpo": losses.trpo}
    rooms |= {"advantages": advantages, "reduce": reduce, "returns": returns}
    for cell in re.findall(r"(?m)^\| (`[^|]*`) \|", table):
        for path, suffix in re.findall(r"`([\w.]+)(?:\(([^`]*)\))?`", cell):
            *namespaces, name = path.split(".")
            if namespaces:
                room = rooms[".".join(namespaces)]
            for end in ["", suffix] if suffix.startswith("_") else [""]:
                assert name + end in vars(room), path
                yield getattr(room, name + end)


def test_the_table_names_every_function_and_no_other():
    named = set(functions_of_the_table())
    public = {getattr(room, name) for room in (losses, losses.kl, losses.trpo) for name in room.__all__}
    for module in (advantages, reduce, returns):
        public |= {f for name, f in vars(module).items() if not name.startswith("_")}
    ours = {f for f in public if inspect.isfunction(f) and f.__module__.startswith("jaxrl4lm.")}
    plumbing = {f for f in ours if f.__module__ == "jaxrl4lm.arguments"}
    assert named == ours - plumbing


def test_the_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"(?m)^version: (.*)$", citation)[1] == jaxrl4lm.__version__


def test_the_package_is_typed():
    assert (pathlib.Path(jaxrl4lm.__file__).parent / "py.typed").exists()
