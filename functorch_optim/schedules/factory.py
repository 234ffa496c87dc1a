"""What all schedule factories share: kinds of numbers, equal schedules, checks of lengths."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core.arithmetic import as_float, is_number
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import Schedule

P = ParamSpec("P")


def schedule_factory(build: Callable[P, Schedule]) -> Callable[P, Schedule]:
    """Gives equal arguments the same schedule, and numbers one kind on the way in and out.

    Arrays among the arguments and counts become the widest integer or float in use. The value of a
    number is a float, that of an array is an array of its shape.
    """
    signature = inspect.signature(build)

    @value_equal
    def finished(types: tuple[type, ...], *values: Any, **named: Any) -> Schedule:
        schedule = build(*values, **named)

        def at(count: Any) -> Any:
            count = _normal(count)
            return _in_kind(schedule(count), count)

        at.__name__ = at.__qualname__ = build.__name__
        return at

    @functools.wraps(build)
    def factory(*args: P.args, **kwargs: P.kwargs) -> Schedule:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = {name: _normal(value) for name, value in bound.arguments.items()}
        # 3 and 3.0 are equal, and yet a check may accept one of them only.
        return finished(tuple(map(type, values.values())), **values)

    return factory


def _normal(x: Any) -> Any:
    if isinstance(x, list | tuple):
        return tuple(map(_normal, x))
    if isinstance(x, np.generic):
        return x.item()
    if not is_array(x):
        return x
    if jnp.issubdtype(x.dtype, jnp.integer):
        return jnp.asarray(x).astype(jax.dtypes.canonicalize_dtype(np.int64))
    return as_float(x)


def _in_kind(value: Any, count: Any) -> Any:
    if is_number(value) and is_number(count):
        return float(value)
    value = as_float(jnp.asarray(value))
    return value if value.ndim else jnp.broadcast_to(value, jnp.shape(count))


def is_array(x: Any) -> bool:
    """Whether x is an array, perhaps traced, whose value is not looked at."""
    return isinstance(x, jax.Array | np.ndarray)


def check_length(name: str, value: Any, least: int = 1) -> None:
    """Raises ValueError for a length that is not a whole number of at least `least` (1 or 0)."""
    if not is_array(value) and (not isinstance(value, int) or value < least):
        kind = "positive" if least else "non-negative"
        raise ValueError(f"Expected {kind} integer {name}, but got {value}")
