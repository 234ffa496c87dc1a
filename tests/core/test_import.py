"""What an import of the library brings beyond jax, counted in a new interpreter."""

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from importlib import metadata
from types import ModuleType

import pytest

import functorch_optim as fo
from functorch_optim import algorithms, averages, compose, transforms

ADDED = """
import json, sys
import jax, jax.numpy
before = set(sys.modules)
import {module}
print(json.dumps(sorted(set(sys.modules) - before)))
"""

# Each of these costs more than all of the library.
HEAVY = ("jax.experimental.sparse", "jax.experimental.pallas", "jax._src.pallas", "jax.extend")


@pytest.mark.parametrize("module", ["functorch_optim", "functorch_optim.stateful"])
def test_an_import_brings_the_library_and_nothing_else(module: str) -> None:
    command = [sys.executable, "-c", ADDED.format(module=module)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    added = json.loads(done.stdout)
    packages = {name.partition(".")[0] for name in added}
    assert packages - sys.stdlib_module_names - {"jax"} == {"functorch_optim"}
    assert "unittest" not in packages
    of_jax = [name for name in added if name.startswith("jax")]
    assert not [name for name in of_jax if name.startswith(HEAVY)]
    # None today. A release of jax may load late what it now loads at once.
    assert len(of_jax) <= 10, of_jax
    # 97 and 139 today, of a millisecond each.
    assert len(added) <= 200


def test_a_star_import_brings_the_public_names_and_no_module() -> None:
    names: dict = {}
    exec("from functorch_optim import *", names)
    assert {name for name in names if not name.startswith("__")} == set(fo.__all__)
    assert not [name for name in fo.__all__ if isinstance(names[name], ModuleType)]
    assert not [name for name in fo.__all__ if name.startswith("_")]
    assert {"adam", "AdamState", "chain", "step_lr", "apply_updates", "Schedule"} <= set(names)


@pytest.mark.parametrize("room", [algorithms, averages, compose, transforms])
def test_every_factory_of_a_room_is_public(room: ModuleType) -> None:
    factories = 0
    for info in pkgutil.iter_modules(room.__path__, f"{room.__name__}."):
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            is_here = getattr(value, "__module__", None) == info.name and not name.startswith("_")
            if is_here and inspect.isfunction(value):
                returned = inspect.signature(value).return_annotation
                if returned in ("GradientTransformation", "WeightAverage"):
                    factories += 1
                    assert getattr(fo, name, None) is value, f"{name} has no line in __init__.py"
    assert factories > 0


def test_the_version_is_that_of_the_installed_package_or_says_that_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def not_found(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    assert fo.__version__ == metadata.version("functorch_optim")
    monkeypatch.setattr(metadata, "version", not_found)
    assert fo.__version__ == "0+unknown"
    with pytest.raises(AttributeError, match="module 'functorch_optim' has no attribute 'adamm'"):
        _ = fo.adamm
