"""mypy and pyright find no fault in the pages' code, in the examples, and in a user's."""

import importlib.util
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import functorch_optim as fo
import functorch_optim.stateful as optim

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
    # Where a fault has to be found, "type: ignore" says so, and is one itself where there is none.
    "reportUnnecessaryTypeIgnoreComment": True,
}

USER = """\
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import optax

import functorch_optim as fo
import functorch_optim.stateful as optim

assert_type(fo.__version__, str)
fo.nothing  # type: ignore

tx = fo.adam(lr=1e-3, betas=(0.9, 0.99))
assert_type(tx, fo.GradientTransformation)
tx.updates  # pyright: ignore
fo.adam(learning_rate=1)  # type: ignore
fo.adam(lr="fast")  # type: ignore
fo.chain(fo.adam)  # type: ignore
state = tx.init({})
print(state.step, state.exp_avg)
injected = fo.inject_hyperparams(fo.adam)(lr=fo.step_lr(1e-3, 10))
print(injected.init({}).hyperparams["lr"])
assert_type(fo.chain(fo.clip_by_global_norm(1.0), optax.lion(1e-3)), fo.GradientTransformation)
optax.chain(optax.clip(1.0), fo.sgd(0.1))

model = optim.parameters({"w": jnp.ones(3)})


def loss_fn(params: Any, x: jax.Array) -> jax.Array:
    return jnp.sum(params["w"] * x)


def loss_and_aux(params: Any, x: jax.Array) -> tuple[jax.Array, str]:
    return loss_fn(params, x), "aux"


x = jnp.ones(3)
assert_type(optim.backward(loss_fn, model, x), jax.Array)
assert_type(optim.backward(loss_and_aux, model, x, has_aux=True), tuple[jax.Array, Any])
for opt in (optim.SGD(model, lr=fo.step_lr(1e-3, 10)), optim.LBFGS(model)):
    assert_type(opt.make_step(loss_fn, model)(x), jax.Array)
    assert_type(opt.make_step(loss_fn, model, clip_norm=1.0)(x), jax.Array)
    step = opt.make_step(loss_and_aux, model, has_aux=True, accumulate=2)
    assert_type(step(x), tuple[jax.Array, Any])
assert_type(optim.AdamW(model, lr=jnp.float32(1e-3)), optim.AdamW)
optim.AdamW(model, 1e-3, (0.9, 0.99), 1e-8, 0.0, False, True)  # type: ignore
optim.AdamW(model, foreach="yes")  # type: ignore
assert_type(optim.SGD(model).to_functional()[0], fo.GradientTransformation)


class Mine(optim.Adam):
    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=1e-2, amsgrad=True)


Lamb = optim.from_transformation(fo.lamb)
Lion = optim.from_transformation(optax.lion)
optimizers: list[optim.Optimizer] = [Lamb(model, lr=1e-2), Lion(model, 1e-2), Mine(model)]

p = optim.Parameter(x)
assert_type(jnp.mean(p), jax.Array)
assert_type(p.data, jax.Array)
assert_type(p.shape, tuple[int, ...])
p.data = p.data + 1
for name, parameter in optim.named_parameters(model):
    print(name.upper(), parameter.data.sum())
print(optim.values(model)["w"] + 1, optimizers[0].state[p]["step"])
"""
CLASSES = [
    name
    for name, value in vars(optim).items()
    if inspect.isclass(value) and issubclass(value, optim.Optimizer) and name != "Optimizer"
]


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
    """All of the code, in a folder outside of the library's."""
    for page in PAGES:
        (tmp_path / f"{page.stem}_md.py").write_text(code_of(page))
    for example in EXAMPLES:
        (tmp_path / example.name).write_text(example.read_text())
    of_classes = [
        f"assert_type(optim.{name}(model, lr=1e-3), optim.{name})\n"
        f"optim.{name}(model, learning_rate=1e-3)  # type: ignore\n"
        for name in CLASSES
    ]
    (tmp_path / "user.py").write_text(USER + "".join(of_classes))
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
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},  # else it looks for a newer one
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_code_to_check() -> None:
    assert len(PAGES) >= 11
    assert len(EXAMPLES) == 4
    assert len(CLASSES) == 15


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
