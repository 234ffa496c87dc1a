"""The code of the pages, and the examples, are without fault to mypy and pyright, as a user's."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

import functorch_optim as fo

ROOT = Path(__file__).parents[2]
PAGES = [
    path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if "```python" in path.read_text()
]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))

# Without one of these a type checker would see less than a user of it does.
PACKAGES = ("equinox", "flax", "matplotlib", "optax", "orbax", "rich", "safetensors", "sklearn")

MYPY = """\
[mypy]
strict = true
# The functions of the pages say as little of their types as those of other tutorials.
disallow_untyped_defs = false
disallow_incomplete_defs = false
disallow_untyped_calls = false
# The methods of jax's arrays give Any.
warn_return_any = false

# Packages without py.typed.
[mypy-optax.*,orbax.*,sklearn.*,torch.*]
ignore_missing_imports = true
"""

PYRIGHT = {
    "typeCheckingMode": "strict",
    # The functions of the pages say as little of their types as those of other tutorials.
    "reportMissingParameterType": False,
    # What follows from that, and from jax, whose own types have holes: `device: Unknown | ...`.
    "reportUnknownArgumentType": False,
    "reportUnknownLambdaType": False,
    "reportUnknownMemberType": False,
    "reportUnknownParameterType": False,
    "reportUnknownVariableType": False,
    # Packages without py.typed: optax, orbax, sklearn.
    "reportMissingTypeStubs": False,
}


def code_of(page: Path) -> str:
    """The code of a page as one module, each line at its number in the page."""
    lines, inside = [], False
    for line in page.read_text().splitlines():
        fence = line.startswith("```")
        inside = line == "```python" if fence else inside
        lines.append(line if inside and not fence else "")
    return "\n".join(lines) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All of the code, in a folder that is no part of the library's."""
    for page in PAGES:
        (tmp_path / f"{page.stem}_md.py").write_text(code_of(page))
    for example in EXAMPLES:
        (tmp_path / example.name).write_text(example.read_text())
    return tmp_path


def check(folder: Path, *command: str) -> None:
    for package in ("torch", *PACKAGES):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the code imports {package}")
    # -I: as a type checker asks, whom PYTHONPATH does not concern.
    find = "import importlib.util as u; print(getattr(u.find_spec('functorch_optim'), 'origin', 0))"
    asked = subprocess.run([sys.executable, "-I", "-c", find], capture_output=True, text=True)
    if Path(asked.stdout.strip()).resolve() != Path(fo.__file__).resolve():
        pytest.skip(f"functorch_optim is installed from elsewhere: {asked.stdout.strip()}")
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_page_keeps_its_line_numbers() -> None:
    readme = (ROOT / "README.md").read_text().splitlines()
    code = code_of(ROOT / "README.md").splitlines()
    assert len(code) == len(readme)
    assert [line for line in code if line == "import functorch_optim.stateful as optim"]
    assert all(line in ("", there) for line, there in zip(code, readme, strict=True))


@pytest.mark.slow
def test_mypy_finds_no_fault(folder: Path) -> None:
    pytest.importorskip("mypy", reason="the extra dev has it")
    (folder / "mypy.ini").write_text(MYPY)
    check(folder, "mypy", "--config-file=mypy.ini", ".")


@pytest.mark.slow
def test_pyright_finds_no_fault(folder: Path) -> None:
    pytest.importorskip("pyright", reason="the extra dev has it")
    (folder / "pyrightconfig.json").write_text(json.dumps(PYRIGHT))
    check(folder, "pyright", "--pythonpath", sys.executable)
