"""The tour as pages: index.html for a browser, tour.md for the docs. Both are the Markdown of the chapters."""

import html
import pathlib
from collections.abc import Mapping

from markdown_it import MarkdownIt

from jaxrl4lm.cli.tour.chapter import Chapter, Findings, write_chapter

TITLE = "A tour of the lecture"
INTRODUCTION = """
From agent and environment to PPO on a transformer, in the order of the lecture. Every number and every picture on this
page was computed by the library, by one command:

```
jaxrl4lm tour              # a screen a topic; RUN/tour/index.html shows them all with their pictures
jaxrl4lm tour --only ppo   # one topic
```

Each topic names the functions that it calls, to go on with in Python.
"""
STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 1.5rem 1.2rem 4rem; max-width: 62rem; font: 1rem/1.6 system-ui, sans-serif; color: #1d2430;
  background: #fff; }
h1 { font-size: 1.9rem; margin: 0 0 .5rem; }
h2 { font-size: 1.35rem; margin: 0 0 .6rem; }
p, li { max-width: 46rem; }
p:has(img) { max-width: none; }
nav ol { columns: 24rem; padding-left: 1.6rem; margin: 1rem 0 0; }
nav a { color: #1858b8; text-decoration: none; }
nav a:hover { text-decoration: underline; }
section { border-top: 1px solid #dde2ea; margin-top: 2.2rem; padding-top: 1.6rem; }
img { display: block; max-width: 100%; height: auto; margin: 1rem 0; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; border-bottom: 1px solid #e6eaf0; white-space: nowrap; }
th { color: #4a5568; font-weight: 600; }
code { font: .88em ui-monospace, monospace; background: #f1f4f8; padding: .08em .3em; border-radius: .25em;
  white-space: pre-wrap; }
pre { background: #f1f4f8; padding: .7rem .9rem; border-radius: .4rem; overflow-x: auto; }
pre code { padding: 0; white-space: pre; }
"""


def write_pages(path: pathlib.Path, pictures: str, done: Mapping[Chapter, Findings]) -> None:
    """Writes index.html beside the pictures, and tour.md above them.

    Args:
      path: the run folder.
      pictures: the folder of the pictures in it.
      done: chapters that have been computed, in their order.
    """
    (path / "tour.md").write_text(write_markdown(pictures, done), encoding="utf-8")
    (path / pictures / "index.html").write_text(write_html(done), encoding="utf-8")


def write_markdown(pictures: str, done: Mapping[Chapter, Findings]) -> str:
    """The page of the docs."""
    sections = [write_chapter(chapter, findings, f"{pictures}/") for chapter, findings in done.items()]
    return "\n\n".join([f"# {TITLE}", INTRODUCTION.strip(), *sections]) + "\n"


def write_html(done: Mapping[Chapter, Findings]) -> str:
    """A page that needs nothing but the pictures beside it."""
    render = MarkdownIt("commonmark").enable("table").render
    links = "\n".join(
        f'<li><a href="#{chapter.name}">{html.escape(chapter.title)}</a></li>' for chapter in done
    )
    sections = "\n".join(
        f'<section id="{chapter.name}">\n{render(write_chapter(chapter, findings, ""))}</section>'
        for chapter, findings in done.items()
    )
    sections = sections.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{TITLE}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{TITLE}</h1>\n{render(INTRODUCTION)}<nav><ol>\n{links}\n</ol></nav>\n{sections}\n</body>\n</html>\n"
    )
