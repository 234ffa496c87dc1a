"""The site: Sphinx reads Markdown pages (myst) and the Google-style docstrings (napoleon)."""

from importlib import metadata
from typing import Any

project = "functorch_optim"
author = "The functorch_optim authors"
copyright = author
release = metadata.version("functorch_optim")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "examples"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"functorch_optim {release}"

default_role = "code"  # `x` in a docstring is code, as it is in Markdown
autodoc_default_options = {"members": True, "member-order": "groupwise"}
autodoc_typehints = "none"  # an algorithm's is that of the check it is made from: `-> None`
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False  # "Returns:" is prose throughout, a colon in it ends no type
napoleon_use_ivar = True  # a field of a NamedTuple is listed once, under its class


def skip_bare_fields(
    app: Any, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    """Leaves out the fields of a NamedTuple, which describe themselves as aliases for a number."""
    if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number"):
        return True
    return None


def setup(app: Any) -> None:
    app.connect("autodoc-skip-member", skip_bare_fields)
