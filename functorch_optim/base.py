"""The vocabulary of the library: the pair, its types, and how updates reach parameters."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar

import chex
import jax

Params: TypeAlias = chex.ArrayTree
Updates: TypeAlias = chex.ArrayTree
State: TypeAlias = chex.ArrayTree
PerParam: TypeAlias = chex.ArrayTree
Scalar = jax.Array
Schedule = Callable[[Any], Any]
Number = float | jax.Array
Hyperparameter = float | jax.Array | Schedule

P = ParamSpec("P")
T = TypeVar("T")


class GradientTransformation(NamedTuple):
    """A pure `(init, update)` pair, in optax's protocol.

    Attributes:
      init: `init(params) -> state`.
      update: `update(grads, state, params=None, **extra) -> (updates, state)`. Updates are ADDED
        to the parameters: the sign and the learning rate are already in them. Extra keyword
        arguments that the pair does not know are ignored.
    """

    init: Callable[[Params], State]
    update: Callable[..., tuple[Updates, State]]


class EmptyState(NamedTuple):
    """The state of a pair that remembers nothing."""


def stateless(changed: Callable[[Updates, Params | None], Updates]) -> GradientTransformation:
    """The pair that remembers nothing, and whose updates are `changed(updates, params)`."""

    def update(
        updates: Updates, state: EmptyState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, EmptyState]:
        return changed(updates, params), state

    return GradientTransformation(lambda params: EmptyState(), update)


def member(tx: Any, place: str) -> GradientTransformation:
    """A pair that is to be a part of another one; its update takes any extra argument.

    Args:
      tx: a pair of this library or of any other with optax's protocol.
      place: where it stands, for the message: "argument 0 of chain".

    Returns:
      The pair, whose update drops the extra arguments that `tx` does not take.

    Raises:
      TypeError: it is not a pair (an uncalled factory, say).
    """
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        hint = ". Call the factory first" if callable(tx) else ""
        if isinstance(tx, list | tuple) and all(hasattr(x, "update") for x in tx):
            raise TypeError(f"{place} is a {type(tx).__name__} of pairs: give them one by one")
        raise TypeError(f"{place} should be an (init, update) pair, but is {tx!r}{hint}")
    return GradientTransformation(tx.init, _accepting_extra(tx.update))


def _accepting_extra(update: Callable[..., Any]) -> Callable[..., Any]:
    parameters = inspect.signature(update).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return update
    names = {p.name for p in parameters if p.kind is not inspect.Parameter.POSITIONAL_ONLY}

    def filtered(grads: Updates, state: State, params: Params | None = None, **extra: Any) -> Any:
        known = {name: value for name, value in extra.items() if name in names}
        return update(grads, state, params, **known)

    return filtered


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
        if inspect.isfunction(part):
            part.__dict__["built_of_arrays"] = True
    return built
