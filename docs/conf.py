"""Sphinx's settings: ``python -m sphinx -W --keep-going docs build/docs`` writes these pages as HTML."""

import os
import re
import shutil
from pathlib import Path

from sdd_jax import __version__

project = "sdd_jax"
author = copyright = "The sdd_jax authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # links to headings, as GitHub makes them
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say more: shapes
napoleon_use_ivar = True

html_theme = "furo"
html_title = "sdd_jax"
html_static_path = ["static"]
html_css_files = ["wide.css"]

# Pages that stand with what they are about, and are read here as well: copies of them, under the same paths.
DOCS = Path(__file__).parent
COPIES = DOCS / "_elsewhere"
ELSEWHERE = [
    *sorted(DOCS.parent.glob("benchmarks/results/*.md")),
    DOCS.parent / "CHANGELOG.md",
    *sorted(DOCS.parent.glob("experiments/*.md")),
    *sorted(DOCS.parent.glob("experiments/results/*.md")),
]


def relinked(text: str, old: Path, new: Path) -> str:
    """``text`` of the page ``old`` with links that hold where ``new`` stands, to copies where there are some."""

    def link(match: re.Match[str]) -> str:
        path, mark, anchor = match[1].partition("#")
        target = Path(os.path.normpath(old.parent / path))
        if "://" in match[1] or not path:
            return match[0]
        target = COPIES / target.relative_to(DOCS.parent) if target in ELSEWHERE else target
        return f"]({os.path.relpath(target, new.parent)}{mark}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", link, text)


def copy_pages(app) -> None:
    """Writes the copies."""
    shutil.rmtree(COPIES, ignore_errors=True)
    for page in ELSEWHERE:
        copy = COPIES / page.relative_to(DOCS.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(relinked(page.read_text(), page, copy))


def relink_page(app, name: str, source: list[str]) -> None:
    """Lets the links of a page that stands here lead to the copies."""
    page = DOCS / f"{name}.md"
    if COPIES not in page.parents:
        source[0] = relinked(source[0], page, page)


def skip_fields(app, what, name, member, skip, options) -> bool | None:
    """Leaves out a named tuple's fields, which its docstring lists with what they mean."""
    return True if (member.__doc__ or "").startswith("Alias for field number") else None


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("builder-inited", copy_pages)
    app.connect("source-read", relink_page)
