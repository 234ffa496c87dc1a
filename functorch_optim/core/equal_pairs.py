"""Equal pairs are one pair: factories that return the same object for equal arguments."""

from __future__ import annotations

import contextlib
import enum
import functools
import inspect
import weakref
from collections.abc import Callable, Hashable
from typing import Any, ParamSpec, TypeVar, cast

from functorch_optim.core.pair import GradientTransformation, explained
from functorch_optim.core.recipe import record
from functorch_optim.core.slips import bound_arguments

P = ParamSpec("P")
T = TypeVar("T")


class BuiltOf(enum.IntEnum):
    """What a result was built of, as far as it concerns who may keep it."""

    NUMBERS = 0  # and strings, flags, dtypes: it may be kept
    FUNCTIONS = 1  # of a user's, which hold what they captured: kept for as long as somebody has it
    ARRAYS = 2  # perhaps traced: never kept


def value_equal(build: Callable[P, T], public: Callable[..., Any] | None = None) -> Callable[P, T]:
    """Makes calls with equal, hashable arguments return the same object.

    A pair (or schedule) that is a static argument of `jax.jit` is compared by identity there, so
    building it twice from the same numbers would otherwise compile twice.

    Nothing of a user's is kept alive. What is built of numbers alone is kept (the 1,024 most recent
    results); what holds a function, a schedule of one's own say, is the same object for as long as
    somebody has it. Calls with arrays are built anew each time, and so is what is built of their
    results: a cache would hold on to the arrays, and to the trace that they may belong to.

    A pair knows the call that it was built by: for its repr, and for pickle, which makes the same
    call again, so that what comes out is the same pair.

    Args:
      build: makes the result.
      public: the function in a module that leads here, if it is not `build` itself. Arguments that
        it has not are those that it does not let the user choose.
    """
    signature = inspect.signature(build)
    name = str(getattr(public or build, "__name__", ""))
    alive: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()

    def made(args: tuple[Any, ...], kwargs: dict[str, Any], made_of: BuiltOf) -> T:
        built = build(*args, **kwargs)
        return _marked(_recorded(built, public or wrapper, args, kwargs), made_of)

    @functools.lru_cache(maxsize=1024)
    def kept(
        args: tuple[Hashable, ...], kwargs: tuple[tuple[str, Hashable], ...], kinds: Hashable
    ) -> T:
        return made(args, dict(kwargs), BuiltOf.NUMBERS)

    @functools.wraps(build)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = bound_arguments(name, signature, args, kwargs)
        bound.apply_defaults()
        key = (bound.args, tuple(bound.kwargs.items()))
        made_of = _made_of(key) if _is_hashable(key) else BuiltOf.ARRAYS
        if made_of is BuiltOf.NUMBERS:
            return kept(*key, _kinds(key))
        if made_of is BuiltOf.ARRAYS:
            return made(bound.args, bound.kwargs, made_of)
        whole = (*key, _kinds(key))
        known = alive.get(whole)
        if known is not None:
            return known.whole
        built = made(bound.args, bound.kwargs, made_of)
        # A tuple cannot be referenced weakly. A pair lives as long as its update, which knows it.
        known = alive[whole] = built[-1] if isinstance(built, tuple) else built
        known.whole = built  # type: ignore[union-attr]  # no type checker knows of it
        return built

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


def _made_of(x: Any) -> BuiltOf:
    """What an argument is made of; of a tuple, that which matters most."""
    known = getattr(x, "built_of", None)
    if isinstance(known, BuiltOf):
        return known
    if isinstance(x, tuple):
        return max(map(_made_of, x), default=BuiltOf.NUMBERS)
    return BuiltOf.FUNCTIONS if callable(x) and not isinstance(x, type) else BuiltOf.NUMBERS


def recorded(build: Callable[P, T]) -> Callable[P, T]:
    """Lets the pairs of a factory know the call that they were built by; each call builds one."""
    signature = inspect.signature(build)

    @functools.wraps(build)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = bound_arguments(build.__name__, signature, args, kwargs)
        return _recorded(build(*args, **kwargs), wrapper, bound.args, bound.kwargs)

    return wrapper


def _recorded(
    built: T, factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> T:
    """The result with its recipe; a pair's functions then explain a wrong call by its name."""
    chosen = inspect.signature(factory).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in chosen.values())
    kwargs = {name: value for name, value in kwargs.items() if takes_any or name in chosen}
    if isinstance(built, GradientTransformation) and "recipe" not in vars(built):
        built = cast(T, explained(built, factory.__name__))
    record(built, factory, args, kwargs)
    return built


def _marked(built: T, made_of: BuiltOf) -> T:
    """The result, which now tells what it was built of: itself, or a tuple by its functions."""
    if isinstance(built, tuple):  # whoever takes a pair's functions takes this with them
        for part in built:
            if inspect.isfunction(part):
                part.__dict__["built_of"] = made_of
        return built
    with contextlib.suppress(AttributeError):
        built.built_of = made_of  # type: ignore[attr-defined]  # no type checker knows of it
    return built
