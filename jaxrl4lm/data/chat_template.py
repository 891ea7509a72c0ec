"""Chat templates as models publish them: Jinja with the functions and tags that transformers gives it."""

import datetime
import json
from functools import lru_cache
from typing import Any

import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox


class GenerationTag(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %} marks what an assistant said; the text is what stands inside."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's form)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The nodes inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=8)
def compile_template(template: str) -> jinja2.Template:
    """Makes a template ready to render; it can reach nothing but what it is given."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _write_json  # Jinja's own escapes HTML
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template)


def _write_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(message: str) -> None:
    raise ValueError(f"the chat template refuses the conversation: {message}")
