"""From the docstrings' form to reStructuredText.

Docstrings are Google's (`Args:`, `Returns:`) with a line `Reference: ...`, and otherwise Markdown: tables, code that is
indented by four after an empty line, bars as in |x|.
"""

import re

from sphinx.ext.napoleon import Config, GoogleDocstring

GOOGLE = Config(napoleon_use_rtype=False)


def mend_docstring(app, what, name, obj, options, lines: list[str]) -> None:
    """The handler of `autodoc-process-docstring`: changes the lines in place."""
    text = "\n".join(line for line in lines if not re.match(r"Alias for field number \d+$", line))
    text = re.sub(
        r"(?m)^Reference: (.*(?:\n +\S.*)*)",
        lambda found: f"\n**Reference:** {' '.join(found[1].split())}",
        text,
    )
    text = re.sub(r"(?m)^  The others: ", "  others: ", text)
    text = re.sub(r"(?m)(: [A-Za-z])\.$", r"\1\.", text)  # a letter is not the number of a list
    text = re.sub(r"\n\n(?=    \S)", "\n\n::\n\n", text)
    text = re.sub(r"(?m)(?:^\|.*\|\n?){2,}", lambda table: list_table(table[0]), text)
    mended = escape_bars(text).split("\n")
    # A field's docstring is a sentence, of which napoleon would take what stands before a colon for its type.
    prose = what in ("attribute", "data", "property")
    lines[:] = mended if prose else GoogleDocstring(mended, GOOGLE, app, what, name, obj, options).lines()


def list_table(table: str) -> str:
    """A Markdown table as a `list-table`."""
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.strip().split("\n")]
    out = [".. list-table::", "   :header-rows: 1", ""]
    for cells in [rows[0], *rows[2:]]:
        out += [f"   {'* -' if i == 0 else '  -'} {cell}".rstrip() for i, cell in enumerate(cells)]
    return "\n".join([*out, "", ""])


def escape_bars(text: str) -> str:
    """|x| is an absolute value, not a substitution: but for code and doctests."""
    code = r"`[^`]*`|^ *>>>.*$|^    .*$"
    return re.sub(rf"(?m)({code})|\|", lambda found: found[1] or r"\|", text)
