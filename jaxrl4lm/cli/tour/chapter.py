"""What a chapter of the tour is: text, a computation, and the Markdown that both become."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxrl4lm.plots.panels import Panel


class Table(NamedTuple):
    """Rows of text under a head."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Findings(NamedTuple):
    """What a chapter has computed."""

    panels: Sequence[Panel]
    """Its picture."""
    tables: Sequence[Table] = ()
    remarks: str = ""
    """What the numbers say, in Markdown."""
    columns: int = 3
    """The most panels of a row of the picture."""


class Chapter(NamedTuple):
    """One topic: a screen on the terminal, a picture, a section of the page."""

    name: str
    """Of its picture's file, and on the command line."""
    title: str
    text: str
    """Markdown: what it is about. Numbers of a run stand in `Findings` alone."""
    functions: Sequence[str]
    """What is called, as names below `jaxrl4lm`."""
    picture: str
    """What the picture shows, for who cannot see it."""
    compute: Callable[[], Findings]
    commands: Sequence[str] = ()
    """Commands that go further."""


def write_chapter(chapter: Chapter, findings: Findings, folder: str | None = None) -> str:
    """The section of a chapter, in Markdown.

    Args:
      folder: where its picture lies, seen from the page, with a / at the end; None: no picture.
    """
    picture = "" if folder is None else f"![{chapter.picture}]({folder}{chapter.name}.png)"
    parts = [
        f"## {chapter.title}",
        chapter.text.strip(),
        picture,
        *map(write_table, findings.tables),
        findings.remarks.strip(),
        write_functions(chapter),
    ]
    return "\n\n".join(part for part in parts if part)


def write_functions(chapter: Chapter) -> str:
    """What a chapter calls, and the commands that go further."""
    lines = ["In Python: " + ", ".join(f"`{name}`" for name in chapter.functions) + "."]
    if chapter.commands:
        lines.append("On the command line: " + ", ".join(f"`{each}`" for each in chapter.commands) + ".")
    return "\n\n".join(lines)


def write_table(table: Table) -> str:
    """A table in Markdown."""
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
