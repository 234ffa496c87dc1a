"""What all schedule factories share: kinds of numbers, equal schedules, checks of lengths."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import as_float, is_number
from functorch_optim.core.equal_pairs import BuiltOf, value_equal
from functorch_optim.core.pair import Schedule
from functorch_optim.core.slips import bound_arguments

P = ParamSpec("P")
# A longer length is taken as this one. No count comes near, and its square is still a float.
FOREVER = 2**100


class BuiltSchedule:
    """A function of the step count that knows the factory and the arguments it was built from.

    A schedule is equal to itself only, but factories return the same one for equal numbers: after
    unpickling, too, as it is pickled by its factory's name and its arguments.

    Attributes:
      factory: the schedule factory.
      arguments: its arguments by name, those left out at their defaults.
      at: the value at a count, as the factory returned it.
      built_of: what they are, as far as it concerns who may keep the schedule.
    """

    # Without a __dict__: nothing of a schedule can be changed, by loading a saved state, say.
    __slots__ = ("__weakref__", "arguments", "at", "built_of", "factory", "whole")

    def __init__(
        self,
        factory: Callable[..., Schedule],
        arguments: dict[str, Any],
        at: Callable[[Any], Any],
    ):
        self.factory = factory
        self.arguments = arguments
        self.at = at
        self.built_of = BuiltOf.NUMBERS

    def __call__(self, count: Any) -> Any:
        """The value at a count: a float for a number, an array of its shape for an array."""
        count = _normal(count)
        checks.real(count=count)
        return _in_kind(result(self.__name__, self.at(count)), count)

    @property
    def __name__(self) -> str:
        return self.factory.__name__

    def __repr__(self) -> str:
        return f"{self.__name__}({described(self.factory, self.arguments)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.factory, self.arguments)


def _rebuilt(factory: Callable[..., Schedule], arguments: dict[str, Any]) -> Schedule:
    return factory(**arguments)


def described(factory: Callable[..., Any], arguments: dict[str, Any]) -> str:
    """The arguments as in a call: the first without its name, and no default."""
    parameters = inspect.signature(factory).parameters
    words = []
    for index, (name, value) in enumerate(arguments.items()):
        if not _same(value, parameters[name].default):
            words.append(repr(value) if index == 0 else f"{name}={value!r}")
    return ", ".join(words)


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and not is_array(value) and bool(value == default)


def schedule_factory(build: Callable[P, Schedule]) -> Callable[P, Schedule]:
    """Gives equal arguments the same schedule, and numbers one kind on the way in and out.

    Arrays among the arguments and counts become the widest integer or float in use. The value of a
    number is a float, that of an array is an array of its shape.
    """
    signature = inspect.signature(build)

    @value_equal
    def finished(types: tuple[type, ...], **values: Any) -> Schedule:
        return BuiltSchedule(factory, values, build(**values))  # type: ignore[call-arg]  # bound

    @functools.wraps(build)
    def factory(*args: P.args, **kwargs: P.kwargs) -> Schedule:
        bound = bound_arguments(build.__name__, signature, args, kwargs)
        bound.apply_defaults()
        values = {name: _normal(value) for name, value in bound.arguments.items()}
        # 3 and 3.0 are equal, and yet a check may accept one of them only.
        return finished(tuple(map(type, values.values())), **values)

    return factory


def _normal(x: Any) -> Any:
    if isinstance(x, list | tuple):
        return tuple(map(_normal, x))
    if isinstance(x, np.generic):
        x = x.item()
    if isinstance(x, int) and not -FOREVER <= x <= FOREVER:
        return FOREVER if x > 0 else -FOREVER
    if not is_array(x) or not (
        jnp.issubdtype(x.dtype, jnp.integer) or jnp.issubdtype(x.dtype, jnp.floating)
    ):
        return x
    if not jnp.issubdtype(x.dtype, jnp.integer) or _needs_64_bits(x):
        return as_float(x)
    return jnp.asarray(x).astype(jax.dtypes.canonicalize_dtype(np.int64))


def _needs_64_bits(x: Any) -> bool:
    """Whether an array of numpy's holds a number that jax's integers in use do not."""
    if not isinstance(x, np.ndarray) or not x.size:
        return False
    return int(x.max()) > jnp.iinfo(jax.dtypes.canonicalize_dtype(np.int64)).max


def result(name: str, value: Any) -> Any:
    """What a function of the user's returned, an array as a float.

    Raises:
      TypeError: it is neither a number nor an array.
    """
    return as_float(checks.returned(name, value))


def members(name: str, given: Any) -> tuple[Schedule, ...]:
    """Several schedules, each of them a function.

    Raises:
      TypeError: they are no sequence, or one is not a function.
    """
    if callable(given) or not hasattr(given, "__iter__"):
        raise TypeError(
            f"{name} should be a sequence of schedules, but got {given!r} of type "
            f"{type(given).__name__}"
        )
    schedules = tuple(given)
    for index, schedule in enumerate(schedules):
        checks.function(f"{name}[{index}]", schedule)
    return schedules


def points(name: str, given: Any) -> tuple[Any, ...]:
    """Several counts, numbers or arrays, from a sequence or an array of them.

    Raises:
      TypeError: they are no sequence, or one is not a number. ValueError: one is NaN.
    """
    try:
        counts = tuple(given)
    except TypeError as error:
        raise TypeError(f"{name} should be a sequence of counts, but {error}") from None
    for index, count in enumerate(counts):
        checks.real(**{f"{name}[{index}]": count})
    return counts


def _in_kind(value: Any, count: Any) -> Any:
    if is_number(value) and is_number(count):
        return float(value)
    value = as_float(jnp.asarray(value))
    return value if value.ndim else jnp.broadcast_to(value, jnp.shape(count))


def is_array(x: Any) -> bool:
    """Whether x is an array, perhaps traced, whose value is not looked at."""
    return isinstance(x, jax.Array | np.ndarray)


def check_length(name: str, value: Any, least: int = 1) -> None:
    """Raises for a length that is not a whole number of at least `least` (1 or 0), or an array.

    Raises:
      ValueError: a number, or anything else, that is no such length.
      TypeError: an array of something else than numbers.
    """
    if is_array(value):
        checks.number_or_array(name, value)
    elif not isinstance(value, int) or value < least:
        kind = "positive" if least else "non-negative"
        raise ValueError(f"Expected {kind} integer {name}, but got {value}")
