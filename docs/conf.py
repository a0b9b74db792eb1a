"""The site: `make docs` builds it from these pages and from the docstrings, which are Markdown as well."""

from __future__ import annotations

import inspect
import re
from typing import Any

from docutils import nodes
from docutils.utils import new_document
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from deepres import __version__

project, author = "deepres", "the deepres authors"
project_copyright = author
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme, html_title = "furo", f"deepres {__version__}"
html_copy_source = False
myst_heading_anchors = 3
smartquotes = False
highlight_language = "none"  # an indented block is a formula or a shell line; Python is in ```python
nitpick_ignore_regex = [("py:(class|obj|data)", ".*")]  # types of PyTorch, JAX and the standard library

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_class_signature = "separated"
autodoc_typehints = "none"  # a docstring says shapes and types
python_maximum_signature_line_length = 90

LABEL = re.compile(r"(Args|Returns|Raises|Source|Parity): ?")
ARGUMENT = re.compile(r"(?P<names>\w+(, \w+)*)(?= \[[^]]*\]:|:( |$))")


class Prose(SphinxDirective):
    """A docstring, as Markdown; what is indented in it is PyTorch as far as it can be read as that."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        document = new_document(self.env.doc2path(self.env.docname), self.state.document.settings)
        MystParser().parse("\n".join(self.content), document)
        for block in document.findall(nodes.literal_block):
            block["language"] = "default"
        return list(document.children)


def as_prose(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Hands a docstring's lines to Prose: labels in bold, each argument that begins a line an item of a list."""
    try:
        arguments = set(inspect.signature(obj).parameters)
    except (TypeError, ValueError):
        arguments = set()
    told: list[str] = []
    inside = False  # an item
    for line in lines:
        bare = line.strip()
        if label := LABEL.match(bare):
            told += ["", f"**{label[1]}:** " + bare[label.end() :]]
            inside = False
        elif (head := ARGUMENT.match(bare)) and head["names"].split(", ")[0] in arguments:
            names = ", ".join(f"`{one}`" for one in head["names"].split(", "))
            told += ["", f"- {names}" + bare[head.end() :]]
            inside = True
        else:
            inside = inside and bool(bare)
            told.append("  " + bare if inside else line)
    lines[:] = [".. prose::", "", *("   " + line for line in told), ""]


def as_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """A study's table is reached from the index of results alone."""
    if docname.startswith("results/") and docname.endswith("/table"):
        source[0] = "---\norphan: true\n---\n\n" + source[0]


def is_left_out(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Constructors are told as __init__."""
    return True if name == "__new__" else None


def setup(app: Sphinx) -> None:
    app.add_directive("prose", Prose)
    app.connect("autodoc-process-docstring", as_prose)
    app.connect("source-read", as_page)
    app.connect("autodoc-skip-member", is_left_out)
