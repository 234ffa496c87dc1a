"""From one value to another, along a line or half a cosine: what several schedules are made of.

Both are weighted means of the two ends, exact at each: a weight is formed from the steps done or
from the steps left, never from the other weight, which would cancel in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from functorch_optim.core.arithmetic import as_float, equal, sin, subtract, where
from functorch_optim.core.pair import Number


def along_line(start: Number, end: Number, done: Number, length: Number) -> Any:
    """`start + (end - start) * done / length`; the end where the length is 0."""
    left, done = _fractions(done, length)
    return start * left + end * done


def along_cosine(start: Number, end: Number, done: Number, length: Number) -> Any:
    """`end + (start - end) * (1 + cos(pi * done / length)) / 2`; the end where the length is 0."""
    left, done = (sin(math.pi / 2 * x) for x in _fractions(done, length))
    return start * (left * left) + end * (done * done)


def _fractions(done: Any, length: Any) -> tuple[Any, Any]:
    empty = equal(length, 0)
    divisor = as_float(where(empty, 1, length))
    left = as_float(subtract(length, done)) / divisor
    return where(empty, 0.0, left), where(empty, 1.0, as_float(done) / divisor)


STRATEGIES = {"cos": along_cosine, "linear": along_line}


def strategy(name: str) -> Callable[..., Any]:
    """The function of a torch `anneal_strategy`; ValueError in torch's words for another name."""
    if not isinstance(name, str) or name not in STRATEGIES:
        raise ValueError(f"anneal_strategy must be one of 'cos' or 'linear', instead got {name}")
    return STRATEGIES[name]
