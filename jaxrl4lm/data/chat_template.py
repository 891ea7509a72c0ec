"""Chat templates as models publish them: Jinja with the functions and tags that transformers gives it."""

import datetime
import json
from functools import lru_cache
from typing import Any

import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

BEGIN, END = "\ufdd0", "\ufdd1"
"""Around what an assistant said, where it is marked: code points that are no characters, so in no text."""


class GenerationTag(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %} marks what an assistant said; the text is what stands inside."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's form)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The nodes inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class MarkedGenerationTag(GenerationTag):
    """The text is what stands inside, between `BEGIN` and `END`."""

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The nodes inside, between two constants."""
        begin, end = (jinja2.nodes.Output([jinja2.nodes.TemplateData(mark)]) for mark in (BEGIN, END))
        return [begin, *super().parse(parser), end]


@lru_cache(maxsize=8)
def compile_template(template: str, *, marked: bool = False) -> jinja2.Template:
    """Makes a template ready to render; it can reach nothing but what it is given.

    Args:
      marked: write `BEGIN` and `END` around what an assistant said.
    """
    tag = MarkedGenerationTag if marked else GenerationTag
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[tag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _write_json  # Jinja's own escapes HTML
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template)


def _write_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(message: str) -> None:
    raise ValueError(f"the chat template refuses the conversation: {message}")
