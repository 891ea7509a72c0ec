"""How the pages are built: `sphinx-build -W --keep-going -b html docs docs/_build`. Nothing is downloaded."""

import importlib
import inspect
import pathlib
import re
import sys

from sphinx.pycode import ModuleAnalyzer

import jaxrl4lm

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from docstrings import mend_docstring

project = "jaxrl4lm"
author = copyright = "The jaxrl4lm authors"
version = release = jaxrl4lm.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx_copybutton"]
exclude_patterns = ["_build"]
templates_path = ["_templates"]

html_theme = "sphinx_book_theme"
html_title = f"jaxrl4lm {version}"
html_theme_options = {"show_toc_level": 2, "use_download_button": False, "use_fullscreen_button": False}
html_show_sourcelink = False

myst_heading_anchors = 3
# A single backtick is code in the docstrings; where it names something of the library, it is also a link.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

REFERENCE = pathlib.Path(__file__).parent / "reference" / "index.md"
PAGES = set(re.findall(r"(?m)^ +(jaxrl4lm[\w.]*)$", REFERENCE.read_text()))
"""The modules that have a page each."""


def public_members(page: str) -> dict[str, list[str]]:
    """Names that the page of a module describes: what its `__all__` lists, or else what it defines.

    What a listed module brings from another one that has a page stands there.
    """
    module = importlib.import_module(page)
    listed = getattr(module, "__all__", None)
    members: dict[str, list[str]] = {"functions": [], "classes": [], "exceptions": []}
    on_first_use = {name: getattr(module, name) for name in listed or () if name not in vars(module)}
    for name, member in {**vars(module), **on_first_use}.items():
        home = getattr(member, "__module__", None)
        elsewhere = home != page and (listed is None or home in PAGES)
        if elsewhere or name not in (listed or [name]) or name.startswith("_"):
            continue
        if inspect.isclass(member):
            members["exceptions" if issubclass(member, Exception) else "classes"].append(name)
        elif callable(member) and inspect.getdoc(member):
            members["functions"].append(name)
    described = ModuleAnalyzer.for_module(page).find_attr_docs()
    members["constants"] = [name for scope, name in described if not scope and not name.startswith("_")]
    return members


autosummary_context = {"public_members": public_members}
suppress_warnings = ["config.cache"]  # a function in the context cannot be pickled: every build starts anew


def find_in_library(app, env, node, content):
    """Finds names as the text writes them: `reduce.token_mean` is `jaxrl4lm.reduce.token_mean`."""
    target = f"jaxrl4lm.{node['reftarget'].removesuffix('()')}"
    python = env.domains["py"]
    if node.get("refdomain") != "py" or target not in python.objects:
        return None
    return python.resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, content)


def setup(app) -> None:
    app.connect("autodoc-process-docstring", mend_docstring)
    app.connect("missing-reference", find_in_library)
