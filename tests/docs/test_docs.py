"""The code of the documentation's pages runs as it stands, each page on its own."""

import re
import warnings
from pathlib import Path

import jax
import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md") if "```python" in path.read_text())

# What a page imports beyond the library itself.
NEEDED = {
    "interop_torch.md": ("torch", "safetensors"),
    "interop_optax.md": ("optax",),
    "coming_from_optax.md": ("optax",),
    "interop_flax.md": ("flax", "optax"),
    "interop_equinox.md": ("equinox", "optax"),
    "interop_orbax.md": ("orbax.checkpoint",),
}


def test_there_are_pages_with_code() -> None:
    assert {"pairs.md", "schedules.md", "stateful.md", "extending.md"} <= set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_the_code_of_a_page_runs(name: str) -> None:
    for package in NEEDED.get(name, ()):
        pytest.importorskip(package, reason="the page is about it")
    text = (DOCS / name).read_text()
    snippets = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    names: dict = {"__name__": f"docs.{name}"}
    with (
        # as a user runs it, not as strictly as the tests
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        warnings.catch_warnings(),
    ):
        for number, snippet in enumerate(snippets):
            exec(compile(snippet, f"docs/{name}, snippet {number}", "exec"), names)
