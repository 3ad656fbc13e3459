"""How Sphinx builds these pages: `make docs`."""

import re
from importlib import metadata

project = "sparsecomp"
author = "The sparsecomp authors"
version = release = metadata.version("sparsecomp")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 3

html_theme = "furo"  # its fonts are the reader's, its scripts its own: a built page asks no other server
html_title = f"sparsecomp {release}"
html_copy_source = False

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
default_role = "literal"  # single backquotes in docstrings, as in Markdown


def escape_formulas(app, what, name, obj, options, lines):
    """`max|y - y0|` and `a * b` in docstrings are formulas, no markup."""
    for number, line in enumerate(lines):
        outside = re.split(r"(`+[^`]*`+)", line)
        outside[::2] = [re.sub(r"(?<!\\)([|*])", r"\\\1", part) for part in outside[::2]]
        lines[number] = "".join(outside)


def setup(app):
    app.connect("autodoc-process-docstring", escape_formulas, priority=100)  # before napoleon writes markup
    return {"parallel_read_safe": True}
