"""What a pair was built from: its repr shows it, and it is what a pickle keeps.

A pair is two functions, which say nothing and cannot be pickled. The factory that made them has a
name in a module, and its arguments are numbers, trees and other pairs.
"""

from __future__ import annotations

import dataclasses
import inspect
import pickle
import sys
import weakref
from collections.abc import Mapping
from types import FrameType
from typing import Any

import numpy as np

_INDENT = "    "
_LONGEST = 200  # characters of an argument: a mask has an entry for each leaf of a model

# The recipes of functions, which are not written into them: functools.wraps would copy them.
_of_functions: weakref.WeakKeyDictionary[Any, Recipe] = weakref.WeakKeyDictionary()


class Recipe:
    """A call of a factory.

    Attributes:
      factory: the function.
      args: the arguments by position.
      kwargs: those by name.
    """

    __slots__ = ("args", "factory", "kwargs")

    def __init__(self, factory: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]):
        self.factory = factory
        self.args, self.kwargs = _kept(args), _kept(dict(kwargs))

    @property
    def name(self) -> str:
        """The factory as it is written in a call."""
        built = _of_function(self.factory)
        named = getattr(self.factory, "__name__", type(self.factory).__name__)
        return str(named if built is None else built)

    def __str__(self) -> str:
        return _call(self.name, _arguments(self))

    def call(self) -> tuple[Any, ...]:
        """The call as pickle keeps it: a factory that was itself built is a call as well."""
        built = _of_function(self.factory)
        return _made, (self.factory if built is None else built, self.args, self.kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return Recipe, (self.factory, self.args, self.kwargs)


def _of_function(factory: Any) -> Recipe | None:
    return _of_functions.get(factory) if inspect.isfunction(factory) else None


def _made(factory: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if isinstance(factory, Recipe):
        factory = _made(factory.factory, factory.args, factory.kwargs)
    return factory(*args, **kwargs)


class Recorded:
    """A named tuple of functions that may know what it was built from, in `vars(self)`."""

    __slots__ = ()

    def __repr__(self) -> str:
        recipe = _recipe_of(self)
        if recipe is not None:
            return str(recipe)
        fields: Any = self
        texts = [f"{name}={value!r}" for name, value in fields._asdict().items()]
        return f"{type(self).__name__}({', '.join(texts)})"

    def __reduce__(self) -> tuple[Any, ...]:
        recipe = _recipe_of(self)
        if recipe is None:
            fields: Any = self
            return type(self), tuple(fields), getattr(self, "__dict__", None)
        _check_picklable(recipe)
        return recipe.call()

    # Immutable, and equal by its functions: built again it would be another one.
    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        return self


def record(built: Any, factory: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Writes down what something was built from, if it can tell: a pair, or a function."""
    if isinstance(built, Recorded):
        vars(built)["recipe"] = Recipe(factory, args, kwargs)
    elif inspect.isfunction(built):
        _of_functions[built] = Recipe(factory, args, kwargs)


def _recipe_of(x: Any) -> Recipe | None:
    return getattr(x, "__dict__", {}).get("recipe") if isinstance(x, Recorded) else None


def _kept(x: Any) -> Any:
    """Arguments as they are now: dicts and lists are the user's, who may go on to change them."""
    if type(x) is dict:
        return {key: _kept(value) for key, value in x.items()}
    return type(x)(map(_kept, x)) if type(x) in (list, tuple) else x


def _arguments(recipe: Recipe) -> list[tuple[str, Any]]:
    """The arguments that say something, by name; no name for one by position only.

    A default that switches something off, `False`, `None` or 0, says nothing.
    """
    signature = inspect.signature(recipe.factory)
    shown: list[tuple[str, Any]] = []
    for name, value in signature.bind(*recipe.args, **recipe.kwargs).arguments.items():
        parameter = signature.parameters[name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            shown += [("", item) for item in value]
        elif parameter.kind is parameter.VAR_KEYWORD:
            shown += value.items()
        elif not _is_off(value, parameter.default):
            shown.append(("" if _is_pair(value) else name, value))
    return shown


def _is_off(value: Any, default: Any) -> bool:
    if type(value) is not type(default) or not isinstance(value, bool | int | float | tuple | None):
        return False
    return not value and value == default


def _call(name: str, arguments: list[tuple[str, Any]]) -> str:
    """A call in one line; with a pair among the arguments, one line for each of them."""
    texts = [f"{key}={_text(value)}" if key else _text(value) for key, value in arguments]
    return f"{name}{_listed('(', texts, ')', any(_holds_pair(value) for _, value in arguments))}"


def _listed(start: str, texts: list[str], end: str, apart: bool) -> str:
    if not apart:
        return start + ", ".join(texts) + end
    lines = [text.replace("\n", "\n" + _INDENT) for text in texts]
    return start + "".join(f"\n{_INDENT}{line}," for line in lines) + "\n" + end


def _text(x: Any) -> str:
    if _holds_pair(x):
        return _of_pairs(x)
    text = _plain(x)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 50]} ... {text[-45:]}"


def _of_pairs(x: Any) -> str:
    if _is_pair(x):
        return repr(x)
    if isinstance(x, Mapping):
        return _listed("{", [f"{k!r}: {_text(v)}" for k, v in x.items()], "}", apart=True)
    return _listed("(", list(map(_text, x)), ")", apart=not _is_named(x))


def _plain(x: Any) -> str:
    if isinstance(x, np.generic):
        return repr(x.item())
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return f"{x.dtype}{[*x.shape]}"
    if inspect.isfunction(x):
        built = _of_function(x)
        return x.__qualname__ if built is None else str(built)
    if isinstance(x, type) or type(x).__name__ == "_ScalarMeta":  # a dtype: jnp.float32
        return str(x.__name__)
    if type(x) is dict:
        return "{" + ", ".join(f"{k!r}: {_plain(v)}" for k, v in x.items()) + "}"
    if type(x) in (list, tuple):
        start, end = "[]" if type(x) is list else "()"
        return start + ", ".join(map(_plain, x)) + ("," * (len(x) == 1 and end == ")")) + end
    return repr(x)


def _is_pair(x: Any) -> bool:
    return isinstance(x, tuple) and hasattr(x, "init") and hasattr(x, "update")


def _is_named(x: Any) -> bool:
    return isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], str)


def _holds_pair(x: Any) -> bool:
    if _is_pair(x):
        return True
    items = x.values() if isinstance(x, Mapping) else x if type(x) in (list, tuple) else ()
    return any(map(_holds_pair, items))


def _check_picklable(recipe: Recipe) -> None:
    """Raises PicklingError for a function without a name in a module, which pickle cannot find."""
    nameless = _nameless(recipe)
    if nameless is not None and not _pickles_by_value():
        raise pickle.PicklingError(
            f"this pair, {recipe.name}(...), cannot be pickled: it is built of {nameless!r}, which "
            "has no name in a module. Define it by `def` at the top of one"
        )


def _nameless(x: Any) -> Any:
    """The first function inside that cannot be imported."""
    if inspect.isfunction(x) and _of_function(x) is None:
        found: Any = sys.modules.get(x.__module__)
        for part in x.__qualname__.split("."):
            found = getattr(found, part, None)
        return None if found is x else x
    for part in _parts(x):
        nameless = _nameless(part)
        if nameless is not None:
            return nameless
    return None


def _parts(x: Any) -> tuple[Any, ...]:
    recipe = x if isinstance(x, Recipe) else _recipe_of(x) or _of_function(x)
    if recipe is not None:
        return recipe.factory, *recipe.args, *recipe.kwargs.values()
    if isinstance(x, Mapping):
        return (*x.values(),)
    if isinstance(x, tuple | list):
        return (*x,)
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return tuple(getattr(x, field.name) for field in dataclasses.fields(x))
    arguments = getattr(x, "arguments", None)  # of a schedule
    return (*arguments.values(),) if isinstance(arguments, dict) else ()


def _pickles_by_value() -> bool:
    """Whether the pickler at work takes functions without a name: cloudpickle, and Ray by it."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", "")).rpartition(".")[2]
        if module in ("cloudpickle", "cloudpickle_fast", "_dill"):
            return True
        frame = frame.f_back
    return False
