"""`help()` shows the math, and speaks of what it is about: a pair or a class."""

import ast
import functools
import importlib
import inspect
import pydoc
import re
from collections.abc import Callable
from pathlib import Path

import optax
import pytest

import functorch_optim as fo
import functorch_optim.stateful as optim
from functorch_optim.rules import Rule, StepNumbers, per_leaf, zeros
from functorch_optim.stateful.torch_class import FLAGS
from tests.tables.algorithms import TABLE

OF_RULES = [name for name in fo.__all__ if hasattr(getattr(fo, name), "rule")]
FACTORIES = [*OF_RULES, "lbfgs"]
CLASSES = {
    name: value
    for name, value in vars(optim).items()
    if inspect.isclass(value)
    and issubclass(value, optim.Optimizer)
    and hasattr(getattr(value, "_factory", None), "rule")
}


def formula_of(name: str) -> str:
    """The first indented block of a module's docstring."""
    text = inspect.cleandoc(importlib.import_module(getattr(fo, name).__module__).__doc__ or "")
    block = re.search(r"\n\n(    .*?)\n\n(?=\S)", f"{text}\n\n.", re.DOTALL)
    assert block, f"{name} has no formula"
    return block[1]


def described(text: str) -> list[str]:
    """The arguments that a docstring describes."""
    _, _, rest = text.partition("\n\nArgs:\n")
    section = rest.partition("\n\n")[0]
    return [
        name
        for line in re.findall(r"^  (\w[\w, ]*): ", section, re.MULTILINE)
        for name in line.split(", ")
    ]


def test_the_tables_are_not_empty() -> None:
    assert {row.name for row in TABLE} | {"sparse_adam"} <= set(FACTORIES)
    assert len(CLASSES) == 14


@pytest.mark.parametrize("name", FACTORIES)
def test_help_of_a_factory_shows_the_formula_as_a_literal_block(name: str) -> None:
    shown = inspect.getdoc(getattr(fo, name)) or ""
    assert f"::\n\n{formula_of(name)}\n\n" in shown
    source = importlib.import_module(getattr(fo, name).__module__).__doc__ or ""
    paper = re.findall(r"\b(?:19|20)\d\d\b", source)
    assert paper and all(year in shown for year in paper)
    assert described(shown) == [*inspect.signature(getattr(fo, name)).parameters]
    assert "Returns:\n  A `GradientTransformation`" in shown


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_help_of_a_class_speaks_of_a_class(name: str) -> None:
    cls = CLASSES[name]
    shown = inspect.getdoc(cls) or ""
    factory = cls._factory.__name__
    assert shown.startswith(f"torch.optim.{name}: the stateful face of `functorch_optim.{factory}`")
    assert f"::\n\n{formula_of(factory)}\n\n" in shown
    for word in ("GradientTransformation", "Returns:", "from update", "from init"):
        assert word not in shown
    arguments = [*inspect.signature(cls).parameters]
    assert sorted(described(shown)) == sorted(arguments)
    assert described(shown)[0] == "params"
    if FLAGS.keys() & set(arguments):
        assert shown.count("so that checkpoints travel;\n    they select nothing") == 1


def descriptions(text: str) -> dict[str, str]:
    """What a docstring says of each argument, as one line, without its default."""
    section = text.partition("\n\nArgs:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^  (\w[\w, ]*): (.*(?:\n    .*)*)", section, re.MULTILINE)
    return {k: re.sub(r" Default: .*", "", re.sub(r"\s+", " ", said)) for k, said in found}


def source_of(name: str) -> ast.ClassDef:
    """The class statement, which is what an editor reads."""
    source = importlib.import_module("functorch_optim.stateful.classes").__file__ or ""
    statements = ast.parse(Path(source).read_text()).body
    return next(s for s in statements if isinstance(s, ast.ClassDef) and s.name == name)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_an_editor_sees_every_argument_of_a_class_with_its_type_and_its_description(
    name: str,
) -> None:
    statement = source_of(name)
    init = next(s for s in statement.body if isinstance(s, ast.FunctionDef))
    assert init.name == "__init__"
    arguments = [*init.args.args[1:], *init.args.kwonlyargs]
    assert [a.arg for a in arguments] == [*inspect.signature(CLASSES[name]).parameters]
    assert all(a.annotation is not None for a in arguments)
    shown = ast.get_docstring(statement) or ""
    assert sorted(described(shown)) == sorted(a.arg for a in arguments)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_class_describes_its_arguments_as_the_factory_does(name: str) -> None:
    ours = descriptions(inspect.getdoc(CLASSES[name]) or "")
    theirs = descriptions(inspect.getdoc(CLASSES[name]._factory) or "")
    assert {k: said for k, said in ours.items() if k in theirs} == {
        k: said for k, said in theirs.items() if k not in CLASSES[name]._factory.fixed
    }


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_help_of_a_class_begins_with_its_signature(name: str) -> None:
    """Long ones stand on one line in Python 3.11, on a line for each argument in 3.13."""
    shown = pydoc.render_doc(CLASSES[name], renderer=pydoc.plaintext)
    arguments = r"params: 'Any',\W+lr: 'Hyperparameter' = [\d.]+"
    assert re.search(rf"class {name}\(.*Optimizer\)\n \|  {name}\(\W*{arguments}", shown)
    assert re.search(rf"__init__\(\W*self,\W+{arguments}", shown)


@pytest.mark.parametrize("name", OF_RULES)
def test_a_class_of_a_factory_names_the_factory_and_not_torch(name: str) -> None:
    shown = inspect.getdoc(optim.from_transformation(getattr(fo, name), "Mine")) or ""
    assert shown.startswith(f"Mine: the stateful face of `functorch_optim.{name}`.\n")
    assert "torch.optim.Mine" not in shown
    assert "GradientTransformation" not in shown
    assert formula_of(name) in shown


@pytest.mark.parametrize("factory", [optax.lamb, functools.partial(optax.lamb, b1=0.8)])
def test_a_class_of_another_librarys_factory_describes_its_arguments(factory: Callable) -> None:
    shown = inspect.getdoc(optim.from_transformation(factory, "Lamb")) or ""
    assert shown.startswith("Lamb: the stateful face of `optax.lamb`.\n")
    assert described(shown)[:3] == ["params", "learning_rate", "b1"]
    assert "Returns:" not in shown
    assert "GradientTransformation" not in shown


def test_a_class_of_a_factory_without_a_docstring_describes_params() -> None:
    def bare(lr: float):  # type: ignore[no-untyped-def]  # a user's
        return fo.scale(-lr)

    shown = inspect.getdoc(optim.from_transformation(bare)) or ""
    assert shown.startswith("bare: the stateful face of `tests.docs.test_docstrings.bare`.\n")
    assert described(shown) == ["params"]


def test_a_rule_of_a_script_does_not_show_the_scripts_docstring() -> None:
    rule = Rule(
        "Plain", fo.SGDState, zeros(1), lambda t, h: StepNumbers(), lambda g, p, b, s: (g, b)
    )

    def plain(lr: float = 1.0) -> None:
        """Plain steps."""

    plain.__module__ = "__main__"
    shown = inspect.getdoc(per_leaf(rule)(plain)) or ""
    assert shown.startswith("Plain steps.\n\nArgs:\n  lr: learning rate.")


@pytest.mark.parametrize("module", [fo, optim, optim.lr_scheduler, optim.swa_utils])
def test_every_indented_block_is_literal(module: object) -> None:
    for name in module.__all__:  # type: ignore[attr-defined]  # each of them has it
        shown = inspect.getdoc(getattr(module, name)) or ""
        for line in re.findall(r"^(\S.*)\n\n(?=    )", shown, re.MULTILINE):
            assert line.endswith("::"), f"{name}: {line}"
