"""The code of the documentation's pages runs as it stands, each page on its own."""

import re
import warnings
from pathlib import Path

import jax
import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md") if "```python" in path.read_text())


def test_there_are_pages_with_code() -> None:
    assert {"pairs.md", "schedules.md", "stateful.md"} <= set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_the_code_of_a_page_runs(name: str) -> None:
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
