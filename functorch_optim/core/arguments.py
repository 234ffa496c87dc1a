"""What the arguments of a factory are: numbers, which are inputs of a program, or choices of code.

It is decided once, from the factory's signature, when the factory (or what is built of it) is made.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any


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
    types = typing.get_type_hints(factory)
    return frozenset(name for name in parameters if not _may_be_a_float(types.get(name)))


def _may_be_a_float(hint: Any) -> bool:
    return hint is float or any(map(_may_be_a_float, typing.get_args(hint)))
