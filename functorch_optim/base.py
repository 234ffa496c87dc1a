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


def value_equal(build: Callable[P, T]) -> Callable[P, T]:
    """Makes calls with equal, hashable arguments return the same object.

    A pair (or schedule) that is a static argument of `jax.jit` is compared by identity there, so
    building it twice from the same numbers would otherwise compile twice. Calls with arrays are
    built anew each time. The cache keeps the 1,024 most recent results.
    """
    signature = inspect.signature(build)

    @functools.lru_cache(maxsize=1024)
    def cached(args: tuple[Hashable, ...], kwargs: tuple[tuple[str, Hashable], ...]) -> T:
        return build(*args, **dict(kwargs))  # type: ignore[arg-type]  # what bind() gave back

    @functools.wraps(build)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        key = (bound.args, tuple(bound.kwargs.items()))
        try:
            hash(key)
        except TypeError:
            return build(*args, **kwargs)
        return cached(*key)

    return wrapper
