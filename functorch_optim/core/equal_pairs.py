"""Equal pairs are one pair: factories that return the same object for equal arguments."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def value_equal(build: Callable[P, T]) -> Callable[P, T]:
    """Makes calls with equal, hashable arguments return the same object.

    A pair (or schedule) that is a static argument of `jax.jit` is compared by identity there, so
    building it twice from the same numbers would otherwise compile twice. Calls with arrays are
    built anew each time, and so is what is built of their results: a cache would hold on to the
    arrays, and to the trace that they may belong to. It keeps the 1,024 most recent results.
    """
    signature = inspect.signature(build)

    @functools.lru_cache(maxsize=1024)
    def cached(
        args: tuple[Hashable, ...], kwargs: tuple[tuple[str, Hashable], ...], kinds: Hashable
    ) -> T:
        return build(*args, **dict(kwargs))  # type: ignore[arg-type]  # what bind() gave back

    @functools.wraps(build)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        key = (bound.args, tuple(bound.kwargs.items()))
        if _is_hashable(key) and not _holds_arrays(key):
            return cached(*key, _kinds(key))
        return _marked(build(*args, **kwargs))

    return wrapper


def _is_hashable(x: Any) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True


def _kinds(x: Any) -> Any:
    """The types in a tuple: True is no 1 to a function that checks its arguments."""
    return tuple(map(_kinds, x)) if isinstance(x, tuple) else type(x)


def _holds_arrays(x: Any) -> bool:
    """Whether a function in a tuple (a pair is one, of functions) was built of arrays."""
    if isinstance(x, tuple):
        return any(map(_holds_arrays, x))
    return getattr(x, "built_of_arrays", False) is True


def _marked(built: T) -> T:
    for part in built if isinstance(built, tuple) else (built,):
        if inspect.isfunction(part) or hasattr(type(part), "built_of_arrays"):
            setattr(part, "built_of_arrays", True)  # noqa: B010  # a type checker knows no such field
    return built
