"""Compiled programs of users' functions, which are kept as long as the functions are.

A program knows its function by a weak reference alone. Whoever calls the program holds the
function; when nobody does any more, the program goes, and with it all that was captured.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Hashable
from typing import Any

Function = Callable[..., Any]


class ProgramCache:
    """Programs by function and options.

    A function is known by its identity, so it may be any callable: one that cannot be hashed, or
    compares as equal to others. A bound method, which is a new object each time, is known by its
    object and its function.

    Args:
      build: `build(function, *options)` makes a program. The function it is given holds the user's
        one weakly.
    """

    def __init__(self, build: Callable[..., Any]):
        self._build = build
        self._programs: dict[int, tuple[weakref.ref[Any], dict[Hashable, Any]]] = {}

    def __call__(self, function: Function, *options: Hashable) -> Any:
        """The program of a function."""
        owner: Any = function
        method = None
        if inspect.ismethod(function):
            owner, method = function.__self__, function.__func__
        key = id(owner)
        known = self._programs.get(key)
        if known is None or known[0]() is not owner:
            try:
                reference = weakref.ref(owner, functools.partial(self._forget, key))
            except TypeError:  # it cannot be referenced weakly: nothing is kept of it
                return self._build(function, *options)
            known = self._programs[key] = reference, {}
        reference, programs = known
        if (method, options) not in programs:
            programs[method, options] = self._build(_weakly(reference, method), *options)
        return programs[method, options]

    def _forget(self, key: int, reference: weakref.ref[Any]) -> None:
        known = self._programs.get(key)
        if known is not None and known[0] is reference:
            del self._programs[key]


def _weakly(reference: weakref.ref[Any], method: Function | None) -> Function:
    """The function without holding it."""

    def function(*args: Any, **kwargs: Any) -> Any:
        owner = reference()
        if owner is None:
            raise ReferenceError("the function of this program no longer exists")
        return owner(*args, **kwargs) if method is None else method(owner, *args, **kwargs)

    return function
