"""`jaxrl4lm tour`: its chapters, what they compute, and the pages of the browser and of the docs."""

import importlib
import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest

from jaxrl4lm import mdp
from jaxrl4lm.cli.tour import contents, in_context, ppo, small_model, trpo
from jaxrl4lm.cli.tour.chapter import Chapter, Findings, write_chapter, write_functions
from jaxrl4lm.cli.tour.contents import CHAPTERS
from jaxrl4lm.cli.tour.episode_gradients import from_one_step, from_returns, measure, sample_gradients
from jaxrl4lm.cli.tour.page import INTRODUCTION, TITLE
from jaxrl4lm.cli.tour.trust_regions import roll_out
from jaxrl4lm.plots.panels import Bars, Grid, Line, Panel, draw_panels
from tests.selection import slow_but

DOCS = pathlib.Path(__file__).parents[2] / "docs"
QUICK = ["returns", "worlds"]
"""Chapters that take a second, and whose numbers are the same everywhere."""


def numbers(table, column):
    return np.array([float(row[column].replace(",", "").rstrip("°%")) for row in table.rows])


def line(panel, label):
    return next(np.asarray(each.y) for each in panel.lines if each.label == label)


def returns_recur(found):
    reward, following, gain = (numbers(found.tables[0], column) for column in (1, 2, 4))
    return np.allclose(gain, reward + 0.9 * following, atol=1e-4) and np.isclose(
        gain[0], 1 - 2 * 0.9**2 + 10 * 0.9**5
    )


def agent_improves(found):
    random, best = (float(x) for x in re.findall(r"(?:direction|policy) ([+-][\d.]+)", found.remarks))
    return random < -1 and abs(best - 0.705) < 0.05  # Russell & Norvig's value of the start


def restaurant_is_found(found):
    once, _, _, ucb, thompson = numbers(found.tables[0], 3)
    return max(ucb, thompson) < once / 1.5


def map_is_learned(found):
    return len(found.tables[0].rows) == 10 and (numbers(found.tables[0], 2)[1:] > 0.25).all()


def theorem_holds(found):
    ratios = numbers(found.tables[0], 1) / numbers(found.tables[0], 3)
    return ((ratios > 0.7) & (ratios < 1.4)).all()


def baseline_helps(found):
    none, mean, value = numbers(found.tables[0], 1)
    return value < mean < none and found.panels[1].lines[1].y[-1] > 0.2


def one_step_needs_a_critic(found):
    angles, deviations = numbers(found.tables[0], 2), numbers(found.tables[0], 3)
    return angles[3] > 40 > 10 > angles[:3].max() and deviations[2] < deviations[0] < deviations[1]


def regions_hold(found):
    constraint = line(found.panels[1], f"constraint, δ = {trpo.DELTA:g}")
    return (constraint <= trpo.DELTA * 1.001).all() and all(x.y[-1] > 0.25 for x in found.panels[2].lines)


def clip_is_flat(found):
    (free, clipped), name = (each.y for each in found.panels[2].lines), f"PPO, ε = {ppo.EPS:g}"
    above, below = line(found.panels[0], name), line(found.panels[1], name)
    flat = np.allclose(above[-50:], 1 + ppo.EPS) and np.allclose(below[:50], -(1 - ppo.EPS))
    return flat and clipped[-1] < free[-1] / 5


def language_is_learned(found):
    said = numbers(found.tables[0], 3)
    taught = found.panels[0].lines[0].y
    return taught[-1] < taught[0] / 5 and said[0] > said[1] > said[2] and "sum to 1.000000" in found.remarks


def schemes_differ(found):
    right = {row[0]: float(row[2].rstrip(" %")) for row in found.tables[0].rows[2:]}
    return right["temperature 0.5"] > right["temperature 1"] > right["temperature 1.5"]


def examples_say_what_to_do(found):
    return all(each.y[0] < 0.6 and min(each.y[1:]) > 0.8 for each in found.panels[0].lines)


def backbone_counts(found):
    known, unknown, _ = numbers(found.tables[0], 2)
    return known > unknown + 0.15


def draws_approach_the_sum(found):
    exact, drawn, after = (float(x) for x in re.findall(r"(?:J =|draws say) ([\d.]+\d)", found.remarks))
    return abs(exact - drawn) < 0.05 and after > exact


def job_is_done(found):
    reward = np.array(found.panels[1].lines[0].y)
    return reward[-10:].mean() > reward[:10].mean() + 0.2 and max(found.panels[2].lines[0].y) > 0


HOLDS = {
    "agent": agent_improves,
    "returns": returns_recur,
    "worlds": lambda found: np.allclose(
        numbers(found.tables[0], 2), [1, 0.9**5, 0.705308, 0.296467], atol=1e-6
    ),
    "sweeps": lambda found: (numbers(found.tables[0], 1)[[4, 5]] == [0, 0.59049]).all(),
    "restaurant": restaurant_is_found,
    "map": map_is_learned,
    "theorem": theorem_holds,
    "reinforce": baseline_helps,
    "a2c": one_step_needs_a_critic,
    "trpo": regions_hold,
    "ppo": clip_is_flat,
    "language-model": language_is_learned,
    "decoding": schemes_differ,
    "in-context": examples_say_what_to_do,
    "heads": backbone_counts,
    "trajectories": draws_approach_the_sum,
    "main-job": job_is_done,
}
"""What holds of the findings of each chapter."""


@pytest.mark.parametrize("name", slow_but(CHAPTERS, [*QUICK, "sweeps", "ppo"]))
def test_what_a_chapter_finds(name, tmp_path):
    found = CHAPTERS[name].compute()
    assert HOLDS[name](found)
    draw_panels(found.panels, tmp_path / "picture.png", columns=found.columns)
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_functions_that_a_chapter_names_are_there(name):
    """Each can be imported, and the tour's own code uses it: the chapter's module, or what that imports of the tour."""
    chapter = CHAPTERS[name]
    module = inspect.getmodule(chapter.compute)
    helpers = {inspect.getmodule(x) for x in vars(module).values() if callable(x)}
    ours = {m for m in helpers if m and m.__name__.startswith("jaxrl4lm.cli.tour")}
    code = "".join(
        re.sub(r"functions=\(.*?\)", "", inspect.getsource(m), flags=re.S) for m in ours | {module}
    )
    for dotted in chapter.functions:
        *rooms, last = dotted.split(".")
        owner = importlib.import_module("jaxrl4lm." + ".".join(rooms))
        assert getattr(owner, last) is not None
        assert re.search(rf"\b{last}\b", code), f"{name} names {dotted}, and does not use it"


def test_the_page_of_the_docs_is_the_text_of_the_chapters():
    page = (DOCS / "tour.md").read_text()
    assert page.startswith(f"# {TITLE}\n\n{INTRODUCTION.strip()}\n\n## ")
    sections = re.split(r"(?m)^(?=## )", page)[1:]
    assert len(sections) == len(CHAPTERS)
    for section, chapter in zip(sections, CHAPTERS.values(), strict=True):
        picture = f"![{chapter.picture}](tour/{chapter.name}.png)"
        head = f"## {chapter.title}\n\n{chapter.text.strip()}\n\n{picture}\n\n"
        assert section.startswith(head), f"{chapter.name}: make docs/tour.md again by jaxrl4lm tour"
        assert section.rstrip().endswith(write_functions(chapter))
        assert (DOCS / "tour" / f"{chapter.name}.png").stat().st_size < 60_000


@pytest.mark.parametrize("name", QUICK)
def test_the_page_of_the_docs_has_the_numbers_of_a_chapter(name):
    chapter = CHAPTERS[name]
    assert write_chapter(chapter, chapter.compute(), "tour/") in (DOCS / "tour.md").read_text()


def test_pages_in_the_order_of_the_lecture(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    result = cli("tour", "--only", "worlds", "returns", "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert result.out.index("Returns and their recursion") < result.out.index("Two worlds")
    assert "2 topics in" in result.out
    folder = tmp_path / "run" / "tour"
    page = (folder / "index.html").read_text()
    pictures = re.findall(r'src="([^"]*)"', page)
    assert pictures == ["returns.png", "worlds.png"]
    assert all((folder / picture).exists() for picture in pictures)
    links = re.findall(r'href="([^"]*)"', page)
    assert links == ["#returns", "#worlds"]
    assert all(f'id="{link[1:]}"' in page for link in links)
    assert "http" not in page
    assert page.count("<table>") == page.count("</table>") == 2
    assert page.count("<section") == page.count("</section>") == 2
    markdown = (tmp_path / "run" / "tour.md").read_text()
    assert re.findall(r"\]\((tour/.*?)\)", markdown) == ["tour/returns.png", "tour/worlds.png"]
    assert not list(folder.glob("*.tmp.png"))


@pytest.mark.parametrize("answers", [["", ""], []])
def test_a_pause_between_topics(cli, tmp_path, monkeypatch, answers):
    """One for two topics; none where nobody can press Enter."""
    asked = []

    def answer(*_):
        asked.append(None)
        if not answers:
            raise EOFError
        return answers.pop()

    empty = Chapter("one", "One", "text", (), "a picture", lambda: Findings([Panel("p")]))
    monkeypatch.setattr(contents, "CHAPTERS", {"one": empty, "two": empty._replace(name="two")})
    monkeypatch.setattr("builtins.input", answer)
    result = cli("tour", "--pause", "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert len(asked) == 1
    assert {path.name for path in (tmp_path / "run" / "tour").iterdir()} == {
        "one.png",
        "two.png",
        "index.html",
    }


@pytest.mark.parametrize(
    "words, message",
    [
        (["--only", "ppp"], "--only has 'ppp': there are agent, returns"),
        (["--out", "."], "--out . exists: name another folder."),
        (["--only", "returns", "--out", "/dev/null/x"], "--out /dev/null/x cannot be made"),
    ],
)
def test_bad_input_is_refused(cli, words, message):
    result = cli("tour", *words)
    assert result.code == 2
    assert message in result.err


def test_the_help_names_every_chapter(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert " ".join(CHAPTERS) in re.sub(r"[\s│]+", " ", cli("tour", "--help").out)


def test_the_surrogate_has_the_gradient_of_the_objective():
    """At the old policy; so the exact rollout is right in its states, weights and advantages."""
    world = mdp.russell_norvig(0.9).mdp
    logits = jax.random.normal(jax.random.key(0), world.rewards.shape)
    rollout = jax.jit(roll_out)(world, logits)
    ours = -rollout.length * jax.grad(lambda x: trpo.surrogate(rollout, x))(logits)
    np.testing.assert_allclose(ours, jax.jit(mdp.policy_gradient)(world, logits), atol=1e-5)
    assert float(rollout.weights.sum()) == pytest.approx(1)
    assert float(rollout.divergence(logits)) == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("credit", [from_returns, from_one_step])
def test_sampled_gradients_are_those_of_the_objective(credit):
    """With an exact critic both forms are right on average."""
    world = mdp.russell_norvig(0.9).mdp
    logits = jax.random.normal(jax.random.key(0), world.rewards.shape)
    values = jnp.where(world.terminal, 0, mdp.policy_values(world, jax.nn.softmax(logits)))
    sampled = sample_gradients(jax.random.key(1), world, logits, credit, values, count=20_000, steps=100)
    exact = mdp.policy_gradient(world, logits)
    error = sampled.std(0) / np.sqrt(len(sampled))
    assert (abs(sampled.mean(0) - exact) < 5 * error + 1e-4).all()
    assert measure(sampled, exact).angle < 10


def test_the_little_languages():
    assert len(set(small_model.list_sentences())) == 216
    assert max(map(len, small_model.list_sentences())) + 2 <= small_model.CONTEXT
    generator = np.random.default_rng(0)
    prompt, answer = in_context.write(generator, "the next", 2)
    pairs = [*re.findall(r"(\w)>(\w) ", prompt), (prompt[-2], answer)]
    assert len(pairs) == 3
    assert prompt.endswith(">")
    assert all(ord(after) == ord(before) + 1 for before, after in pairs)


def test_what_panels_draw(tmp_path, monkeypatch):
    drawn = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))
    )
    world = mdp.lecture()
    grid = Grid(world.index, np.arange(11.0), None, np.asarray(world.mdp.terminal))
    panels = [
        Panel("lines", lines=[Line([0, 1], [2, 3], "a", low=[1, 2], high=[3, 4]), Line([0], [1], "b", "o")]),
        Panel(
            "bars", bars=[Bars("xy", [1, 2], "p"), Bars("xy", [3, 4], "q")], levels=[(5, "five")], log_y=True
        ),
        Panel("grid", grid=grid),
        Panel("a fourth"),
    ]
    draw_panels(panels, tmp_path / "panels.png", columns=3)
    lines, bars, cells, fourth, *rest = drawn[0].axes
    np.testing.assert_allclose(lines.lines[0].get_xydata(), [[0, 2], [1, 3]])
    assert len(lines.collections) == 1
    assert [text.get_text() for text in lines.get_legend().get_texts()] == ["a", "b"]
    assert sorted(patch.get_height() for patch in bars.patches) == [1, 2, 3, 4]
    assert bars.get_yscale() == "log"
    assert bars.lines[0].get_ydata()[0] == 5
    assert "10" in {text.get_text().strip("+") for text in cells.texts}
    assert fourth.get_title() == "a fourth"
    assert not any(ax.axison for ax in rest)
    assert (tmp_path / "panels.png").stat().st_size > 1000
