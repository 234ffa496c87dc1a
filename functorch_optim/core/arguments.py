"""What the arguments of a factory are: numbers, which are inputs of a program, or choices of code.

It is decided once, from the factory's signature, when the factory (or what is built of it) is made.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np

from functorch_optim.core import checks


def selects_code(factory: Callable[..., Any]) -> frozenset[str]:
    """The arguments of a factory that select code: flags, words, lengths.

    A factory of this library says so by its types: what may be a float is a number. One of another
    library by its defaults: a flag is none, and a `mask` that is a function is no schedule.
    """
    known = getattr(factory, "selects_code", None)
    if known is not None:
        return frozenset(known)
    parameters = inspect.signature(factory).parameters
    if not str(getattr(factory, "__module__", "")).startswith("functorch_optim."):
        flags = {name for name, p in parameters.items() if isinstance(p.default, bool)}
        return frozenset(flags | ({"mask"} & set(parameters)))
    hints = typing.get_type_hints(factory)
    return frozenset(name for name in parameters if not _may_be_a_float(hints.get(name)))


def _may_be_a_float(hint: Any) -> bool:
    return hint is float or any(map(_may_be_a_float, typing.get_args(hint)))


class Kinds:
    """The kinds of a function's arguments, by their types.

    `Hyperparameter` is a number, an array of one element or a schedule; `bool` a flag; `int` a
    whole number; `str` a word; `... | None` may be absent; `tuple[...]` is as long as it says.
    Arguments of other types, or of none, may be anything.

    Args:
      function: the function.
      may_be_nan: arguments for which NaN is no mistake.
    """

    def __init__(self, function: Callable[..., Any], may_be_nan: Collection[str] = ()):
        try:
            self._hints = typing.get_type_hints(function)
        except NameError:  # a type that only a type checker sees
            self._hints = {}
        self._may_be_nan = may_be_nan

    def plain(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments with tuples for lists, and for arrays where the type is a tuple."""

        def one(name: str, value: Any) -> Any:
            is_row = isinstance(value, jax.Array | np.ndarray) and value.ndim == 1
            of_tuple = typing.get_origin(self._hints.get(name)) is tuple
            return tuple(value) if isinstance(value, list) or (is_row and of_tuple) else value

        return {name: one(name, value) for name, value in values.items()}

    def check(self, values: Mapping[str, Any]) -> None:
        """Raises for the first argument that is not of its kind, naming it.

        Raises:
          TypeError: something else than its type says. ValueError: a tuple of the wrong length, an
            array of several elements, NaN.
        """
        for name, value in values.items():
            self._check(name, self._hints.get(name), value, name in self._may_be_nan)

    def _check(self, name: str, hint: Any, value: Any, may_be_nan: bool) -> None:
        arguments = typing.get_args(hint)
        if value is None and type(None) in arguments:
            return
        if typing.get_origin(hint) is tuple:
            checks.several(name, value, len(arguments))
            for index, (kind, item) in enumerate(zip(arguments, value, strict=True)):
                self._check(f"{name}[{index}]", kind, item, may_be_nan)
        elif jax.Array in arguments:
            checks.number_or_schedule(name, value, may_be_nan)
        elif bool in (hint, *arguments):
            checks.flag(name, value)
        elif int in (hint, *arguments):
            checks.whole(name, value)
        elif str in (hint, *arguments):
            checks.word(name, value)
